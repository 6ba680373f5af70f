"""Packing of files into a store: in parallel, resumable after a kill, the same bytes whatever happened on the way.

Every shard is made from fixed pieces of the input by itself. Beside the store-to-be lies a directory with the plan,
the finished shards and a note on each; a run finds there what earlier ones left, does the rest, and gives the store its
name last.
"""

import fcntl
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from equicat.data.info import DatasetInfo
from equicat.data.neighbors import neighbor_list
from equicat.data.shards import Schema, ShardBuilder
from equicat.data.store import shard_name, write_index
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.files import read_json, remove_directory, replace_json, writing_to
from equicat.sources.processes import follow_parent
from equicat.terminal.progress import progress_bar


class Piece(ABC):
    """Some structures of the input that can be read apart from all others."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of structures, bad ones included."""

    @property
    @abstractmethod
    def key(self) -> list[Any]:
        """JSON values that change when the structures do; a resumed conversion compares them."""

    @abstractmethod
    def read(self) -> Iterator[Structure | InputError]:
        """The structures, in order; in the place of a bad one, what is wrong with it."""


Pieces = Sequence[Piece]
"""The pieces that go into one shard."""


class Table(ABC):
    """Further columns of the structures, by system id."""

    @property
    @abstractmethod
    def checksum(self) -> str:
        """SHA-256 of the file that the table was read from; a resumed conversion compares it."""

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """Names of the columns."""

    @abstractmethod
    def row(self, sid: str) -> dict[str, Any]:
        """The columns of a system, or values that stand for unknown."""

    @abstractmethod
    def __contains__(self, sid: str) -> bool:
        """Whether the table knows the system."""


@dataclass(frozen=True)
class PackOptions:
    """Options of packing: how structures are kept, and what happens to bad ones."""

    precision: str = "float64"
    """Precision of positions, cells and forces: float64 or float32."""
    columns: tuple[str, ...] = ()
    """Entries of ``Structure.info`` to keep."""
    edges_within: float | None = None
    """Count the pairs nearer than this (Å) and keep the number as column ``n_edges``."""
    strict: bool = False
    """Stop at the first bad structure; without it bad ones are left out, counted and listed."""
    workers: int = 1
    """Processes."""
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True)
class Packed:
    """Numbers of structures that were written and left out."""

    n_structures: int
    refused: list[str]
    """The problem with each structure that was left out; also in ``refused.txt`` of the store."""
    n_unmapped: int
    """Structures whose system the mapping does not have."""


def pack(
    out: str | Path,
    shards: Sequence[Pieces],
    info: DatasetInfo,
    options: PackOptions,
    mapping: Table | None = None,
) -> Packed:
    """Write a store of the structures of all pieces, in their order.

    Killed at any moment, it goes on where it was when it is called again in the same way.

    Args:
        out: directory to create.
        shards: for each shard of the store the pieces that go into it.
        info: what the energies mean.
        options: how.
        mapping: further columns by system id, such as what OC20 tells of its systems.

    Raises:
        InputError: if ``out`` exists or cannot be written, another conversion to it is going on or was begun with other
            input, a file cannot be trusted, no structure is good, or with ``strict`` one is bad.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"{out}: exists already; choose another name, or remove it")
    work = out.with_name(f".{out.name}.partial")
    with writing_to(work):
        work.mkdir(parents=True, exist_ok=True)
        with _locked(work):
            _make_store(work / "store")
            job = _planned(work, shards, info, options, mapping)
            missing = [k for k in range(len(shards)) if not (work / f"{k:05d}.json").is_file()]
            _run(job, {k: shards[k] for k in missing}, options, sum(p.count for pieces in shards for p in pieces))
            result = _finish(work, len(shards), job.schema, info, out)
        remove_directory(work)
    return result


@dataclass(frozen=True)
class _Job:
    """All that a worker needs to write a shard."""

    work: Path
    schema: Schema
    first: str
    options: PackOptions
    mapping: Table | None

    def completed(self, structure: Structure) -> Structure:
        """The structure with the columns that are not in the file."""
        added: dict[str, Any] = {} if self.mapping is None else self.mapping.row(structure.sid)
        if self.options.edges_within is not None:
            added["n_edges"] = neighbor_list(structure, self.options.edges_within)[0].shape[1]
        return replace(structure, info=structure.info | added) if added else structure

    def write(self, k: int, pieces: Pieces) -> int:
        """Write shard ``k`` and its note, and return the number of structures read."""
        builder, refused, n_unmapped = ShardBuilder(self.schema, self.first), [], 0
        for piece in pieces:
            for structure in piece.read():
                try:
                    if isinstance(structure, InputError):
                        raise structure
                    builder.append(self.completed(structure))
                except InputError as error:
                    if self.options.strict:
                        raise InputError(f"{error} (a bad frame stops the conversion: strict)") from None
                    refused.append(str(error))
                else:
                    n_unmapped += self.mapping is not None and structure.sid not in self.mapping
        note: dict[str, Any] = {"refused": refused, "n_unmapped": n_unmapped, "n_structures": len(builder)}
        if len(builder):
            temporary = self.work / f"{k:05d}.{os.getpid()}.temporary"
            note |= {"name": shard_name(k), **builder.write(temporary)}
            os.replace(temporary, self.work / "store" / shard_name(k))
        replace_json(self.work / f"{k:05d}.json", note)
        return len(builder) + len(refused)


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{work}: another process is converting; wait for it, or stop it") from error
        yield


def _make_store(store: Path) -> None:
    """The directory that shards go to; without it, notes beside it are of a store that has its name already."""
    if not store.is_dir():
        for leftover in store.parent.glob("*.json"):
            leftover.unlink()
        store.mkdir()


def _planned(
    work: Path,
    shards: Sequence[Pieces],
    info: DatasetInfo,
    options: PackOptions,
    mapping: Table | None,
) -> _Job:
    """The job of the workers; the plan of an interrupted run must be the same."""
    extra = mapping.columns if mapping is not None else []
    columns = [*options.columns, *extra, *(["n_edges"] if options.edges_within is not None else [])]
    job = _Job(work, Schema((), {}), "", options, mapping)
    first = first_good((p for pieces in shards for p in pieces), "the input", job.completed)
    schema = Schema.of(first, columns, options.precision)
    plan = {
        "pieces": [[p.key for p in pieces] for pieces in shards],
        "schema": asdict(schema),
        "info": asdict(info),
        "edges_within": options.edges_within,
        "mapping": mapping.checksum if mapping is not None else None,
    }
    plan = json.loads(json.dumps(plan))
    if (work / "plan.json").is_file() and read_json(work / "plan.json") != plan:
        raise InputError(
            f"{work}: an interrupted conversion with other input or options; repeat that one, or remove the directory"
        )
    replace_json(work / "plan.json", plan)
    for leftover in work.glob("*.temporary"):
        leftover.unlink()
    return replace(job, schema=schema, first=first.where)


def first_good(
    pieces: Iterable[Piece], source: str, completed: Callable[[Structure], Structure] = lambda structure: structure
) -> Structure:
    """The first good structure of the input, which tells what labels all must have.

    Args:
        pieces: of the input.
        source: the input, for the message.
        completed: adds what is not in the files; what it refuses is not good.

    Raises:
        InputError: if there is none: how many there are, and what is wrong with the first.
    """
    n_structures, first_error = 0, None
    for piece in pieces:
        for structure in piece.read():
            n_structures += 1
            try:
                if isinstance(structure, InputError):
                    raise structure
                return completed(structure)
            except InputError as bad:
                first_error = first_error or bad
    if first_error is None:
        raise InputError(f"{source}: no structures")
    raise InputError(f"{source}: none of {n_structures:,} structures is good; the first: {first_error}")


def _run(job: _Job, todo: dict[int, Pieces], options: PackOptions, total: int) -> None:
    done = total - sum(piece.count for pieces in todo.values() for piece in pieces)
    with progress_bar(total=total, initial=done, unit=" structures", disable=not options.progress) as bar:
        if options.workers == 1:
            for k, pieces in todo.items():
                bar.update(job.write(k, pieces))
            return
        # Processes of their own: a fork of one in which PyTorch has threads can hang.
        pool = ProcessPoolExecutor(options.workers, get_context("spawn"), _start_worker, (job,))
        try:
            futures: list[Future[int]] = [pool.submit(_write, k, pieces) for k, pieces in todo.items()]
            for future in as_completed(futures):
                bar.update(future.result())
        finally:
            pool.shutdown(cancel_futures=True)


_worker_job: _Job
"""The job of this worker process; sent once, because a mapping is large."""


def _start_worker(job: _Job) -> None:
    global _worker_job
    _worker_job = job
    follow_parent()


def _write(k: int, pieces: Pieces) -> int:
    with writing_to(_worker_job.work):
        return _worker_job.write(k, pieces)


def _finish(work: Path, n_shards: int, schema: Schema, info: DatasetInfo, out: Path) -> Packed:
    notes = [read_json(work / f"{k:05d}.json") for k in range(n_shards)]
    refused = [message for note in notes for message in note.pop("refused")]
    n_unmapped = sum(note.pop("n_unmapped") for note in notes)
    if refused:
        (work / "store" / "refused.txt").write_text("".join(f"{message}\n" for message in refused), encoding="utf-8")
    n = write_index(work / "store", [note for note in notes if note["n_structures"]], schema, info)
    (work / "store").rename(out)
    return Packed(n, refused, n_unmapped)
