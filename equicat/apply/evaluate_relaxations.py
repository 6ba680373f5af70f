"""`equicat evaluate RUN --relax`: IS2RE and IS2RS by relaxation with a model of energies and forces.

The initial structures of the splits are relaxed; what they become is compared with the relaxed energies and positions
of the data, beside the guesses that need no model. Where the data come from a potential that is at hand (EMT, for the
toy data), its forces at the predicted structures give AFbT, for which OC20 runs DFT.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.calculators.emt import EMT
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from equicat.data.batch import Batch
from equicat.data.datasets import Dataset, open_dataset, require_labels
from equicat.data.directory import splits_of
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.models.direct import RelaxedPrediction
from equicat.models.model import check_energy_reference
from equicat.models.potential import Potential
from equicat.models.saved import load_potential
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.relax import relax
from equicat.run_directory import data_config
from equicat.tasks.metrics import MetricSums, average_force_below_threshold, force_below_threshold
from equicat.tasks.tables import format_table
from equicat.tasks.tasks import task_of

TASK = task_of(("relaxed_energy", "displacements"))
CHUNK = 64
"""Systems whose metrics are computed together."""
NO_EDGES = 0.1
"""Å; cutoff of the batches that metrics take, which need no pairs."""
FORCE_METRICS = ("force_below_threshold", "average_force_below_threshold")


def evaluate_relaxations(
    run: str | Path,
    data: str | Path | None = None,
    config: RelaxConfig | None = None,
    *,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Relax the initial structures of every IS2RE split of a data set, training split left out, and compare.

    Args:
        run: of a model of energies and forces.
        data: data set directory, store or file with relaxed energies and positions; None: where the validation data
            of the run come from.
        config: how to relax.
        device: where to compute.
        progress: show progress bars.

    Returns:
        As :func:`equicat.apply.evaluate.evaluate`: metrics by split and row; and for each split ``relaxations``: the
        numbers of converged and successful ones (converged, and without flags), steps, seconds and flags. A system
        that gave no energy counts with the mean energy of the training data and no displacement.

    Raises:
        InputError: if the model gives no forces, or the data lack relaxed energies or positions, or hold another energy
            than the model predicts.
    """
    model = load_potential(run, device)
    splits = {}
    for name, path in _splits(run, data).items():
        reference = None if path.is_dir() else model.info.energy_reference
        dataset = open_dataset(path, energy_reference=reference)
        check_energy_reference(model.info, dataset.info, dataset.path)
        require_labels(dataset, ("relaxed_energy", "relaxed_positions"))
        splits[name] = evaluate_split(model, dataset, config or RelaxConfig(), progress)
    return {"task": "is2re and is2rs by relaxation", "energy_reference": model.info.energy_reference, "splits": splits}


def _splits(run: str | Path, data: str | Path | None) -> dict[str, Path]:
    if data is not None:
        found = splits_of(data, "is2re")
        return {name: path for name, path in found.items() if name != "train" or path == Path(data)} or found
    sources = data_config(run).val
    if len(sources) != 1 or not Path(sources[0]).is_dir():
        raise InputError(
            f"{run}: its validation data are no data set directory; name data with relaxed structures: --data"
        )
    return _splits(run, sources[0])


def evaluate_split(model: Potential, dataset: Dataset, config: RelaxConfig, progress: bool) -> dict[str, Any]:
    """One split; see :func:`evaluate_relaxations`."""
    initial = [dataset[i] for i in range(len(dataset))]
    result = relax(initial, model, config, progress=progress)
    assert result is not None
    relaxed, statistics = result.structures, model.info.statistics
    is_emt = dataset.info.provenance.get("generator") == "equicat data emt"
    rows: dict[str, tuple[MetricSums, MetricSums]] = {}
    n_free = 0
    for first in range(0, len(initial), CHUNK):
        chunk = slice(first, first + CHUNK)
        batch = Batch.from_structures(initial[chunk], NO_EDGES, dtype=torch.float64)
        n_free += int((~batch.fixed).sum())
        guesses = {f"{model.info.network.name}, relaxed": _prediction(batch, relaxed[chunk], statistics.mean_energy)}
        for row, guess in (guesses | TASK.baselines(batch, statistics)).items():
            sums = rows.setdefault(row, (MetricSums(TASK.metric_names), MetricSums(FORCE_METRICS)))
            sums[0].add(TASK.metrics(guess, batch))
            if is_emt:
                forces = (_emt_forces(initial[chunk], batch, guess.displacements), batch.fixed, batch.system_idx)
                functions = (force_below_threshold, average_force_below_threshold)
                found = [function(*forces, batch.n_systems) for function in functions]
                sums[1].add(dict(zip(FORCE_METRICS, found, strict=True)))
    return {
        "n_systems": len(initial),
        "n_free_atoms": n_free,
        "rows": {row: a.compute() | (b.compute() if is_emt else {}) for row, (a, b) in rows.items()},
        "relaxations": _summary([s.info for s in relaxed]),
    }


def _prediction(batch: Batch, relaxed: Sequence[Structure], mean_energy: float) -> RelaxedPrediction:
    energies = [mean_energy if s.energy is None else s.energy for s in relaxed]
    positions = torch.from_numpy(np.concatenate([s.positions for s in relaxed]))
    return RelaxedPrediction(torch.tensor(energies, dtype=torch.float64), positions - batch.positions)


def _emt_forces(
    structures: Sequence[Structure], batch: Batch, displacements: Float[Tensor, "n_atoms 3"]
) -> Float[Tensor, "n_atoms 3"]:
    """EMT's forces (eV/Å) at the predicted relaxed positions."""
    positions = (batch.positions + displacements).numpy()
    found = list[ndarray]()
    for structure, here in zip(structures, _by_system(positions, structures), strict=True):
        atoms = structure.to_ase()
        atoms.positions, atoms.calc = here, EMT()
        found.append(atoms.get_forces(apply_constraint=False))
    return torch.from_numpy(np.concatenate(found))


def _by_system(values: ndarray, structures: Sequence[Structure]) -> Iterator[ndarray]:
    yield from np.split(values, np.cumsum([len(s) for s in structures])[:-1])


def _summary(infos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    flags = [flag for info in infos for flag in info["flags"].split(",") if flag]
    return {
        "n_converged": sum(info["converged"] for info in infos),
        "success_rate": float(np.mean([info["converged"] and not info["flags"] for info in infos])),
        "mean_steps": float(np.mean([info["n_steps"] for info in infos])),
        "seconds_a_system": float(np.mean([info["seconds"] for info in infos])),
        "flags": {flag: flags.count(flag) for flag in sorted(set(flags))},
    }


def as_text(summary: Mapping[str, Any]) -> str:
    """The tables that `equicat evaluate --relax` prints, one a split."""
    parts = []
    for name, split in summary["splits"].items():
        r = split["relaxations"]
        flags = ", ".join(f"{n} {flag}" for flag, n in r["flags"].items()) or "none"
        title = f"{name}: {split['n_systems']} structures, {split['n_free_atoms']} free atoms"
        counts = f"{r['n_converged']} converged, {r['success_rate']:.1%} converged without a flag; flags: {flags}"
        effort = f"{r['mean_steps']:.1f} steps and {r['seconds_a_system']:.3f} s a system on average"
        parts.append(f"{title}\n{format_table(split['rows'])}\n{counts}; {effort}")
    parts.append(f"Energies: {summary['energy_reference']}. Fixed atoms are not counted.")
    return "\n\n".join(parts)
