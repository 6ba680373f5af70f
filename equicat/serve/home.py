"""The folder of `equicat serve`: the only place that it writes to.

::

    serve.db                    jobs and uploads (SQLite)
    key                         the secret in the address of the page; only its owner can read it
    lock                        held, by flock, by the server and by the process that works on a job
    uploads/TOKEN.extxyz        checked structures; a file of that name is never changed
    jobs/000001/screening/      the folder of :func:`equicat.adsorption_energies`, with its plan and its state
    jobs/000001/steps.json      steps and forces of the systems that are being relaxed, as noted last
    jobs/000001/result.json     remarks on the results, once there are results
    jobs/000001/log.txt         what the job's process printed
"""

import fcntl
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from equicat.errors import InputError
from equicat.files import visible, writing_to

DATABASE, KEY, LOCK = "serve.db", "key", "lock"
SCREENING, STEPS, RESULT, LOG = "screening", "steps.json", "result.json", "log.txt"
WAIT = 5.0
"""Seconds in which the process that a killed server left behind notices that, and ends."""


@dataclass(frozen=True)
class Home:
    """Where things are in the folder."""

    path: Path
    """Absolute."""

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.path / DATABASE

    @property
    def uploads(self) -> Path:
        """Folder of checked uploads."""
        return self.path / "uploads"

    def job(self, number: int) -> Path:
        """Folder of a job."""
        return self.path / "jobs" / f"{number:06d}"

    def make(self) -> None:
        """Make the folder, or take one that was made before.

        Raises:
            InputError: if it is a file, holds something else, or cannot be written to.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; give the name of a directory with --folder")
        there = [entry.name for entry in visible(self.path)]
        if there and LOCK not in there:
            raise InputError(f"{self.path}: holds other files ({', '.join(there[:3])}); give another --folder")
        with writing_to(self.path):
            for folder in (self.path, self.uploads, self.path / "jobs"):
                folder.mkdir(parents=True, exist_ok=True)

    def held(self, wait: float = WAIT) -> int:
        """Take the folder for this process and those that inherit the file descriptor that is returned.

        Args:
            wait: seconds to wait for another process to give it back.

        Raises:
            InputError: if another server works in it.
        """
        with writing_to(self.path / LOCK):
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        end = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError as error:
                if time.monotonic() > end:
                    os.close(descriptor)
                    raise InputError(
                        f"{self.path}: another `equicat serve` works in this folder; use its page, stop it, or give "
                        "another --folder"
                    ) from error
                time.sleep(0.1)

    def key(self) -> str:
        """The secret of this folder, made at the first call, so that pages that are open survive a restart."""
        path = self.path / KEY
        if not path.exists():
            with writing_to(path), os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(24))
        return path.read_text(encoding="utf-8").strip()
