"""`equicat study data-efficiency`: learning curves over nested subsets, and the power laws that they follow.

An error that falls as error = a · nˢ is a straight line in log-log: s is the slope, and where two lines are compared,
their heights in the middle of the sizes. A model that makes better use of data has a steeper slope (s more negative);
one that only starts better has a lower line of the same slope.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy import ndarray

from equicat.studies.cells import Cell, Result, finished
from equicat.studies.columns import TRIVIAL, Column
from equicat.studies.models import MODELS, Grid, Options
from equicat.studies.outcome import COLORS, Outcome, distinct, heading, listed, select, splits_in, spread, table
from equicat.studies.run_cell import MODEL_ROW
from equicat.studies.study import Study
from equicat.studies.study_data import StudyData
from equicat.tasks.tables import METRICS

EIGHTHS = (0.125, 0.25, 0.5, 1.0)
"""Shares of the training structures, unless sizes are given."""
PRIMARY = {"s2ef": "forces_mae", "is2re": "energy_mae", "is2rs": "positions_mae"}
"""The metric that each task is judged by."""
N_BOOTSTRAP = 1000
TOLD_APART = 2.0
"""Standard errors from which on two numbers are called different."""


@dataclass(frozen=True)
class DataEfficiencyOptions(Options):
    """Options of `equicat study data-efficiency`."""

    tasks: tuple[Literal["s2ef", "is2re", "is2rs"], ...] = ()
    """Tasks; those that the data set has data for if none are given."""
    sizes: tuple[str, ...] = ()
    """Nested training sizes: numbers of structures, 10k, 100k or all. Default: an eighth, a quarter, a half and all."""


@dataclass(frozen=True)
class PowerLaw:
    """A fitted learning curve, error = error_mid · (n / n_mid)^slope, with standard errors."""

    slope: float
    error_mid: float
    """The fitted error at the geometric mean n_mid of the sizes."""
    slope_std: float
    """Standard error of the slope."""
    log_mid_std: float
    """Standard error of the logarithm of ``error_mid``."""


def fit(sizes: Sequence[int], errors: Float[ndarray, "n_seeds n_sizes"], seed: int = 0) -> PowerLaw:
    """The power law of a learning curve, by least squares in log-log.

    Each standard error is the larger one of two: that of a bootstrap over seeds, and that of a regression, from the
    scatter of the sizes about the line. The first is blind to a curve that is no power law, and small by chance with
    two seeds; the second needs three sizes.

    Args:
        sizes: numbers of training structures, at least two.
        errors: positive, one row a seed.
        seed: of the draws.
    """
    log_n, log_e = np.log(np.asarray(sizes, dtype=float)), np.log(errors)
    x = log_n - log_n.mean()
    slopes, heights = log_e @ x / (x @ x), log_e.mean(1)  # one fit a seed; a fit to several seeds is their mean
    drawn = np.random.default_rng(seed).integers(0, len(errors), (N_BOOTSTRAP, len(errors)))
    residuals = log_e.mean(0) - heights.mean() - slopes.mean() * x
    scatter = np.sqrt(residuals @ residuals / max(1, len(x) - 2))
    return PowerLaw(
        slope=float(slopes.mean()),
        error_mid=float(np.exp(heights.mean())),
        slope_std=float(max(np.std(slopes[drawn].mean(1)), scatter / np.sqrt(x @ x))),
        log_mid_std=float(max(np.std(heights[drawn].mean(1)), scatter / np.sqrt(len(x)))),
    )


def cells(data: StudyData, options: DataEfficiencyOptions) -> list[Cell]:
    """All trainings, seed by seed and small sizes first."""
    tasks = options.tasks or data.tasks
    data.check_tasks(tasks)
    grid, found = Grid(data, options), []
    for seed in range(options.seeds):
        for budget in options.budgets:
            for task in tasks:
                sizes = data.sizes(task, options.sizes, EIGHTHS)
                for size in sizes:
                    for model in (name for name in options.models if grid.offers(name, task)):
                        heads = MODELS[model].heads if task == "is2rs" else ("",)
                        found.append(
                            grid.cell(model, task, size, seed, budget=budget, smallest=sizes[0], head=heads[0])
                        )
    return found


def laws(results: Sequence[Result], split: str) -> dict[str, PowerLaw]:
    """The power law of every model that has all sizes with at least one seed; one task, one budget."""
    found, sizes = {}, sorted(distinct(results, "n_train"))
    for model in distinct(results, "model") if len(sizes) > 1 else []:
        mine = select(results, model=model)
        metric = PRIMARY[mine[0]["task"]]
        rows = [
            [spread(select(mine, seed=seed, n_train=n), split, MODEL_ROW, metric) for n in sizes]
            for seed in distinct(mine, "seed")
        ]
        complete = [[cell.mean for cell in row] for row in rows if all(cell.values for cell in row)]
        if complete:
            found[model] = fit(sizes, np.array(complete))
    return found


def outcome(results: Sequence[Result]) -> Outcome:
    """Errors by size, fitted slopes, and what they say of Allegro beside the others."""
    parts, rows = [], []
    series = [(task, budget) for budget in distinct(results, "budget") for task in distinct(results, "task")]
    for task, budget in series:
        mine = select(results, task=task, budget=budget)
        for split in splits_in(mine):
            title = ", ".join(filter(None, (task, split, budget)))
            fitted = laws(mine, split)
            verdict = verdict_on(fitted)
            parts.append(f"## {title}: {heading(PRIMARY[task])}\n\n{size_table(mine, split, fitted)}")
            parts += [verdict] if verdict else []
            rows += [{"task": task, "budget": budget, "split": split, **row} for row in _numbers(mine, split, fitted)]
    parts.append(
        "Mean ± standard deviation over seeds. Slopes are those of log(error) against log(structures), by least "
        "squares, ± the standard error from seeds (bootstrap) or from the scatter about the line, whichever is larger. "
        "Subsets are nested, and hold every element of the training data."
    )
    return Outcome("\n\n".join(parts), rows, figure(results), rows)


def size_table(results: Sequence[Result], split: str, fitted: Mapping[str, PowerLaw]) -> str:
    """A row for each model, a column for each size, and the slope."""
    metric, sizes = PRIMARY[results[0]["task"]], sorted(distinct(results, "n_train"))
    lines = []
    for model in distinct(results, "model"):
        mine = select(results, model=model)
        cells = [spread(select(mine, n_train=n), split, MODEL_ROW, metric).text(METRICS[metric]) for n in sizes]
        law = fitted.get(model)
        lines.append([model, *cells, "–" if law is None else f"{law.slope:.3f} ± {law.slope_std:.3f}"])
    for beginning, title in TRIVIAL.items():
        guesses = [_guess(results, n, metric).trivial(results, split, beginning).text(METRICS[metric]) for n in sizes]
        lines.append([f"*{title}*", *guesses, ""])
    return table(["", *(f"{n:,}" for n in sizes), "slope"], lines)


def _guess(results: Sequence[Result], n: int, metric: str) -> Column:
    return Column("", results[0]["task"], metric, n_train=n, head=results[0]["head"])


def verdict_on(fitted: Mapping[str, PowerLaw]) -> str:
    """Whether Allegro's slope is steeper, or its line lower, than each other model's; empty without both."""
    ours = [name for name in fitted if name.startswith("allegro")]
    others = [name for name in fitted if name not in ours]
    if not ours or not others:
        return ""
    best = min(ours, key=lambda name: fitted[name].error_mid)
    words = [f"`{best}`, the best Allegro in the middle of the sizes, beside the others:"]
    for what, name in (("slope", "slope"), ("line", "error in the middle of the sizes")):
        verdicts: dict[str, list[str]] = {}
        for other in others:
            verdict, numbers = _against(fitted[best], fitted[other], what)
            verdicts.setdefault(verdict, []).append(f"{other} ({numbers})")
        words += [f"- its {name} is {verdict} {listed(names)}" for verdict, names in verdicts.items()]
    return words[0] + "\n\n" + "\n".join(words[1:])


def _against(ours: PowerLaw, other: PowerLaw, what: str) -> tuple[str, str]:
    """In words how one law stands to another, and the difference of slopes or the ratio of errors, with its spread."""
    if what == "slope":
        difference, spread_ = ours.slope - other.slope, float(np.hypot(ours.slope_std, other.slope_std))
        numbers, words = f"{difference:+.3f} ± {spread_:.3f}", ("steeper than that of", "flatter than that of")
    else:
        logs = np.log(ours.error_mid / other.error_mid)
        difference = float(logs)
        spread_ = float(np.hypot(ours.log_mid_std, other.log_mid_std))
        ratio = ours.error_mid / other.error_mid
        numbers, words = f"{ratio:.2f} times, ± {ratio * spread_:.2f}", ("lower than that of", "higher than that of")
    if spread_ == 0:
        return "of unknown spread against that of", numbers
    if abs(difference) < TOLD_APART * spread_:
        return "not told apart from that of", numbers
    return (words[0] if difference < 0 else words[1]), numbers


def _numbers(results: Sequence[Result], split: str, fitted: Mapping[str, PowerLaw]) -> list[dict[str, Any]]:
    """The points and laws of a table, for files."""
    found = []
    metric = PRIMARY[results[0]["task"]]
    for model in distinct(results, "model"):
        law = fitted.get(model)
        more = {"slope": None, "slope_std": None} if law is None else {"slope": law.slope, "slope_std": law.slope_std}
        for n in sorted(distinct(results, "n_train")):
            point = spread(select(results, model=model, n_train=n), split, MODEL_ROW, metric)
            std = point.std if len(point.values) > 1 else None
            if point.values:
                found.append({"model": model, "n_train": n, metric: point.mean, "std": std, **more})
    return found


def figure(results: Sequence[Result]) -> Figure:
    """Learning curves on val_id in log-log, a panel a task and budget."""
    series = [(task, budget) for budget in distinct(results, "budget") for task in distinct(results, "task")]
    drawn = Figure(figsize=(5.0 * max(1, len(series)), 4.0), layout="constrained")
    panels = drawn.subplots(1, max(1, len(series)), squeeze=False).ravel()
    for axes, (task, budget) in zip(panels, series, strict=False):
        _draw(axes, select(results, task=task, budget=budget))
        axes.set_title(" ".join(filter(None, (task, budget))), fontsize=10)
    return drawn


def _draw(axes: Axes, results: Sequence[Result]) -> None:
    """The curves of one task, with the fitted lines."""
    metric, fitted = PRIMARY[results[0]["task"]], laws(results, "val_id")
    for k, model in enumerate(distinct(results, "model")):
        mine = select(results, model=model)
        sizes = np.array(sorted(distinct(mine, "n_train")))
        points = [spread(select(mine, n_train=n), "val_id", MODEL_ROW, metric) for n in sizes]
        color = COLORS[k % len(COLORS)]
        bars = [p.std if len(p.values) > 1 else 0.0 for p in points]
        axes.errorbar(sizes, [p.mean for p in points], yerr=bars, fmt="o", color=color, capsize=2, label=model)
        if model in fitted:
            middle = np.exp(np.log(sizes).mean())
            axes.plot(
                sizes, fitted[model].error_mid * (sizes / middle) ** fitted[model].slope, color=color, linewidth=1
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    shown = sorted(distinct(results, "n_train"))
    axes.set_xticks(shown, [f"{n:,}" for n in shown], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training structures")
    axes.set_ylabel(f"val_id {heading(metric)}")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=7)


DATA_EFFICIENCY = Study("data-efficiency", cells, lambda plan, data, options: outcome(finished(plan.results())))
