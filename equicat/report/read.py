"""What a run directory holds, read for a report: every part may be missing or damaged."""

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy import ndarray
from safetensors import SafetensorError, safe_open

from equicat.files import read_json
from equicat.run_directory import read_description

BUFFERS = {"scale", "displacement_scale", "reference_energies"}
"""Tensors of ``model.safetensors`` that are no trained parameters."""


@dataclass(frozen=True)
class RunFiles:
    """What a run directory holds; a part that is missing or damaged is empty, with the reason in ``problems``."""

    name: str
    metrics: dict[str, ndarray] = field(default_factory=dict)
    """Columns of metrics.csv as float64, NaN where a cell is empty."""
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    n_parameters: int | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    predictions: dict[str, dict[str, ndarray]] = field(default_factory=dict)
    """By split, arrays ``energy_true``, ``energy_pred`` [n], and the same of ``forces`` or ``displacements`` [m, 3]."""
    problems: dict[str, str] = field(default_factory=dict)
    """By file name, why it could not be used."""


def read_run(run_dir: Path) -> RunFiles:
    """Everything a report shows; damaged files become entries of ``problems``."""
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

    config_text = attempt("config.yaml", lambda path: path.read_text(encoding="utf-8"), "")
    folder = run_dir / "predictions"
    evaluation = attempt("evaluation.json", _read_evaluation, {})
    order = list(evaluation.get("splits", {}))
    found = sorted(folder.glob("*.npz")) if folder.is_dir() else []
    found.sort(key=lambda path: order.index(path.stem) if path.stem in order else len(order))
    predictions = {p.stem: attempt(f"predictions/{p.name}", _read_predictions, {}) for p in found}
    return RunFiles(
        name=run_dir.resolve().name,
        metrics=attempt("metrics.csv", _read_metrics, {}),
        config=attempt("config.yaml", lambda path: _mapping(yaml.safe_load(config_text)), {}),
        config_text=config_text,
        environment=attempt("environment.json", lambda path: _mapping(read_json(path)), {}),
        model=attempt("model.json", lambda path: _mapping(read_description(path)), {}),
        n_parameters=attempt("model.safetensors", _count_parameters, None),
        evaluation=evaluation,
        predictions={split: arrays for split, arrays in predictions.items() if arrays},
        problems=problems,
    )


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping, found {type(value).__name__}")
    return value


def _read_metrics(path: Path) -> dict[str, ndarray]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, restval=""))
    if not rows:
        raise ValueError("no rows yet")
    return {name: np.array([float(row[name] or math.nan) for row in rows]) for name in rows[0] if name is not None}


def _read_evaluation(path: Path) -> dict[str, Any]:
    evaluation = _mapping(read_json(path))
    for split, result in _mapping(evaluation["splits"]).items():
        for title, row in _mapping(result["rows"]).items():
            numbers = [value for value in _mapping(row).values() if value is not None]
            if not all(isinstance(value, int | float) for value in numbers):
                raise ValueError(f"a metric of {title!r} on {split!r} is not a number")
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
