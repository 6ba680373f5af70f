"""A store: structures in one directory of flat arrays that are memory-mapped, written as a stream.

Per-structure arrays (``n_atoms``, ``cell``, ``energy`` ...) have a row for each structure, per-atom arrays
(``positions``, ``forces`` ...) those of all structures one after the other; ``index.json`` says what there is.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from ase.data import chemical_symbols
from numpy import ndarray

from equicat.errors import InputError, nearest
from equicat.files import read_json, replacing_directory, write_json
from equicat.structure import Structure

FORMAT_VERSION = 1
ENERGY_REFERENCES = ("adsorption", "total", "relative")
LABELS = ("energy", "forces", "relaxed_energy", "relaxed_positions", "sid", "fid")
"""Fields a store holds only if every structure has them."""
PER_ATOM = {"positions", "numbers", "fixed", "tags", "forces", "relaxed_positions"}

_TRAILING_SHAPE: dict[str, tuple[int, ...]] = {
    "positions": (3,),
    "cell": (3, 3),
    "pbc": (3,),
    "forces": (3,),
    "relaxed_positions": (3,),
}
_DTYPES = {"numbers": "uint8", "pbc": "bool", "fixed": "bool", "tags": "int16", "fid": "int64"}
_DTYPES |= {"energy": "float64", "relaxed_energy": "float64"}
"""Of every other numeric field: the precision asked for."""


@dataclass(frozen=True)
class DatasetInfo:
    """What the numbers of a data set mean.

    Raises:
        InputError: if ``energy_reference`` is none of ``adsorption``, ``total`` and ``relative``.
    """

    energy_reference: str = "total"
    """``adsorption``: E(slab+adsorbate) − E(clean slab) − E(gas references); ``total``: as the code printed it;
    ``relative``: every system has its own zero."""
    reference_energies: dict[str, float] = field(default_factory=dict)
    """The energies (eV) that were subtracted, by the name of what they belong to."""
    description: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the data come from and with which settings; anything JSON holds."""

    def __post_init__(self) -> None:
        if self.energy_reference not in ENERGY_REFERENCES:
            raise InputError(
                f"energy_reference is {self.energy_reference!r}{nearest(self.energy_reference, ENERGY_REFERENCES)}; "
                f"it must be one of {', '.join(ENERGY_REFERENCES)}"
            )


class Store(Sequence[Structure]):
    """Structures in a directory of flat arrays, memory-mapped: opening costs nothing, reading touches one structure.

    Pickles as its path, so workers of a ``DataLoader`` map the files themselves.

    Attributes:
        path: the directory.
        info: what the energies mean and where the data come from.
        elements: atomic numbers that occur, ascending.
        n_atoms: atoms of each structure, [n_structures].
        fields: names of the arrays, labels included.

    Raises:
        InputError: if ``path`` is not a store, is of a newer format, or is damaged (the file is named).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        index = read_json(self.path / "index.json")
        if index.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{self.path}: store of format version {index.get('format_version')}, this equicat reads "
                f"{FORMAT_VERSION}; update equicat or write the store again"
            )
        self.info = DatasetInfo(**{name: index[name] for name in DatasetInfo.__dataclass_fields__})
        self.elements: list[int] = index["elements"]
        self.fields: list[str] = index["fields"]
        self._arrays = {name: self._map(name, index) for name in self.fields}
        self.n_atoms = self._map("n_atoms", index)
        self._starts = np.concatenate([[0], np.cumsum(self.n_atoms, dtype=np.int64)])

    def _map(self, name: str, index: dict[str, Any]) -> ndarray:
        path = self.path / f"{name}.npy"
        try:
            # np.asarray: a view without the overhead of the memmap class on every slice.
            values = np.asarray(np.load(path, mmap_mode="r"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: missing or damaged ({error}); write the store again") from error
        expected = index["n_atoms_total"] if name in PER_ATOM else index["n_structures"]
        if len(values) != expected:
            raise InputError(f"{path}: {len(values)} rows, index.json says {expected}; write the store again")
        return values

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return Store, (self.path,)

    def __len__(self) -> int:
        return len(self.n_atoms)

    def __getitem__(self, i: int) -> Structure:  # type: ignore[override]
        i = checked_index(i, len(self))
        atoms = slice(self._starts[i], self._starts[i + 1])
        row = {name: values[atoms] if name in PER_ATOM else values[i] for name, values in self._arrays.items()}
        fields: dict[str, Any] = {name: _in_memory(name, value) for name, value in row.items()}
        return Structure(**fields, source=f"{self.path}, structure {i}")

    def array(self, name: str) -> ndarray:
        """A field of all structures at once, memory-mapped: [total_atoms, ...] or [n_structures, ...].

        ``sid`` is an array of bytes.

        Raises:
            InputError: if the store does not have it.
        """
        return column_named(name, self._arrays | {"n_atoms": self.n_atoms}, self.path)


def checked_index(i: int, length: int) -> int:
    """``i`` from 0, negative counting from the end.

    Raises:
        IndexError: if there is no such item; this is what ends a loop over a sequence.
    """
    if not -length <= i < length:
        raise IndexError(f"structure {i} of {length}")
    return int(i) % length


def column_named(name: str, columns: dict[str, ndarray], path: Path) -> ndarray:
    """The array of that name.

    Raises:
        InputError: if it is not there.
    """
    if name not in columns:
        raise InputError(f"{path}: no field {name!r}{nearest(name, columns)}; found {', '.join(columns)}")
    return columns[name]


def _in_memory(name: str, value: Any) -> Any:
    """A row of a store as :class:`Structure` wants it: copied out of the file, in double precision."""
    if name == "sid":
        return value.decode()
    if name in ("energy", "relaxed_energy", "fid"):
        return value.item()
    if name in ("pbc", "fixed"):
        return np.array(value)
    return value.astype(np.int64 if name in ("numbers", "tags") else np.float64)


def labels_of(structure: Structure) -> list[str]:
    """Names of the labels the structure has."""
    values = {name: getattr(structure, name) for name in LABELS}
    return [name for name, value in values.items() if value is not None and not (name == "sid" and value == "")]


def write_store(
    path: str | Path,
    structures: Iterable[Structure],
    info: DatasetInfo,
    *,
    precision: str = "float64",
    overwrite: bool = False,
) -> int:
    """Write structures as a store, one at a time, and return their number.

    The store appears under its name when it is complete. ``Structure.info`` and ``source`` are not kept.

    Args:
        path: directory to create.
        structures: any stream of them; all must have the same labels.
        info: what the energies mean.
        precision: of positions, cells and forces, ``float64`` or ``float32``; energies are always float64.
        overwrite: replace an existing directory; without it that is an error.

    Raises:
        InputError: if ``path`` exists, if there are no structures, or if a label is missing from some of them (the
            first such frame is named).
    """
    if precision not in ("float64", "float32"):
        raise InputError(f"precision is {precision!r}; it must be float64 or float32")
    path = Path(path)
    with replacing_directory(path, overwrite) as temporary:
        writer = _StoreWriter(temporary, precision)
        try:
            for structure in structures:
                writer.append(structure)
        finally:
            writer.close()
        if writer.n_structures == 0:
            raise InputError(f"{path}: no structures to write")
        write_json(temporary / "index.json", writer.index() | asdict(info))
    return writer.n_structures


class _StoreWriter:
    """Appends structures to the arrays of a store; memory grows by a system id and nothing else."""

    def __init__(self, path: Path, precision: str) -> None:
        self.path = path
        self.precision = precision
        self.columns: dict[str, _Column] = {}
        self.sids: list[str] = []
        self.first = ""
        self.labels: list[str] = []
        self.elements: set[int] = set()
        self.n_structures = 0

    def append(self, structure: Structure) -> None:
        labels = labels_of(structure)
        if self.n_structures == 0:
            self._open(labels, structure.where)
        elif labels != self.labels:
            self._refuse(labels, structure.where)
        for name, column in self.columns.items():
            value: Any = len(structure) if name == "n_atoms" else getattr(structure, name)
            column.append(value if name in PER_ATOM else [value])
        if "sid" in labels:
            # Frames of one system share the text.
            self.sids.append(sys.intern(structure.sid))
        self.elements.update(structure.numbers.tolist())
        self.n_structures += 1

    def _open(self, labels: list[str], where: str) -> None:
        self.labels, self.first = labels, where
        self.columns["n_atoms"] = _Column(self.path / "n_atoms.npy", "int32", ())
        names = ["positions", "numbers", "cell", "pbc", "fixed", "tags", *(name for name in labels if name != "sid")]
        for name in names:
            dtype = _DTYPES.get(name, self.precision)
            self.columns[name] = _Column(self.path / f"{name}.npy", dtype, _TRAILING_SHAPE.get(name, ()))

    def _refuse(self, labels: list[str], where: str) -> None:
        missing = [name for name in self.labels if name not in labels]
        if missing:
            raise InputError(
                f"{where}: no {missing[0]}, which earlier frames have; found {', '.join(labels) or 'no labels'}"
            )
        extra = next(name for name in labels if name not in self.labels)
        raise InputError(f"{self.first}: no {extra}, which {where} has; found {', '.join(self.labels) or 'no labels'}")

    def close(self) -> None:
        for column in self.columns.values():
            column.close()
        if self.sids:
            np.save(self.path / "sid.npy", np.array([sid.encode() for sid in self.sids]))

    def index(self) -> dict[str, Any]:
        fields = [name for name in self.columns if name != "n_atoms"] + (["sid"] if self.sids else [])
        return {
            "format_version": FORMAT_VERSION,
            "n_structures": self.n_structures,
            "n_systems": len(set(self.sids)) or None,
            "n_atoms_total": self.columns["numbers"].n_rows,
            "elements": sorted(self.elements),
            "symbols": [chemical_symbols[z] for z in sorted(self.elements)],
            "fields": fields,
            "dtypes": {name: str(np.load(self.path / f"{name}.npy", mmap_mode="r").dtype) for name in fields},
        }


class _Column:
    """An ``.npy`` file that grows along its first axis.

    NumPy pads the header for just this: with the final number of rows it has the same length as with none.
    """

    def __init__(self, path: Path, dtype: str, trailing_shape: tuple[int, ...]) -> None:
        self.dtype = np.dtype(dtype)
        self.trailing_shape = trailing_shape
        self.n_rows = 0
        self.file: BinaryIO = open(path, "wb")  # noqa: SIM115 - open as long as the column is
        self._write_header()

    def append(self, rows: ndarray | list) -> None:
        values = np.asarray(rows, dtype=self.dtype)
        self.file.write(values.tobytes())
        self.n_rows += len(values)

    def close(self) -> None:
        self.file.seek(0)
        self._write_header()
        self.file.close()

    def _write_header(self) -> None:
        shape = (self.n_rows, *self.trailing_shape)
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)
