"""The files of OC20 in a directory, cut into pieces that can be read on their own."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.files import visible
from equicat.sources.oc20.lmdb import count_entries, read_ase, read_lmdb
from equicat.sources.oc20.raw import read_log, read_raw
from equicat.sources.packing import Piece

DATABASES = (".lmdb", ".aselmdb", ".db")
RAW = (".extxyz.xz", ".extxyz")


@dataclass(frozen=True)
class FilePiece(Piece):
    """Some structures of one file, or all of a raw pair; ``count`` is their number, bad ones included."""

    path: Path
    start: int
    count: int = 0
    log_path: Path | None = None
    """The ``N.txt.xz`` of a raw ``N.extxyz.xz``."""
    total: bool = False
    """Whether a raw file's energies are taken as total energies."""

    @property
    def key(self) -> list[Any]:
        """Name, size and range, which a resumed conversion compares."""
        files = [self.path] if self.log_path is None else [self.path, self.log_path]
        try:
            return [*([file.name, file.stat().st_size] for file in files), self.start, self.count]
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error

    def read(self) -> Iterator[Structure | InputError]:
        """The structures, in order; in the place of a bad one, what is wrong with it.

        Raises:
            InputError: if the file cannot be trusted as a whole.
        """
        if self.log_path is not None:
            return read_raw(self.path, self.log_path, self.total)
        reader = read_lmdb if self.path.suffix == ".lmdb" else read_ase
        return reader(self.path, self.start, self.start + self.count)


def pieces_of(path: str | Path, size: int, total: bool = False) -> list[FilePiece]:
    """The OC20 files of a directory, or one database file, as pieces of at most ``size`` structures (raw files whole).

    Raw files come in the order of their numbers, databases in that of their names.

    Args:
        path: the directory or file.
        size: largest number of structures of a piece.
        total: take the total energies of raw files.

    Raises:
        InputError: if nothing of OC20 is there, or a file of a numbered series or one of a pair is missing.
    """
    path = Path(path)
    if path.is_dir():
        names = [p.name for p in visible(path)]
        raw = [n for n in names if n.endswith((*RAW, ".txt", ".txt.xz")) and n.split(".")[0].isdecimal()]
        databases = [path / n for n in names if n.endswith(DATABASES)]
    else:
        raw, databases = [], [path] if path.name.endswith(DATABASES) and path.is_file() else []
    if raw and databases:
        raise InputError(f"{path}: holds raw files ({raw[0]}) and databases ({databases[0].name}); name one kind")
    if not raw and not databases:
        raise InputError(f"{path}: no OC20 files (0.extxyz.xz with 0.txt.xz, .lmdb, .aselmdb or .db)")
    if raw:
        return [FilePiece(file, 0, len(read_log(log)), log, total) for file, log in _raw_pairs(path, raw)]
    _require_series([database.name for database in databases], path)
    pieces = []
    for database in databases:
        n = count_entries(database)
        pieces += [FilePiece(database, start, min(size, n - start)) for start in range(0, n, size)]
    return pieces


def grouped(pieces: list[FilePiece], size: int) -> list[list[FilePiece]]:
    """Neighbouring pieces together as long as they have at most ``size`` structures."""
    groups: list[list[FilePiece]] = []
    n = size
    for piece in pieces:
        if n + piece.count > size:
            groups.append([])
            n = 0
        groups[-1].append(piece)
        n += piece.count
    return groups


def _raw_pairs(folder: Path, names: list[str]) -> Iterator[tuple[Path, Path]]:
    structures = {int(n.split(".")[0]): n for n in names if n.endswith(RAW)}
    logs = {int(n.split(".")[0]): n for n in names if not n.endswith(RAW)}
    for number in range(max([*structures, *logs]) + 1):
        for kind, known, ending in (("structures", structures, RAW[0]), ("log", logs, ".txt.xz")):
            if number not in known:
                raise InputError(
                    f"{folder / f'{number}{ending}'}: is missing ({kind} of number {number}), while "
                    f"{names[-1]} is there; get the missing file"
                )
        yield folder / structures[number], folder / logs[number]


def _require_series(names: list[str], folder: Path) -> None:
    """Shards are numbered from 0; a gap means that one was not copied."""
    numbered = [(match, name) for name in names if (match := re.fullmatch(r"(.*\D)(\d+)(\D*)", name))]
    found: dict[tuple[str, str], set[int]] = {}
    digits = {}
    for match, _ in numbered:
        key = (match[1], match[3])
        found.setdefault(key, set()).add(int(match[2]))
        digits[key] = len(match[2])
    for key, numbers in found.items():
        missing = sorted(set(range(max(numbers) + 1)) - numbers)
        if missing and len(numbers) > 1:
            name = f"{key[0]}{missing[0]:0{digits[key]}d}{key[1]}"
            raise InputError(f"{folder / name}: is missing, while number {max(numbers)} is there; get the missing file")
