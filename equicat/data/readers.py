"""Structure files in and out: anything ASE reads becomes a stream of :class:`Structure`; extended XYZ goes out.

A file is never held in memory as a whole: frames are read one at a time, compressed or not.
"""

import dataclasses
import re
import warnings
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from itertools import count, islice
from pathlib import Path

import ase.db
from ase import Atoms
from ase.io.extxyz import write_extxyz
from ase.io.formats import UnknownFileTypeError, filetype, get_compression, get_ioformat, iread, open_with_compression

from equicat.data import vasp
from equicat.data.extxyz import advice_on, atoms_of_text, entries_to_write, value_to_write
from equicat.data.labels import LABELS, USUAL_KEYS, LabelKeys
from equicat.data.structure import Structure
from equicat.errors import InputError, Remark
from equicat.files import replacing_file, visible

STRUCTURE_FILE = re.compile(
    r".+\.(extxyz|xyz|traj|db|cif|vasp|xsf|gen|res|pdb)|.*(POSCAR|CONTCAR|OUTCAR).*|.*vasprun.*\.xml", re.IGNORECASE
)
"""Names that are read in a folder, without the ending of a compression. ASE takes a README.md for a format, too."""

DATABASE_PAGE = 256
"""Rows fetched from an ASE database at a time; ASE itself would load every row of the query at once."""


def read(
    path: str | Path,
    energy_key: str | None = None,
    index: int | slice | None = None,
    *,
    forces_key: str | None = None,
    labels: Collection[str] = LABELS,
) -> Iterator[Structure]:
    """The structures of a file, one after the other, in the file's order.

    Reads every format of ASE (extended XYZ, ``.traj``, ``.db``, ``vasprun.xml``, ``OUTCAR`` ...), also compressed with
    ``.gz``, ``.xz`` or ``.bz2`` where ASE can. Forces are those written in the file, those of fixed atoms included.
    The path is checked at the call, the frames as they are asked for.

    Args:
        path: the file.
        energy_key: take the energy (eV) from this key of each frame instead of the calculator's ``energy``.
        index: frame number from 0 (negative: from the end) or a slice with bounds from 0; all frames if None.
        forces_key: take the forces (eV/Å) from this column of atoms instead of the calculator's ``forces``.
        labels: those that are wanted; the others are not looked at, whatever they hold.

    Raises:
        InputError: if the path is missing, a directory or of unknown format, if a frame cannot be read or is not a
            valid structure (the frame is named), if a key is absent, or if there is no frame to return.
    """
    path, keys = Path(path), LabelKeys(energy_key, forces_key, tuple(labels))
    return _select(_valid(_structures(path, _format_of(path), keys)), index, path)


def read_each(path: str | Path, keys: LabelKeys = USUAL_KEYS) -> Iterator[Structure | InputError]:
    """The structures of a file as of :func:`read`, but an error in the place of each frame that it would refuse.

    After an invalid structure reading goes on; where the file itself breaks off, the error is the last item.

    Raises:
        InputError: at the call, if the path is missing, a directory or of unknown format.
    """
    path = Path(path)
    return _structures(path, _format_of(path), keys)


def structure_files(folder: Path) -> list[Path]:
    """The files directly in a folder whose names are those of structures, 2 before 10; see :data:`STRUCTURE_FILE`.

    Raises:
        InputError: if there is none.
    """
    names = {path: get_compression(path.name)[0] for path in visible(folder) if path.is_file()}
    found = sorted((path for path, name in names.items() if STRUCTURE_FILE.fullmatch(name)), key=natural_order)
    if not found:
        entries = ", ".join([path.name for path in visible(folder)][:8]) or "nothing"
        raise InputError(
            f"{folder}: no structure file in it; found {entries}; a pattern such as '{folder}/**/OUTCAR' finds those "
            "in folders below"
        )
    return found


def natural_order(path: str | Path) -> list[tuple[int, int, str]]:
    """A key for sorting in which 2 comes before 10."""
    pieces = re.findall(r"\d+|\D+", str(path))
    return [(0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in pieces]


def write(path: str | Path, structures: Iterable[Structure]) -> int:
    """Write extended XYZ, compressed if ``path`` ends in ``.gz``, ``.xz`` or ``.bz2``, and return the number of frames.

    :func:`read` gives the structures back: labels, fixed atoms, tags, ids and scalar ``info``; per-atom numbers to
    1e-8 of their unit, which is what the format keeps. An existing file is replaced once the new one is complete.

    Extended XYZ has plans of its own for some keys, such as ``stress`` and ``pbc``: an entry of ``info`` with such a
    name is written as ``info_stress``. One that is neither text nor number is left out. A warning names both.

    Raises:
        InputError: if the name is not that of an extended XYZ file, its folder is missing, or there are no structures.
    """
    path = Path(path)
    check_extxyz_name(path)
    n_frames, changes = 0, dict[str, None]()
    with replacing_file(path) as temporary, open_with_compression(str(temporary), "w") as file:
        for structure in structures:
            entries, changed = entries_to_write(structure.info)
            atoms = dataclasses.replace(structure, info=entries).to_ase()
            if structure.sid:
                atoms.info["sid"] = value_to_write("sid", structure.sid)
            write_extxyz(file, [atoms])
            changes |= dict.fromkeys(changed)
            n_frames += 1
        if n_frames == 0:
            raise InputError(f"{path}: no structures to write")
    if changes:
        warnings.warn(f"{path}: {', '.join(changes)}", Remark, stacklevel=2)
    return n_frames


def check_extxyz_name(path: Path) -> None:
    """Make sure, before long work, that :func:`write` will take the name.

    Raises:
        InputError: if it is not that of an extended XYZ file.
    """
    if Path(get_compression(str(path))[0]).suffix not in (".extxyz", ".xyz"):
        raise InputError(
            f"{path}: structures are written as extended XYZ; end the name in .extxyz, .extxyz.gz or .extxyz.xz"
        )


def stem_of(path: Path) -> str:
    """The file's name without its extension and compression: ``val_id`` for ``val_id.extxyz.xz``."""
    return Path(get_compression(path.name)[0]).stem


def _format_of(path: Path) -> str:
    """ASE's name of the file's format."""
    if path.is_dir():
        raise InputError(f"{path}: is a directory; give a structure file (such as .extxyz, .traj, .db, OUTCAR)")
    if not path.is_file():
        raise InputError(f"{path}: no such file{_siblings(path)}")
    if path.suffix in (".lmdb", ".aselmdb"):
        raise InputError(f"{path}: is an LMDB; make a store of it with `equicat data oc20 OUT --from {path}`")
    try:
        name = filetype(str(path))
        readable = get_ioformat(name).can_read
    except (UnknownFileTypeError, EOFError, OSError) as error:
        raise InputError(f"{path}: not a structure file that ASE knows, or a broken one ({error})") from error
    if not readable:
        raise InputError(f"{path}: ASE does not read the format {name!r}; convert the file to extended XYZ")
    return name


def _siblings(path: Path) -> str:
    """A hint for a mistyped path: what its folder holds."""
    if not path.parent.is_dir():
        return f" (nor the folder {path.parent})"
    names = [entry.name for entry in visible(path.parent)]
    return f"; {path.parent} holds {', '.join(names[:8]) or 'nothing'}{' ...' if len(names) > 8 else ''}"


def _valid(structures: Iterator[Structure | InputError]) -> Iterator[Structure]:
    for structure in structures:
        if isinstance(structure, InputError):
            raise structure
        yield structure


def _structures(path: Path, file_format: str, keys: LabelKeys) -> Iterator[Structure | InputError]:
    frames = _frames(path, file_format)
    for i in count():
        try:
            atoms = next(frames, None)
        # ASE's parsers raise whatever the broken text leads them to; for the user it is one thing: this frame.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            broken = InputError(
                f"{path}, frame {i}: cannot be read as {file_format} ({reason}); {advice_on(error, file_format)}"
            )
            broken.__cause__ = error
            yield broken
            return
        if atoms is None:
            if i == 0:
                yield InputError(f"{path}: no frames in the file; was the calculation that wrote it finished?")
            return
        yield _structure(atoms, keys, f"{path}, frame {i}")


def _structure(atoms: Atoms, keys: LabelKeys, source: str) -> Structure | InputError:
    try:
        return Structure.from_ase(atoms, keys.energy, source, forces_key=keys.forces, labels=keys.wanted)
    except InputError as error:
        return error


def _frames(path: Path, file_format: str) -> Iterator[Atoms]:
    if file_format == "extxyz":
        return _extxyz_frames(path)
    if file_format in ("db", "json"):
        return _database_rows(path, file_format)
    if file_format in vasp.FORMATS:
        return vasp.vasp_frames(path, file_format)
    # ASE would take "@" in a name for an index.
    return iread(str(path), index=":", format=file_format, do_not_split_by_at_sign=True)


def _extxyz_frames(path: Path) -> Iterator[Atoms]:
    """Frames in one forward pass. ASE scans the whole file first and seeks, which in a compressed one means reading it
    from the start again; it also stops at the first blank line."""
    with open_with_compression(str(path)) as lines:
        header = _next_line(lines)
        while header:
            n_atoms = int(header)
            body = list(islice(lines, n_atoms + 1))
            if len(body) < n_atoms + 1:
                raise EOFError(f"{max(len(body) - 1, 0)} of {n_atoms} atoms before the end of the file")
            header = _next_line(lines)
            while header.startswith("VEC"):
                body.append(header)
                header = _next_line(lines)
            yield atoms_of_text("".join([f"{n_atoms}\n", *body]))


def _next_line(lines: Iterator[str]) -> str:
    """The next line that is not blank, without the mark that some editors put before the first, or "" at the end."""
    return next((line.lstrip("\ufeff").lstrip() for line in lines if line.strip("\ufeff \t\r\n")), "")


def _database_rows(path: Path, file_format: str) -> Iterator[Atoms]:
    """Rows by id, with their key-value pairs and scalar data as ``info``."""
    database = ase.db.connect(str(path), type=file_format, use_lock_file=False)
    last_id = 0
    while page := list(database.select(f"id>{last_id}", sort="id", limit=DATABASE_PAGE)):
        for row in page:
            atoms = row.toatoms()
            atoms.info.update({**row.data, **row.key_value_pairs})
            yield atoms
        last_id = page[-1].id


def _select(structures: Iterator[Structure], index: int | slice | None, path: Path) -> Iterator[Structure]:
    if index is None:
        yield from structures
        return
    chosen: Iterator[Structure]
    if isinstance(index, slice):
        chosen = islice(structures, index.start, index.stop, index.step)
    elif index >= 0:
        chosen = islice(structures, index, index + 1)
    else:
        tail = deque(structures, maxlen=-index)
        chosen = iter([tail[0]] if len(tail) == -index else [])
    n_chosen = 0
    for structure in chosen:
        yield structure
        n_chosen += 1
    if n_chosen == 0:
        raise InputError(f"{path}: no frame {index}; the file has fewer frames")
