"""`equicat study table1`: every model on every task and split, as Table 1 of the paper on Allegro for catalysis."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from matplotlib.figure import Figure

from equicat.models.heads import DisplacementHead
from equicat.relaxation.config import RelaxConfig
from equicat.studies.cells import Cell, Result, finished
from equicat.studies.columns import TRIVIAL, Column, columns
from equicat.studies.models import MODELS, Grid, Options
from equicat.studies.outcome import COLORS, DASH, Outcome, Spread, distinct, select, splits_in, table
from equicat.studies.published import compared, figure_of
from equicat.studies.study import Study
from equicat.studies.study_data import StudyData
from equicat.tasks.tables import METRICS

THIRDS = (0.25, 0.5, 1.0)
"""Shares of the training systems that IS2RE is trained on, unless sizes are given."""


@dataclass(frozen=True)
class Table1Options(Options):
    """Options of `equicat study table1`."""

    tasks: tuple[Literal["s2ef", "is2re", "is2rs"], ...] = ()
    """Tasks; those that the data set has data for if none are given."""
    sizes: tuple[str, ...] = ()
    """Nested training sizes of is2re: numbers of systems, 10k, 100k or all. Default: a quarter, a half and all."""
    heads: tuple[DisplacementHead, ...] = ("gradient", "magnitude-direction", "vector", "pair", "sum")
    """Displacement heads of is2rs, each for the models that can feed it."""
    relax: bool = True
    """Judge models of s2ef by the relaxed energies and structures that they relax to, too."""
    relaxation: RelaxConfig = field(default_factory=RelaxConfig)
    """How to relax."""


def cells(data: StudyData, options: Table1Options) -> list[Cell]:
    """All trainings, seed by seed, so that a first table is there early."""
    tasks = options.tasks or data.tasks
    data.check_tasks(tasks)
    grid = Grid(data, options)
    wanted = [
        (model, budget, seed) for seed in range(options.seeds) for budget in options.budgets for model in options.models
    ]
    return [cell for model, budget, seed in wanted for cell in _cells_of(grid, options, tasks, model, seed, budget)]


def _cells_of(
    grid: Grid, options: Table1Options, tasks: Sequence[str], model: str, seed: int, budget: str
) -> Iterator[Cell]:
    """The trainings of one model with one seed and budget."""
    data = grid.data
    for task in tasks:
        if not grid.offers(model, task):
            continue
        n = len(data.train_set(task))
        if task == "s2ef":
            relax = asdict(options.relaxation) if options.relax and "is2rs" in data.tasks else None
            yield grid.cell(model, task, n, seed, budget=budget, relax=relax)
        elif task == "is2re":
            sizes = data.sizes(task, options.sizes, THIRDS)
            for size in sizes:
                yield grid.cell(model, task, size, seed, budget=budget, smallest=sizes[0])
        else:
            for head in options.heads:
                if head in MODELS[model].heads:
                    yield grid.cell(model, task, n, seed, budget=budget, head=head)


def outcome(results: Sequence[Result], data: StudyData, options: Table1Options) -> Outcome:
    """The tables of all splits and budgets, and the published figures beside them."""
    parts, rows = [], []
    for budget in distinct(results, "budget"):
        mine = select(results, budget=budget)
        parts.append(f"## {_budget_title(budget, options)}")
        for split in splits_in(mine):
            parts.append(f"### {split}\n\n{split_table(mine, split)}")
            rows += [{"budget": budget, **row} for row in _numbers(mine, split)]
        parts.append(f"### Cost\n\n{cost_table(mine)}")
        comparison = compared(mine, columns(mine), data, options.presets)
        parts.append(f"### Published OC20 figures (val_id), and what differs\n\n{comparison}")
    parts.append(
        "Mean ± standard deviation over seeds. `val_id` also chose the epoch that is saved, for all models alike. "
        "Figures in brackets were published for OC20, whose data are others unless the last table says so: no two "
        "numbers of one cell are to be compared. Position errors are over free atoms."
    )
    return Outcome("\n\n".join(parts), rows, figure(rows), rows)


def _budget_title(budget: str, options: Options) -> str:
    if not budget:
        return f"As long as the presets `{options.presets}` say"
    equal = "time" if " min" in budget else "steps" if " steps" in budget else "epochs"
    return f"Equal {equal}: {budget}"


def split_table(results: Sequence[Result], split: str) -> str:
    """One split: a row for each model, then those of what needs no model; published figures in brackets on val_id."""
    shown = [c for c in columns(results) if any(split in r["splits"] for r in c.of(results))]
    lines = []
    for model in distinct(results, "model"):
        mine = select(results, model=model)
        row = [model]
        for column in shown:
            published = figure_of(model, column, results) if split == "val_id" else None
            text = column.spread(mine, split).text(METRICS[column.metric])
            row.append(text if published is None or text == DASH else f"{text} ({published.text})")
        lines.append(row)
    for beginning, title in TRIVIAL.items():
        found = [c.trivial(results, split, beginning).text(METRICS[c.metric]) for c in shown]
        lines.append([f"*{title}*", *found])
    return table(["", *(column.title for column in shown)], lines)


def cost_table(results: Sequence[Result]) -> str:
    """Size and training time of each model, by task."""
    lines = []
    for task in distinct(results, "task"):
        for model in distinct(select(results, task=task), "model"):
            mine = select(results, task=task, model=model)
            largest = select(mine, n_train=max(r["n_train"] for r in mine))
            steps, seconds = sum(r["steps"] for r in largest), sum(r["seconds"] for r in largest)
            epochs = sum(r["epochs"] for r in largest) / len(largest)
            numbers = [f"{largest[0]['n_parameters']:,}", f"{largest[0]['n_train']:,}", f"{epochs:.1f}"]
            numbers += [
                f"{1000 * seconds / steps:.1f}",
                f"{seconds / len(largest):.0f}",
                str(len(distinct(mine, "seed"))),
            ]
            lines.append([f"{model}, {task}", *numbers])
    return table(["", "parameters", "structures", "epochs", "ms a step", "s a training", "seeds"], lines)


def _numbers(results: Sequence[Result], split: str) -> Iterator[dict[str, Any]]:
    """Every mean and spread of a split's table, with the guesses that need no model."""
    for column in columns(results):
        for model in distinct(results, "model"):
            found = column.spread(select(results, model=model), split)
            if found.values:
                yield _number(split, column, model, found)
        for beginning, title in TRIVIAL.items():
            if (found := column.trivial(results, split, beginning)).values:
                yield _number(split, column, title, found)


def _number(split: str, column: Column, row: str, found: Spread) -> dict[str, Any]:
    std = found.std if len(found.values) > 1 else None
    return {
        "split": split,
        "column": column.title,
        "metric": column.metric,
        "row": row,
        "mean": found.mean,
        "std": std,
        "n_seeds": len(found.values),
    }


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel for each column of val_id: models as points with their spread; a line for guessing."""
    shown = [row for row in rows if row["split"] == "val_id" and row["metric"] != "energy_forces_within_threshold"]
    titles = list(dict.fromkeys((row["budget"], row["column"]) for row in shown))
    names = [name for name in dict.fromkeys(row["row"] for row in shown) if name not in TRIVIAL.values()]
    n_columns = min(3, len(titles)) or 1
    n_rows = -(-len(titles) // n_columns) or 1
    drawn = Figure(figsize=(4.2 * n_columns, 3.0 * n_rows), layout="constrained")
    panels = drawn.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes, (budget, column) in zip(panels, titles, strict=False):
        here = [row for row in shown if (row["budget"], row["column"]) == (budget, column)]
        models = [row for row in here if row["row"] not in TRIVIAL.values()]
        for k, row in enumerate(models):
            axes.errorbar(
                row["mean"],
                k,
                xerr=row["std"] or 0.0,
                fmt="o",
                capsize=3,
                color=COLORS[names.index(row["row"]) % len(COLORS)],
            )
        guesses = [row["mean"] for row in here if row["row"] in TRIVIAL.values()]
        if guesses:
            axes.axvline(min(guesses), linestyle="--", color="grey", linewidth=1)
        axes.set_yticks(range(len(models)), [row["row"] for row in models], fontsize=8)
        axes.invert_yaxis()
        axes.set_title(" ".join(filter(None, (column, budget))), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(True, axis="x", alpha=0.3)
        axes.set_xlim(left=0)
    for axes in panels[len(titles) :]:
        axes.set_axis_off()
    drawn.supxlabel("val_id; dashed: the best guess that needs no model", fontsize=9)
    return drawn


TABLE1 = Study("table1", cells, lambda plan, data, options: outcome(finished(plan.results()), data, options))
