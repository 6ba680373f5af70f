"""`equicat evaluate`: OC20's metrics per split, with the trivial baselines in the same table."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from equicat.apply.predict import predictions
from equicat.data.batch import Batch
from equicat.data.datasets import AnyDataset, open_dataset, require_labels
from equicat.data.directory import splits_of
from equicat.data.training_data import training_data
from equicat.files import replace_json, replacing_file
from equicat.models import saved
from equicat.models.direct import DirectModel, RelaxedPrediction
from equicat.models.model import ModelInfo, check_energy_reference
from equicat.models.potential import Potential
from equicat.options.values import Device, Positive
from equicat.run_directory import data_config
from equicat.tasks.metrics import MetricSums
from equicat.tasks.tables import format_table
from equicat.tasks.tasks import task_of


@dataclass
class SplitResult:
    """Metrics of the model and of the trivial baselines on one split, and what the parity plots need."""

    n_systems: int
    n_free_atoms: int
    rows: dict[str, dict[str, float]]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class Examples:
    """The systems of a split whose free atoms move most, for pictures."""

    COUNT = 3

    def __init__(self) -> None:
        self.kept: list[tuple[float, str, dict[str, np.ndarray]]] = []

    def add(self, batch: Batch, displacements: Tensor) -> None:
        """Look through a batch; ``displacements`` [n_atoms, 3] are the model's, Å."""
        assert batch.displacements is not None
        for k in range(batch.n_systems):
            here = batch.system_idx == k
            moved = batch.displacements[here & ~batch.fixed].norm(dim=1)
            fields = {
                "numbers": batch.numbers,
                "positions": batch.positions,
                "true": batch.displacements,
                "pred": displacements,
            }
            system = {name: values[here].cpu().numpy() for name, values in fields.items()}
            name = batch.ids[k] or batch.sources[k]
            self.kept.append((float(moved.mean()) if len(moved) else 0.0, name, system))
        self.kept = sorted(self.kept, key=lambda entry: -entry[0])[: self.COUNT]

    def arrays(self) -> dict[str, np.ndarray]:
        """``example_numbers`` and so on, systems one after the other; nothing if there are none."""
        if not self.kept:
            return {}
        found = {f"example_{n}": np.concatenate([s[n] for _, _, s in self.kept]) for n in self.kept[0][2]}
        found["example_n_atoms"] = np.array([len(s["numbers"]) for _, _, s in self.kept])
        return found | {"example_names": np.array([name for _, name, _ in self.kept])}


def evaluate_split(
    model: Potential | DirectModel,
    dataset: AnyDataset,
    *,
    batch_size: int = 16,
    title: str = "",
    progress: bool = True,
) -> SplitResult:
    """Metrics on free atoms, pooled over batches (see :mod:`equicat.tasks.metrics`).

    Raises:
        InputError: if the data lack a label, hold another energy than the model predicts, or an unknown element.
    """
    info, task = model.info, task_of(model.info.outputs)
    check_energy_reference(info, dataset.info, dataset.path)
    require_labels(dataset, task.labels)
    sums: dict[str, MetricSums] = {}
    kept: dict[str, list[Tensor]] = {}
    n_free, examples = 0, Examples()
    for batch, prediction in predictions(model, dataset, batch_size, title, progress, labels=task.labels):
        for row, guess in {info.network.name: prediction, **task.baselines(batch, info.statistics)}.items():
            sums.setdefault(row, MetricSums(task.metric_names)).add(task.metrics(guess, batch))
        arrays = {f"{name}_true": values for name, values in task.arrays(task.reference(batch), batch).items()}
        arrays |= {f"{name}_pred": values for name, values in task.arrays(prediction, batch).items()}
        for name, values in {**arrays, "n_atoms": batch.n_atoms}.items():
            kept.setdefault(name, []).append(values.cpu())
        n_free += int((~batch.fixed).sum())
        if isinstance(prediction, RelaxedPrediction) and prediction.displacements is not None:
            examples.add(batch, prediction.displacements)
    everything = {name: torch.cat(values).numpy() for name, values in kept.items()} | examples.arrays()
    return SplitResult(len(dataset), n_free, {row: s.compute() for row, s in sums.items()}, everything)


def evaluate(
    run: str | Path,
    data: str | Path | None = None,
    *,
    energy_key: str | None = None,
    forces_key: str | None = None,
    energy_reference: Literal["adsorption", "total", "relative"] | None = None,
    batch_size: Positive = 16,
    device: Device = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a run on every split found at ``data``.

    Args:
        run: Run directory that `equicat train` wrote.
        data: Data set directory, store or structure file. Default: the validation data of the run.
        energy_key: Info key of the energies (files only).
        forces_key: Column of atoms with the forces (files only).
        energy_reference: What the energies of a file are. Default: what the model predicts.
        batch_size: Structures computed together.
        device: Where to compute; auto takes a GPU if there is one.
        progress: Show a progress bar.

    Returns:
        What ``evaluation.json`` holds: metrics by split and row.

    Raises:
        InputError: for a missing file or label, another energy than the model predicts, or an unknown element.
    """
    if data is None:
        return evaluate_validation(run, batch_size=batch_size, device=device, progress=progress)
    model = saved.load(run, device)
    labels = task_of(model.info.outputs).labels
    results = {}
    for name, path in splits_of(data, model.info.task).items():
        if name == "train" and Path(data).is_dir() and Path(data) != path:
            continue  # evaluated when named
        reference = energy_reference or (None if path.is_dir() else model.info.energy_reference)
        dataset = open_dataset(path, energy_key, reference, forces_key=forces_key, labels=labels)
        results[name] = evaluate_split(model, dataset, batch_size=batch_size, title=name, progress=progress)
    return write_results(Path(run), model.info, str(data), results)


def evaluate_validation(
    run: str | Path, *, batch_size: int = 16, device: str = "auto", progress: bool = True
) -> dict[str, Any]:
    """Evaluate a run on the validation data of its own configuration: all of it, or what was held out for it.

    Raises:
        InputError: if the run has no configuration, or its data are gone.
    """
    model = saved.load(run, device)
    config = data_config(run)
    if config.val:
        config = dataclasses.replace(config, n_val=None)
    info = model.info
    _, val = training_data(config, info.task, task_of(info.outputs).labels)
    result = evaluate_split(model, val, batch_size=batch_size, title="val", progress=progress)
    return write_results(Path(run), info, "validation data of the run", {"val": result})


def write_results(run: Path, info: ModelInfo, data: str, results: dict[str, SplitResult]) -> dict[str, Any]:
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
    replace_json(run / "evaluation.json", summary)
    return summary


def as_text(summary: dict[str, Any]) -> str:
    """The tables that `equicat evaluate` prints, one a split."""
    parts = []
    for name, split in summary["splits"].items():
        title = f"{name}: {split['n_systems']} structures, {split['n_free_atoms']} free atoms"
        parts.append(f"{title}\n{format_table(split['rows'])}")
    parts.append(f"Energies: {summary['energy_reference']}. Fixed atoms are not counted.")
    return "\n\n".join(parts)
