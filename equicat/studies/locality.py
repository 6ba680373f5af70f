"""`equicat study locality`: what a cutoff costs, with and without message passing, and where the errors are.

Allegro is strictly local: an atom feels what is within one cutoff of it, however many layers there are. NequIP of the
same size passes messages, so each layer sees one cutoff further. If locality is what limits Allegro, a longer cutoff
helps it more than NequIP; errors grow with the distance of an atom from the adsorbate beyond the cutoff; and relaxed
energies predicted straight from the initial structure suffer more than those of relaxations, whose forces are local.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equicat.data.datasets import open_dataset
from equicat.options.values import Cutoff, Length
from equicat.relaxation.config import RelaxConfig
from equicat.run_directory import PREDICTIONS
from equicat.studies.cells import RESULT, Cell, Plan, Result, finished
from equicat.studies.distances import Bin, Errors, binned, energy_errors, force_errors, free_distances, reaches, thirds
from equicat.studies.models import Grid, Options
from equicat.studies.outcome import COLORS, DASH, Outcome, Spread, distinct, select, splits_in, spread, table
from equicat.studies.run_cell import EVALUATION, MODEL_ROW, RELAXED_ROW
from equicat.studies.study import Study
from equicat.studies.study_data import StudyData
from equicat.tasks.tables import METRICS

STEP = 1.0
"""Å; width of the intervals of distances."""
SHOWN = (
    ("S2EF force MAE [eV/Å]", "s2ef", MODEL_ROW, "forces_mae"),
    ("IS2RE direct energy MAE [eV]", "is2re", MODEL_ROW, "energy_mae"),
    ("IS2RE relaxed energy MAE [eV]", "s2ef", RELAXED_ROW, "energy_mae"),
    ("IS2RS relaxed MAE [Å]", "s2ef", RELAXED_ROW, "positions_mae"),
)
"""Columns: title, task, row and metric."""
DIRECT, RELAXED = SHOWN[1], SHOWN[2]


@dataclass(frozen=True)
class LocalityOptions(Options):
    """Options of `equicat study locality`."""

    models: Annotated[tuple[str, ...], Length(1)] = ("allegro-l2", "nequip")
    """A strictly local model and one that passes messages, of about the same size."""
    cutoffs: Annotated[tuple[Cutoff, ...], Length(1)] = (3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
    """Distances (Å) up to which two atoms are neighbours."""
    tasks: tuple[Literal["s2ef", "is2re"], ...] = ()
    """Tasks; those that the data set has data for if none are given."""
    relax: bool = True
    """Judge models of s2ef by the relaxed energies that they relax to, too."""
    relaxation: RelaxConfig = field(default_factory=RelaxConfig)
    """How to relax."""


def cells(data: StudyData, options: LocalityOptions) -> list[Cell]:
    """All trainings, seed by seed and short cutoffs first."""
    tasks: Sequence[str] = options.tasks or [task for task in data.tasks if task != "is2rs"]
    data.check_tasks(tasks)
    grid = Grid(data, options)
    relax = asdict(options.relaxation) if options.relax and "is2rs" in data.tasks else None
    return [
        grid.cell(
            model,
            task,
            len(data.train_set(task)),
            seed,
            budget=budget,
            cutoff=cutoff,
            relax=relax if task == "s2ef" else None,
        )
        for seed in range(options.seeds)
        for budget in options.budgets
        for cutoff in options.cutoffs
        for task in tasks
        for model in options.models
        if grid.offers(model, task)
    ]


# ---- where the errors are ------------------------------------------------------------------------------------------


JUDGED = "val_id"
"""The split on which errors are held against distances."""


@dataclass(frozen=True)
class Located:
    """The errors of one finished cell on val_id, with their distances."""

    result: Result
    """The labels of the cell."""
    errors: Errors

    @property
    def quantity(self) -> str:
        """``forces`` or ``energy``."""
        return "forces" if self.result["task"] == "s2ef" else "energy"


def located(plan: Plan, data: StudyData) -> Iterator[Located]:
    """The errors of all finished cells; the distances of a task's structures are computed once."""

    @cache
    def distances(task: str) -> np.ndarray:
        dataset = open_dataset(data.stores(task)[JUDGED])
        return free_distances(dataset) if task == "s2ef" else reaches(dataset)

    for cell in plan.cells:
        folder = plan.folder(cell)
        predictions = folder / EVALUATION / PREDICTIONS / f"{JUDGED}.npz"
        if (folder / RESULT).is_file() and predictions.is_file():
            read = force_errors if cell.task == "s2ef" else energy_errors
            yield Located(cell.labels, read(predictions, distances(cell.task)))


def bins_of(found: Sequence[Located], edges: Sequence[float]) -> list[Bin]:
    """Errors of several seeds together, by distance."""
    parts = [(e.errors.distances, e.errors.errors, e.errors.targets) for e in found]
    distances, errors, targets = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return binned(distances, errors, targets, edges)


def zones(found: Sequence[Located], cutoff: float) -> dict[float, Bin]:
    """Force errors of atoms up to one cutoff from the adsorbate, up to two, and beyond, by the lower end of the zone.

    The force on an atom is the derivative of energies of centres within one cutoff of it, each of which sees one cutoff
    further. So a strictly local model can feel the adsorbate at up to two cutoffs, and beyond that not at all.
    """
    return {b.low: b for b in bins_of(found, (0.0, cutoff, 2 * cutoff, float("inf")))}


# ---- tables --------------------------------------------------------------------------------------------------------


def outcome(plan: Plan, data: StudyData) -> Outcome:
    """Errors by cutoff, by distance from the adsorbate, and direct beside relaxed energies."""
    results = finished(plan.results())
    errors = list(located(plan, data))
    parts: list[str] = []
    rows: list[dict[str, Any]] = []
    for budget in distinct(results, "budget"):
        mine = select(results, budget=budget)
        here = [e for e in errors if e.result["budget"] == budget]
        parts += [f"## {budget}"] if budget else []
        for split in splits_in(mine):
            parts.append(f"### {split}: by cutoff\n\n{cutoff_table(mine, split)}")
            rows += [{"budget": budget, "split": split, **row} for row in _numbers(mine, split)]
        verdict = explanation(mine, JUDGED)
        parts += [f"### Direct and relaxed energies (val_id)\n\n{verdict}"] if verdict else []
        parts += _located_tables(here)
    parts.append(
        "Mean ± standard deviation over seeds. The force on an atom of a strictly local model cannot depend on an "
        "adsorbate that is more than two cutoffs away. Reach is the distance from the slab of the adsorbate atom "
        "that is furthest from it. All seeds of a row are pooled in the tables by distance."
    )
    return Outcome("\n\n".join(parts), rows, figure(results, errors), rows)


def cutoff_table(results: Sequence[Result], split: str) -> str:
    """A row for each model and cutoff, a column for each metric that some model has."""
    shown, lines = [column for column in SHOWN if _error(results, split, column).values], []
    for model in distinct(results, "model"):
        for cutoff in sorted(distinct(results, "cutoff")):
            mine = select(results, model=model, cutoff=cutoff)
            texts = [_error(mine, split, column).text(METRICS[column[3]]) for column in shown]
            for task in distinct(results, "task"):
                trained = select(mine, task=task)
                steps = sum(r["steps"] for r in trained)
                texts.append(f"{1000 * sum(r['seconds'] for r in trained) / steps:.1f}" if steps else DASH)
            lines.append([model, f"{cutoff:g}", *texts])
    cost = [f"ms a step, {task}" for task in distinct(results, "task")]
    return table(["", "cutoff [Å]", *(column[0] for column in shown), *cost], lines)


def _error(results: Sequence[Result], split: str, column: tuple[str, str, str, str]) -> Spread:
    _, task, row, metric = column
    return spread(select(results, task=task), split, row, metric)


def _numbers(results: Sequence[Result], split: str) -> Iterator[dict[str, Any]]:
    """Every number of a table by cutoff, for files."""
    for column in SHOWN:
        for model in distinct(results, "model"):
            for cutoff in sorted(distinct(results, "cutoff")):
                found = _error(select(results, model=model, cutoff=cutoff), split, column)
                if found.values:
                    std = found.std if len(found.values) > 1 else None
                    yield {"column": column[0], "model": model, "cutoff": cutoff, "mean": found.mean, "std": std}


def explanation(results: Sequence[Result], split: str) -> str:
    """Whether direct energies suffer more from locality than relaxed ones, as the paper explains its result.

    For each cutoff, the error of the strictly local model over that of the one with messages, direct and relaxed. The
    explanation holds if the first ratio is the larger one.
    """
    ours = [name for name in distinct(results, "model") if name.startswith("allegro")]
    others = [name for name in distinct(results, "model") if name not in ours]
    if not ours or not others:
        return ""
    lines, differences = [], []
    for cutoff in sorted(distinct(results, "cutoff")):
        ratios = []
        for column in (DIRECT, RELAXED):
            errors = [_error(select(results, model=m, cutoff=cutoff), split, column) for m in (ours[0], others[0])]
            ratios.append(_ratio(*errors))
        if all(ratio is not None for ratio in ratios):
            (direct, d_std), (relaxed, r_std) = ratios  # type: ignore[misc]
            differences.append((direct - relaxed, float(np.hypot(d_std, r_std))))
            lines.append([f"{cutoff:g}", f"{direct:.2f} ± {d_std:.2f}", f"{relaxed:.2f} ± {r_std:.2f}"])
    if not lines:
        return ""
    header = ["cutoff [Å]", f"direct: {ours[0]} / {others[0]}", f"relaxed: {ours[0]} / {others[0]}"]
    return f"{table(header, lines)}\n\n{_verdict(differences)}"


def _ratio(first: Spread, second: Spread) -> tuple[float, float] | None:
    """The ratio of two means and its standard error over seeds; None if one is missing."""
    if not first.values or not second.values:
        return None
    ratio = first.mean / second.mean
    relative = [s.std / s.mean / len(s.values) ** 0.5 if len(s.values) > 1 else 0.0 for s in (first, second)]
    return ratio, float(ratio * np.linalg.norm(relative))


def _verdict(differences: Sequence[tuple[float, float]]) -> str:
    """A sentence on the differences of the ratios, direct less relaxed, with their standard errors."""
    supported = sum(d > 2 * error > 0 for d, error in differences)
    contradicted = sum(-d > 2 * error > 0 for d, error in differences)
    mean = float(np.mean([d for d, _ in differences]))
    unknown = "" if any(error for _, error in differences) else " With one seed nothing is known of the spread."
    return (
        f"The ratio of direct errors is {'larger' if mean > 0 else 'smaller'} than that of relaxed ones by "
        f"{abs(mean):.2f} on average over {len(differences)} cutoffs; it is larger by more than two standard errors at "
        f"{supported} of them and smaller at {contradicted}. The explanation that Allegro loses because direct "
        f"predictions need what is far away asks for larger.{unknown}"
    )


def _located_tables(found: Sequence[Located]) -> list[str]:
    """Where the errors are: forces by distance from the adsorbate, energies by the reach of the adsorbate."""
    forces = [e for e in found if e.quantity == "forces"]
    energies = [e for e in found if e.quantity == "energy"]
    parts = []
    if forces:
        parts.append(f"### Force errors (val_id), by distance from the adsorbate\n\n{_zone_table(forces)}")
    if energies:
        edges = thirds(np.concatenate([e.errors.distances for e in energies]))
        title = "### Direct energy errors (val_id) by the reach of the adsorbate"
        parts += [f"{title}\n\n{_reach_table(energies, edges)}"] if edges else []
    return parts


def _groups(found: Sequence[Located]) -> dict[tuple[str, float], list[Located]]:
    """The errors by model and cutoff."""
    groups: dict[tuple[str, float], list[Located]] = {}
    for e in found:
        groups.setdefault((e.result["model"], e.result["cutoff"]), []).append(e)
    return dict(sorted(groups.items()))


def _zone_table(found: Sequence[Located]) -> str:
    lines = []
    for (model, cutoff), mine in _groups(found).items():
        bins = zones(mine, cutoff)
        texts = []
        for low in (0.0, cutoff, 2 * cutoff):
            b = bins.get(low)
            texts += [f"{b.mean:.4f}", f"{b.guess:.4f}", f"{b.n:,}"] if b else [DASH, DASH, "0"]
        lines.append([model, f"{cutoff:g}", *texts])
    names = ("up to one cutoff [eV/Å]", "up to two [eV/Å]", "beyond [eV/Å]")
    return table(["", "cutoff [Å]", *(title for name in names for title in (name, "F = 0", "components"))], lines)


def _reach_table(found: Sequence[Located], edges: Sequence[float]) -> str:
    titles = [f"{low:.2f} to {high:.2f} Å" for low, high in pairwise(edges[:-1])] + [f"{edges[-2]:.2f} Å and more"]
    lines = []
    for (model, cutoff), mine in _groups(found).items():
        bins: Mapping[float, Bin] = {b.low: b for b in bins_of(mine, edges)}
        texts = [f"{bins[low].mean:.3f} ({bins[low].n})" if low in bins else DASH for low in edges[:-1]]
        lines.append([model, f"{cutoff:g}", *texts])
    return table(["energy MAE [eV] (systems × seeds)", "cutoff [Å]", *titles], lines)


def figure(results: Sequence[Result], errors: Sequence[Located]) -> Figure:
    """Errors on val_id against the cutoff, and force errors against the distance from the adsorbate."""
    shown = [column for column in SHOWN if _error(results, "val_id", column).values]
    forces = _groups([e for e in errors if e.quantity == "forces"])
    n = max(1, len(shown) + bool(forces))
    drawn = Figure(figsize=(4.0 * n, 3.6), layout="constrained")
    panels = drawn.subplots(1, n, squeeze=False).ravel()
    for axes, column in zip(panels, shown, strict=False):
        for k, model in enumerate(distinct(results, "model")):
            mine = select(results, model=model)
            points = {c: _error(select(mine, cutoff=c), "val_id", column) for c in sorted(distinct(mine, "cutoff"))}
            points = {c: p for c, p in points.items() if p.values}
            bars = [p.std if len(p.values) > 1 else 0.0 for p in points.values()]
            axes.errorbar(
                list(points),
                [p.mean for p in points.values()],
                yerr=bars,
                marker="o",
                capsize=3,
                color=COLORS[k],
                label=model,
            )
        axes.set_xlabel("cutoff [Å]")
        axes.set_title(column[0], fontsize=9)
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize=8)
    if forces:
        _draw_distances(panels[-1], forces)
    return drawn


def _draw_distances(axes: Axes, groups: Mapping[tuple[str, float], Sequence[Located]]) -> None:
    """Force errors by distance from the adsorbate; darker lines for longer cutoffs."""
    models = list(dict.fromkeys(model for model, _ in groups))
    cutoffs = sorted({cutoff for _, cutoff in groups})
    for (model, cutoff), mine in groups.items():
        farthest = np.nanmax(np.concatenate([e.errors.distances for e in mine]))
        bins = bins_of(mine, np.arange(0.0, farthest + 2 * STEP, STEP).tolist())
        opacity = 0.25 + 0.75 * (cutoffs.index(cutoff) + 1) / len(cutoffs)
        axes.plot(
            [(b.low + b.high) / 2 for b in bins],
            [b.mean for b in bins],
            color=COLORS[models.index(model)],
            alpha=opacity,
            label=f"{model}, {cutoff:g} Å",
        )
    axes.set_xlabel("distance from the adsorbate [Å]")
    axes.set_title("force MAE [eV/Å] of free atoms", fontsize=9)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=6)


LOCALITY = Study("locality", cells, lambda plan, data, options: outcome(plan, data))
