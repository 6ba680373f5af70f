"""One cell of a study: train as `equicat train` does, evaluate on every split, relax if that is asked for."""

import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equicat.apply.evaluate import evaluate
from equicat.apply.evaluate_relaxations import evaluate_relaxations
from equicat.data.training_data import data_options
from equicat.errors import OutsideTraining
from equicat.models import saved
from equicat.relaxation.config import RelaxConfig
from equicat.run_directory import LAST, METRICS, environment, has_checkpoint, metric_columns, read_checkpoint
from equicat.studies.cells import Cell, Result
from equicat.training.config import TrainConfig, from_mapping
from equicat.training.train import train

RUN, EVALUATION = "run", "evaluation"
MODEL_ROW, RELAXED_ROW = "model", "model, relaxed"
"""Titles of the rows of metrics that are the model's; all others are trivial baselines."""


def configuration(cell: Cell, data: Path, run: Path, resume: bool = False) -> TrainConfig:
    """The training of a cell, checked.

    Args:
        cell: with its options.
        data: data set directory.
        run: run directory.
        resume: go on with what is there.

    Raises:
        InputError: for an option that does not exist, or cannot have its value.
    """
    values = dict(cell.config)
    drawn = {"n_train": cell.n_train, **data_options(str(data))}
    values["data"] = {**drawn, **(values.get("data") or {})}
    values["run"] = {**values["run"], "out": str(run), "resume": resume, "progress": False, "devices": 1}
    return from_mapping(values, cell.model)


def run_cell(cell: Cell, data: Path, folder: Path) -> Result:
    """Train, evaluate and relax; what was trained before a kill is not trained again.

    Args:
        cell: what to do.
        data: data set directory.
        folder: of the cell; gets ``run`` and ``evaluation``.

    Returns:
        ``n_parameters``, ``epochs``, ``steps``, ``seconds`` (of training, all sessions), ``evaluation_seconds``,
        ``splits`` (metrics by split and row), ``skipped``, ``relaxations`` (their counts by split) and ``environment``.

    Raises:
        InputError: if the model cannot be trained on, or applied to the data.
    """
    run = folder / RUN
    resume = has_checkpoint(run)
    if not resume and run.is_dir():
        shutil.rmtree(run)  # killed within the first epoch, so there is nothing to go on from
    train(configuration(cell, data, run, resume))
    started = time.monotonic()
    evaluation = evaluate(run, data, out=folder / EVALUATION, progress=False, outside_training="ignore")
    splits = {name: _rows(split["rows"], MODEL_ROW) for name, split in evaluation["splits"].items()}
    relaxations = {}
    if cell.relax is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutsideTraining)  # the splits are made to be outside
            relaxed = evaluate_relaxations(run, data, RelaxConfig(**cell.relax), device="auto", progress=False)
        for name, split in relaxed["splits"].items():
            splits.setdefault(name, {}).update(_relaxed(_rows(split["rows"], RELAXED_ROW)))
            relaxations[name] = split["relaxations"]
    last = read_checkpoint(run / LAST)
    model = saved.load(run)
    return {
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "epochs": int(last["epoch"]) + 1,
        "steps": int(last["global_step"]),
        "seconds": float(metric_columns(run / METRICS)["time_s"].max()),
        "evaluation_seconds": round(time.monotonic() - started, 2),
        "splits": splits,
        "skipped": evaluation["skipped"],
        "relaxations": relaxations,
        "environment": environment(),
    }


def _rows(rows: Mapping[str, dict[str, float]], title: str) -> dict[str, dict[str, float]]:
    """The rows of a split, the first of them, which is the model's, under a title that all models share."""
    return {title if k == 0 else name: row for k, (name, row) in enumerate(rows.items())}


def _relaxed(rows: Mapping[str, dict[str, float]]) -> dict[str, Any]:
    """The rows of a relaxation under titles that tell them from those of S2EF."""
    return {title if title == RELAXED_ROW else f"{title}, relaxed": row for title, row in rows.items()}
