"""Data sets: flat memory-mapped arrays on disk (a store), or structures of a file in memory, behind one interface.

A data set directory looks like this; each split is a store::

    dataset.json            what it is, how it was made
    s2ef/train/             index.json, n_atoms.npy, positions.npy, ...
    s2ef/val_id/ ...
    is2re/train/ ...
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy import ndarray

from equicat.errors import InputError, nearest
from equicat.readers import read, stem_of
from equicat.shards import LABELS, PER_ATOM, labels_of
from equicat.store import DatasetInfo, Store, checked_index, column_named, write_store
from equicat.structure import Structure

__all__ = [
    "Dataset",
    "DatasetInfo",
    "MemoryDataset",
    "Store",
    "open_dataset",
    "require_labels",
    "splits_of",
    "write_store",
]

TASK_DIRECTORIES = {"s2ef": "s2ef", "is2re": "is2re", "is2rs": "is2re"}
"""IS2RE and IS2RS start from the same initial structures."""


class MemoryDataset(Sequence[Structure]):
    """Structures in memory, with the attributes of :class:`Store`; ``fields`` are the labels that all of them have.

    Raises:
        InputError: if there are no structures.
    """

    def __init__(self, structures: Iterable[Structure], info: DatasetInfo | None = None, path: str | Path = "") -> None:
        self.path = Path(path)
        self.info = info or DatasetInfo()
        self.columns: list[str] = []
        self._structures = list(structures)
        if not self._structures:
            raise InputError(f"{path or 'data set'}: no structures")
        self.n_atoms = np.array([len(s) for s in self._structures], dtype=np.int64)
        self.fields = ["positions", "numbers", "cell", "pbc", "fixed", "tags"]
        self.fields += [name for name in LABELS if all(name in labels_of(s) for s in self._structures)]
        self.elements: list[int] = np.unique(self.array("numbers")).tolist()

    def __len__(self) -> int:
        return len(self._structures)

    def __getitem__(self, i: int) -> Structure:  # type: ignore[override]
        return self._structures[checked_index(i, len(self))]

    @cached_property
    def _arrays(self) -> dict[str, ndarray]:
        columns: dict[str, ndarray] = {"n_atoms": self.n_atoms}
        for name in self.fields:
            values = [s.sid.encode() if name == "sid" else getattr(s, name) for s in self._structures]
            columns[name] = np.concatenate(values) if name in PER_ATOM else np.array(values)
        return columns

    def array(self, name: str) -> ndarray:
        """A field of all structures at once, as :meth:`Store.array`."""
        return column_named(name, self._arrays, self.path)

    def chunks(self, *names: str) -> Iterator[list[ndarray]]:
        """The named fields of all structures, as :meth:`Store.chunks`; here in one piece."""
        yield [self.array(name) for name in names]


Dataset = Store | MemoryDataset


def open_dataset(path: str | Path, energy_key: str | None = None, energy_reference: str | None = None) -> Dataset:
    """A store directory, or any structure file (read into memory).

    Args:
        path: the store or file.
        energy_key: for a file: take the energy from this key of each frame.
        energy_reference: what the energies are; ``total`` for a file if not given. A store knows its own.

    Raises:
        InputError: if ``path`` is neither, if a store is opened with an ``energy_key`` or with another
            ``energy_reference`` than its own, or if the file cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        info = DatasetInfo(energy_reference or "total", provenance={"file": path.name, "energy_key": energy_key})
        return MemoryDataset(read(path, energy_key), info, path)
    if not is_store(path):
        raise InputError(f"{path}: holds several splits or no store; name one of: {stores_below(path)}")
    store = Store(path)
    if energy_key is not None:
        raise InputError(f"{path}: a store has its energies already; an energy key applies to structure files only")
    if energy_reference not in (None, store.info.energy_reference):
        raise InputError(
            f"{path}: its energies are {store.info.energy_reference!r}, not {energy_reference!r}; "
            "the two cannot be mixed"
        )
    return store


def is_store(path: Path) -> bool:
    """Whether the directory is a store (one split)."""
    return (path / "index.json").is_file()


def splits_of(path: str | Path, task: str) -> dict[str, Path]:
    """The splits of a task found at ``path``, ``train`` first: name to store directory or structure file.

    ``path`` may be the root of a data set, the directory of one task, one split, or a structure file.

    Raises:
        InputError: if the task is unknown or nothing for it is there; the message lists what was found.
    """
    if task not in TASK_DIRECTORIES:
        raise InputError(
            f"unknown task {task!r}{nearest(task, TASK_DIRECTORIES)}; tasks: {', '.join(TASK_DIRECTORIES)}"
        )
    path = Path(path)
    if path.is_file():
        return {stem_of(path): path}
    if not path.is_dir():
        raise InputError(f"{path}: no such file or directory")
    if is_store(path):
        return {path.name: path}
    # The root of a data set has one directory for each task; otherwise `path` is such a directory itself.
    task_path = path / TASK_DIRECTORIES[task] if (path / TASK_DIRECTORIES[task]).is_dir() else path
    names = sorted((p.name for p in task_path.iterdir() if is_store(p)), key=lambda name: (name != "train", name))
    if not names:
        raise InputError(f"{path}: no splits for task {task!r}; found {stores_below(path)}")
    return {name: task_path / name for name in names}


def stores_below(path: Path) -> str:
    """What a directory holds, for messages: its stores, or else its entries."""
    found = sorted(index.parent.relative_to(path).as_posix() for index in path.glob("*/**/index.json"))
    entries = sorted(entry.name for entry in path.iterdir())
    return ", ".join(found or entries) or "nothing"


def require_labels(dataset: Dataset, names: Iterable[str]) -> None:
    """Make sure that every structure has the labels a task uses, so that none is silently left out.

    Raises:
        InputError: naming the missing label, the first structure without it and the keys found there.
    """
    for name in names:
        if name not in dataset.fields:
            first = next(s for s in dataset if name not in labels_of(s))
            found = [*labels_of(first), *sorted(first.info)]
            advice = "; if one of them is the energy, name it as the energy key" if name == "energy" else ""
            raise InputError(f"{first.where}: no label {name!r}; found {', '.join(found) or 'no labels'}{advice}")
