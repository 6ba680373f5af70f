"""First paths between two ends: straight lines, or lines along which the distances between atoms change evenly.

The image dependent pair potential (IDPP): Smidstrup, Pedersen, Stokbro and Jónsson, J. Chem. Phys. 140, 214106 (2014),
eqs. 4 to 6, with the weight 1/d⁴, as ASE has it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from ase.data import chemical_symbols, covalent_radii
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from equicat.barriers.chain import Chain, nudged_forces
from equicat.data.images import minimum_image
from equicat.data.structure import Structure
from equicat.relaxation.fire import FIRE
from equicat.relaxation.held import Freedom, free_directions

COLLISION = 0.5
"""Two atoms of an image that are nearer than this many sums of their covalent radii have collided."""
ASIDE = 0.2
"""Å; how far atoms that would collide on straight lines are put aside in the middle of the path, before IDPP."""
SPRING, MAX_STEPS, FMAX = 0.1, 300, 0.01
"""How the pair potential is minimised: constant of the springs, steps at most, and largest force, where an energy has
the unit 1/Å². ASE stops at a force of 0.1, at which only atoms that nearly touch have moved."""


def straight(initial: Structure, final: Structure, n_images: int) -> Float[ndarray, "n_images n_atoms 3"]:
    """Images between the ends (Å) on straight lines, evenly spaced; what does not move keeps its bits."""
    shares = np.arange(1, n_images + 1) / (n_images + 1)
    return initial.positions + shares[:, None, None] * (final.positions - initial.positions)


def idpp(initial: Structure, final: Structure, n_images: int) -> Float[ndarray, "n_images n_atoms 3"]:
    """Images between the ends (Å) whose distances between atoms are as near as can be to evenly changing ones.

    The distances are those of the nearest images of the atoms. A band of springs holds the images apart.
    """
    inner = _aside(initial, straight(initial, final, n_images))
    potential = PairPotential.of(initial, final, inner)
    chain = Chain.of([n_images], [len(initial)])
    freedom = Freedom.of(torch.from_numpy(np.tile(free_directions(initial), (n_images, 1, 1))))
    ends = torch.from_numpy(np.concatenate([initial.positions, final.positions]))
    positions, climbing = torch.from_numpy(inner.reshape(-1, 3)), torch.zeros(1, dtype=torch.bool)
    fire = FIRE()
    state = fire.init(chain.bands, positions)
    for _ in range(MAX_STEPS):
        energies, forces = potential(positions.view(n_images, -1, 3))
        everywhere = torch.cat([positions, ends]), torch.cat([energies, energies.new_zeros(2)])
        nudged = nudged_forces(chain, *everywhere, freedom.along(forces.view(-1, 3)), SPRING, climbing)
        if chain.bands.largest(nudged) < FMAX:
            break
        state, moved = fire.step(state, positions, nudged, chain.bands)
        positions = torch.where(freedom.moves, moved, positions)
    return positions.view(n_images, -1, 3).numpy()


@dataclass(frozen=True, eq=False)
class PairPotential:
    """The image dependent pair potential: it draws all pairs of atoms to distances of which each image has its own."""

    targets: Float[Tensor, "n_images n_atoms n_atoms"]
    """Å."""
    shifts: Float[Tensor, "n_images n_atoms n_atoms 3"]
    """Å; lattice vectors to the nearest images of the atoms, where the images of the path began."""

    @classmethod
    def of(cls, initial: Structure, final: Structure, inner: Float[ndarray, "n_images n_atoms 3"]) -> "PairPotential":
        """The potential between two ends."""
        first, last = (np.linalg.norm(_pair_vectors(end.positions, end)[0], axis=2) for end in (initial, final))
        shares = (np.arange(1, len(inner) + 1) / (len(inner) + 1))[:, None, None]
        shifts = np.stack([_pair_vectors(positions, initial)[1] for positions in inner])
        return cls(torch.from_numpy(first + shares * (last - first)), torch.from_numpy(shifts))

    def __call__(
        self, positions: Float[Tensor, "n_images n_atoms 3"]
    ) -> tuple[Float[Tensor, "n_images"], Float[Tensor, "n_images n_atoms 3"]]:
        """Energies ½ Σ (d − target)² / d⁴ over ordered pairs, and forces."""
        vectors = positions[:, None] - positions[:, :, None] + self.shifts
        distances = torch.linalg.vector_norm(vectors, dim=3)
        beyond = distances - self.targets
        distances = distances + torch.eye(positions.shape[1], dtype=positions.dtype)  # no atom is a pair with itself
        energies = 0.5 * (beyond**2 / distances**4).sum((1, 2))
        strength = beyond * (1 - 2 * beyond / distances) / distances**5
        return energies, -2 * (strength[..., None] * vectors).sum(1)


def collision(structure: Structure, inner: Float[ndarray, "n_images n_atoms 3"]) -> str:
    """The closest two atoms that have collided in an image, in words; an empty string if none have."""
    worst, said = COLLISION, ""
    for image, positions in enumerate(inner, start=1):
        ratios, distances = _ratios(structure, positions)
        i, j = np.unravel_index(ratios.argmin(), ratios.shape)
        if ratios[i, j] < worst:
            worst = ratios[i, j]
            names = [f"{k} ({chemical_symbols[structure.numbers[k]]})" for k in sorted((int(i), int(j)))]
            said = f"in image {image} atoms {names[0]} and {names[1]} are {distances[i, j]:.2f} Å apart"
    return said


def _ratios(
    structure: Structure, positions: Float[ndarray, "n_atoms 3"]
) -> tuple[Float[ndarray, "n_atoms n_atoms"], Float[ndarray, "n_atoms n_atoms"]]:
    """Distances in sums of covalent radii, infinite between an atom and itself, and in Å."""
    distances = np.linalg.norm(_pair_vectors(positions, structure)[0], axis=2)
    radii = covalent_radii[structure.numbers]
    ratios = distances / (radii[:, None] + radii)
    np.fill_diagonal(ratios, np.inf)
    return ratios, distances


def _pair_vectors(
    positions: Float[ndarray, "n_atoms 3"], structure: Structure
) -> tuple[Float[ndarray, "n_atoms n_atoms 3"], Float[ndarray, "n_atoms n_atoms 3"]]:
    """From each atom (rows) to the nearest image of each other one, and the lattice vector that is in it."""
    plain = positions - positions[:, None]
    nearest = minimum_image(plain.reshape(-1, 3), structure.cell, structure.pbc).reshape(plain.shape)
    return nearest, nearest - plain


def _aside(structure: Structure, inner: Float[ndarray, "n_images n_atoms 3"]) -> Float[ndarray, "n_images n_atoms 3"]:
    """Images in which atoms that would run into each other pass each other, each a little aside of its line.

    On its line the pair potential could not turn them, because it pushes along it.
    """
    meets = np.zeros(len(structure), bool)
    for positions in inner:
        meets |= (_ratios(structure, positions)[0] < COLLISION).any(0)
    if not meets.any():
        return inner
    ways = np.random.default_rng(0).normal(size=(len(structure), 3))
    ways *= (ASIDE * meets / np.linalg.norm(ways, axis=1))[:, None]
    ways = np.einsum("nij,nj->ni", free_directions(structure), ways)
    shares = np.arange(1, len(inner) + 1) / (len(inner) + 1)
    return inner + np.sin(np.pi * shares)[:, None, None] * ways
