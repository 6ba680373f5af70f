"""Frames of OC20's raw S2EF files: ``N.extxyz.xz`` with the structures, ``N.txt.xz`` with what they are.

Line i of the text, ``random<sid>,frame<fid>,<reference energy>``, belongs to frame i. OC20's energy is the adsorption
energy, ``energy`` of the frame minus the reference. This parser does what ASE's would do for these columns, several
times as fast.
"""

import lzma
import re
from collections.abc import Iterator
from functools import cache
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from numpy import ndarray

from equicat.data.structure import Structure
from equicat.errors import InputError

_KEY_VALUE = re.compile(r'(\w+)=(?:"([^"]*)"|(\S+))')
_COMPRESSION_ERRORS = (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError)


def read_log(path: Path) -> list[str]:
    """The lines of an ``N.txt`` or ``N.txt.xz`` file.

    Raises:
        InputError: if the file is missing or damaged.
    """
    try:
        with _opened(path) as file:
            return file.read().splitlines()
    except _COMPRESSION_ERRORS as error:
        raise InputError(f"{path}: missing or damaged ({error}); get the file again") from error


def read_raw(path: Path, log_path: Path, total: bool = False) -> Iterator[Structure | InputError]:
    """Frames of one pair of files, in order; in the place of a frame that is no valid structure, what is wrong with it.

    ``energy`` is the adsorption energy, ``info`` has ``reference_energy`` and ``free_energy`` (all eV).

    Args:
        path: of the structures.
        log_path: of what they are.
        total: leave the energies as they are, total energies.

    Raises:
        InputError: if the files do not belong together or break off, so that what follows could not be trusted.
    """
    log = read_log(log_path)
    i = 0
    try:
        with _opened(path) as lines:
            for i, entry in enumerate(log):
                count = next(lines, "").strip()
                if not count:
                    raise InputError(
                        f"{path}, frame {i}: is not there; the file has {i} frames, {log_path.name} has {len(log)} "
                        "lines. Get both files again"
                    )
                if not count.isdecimal():
                    raise InputError(f"{path}, frame {i}: expected a number of atoms, found {count[:60]!r}")
                header, *atoms = islice(lines, int(count) + 1)
                if len(atoms) < int(count):
                    raise InputError(f"{path}, frame {i}: the file ends after {len(atoms)} of {count} atoms")
                yield _frame(header, atoms, entry, (path, log_path, i), total)
            if any(line.strip() for line in lines):
                raise InputError(
                    f"{path}, frame {len(log)}: {log_path.name} has no line for it; it has {len(log)}. "
                    "Get both files again"
                )
    except (*_COMPRESSION_ERRORS, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}, frame {i}: cannot be read ({error}); get the file again") from error


def _opened(path: Path) -> TextIOWrapper:
    return lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8")


def _frame(
    header: str, atoms: list[str], entry: str, where: tuple[Path, Path, int], total: bool
) -> Structure | InputError:
    path, log_path, i = where
    source = f"{path}, frame {i}"
    try:
        sid, fid, reference = _log_entry(entry)
    except ValueError:
        return InputError(
            f"{log_path}, line {i}: {entry[:60]!r} is not 'random<number>,frame<number>,<reference energy in eV>'"
        )
    try:
        values = {key: quoted or bare for key, quoted, bare in _KEY_VALUE.findall(header)}
        columns = _columns(values.get("Properties", ""), len(atoms), " ".join(atoms).split())
        info = {"reference_energy": reference}
        if "free_energy" in values:
            info["free_energy"] = float(values["free_energy"])
        return Structure(
            **columns,
            cell=np.array(values["Lattice"].split(), dtype=np.float64).reshape(3, 3),
            pbc=np.array([_logical(v) for v in values.get("pbc", "T T T").split()]),
            energy=float(values["energy"]) - (0.0 if total else reference) if "energy" in values else None,
            sid=sid,
            fid=fid,
            source=source,
            info=info,
        )
    except InputError as error:
        return error
    except (KeyError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        return InputError(f"{source}: cannot be read ({what})")


def _log_entry(entry: str) -> tuple[str, int, float]:
    sid, fid, reference = entry.split(",")
    if not sid.startswith("random") or not fid.startswith("frame"):
        raise ValueError(entry)
    return str(int(sid[6:])), int(fid[5:]), float(reference)


def _columns(properties: str, n_atoms: int, words: list[str]) -> dict[str, Any]:
    """Per-atom fields from the words of all atom lines, one after the other."""
    start, width = _layout(properties)
    if len(words) != n_atoms * width:
        raise ValueError(f"{len(words)} values in {n_atoms} atom lines, expected {width} in each")

    def numbers(name: str) -> ndarray:
        first = start[name]
        return np.array([words[first + k :: width] for k in range(3)], dtype=np.float64).T.copy()

    fields = {
        "numbers": np.array([atomic_numbers[symbol] for symbol in words[start["species"] :: width]]),
        "positions": numbers("pos"),
    }
    if "forces" in start:
        fields["forces"] = numbers("forces")
    if "tags" in start:
        fields["tags"] = np.array(words[start["tags"] :: width], dtype=np.int64)
    if "move_mask" in start:
        fields["fixed"] = np.array([not _logical(word) for word in words[start["move_mask"] :: width]])
    return fields


@cache
def _layout(properties: str) -> tuple[dict[str, int], int]:
    """Where each column starts and how many there are, from ``species:S:1:pos:R:3:...``."""
    parts = properties.split(":")
    start, width = {}, 0
    for name, n in zip(parts[::3], parts[2::3], strict=True):
        start[name] = width
        width += int(n)
    return start, width


def _logical(word: str) -> bool:
    if word not in ("T", "F"):
        raise ValueError(f"{word!r} is neither T nor F")
    return word == "T"
