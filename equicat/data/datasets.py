"""Data sets: flat memory-mapped arrays on disk (a store), or structures of a file in memory, behind one interface."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from equicat.data.directory import require_store, splits_of
from equicat.data.info import DatasetInfo
from equicat.data.readers import read
from equicat.data.shards import LABELS, PER_ATOM, labels_of
from equicat.data.store import Store, checked_index, column_named, write_store
from equicat.data.structure import Structure
from equicat.errors import InputError

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
    store = Store(require_store(path))
    if energy_key is not None:
        raise InputError(f"{path}: a store has its energies already; an energy key applies to structure files only")
    if energy_reference not in (None, store.info.energy_reference):
        raise InputError(
            f"{path}: its energies are {store.info.energy_reference!r}, not {energy_reference!r}; "
            "the two cannot be mixed"
        )
    return store


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


class Subset(Sequence[Structure]):
    """Some structures of a data set, with its attributes."""

    def __init__(self, dataset: Dataset, indices: Int[ndarray, "n"]):
        # In the order of the files: neighbours are then in the same shard.
        self.dataset, self.indices = dataset, np.sort(indices)
        self.info, self.path, self.fields, self.columns = dataset.info, dataset.path, dataset.fields, dataset.columns
        self.n_atoms = np.asarray(dataset.n_atoms)[self.indices]
        self.elements = np.unique(self.array("numbers")).tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Structure:  # type: ignore[override]
        return self.dataset[int(self.indices[i])]

    def array(self, name: str) -> ndarray:
        """A field of all structures at once: [total_atoms, ...] or [n_structures, ...]."""
        values = self.dataset.array(name)
        if name not in PER_ATOM:
            return np.asarray(values)[self.indices]
        starts = np.concatenate([[0], np.cumsum(self.dataset.n_atoms)])
        return np.concatenate([values[starts[i] : starts[i + 1]] for i in self.indices])


AnyDataset = Dataset | Subset


def pieces(dataset: AnyDataset, *names: str, most: int | None = None) -> Iterator[list[ndarray]]:
    """The named fields of a data set piece by piece, so that a large store is never in memory as a whole.

    Args:
        dataset: a store gives its shards one by one; everything else comes in one piece.
        names: of fields; ``n_atoms`` is the number of atoms of each structure of the piece.
        most: of a store with more structures than this, only shards spread evenly over it.
    """
    if not isinstance(dataset, Store):
        yield [np.asarray(dataset.array(name)) for name in names]
        return
    n_shards = len(dataset.shards)
    n_taken = n_shards if most is None else max(1, min(n_shards, most * n_shards // len(dataset)))
    for k in np.linspace(0, n_shards - 1, n_taken).round().astype(int):
        arrays = dataset.shard(int(k))
        yield [np.diff(arrays["atom_offsets"]) if name == "n_atoms" else arrays[name] for name in names]
