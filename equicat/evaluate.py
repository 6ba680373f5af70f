"""`equicat evaluate`: OC20's metrics per split, with the trivial baselines in the same table."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from equicat import runs
from equicat.batch import Batch
from equicat.config import from_mapping, read_yaml
from equicat.datasets import open_dataset, require_labels, splits_of
from equicat.errors import InputError
from equicat.files import replacing_file, write_json
from equicat.loader import AnyDataset, batches, training_data
from equicat.metrics import TASK_METRICS, MetricSums
from equicat.potential import Prediction
from equicat.tables import format_table
from equicat.tasks import LABELS, s2ef_metrics

BASELINES = ("mean energy, F = 0", "linear reference, F = 0")


@dataclass
class SplitResult:
    """Metrics of the model and of the trivial baselines on one split, and what the parity plots need."""

    n_systems: int
    n_free_atoms: int
    rows: dict[str, dict[str, float]]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def baseline_predictions(batch: Batch, info: runs.ModelInfo) -> dict[str, Prediction]:
    """What one would predict without a model: energies of the training set's mean or linear fit, zero forces."""
    column = torch.zeros(120, dtype=torch.int64)
    column[list(info.statistics.elements)] = torch.arange(len(info.statistics.elements))
    per_atom = torch.tensor(info.statistics.linear_reference, dtype=torch.float64)[column[batch.numbers.cpu()]]
    linear = per_atom.new_zeros(batch.n_systems).index_add(0, batch.system_idx.cpu(), per_atom)
    mean = torch.full_like(linear, info.statistics.mean_energy)
    forces = torch.zeros_like(batch.positions)
    zeros = torch.zeros_like(batch.positions[:, 0])
    energies = (mean.to(forces.device), linear.to(forces.device))
    return {name: Prediction(energy, zeros, forces) for name, energy in zip(BASELINES, energies, strict=True)}


def predictions(
    potential: runs.TrainedPotential, dataset: Sequence, batch_size: int, title: str = "", progress: bool = True
) -> Iterator[tuple[Batch, Prediction]]:
    """Batches with the model's energies (eV) and forces (eV/Å), in the order of the data set."""
    device = potential.scale.device
    loader = batches(dataset, potential.cutoff, batch_size, dtype=potential.dtype)
    for batch in tqdm(loader, desc=title, unit="batch", disable=not progress, leave=False):
        batch = batch.to(device)
        with torch.no_grad():
            yield batch, potential(batch)


def evaluate_split(
    potential: runs.TrainedPotential,
    dataset: AnyDataset,
    *,
    batch_size: int = 16,
    title: str = "",
    progress: bool = True,
) -> SplitResult:
    """Metrics on free atoms, pooled over batches (see :mod:`equicat.metrics`).

    Raises:
        InputError: if the data lack a label, hold another energy than the model predicts, or an unknown element.
    """
    info = potential.info
    check_energy_reference(dataset, info)
    require_labels(dataset, LABELS["s2ef"])  # type: ignore[arg-type]
    name = f"{info.model.name}"
    sums = {row: MetricSums(TASK_METRICS["s2ef"]) for row in (name, *BASELINES)}
    kept: dict[str, list[Tensor]] = {
        k: [] for k in ("energy_true", "energy_pred", "forces_true", "forces_pred", "n_atoms")
    }
    for batch, prediction in predictions(potential, dataset, batch_size, title, progress):
        for row, guess in {name: prediction, **baseline_predictions(batch, info)}.items():
            sums[row].add(s2ef_metrics(guess, batch))
        free = ~batch.fixed
        assert batch.energy is not None
        assert batch.forces is not None
        assert prediction.forces is not None
        values = (batch.energy, prediction.energy, batch.forces[free], prediction.forces[free], batch.n_atoms)
        for key, value in zip(kept, values, strict=True):
            kept[key].append(value.cpu())
    arrays = {key: torch.cat(values).numpy() for key, values in kept.items()}
    return SplitResult(len(dataset), len(arrays["forces_true"]), {row: s.compute() for row, s in sums.items()}, arrays)


def check_energy_reference(dataset: AnyDataset, info: runs.ModelInfo) -> None:
    """Refuse to compare two different kinds of energy.

    Raises:
        InputError: naming both.
    """
    if dataset.info.energy_reference != info.energy_reference:
        raise InputError(
            f"{dataset.path}: its energies are {dataset.info.energy_reference!r}, the model predicts "
            f"{info.energy_reference!r} ones; for structure files, say which with --energy_reference"
        )


def evaluate(
    run: str | Path,
    data: str | Path,
    *,
    energy_key: str | None = None,
    energy_reference: str | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a run on every split found at ``data``; see `equicat evaluate --help`.

    Returns:
        What ``evaluation.json`` holds: metrics by split and row.
    """
    potential = runs.load(run, device)
    results = {}
    for name, path in splits_of(data, potential.info.task).items():
        if name == "train" and Path(data).is_dir() and Path(data) != path:
            continue  # evaluated when named
        reference = energy_reference or (None if path.is_dir() else potential.info.energy_reference)
        dataset = open_dataset(path, energy_key, reference)
        results[name] = evaluate_split(potential, dataset, batch_size=batch_size, title=name, progress=progress)
    return write_results(Path(run), potential.info, str(data), results)


def evaluate_validation(
    run: str | Path, *, batch_size: int = 16, device: str = "cpu", progress: bool = True
) -> dict[str, Any]:
    """Evaluate a run on the validation data of its own configuration: all of it, or what was held out for it.

    Raises:
        InputError: if the run has no configuration, or its data are gone.
    """
    potential = runs.load(run, device)
    config = from_mapping(read_yaml(Path(run) / "config.yaml"), f"{run}/config.yaml").data
    if config.val:
        config = dataclasses.replace(config, n_val=None)
    _, val = training_data(config, LABELS[potential.info.task])
    result = evaluate_split(potential, val, batch_size=batch_size, title="val", progress=progress)
    return write_results(Path(run), potential.info, "validation data of the run", {"val": result})


def write_results(run: Path, info: runs.ModelInfo, data: str, results: dict[str, SplitResult]) -> dict[str, Any]:
    """Write ``evaluation.json`` and, for the parity plots, ``predictions/<split>.npz`` into the run directory."""
    (run / "predictions").mkdir(exist_ok=True)
    for name, result in results.items():
        with replacing_file(run / "predictions" / f"{name}.npz") as temporary:
            np.savez_compressed(temporary, **result.arrays)  # type: ignore[arg-type]
    summary = {
        "task": info.task,
        "data": data,
        "energy_reference": info.energy_reference,
        "splits": {
            name: {"n_systems": r.n_systems, "n_free_atoms": r.n_free_atoms, "rows": r.rows}
            for name, r in results.items()
        },
    }
    with replacing_file(run / "evaluation.json") as temporary:
        write_json(temporary, summary)
    return summary


def as_text(summary: dict[str, Any]) -> str:
    """The tables that `equicat evaluate` prints, one a split."""
    parts = []
    for name, split in summary["splits"].items():
        title = f"{name}: {split['n_systems']} structures, {split['n_free_atoms']} free atoms"
        parts.append(f"{title}\n{format_table(split['rows'])}")
    parts.append(f"Energies: {summary['energy_reference']}. Fixed atoms are not counted.")
    return "\n\n".join(parts)
