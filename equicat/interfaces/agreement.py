"""The check of every export: energies and forces of a few small systems are those of the model."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from equicat.data.batch import Batch
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.models.potential import Potential
from equicat.testing.structures import example_structures

AGREEMENT = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Largest relative difference of energies and forces between an export and the model."""


def examples(potential: Potential, n: int) -> list[Structure]:
    """So many clusters, slabs and skewed crystals of the model's elements."""
    return [example for seed in range(n) for example in example_structures(potential.elements, seed)]


def compare(
    potential: Potential,
    structures: Sequence[Structure],
    energy: Float[ndarray, "n_systems"],
    forces: Float[ndarray, "n_atoms 3"],
) -> None:
    """Make sure that somebody else's energies (eV) and forces (eV/Å) are those of the model.

    Raises:
        InputError: with both relative differences, if they are not.
    """
    batch = Batch.from_structures(list(structures), potential.cutoff, dtype=potential.dtype)
    with torch.no_grad():
        ours = potential(batch)
    assert ours.forces is not None
    # Energies of atoms may nearly cancel: what they add up to without their signs says what rounding is.
    parts = ours.atom_energies.double().abs() + potential.reference_energies[potential.species(batch)].abs()
    size = parts.new_zeros(batch.n_systems).index_add(0, batch.system_idx, parts).numpy()
    of_energy = float((np.abs(ours.energy.numpy() - energy) / size).max())
    expected = ours.forces.double().numpy()
    of_forces = float(np.abs(expected - forces).max() / np.abs(expected).max())
    if not max(of_energy, of_forces) < AGREEMENT[potential.dtype]:
        raise InputError(
            f"the exported model gives other numbers (energies {of_energy:.1e}, forces {of_forces:.1e} relative); "
            "nothing was written, please report it"
        )
