"""`equicat study curves`: training and validation curves of any runs, as figures 2 and 3 of the paper show them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from equicat.errors import InputError
from equicat.files import replace_json, replacing_file, visible, writing_to
from equicat.run_directory import METRICS as METRICS_FILE
from equicat.run_directory import environment, metric_columns, read_config, saved_epoch
from equicat.studies.cells import CELLS, PLAN
from equicat.studies.data_efficiency import PRIMARY
from equicat.studies.outcome import COLORS, Outcome, heading, table, write_figure
from equicat.studies.run_cell import RUN
from equicat.tasks.tables import METRICS


@dataclass(frozen=True, eq=False)
class Curve:
    """The epochs of one run."""

    name: str
    task: str
    columns: Mapping[str, Float[ndarray, "n_epochs"]]
    """Columns of its ``metrics.csv``; NaN where an epoch was not validated."""

    @classmethod
    def read(cls, run: Path, name: str) -> "Curve":
        """The curve of a run directory.

        Raises:
            InputError: if it has no ``metrics.csv`` with finished epochs.
        """
        try:
            columns = metric_columns(run / METRICS_FILE)
        except (OSError, ValueError) as error:
            raise InputError(f"{run}: no curve to draw: {METRICS_FILE} cannot be read ({error})") from error
        return cls(name, str(read_config(run).get("task", "s2ef")), columns)

    def series(self, stage: str) -> Float[ndarray, "n_epochs"]:
        """The task's metric while training (``train``) or in validation (``val``); NaN where there is none."""
        nothing = np.full(len(self.columns["epoch"]), np.nan)
        return self.columns.get(f"{stage}_{PRIMARY[self.task]}", nothing)

    def row(self) -> dict[str, Any]:
        """Numbers of the epoch whose weights were saved, or of the last one if none was validated."""
        epoch = saved_epoch(self.columns)
        at = len(self.columns["epoch"]) - 1 if epoch is None else epoch
        return {
            "run": self.name,
            "task": self.task,
            "metric": PRIMARY[self.task],
            "epochs": len(self.columns["epoch"]),
            "minutes": float(np.nanmax(self.columns["time_s"])) / 60,
            "saved_epoch": at + 1,
            "train": float(self.series("train")[at]),
            "val": float(self.series("val")[at]),
        }


def find_runs(paths: Sequence[str]) -> dict[Path, str]:
    """Run directories with a name for each; a study's folder stands for all its cells.

    Raises:
        InputError: if there is none at a path.
    """
    found: dict[Path, str] = {}
    for path in map(Path, paths):
        if (path / PLAN).is_file():
            cells = [cell for cell in visible(path / CELLS) if (cell / RUN / METRICS_FILE).is_file()]
            found |= {cell / RUN: cell.name.rpartition("-")[0] for cell in cells}
        else:
            found[path] = path.name
    if not found:
        raise InputError(f"{', '.join(paths)}: no run there")
    return found


def curves(paths: Sequence[str], out: Path, command: str = "") -> str:
    """Draw the curves of runs; write ``table.md``, ``results.json`` and the figure; return what there is to say.

    Args:
        paths: run directories, or folders of studies.
        out: folder for the files.
        command: that does it, for the files.

    Raises:
        InputError: if a path holds no run.
    """
    found = [Curve.read(run, name) for run, name in find_runs(paths).items()]
    result = outcome(found)
    here = environment()
    about = {"study": "curves", "command": command, "runs": list(paths), "environment": here}
    version = f"equicat {here['versions']['equicat']}, commit {here['commit']}"
    page = f"# Study `curves`\n\n- Command: `{command}`\n- {version}\n\n{result.page}\n"
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        with replacing_file(out / "table.md") as temporary:
            temporary.write_text(page, encoding="utf-8")
        replace_json(out / "results.json", {**about, "summary": result.summary})
        write_figure(out, result)
    return f"table: {out / 'table.md'}"


def outcome(found: Sequence[Curve]) -> Outcome:
    """A table of where each run ended, and all curves by epoch and by minute."""
    summary = [curve.row() for curve in found]
    parts = []
    for task in dict.fromkeys(curve.task for curve in found):
        lines = [
            [
                row["run"],
                f"{row['epochs']}",
                f"{row['minutes']:.1f}",
                f"{row['saved_epoch']}",
                METRICS[row["metric"]].text(row["train"]),
                METRICS[row["metric"]].text(row["val"]),
                f"{row['val'] / row['train']:.2f}",
            ]
            for row in summary
            if row["task"] == task
        ]
        header = ["", "epochs", "minutes", "saved after", "training", "validation", "ratio"]
        parts.append(f"## {task}: {heading(PRIMARY[task])}\n\n{table(header, lines)}")
    parts.append("Training errors are means over an epoch, during which the weights change.")
    rows = [row for curve in found for row in _points(curve)]
    return Outcome("\n\n".join(parts), summary, figure(found), rows)


def _points(curve: Curve) -> list[dict[str, Any]]:
    """Every epoch of a curve, for the figure's file."""
    columns = zip(
        curve.columns["epoch"], curve.columns["time_s"], curve.series("train"), curve.series("val"), strict=True
    )
    return [
        {
            "run": curve.name,
            "task": curve.task,
            "metric": PRIMARY[curve.task],
            "epoch": int(epoch) + 1,
            "minutes": seconds / 60,
            "train": train,
            "val": "" if np.isnan(val) else val,
        }
        for epoch, seconds, train, val in columns
    ]


def figure(found: Sequence[Curve]) -> Figure:
    """For each task a panel by epoch and one by minute; validation solid, training dashed."""
    tasks = list(dict.fromkeys(curve.task for curve in found))
    drawn = Figure(figsize=(10.0, 3.8 * len(tasks)), layout="constrained")
    for panels, task in zip(drawn.subplots(len(tasks), 2, squeeze=False), tasks, strict=True):
        mine = [curve for curve in found if curve.task == task]
        for axes, x_title in zip(panels, ("epoch", "minutes"), strict=True):
            for k, curve in enumerate(mine):
                _draw(axes, curve, x_title, COLORS[k % len(COLORS)])
            axes.set_yscale("log")
            axes.set_xlabel(x_title)
            axes.set_ylabel(heading(PRIMARY[task]))
            axes.set_title(task, fontsize=10)
            axes.grid(True, alpha=0.3)
        panels[1].legend(fontsize=6)
    return drawn


def _draw(axes: Axes, curve: Curve, x_title: str, color: str) -> None:
    x = curve.columns["epoch"] + 1 if x_title == "epoch" else curve.columns["time_s"] / 60
    axes.plot(x, curve.series("train"), color=color, linestyle="--", linewidth=1)
    val = curve.series("val")
    known = np.isfinite(val)
    marker = "o" if known.sum() < 3 else None
    axes.plot(x[known], val[known], color=color, marker=marker, label=curve.name)
