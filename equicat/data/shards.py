"""One shard of a store: the arrays of some thousands of structures in one safetensors file, memory-mapped.

Per-structure arrays (``cell``, ``energy`` ...) have a row for each structure, per-atom arrays (``positions`` ...)
those of all structures one after the other: structure i from ``atom_offsets[i]`` to ``atom_offsets[i + 1]``. Texts
are rows of UTF-8 bytes, padded with zeros.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from numpy import ndarray

from equicat.data.labels import LABELS, check_range
from equicat.data.structure import Structure
from equicat.errors import InputError

OPTIONAL = (*LABELS, "sid", "fid")
"""Fields a store holds only if every structure has them: labels and ids."""
BASIC = ("positions", "numbers", "cell", "pbc", "fixed", "tags")
"""Fields that every structure has."""
PER_ATOM = {"positions", "numbers", "fixed", "tags", "forces", "relaxed_positions"}
PRECISIONS = ("float64", "float32")

Column = Shaped[ndarray, "_ ..."]
"""A field of many structures, one row for each of their atoms or for each of them; texts are bytes."""

_DTYPES = {"numbers": "uint8", "pbc": "bool", "fixed": "bool", "tags": "int16", "fid": "int64"}
_DTYPES |= {"energy": "float64", "relaxed_energy": "float64"}
"""Type of each field on disk; every numeric field that is not named here has the precision asked for."""
_COLUMN_KINDS = {bool: "bool", int: "int64", float: "float64", str: "text"}
_SAFETENSORS_DTYPES = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "I16": "<i2", "U8": "|u1", "BOOL": "|b1"}


@dataclass(frozen=True)
class Schema:
    """Fields that every structure of a store has, and how they are kept."""

    labels: tuple[str, ...]
    columns: Mapping[str, str]
    """Entries of ``Structure.info`` that are kept: name to ``text``, ``bool``, ``int64`` or ``float64``."""
    precision: str = "float64"
    """Type of positions, cells and forces, float64 or float32; energies are always float64."""

    @classmethod
    def of(cls, structure: Structure, columns: Sequence[str] = (), precision: str = "float64") -> "Schema":
        """The labels that a structure has, and the types of those entries of its ``info``.

        Raises:
            InputError: if it lacks an entry, one is of another type than text or a number, or the precision is unknown.
        """
        if precision not in PRECISIONS:
            raise InputError(f"precision is {precision!r}; it must be {' or '.join(PRECISIONS)}")
        kinds = {}
        for name in columns:
            value = structure.info.get(name)
            value = value.item() if isinstance(value, np.generic) else value
            if type(value) not in _COLUMN_KINDS:
                raise InputError(f"{structure.where}: info has no text or number {name!r}; found {value!r}")
            kinds[name] = _COLUMN_KINDS[type(value)]
        return cls(tuple(labels_of(structure)), kinds, precision)

    def dtype(self, name: str) -> str:
        return _DTYPES.get(name, self.precision)

    def check(self, structure: Structure, first: str) -> None:
        """Make sure that a structure has just these labels and columns.

        Args:
            structure: to be written.
            first: where the structure that the schema was taken from is, for messages.

        Raises:
            InputError: naming what is missing, or what no method gives, and where.
        """
        labels = labels_of(structure)
        check_range({name: getattr(structure, name) for name in LABELS}, len(structure), structure.where)
        found = ", ".join(labels) or "no labels"
        for name in self.labels:
            if name not in labels:
                raise InputError(f"{structure.where}: no {name}, which earlier frames have; found {found}")
        for name in labels:
            if name not in self.labels:
                found = ", ".join(self.labels) or "no labels"
                raise InputError(f"{first}: no {name}, which {structure.where} has; found {found}")
        for name in self.columns:
            if name not in structure.info:
                raise InputError(f"{structure.where}: info has no {name!r}, which earlier frames have")


def labels_of(structure: Structure) -> list[str]:
    """Names of the labels and ids that the structure has."""
    values = {name: getattr(structure, name) for name in OPTIONAL}
    return [name for name, value in values.items() if value is not None and not (name == "sid" and value == "")]


class ShardBuilder:
    """Collects the arrays of structures and writes them as one file.

    Args:
        schema: what every structure must have.
        first: where the structure that the schema was taken from is, for messages.
    """

    def __init__(self, schema: Schema, first: str) -> None:
        self.schema = schema
        self.first = first
        self._n_atoms: list[int] = []
        names = [*BASIC, *schema.labels, *schema.columns]
        self._values: dict[str, list[Any]] = {name: [] for name in names}

    def __len__(self) -> int:
        return len(self._n_atoms)

    def append(self, structure: Structure) -> None:
        """Add a structure.

        Raises:
            InputError: if it lacks what the schema says, or has more.
        """
        self.schema.check(structure, self.first)
        self._n_atoms.append(len(structure))
        for name, values in self._values.items():
            value = structure.info[name] if name in self.schema.columns else getattr(structure, name)
            is_array = isinstance(value, ndarray)
            values.append(value.astype(self.schema.dtype(name)) if is_array else value)

    def write(self, path: Path) -> dict[str, Any]:
        """Write the file, and return what the store's index says of it.

        The bytes depend on nothing but the structures. They are on the disk when this returns.
        """
        arrays = {"atom_offsets": np.concatenate([[0], np.cumsum(self._n_atoms, dtype=np.int64)])}
        arrays |= {name: self._array(name, values) for name, values in self._values.items()}
        n_bytes, checksum = _write(path, arrays)
        return {
            "n_structures": len(self),
            "n_atoms": int(arrays["atom_offsets"][-1]),
            "bytes": n_bytes,
            "sha256": checksum,
            "elements": np.unique(arrays["numbers"]).tolist(),
        }

    def _array(self, name: str, values: list[Any]) -> ndarray:
        if name in PER_ATOM:
            return np.concatenate(values)
        kind = self.schema.columns.get(name, "text" if name == "sid" else self.schema.dtype(name))
        return _bytes_of(values) if kind == "text" else np.array(values, dtype=kind)


def open_shard(path: Path, n_bytes: int) -> dict[str, Column]:
    """The arrays of a shard, mapped; texts as arrays of bytes.

    Args:
        path: the file.
        n_bytes: its size as the index says.

    Raises:
        InputError: if the file is missing, of another size, or no shard.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != n_bytes:
                raise InputError(f"{path}: damaged, {size:,} bytes, index.json says {n_bytes:,}; write the store again")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(mapped[:8], "little")
        header = json.loads(mapped[8:start])
        arrays = {}
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            dtype = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]])
            values = np.frombuffer(mapped, dtype, (last - first) // dtype.itemsize, start + first)
            values = values.reshape(entry["shape"])
            arrays[name] = _texts(values) if dtype == np.uint8 and values.ndim == 2 else values
        return arrays
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: missing or damaged ({error}); write the store again") from error


def sha256(path: Path) -> str:
    """Checksum of a file's content, as ``sha256sum`` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, arrays: Mapping[str, ndarray]) -> tuple[int, str]:
    """A safetensors file: length of the header, header in JSON, arrays; returns its size and checksum.

    Written here because the library's writer says of a full disk only in words that something went wrong.
    """
    names = {np.dtype(dtype): name for name, dtype in _SAFETENSORS_DTYPES.items()}
    header, end = {}, 0
    # Wide numbers first, so that every array is aligned.
    ordered = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    for name in ordered:
        start, end = end, end + arrays[name].nbytes
        dtype, shape = names[arrays[name].dtype], list(arrays[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    checksum = hashlib.sha256()
    with path.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text, *(arrays[name].tobytes() for name in ordered)):
            file.write(part)
            checksum.update(part)
        file.flush()
        os.fsync(file.fileno())
    return 8 + len(text) + end, checksum.hexdigest()


def _bytes_of(texts: list[str]) -> UInt8[ndarray, "n width"]:
    encoded = np.array([text.encode() for text in texts])
    if encoded.dtype.itemsize == 0:
        return np.zeros((len(texts), 1), np.uint8)
    return np.frombuffer(encoded.tobytes(), np.uint8).reshape(len(texts), -1)


def _texts(values: UInt8[ndarray, "n width"]) -> ndarray:
    return values.view(f"S{values.shape[1]}")[:, 0]
