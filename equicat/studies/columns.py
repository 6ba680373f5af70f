"""The columns of Table 1: which results each shows, and what one would guess without a model."""

from collections.abc import Sequence
from dataclasses import dataclass

from equicat.studies.cells import Result
from equicat.studies.outcome import Spread, distinct, select, spread
from equicat.studies.run_cell import MODEL_ROW, RELAXED_ROW

TRIVIAL = {
    "mean energy": "mean energy, F = 0, no displacement",
    "linear reference": "linear reference, F = 0, no displacement",
}
"""Rows of guesses that need no model, by the beginning of the titles that results give them."""


@dataclass(frozen=True)
class Column:
    """One column of the table: a metric of the cells of a task."""

    title: str
    task: str
    metric: str
    row: str = MODEL_ROW
    n_train: int | None = None
    """Training structures of its cells; None if there is only one size."""
    head: str = ""

    def spread(self, results: Sequence[Result], split: str) -> Spread:
        """The metric over the seeds of one model."""
        return spread(self.of(results), split, self.row, self.metric)

    def of(self, results: Sequence[Result]) -> list[Result]:
        """The results that the column shows."""
        found = select(results, task=self.task, head=self.head)
        return [r for r in found if self.n_train in (None, r["n_train"])]

    def trivial(self, results: Sequence[Result], split: str, beginning: str) -> Spread:
        """The metric of a guess that needs no model, over the seeds of the first model that is there."""
        found = self.of(results)
        found = select(found, model=found[0]["model"]) if found else []
        relaxed = self.row == RELAXED_ROW
        rows = dict.fromkeys(title for r in found for title in r["splits"].get(split, {}))
        titles = [t for t in rows if t not in (MODEL_ROW, RELAXED_ROW) and t.endswith(", relaxed") == relaxed]
        chosen = [t for t in titles if t.startswith(beginning)] or [
            t for t in titles if t.startswith("no displacement")
        ]
        guess = spread(found, split, chosen[0], self.metric) if chosen else Spread(())
        return Spread(guess.values[:1]) if len(set(guess.values)) == 1 else guess  # no seed changes it


def columns(results: Sequence[Result]) -> list[Column]:
    """The columns for which there are results, in the order of the paper."""
    found = []
    if select(results, task="s2ef"):
        found.append(Column("S2EF force MAE [eV/Å]", "s2ef", "forces_mae"))
        found.append(Column("S2EF EFwT [%]", "s2ef", "energy_forces_within_threshold"))
    found += [
        Column(f"IS2RE {n:,} energy MAE [eV]", "is2re", "energy_mae", n_train=n)
        for n in sorted(distinct(select(results, task="is2re"), "n_train"))
    ]
    found += [
        Column(f"IS2RS {head} MAE [Å]", "is2rs", "positions_mae", head=head)
        for head in distinct(select(results, task="is2rs"), "head")
    ]
    if any(r["relaxations"] for r in results):
        found.append(Column("IS2RE relaxed energy MAE [eV]", "s2ef", "energy_mae", RELAXED_ROW))
        found.append(Column("IS2RS relaxed MAE [Å]", "s2ef", "positions_mae", RELAXED_ROW))
    return found
