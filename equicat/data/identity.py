"""Systems of structures, and 64-bit keys of whole data sets by which structures are recognised.

Frames of one relaxation share a ``sid``, and a system is what has one ``sid``. Where a data set has none, the frames
of one file with the same atoms in the same cell count as one system.

Two keys tell whether a model was trained on a structure. The key of a system is a hash of its ``sid`` and composition,
so it also knows frames of a relaxation that were left out of training. The key of a structure is a hash of what is in
it: composition, and a few sums over the positions. These sums do not change with the order of atoms or with the
periodic image that a file gives, and they are rounded coarsely, so that a structure keeps its key when it is written
with fewer digits: the OUTCAR has the key of the frame that was imported from it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path

import numpy as np
from ase.geometry import complete_cell
from jaxtyping import Bool, Float, Int, UInt64
from numpy import ndarray

from equicat.data.datasets import AnyDataset, MemoryDataset, Subset, pieces
from equicat.errors import InputError
from equicat.files import replacing_file

MAX_KEYS = 500_000
"""Structures of which keys are kept (4 MB, a minute); of a larger data set, those of shards spread evenly over it.
Any frame of a relaxation tells that its system was trained on, and the keys of systems cover all of them anyway."""
STEP = 0.1
"""Step to which the sums over positions are rounded. An oxygen atom that moves by 0.05 Å in a cell of 8 Å moves one by
0.3."""
TOLERANCE = 0.015
"""Difference of a sum that still is the same structure; positions written to 1e-4 Å make at most 0.01."""
HARMONIC = 3
"""Waves of the sums along a lattice vector; one wave would hardly see what moves in a molecule about its centre."""

_MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=np.uint64)
_SHIFTS = np.array([30, 27, 31], dtype=np.uint64)
"""Constants of splitmix64 (Steele, Lea and Flood 2014), a public hash of integers."""


@dataclass(frozen=True, eq=False)
class TrainedOn:
    """Keys, ascending and without repetition, of what a model was trained on and of what chose its checkpoint."""

    train_systems: UInt64[ndarray, "n_train_systems"]
    train_structures: UInt64[ndarray, "n_train_structures"]
    val_systems: UInt64[ndarray, "n_val_systems"]
    val_structures: UInt64[ndarray, "n_val_structures"]

    @classmethod
    def of(cls, train: AnyDataset, val: AnyDataset) -> "TrainedOn":
        """The keys of training and validation data."""
        return cls(*(np.unique(keys) for data in (train, val) for keys in (system_keys(data), structure_keys(data))))

    def __or__(self, other: "TrainedOn") -> "TrainedOn":
        """The keys of both together."""
        names = [f.name for f in fields(self)]
        return TrainedOn(*(np.union1d(getattr(self, name), getattr(other, name)) for name in names))

    def overlap(self, dataset: AnyDataset) -> tuple[int, int]:
        """How many systems of a data set were trained on, and of how many validation chose the checkpoint.

        A system counts if it, or any of its frames, is known.
        """
        systems, numbers = system_keys(dataset), system_numbers(dataset)
        seen = _looked_up(dataset, (self.train_structures, self.val_structures))
        if len(systems):
            seen = [
                s | np.isin(systems, keys) for s, keys in zip(seen, (self.train_systems, self.val_systems), strict=True)
            ]
        n_train, n_val = (len(np.unique(numbers[s])) for s in seen)
        return n_train, n_val

    def write(self, path: Path) -> None:
        """Write the keys as ``.npz``, complete or not at all."""
        with replacing_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def read(cls, path: Path) -> "TrainedOn | None":
        """The keys in a file that :meth:`write` made; None if there is no such file.

        Raises:
            InputError: if it is damaged.
        """
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(*(file[f.name].astype(np.uint64) for f in fields(cls)))
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(
                f"{path}: damaged ({error}); remove it, and overlap with training is not looked for"
            ) from error


def n_systems(dataset: AnyDataset) -> int:
    """The number of systems (relaxations) in a data set; see the module's text for what a system is."""
    return len(np.unique(system_numbers(dataset)))


def has_ids(dataset: AnyDataset) -> bool:
    """Whether every structure of a data set has a ``sid``."""
    return "sid" in dataset.fields


def system_numbers(dataset: AnyDataset) -> Int[ndarray, "n_structures"]:
    """For each structure the number, from 0, of the system that it belongs to."""
    if has_ids(dataset):
        names = np.concatenate([np.asarray(sids) for (sids,) in pieces(dataset, "sid")])
        return np.unique(names, return_inverse=True)[1].ravel()
    files = np.unique(_files(dataset), return_inverse=True)[1].ravel()
    parts = [
        (_composition_keys(numbers, counts), np.round(np.reshape(cell, (len(cell), 9)) / STEP).astype(np.int64))
        for numbers, cell, counts in pieces(dataset, "numbers", "cell", "n_atoms")
    ]
    compositions, cells = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return np.unique(_mixed(compositions, files, *cells.T), return_inverse=True)[1].ravel()


def system_keys(dataset: AnyDataset) -> UInt64[ndarray, "n_structures"]:
    """A key of the system of each structure, from ``sid`` and composition; empty if the data set has no ``sid``."""
    if not has_ids(dataset):
        return np.zeros(0, np.uint64)
    keys = []
    for sids, numbers, counts in pieces(dataset, "sid", "numbers", "n_atoms"):
        names, inverse = np.unique(np.asarray(sids), return_inverse=True)
        hashes = np.array([_text_key(bytes(name)) for name in names.tolist()], dtype=np.uint64)
        keys.append(_mixed(_composition_keys(numbers, counts), hashes[inverse.ravel()]))
    return np.concatenate(keys)


def structure_keys(dataset: AnyDataset, most: int | None = MAX_KEYS) -> UInt64[ndarray, "n"]:
    """A key of each structure; of a larger store than ``most``, of the structures of evenly spread shards."""
    return np.concatenate([_keys(*piece) for piece in _compositions_and_sums(dataset, most)])


def _looked_up(dataset: AnyDataset, known: Sequence[UInt64[ndarray, "_"]]) -> list[Bool[ndarray, "n_structures"]]:
    """Masks of the structures that have a key in each of the sets; all roundings within the tolerance are tried."""
    found: list[list[ndarray]] = [[] for _ in known]
    for composition, sums in _compositions_and_sums(dataset, None):
        seen = [np.zeros(len(sums), bool) for _ in known]
        for signs in product((-TOLERANCE, TOLERANCE), repeat=sums.shape[1]):
            keys = _keys(composition, sums + np.array(signs))
            for s, of_set in zip(seen, known, strict=True):
                s |= np.isin(keys, of_set)
        for parts, s in zip(found, seen, strict=True):
            parts.append(s)
    return [np.concatenate(parts) for parts in found]


def _keys(composition: UInt64[ndarray, "n"], sums: Float[ndarray, "n 6"]) -> UInt64[ndarray, "n"]:
    return _mixed(composition, *np.floor(sums / STEP).astype(np.int64).T)


def _compositions_and_sums(
    dataset: AnyDataset, most: int | None
) -> Iterator[tuple[UInt64[ndarray, "n"], Float[ndarray, "n 6"]]]:
    for numbers, positions, cell, counts in pieces(dataset, "numbers", "positions", "cell", "n_atoms", most=most):
        atomic_numbers = np.asarray(numbers, dtype=np.int64)  # a store keeps bytes, whose square roots are half floats
        yield _composition_keys(numbers, counts), _phase_sums(atomic_numbers, np.asarray(positions), cell, counts)


def _phase_sums(
    numbers: Int[ndarray, "n_atoms"],
    positions: Float[ndarray, "n_atoms 3"],
    cell: Float[ndarray, "n 3 3"],
    counts: Int[ndarray, "n"],
) -> Float[ndarray, "n 6"]:
    """Σ_i √Z_i exp(6πi f_i) for the fractional coordinate f along each lattice vector, real and imaginary parts.

    A lattice vector that is missing counts as one of 10 Å, at right angles to the others.
    """
    lattice = np.array(cell, dtype=np.float64)
    for k in np.flatnonzero(np.abs(np.linalg.det(lattice)) < 1e-3):
        missing = np.linalg.norm(lattice[k], axis=1) < 1e-6
        lattice[k] = complete_cell(lattice[k])
        lattice[k][missing] *= 10.0
    inverse = np.repeat(np.linalg.inv(lattice), counts, axis=0)
    fractional = np.einsum("ni,nij->nj", positions.astype(np.float64), inverse)
    phases = np.exp(2j * np.pi * HARMONIC * fractional) * np.sqrt(numbers)[:, None]
    sums = np.add.reduceat(phases, _starts(counts), axis=0)
    return np.concatenate([sums.real, sums.imag], axis=1)


def _composition_keys(numbers: ndarray, counts: Int[ndarray, "n_structures"]) -> UInt64[ndarray, "n_structures"]:
    """A key of which elements there are how often, whatever the order of the atoms."""
    by_element = _mixed(np.arange(256))
    return _mixed(np.add.reduceat(by_element[np.asarray(numbers, dtype=np.int64)], _starts(counts)), counts)


def _starts(counts: Int[ndarray, "n"]) -> Int[ndarray, "n"]:
    return np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)


def _mixed(*columns: ndarray) -> UInt64[ndarray, "n"]:
    """One hash of a row of integers."""
    key = np.zeros(len(columns[0]), dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        for column in columns:
            values = column if column.dtype == np.uint64 else column.astype(np.int64).view(np.uint64)
            key = (key ^ values) + _MULTIPLIERS[0]
            key = (key ^ (key >> _SHIFTS[0])) * _MULTIPLIERS[1]
            key = (key ^ (key >> _SHIFTS[1])) * _MULTIPLIERS[2]
            key ^= key >> _SHIFTS[2]
    return key


def _text_key(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text.rstrip(b"\0"), digest_size=8).digest(), "little")


def _files(dataset: AnyDataset) -> list[str]:
    """For structures in memory the file that each was read from; a store counts as one file."""
    if isinstance(dataset, MemoryDataset):
        return [structure.source.rsplit(", frame", 1)[0] for structure in dataset]
    if isinstance(dataset, Subset) and isinstance(dataset.dataset, MemoryDataset):
        everything = _files(dataset.dataset)
        return [everything[i] for i in dataset.indices]
    return [""] * len(dataset)
