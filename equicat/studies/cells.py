"""Cells of a study: trainings that any number of processes share, each done once, whatever kills the processes.

A study is a folder::

    study.json                    the plan: the data, and every cell with its whole training configuration
    cells/NAME/lock               held, by flock, by the process that works on the cell
    cells/NAME/run/               the run directory of the training
    cells/NAME/evaluation/        metrics and predictions on every split
    cells/NAME/result.json        what the study keeps of the cell; a cell that has one is finished

A lock ends with the process that holds it, so nothing has to be cleaned up after a kill: the next process takes the
cell and goes on after the last finished epoch. The name of a cell ends with a digest of everything that decides its
result (configuration, data), so a finished cell serves every later plan that asks for the same, such as one with more
seeds, and no other one. Processes on several machines need a file system with locks (NFS 4, Lustre with ``flock``).
"""

import fcntl
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from equicat.errors import InputError
from equicat.files import read_json, replace_json, visible, writing_to

PLAN, CELLS, RESULT, LOCK = "study.json", "cells", "result.json", "lock"
FORMAT_VERSION = 1

Result = dict[str, Any]
"""The labels of a cell, and what :func:`equicat.studies.run_cell.run_cell` found, or the reason under ``failed``."""


@dataclass(frozen=True)
class Cell:
    """One training of a study, and what is measured of it."""

    model: str
    task: str
    n_train: int
    """Training structures."""
    seed: int
    config: Mapping[str, Any]
    """Options of the training by part, without the paths of data and run."""
    budget: str = ""
    """How long is trained, in words: ``20 epochs``."""
    head: str = ""
    """Displacement head (is2rs)."""
    cutoff: float | None = None
    """Å, where the study varies it."""
    relax: Mapping[str, Any] | None = None
    """Options of the relaxations that the model is judged by besides (s2ef); None makes none."""

    @property
    def labels(self) -> dict[str, Any]:
        """The fields that tell the cell apart from the others of its study, for tables."""
        return {name: value for name, value in asdict(self).items() if name not in ("config", "relax")}

    def name(self, data: str) -> str:
        """The cell's folder: readable, and unique to all that decides the result.

        Args:
            data: digest of the data set.
        """
        cutoff = "" if self.cutoff is None else f"{self.cutoff:g}A"
        words = (self.model, self.task, self.n_train, self.head, cutoff, self.budget, f"seed{self.seed}")
        slug = "-".join(re.sub(r"[^\w.+-]+", "", str(word)) for word in words if word != "")
        content = json.dumps([asdict(self), data], sort_keys=True)
        return f"{slug}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Plan:
    """The cells of a study, and where they lie."""

    out: Path
    study: str
    data: str
    """Path of the data set."""
    digest: str
    """Digest of the data set."""
    cells: tuple[Cell, ...]

    @classmethod
    def read(cls, out: Path) -> "Plan":
        """The plan of a study's folder.

        Raises:
            InputError: if there is none, or a damaged one.
        """
        values = read_json(out / PLAN)
        try:
            cells = tuple(Cell(**cell) for cell in values["cells"])
            return cls(out, values["study"], values["data"], values["digest"], cells)
        except (KeyError, TypeError) as error:
            raise InputError(f"{out / PLAN}: damaged ({error}); run the command of the study again") from error

    def write(self) -> None:
        """Write ``study.json``; an earlier plan in the folder is replaced, its finished cells stay.

        Raises:
            InputError: if the folder holds something else than this study.
        """
        there = {path.name for path in visible(self.out)}
        if PLAN in there:
            earlier = read_json(self.out / PLAN).get("study")
            if earlier != self.study:
                raise InputError(f"{self.out}: holds the study {earlier}; give another folder for {self.study}")
        elif there - {CELLS}:
            raise InputError(f"{self.out}: holds something else than a study; give another folder")
        with writing_to(self.out):
            (self.out / CELLS).mkdir(parents=True, exist_ok=True)
            values = {"format_version": FORMAT_VERSION, "study": self.study, "data": self.data, "digest": self.digest}
            replace_json(self.out / PLAN, values | {"cells": [asdict(cell) for cell in self.cells]})

    @cached_property
    def folders(self) -> dict[str, Path]:
        """The folder of every cell, by name."""
        return {name: self.out / CELLS / name for name in (cell.name(self.digest) for cell in self.cells)}

    def folder(self, cell: Cell) -> Path:
        """The folder of a cell."""
        return self.folders[cell.name(self.digest)]

    def results(self) -> list[Result]:
        """The results of all finished cells, in the order of the plan."""
        return [read_json(folder / RESULT) for folder in self.folders.values() if (folder / RESULT).is_file()]

    def unfinished(self) -> list[Cell]:
        """The cells that have no result yet, whether or not some process works on them."""
        return [cell for cell in self.cells if not (self.folder(cell) / RESULT).is_file()]


RunCell = Callable[[Cell, Path, Path], Result]
"""Does a cell: from the cell, the data set and the cell's folder to what is found."""


def work(plan: Plan, run_cell: RunCell, say: Callable[[str], None] = print) -> int:
    """Do unfinished cells until every one is finished or held by another process; return how many were done here.

    A cell that cannot be trained (``InputError``: the loss is no number, a network refuses the data) is finished too:
    its result has the reason under ``failed``. It is tried again when its folder is removed.

    Args:
        plan: of the study.
        run_cell: does one.
        say: called with a line of text for each cell.
    """
    n_done = 0
    while done := sum(_attempt(plan, cell, run_cell, say) for cell in plan.unfinished()):
        n_done += done
    return n_done


def _attempt(plan: Plan, cell: Cell, run_cell: RunCell, say: Callable[[str], None]) -> bool:
    """Do a cell unless it is finished or held; whether it was done."""
    folder = plan.folder(cell)
    with claimed(folder) as is_mine:
        if not is_mine or (folder / RESULT).is_file():
            return False
        say(f"[{len(plan.cells) - len(plan.unfinished()) + 1}/{len(plan.cells)}] {folder.name}")
        try:
            found = run_cell(cell, Path(plan.data), folder)
        except InputError as error:
            say(f"{folder.name}: failed: {error}")
            found = {"failed": str(error)}
        with writing_to(folder):
            replace_json(folder / RESULT, {**cell.labels, **found})
        return True


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether this process alone has a cell, for as long as the block lasts; made if it is not there."""
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def finished(results: Sequence[Result]) -> list[Result]:
    """The results of the cells that did not fail."""
    return [result for result in results if "failed" not in result]
