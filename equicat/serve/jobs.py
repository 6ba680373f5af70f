"""The queue of jobs, in SQLite: every change is one transaction, so a killed server leaves no job half-changed.

A job is ``queued``, then ``running``, and ends as ``done``, ``failed`` or ``cancelled``. One that was running when the
server was killed is still ``running`` in the file; the next server goes on with it.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from equicat.errors import InputError

State = Literal["queued", "running", "done", "failed", "cancelled"]
MAX_JOBS = 500
"""Jobs that are kept; then some have to be removed before another is taken."""

TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    title TEXT NOT NULL,
    request TEXT NOT NULL,
    systems TEXT NOT NULL,
    n_systems INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'queued',
    message TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL,
    started REAL,
    ended REAL
);
CREATE TABLE IF NOT EXISTS uploads (
    token TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    label TEXT NOT NULL,
    created REAL NOT NULL
);
"""


COLUMNS = "id, title, request, n_systems, state, message, created, started, ended"
"""Columns that a :class:`Job` has; the systems are long and seldom needed."""


class UnknownJob(InputError):
    """There is no job with that number."""


@dataclass(frozen=True)
class Job:
    """One screening: a slab, adsorbates, and how far it is."""

    id: int
    title: str
    request: dict[str, Any]
    """See :class:`equicat.serve.request.Request`."""
    n_systems: int
    """Everything that is relaxed: the clean slab, gas molecules, placements."""
    state: State
    message: str
    """Reason why it failed, in one line."""
    created: float
    """Seconds since 1970, as all times here."""
    started: float | None
    ended: float | None


class Jobs:
    """The table of jobs. Each call opens the file for itself, so any thread and process may use it.

    Args:
        database: the SQLite file; made if it is not there.
    """

    def __init__(self, database: Path):
        self.database = database
        with self.open() as connection:
            connection.executescript(TABLES)

    @contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction, which is kept if the block ends well.

        Raises:
            InputError: if the file is no database or cannot be written.
        """
        try:
            connection = sqlite3.connect(self.database, timeout=30)
            connection.row_factory = sqlite3.Row
            try:
                with connection:
                    yield connection
            finally:
                connection.close()
        except sqlite3.DatabaseError as error:
            raise InputError(f"{self.database}: cannot be used ({error}); give another --folder") from error

    def add(self, title: str, request: Mapping[str, Any], systems: Sequence[Mapping[str, Any]]) -> int:
        """Put a job at the end of the queue and return its number.

        Args:
            title: adsorbates and slab in words.
            request: what is to be done.
            systems: everything that is relaxed, in order.

        Raises:
            InputError: if there are too many.
        """
        with self.open() as connection:
            if connection.execute("SELECT count(*) FROM jobs").fetchone()[0] >= MAX_JOBS:
                raise InputError(f"there are {MAX_JOBS} jobs already; remove some first")
            values = (title, json.dumps(request), json.dumps(systems), len(systems), time.time())
            insert = "INSERT INTO jobs (title, request, systems, n_systems, created) VALUES (?, ?, ?, ?, ?)"
            return int(connection.execute(insert, values).lastrowid or 0)

    def all(self) -> list[Job]:
        """All jobs, the newest first."""
        with self.open() as connection:
            return [_job(row) for row in connection.execute(f"SELECT {COLUMNS} FROM jobs ORDER BY id DESC")]

    def get(self, number: int) -> Job:
        """The job with that number.

        Raises:
            UnknownJob: if there is none.
        """
        with self.open() as connection:
            row = connection.execute(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise UnknownJob(f"there is no job {number}; it may have been removed")
        return _job(row)

    def systems(self, number: int) -> list[dict[str, Any]]:
        """Everything that a job relaxes, in order; see :func:`equicat.serve.check.systems_of`."""
        with self.open() as connection:
            row = connection.execute("SELECT systems FROM jobs WHERE id = ?", (number,)).fetchone()
        return [] if row is None else json.loads(row["systems"])

    def set_systems(self, number: int, systems: Sequence[Mapping[str, Any]]) -> None:
        """Note what a job relaxes, which depends on the model of the server that begins it."""
        with self.open() as connection:
            values = (json.dumps(systems), len(systems), number)
            connection.execute("UPDATE jobs SET systems = ?, n_systems = ? WHERE id = ?", values)

    def begin(self) -> Job | None:
        """Take the first job of the queue, one that was running when a server was killed before all others."""
        with self.open() as connection:
            row = connection.execute(
                f"SELECT {COLUMNS} FROM jobs WHERE state IN ('running', 'queued') ORDER BY state = 'queued', id LIMIT 1"
            ).fetchone()
            if row is None:
                return None
            connection.execute(
                "UPDATE jobs SET state = 'running', message = '', ended = NULL, started = coalesce(started, ?) "
                "WHERE id = ?",
                (time.time(), row["id"]),
            )
        return self.get(row["id"])

    def end(self, number: int, state: State, message: str = "") -> None:
        """Note how a running job ended; one that was cancelled meanwhile stays so."""
        with self.open() as connection:
            connection.execute(
                "UPDATE jobs SET state = ?, message = ?, ended = ? WHERE id = ? AND state = 'running'",
                (state, message, time.time(), number),
            )

    def cancel(self, number: int) -> None:
        """Take a job out of the queue.

        Raises:
            InputError: if it has ended.
        """
        self._change(number, "cancelled", ("queued", "running"), "has ended already")

    def again(self, number: int) -> None:
        """Put a job that failed or was cancelled back into the queue; it goes on where it stopped.

        Raises:
            InputError: if it did neither.
        """
        self._change(number, "queued", ("failed", "cancelled"), "neither failed nor was cancelled")

    def remove(self, number: int) -> None:
        """Forget a job.

        Raises:
            InputError: if it is running.
        """
        job = self.get(number)
        with self.open() as connection:
            gone = connection.execute("DELETE FROM jobs WHERE id = ? AND state != 'running'", (job.id,)).rowcount
        if not gone:
            raise InputError(f"job {number} is running; cancel it first")

    def _change(self, number: int, state: State, before: tuple[State, ...], otherwise: str) -> None:
        job = self.get(number)
        places = ", ".join("?" * len(before))
        with self.open() as connection:
            ended = None if state == "queued" else time.time()
            changed = connection.execute(
                f"UPDATE jobs SET state = ?, message = '', ended = ? WHERE id = ? AND state IN ({places})",
                (state, ended, job.id, *before),
            ).rowcount
        if not changed:
            raise InputError(f"job {number} {otherwise}")


def _job(row: sqlite3.Row) -> Job:
    return Job(**{**dict(row), "request": json.loads(row["request"])})
