"""Data sets: flat memory-mapped arrays on disk (a store), or structures of a file in memory, behind one interface."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Float, Int
from numpy import ndarray

from equicat.data.directory import require_store, splits_of
from equicat.data.info import DatasetInfo
from equicat.data.labels import LABELS
from equicat.data.readers import natural_order, read, structure_files
from equicat.data.shards import OPTIONAL, PER_ATOM, Column, labels_of
from equicat.data.store import Store, checked_index, column_named, write_store
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.files import visible

ENERGIES = ("energy", "relaxed_energy")

__all__ = [
    "Dataset",
    "DatasetInfo",
    "MemoryDataset",
    "Store",
    "open_dataset",
    "require_elements",
    "require_labels",
    "splits_of",
    "write_store",
]


class MemoryDataset(Sequence[Structure]):
    """Structures in memory, with the attributes of :class:`Store`; ``fields`` are the labels that all of them have.

    Attributes:
        counts: how many structures have each label or id, those that none has left out.

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
        counts = Counter(name for s in self._structures for name in labels_of(s))
        self.counts = {name: counts[name] for name in OPTIONAL if counts[name]}
        self.fields += [name for name, n in self.counts.items() if n == len(self)]
        self.elements: list[int] = np.unique(self.array("numbers")).tolist()

    def __len__(self) -> int:
        return len(self._structures)

    def __getitem__(self, i: int) -> Structure:  # type: ignore[override]
        return self._structures[checked_index(i, len(self))]

    @cached_property
    def _arrays(self) -> dict[str, Column]:
        columns: dict[str, Column] = {"n_atoms": self.n_atoms}
        for name in self.fields:
            values = [s.sid.encode() if name == "sid" else getattr(s, name) for s in self._structures]
            columns[name] = np.concatenate(values) if name in PER_ATOM else np.array(values)
        return columns

    def array(self, name: str) -> Column:
        """A field of all structures at once, as :meth:`Store.array`."""
        return column_named(name, self._arrays, self.path)

    def chunks(self, *names: str) -> Iterator[list[Column]]:
        """The named fields of all structures, as :meth:`Store.chunks`; here in one piece."""
        yield [self.array(name) for name in names]


Dataset = Store | MemoryDataset


def open_dataset(
    path: str | Path,
    energy_key: str | None = None,
    energy_reference: str | None = None,
    *,
    forces_key: str | None = None,
    labels: Collection[str] = LABELS,
) -> Dataset:
    """A store directory, or any structure file (read into memory).

    Args:
        path: the store or file.
        energy_key: for a file: take the energy from this key of each frame.
        energy_reference: what the energies are; ``total`` for a file if not given. A store knows its own.
        forces_key: for a file: take the forces from this column of atoms.
        labels: for a file: the labels that are wanted; the others are not looked at, whatever they hold.

    Raises:
        InputError: if ``path`` is neither, if a store is opened with a key or with another ``energy_reference`` than
            its own, or if the file cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        provenance = {"file": path.name, "energy_key": energy_key, "forces_key": forces_key}
        info = DatasetInfo(energy_reference or "total", provenance=provenance)
        return MemoryDataset(read(path, energy_key, forces_key=forces_key, labels=labels), info, path)
    store = Store(require_store(path))
    if energy_key is not None or forces_key is not None:
        raise InputError(
            f"{path}: a store has its energies and forces already; an energy key or forces key applies to structure "
            "files only"
        )
    if energy_reference not in (None, store.info.energy_reference):
        raise InputError(
            f"{path}: its energies are {store.info.energy_reference!r}, not {energy_reference!r}; "
            "the two cannot be mixed"
        )
    return store


def open_structures(paths: Sequence[str | Path], labels: Collection[str] = ()) -> Dataset:
    """A store, or the structures of any number of files, glob patterns and folders of files, in memory.

    Where there are several files, each structure's ``info`` gets an entry ``source``: the file and the frame.

    Args:
        paths: what to read; a store comes alone.
        labels: those that are wanted; the others are not looked at.

    Raises:
        InputError: if a path is missing, a folder holds no structure files or several stores, or a file cannot be read.
    """
    found = [
        Path(p) for path in map(str, paths) for p in sorted(glob(path, recursive=True), key=natural_order) or [path]
    ]
    if not found:
        raise InputError("no structures are named; give structure files, folders with them, or a store")
    with_stores = [path for path in found if path.is_dir() and visible(path, "**/index.json")]
    if len(found) == 1 and (with_stores or not found[0].is_dir()):
        return open_dataset(found[0], labels=labels)
    if with_stores:
        raise InputError(f"{with_stores[0]}: a data set among several paths; give it alone, or structure files only")
    files = [file for path in found for file in (structure_files(path) if path.is_dir() else [path])]
    structures = (structure for file in files for structure in read(file, labels=labels))
    named = (dataclasses.replace(s, info={"source": s.source, **s.info}) for s in structures)
    return MemoryDataset(named, path=", ".join(map(str, paths)))


def require_labels(dataset: "AnyDataset", names: Iterable[str]) -> None:
    """Make sure that every structure has the labels a task uses, so that none is silently left out.

    Raises:
        InputError: naming the missing label, the first structure without it, how many there are, and what is found
            there.
    """
    for name in names:
        if name in dataset.fields:
            continue
        first = next(s for s in dataset if name not in labels_of(s))
        is_store = isinstance(dataset.dataset if isinstance(dataset, Subset) else dataset, Store)  # then none has it
        n_without = len(dataset) if is_store else sum(name not in labels_of(s) for s in dataset)
        found = ", ".join([*labels_of(first), *sorted(first.info)]) or "no labels"
        columns = f"; further columns of atoms: {', '.join(first.columns)}" if first.columns else ""
        advice = ""
        if name in ("energy", "forces") and (first.columns or first.info):
            advice = f"; if one of them is the {name}, name it as the {name} key"
        raise InputError(
            f"{first.where}: no label {name!r}; found {found}{columns}{advice} "
            f"({n_without:,} of {len(dataset):,} structures have none)"
        )


def require_elements(dataset: "AnyDataset", known: Collection[int]) -> None:
    """Make sure that a model knows every element of a data set, before anything is computed.

    Args:
        dataset: the structures.
        known: atomic numbers.

    Raises:
        InputError: naming the first structure with another element, and that element.
    """
    unknown = sorted(set(dataset.elements) - set(known))
    if not unknown:
        return
    n_before = 0
    for (numbers,) in dataset.chunks("numbers"):
        hits = np.flatnonzero(np.isin(numbers, unknown))
        if len(hits):
            atom = n_before + int(hits[0])
            structure = dataset[int(np.searchsorted(np.cumsum(dataset.n_atoms), atom, side="right"))]
            raise InputError(
                f"{structure.where}: element {chemical_symbols[int(numbers[hits[0]])]} was not in the training data; "
                f"this model knows {', '.join(chemical_symbols[z] for z in sorted(known))}"
            )
        n_before += len(numbers)


class Subset(Sequence[Structure]):
    """Some structures of a data set, with its attributes."""

    def __init__(self, dataset: "Dataset | Joined", indices: Int[ndarray, "n"]):
        # In the order of the files: neighbours are then in the same shard.
        self.dataset, self.indices = dataset, np.sort(indices)
        self.info, self.path, self.fields, self.columns = dataset.info, dataset.path, dataset.fields, dataset.columns
        self.n_atoms = np.asarray(dataset.n_atoms)[self.indices]
        self.elements = np.unique(self.array("numbers")).tolist()

    @classmethod
    def of(cls, data: "AnyDataset", indices: Int[ndarray, "n"]) -> "Subset":
        """Some structures of a data set or of a part of one; ``indices`` count within ``data``."""
        return cls(data.dataset, data.indices[indices]) if isinstance(data, Subset) else cls(data, indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Structure:  # type: ignore[override]
        return self.dataset[int(self.indices[i])]

    def array(self, name: str) -> Column:
        """A field of all structures at once: [total_atoms, ...] or [n_structures, ...]."""
        values = self.dataset.array(name)
        if name not in PER_ATOM:
            return np.asarray(values)[self.indices]
        starts = np.concatenate([[0], np.cumsum(self.dataset.n_atoms)])
        return np.concatenate([values[starts[i] : starts[i + 1]] for i in self.indices])

    def chunks(self, *names: str) -> Iterator[list[Column]]:
        """The named fields of all structures, as :meth:`Store.chunks`; here in one piece."""
        yield [self.array(name) for name in names]


def label_counts(label: str, energy_weight: float, forces_weight: float) -> bool:
    """Whether a label counts with these factors on the losses of energies and forces; else it need not be there."""
    weights = dict.fromkeys(ENERGIES, energy_weight) | {"forces": forces_weight}
    return weights.get(label, 1.0) > 0


@dataclass(frozen=True, eq=False)
class Part:
    """One of several data sets that are trained on together."""

    dataset: Dataset | Subset
    zeros: Float[ndarray, "n_structures"] | None = None
    """Subtracted from the energy of each structure, eV."""
    energy_weight: float = 1.0
    """Factor on the loss of energies."""
    forces_weight: float = 1.0
    """Factor on the loss of forces."""

    def counts(self, label: str) -> bool:
        """Whether a label counts; one that does not need not be there."""
        return label_counts(label, self.energy_weight, self.forces_weight)

    def __getitem__(self, i: int) -> Structure:
        """A structure with its factors, energies shifted, and zeros in place of labels that do not count."""
        structure = self.dataset[i]
        if self.zeros is None and self.energy_weight == self.forces_weight == 1:
            return structure
        changed: dict[str, Any] = {"energy_weight": self.energy_weight, "forces_weight": self.forces_weight}
        for name in ENERGIES:
            energy = getattr(structure, name)
            if not self.counts(name):
                changed[name] = 0.0
            elif energy is not None and self.zeros is not None:
                changed[name] = energy - float(self.zeros[i])
        if not self.counts("forces"):
            changed["forces"] = np.zeros((len(structure), 3))
        return dataclasses.replace(structure, **changed)

    def array(self, name: str) -> Column:
        """A field of all structures at once; a label that does not count is not a number."""
        if not self.counts(name):
            n = int(np.sum(self.dataset.n_atoms))
            return np.full((n, 3) if name == "forces" else len(self.dataset), np.nan)
        values = np.asarray(self.dataset.array(name))
        return values - self.zeros if name in ENERGIES and self.zeros is not None else values


class Joined(Sequence[Structure]):
    """The structures of several data sets, one after the other, with the attributes of the first one.

    Args:
        parts: at least one.
        held_out: validation data of those after the first, by name.
    """

    info: DatasetInfo
    path: Path
    fields: list[str]
    columns: list[str]
    n_atoms: Int[ndarray, "n_structures"]
    elements: list[int]

    def __init__(
        self,
        parts: Sequence[Part],
        held_out: "Mapping[str, Joined] | None" = None,
    ) -> None:
        self.parts, self.held_out = list(parts), dict(held_out or {})
        first, datasets = self.parts[0].dataset, [part.dataset for part in self.parts]
        self.info, self.path, self.columns = first.info, first.path, []
        names = dict.fromkeys(name for dataset in datasets for name in dataset.fields)
        self.fields = [n for n in names if all(n in p.dataset.fields or not p.counts(n) for p in self.parts)]
        self.n_atoms = np.concatenate([np.asarray(dataset.n_atoms) for dataset in datasets])
        self.elements = sorted({z for dataset in datasets for z in dataset.elements})
        self._ends = np.cumsum([len(dataset) for dataset in datasets])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> Structure:  # type: ignore[override]
        i = checked_index(i, len(self))
        k = int(np.searchsorted(self._ends, i, side="right"))
        return self.parts[k][i - int(self._ends[k]) + len(self.parts[k].dataset)]

    def array(self, name: str) -> Column:
        """A field of all structures at once: [total_atoms, ...] or [n_structures, ...]."""
        if name == "n_atoms":
            return self.n_atoms
        column_named(name, dict.fromkeys(self.fields, self.n_atoms), self.path)  # raises if it is not there
        return np.concatenate([part.array(name) for part in self.parts])

    def chunks(self, *names: str) -> Iterator[list[Column]]:
        """The named fields of all structures, as :meth:`Store.chunks`; here in one piece."""
        yield [self.array(name) for name in names]

    def weights(self) -> tuple[float, float]:
        """Sums over all structures of the factors on the losses of energies and of forces."""
        sizes = [len(part.dataset) for part in self.parts]
        factors = ([p.energy_weight for p in self.parts], [p.forces_weight for p in self.parts])
        energy, forces = (sum(n * f for n, f in zip(sizes, of_parts, strict=True)) for of_parts in factors)
        return energy, forces


AnyDataset = Dataset | Subset | Joined


def pieces(dataset: AnyDataset, *names: str, most: int | None = None) -> Iterator[list[Column]]:
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
