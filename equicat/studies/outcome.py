"""The files that a study writes: a Markdown page, ``results.json``, a figure and its numbers; parts that they share."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from equicat.files import replace_json, replacing_file, writing_to
from equicat.run_directory import environment
from equicat.studies.cells import Plan, Result, finished
from equicat.tasks.tables import METRICS, Metric

COLORS = (
    "#0b6e99", "#d9730d", "#6940a5", "#0f7b6c", "#ad1a72", "#64473a", "#9b9a97", "#e03e3e", "#dfab01", "#2e4057"
)  # fmt: skip
DASH = "–"


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean; NaN of nothing."""
        return float(np.mean(self.values)) if self.values else math.nan

    @property
    def std(self) -> float:
        """Standard deviation with n − 1 in the denominator; NaN of fewer than two values."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan

    def text(self, metric: Metric) -> str:
        """``0.034 ± 0.002`` as the metric is shown, without ± for one seed; a dash where there is nothing."""
        if not self.values:
            return DASH
        return metric.text(self.mean) + (f" ± {metric.text(self.std)}" if len(self.values) > 1 else "")


@dataclass(frozen=True, eq=False)
class Outcome:
    """The content of a study's files."""

    page: str
    """Markdown: tables, and sentences whose numbers stand in them."""
    summary: Any
    """The numbers of the tables, for ``results.json``."""
    figure: Figure
    rows: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """The numbers of the figure, for its CSV file."""


def select(results: Iterable[Result], **labels: Any) -> list[Result]:
    """The results whose labels have these values."""
    return [result for result in results if all(result[name] == value for name, value in labels.items())]


def spread(results: Iterable[Result], split: str, row: str, metric: str) -> Spread:
    """A metric over results, those left out that lack it."""
    found = [result["splits"].get(split, {}).get(row, {}).get(metric) for result in results]
    return Spread(tuple(value for value in found if value is not None))


def distinct(results: Iterable[Result], label: str) -> list[Any]:
    """The values of a label, in the order in which they come."""
    return list(dict.fromkeys(result[label] for result in results))


def splits_in(results: Iterable[Result]) -> list[str]:
    """The splits that models were judged on, ``val_id`` first."""
    names = dict.fromkeys(split for result in results for split in result["splits"])
    return sorted(names, key=lambda name: (name != "val_id", list(names).index(name)))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def heading(metric: str) -> str:
    """Title and unit of a metric."""
    return METRICS[metric].heading


def listed(names: Sequence[Any]) -> str:
    """``a, b and c``."""
    words = [str(name) for name in names]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


# ---- files ---------------------------------------------------------------------------------------------------------


def publish(plan: Plan, outcome: Outcome, data: Mapping[str, Any], command: str) -> Path:
    """Write ``table.md``, ``results.json``, ``figure.png``, ``figure.svg`` and ``figure.csv``.

    Args:
        plan: of the study.
        outcome: what to write.
        data: summary of the data set.
        command: that made it.

    Returns:
        The path of ``table.md``.
    """
    results = plan.results()
    done, here = finished(results), environment()
    about = {
        "study": plan.study,
        "command": command,
        "data": {"path": plan.data, **data},
        "n_cells": len(plan.cells),
        "n_finished": len(results),
        "training_seconds": round(sum(result["seconds"] for result in done), 1),
        "evaluation_seconds": round(sum(result["evaluation_seconds"] for result in done), 1),
        "environment": here,
        "n_parameters": {model: _parameters(select(done, model=model)) for model in distinct(done, "model")},
        "commits": distinct([result["environment"] for result in done], "commit"),
    }
    page = "\n\n".join([f"# Study `{plan.study}`", _about(about), outcome.page, *_failures(results)]) + "\n"
    with writing_to(plan.out):
        with replacing_file(plan.out / "table.md") as temporary:
            temporary.write_text(page, encoding="utf-8")
        replace_json(plan.out / "results.json", {**about, "summary": outcome.summary, "cells": results})
        write_figure(plan.out, outcome)
    return plan.out / "table.md"


def write_figure(out: Path, outcome: Outcome) -> None:
    """Write ``figure.png``, ``figure.svg``, and the numbers in it as ``figure.csv``."""
    for suffix in ("png", "svg"):
        with replacing_file(out / f"figure.{suffix}") as temporary:
            outcome.figure.savefig(temporary, dpi=150)
    with replacing_file(out / "figure.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        names = list(dict.fromkeys(name for row in outcome.rows for name in row))
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(outcome.rows)


def _about(about: Mapping[str, Any]) -> str:
    """Where the numbers come from, as a list."""
    data, here = about["data"], about["environment"]
    sizes = [
        f"{task}: {', '.join(f'{name} {n:,}' for name, n in splits.items())}"
        for task, splits in data["n_structures"].items()
    ]
    parameters = [f"{model} {' to '.join(f'{n:,}' for n in ends)}" for model, ends in about["n_parameters"].items()]
    n_missing = about["n_cells"] - about["n_finished"]
    lines = [
        f"Command: `{about['command']}`",
        f"Data: {data['path']}; {data['description'] or 'no description'}",
        f"Structures: {'; '.join(sizes)}. Energies: {data['energy_reference']}. Fixed atoms are not counted.",
        f"Parameters: {', '.join(parameters)}",
        f"Cells: {about['n_finished']} of {about['n_cells']} done"
        + (f"; **{n_missing} missing: run the command again**" if n_missing else ""),
        f"Time: {about['training_seconds'] / 60:.1f} min of training, {about['evaluation_seconds'] / 60:.1f} min of "
        f"evaluation, all processes together; {here['machine']['threads']} threads a process",
        f"Machine: {here['machine']['system']}, {listed(here['devices']) or 'no GPU'}; "
        f"equicat {here['versions']['equicat']}, PyTorch {here['versions']['torch']}; "
        f"commit {listed(about['commits']) or here['commit']}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _parameters(results: Iterable[Result]) -> list[int]:
    """The number of parameters of a model; the least and the most if tasks and cutoffs change it."""
    numbers = {result["n_parameters"] for result in results}
    return sorted({min(numbers), max(numbers)})


def _failures(results: Iterable[Result]) -> list[str]:
    """The cells that could not be trained, with the reason; nothing if there are none."""
    failed = [r for r in results if "failed" in r]
    if not failed:
        return []
    lines = [f"- {r['model']}, {r['task']}, {r['n_train']} structures, seed {r['seed']}: {r['failed']}" for r in failed]
    return ["## Failed\n\n" + "\n".join(lines)]
