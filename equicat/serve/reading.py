"""``python -m equicat.serve.reading KIND FILE``: read one upload, and write what it holds as checked extended XYZ.

Whatever a broken file does to a parser, it does it to this process, which has little time and memory.
"""

import resource
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase.io.formats import filetype

from equicat.data.readers import read, write
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.serve.uploads import FORMATS

SECONDS = 20
"""Processor time that reading may take."""
BYTES = 4 * 1024**3
"""Address space, most of which is libraries."""
MAX_ATOMS = {"slab": 400, "bulk": 60, "adsorbate": 40}
MAX_WRITTEN = 64 * 1024**2
"""Bytes of a file that is written."""


def limit() -> None:
    """Take away from this process what reading a structure does not need."""
    for what, most in (
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_AS, BYTES),
        (resource.RLIMIT_FSIZE, MAX_WRITTEN),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def structure_in(path: Path, kind: str) -> Structure:
    """The last frame of a file, without labels.

    Raises:
        InputError: if it cannot be read, holds different systems, or is larger than anything sensible.
    """
    if filetype(str(path)) not in FORMATS:
        raise InputError(f"{path}: its content has another format than its name says")
    last: Structure | None = None
    for frame in read(path, labels=()):
        if len(frame) > MAX_ATOMS[kind]:
            raise InputError(f"{path}: has {len(frame)} atoms; this page takes {kind}s of at most {MAX_ATOMS[kind]}")
        if last is not None and not np.array_equal(frame.numbers, last.numbers):
            raise InputError(f"{path}: holds different systems; upload one {kind}")
        last = frame
    assert last is not None, "read raises if there is no frame"
    return replace(last, info={}, sid="", fid=None)


def main(kind: str, name: str) -> int:
    """Write ``checked.extxyz`` beside the file; exit status 2 and one line if the file is bad."""
    limit()
    warnings.simplefilter("ignore")
    try:
        write(Path("checked.extxyz"), [structure_in(Path(name), kind)])
    except InputError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
