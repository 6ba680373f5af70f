"""The files of a run directory, read for a report: every part may be missing or damaged."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Shaped
from numpy import ndarray
from safetensors import SafetensorError, safe_open

from equicat.files import read_json, visible
from equicat.relaxation.summary import words_on
from equicat.run_directory import (
    CONFIG,
    DATA,
    DESCRIPTION,
    ENVIRONMENT,
    EVALUATION,
    EVALUATIONS,
    METRICS,
    OTHER_METRICS,
    PREDICTIONS,
    WEIGHTS,
    metric_columns,
    read_description,
)

BUFFERS = {"scale", "displacement_scale", "reference_energies"}
"""Tensors of ``model.safetensors`` that are no trained parameters."""

Predictions = dict[str, dict[str, Shaped[ndarray, "_ ..."]]]
"""Arrays by split: ``energy_true``, ``energy_pred`` [n], and ``forces_…`` or ``displacements_…`` [m, 3]."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: the run's own validation, or one on other data."""

    name: str
    """Empty for the validation, else the name of its folder."""
    summary: dict[str, Any] = field(default_factory=dict)
    """The content of its JSON file."""
    predictions: Predictions = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, dict[str, Any]]:
        """Results by split."""
        return self.summary.get("splits", {})


@dataclass(frozen=True)
class RunFiles:
    """The content of a run directory; a part that is missing or damaged is empty, with the reason in ``problems``."""

    name: str
    metrics: dict[str, ndarray] = field(default_factory=dict)
    """Columns of metrics.csv as float64, NaN where a cell is empty."""
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    n_parameters: int | None = None
    validation: Evaluation = field(default_factory=lambda: Evaluation(""))
    others: tuple[Evaluation, ...] = ()
    """Evaluations on other data, in the order of their names."""
    problems: dict[str, str] = field(default_factory=dict)
    """Reasons why files could not be used, by name."""

    @property
    def energy_reference(self) -> str:
        """The kind of energy that the run is about; empty if it does not say."""
        return str(self.validation.summary.get("energy_reference") or self.model.get("energy_reference") or "")


def read_run(run_dir: Path) -> RunFiles:
    """Everything that a report may show; damaged files become entries of ``problems``."""
    problems: dict[str, str] = {}

    def attempt(name: str, reader: Callable[[Path], Any], empty: Any) -> Any:
        path = run_dir / name
        if not path.exists():
            problems[name] = "missing"
            return empty
        try:
            return reader(path)
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, SafetensorError) as error:
            problems[name] = f"damaged ({error})"
            return empty

    def evaluation(name: str, file: str, folder: str) -> Evaluation:
        summary = attempt(file, _read_evaluation, {})
        found = [p.stem for p in visible(run_dir / folder, "*.npz")]
        order = [split for split in summary.get("splits", found) if split in found]
        read = {split: attempt(f"{folder}/{split}.npz", _read_predictions, {}) for split in order}
        return Evaluation(name, summary, {split: arrays for split, arrays in read.items() if arrays})

    def others() -> tuple[Evaluation, ...]:
        names = [path.parent.name for path in visible(run_dir / EVALUATIONS, f"*/{OTHER_METRICS}")]
        folders = {name: f"{EVALUATIONS}/{name}" for name in names}
        return tuple(evaluation(n, f"{f}/{OTHER_METRICS}", f"{f}/{PREDICTIONS}") for n, f in folders.items())

    config_text = attempt(CONFIG, lambda path: path.read_text(encoding="utf-8"), "")
    return RunFiles(
        name=run_dir.resolve().name,
        metrics=attempt(METRICS, metric_columns, {}),
        config=attempt(CONFIG, lambda path: _mapping(yaml.safe_load(config_text)), {}),
        config_text=config_text,
        environment=attempt(ENVIRONMENT, lambda path: _mapping(read_json(path)), {}),
        model=attempt(DESCRIPTION, lambda path: _mapping(read_description(path)), {}),
        data=attempt(DATA, _read_data, {}),
        n_parameters=attempt(WEIGHTS, _count_parameters, None),
        validation=evaluation("", EVALUATION, PREDICTIONS),
        others=others(),
        problems=problems,
    )


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, found {type(value).__name__}")
    return value


def _read_data(path: Path) -> dict[str, Any]:
    data = _mapping(read_json(path))
    for name in ("train", "val"):
        part = _mapping(data[name])
        if not all(isinstance(part[count], int) for count in ("n_structures", "n_systems")):
            raise ValueError(f"the size of {name} is not a number")
        _mapping(part["set_aside"])
    return data


def _read_evaluation(path: Path) -> dict[str, Any]:
    evaluation = _mapping(read_json(path))
    for split, result in _mapping(evaluation["splits"]).items():
        for title, row in _mapping(result["rows"]).items():
            numbers = [value for value in _mapping(row).values() if value is not None]
            if not all(isinstance(value, int | float) for value in numbers):
                raise ValueError(f"a metric of {title!r} on {split!r} is not a number")
        if "relaxations" in result:
            words_on(result["relaxations"])  # complains of what is not there
        if "n_structures" not in result and "n_systems" in result:  # of earlier versions, which counted structures
            result["n_structures"] = result.pop("n_systems")
    return evaluation


def _read_predictions(path: Path) -> dict[str, ndarray]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: np.asarray(file[name]) for name in file.files}
    quantities = [name.removesuffix("_true") for name in arrays if name.endswith("_true")]
    pairs = [(q, arrays[f"{q}_true"], arrays[f"{q}_pred"]) for q in quantities]
    for quantity, target, prediction in pairs:
        if target.shape != prediction.shape:
            raise ValueError(f"{quantity}: {prediction.shape} predictions for {target.shape} references")
    if not pairs:
        raise ValueError(f"no energy_true, forces_true or displacements_true in it; found {sorted(arrays)}")
    return arrays


def _count_parameters(path: Path) -> int:
    with safe_open(path, "numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys() if name not in BUFFERS)  # noqa: SIM118
