"""Running jobs one after another, each in a process of its own, from a thread of the server."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from equicat.serve.home import LOG, Home
from equicat.serve.jobs import Job, Jobs

PAUSE = 0.3
"""Seconds between two looks at the queue."""
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
            with self._guard:
                job = None if self._stopping.is_set() else self.jobs.begin()
                process = None if job is None else self._started(job)
                self._process = None if job is None or process is None else (job.id, process)
            if job is None or process is None:
                self._stopping.wait(PAUSE)
                continue
            with process:  # waits, and closes its standard input afterwards
                process.wait()
            if not self._stopping.is_set():
                self._note(job, process.returncode)

    def _started(self, job: Job) -> "subprocess.Popen[bytes]":
        folder = self.home.job(job.id)
        folder.mkdir(parents=True, exist_ok=True)
        options = {
            "folder": str(self.home.path),
            "job": job.id,
            "run": str(self.run),
            "device": self.device,
            "references": self.references,
        }
        with (folder / LOG).open("ab") as log:
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
            reason = f"its process was ended by {signal.Signals(-status).name}, perhaps for lack of memory"
        else:
            lines = (self.home.job(job.id) / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"its process ended with status {status}"
        self.jobs.end(job.id, "failed", reason.removeprefix("equicat: "))
