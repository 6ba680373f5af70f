"""`equicat study l-max`: what higher degrees gain, and what they cost, at equal epochs and in equal time."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from matplotlib.figure import Figure

from equicat.options.values import Length, Positive, PositiveNumber
from equicat.studies.cells import Cell, Result, finished
from equicat.studies.data_efficiency import PRIMARY
from equicat.studies.models import MODELS, Grid, Options
from equicat.studies.outcome import COLORS, Outcome, distinct, heading, select, splits_in, spread, table
from equicat.studies.run_cell import MODEL_ROW
from equicat.studies.study import Study
from equicat.studies.study_data import StudyData
from equicat.tasks.tables import METRICS


@dataclass(frozen=True)
class LMaxOptions(Options):
    """Options of `equicat study l-max`."""

    models: Annotated[tuple[str, ...], Length(1)] = ("allegro-l1", "allegro-l2", "allegro-l3")
    """Models to compare."""
    epochs: Positive | None = 10
    """Equal epochs: train for so many; null leaves this comparison out."""
    minutes: PositiveNumber | None = 2.0
    """Equal time: train for so many minutes; null leaves this comparison out."""
    tasks: tuple[Literal["s2ef", "is2re", "is2rs"], ...] = ()
    """Tasks; those that the data set has data for if none are given."""


def cells(data: StudyData, options: LMaxOptions) -> list[Cell]:
    """All trainings, seed by seed."""
    tasks = options.tasks or data.tasks
    data.check_tasks(tasks)
    grid = Grid(data, options)
    return [
        grid.cell(model, task, len(data.train_set(task)), seed, budget=budget, head=head)
        for seed in range(options.seeds)
        for budget in options.budgets
        for task in tasks
        for model in options.models
        if grid.offers(model, task)
        for head in (MODELS[model].heads[:1] if task == "is2rs" else ("",))
    ]


def outcome(results: Sequence[Result]) -> Outcome:
    """A table for each task and budget, and what each degree gains and costs beside the one before."""
    parts, rows = [], []
    for task in distinct(results, "task"):
        for budget in distinct(results, "budget"):
            mine = select(results, task=task, budget=budget)
            if not mine:
                continue
            found = [_row(select(mine, model=model), task) for model in distinct(mine, "model")]
            rows += found
            title = ", ".join(filter(None, (task, budget)))
            parts.append(f"## {title}: {heading(PRIMARY[task])}\n\n{cost_table(mine, task)}")
            parts.append("\n".join(_step(before, after) for before, after in pairwise(found)))
    parts.append("Mean ± standard deviation over seeds; times are those of this machine, validation included.")
    return Outcome("\n\n".join(filter(None, parts)), rows, figure(rows), rows)


def cost_table(results: Sequence[Result], task: str) -> str:
    """Errors on all splits, with size and time."""
    metric, splits, lines = METRICS[PRIMARY[task]], splits_in(results), []
    for model in distinct(results, "model"):
        mine = select(results, model=model)
        row = _row(mine, task)
        errors = [spread(mine, split, MODEL_ROW, metric.name).text(metric) for split in splits]
        cost = [f"{row['n_parameters']:,}", f"{row['ms_a_step']:.1f}", f"{row['seconds']:.0f}", f"{row['epochs']:.1f}"]
        lines.append([model, *errors, *cost])
    return table(["", *splits, "parameters", "ms a step", "s", "epochs"], lines)


def _row(results: Sequence[Result], task: str) -> dict[str, Any]:
    """One model with one budget: error on val_id and cost."""
    error = spread(results, "val_id", MODEL_ROW, PRIMARY[task])
    n = len(results)
    return {
        "task": task,
        "budget": results[0]["budget"],
        "model": results[0]["model"],
        "metric": PRIMARY[task],
        "error": error.mean,
        "std": error.std if n > 1 else None,
        "n_seeds": n,
        "n_parameters": results[0]["n_parameters"],
        "seconds": sum(r["seconds"] for r in results) / n,
        "epochs": sum(r["epochs"] for r in results) / n,
        "ms_a_step": 1000 * sum(r["seconds"] for r in results) / sum(r["steps"] for r in results),
    }


def _step(before: dict[str, Any], after: dict[str, Any]) -> str:
    """One sentence: the change of the error and of the cost from one model to the next."""
    change = after["error"] / before["error"] - 1
    sentence = (
        f"- From {before['model']} to {after['model']} the error on val_id "
        f"{'falls' if change < 0 else 'rises'} by {abs(change):.0%} "
        f"({METRICS[after['metric']].text(before['error'])} to {METRICS[after['metric']].text(after['error'])}); "
        f"a step takes {after['ms_a_step'] / before['ms_a_step']:.1f} times as long"
    )
    if before["std"] is None or after["std"] is None:
        return f"{sentence}. With one seed there is no spread to hold it against."
    error = (before["std"] ** 2 / before["n_seeds"] + after["std"] ** 2 / after["n_seeds"]) ** 0.5
    difference = abs(after["error"] - before["error"]) / max(error, 1e-12)
    return f"{sentence}. The difference is {difference:.1f} standard errors."


def figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Error on val_id against training time, a panel a task, a line a budget."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    drawn = Figure(figsize=(4.6 * max(1, len(tasks)), 3.6), layout="constrained")
    panels = drawn.subplots(1, max(1, len(tasks)), squeeze=False).ravel()
    for axes, task in zip(panels, tasks, strict=False):
        budgets = list(dict.fromkeys(row["budget"] for row in rows if row["task"] == task))
        for k, budget in enumerate(budgets):
            mine = [row for row in rows if (row["task"], row["budget"]) == (task, budget)]
            x, y = [row["seconds"] for row in mine], [row["error"] for row in mine]
            bars = [row["std"] or 0.0 for row in mine]
            axes.errorbar(x, y, yerr=bars, marker="o", capsize=3, color=COLORS[k], label=budget or "as the presets say")
            for row in mine:
                axes.annotate(
                    row["model"], (row["seconds"], row["error"]), fontsize=7, xytext=(4, 4), textcoords="offset points"
                )
        axes.set_xlabel("training time [s]")
        axes.set_ylabel(f"val_id {heading(PRIMARY[task])}")
        axes.set_title(task, fontsize=10)
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize=8)
    return drawn


L_MAX = Study("l-max", cells, lambda plan, data, options: outcome(finished(plan.results())))
