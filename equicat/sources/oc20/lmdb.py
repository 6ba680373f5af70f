"""Structures from OC20's databases: LMDBs of pickled ``Data`` objects, ASE-LMDBs (``.aselmdb``) and ASE's ``.db``.

Edges that a file holds are left: they are of one cutoff, and cut off at a number of neighbours.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ase.db
import lmdb
import numpy as np
from numpy import ndarray

from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.sources.oc20.pickles import load_pickle, load_record


def count_entries(path: Path) -> int:
    """Structures in a file; of an ASE database the largest id, which deleted rows may make a larger number.

    Raises:
        InputError: if the file is missing, truncated or damaged.
    """
    if path.suffix == ".db":
        return max((row.id for row in _rows(path, 0, None)), default=0)
    with _opened(path) as transaction:
        if path.suffix == ".aselmdb":
            return _next_id(transaction, path) - 1
        stored = transaction.get(b"length")
        n = transaction.stat()["entries"] if stored is None else load_pickle(bytes(stored), f"{path}, key 'length'")
    if not isinstance(n, int) or n < 0:
        raise InputError(f"{path}: its key 'length' holds {n!r}, not a number of entries; get the file again")
    return n


def read_lmdb(path: Path, start: int, stop: int) -> Iterator[Structure | InputError]:
    """Entries ``start`` to ``stop`` of an LMDB, by number; in the place of a bad one, what is wrong with it.

    IS2RE: ``energy`` is that of the initial structure, ``relaxed_energy`` and ``relaxed_positions`` are the targets.

    Raises:
        InputError: if the file is truncated, an entry is missing, or a pickle is refused: not only one frame is bad.
    """
    with _opened(path) as transaction:
        for i in range(start, stop):
            source = f"{path}, entry {i}"
            value = transaction.get(str(i).encode())
            if value is None:
                raise InputError(f"{source}: is missing; the file has {transaction.stat()['entries']} keys")
            record = load_record(bytes(value), source)
            try:
                yield _from_data(record, source)
            except InputError as error:
                yield error
            except (KeyError, ValueError, TypeError) as error:
                yield InputError(f"{source}: not an OC20 structure ({_reason(error)}); found {', '.join(record)}")


def read_ase(path: Path, start: int, stop: int) -> Iterator[Structure | InputError]:
    """Rows with ids ``start`` + 1 to ``stop`` of an ``.aselmdb`` or ``.db`` file, as :func:`read_lmdb`."""
    rows = _lmdb_rows if path.suffix == ".aselmdb" else _database_rows
    for i, row in rows(path, start, stop):
        source = f"{path}, row {i}"
        try:
            yield _from_row(row, source)
        except InputError as error:
            yield error
        except (KeyError, ValueError, TypeError) as error:
            yield InputError(f"{source}: not a structure ({_reason(error)}); found {', '.join(row)}")


@contextmanager
def _opened(path: Path) -> Iterator[lmdb.Transaction]:
    """A read-only transaction; no lock file is needed or made."""
    try:
        size = path.stat().st_size
        environment = lmdb.open(
            str(path), subdir=False, readonly=True, lock=False, readahead=False, meminit=False, max_readers=1
        )
    except (OSError, lmdb.Error) as error:
        raise InputError(f"{path}: cannot be opened as an LMDB ({error}); get the file again") from error
    with environment, environment.begin() as transaction:
        # Reading a page behind the end of the file would not raise, it would kill the process.
        expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        if size < expected:
            raise InputError(f"{path}: truncated, {size:,} of {expected:,} bytes; get the file again")
        try:
            yield transaction
        except lmdb.Error as error:
            raise InputError(f"{path}: damaged ({error}); get the file again") from error


def _from_data(record: Mapping[str, Any], source: str) -> Structure:
    """Old files say ``y`` and ``force``, newer ones ``energy`` and ``forces``."""
    fixed = record.get("fixed")
    tags = record.get("tags")
    fid = record.get("fid")
    relaxed_energy = record.get("y_relaxed")
    energy = next((record[name] for name in ("energy", "y", "y_init") if name in record), None)
    return Structure(
        numbers=_integers(record["atomic_numbers"], "atomic_numbers"),
        positions=_vectors(record["pos"]),
        cell=_vectors(record["cell"]).reshape(3, 3),
        pbc=np.ones(3, bool),
        fixed=None if fixed is None else _flags(fixed, np.size(record["atomic_numbers"])),
        tags=None if tags is None else _integers(tags, "tags"),
        energy=None if energy is None else float(_scalar(energy)),
        forces=_optional_vectors(record.get("forces", record.get("force"))),
        relaxed_energy=None if relaxed_energy is None else float(_scalar(relaxed_energy)),
        relaxed_positions=_optional_vectors(record.get("pos_relaxed")),
        sid=_sid(record["sid"]),
        fid=None if fid is None else int(_scalar(fid)),
        source=source,
    )


def _from_row(row: Mapping[str, Any], source: str) -> Structure:
    """A row of an ASE database as fairchem writes it: what OC20 adds is in its ``data``."""
    extra = {**row.get("key_value_pairs", {}), **row.get("data", {})}
    n_atoms = len(row["numbers"])
    fixed = np.zeros(n_atoms, bool)
    for constraint in row.get("constraints") or ():
        if constraint["name"] == "FixAtoms":
            fixed[constraint["kwargs"]["indices"]] = True
    energy = row.get("energy", extra.get("y_init"))
    relaxed_energy, fid, reference = (extra.get(name) for name in ("y_relaxed", "fid", "ref_energy"))
    return Structure(
        numbers=_integers(row["numbers"], "numbers"),
        positions=_vectors(row["positions"]),
        cell=_vectors(row["cell"]).reshape(3, 3),
        pbc=np.asarray(row["pbc"], dtype=bool).reshape(3),
        fixed=fixed,
        tags=None if row.get("tags") is None else _integers(row["tags"], "tags"),
        energy=None if energy is None else float(_scalar(energy)),
        forces=_optional_vectors(row.get("forces")),
        relaxed_energy=None if relaxed_energy is None else float(_scalar(relaxed_energy)),
        relaxed_positions=_optional_vectors(extra.get("pos_relaxed")),
        sid=_sid(extra.get("sid", "")),
        fid=None if fid is None else int(_scalar(fid)),
        source=source,
        info={} if reference is None else {"reference_energy": float(_scalar(reference))},
    )


def _next_id(transaction: lmdb.Transaction, path: Path) -> int:
    value = transaction.get(b"nextid")
    if value is None:
        raise InputError(f"{path}: no key 'nextid', so not an ASE-LMDB")
    n = _json(bytes(value), f"{path}, key 'nextid'")
    if not isinstance(n, int) or n < 1:
        raise InputError(f"{path}: its key 'nextid' holds {n!r}, not a row number; get the file again")
    return n


def _lmdb_rows(path: Path, start: int, stop: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with _opened(path) as transaction:
        stored = transaction.get(b"deleted_ids")
        deleted = set() if stored is None else set(_json(bytes(stored), f"{path}, key 'deleted_ids'"))
        for i in range(start + 1, stop + 1):
            if i in deleted:
                continue
            value = transaction.get(str(i).encode())
            if value is None:
                raise InputError(f"{path}, row {i}: is missing; the file has {transaction.stat()['entries']} keys")
            yield i, _json(bytes(value), f"{path}, row {i}")


def _json(data: bytes, source: str) -> Any:
    try:
        return json.loads(zlib.decompress(data), object_hook=_with_arrays)
    except (zlib.error, ValueError) as error:
        raise InputError(f"{source}: damaged ({error}); get the file again") from error


def _with_arrays(value: dict[str, Any]) -> Any:
    if "__ndarray__" not in value:
        return value
    shape, dtype, flat = value["__ndarray__"]
    return np.array(flat, dtype=np.dtype(dtype)).reshape(shape)


def _database_rows(path: Path, start: int, stop: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for row in _rows(path, start, stop):
        values = {name: row.get(name) for name in ("numbers", "positions", "cell", "pbc", "tags", "forces")}
        values |= {"constraints": [c.todict() for c in row.constraints], "data": row.data}
        if row.get("energy") is not None:
            values["energy"] = row.energy
        yield row.id, values | {"key_value_pairs": row.key_value_pairs}


def _rows(path: Path, start: int, stop: int | None) -> Iterator[Any]:
    try:
        database = ase.db.connect(str(path), type="db", use_lock_file=False)
        if stop is None:
            yield from database.select(sort="-id", limit=1)
        else:
            yield from database.select(f"id>{start},id<={stop}", sort="id")
    # SQLite and ASE raise whatever the broken file leads them to.
    except Exception as error:
        raise InputError(f"{path}: cannot be read as an ASE database ({error}); get the file again") from error


def _sid(value: Any) -> str:
    """A system id, which may be a number or text; OC20's ``random`` before the number is left out."""
    sid = _scalar(value)
    if isinstance(sid, float):
        sid = int(sid)
    text = sid.decode() if isinstance(sid, bytes) else str(sid)
    return text.removeprefix("random") if text.removeprefix("random").isdecimal() else text


def _scalar(value: Any) -> Any:
    """A number that may come as an array of one."""
    flat = np.asarray(value).reshape(-1)
    if len(flat) != 1:
        raise ValueError(f"{len(flat)} values where one is expected")
    return flat[0].item()


def _flags(value: Any, n_atoms: int) -> ndarray:
    """A flag for each atom; old files hold floats."""
    flags = np.asarray(value).reshape(-1)
    if len(flags) != n_atoms:
        raise ValueError(f"fixed has {len(flags)} values for {n_atoms} atoms; it must hold a flag for each")
    return flags != 0


def _integers(value: Any, name: str) -> ndarray:
    """Old files hold atomic numbers as floats."""
    values = np.asarray(value).reshape(-1)
    integers = np.nan_to_num(values).astype(np.int64)
    if not np.array_equal(integers, values):
        raise ValueError(f"{name} are not integers")
    return integers


def _vectors(value: Any) -> ndarray:
    return np.asarray(value, dtype=np.float64).reshape(-1, 3)


def _optional_vectors(value: Any) -> ndarray | None:
    return None if value is None else _vectors(value)


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)
