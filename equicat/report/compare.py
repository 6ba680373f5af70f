"""One page about several runs, side by side: `equicat report RUN RUN …`.

Results by split, learning curves together, and what differs in their configurations and environments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from equicat import __version__
from equicat.errors import InputError
from equicat.files import replacing_file
from equicat.report import content, figures
from equicat.report.content import Cell, Figure, Key, Panel, figure_of, flattened, mapping_or_empty
from equicat.report.figure_files import write_figures
from equicat.report.page import checked_run
from equicat.report.read import RunFiles
from equicat.report.templates import sorting, style, template
from equicat.tasks.tables import METRICS, metrics_shown, table_columns

COMPARISON = "comparison.html"
MAX_DRAWN = 6
"""Runs that figures show; there are so many colours."""
NOT_COMPARED = ("date", "command", "hostname")
"""Entries of environments that differ between any two runs."""


@dataclass(frozen=True)
class SplitOfRuns:
    """The results of the runs that were evaluated on a split."""

    title: str
    note: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[Cell, ...]], ...]
    """Run, systems, and its numbers."""


@dataclass(frozen=True)
class Comparison:
    """The parts of the page."""

    names: tuple[str, ...]
    warnings: tuple[str, ...]
    overview: tuple[tuple[str, ...], list[tuple[str, ...]]]
    splits: list[SplitOfRuns]
    bars: list[Figure]
    curves: list[Panel]
    differences: list[tuple[str, ...]]
    versions: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def legend(self) -> list[Key]:
        """The colour of each run."""
        return [Key(name, k + 1) for k, name in enumerate(self.names[:MAX_DRAWN])]


def write_comparison(runs: Sequence[str | Path], out: Path | None = None, figures: Path | None = None) -> Path:
    """Write a page that compares runs.

    Args:
        runs: Run directories, at least two, none twice.
        out: HTML file to write. Default: ``comparison.html`` beside the first run.
        figures: Folder for the figures as files as well: SVG, PNG and the numbers as CSV.

    Returns:
        The file written, complete or not at all.

    Raises:
        InputError: if one is no run directory or is named twice, or ``out`` cannot be written.
    """
    folders = [Path(run) for run in runs]
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{folder}: is named twice; a comparison takes different runs")
    compared = compare([checked_run(folder) for folder in folders], _labels(places))
    out = places[0].parent / COMPARISON if out is None else Path(out)
    text = template("compare.html.j2").render(page=compared, style=style(), sorting=sorting(), version=__version__)
    with replacing_file(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if figures is not None:
        named = [("error-by-split", figure) for figure in compared.bars]
        named += [(f"learning by {panel.key}", figure) for panel in compared.curves for figure in panel.figures]
        write_figures(Path(figures), named)
    return out


def _labels(places: Sequence[Path]) -> tuple[str, ...]:
    """The names of the folders, with as many parents before them as tell them apart."""
    depth = 1
    while len({place.parts[-depth:] for place in places}) < len(places):
        depth += 1
    return tuple("/".join(place.parts[-depth:]) for place in places)


def compare(runs: Sequence[RunFiles], names: tuple[str, ...]) -> Comparison:
    """The parts of the page about these runs, which are called by these names."""
    references = {run.energy_reference for run in runs if run.energy_reference}
    warnings = []
    if len(references) > 1:
        warnings.append(f"The energies are of different kinds ({', '.join(sorted(references))}) and not comparable")
    if len(runs) > MAX_DRAWN:
        warnings.append(f"Figures show the first {MAX_DRAWN} runs, tables all")
    return Comparison(
        names,
        tuple(warnings),
        _overview(runs, names),
        _splits(runs, names),
        _bars(runs[:MAX_DRAWN], names),
        _curves(runs[:MAX_DRAWN], names),
        _differences([run.config for run in runs]),
        _differences([run.environment for run in runs]),
    )


def _overview(runs: Sequence[RunFiles], names: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A row for each run: what it is, and the tiles of its own page."""
    facts = [{fact.title: fact.value for fact in content.facts(run)} for run in runs]
    titles = list(dict.fromkeys(title for own in facts for title in own))
    rows = []
    for run, name, own in zip(runs, names, facts, strict=True):
        lead, train = content.lead(run), mapping_or_empty(run.data.get("train"))
        n_systems = train.get("n_systems")
        systems = f"{n_systems:,}" if isinstance(n_systems, int) else "–"
        rows.append((name, lead["network"], lead["task"], systems, *(own.get(title, "–") for title in titles)))
    return ("run", "network", "task", "training systems", *titles), rows


Results = dict[tuple[str, str], dict[str, Any]]
"""Results of a run by evaluation and split."""


def _results(run: RunFiles) -> Results:
    return {
        (evaluation.name or "validation", name): result
        for evaluation in (run.validation, *run.others)
        for name, result in evaluation.splits.items()
        if result["rows"]
    }


def _of_model(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of the model, which are the first row."""
    return next(iter(result["rows"].values()))


def _splits(runs: Sequence[RunFiles], names: Sequence[str]) -> list[SplitOfRuns]:
    results = [_results(run) for run in runs]
    found = []
    for key in dict.fromkeys(key for own in results for key in own):
        here = {name: own[key] for name, own in zip(names, results, strict=True) if key in own}
        values = {name: _of_model(result) for name, result in here.items()}
        columns = table_columns(values)
        best = {m.name: content.best_of([row.get(m.name) for row in values.values()], m) for m in columns}
        contested = {m.name for m in columns if sum(row.get(m.name) is not None for row in values.values()) > 1}
        rows = []
        for name, row in values.items():
            cells = tuple(
                Cell(m.text(row.get(m.name)), m.name in contested and row.get(m.name) == best[m.name], "")
                for m in columns
            )
            rows.append((name, content.size_of(here[name]), cells))
        sizes = {size for _, size, _ in rows}
        note = "The runs were evaluated on different structures." if len(sizes) > 1 else ""
        title = f"{key[0]}: {key[1]}"
        found.append(SplitOfRuns(title, note, tuple(m.heading for m in columns), tuple(rows)))
    return found


def _bars(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Figure]:
    """Errors of the models by split, a bar for each run."""
    results = [_results(run) for run in runs]
    keys = list(dict.fromkeys(key for own in results for key in own))
    groups = [split if [k[1] for k in keys].count(split) == 1 else f"{name}: {split}" for name, split in keys]
    drawn = []
    for metric in metrics_shown("bars"):
        values = {
            name: [_number(_of_model(own[key]).get(metric.name)) if key in own else float("nan") for key in keys]
            for name, own in zip(names, results, strict=False)
        }
        if np.isfinite(np.array(list(values.values()), dtype=float)).any():
            number, label = f".{max(metric.decimals - 1, 1)}f", f"{metric.heading} by split and run"
            drawn.append(figure_of(metric.heading, figures.bars(values, groups, number, label)))
    return drawn


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _curves(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Panel]:
    """Validation curves of all runs together, against epochs and against time."""
    panels = []
    for key, column, factor, title in (
        ("epoch", "epoch", 1.0, "epoch"),
        ("time", "time_s", 1 / 60, "training time [min]"),
    ):
        drawn = []
        for name in ("loss", *METRICS):
            metric = METRICS.get(name)
            curves = []
            for k, run in enumerate(runs):
                x, y = run.metrics.get(column), run.metrics.get(f"val_{name}")
                if x is not None and y is not None and (np.isfinite(x) & np.isfinite(y)).any():
                    scaled = y * (1.0 if metric is None else metric.factor)
                    curves.append(figures.Curve(x * factor, scaled, k, title=names[k]))
            if curves:
                heading, log = (name, True) if metric is None else (metric.heading, not metric.higher_is_better)
                label = f"validation {heading} of the runs against {title}"
                drawn.append(figure_of(heading, figures.learning_curves(curves, title, label, log)))
        if drawn:
            panels.append(Panel(key, key, drawn))
    return panels


def _differences(values: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Entries that are not alike in all runs: name, and the value in each, a dash where there is none."""
    flat = [dict(flattened(own, "")) for own in values]
    rows = []
    for name in dict.fromkeys(name for own in flat for name in own):
        texts = tuple(own.get(name, "–") for own in flat)
        if len(set(texts)) > 1 and name not in NOT_COMPARED:
            rows.append((name, *texts))
    return rows
