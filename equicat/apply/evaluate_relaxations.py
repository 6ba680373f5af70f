"""`equicat evaluate RUN --relax`: IS2RE and IS2RS by relaxation with a model of energies and forces.

The initial structures of the splits are relaxed; what they become is compared with the relaxed energies and positions
of the data, beside the guesses that need no model. Where the data come from a potential that is at hand (EMT, for the
toy data), its forces at the predicted structures give AFbT, for which OC20 runs DFT.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.calculators.emt import EMT
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from equicat.apply.evaluate import usable
from equicat.data.batch import Batch
from equicat.data.datasets import Dataset
from equicat.data.directory import splits_of
from equicat.data.identity import n_systems
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.models.direct import RelaxedPrediction
from equicat.models.potential import Potential
from equicat.models.saved import load_potential
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.relax import relax
from equicat.run_directory import data_config
from equicat.tasks.metrics import Values
from equicat.tasks.tables import MetricSums, amount, format_table
from equicat.tasks.tasks import task_of, values_of

TASK = task_of(("relaxed_energy", "displacements"))
LABELS = ("relaxed_energy", "relaxed_positions")
CHUNK = 64
"""Systems whose metrics are computed together."""
NO_EDGES = 0.1
"""Å; cutoff of the batches that metrics take, which need no pairs."""


def evaluate_relaxations(
    run: str | Path,
    data: str | Path | None = None,
    config: RelaxConfig | None = None,
    *,
    device: str = "cpu",
    progress: bool = True,
    energy_reference: str | None = None,
) -> dict[str, Any]:
    """Relax the initial structures of every IS2RE split of a data set, training split left out, and compare.

    Args:
        run: of a model of energies and forces.
        data: data set directory, store or file with relaxed energies and positions; None: where the validation data
            of the run come from.
        config: how to relax.
        device: where to compute.
        progress: show progress bars.
        energy_reference: what the energies of a file are; total if not given.

    Returns:
        As :func:`equicat.apply.evaluate.evaluate`: metrics by split and row; and for each split ``relaxations``: the
        numbers of converged and successful ones (converged, and without flags), steps, seconds and flags. A system
        that gave no energy counts with the mean energy of the training data and no displacement.

    Raises:
        InputError: if the model gives no forces, or the data lack relaxed energies or positions, or hold another energy
            than the model predicts.
    """
    model = load_potential(run, device)
    datasets, skipped = usable(model, _splits(run, data), LABELS, energy_reference=energy_reference)
    results = {
        name: evaluate_split(model, dataset, config or RelaxConfig(), progress) for name, dataset in datasets.items()
    }
    return {
        "task": "is2re and is2rs by relaxation",
        "energy_reference": model.info.energy_reference,
        "splits": results,
        "skipped": skipped,
    }


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
    quantities = (*TASK.quantities, *(["reference_forces"] if is_emt else []))
    rows: dict[str, MetricSums] = {}
    n_free = 0
    for first in range(0, len(initial), CHUNK):
        chunk = slice(first, first + CHUNK)
        batch = Batch.from_structures(initial[chunk], NO_EDGES, dtype=torch.float64)
        n_free += int((~batch.fixed).sum())
        found = values_of(_prediction(batch, relaxed[chunk], statistics.mean_energy), batch)
        target = TASK.target(batch)
        guesses = {f"{model.info.network.name}, relaxed": found, **TASK.baselines(batch, statistics)}
        for row, guess in guesses.items():
            if is_emt:
                guess = replace(guess, reference_forces=_emt_forces(initial[chunk], batch, guess))
            rows.setdefault(row, MetricSums(quantities)).add(guess, target, batch)
    return {
        "n_structures": len(initial),
        "n_systems": n_systems(dataset),
        "n_free_atoms": n_free,
        "rows": {row: sums.compute() for row, sums in rows.items()},
        "relaxations": _summary([s.info for s in relaxed]),
    }


def _prediction(batch: Batch, relaxed: Sequence[Structure], mean_energy: float) -> RelaxedPrediction:
    energies = [mean_energy if s.energy is None else s.energy for s in relaxed]
    positions = torch.from_numpy(np.concatenate([s.positions for s in relaxed]))
    return RelaxedPrediction(torch.tensor(energies, dtype=torch.float64), positions - batch.positions)


def _emt_forces(structures: Sequence[Structure], batch: Batch, guess: Values) -> Float[Tensor, "n_atoms 3"]:
    """EMT's forces (eV/Å) at the predicted relaxed positions."""
    assert guess.displacements is not None
    positions = (batch.positions + guess.displacements).numpy()
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
        title = f"{name}: {amount(split['n_structures'], split['n_systems'])}, {split['n_free_atoms']} free atoms"
        counts = f"{r['n_converged']} converged, {r['success_rate']:.1%} converged without a flag; flags: {flags}"
        effort = f"{r['mean_steps']:.1f} steps and {r['seconds_a_system']:.3f} s a system on average"
        parts.append(f"{title}\n{format_table(split['rows'])}\n{counts}; {effort}")
    parts.append(f"Energies: {summary['energy_reference']}. Fixed atoms are not counted.")
    parts += [f"{name}: skipped: {reason}" for name, reason in summary["skipped"].items()]
    return "\n\n".join(parts)
