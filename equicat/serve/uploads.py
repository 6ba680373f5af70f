"""Structure files from the page: checked, read by a process of their own, and kept under names of our own.

The name of an upload says which format it has, and is shown; it is never used as a path. Only formats whose readers do
nothing but parse are taken, so nothing in a file is ever run: no pickles, no databases, no files that name other files.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ase.io.formats import UnknownFileTypeError, extension2format, get_compression, ioformats, match_magic

from equicat.data.readers import read
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.serve.home import Home
from equicat.serve.jobs import Jobs

Kind = Literal["slab", "bulk", "adsorbate"]
FORMATS = {
    "extxyz": "upload.extxyz",
    "vasp": "POSCAR",
    "vasp-out": "OUTCAR",
    "vasp-xdatcar": "XDATCAR",
    "vasp-xml": "vasprun.xml",
    "cif": "upload.cif",
    "traj": "upload.traj",
    "xsf": "upload.xsf",
    "cube": "upload.cube",
    "gen": "upload.gen",
    "res": "upload.res",
    "proteindatabank": "upload.pdb",
    "aims": "upload.in",
    "aims-output": "upload.out",
    "espresso-in": "upload.pwi",
    "espresso-out": "upload.pwo",
    "gpaw-out": "upload.txt",
}
"""Formats that are taken, as ASE calls them, and the name that a file has while it is read."""
MAX_BYTES = 10_000_000
"""Size of an upload."""
MAX_SECONDS = 30.0
"""Time that reading one may take."""
KEPT = 24 * 3600.0
"""Seconds after which an upload that no job uses is removed."""
PEEK = 2000
"""Bytes at the beginning of a file that show its format, as many as ASE looks at."""


@dataclass(frozen=True)
class Upload:
    """A structure that was uploaded."""

    token: str
    kind: str
    label: str
    """The name that the file had, to show."""


def format_of(name: str, content: bytes) -> str:
    """The format of an upload, in ASE's words, by its name and its first bytes; nothing is looked for on the disk.

    Raises:
        InputError: if it has none that is taken.
    """
    if not content:
        raise InputError(f"{name}: the file is empty")
    plain, compression = get_compression(name)
    if compression is not None:
        raise InputError(f"{name}: is compressed; unpack it first")
    found = next((one.name for one in ioformats.values() if one.match_name(plain)), None)
    if found is None:
        try:
            found = match_magic(content[:PEEK]).name
        except UnknownFileTypeError:
            ending = plain.rpartition(".")[2].lower()
            known = extension2format.get(ending) or ioformats.get(ending)
            found = None if known is None else known.name
    if found not in FORMATS:
        what = "its format is not known" if found is None else f"the format {found} is not taken"
        raise InputError(f"{name}: {what}; give one of {', '.join(FORMATS)}")
    return found


def shown_name(name: str) -> str:
    """The last part of a file's name without what cannot be shown, and not too long."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(c for c in last if c.isprintable()).strip()[-80:] or "upload"


class Uploads:
    """Checked structures in the folder.

    Args:
        home: the folder.
        jobs: its database.
    """

    def __init__(self, home: Home, jobs: Jobs):
        self.home, self.jobs = home, jobs

    def add(self, kind: Kind, name: str, content: bytes) -> Upload:
        """Check an upload and keep it.

        Raises:
            InputError: if it is too large, has no format that is taken, or is no structure.
        """
        label = shown_name(name)
        if len(content) > MAX_BYTES:
            raise InputError(f"{label}: is larger than {MAX_BYTES // 1_000_000} MB; leave only the last frame in it")
        stored = FORMATS[format_of(label, content)]
        with tempfile.TemporaryDirectory(dir=self.home.uploads, prefix="reading-") as folder:
            (Path(folder) / stored).write_bytes(content)
            checked = _read_apart(Path(folder), kind, stored, label)
            token = hashlib.sha256(kind.encode() + checked.read_bytes() + label.encode()).hexdigest()[:24]
            checked.replace(self.home.uploads / f"{token}.extxyz")
        with self.jobs.open() as connection:
            values = (token, kind, label, time.time())
            connection.execute(
                "INSERT OR REPLACE INTO uploads (token, kind, label, created) VALUES (?, ?, ?, ?)", values
            )
        return Upload(token, kind, label)

    def get(self, token: str, kind: Kind) -> Upload:
        """The upload with that token.

        Raises:
            InputError: if there is none of that kind.
        """
        with self.jobs.open() as connection:
            row = connection.execute(
                "SELECT token, kind, label FROM uploads WHERE token = ? AND kind = ?", (token, kind)
            ).fetchone()
        if row is None:
            raise InputError(f"the uploaded {kind} is no longer there; upload it again")
        return Upload(**dict(row))

    def label(self, token: str) -> str:
        """The name that the file of an upload had; empty if there is none."""
        with self.jobs.open() as connection:
            row = connection.execute("SELECT label FROM uploads WHERE token = ?", (token,)).fetchone()
        return "" if row is None else row["label"]

    def structure(self, token: str, kind: Kind) -> Structure:
        """An upload as a structure that is called by the name that its file had.

        Raises:
            InputError: if there is none.
        """
        upload = self.get(token, kind)
        return replace(next(read(self.home.uploads / f"{upload.token}.extxyz")), source=upload.label)

    def sweep(self) -> None:
        """Remove what no job uses and is older than a day, and what a killed server was reading."""
        used = {token for job in self.jobs.all() for token in _tokens(job.request)}
        with self.jobs.open() as connection:
            old = connection.execute("SELECT token FROM uploads WHERE created < ?", (time.time() - KEPT,)).fetchall()
            for token in {row["token"] for row in old} - used:
                connection.execute("DELETE FROM uploads WHERE token = ?", (token,))
                (self.home.uploads / f"{token}.extxyz").unlink(missing_ok=True)
        for folder in self.home.uploads.glob("reading-*"):
            shutil.rmtree(folder, ignore_errors=True)


def _tokens(request: dict[str, object]) -> list[str]:
    files = request.get("adsorbate_files", [])
    assert isinstance(files, list)
    return [str(token) for token in [request.get("slab_file", ""), request.get("bulk_file", ""), *files]]


def _read_apart(folder: Path, kind: Kind, stored: str, label: str) -> Path:
    """Read a file in another process, which has little time and memory; the checked structure as extended XYZ.

    Raises:
        InputError: if it cannot be read; messages call the file by its label.
    """
    command = [sys.executable, "-P", "-m", "equicat.serve.reading", kind, stored]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=MAX_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{label}: takes longer than {MAX_SECONDS:g} s to read; leave only the last frame in it"
        ) from error
    checked = folder / "checked.extxyz"
    if done.returncode == 2:
        raise InputError(done.stderr.strip().splitlines()[-1].replace(stored, label))
    if done.returncode != 0 or not checked.exists():
        raise InputError(f"{label}: cannot be read (the reader ended with status {done.returncode}); convert it")
    return checked
