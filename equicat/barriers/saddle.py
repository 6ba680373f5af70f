"""Is the highest image a saddle point? Frequencies there, by finite differences of the atoms that take part."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from ase import units
from ase.data import atomic_masses
from jaxtyping import Bool, Float
from numpy import ndarray

from equicat.barriers.images import ImageForces
from equicat.data.structure import Structure
from equicat.relaxation.held import free_directions
from equicat.relaxation.models import ForceModel

DISPLACEMENT = 0.01
"""Å, to both sides."""
TAKES_PART = 0.1
"""Å; an atom that moves further along the path takes part, and so does every adsorbate (tag 2)."""
IMAGINARY = 30.0
"""cm⁻¹; below this an imaginary frequency may be rounding, or a force that is not quite zero."""


def taking_part(path: Sequence[Structure]) -> Bool[ndarray, "n_atoms"]:
    """The atoms that are displaced: those free to move that do so along the path, and free atoms of adsorbates."""
    moved = np.stack([np.linalg.norm(image.positions - path[0].positions, axis=1) for image in path]).max(0)
    assert path[0].tags is not None
    return ((moved > TAKES_PART) | (path[0].tags == 2)) & free_directions(path[0]).any(axis=(1, 2))


def frequencies(
    model: ForceModel, structure: Structure, chosen: Bool[ndarray, "n_atoms"], skin: float, edges: int | None
) -> Float[ndarray, "n_modes"]:
    """Frequencies (cm⁻¹) of some atoms, all others held; imaginary ones are negative; in ascending order.

    Central differences of the forces, all displaced structures in batches; directions along which an atom is held count
    as modes of frequency zero. Not finite where the forces are not.

    Args:
        model: gives the forces.
        structure: where to displace atoms.
        chosen: the atoms.
        skin: Å; see :class:`~equicat.barriers.images.ImageForces`.
        edges: in a batch at most.
    """
    atoms = np.flatnonzero(chosen)
    steps = [(atom, axis, sign) for atom in atoms for axis in range(3) for sign in (1, -1)]
    positions = np.tile(structure.positions, (len(steps), 1, 1))
    for image, (atom, axis, sign) in zip(positions, steps, strict=True):
        image[atom, axis] += sign * DISPLACEMENT
    images = [dataclasses.replace(structure, positions=r, energy=None, forces=None) for r in positions]
    names = [f"displaced {k}" for k in range(len(images))]
    at = torch.from_numpy(positions.reshape(-1, 3)).to(model.device)
    _, found = ImageForces(model, images, names, skin, edges)(at)
    forces = found.cpu().numpy().reshape(len(atoms), 3, 2, len(structure), 3)[..., atoms, :]
    hessian = -(forces[:, :, 0] - forces[:, :, 1]).reshape(3 * len(atoms), 3 * len(atoms)) / (2 * DISPLACEMENT)
    if not np.isfinite(hessian).all():
        return np.full(len(hessian), np.nan)
    free = np.zeros_like(hessian)
    for k, projector in enumerate(free_directions(structure)[atoms]):
        free[3 * k : 3 * k + 3, 3 * k : 3 * k + 3] = projector
    masses = np.repeat(atomic_masses[structure.numbers[atoms]], 3)
    weighted = free @ (hessian + hessian.T) @ free / 2 / np.sqrt(masses[:, None] * masses)
    values = np.linalg.eigvalsh(weighted)
    quantum = units._hbar * units.m / np.sqrt(units._e * units._amu) / units.invcm
    return np.sign(values) * np.sqrt(np.abs(values)) * quantum
