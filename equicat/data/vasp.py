"""VASP's OUTCAR and vasprun.xml: frames with the constraint that belongs to them, and whether a file breaks off."""

import lzma
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io import read
from ase.io.formats import iread, open_with_compression
from ase.io.vasp_parsers.vasp_outcar_parsers import OutcarHeaderParser, outcarchunks

from equicat.errors import InputError

FORMATS = ("vasp-out", "vasp-xml")
"""ASE's names of the formats of OUTCAR and vasprun.xml."""
POSITIONS_FILES = ("CONTCAR", "POSCAR")
"""Files beside an OUTCAR that say which atoms are held (selective dynamics), the one to take first."""
COMPRESSIONS = ("", ".gz", ".xz", ".bz2")

_END_OF_OUTCAR_FRAME = b"FREE ENERGIE OF THE ION-ELECTRON SYSTEM"
_END_OF_XML_FRAME, _END_OF_XML = b"</calculation>", b"</modeling>"


def is_vasp(path: str | Path) -> bool:
    """Whether the name is that of an OUTCAR or a vasprun.xml."""
    name = Path(path).name.lower()
    return "outcar" in name or "vasprun" in name


@dataclass(frozen=True)
class Progress:
    """The frames that a calculation has written to a file."""

    n_frames: int
    """Frames that are there as a whole."""
    breaks_off: bool
    """Whether it is a vasprun.xml without its end, as a job leaves it that was killed."""


def progress_of(path: Path) -> Progress:
    """Count the frames of an OUTCAR or vasprun.xml by its text, many times as fast as parsing it.

    Raises:
        InputError: if the file cannot be read.
    """
    is_xml = "vasprun" in path.name.lower()
    end_of_frame = _END_OF_XML_FRAME if is_xml else _END_OF_OUTCAR_FRAME
    n_frames, closed = 0, False
    try:
        with open_with_compression(str(path), "rb") as file:
            for line in file:
                n_frames += line.count(end_of_frame)
                closed = closed or _END_OF_XML in line
    # A compressed file may break off as well; what came before counts.
    except (EOFError, zlib.error, lzma.LZMAError):
        closed = False
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    return Progress(n_frames, is_xml and not closed)


def vasp_frames(path: Path, file_format: str) -> Iterator[Atoms]:
    """The frames of an OUTCAR (``vasp-out``) or a vasprun.xml (``vasp-xml``), compressed or not.

    Raises:
        EOFError: after the last whole frame, if a vasprun.xml breaks off or is damaged: ASE would not say so.
        InputError: if no file beside an OUTCAR says which of its atoms are held, but one claims to.
    """
    if file_format == "vasp-xml":
        # ASE would take "@" in a name for an index.
        n_read = 0
        for atoms in iread(str(path), index=":", format=file_format, do_not_split_by_at_sign=True):
            yield atoms
            n_read += 1
        written = progress_of(path)
        if written.breaks_off:
            raise EOFError("the file breaks off, as it does when a job is killed")
        if n_read < written.n_frames:
            raise EOFError(f"the file is damaged here; it has {written.n_frames} frames")
        return
    with open_with_compression(str(path)) as file:
        lines: Any = _Named(file, path)
        # Without a working directory ASE leaves the files beside the OUTCAR alone.
        frames = (chunk.build() for chunk in outcarchunks(lines, header_parser=OutcarHeaderParser(workdir=None)))
        first = next(frames, None)
        if first is None:
            return
        constraints = _constraints_beside(path, first)
        for atoms in chain([first], frames):
            atoms.set_constraint(constraints)
            yield atoms


class _Named:
    """Lines of an open file that tell where it is, as ASE's OUTCAR parser wants to know."""

    def __init__(self, lines: Any, path: Path) -> None:
        self.lines, self.name = lines, str(path)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self.lines)


def _constraints_beside(path: Path, atoms: Atoms) -> list[Any]:
    """The constraints in the first CONTCAR or POSCAR beside an OUTCAR that has the OUTCAR's atoms; none without files.

    A file of another calculation, such as a CONTCAR that was copied there for the next step, is passed over, and so is
    an empty or broken one.

    Raises:
        InputError: if there are such files and none of them belongs to the OUTCAR.
    """
    others = []
    for name in (f"{name}{compression}" for name in POSITIONS_FILES for compression in COMPRESSIONS):
        beside = path.parent / name
        if not beside.is_file() or beside.stat().st_size == 0:
            continue
        found = None
        # ASE's parser raises whatever broken text leads it to; a broken file is none.
        with suppress(Exception):
            found = read(str(beside), format="vasp", do_not_split_by_at_sign=True)
        if not isinstance(found, Atoms):
            others.append(f"{name} cannot be read")
        elif found.get_chemical_symbols() == atoms.get_chemical_symbols():
            return found.constraints
        elif len(found) != len(atoms):
            others.append(f"{name} has {len(found)} atoms")
        else:
            others.append(f"{name} has {found.symbols}, in this order")
    if others:
        raise InputError(
            f"{path}: has {len(atoms)} atoms ({atoms.symbols}), but {' and '.join(others)}, so which atoms are held is "
            "not known; put the POSCAR of this calculation beside it"
        )
    return []
