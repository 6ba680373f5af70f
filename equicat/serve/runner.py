"""Running jobs one after another, each in a process of its own, from a thread of the server."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from equicat.errors import InputError
from equicat.files import writing_to
from equicat.serve.home import LOG, Home
from equicat.serve.jobs import Job, Jobs

PAUSE = 0.3
"""Seconds between two looks at the queue."""
PAUSE_AFTER_ERROR = 5.0
"""Seconds until the queue is looked at again after it could not be."""
WORKER = ("-P", "-m", "equicat.serve.worker")
"""Python's words before those of a job; -P, so that no file in the folder of a job is taken for a module."""


@dataclass(eq=False)
class Runner:
    """Starts the jobs of a folder.

    A job whose process dies while the server lives has failed. A job whose server dies is still running in the table,
    and the next server begins with it.
    """

    home: Home
    jobs: Jobs
    lock: int
    """Descriptor of the lock that the job's process inherits, so that no other server begins before it has ended."""
    run: Path
    device: str = "auto"
    references: str | None = None
    worker: Sequence[str] = WORKER
    _stopping: threading.Event = field(default_factory=threading.Event)
    _process: tuple[int, "subprocess.Popen[bytes]"] | None = None
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to work on the queue."""
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; a job that is running goes on with the next server."""
        self._stopping.set()
        with self._guard:
            self._kill()
        if self._thread is not None:
            self._thread.join()

    def stop(self, number: int) -> None:
        """End the process of a job, if it has one, and wait until it is gone."""
        with self._guard:
            if self._process is not None and self._process[0] == number:
                self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self._process[1].kill()
            self._process[1].wait()

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                pause = 0.0 if self._one() else PAUSE
            except InputError as error:  # the disk is full, say: tried again, because that may pass
                print(f"equicat: {error}", file=sys.stderr, flush=True)
                pause = PAUSE_AFTER_ERROR
            self._stopping.wait(pause)

    def _one(self) -> bool:
        """Do the first job of the queue, and say whether there was one.

        Raises:
            InputError: if the folder cannot be written to.
        """
        with self._guard:
            job = None if self._stopping.is_set() else self.jobs.begin()
            if job is None:
                return False
            process = self._started(job)
            self._process = (job.id, process)
        with process:  # waits, and closes its standard input afterwards
            process.wait()
        if not self._stopping.is_set():
            self._note(job, process.returncode)
        return True

    def _started(self, job: Job) -> "subprocess.Popen[bytes]":
        folder = self.home.job(job.id)
        options = {
            "folder": str(self.home.path),
            "job": job.id,
            "run": str(self.run),
            "device": self.device,
            "references": self.references,
        }
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            log = (folder / LOG).open("ab")
        with log:
            return subprocess.Popen(
                [sys.executable, *self.worker, json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=folder,
                pass_fds=(self.lock,),
                start_new_session=True,  # Ctrl-C in the terminal is for the server, which ends this process
            )

    def _note(self, job: Job, status: int) -> None:
        """Note how a job's process ended; a job that was cancelled stays so."""
        if status == 0:
            self.jobs.end(job.id, "done")
            return
        if status < 0:
            names = {one.value: one.name for one in signal.Signals}
            reason = f"its process was ended by {names.get(-status, -status)}, perhaps for lack of memory"
        else:
            lines = (self.home.job(job.id) / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"its process ended with status {status}"
        self.jobs.end(job.id, "failed", reason.removeprefix("equicat: "))
