"""A task is the labels it needs, its loss, its metrics and its trivial baselines: data and functions, no trainer.

- ``s2ef``: structure to energy and forces.
- ``is2re``: initial structure to relaxed energy, with displacements as an auxiliary task if their loss has a weight.
- ``is2rs``: initial to relaxed structure; with energies likewise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from equicat.data.batch import Batch
from equicat.data.fitted import Statistics
from equicat.errors import InputError
from equicat.models.direct import DirectModel, RelaxedPrediction
from equicat.models.model import Prediction
from equicat.models.potential import Potential
from equicat.options.values import Checked, NonNegativeNumber
from equicat.tasks.metrics import TASK_METRICS, Mean, energy_forces_metrics, energy_metrics, positions_metrics


@dataclass(frozen=True)
class LossConfig(Checked, section="loss"):
    """Sum of weight × loss over what is predicted, errors in units of the model's scales; free atoms only."""

    energy: Literal["mae", "per_atom_mae", "per_atom_mse"] = "mae"
    """Mean absolute error per system, or mean absolute or squared error per atom."""
    forces: Literal["l2", "mae", "mse"] = "l2"
    """Mean length of the error vector, or mean absolute or squared error of the components."""
    displacements: Literal["l2", "mae", "mse"] = "l2"
    """Mean length of the error vector of displacements, or mean absolute or squared error (is2re, is2rs)."""
    energy_weight: NonNegativeNumber | None = None
    """Coefficient of the energy loss; null is 1, but 0 (no energies) for is2rs."""
    forces_weight: NonNegativeNumber = 30.0
    """Coefficient of the force loss (s2ef)."""
    displacement_weight: NonNegativeNumber | None = None
    """Coefficient of the displacement loss; null is 1 for is2rs and 0 (no displacements) for is2re."""


@dataclass(frozen=True, eq=False)
class LossTerm:
    """weight · sum / count: a weighted mean, its parts kept because sums and counts add up and means do not."""

    weight: float
    sum: Any
    """A scalar tensor, or a number."""
    count: int | float
    """Systems, free atoms or their components."""


def total_loss(terms: Sequence[LossTerm], where: str = "the batch") -> Any:
    """Σ weight · sum / count: a scalar tensor, or a number if the sums are numbers.

    Raises:
        InputError: naming ``where``, if nothing is counted because no atom is free there.
    """
    if not all(term.count for term in terms):
        raise InputError(f"{where}: every atom is fixed, so there is nothing to train on")
    return sum(term.weight * term.sum / term.count for term in terms)


@dataclass(frozen=True)
class Task:
    """Labels, loss, metrics and baselines of a task. ``P`` is :class:`Prediction` or :class:`RelaxedPrediction`."""

    energy: str
    """The label of the energies."""
    labels: tuple[str, ...]
    """Labels that every structure must have."""
    metric_names: tuple[str, ...]
    loss_terms: Callable[[Any, Batch, Any, LossConfig], tuple[LossTerm, ...]]
    """(P, batch, model, options): as many terms for every batch; :func:`total_loss` adds them."""
    metrics: Callable[[Any, Batch], dict[str, Mean]]
    """(P, batch): of one batch, to be summed over batches."""
    reference: Callable[[Batch], Any]
    """The labels as a P."""
    baselines: Callable[[Batch, Statistics], dict[str, Any]]
    """Guesses without a model, each a P, by name; every batch has the same names."""
    arrays: Callable[[Any, Batch], dict[str, Tensor]]
    """(P, batch): by quantity, what parity plots show; vectors of free atoms only."""


def resolved(task: str, loss: LossConfig) -> LossConfig:
    """The loss with the task's own weights where none were given.

    Raises:
        InputError: if the task's own quantity has no weight.
    """
    energy, displacements = {"s2ef": (1.0, 0.0), "is2re": (1.0, 0.0), "is2rs": (0.0, 1.0)}[task]
    energy = energy if loss.energy_weight is None else loss.energy_weight
    displacements = displacements if loss.displacement_weight is None else loss.displacement_weight
    if task == "s2ef" and energy == loss.forces_weight == 0:
        raise InputError("loss.energy_weight and loss.forces_weight are both 0, which leaves nothing to train on")
    if (task == "is2re" and energy <= 0) or (task == "is2rs" and displacements <= 0):
        name = "energy_weight" if task == "is2re" else "displacement_weight"
        raise InputError(f"loss.{name} is 0, but it is what {task} trains on; give it a weight")
    return replace(loss, energy_weight=energy, displacement_weight=displacements)


def outputs_of(task: str, loss: LossConfig) -> tuple[str, ...]:
    """Quantities that a model trained with that (resolved) loss predicts."""
    if task == "s2ef":
        return ("energy", "forces")
    assert loss.energy_weight is not None
    assert loss.displacement_weight is not None
    weights = {"relaxed_energy": loss.energy_weight, "displacements": loss.displacement_weight}
    return tuple(name for name, weight in weights.items() if weight > 0)


def task_of(outputs: tuple[str, ...]) -> Task:
    """The task that a model with these outputs is trained and judged on."""
    if "forces" in outputs:
        return Task(
            "energy",
            ("energy", "forces"),
            TASK_METRICS["s2ef"],
            s2ef_loss_terms,
            s2ef_metrics,
            lambda batch: Prediction(_known(batch.energy), torch.zeros_like(_known(batch.forces)[:, 0]), batch.forces),
            s2ef_baselines,
            lambda p, batch: {"energy": p.energy, "forces": p.forces[~batch.fixed]},
        )
    energy, displacements = "relaxed_energy" in outputs, "displacements" in outputs
    names = (TASK_METRICS["is2re"] if energy else ()) + (TASK_METRICS["is2rs"] if displacements else ())
    labels = (("relaxed_energy",) if energy else ()) + (("relaxed_positions",) if displacements else ())
    return Task(
        "relaxed_energy",
        labels,
        names,
        direct_loss_terms,
        direct_metrics,
        lambda batch: RelaxedPrediction(
            batch.relaxed_energy if energy else None, batch.displacements if displacements else None
        ),
        lambda batch, statistics: direct_baselines(batch, statistics, energy, displacements),
        direct_arrays,
    )


def _known(label: Tensor | None) -> Tensor:
    assert label is not None, "the data were checked for the task's labels"
    return label


def _vector_term(
    weight: float, error: Float[Tensor, "n_atoms 3"], counted: Bool[Tensor, "n_atoms"], kind: str
) -> LossTerm:
    """Mean length of the error vectors of counted atoms, or mean absolute or squared error of their components."""
    error = error[counted]
    if kind == "l2":
        # The norm has no derivative where it is zero; this one has, and differs by at most 1e-6 of the scale.
        return LossTerm(weight, torch.sqrt(error.square().sum(1) + 1e-12).sum(), len(error))
    return LossTerm(weight, (error.abs() if kind == "mae" else error.square()).sum(), error.numel())


def _energy_term(weight: float, error: Float[Tensor, "n_systems"], kind: str, batch: Batch) -> LossTerm:
    """Mean absolute error of the systems, or mean absolute or squared error per atom."""
    if kind != "mae":
        error = error / batch.n_atoms
    return LossTerm(weight, (error.square() if kind == "per_atom_mse" else error.abs()).sum(), len(error))


def _guessed_energies(batch: Batch, statistics: Statistics) -> tuple[Tensor, Tensor]:
    """The mean of the training set, and its linear fit on the composition: [n_systems] each, eV."""
    per_element = torch.zeros(120, dtype=torch.float64, device=batch.numbers.device)
    per_element[list(statistics.elements)] = per_element.new_tensor(statistics.linear_reference)
    linear = per_element.new_zeros(batch.n_systems).index_add(0, batch.system_idx, per_element[batch.numbers])
    return torch.full_like(linear, statistics.mean_energy), linear


# ---- S2EF --------------------------------------------------------------------------------------------------------


def s2ef_loss_terms(
    prediction: Prediction, batch: Batch, model: Potential, config: LossConfig
) -> tuple[LossTerm, LossTerm]:
    """Energies, and forces of free atoms, both in units of the model's scale (eV)."""
    assert prediction.forces is not None
    assert config.energy_weight is not None
    dtype = prediction.forces.dtype
    energy_error = ((prediction.energy - _known(batch.energy)) / model.scale.double()).to(dtype)
    forces_error = (prediction.forces - _known(batch.forces)) / model.scale
    return (
        _energy_term(config.energy_weight, energy_error, config.energy, batch),
        _vector_term(config.forces_weight, forces_error, ~batch.fixed, config.forces),
    )


def s2ef_metrics(prediction: Prediction, batch: Batch) -> dict[str, Mean]:
    """OC20's metrics of energies and forces."""
    assert prediction.forces is not None
    forces = (prediction.forces.detach(), _known(batch.forces), batch.fixed)
    return energy_forces_metrics(prediction.energy.detach(), _known(batch.energy), *forces, batch.system_idx)


def s2ef_baselines(batch: Batch, statistics: Statistics) -> dict[str, Prediction]:
    """Energies of the training set's mean or linear fit, zero forces."""
    forces = torch.zeros_like(_known(batch.forces))
    atoms = forces[:, 0]
    names = ("mean energy, F = 0", "linear reference, F = 0")
    guesses = zip(names, _guessed_energies(batch, statistics), strict=True)
    return {name: Prediction(energy, atoms, forces) for name, energy in guesses}


# ---- IS2RE and IS2RS, direct --------------------------------------------------------------------------------------


def direct_loss_terms(
    prediction: RelaxedPrediction, batch: Batch, model: DirectModel, config: LossConfig
) -> tuple[LossTerm, ...]:
    """Energies and displacements of free atoms, those that are predicted, in units of the model's scale of each."""
    assert config.energy_weight is not None
    assert config.displacement_weight is not None
    terms = []
    if prediction.relaxed_energy is not None:
        error = ((prediction.relaxed_energy - _known(batch.relaxed_energy)) / model.scale.double()).to(model.dtype)
        terms.append(_energy_term(config.energy_weight, error, config.energy, batch))
    if prediction.displacements is not None:
        error = (prediction.displacements - _known(batch.displacements)) / model.displacement_scale
        terms.append(_vector_term(config.displacement_weight, error, ~batch.fixed, config.displacements))
    return tuple(terms)


def direct_metrics(prediction: RelaxedPrediction, batch: Batch) -> dict[str, Mean]:
    """OC20's metrics of relaxed energies and relaxed positions, of what the model predicts."""
    metrics: dict[str, Mean] = {}
    if prediction.relaxed_energy is not None:
        metrics |= energy_metrics(prediction.relaxed_energy.detach(), _known(batch.relaxed_energy), batch.n_atoms)
    if prediction.displacements is not None:
        pair = (prediction.displacements.detach(), _known(batch.displacements))
        cell = batch.cell.to(prediction.displacements.dtype)
        metrics |= positions_metrics(*pair, batch.fixed, batch.tags, batch.system_idx, cell, batch.pbc)
    return metrics


def direct_baselines(
    batch: Batch, statistics: Statistics, energy: bool, displacements: bool
) -> dict[str, RelaxedPrediction]:
    """Energies of the training set's mean or linear fit, and no displacement."""
    still = torch.zeros_like(_known(batch.displacements)) if displacements else None
    if not energy:
        return {"no displacement": RelaxedPrediction(None, still)}
    names = ("mean energy", "linear reference")
    ending = ", no displacement" if displacements else ""
    guesses = zip(names, _guessed_energies(batch, statistics), strict=True)
    return {f"{name}{ending}": RelaxedPrediction(guess, still) for name, guess in guesses}


def direct_arrays(prediction: RelaxedPrediction, batch: Batch) -> dict[str, Tensor]:
    """Relaxed energies and the displacements of free atoms, as far as predicted."""
    arrays = {}
    if prediction.relaxed_energy is not None:
        arrays["energy"] = prediction.relaxed_energy
    if prediction.displacements is not None:
        arrays["displacements"] = prediction.displacements[~batch.fixed]
    return arrays
