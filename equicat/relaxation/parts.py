"""Results of long work on many systems: files of finished ones that survive an interruption and join to one.

Each process appends to a file of its own, one line a system, and a line counts once it is complete. Systems that were
worked on when a process was killed are begun anew. Files of any number of processes belong together if their plan is
the same, so a relaxation that was begun by four can be finished by one. Whoever finds all systems finished writes the
result; that two do so at the same time does no harm, because they write the same.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from equicat.data.readers import check_extxyz_name
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.files import read_json, replace_json, writing_to
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.held import free_directions

PLAN = "plan.json"


@dataclass(frozen=True)
class Output:
    """Where results go, and what to do with what is there."""

    file: str | Path
    """extxyz, also .gz or .xz."""
    trajectories: str | Path | None = None
    """Folder for one extxyz file of each system with all its steps."""
    resume: bool = False
    """Go on with an interrupted relaxation."""
    overwrite: bool = False
    """Begin anew, and replace what is there."""
    alone: bool = False
    """This process relaxes everything itself, whatever torchrun or SLURM say of others."""


@runtime_checkable
class Kept(Protocol):
    """The result of one system, as a line of text."""

    @property
    def number(self) -> int:
        """Place in the input."""
        ...

    def as_line(self) -> str:
        """One line of JSON; numbers keep all their digits."""
        ...


@dataclass(frozen=True)
class Share:
    """Which of several processes this one is: it takes every ``size``-th system, beginning with ``rank``."""

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls) -> "Share":
        """As torchrun (``RANK``, ``WORLD_SIZE``) or an array of SLURM jobs says; else the only one.

        Raises:
            InputError: if the variables are there and make no sense.
        """
        e = os.environ
        try:
            if "RANK" in e and "WORLD_SIZE" in e:
                share = cls(int(e["RANK"]), int(e["WORLD_SIZE"]))
            elif "SLURM_ARRAY_TASK_ID" in e:
                first, step = int(e.get("SLURM_ARRAY_TASK_MIN", 0)), int(e.get("SLURM_ARRAY_TASK_STEP", 1))
                share = cls((int(e["SLURM_ARRAY_TASK_ID"]) - first) // step, int(e["SLURM_ARRAY_TASK_COUNT"]))
            else:
                return cls()
        except (ValueError, KeyError, ZeroDivisionError) as error:
            raise InputError(f"environment: RANK, WORLD_SIZE or SLURM_ARRAY_TASK_… make no sense ({error})") from error
        if not 0 <= share.rank < share.size:
            raise InputError(f"environment: rank {share.rank} of {share.size} processes does not exist")
        return share

    def of(self, n: int) -> range:
        """The numbers of this process's systems, of n."""
        return range(self.rank, n, self.size)


def plan_of(structures: Sequence[Structure], model: str, config: RelaxConfig, trajectories: bool) -> dict[str, Any]:
    """Everything that the results depend on; two relaxations with the same plan give the same.

    Args:
        structures: the initial ones.
        model: a digest of it.
        config: how to relax; what changes no result (skin, size of batches) is left out.
        trajectories: whether they are written.
    """
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("skin", "edges")}
    return {
        "n_systems": len(structures),
        "structures": digest_of(structures),
        "model": model,
        **settings,
        "trajectories": trajectories,
    }


def digest_of(structures: Sequence[Structure]) -> str:
    """Digest that tells structures, their ids and what holds their atoms from others."""
    digest = hashlib.sha256()
    for s in structures:
        for array in (s.numbers, s.positions, s.cell, s.pbc, free_directions(s)):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(s.id.encode())
    return digest.hexdigest()


K = TypeVar("K", bound=Kept)


class Parts(Generic[K]):
    """The files of one process.

    Args:
        output: where the result goes.
        plan: everything that the results depend on, and ``n_systems``; see :func:`plan_of`.
        share: which process this is.
        read: gives the result of a line; raises ``ValueError``, ``KeyError`` or ``TypeError`` if it is not a whole one.
        work: what is done, for messages.

    Raises:
        InputError: if something is there that would be lost, or there is nothing to go on with.
    """

    def __init__(
        self, output: Output, plan: dict[str, Any], share: Share, read: Callable[[str], K], work: str = "relaxation"
    ):
        self.read, self.work = read, work
        self.out, self.share, self.n_systems = Path(output.file), share, plan["n_systems"]
        check_extxyz_name(self.out)
        if not self.out.parent.is_dir():
            raise InputError(f"{self.out}: the folder {self.out.parent} does not exist; create it first")
        if self.out.exists() and not output.overwrite:
            advice = "nothing is left to resume" if output.resume else "choose another name, or --overwrite"
            raise InputError(f"{self.out}: exists already; {advice}")
        digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = self._folder(digest)
        self.others = [path for path in self.out.parent.glob(f"{self.out.name}.*.parts") if path != self.folder]
        self.file = self.folder / f"{share.rank}-of-{share.size}.jsonl"
        if output.resume:
            self._check_plan(plan)
        elif not output.overwrite:
            self._check_nothing_is_lost()
        with writing_to(self.folder):
            self.folder.mkdir(exist_ok=True)
            replace_json(self.folder / PLAN, plan)
            self.file.touch()
            os.truncate(self.file, len(_complete_lines(self.file)) if output.resume else 0)

    def _folder(self, digest: str) -> Path:
        return self.out.with_name(f"{self.out.name}.{digest}.parts")

    def _check_plan(self, plan: dict[str, Any]) -> None:
        """Work to resume is there, or none at all (then this one just begins)."""
        if not self.folder.is_dir() and self.others:
            there = read_json(self.others[0] / PLAN)
            different = [name for name in plan if there.get(name) != plan[name]]
            raise InputError(
                f"{self.others[0]}: belongs to a {self.work} with other {', '.join(different) or 'options'}; give "
                "the same to resume it, or --overwrite to begin anew"
            )

    def _check_nothing_is_lost(self) -> None:
        mine = self.folder.glob("*.jsonl") if self.folder.is_dir() else iter(())
        stale = [path for path in mine if path == self.file or not path.stem.endswith(f"-of-{self.share.size}")]
        if stale or self.others:
            where = [*(path.parent for path in stale), *self.others][0]
            raise InputError(
                f"{where}: holds the results of an interrupted {self.work}; --resume goes on with it, "
                "--overwrite begins anew"
            )

    def append(self, record: K) -> None:
        """Keep a result, for good when this returns."""
        with writing_to(self.file), self.file.open("ab") as file:
            file.write(f"{record.as_line()}\n".encode())
            file.flush()
            os.fsync(file.fileno())

    def finished(self) -> dict[int, K]:
        """The results of all processes so far, by number."""
        return kept_in(self.folder, self.read)

    def remove(self) -> None:
        """Take away what has become the result, and what overwritten work left."""
        for folder in (self.folder, *self.others):
            shutil.rmtree(folder, ignore_errors=True)


def kept_in(folder: Path, read: Callable[[str], K]) -> dict[int, K]:
    """The results of all processes in a folder of parts so far, by number; lines that are being written do not count.

    Args:
        folder: of the parts.
        read: as in :class:`Parts`.

    Raises:
        InputError: if a line is damaged.
    """
    lines = (line for path in sorted(folder.glob("*.jsonl")) for line in _complete_lines(path).splitlines())
    try:
        records = [read(line.decode()) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: damaged ({error}); remove it and begin anew") from error
    return {record.number: record for record in records}


def _complete_lines(path: Path) -> bytes:
    """The file without a last line that was cut off."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return b""
    return content[: content.rfind(b"\n") + 1]
