"""A store: structures in one directory of memory-mapped shards, written as a stream or in parallel.

``index.json`` says what there is: what the energies mean, the fields, and each shard with its size and checksum.
``n_atoms.npy`` has the size of every structure, so that batches can be planned without opening a shard.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Int
from numpy import ndarray

from equicat.data.info import DatasetInfo
from equicat.data.shards import BASIC, PER_ATOM, Column, Schema, ShardBuilder, open_shard, sha256
from equicat.data.structure import Structure
from equicat.errors import InputError, nearest
from equicat.files import read_json, replacing_directory, write_json

FORMAT_VERSION = 2
SHARD_SIZE = 10_000
"""Structures in a shard; some 20 to 40 MB of OC20."""
OPEN_SHARDS = 32
"""Shards that one process keeps mapped; the pages of one that it lets go no longer count as its memory."""


class Store(Sequence[Structure]):
    """Structures in a directory of shards: opening reads the index, reading a structure touches its own bytes.

    Pickles as its path, so workers of a ``DataLoader`` map the files themselves. Structures are not checked again:
    they were when the store was written, and :meth:`verify` finds what has changed since.

    Attributes:
        path: the directory.
        info: what the energies mean and where the data come from.
        elements: atomic numbers that occur, ascending.
        fields: names of the arrays, labels included.
        columns: names of the entries of ``Structure.info`` that were kept; they are arrays as well.
        precision: of positions, cells and forces as they are kept.
        shard_starts: number of the first structure of each shard, and of all, [n_shards + 1].

    Raises:
        InputError: if ``path`` is not a store, is of another format version, or is damaged (the file is named).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        index = read_json(self.path / "index.json")
        version = index.get("format_version")
        if version != FORMAT_VERSION:
            newer = isinstance(version, int) and version > FORMAT_VERSION
            raise InputError(
                f"{self.path}: store of format version {version}, this equicat reads {FORMAT_VERSION}; "
                f"{'update equicat' if newer else 'write the store again'}"
            )
        self.info = DatasetInfo(**{name: index[name] for name in DatasetInfo.__dataclass_fields__})
        self._index = index
        self.elements: list[int] = index["elements"]
        self.fields: list[str] = index["fields"]
        self.columns: list[str] = index["columns"]
        self.precision: str = index["precision"]
        self.shards: list[dict[str, Any]] = index["shards"]
        self.shard_starts = list(accumulate((shard["n_structures"] for shard in self.shards), initial=0))
        self._open: OrderedDict[int, dict[str, ndarray]] = OrderedDict()

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return Store, (self.path,)

    def __len__(self) -> int:
        return self.shard_starts[-1]

    def __getitem__(self, i: int) -> Structure:  # type: ignore[override]
        i = checked_index(i, len(self))
        k = bisect_right(self.shard_starts, i) - 1
        arrays, row = self.shard(k), i - self.shard_starts[k]
        offsets = arrays["atom_offsets"]
        atoms = slice(offsets[row], offsets[row + 1])
        try:
            fields = {
                name: _in_memory(name, arrays[name][atoms] if name in PER_ATOM else arrays[name][row])
                for name in self.fields
            }
            info = {name: _in_memory(name, arrays[name][row]) for name in self.columns}
        except UnicodeDecodeError as error:
            file = self.path / self.shards[k]["name"]
            raise InputError(
                f"{file}: damaged at structure {row}; `equicat data info --verify` checks it all"
            ) from error
        return Structure.unchecked(**fields, info=info, source=f"{self.path}, structure {i}")

    @cached_property
    def n_atoms(self) -> Int[ndarray, "n_structures"]:
        """Atoms of each structure, memory-mapped."""
        path = self.path / "n_atoms.npy"
        try:
            values = np.asarray(np.load(path, mmap_mode="r"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: missing or damaged ({error}); write the store again") from error
        if len(values) != len(self):
            raise InputError(f"{path}: {len(values)} rows, index.json says {len(self)}; write the store again")
        return values

    def shard(self, k: int) -> dict[str, Column]:
        """The arrays of a shard, memory-mapped.

        Raises:
            InputError: if its file is missing or damaged.
        """
        if k in self._open:
            self._open.move_to_end(k)
            return self._open[k]
        entry = self.shards[k]
        arrays = open_shard(self.path / entry["name"], entry["bytes"])
        expected = {*self.fields, *self.columns, "atom_offsets"}
        if set(arrays) != expected or len(arrays["atom_offsets"]) != entry["n_structures"] + 1:
            raise InputError(f"{self.path / entry['name']}: not what index.json says; write the store again")
        self._open[k] = arrays
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return arrays

    def chunks(self, *names: str) -> Iterator[list[Column]]:
        """The named fields of all structures, shard by shard, memory-mapped.

        Raises:
            InputError: if the store does not have one.
        """
        for k in range(len(self.shards)):
            arrays = self.shard(k)
            yield [column_named(name, arrays, self.path) for name in names]

    def array(self, name: str) -> Column:
        """A field of all structures at once: [total_atoms, ...] or [n_structures, ...]; texts are bytes.

        Memory-mapped if the store has one shard, else copied into memory: :meth:`chunks` is for what is large.

        Raises:
            InputError: if the store does not have it.
        """
        if name == "n_atoms":
            return self.n_atoms
        parts = [values for (values,) in self.chunks(name)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def verify(self) -> Iterator[str]:
        """Compare every file with its checksum; yields the names of the files, one by one, as they prove right.

        Raises:
            InputError: naming the first file that is missing or has changed.
        """
        files = [(shard["name"], shard["sha256"]) for shard in self.shards]
        for name, expected in [*files, ("n_atoms.npy", self._index["n_atoms_sha256"])]:
            try:
                found = sha256(self.path / name)
            except OSError as error:
                raise InputError(f"{self.path / name}: cannot be read ({error.strerror})") from error
            if found != expected:
                raise InputError(
                    f"{self.path / name}: damaged, its SHA-256 is {found}, index.json says {expected}; "
                    "write the store again"
                )
            yield name


def checked_index(i: int, length: int) -> int:
    """``i`` from 0, negative counting from the end.

    Raises:
        IndexError: if there is no such item; this is what ends a loop over a sequence.
    """
    if not -length <= i < length:
        raise IndexError(f"structure {i} of {length}")
    return int(i) % length


def column_named(name: str, columns: dict[str, Column], path: Path) -> Column:
    """The array of that name.

    Raises:
        InputError: if it is not there.
    """
    if name not in columns:
        raise InputError(f"{path}: no field {name!r}{nearest(name, columns)}; found {', '.join(columns)}")
    return columns[name]


def _in_memory(name: str, value: Any) -> Any:
    """A row of a store as :class:`Structure` wants it: copied out of the file, in double precision."""
    if not isinstance(value, ndarray):
        return value.decode() if isinstance(value, bytes) else value.item()
    if name in ("pbc", "fixed"):
        return np.array(value)
    return value.astype(np.int64 if name in ("numbers", "tags") else np.float64)


def write_store(
    path: str | Path,
    structures: Iterable[Structure],
    info: DatasetInfo,
    *,
    columns: Sequence[str] = (),
    precision: str = "float64",
    overwrite: bool = False,
) -> int:
    """Write structures as a store, a shard at a time, and return their number.

    The store appears under its name when it is complete. ``Structure.source`` is not kept.

    Args:
        path: directory to create.
        structures: any stream of them; all must have the same labels.
        info: what the energies mean.
        columns: entries of ``Structure.info`` to keep; every structure must have them.
        precision: of positions, cells and forces, ``float64`` or ``float32``; energies are always float64.
        overwrite: replace an existing directory; without it that is an error.

    Raises:
        InputError: if ``path`` exists, if there are no structures, or if a label is missing from some of them (the
            first such frame is named).
    """
    path, stream = Path(path), iter(structures)
    with replacing_directory(path, overwrite) as temporary:
        first = next(stream, None)
        if first is None:
            raise InputError(f"{path}: no structures to write")
        schema = Schema.of(first, columns, precision)
        builder, first_where = ShardBuilder(schema, first.where), first.where
        builder.append(first)
        del first  # a stream: nothing is held once it is in the builder
        entries: list[dict[str, Any]] = []
        for structure in stream:
            if len(builder) == SHARD_SIZE:
                entries.append(write_shard(temporary, len(entries), builder))
                builder = ShardBuilder(schema, first_where)
            builder.append(structure)
            del structure
        entries.append(write_shard(temporary, len(entries), builder))
        return write_index(temporary, entries, schema, info)


def shard_name(k: int) -> str:
    """File name of shard ``k``."""
    return f"{k:05d}.safetensors"


def write_shard(folder: Path, k: int, builder: ShardBuilder) -> dict[str, Any]:
    """Write shard ``k`` of a store and return its entry of the index."""
    return {"name": shard_name(k), **builder.write(folder / shard_name(k))}


def write_index(folder: Path, entries: Sequence[dict[str, Any]], schema: Schema, info: DatasetInfo) -> int:
    """Make a store of a directory that holds its shards; returns the number of structures."""
    sizes = [np.diff(open_shard(folder / e["name"], e["bytes"])["atom_offsets"]).astype(np.int32) for e in entries]
    np.save(folder / "n_atoms.npy", np.concatenate(sizes))
    elements = sorted(set().union(*(e["elements"] for e in entries)))
    n_structures = sum(e["n_structures"] for e in entries)
    index = {
        "format_version": FORMAT_VERSION,
        "n_structures": n_structures,
        "n_atoms_total": sum(e["n_atoms"] for e in entries),
        "elements": elements,
        "symbols": [chemical_symbols[z] for z in elements],
        "fields": [*BASIC, *schema.labels],
        "columns": list(schema.columns),
        "precision": schema.precision,
        **asdict(info),
        "n_atoms_sha256": sha256(folder / "n_atoms.npy"),
        "shards": [{name: value for name, value in e.items() if name != "elements"} for e in entries],
    }
    write_json(folder / "index.json", index)
    return n_structures
