"""The contents of a page about a run, section by section, as plain data: no HTML here (``page.html.j2`` has it).

Every section is a function from :class:`~equicat.report.read.RunFiles`. A part that is missing comes as
:class:`Missing`, which says how to get it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Shaped
from markupsafe import Markup
from numpy import ndarray

from equicat.relaxation.summary import words_on
from equicat.report import figures
from equicat.report.read import Evaluation, RunFiles
from equicat.report.viewer.viewer import View
from equicat.run_directory import CONFIG, ENVIRONMENT, EVALUATION, METRICS, PREDICTIONS, saved_epoch
from equicat.tasks.tables import METRICS as METRIC_TABLE
from equicat.tasks.tables import Metric, amount, metrics_shown, table_columns

QUANTITIES = (("energy", "eV"), ("forces", "eV/Å"), ("stress", "eV/Å³"), ("displacements", "Å"))
"""Arrays that parity plots show, and their unit."""
MAX_BAR_SERIES = 4


@dataclass(frozen=True)
class Missing:
    """A part of the run that could not be shown."""

    file: str
    problem: str
    advice: str


@dataclass(frozen=True)
class Figure:
    """A figure with its caption."""

    title: str
    details: tuple[str, ...]
    svg: Markup
    drawing: figures.Drawing | None = None
    """From which it can be written to files; pictures of structures have none."""
    view: View | None = None
    """The structure of a picture, to be turned."""
    key: str = ""
    """The id of the view on the page."""


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    title: str
    series: int
    dashed: bool = False


@dataclass(frozen=True)
class Fact:
    """A tile at the top: a title, a value, and something small below it."""

    title: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A number of a table of results."""

    text: str
    best: bool
    ratio: str
    """Best baseline over model, for an error of the model; else empty."""


@dataclass(frozen=True)
class SplitTable:
    """The results on one split."""

    name: str
    size: str
    known: tuple[str, ...]
    """How many of these systems were trained on, and how many chose the checkpoint; and how relaxations went."""
    outside: tuple[str, ...]
    headings: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class Results:
    """The results of one evaluation."""

    title: str
    note: str
    splits: tuple[SplitTable, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panel:
    """Learning curves against one quantity."""

    key: str
    title: str
    figures: list[Figure] = field(default_factory=list)


def missing(run: RunFiles, file: str, advice: str) -> Missing:
    """Stands in the place of what a file would have shown."""
    return Missing(file, run.problems.get(file, "missing"), advice)


def mapping_or_empty(value: Any) -> dict[str, Any]:
    """A mapping as it is, an empty one for everything else that a damaged file may hold."""
    return value if isinstance(value, dict) else {}


# ---- the top -----------------------------------------------------------------------------------------------------


def lead(run: RunFiles) -> dict[str, Any]:
    """Words and numbers of the first sentence: network, task, training data, energies."""
    network = mapping_or_empty(run.model.get("model"))
    data = mapping_or_empty(run.config.get("data"))
    train = data.get("train") or []
    task = str(run.model.get("task") or run.config.get("task") or "")
    return {
        "network": str(network.get("name", "model")).capitalize(),
        "l_max": network.get("l_max"),
        "n_layers": network.get("n_layers"),
        "cutoff": network.get("cutoff"),
        "task": task.upper(),
        "train": [str(path) for path in (train if isinstance(train, list) else [train])],
        "energy_reference": run.energy_reference,
    }


def facts(run: RunFiles) -> list[Fact]:
    """The tiles at the top; errors are those of the saved weights."""
    found = []
    if run.n_parameters is not None:
        found.append(Fact("parameters", f"{run.n_parameters:,}".replace(",", "\u202f")))
    elements = mapping_or_empty(run.model.get("statistics")).get("elements")
    if isinstance(elements, list) and all(isinstance(z, int) and 0 < z < len(chemical_symbols) for z in elements):
        symbols = " ".join(chemical_symbols[z] for z in elements[:12]) + (" …" if len(elements) > 12 else "")
        found.append(Fact("elements", str(len(elements)), symbols))
    row = saved_epoch(run.metrics)
    epochs = run.metrics.get("epoch", np.array([]))
    if np.isfinite(epochs).any():  # they count from 0
        saved = "" if row is None or not np.isfinite(epochs[row]) else f"saved: {epochs[row] + 1:.0f}"
        found.append(Fact("epochs", f"{np.nanmax(epochs) + 1:.0f}", saved))
    seconds = run.metrics.get("time_s", np.array([]))
    if np.isfinite(seconds).any():
        found.append(Fact("training time", _duration(float(np.nanmax(seconds)))))
    return found + _headline_errors(run, row)


def _headline_errors(run: RunFiles, row: int | None) -> list[Fact]:
    """Validation errors of the saved weights: from the run's evaluation, else from the epoch that was saved."""
    validation = run.validation.splits.get("val")
    values: dict[str, float | None] = {}
    note = ""
    if validation is not None and validation["rows"]:
        values, note = next(iter(validation["rows"].values())), size_of(validation)
    elif row is not None:
        values = {name.removeprefix("val_"): float(column[row]) for name, column in run.metrics.items()}
        note = "at the saved epoch"
    found = []
    for metric in metrics_shown("headline"):
        value = values.get(metric.name)
        if value is not None and math.isfinite(value):
            found.append(Fact(f"validation {metric.heading}", metric.text(value), note))
    return found


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


# ---- results -----------------------------------------------------------------------------------------------------


def results(run: RunFiles, shown: Sequence[Evaluation]) -> list[Results] | Missing:
    """The tables of every evaluation: the model first, then the baselines."""
    found = [_results_of(run, evaluation) for evaluation in shown if evaluation.summary]
    if run.validation.summary or found:
        return found
    return missing(run, EVALUATION, f"Run `equicat evaluate {run.name}` to compare it with the baselines.")


def _results_of(run: RunFiles, evaluation: Evaluation) -> Results:
    summary = evaluation.summary
    tables = tuple(_table(name, split) for name, split in evaluation.splits.items())
    energies = str(summary.get("energy_reference") or run.energy_reference)
    note = [f"Energies: {energies}" + ", minus the model's own clean slab" * bool(summary.get("minus_clean_slab"))]
    title = "Validation"
    if evaluation.name:
        title = f"Evaluation “{evaluation.name}”"
        note.append(f"data: {summary.get('data', '')}")
        note.append(f"made {str(summary.get('date', 'on an unknown day')).replace('T', ' ')}")
    note += [f"{name} was skipped: {why}" for name, why in mapping_or_empty(summary.get("skipped")).items()]
    remarks = summary.get("remarks", [])
    return Results(title, ". ".join(note) + ".", tables, tuple(map(str, remarks)) if isinstance(remarks, list) else ())


def size_of(split: Mapping[str, Any]) -> str:
    """``23 frames of 1 system``; of runs that did not count systems ``23 structures``."""
    n_structures, n_systems = split.get("n_structures"), split.get("n_systems")
    if not isinstance(n_structures, int):
        return ""
    return amount(n_structures, n_systems) if isinstance(n_systems, int) else f"{n_structures:,} structures"


def _table(name: str, split: Mapping[str, Any]) -> SplitTable:
    rows, n_models = split["rows"], split.get("n_models", 1)
    columns = table_columns(rows)
    best = {m.name: best_of([row.get(m.name) for row in rows.values()], m) for m in columns}
    alike = {m.name for m in columns if len(rows) > 1 and len({m.text(row.get(m.name)) for row in rows.values()}) == 1}
    baseline = {m.name: best_of([row.get(m.name) for row in list(rows.values())[n_models:]], m) for m in columns}

    def cell(metric: Metric, value: float | None, of_model: bool) -> Cell:
        reference = baseline[metric.name]
        comparable = of_model and value is not None and reference and not metric.higher_is_better
        ratio = f"{value / reference:#.2g} ×" if comparable and value is not None and reference else ""
        outstanding = value is not None and value == best[metric.name] and metric.name not in alike
        return Cell(metric.text(value), outstanding, ratio)

    n_free, n_systems = split.get("n_free_atoms"), split.get("n_systems")
    atoms = f"{n_free:,} free atoms" if isinstance(n_free, int) else ""
    known = []
    if split.get("n_chose_checkpoint"):
        known.append(f"{split['n_chose_checkpoint']:,} of {n_systems:,} systems chose the checkpoint")
    if split.get("n_trained_on") is not None:
        known.append(f"{split['n_trained_on']:,} of {n_systems:,} systems were trained on")
    if split.get("relaxations"):
        known += words_on(split["relaxations"])
    return SplitTable(
        name,
        ", ".join(filter(None, (size_of(split), atoms))),
        tuple(known),
        tuple(map(str, split.get("outside_training") or ())),
        tuple(metric.heading for metric in columns),
        tuple(
            (t, tuple(cell(m, r.get(m.name), k < n_models) for m in columns)) for k, (t, r) in enumerate(rows.items())
        ),
    )


def best_of(values: Iterable[float | None], metric: Metric) -> float | None:
    """The best of the finite values; None if there are none."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return None
    return max(finite) if metric.higher_is_better else min(finite)


def error_by_split(shown: Sequence[Evaluation]) -> tuple[list[Key], list[Figure]]:
    """Bars of the mean absolute errors by split, the model beside the baselines; not of relaxations, another task."""
    splits = {
        name: result["rows"] for name, result, _ in named_splits(shown) if result and not result.get("relaxations")
    }
    titles = list(dict.fromkeys(title for rows in splits.values() for title in rows))[:MAX_BAR_SERIES]
    drawn = []
    for metric in metrics_shown("bars"):
        values = {t: [_number(rows.get(t, {}).get(metric.name)) for rows in splits.values()] for t in titles}
        if np.isfinite(np.array(list(values.values()), dtype=float)).any():
            number = f".{max(metric.decimals - 1, 1)}f"
            drawn.append(
                figure_of(metric.heading, figures.bars(values, list(splits), number, f"{metric.heading} by split"))
            )
    return [Key(title, k + 1) for k, title in enumerate(titles)], drawn


def named_splits(
    shown: Sequence[Evaluation],
) -> list[tuple[str, dict[str, Any], dict[str, Shaped[ndarray, "_ ..."]]]]:
    """Name, result and arrays of every split of the evaluations; a name that several have tells which one."""
    found = []
    for evaluation in shown:
        for name in dict.fromkeys((*evaluation.splits, *evaluation.predictions)):
            others = [e for e in shown if e is not evaluation and (name in e.splits or name in e.predictions)]
            label = f"{evaluation.name or 'validation'}: {name}" if others else name
            found.append((label, evaluation.splits.get(name, {}), evaluation.predictions.get(name, {})))
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def figure_of(title: str, drawing: figures.Drawing, *details: str) -> Figure:
    """A figure with its caption."""
    return Figure(title, details, Markup(drawing.svg), drawing)


# ---- curves and parity -------------------------------------------------------------------------------------------


def learning_curves(run: RunFiles) -> list[Panel] | Missing:
    """Training and validation against epochs, or steps if rows stand within epochs, and against time."""
    epoch, seconds = run.metrics.get("epoch"), run.metrics.get("time_s")
    panels = []
    if epoch is not None:
        steps = run.metrics.get("step")
        # Rows within epochs, which run.val_every and run.log_every can ask for, stand at their steps.
        x, title = (epoch, "epoch") if steps is None or len(np.unique(epoch)) == len(epoch) else (steps, "step")
        panels.append(Panel("epoch", title, _curves(run, x, title)))
    if seconds is not None:
        panels.append(Panel("time", "time", _curves(run, seconds / 60, "training time [min]")))
    panels = [panel for panel in panels if panel.figures]
    return panels or missing(run, METRICS, "Training writes it after its first epoch.")


def _curves(run: RunFiles, x: ndarray, x_title: str) -> list[Figure]:
    drawn = []
    for name in ("loss", *METRIC_TABLE):
        metric = METRIC_TABLE.get(name)
        columns = [(run.metrics.get(f"{stage}_{name}"), k) for k, stage in enumerate(("val", "train"))]
        factor = 1.0 if metric is None else metric.factor
        lines = [
            figures.Curve(x, y * factor, k, k == 1, ("validation", "training")[k])
            for y, k in columns
            if y is not None and (np.isfinite(x) & np.isfinite(y)).any()
        ]
        if lines:
            title, is_error = (name, True) if metric is None else (metric.heading, not metric.higher_is_better)
            drawing = figures.learning_curves(lines, x_title, f"{title} against {x_title}", log=is_error)
            drawn.append(figure_of(title, drawing))
    return drawn


def parity(run: RunFiles, shown: Sequence[Evaluation]) -> tuple[list[Missing], list[tuple[str, list[Figure]]]]:
    """Predicted against reference energies and components of the vectors of free atoms, by split."""
    gaps = [missing(run, name, "Evaluate again to write it.") for name in run.problems if name.endswith(".npz")]
    splits = named_splits(shown)
    if not any(arrays for _, _, arrays in splits) and not gaps:
        gaps.append(missing(run, PREDICTIONS, "`equicat evaluate` writes the predictions of every split there."))
    groups = []
    for quantity, unit in QUANTITIES:
        drawn = []
        for name, result, arrays in splits:
            if f"{quantity}_true" in arrays:
                target, prediction = (arrays[f"{quantity}_{k}"].astype(float).ravel() for k in ("true", "pred"))
                drawing, hidden = figures.parity(target, prediction, unit, f"{quantity} parity, {name}")
                points = f"{len(target):,} components" if quantity != "energy" else f"{len(target):,} energies"
                note = f", {hidden:,} outside the frame" if hidden else ""
                drawn.append(figure_of(name, drawing, *filter(None, (size_of(result), f"{points}{note}"))))
        if drawn:
            groups.append((quantity.capitalize(), drawn))
    return gaps, groups


# ---- how it was made ---------------------------------------------------------------------------------------------


def configuration(run: RunFiles) -> dict[str, Any]:
    """The resolved configuration, and what is wrong with its file."""
    if not run.config_text:
        return {"missing": missing(run, CONFIG, "It is written when training starts."), "text": ""}
    damaged = missing(run, CONFIG, "Shown as it is.") if CONFIG in run.problems else None
    return {"missing": damaged, "text": run.config_text.rstrip()}


def environment(run: RunFiles) -> list[tuple[str, str]] | Missing:
    """Versions, commit and machine."""
    return flattened(run.environment) or missing(run, ENVIRONMENT, "It is written when training starts.")


def flattened(values: Mapping[str, Any], prefix: str | None = None) -> list[tuple[str, str]]:
    """Nested values as (name, text): {versions: {torch: 2}} gives (torch, 2), or (versions.torch, 2) with a prefix."""
    rows = []
    for name, value in values.items():
        full = str(name) if not prefix else f"{prefix}.{name}"
        if isinstance(value, dict):
            rows += flattened(value, None if prefix is None else full)
        else:
            rows.append((full, ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)))
    return rows
