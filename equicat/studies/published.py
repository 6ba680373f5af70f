"""The published OC20 figures beside ours, and in what the two differ: data, size, network."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from equicat.studies.cells import Result
from equicat.studies.columns import Column
from equicat.studies.models import MODELS, PUBLISHED_SIZES
from equicat.studies.outcome import distinct, select, spread, table
from equicat.studies.run_cell import MODEL_ROW
from equicat.studies.study_data import StudyData
from equicat.tasks.tables import METRICS

OTHER_ALLEGRO = {
    "allegro one layer": "number of layers (the published run has one)",
    "allegro": "l_max (not published with the figure)",
}
"""In what a published Allegro differs from ours, by its name."""
COUNTED = {"positions_mae": "positions_mae_all_atoms"}
"""Our metric that counts as the paper does, where ours of the same name counts otherwise."""
FILE = Path(__file__).with_name("published_oc20.csv")


@dataclass(frozen=True)
class Figure:
    """One published number."""

    task: str
    size: str
    model: str
    metric: str
    split: str
    value: float
    source: str

    @property
    def text(self) -> str:
        """The number as its metric is shown, with the size: ``OC20 200k: 0.0800``."""
        return f"OC20 {self.size}: {METRICS[self.metric].text(self.value)}"

    @property
    def n_train(self) -> int:
        """Training structures behind it."""
        return PUBLISHED_SIZES[self.task][self.size]


@cache
def published() -> tuple[Figure, ...]:
    """All figures of ``published_oc20.csv``."""
    with FILE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return tuple(Figure(**{**row, "value": float(row["value"])}) for row in rows)  # type: ignore[arg-type]


def figure_of(model: str, column: Column, results: Sequence[Result]) -> Figure | None:
    """The published figure that stands in the place of ours in the paper's table, if there is one.

    Displacements were published for the gradient head.

    Args:
        model: ours.
        column: ours.
        results: ours: the smallest of their sizes stands where the paper has the smallest, and so on.
    """
    if column.row != MODEL_ROW or column.head not in ("", "gradient"):
        return None
    key = (MODELS[model].published.get(column.task), column.task, column.metric, "val_id")
    found = [f for f in published() if (f.model, f.task, f.metric, f.split) == key]
    found.sort(key=lambda figure: figure.n_train)
    exact = [figure for figure in found if figure.n_train == column.n_train]
    if exact or column.n_train is None:
        return next(iter(exact or found), None)
    place = sorted(distinct(select(results, task=column.task), "n_train")).index(column.n_train)
    return found[place] if place < len(found) else None


def compared(results: Sequence[Result], columns: Sequence[Column], data: StudyData, presets: str) -> str:
    """A table with every published figure that has a counterpart here, ours beside it, and what differs."""
    lines = []
    for column in columns:
        for model in distinct(results, "model"):
            mine = column.of(select(results, model=model))
            theirs = figure_of(model, column, results)
            if theirs is None or not mine:
                continue
            metric = METRICS[COUNTED.get(column.metric, column.metric)]
            ours = spread(mine, "val_id", MODEL_ROW, metric.name).text(metric)
            why = differences(theirs, mine[0], data.provenance, presets)
            title = f"{theirs.model}, {column.task} {theirs.size}, {metric.heading}"
            lines.append([title, metric.text(theirs.value), ours, model, why])
    if not lines:
        return "None of the published figures has a counterpart here."
    return table(["published", "OC20", "here", "model", "differs in"], lines)


def differences(theirs: Figure, ours: Result, provenance: dict[str, object], presets: str) -> str:
    """The reasons, in words, for which a published figure and ours cannot be compared.

    Args:
        theirs: the published figure.
        ours: one of our results.
        provenance: where our data come from.
        presets: folder of our configurations.
    """
    found = []
    if provenance.get("dataset") != "OC20":
        made_by = provenance.get("generator") or provenance.get("dataset")
        found.append(f"data ({made_by or 'not OC20'})")
    if ours["n_train"] != theirs.n_train:
        found.append(f"size ({ours['n_train']:,} against {theirs.n_train:,})")
    if presets != "oc20":
        found.append(f"network and training (presets {presets}, {ours['n_parameters']:,} parameters)")
    if theirs.model in OTHER_ALLEGRO:
        found.append(OTHER_ALLEGRO[theirs.model])
    return "; ".join(found) or "nothing"
