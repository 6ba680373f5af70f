"""How every study that trains is done: plan, do the cells that nobody does, write what is there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from equicat.errors import InputError
from equicat.studies.cells import Cell, Plan, finished
from equicat.studies.models import Options
from equicat.studies.outcome import Outcome, publish
from equicat.studies.study_data import StudyData
from equicat.studies.workers import do_cells

Opts = TypeVar("Opts", bound=Options)


@dataclass(frozen=True)
class Study(Generic[Opts]):
    """A study: its name, its cells, and what it makes of their results."""

    name: str
    cells: Callable[[StudyData, Opts], Sequence[Cell]]
    outcome: Callable[[Plan, StudyData, Opts], Outcome]
    """From the plan, whose folder has the finished cells, to what is written."""

    def conduct(self, data: Path, out: Path, options: Opts, workers: int = 1, command: str = "") -> str:
        """Do the study, or go on with it, and write its files; return what there is to say.

        Any number of processes may do the same study at the same time: each cell is done by one of them. Whichever
        ends, by an interrupt or by itself, writes what is finished by then, so the last one writes everything.

        Args:
            data: data set directory.
            out: folder of the study.
            options: which models, tasks and budgets.
            workers: processes.
            command: that does it, for the files.

        Raises:
            InputError: if a task has no data, an option cannot be what it is, the folder holds something else, a worker
                ended early, or every cell failed.
        """
        source = StudyData(data)
        cells = self.cells(source, options)
        if not cells:
            raise InputError(f"{out}: there is nothing to train: no model has a preset for a task of the data")
        distinct = {cell.name(source.digest): cell for cell in cells}
        plan = Plan(out, self.name, str(source.path), source.digest, tuple(distinct.values()))
        plan.write()
        n_before = len(plan.cells) - len(plan.unfinished())
        print(f"{self.name}: {len(plan.cells)} cells, {n_before} of them done already", flush=True)
        try:
            do_cells(plan, workers)
        finally:  # also after an interrupt, or when a worker failed
            n_left, results, path = len(plan.unfinished()), plan.results(), None
            if finished(results):
                path = publish(plan, self.outcome(plan, source, options), source.summary(), command)
        if path is None:
            if results:
                raise InputError(f"{out}: every cell failed, the first because: {results[0]['failed']}")
            return f"{out}: no cell is done yet; {n_left} are being done by other processes"
        others = f"\n{n_left} cells are still being done by other processes" if n_left else ""
        return f"\n{path.read_text(encoding='utf-8')}\ntable: {path}{others}"
