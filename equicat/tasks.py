"""A task is what it trains on, its loss and its metrics: data and functions, no trainer of its own."""

import torch
from jaxtyping import Float
from torch import Tensor

from equicat.batch import Batch
from equicat.config import LossConfig
from equicat.errors import InputError
from equicat.metrics import Mean, energy_forces_metrics
from equicat.potential import Prediction

LABELS = {"s2ef": ("energy", "forces")}
"""What the structures of each task must have."""


def s2ef_loss(prediction: Prediction, batch: Batch, scale: Tensor, config: LossConfig) -> Float[Tensor, ""]:
    """Energy loss + force loss, both in units of ``scale`` (eV), forces of free atoms only.

    Raises:
        InputError: if no atom of the batch is free.
    """
    assert batch.energy is not None
    assert batch.forces is not None
    assert prediction.forces is not None
    energy_error = ((prediction.energy - batch.energy) / scale.double()).to(prediction.forces.dtype)
    if config.energy != "mae":
        energy_error = energy_error / batch.n_atoms
    energy = energy_error.square().mean() if config.energy == "per_atom_mse" else energy_error.abs().mean()
    free = ~batch.fixed
    if not free.any():
        raise InputError(f"systems {', '.join(batch.ids)}: every atom is fixed, so there are no forces to train on")
    error = (prediction.forces - batch.forces)[free] / scale
    if config.forces == "l2":
        # The norm has no derivative where it is zero; this one has, and differs by at most 1e-6 of the scale.
        forces = torch.sqrt(error.square().sum(1) + 1e-12).mean()
    else:
        forces = error.abs().mean() if config.forces == "mae" else error.square().mean()
    return config.energy_weight * energy + config.forces_weight * forces


def s2ef_metrics(prediction: Prediction, batch: Batch) -> dict[str, Mean]:
    """OC20's metrics of one batch, to be summed over batches."""
    assert batch.energy is not None
    assert batch.forces is not None
    assert prediction.forces is not None
    return energy_forces_metrics(
        prediction.energy.detach(),
        batch.energy,
        prediction.forces.detach(),
        batch.forces,
        batch.fixed,
        batch.system_idx,
    )
