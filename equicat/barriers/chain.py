"""Nudged forces on the images of many bands at once, as ASE's ``NEB(method="improvedtangent")`` has them for one.

Improved tangent: Henkelman and Jónsson, J. Chem. Phys. 113, 9978 (2000), eqs. 8 to 12. Climbing image: Henkelman,
Uberuaga and Jónsson, J. Chem. Phys. 113, 9901 (2000), eq. 5.

The images between the ends of all bands stand one after the other in flat arrays of atoms, and the two ends of each
band behind them. Sums run over one image at a time, so the forces of a band do not depend on the bands beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from equicat.relaxation.layout import Layout


@dataclass(frozen=True, eq=False)
class Chain:
    """Where each image of each band stands, and its two neighbours."""

    images: Layout
    """The atoms of the images between the ends, image by image."""
    bands: Layout
    """The atoms of ``images``, band by band."""
    band_idx: Int[Tensor, "n_images"]
    """The band of each image."""
    before: Int[Tensor, "n_images"]
    """The image before each image, among all images and ends."""
    after: Int[Tensor, "n_images"]
    atoms_before: Int[Tensor, "n_atoms"]
    """Each atom in the image before, among the atoms of all images and ends."""
    atoms_after: Int[Tensor, "n_atoms"]

    @classmethod
    def of(cls, n_images: Sequence[int], n_atoms: Sequence[int], device: torch.device | str = "cpu") -> "Chain":
        """The chain of bands with these numbers of images between the ends, and of atoms in an image."""
        of_band, before, after, atoms_before, atoms_after = ([] for _ in range(5))
        n_inner, n_inner_atoms = sum(n_images), sum(m * n for m, n in zip(n_images, n_atoms, strict=True))
        image, atom, end, end_atom = 0, 0, n_inner, n_inner_atoms
        for band, (m, n) in enumerate(zip(n_images, n_atoms, strict=True)):
            numbers = torch.tensor([end, *range(image, image + m), end + 1])
            firsts = torch.tensor([end_atom, *range(atom, atom + m * n, n), end_atom + n])
            atoms = firsts[:, None] + torch.arange(n)
            of_band.append(torch.full((m,), band))
            before.append(numbers[:-2])
            after.append(numbers[2:])
            atoms_before.append(atoms[:-2].reshape(-1))
            atoms_after.append(atoms[2:].reshape(-1))
            image, atom, end, end_atom = image + m, atom + m * n, end + 2, end_atom + 2 * n

        def joined(parts: list[Tensor]) -> Tensor:
            return torch.cat([torch.zeros(0, dtype=torch.int64), *parts]).to(device)

        sizes = torch.tensor(n_atoms, dtype=torch.int64, device=device)
        lengths = torch.tensor(n_images, dtype=torch.int64, device=device)
        return cls(
            Layout.of(torch.repeat_interleave(sizes, lengths)),
            Layout.of(sizes * lengths),
            *map(joined, (of_band, before, after, atoms_before, atoms_after)),
        )

    @property
    def n_images(self) -> int:
        """Images of all bands together, ends not counted."""
        return len(self.band_idx)

    def highest(self, energies: Float[Tensor, "n_images"]) -> Bool[Tensor, "n_images"]:
        """The image of the highest energy in each band; of several equally high ones the first."""
        n, number = self.bands.n_systems, torch.arange(self.n_images, device=energies.device)
        top = energies.new_full((n,), -torch.inf).scatter_reduce_(0, self.band_idx, energies, "amax")
        first = number.new_full((n,), self.n_images)
        rank = torch.where(energies == top[self.band_idx], number, self.n_images)
        return number == first.scatter_reduce_(0, self.band_idx, rank, "amin")[self.band_idx]


def tangents(
    chain: Chain,
    positions: Float[Tensor, "n_all_atoms 3"],
    energies: Float[Tensor, "n_all_images"],
) -> tuple[Float[Tensor, "n_atoms 3"], Float[Tensor, "n_images"]]:
    """Tangent of the path at each image, and how much longer the way to the next image is than that from the last.

    Args:
        chain: the bands.
        positions: of the images between the ends, then of the ends, Å. Images of a band are not wrapped: an atom that
            crosses a boundary of the cell goes on outside.
        energies: of the same images, eV.

    Returns:
        Unit vectors (eqs. 8 to 11; zero where neighbours are at the same place), and the difference of lengths (Å)
        that the springs pull at.
    """
    images, n = chain.images, chain.n_images
    here = positions[: images.n_atoms]
    to_next = positions.index_select(0, chain.atoms_after) - here
    from_last = here - positions.index_select(0, chain.atoms_before)
    before, energy, after = energies[chain.before], energies[:n], energies[chain.after]
    climbs, falls = (after > energy) & (energy > before), (after < energy) & (energy < before)
    largest = torch.maximum((after - energy).abs(), (before - energy).abs())
    smallest = torch.minimum((after - energy).abs(), (before - energy).abs())
    upwards = after > before
    one = torch.ones_like(energy)
    of_next = torch.where(climbs, one, torch.where(falls, 0 * one, torch.where(upwards, largest, smallest)))
    of_last = torch.where(falls, one, torch.where(climbs, 0 * one, torch.where(upwards, smallest, largest)))
    tangent = images.by_atom(of_next) * to_next + images.by_atom(of_last) * from_last
    length = images.dot(tangent, tangent).sqrt()
    tangent = tangent / images.by_atom(torch.where(length > 0, length, one))
    return tangent, images.dot(to_next, to_next).sqrt() - images.dot(from_last, from_last).sqrt()


def nudged_forces(
    chain: Chain,
    positions: Float[Tensor, "n_all_atoms 3"],
    energies: Float[Tensor, "n_all_images"],
    forces: Float[Tensor, "n_atoms 3"],
    k: float,
    climbing: Bool[Tensor, "n_bands"],
) -> Float[Tensor, "n_atoms 3"]:
    """Forces that move the images: across the path those of the potential, along it those of the springs.

    Args:
        chain: the bands.
        positions: of the images between the ends, then of the ends, Å; see :func:`tangents`.
        energies: of the same images, eV.
        forces: of the potential on the images between the ends, along what is free, eV/Å.
        k: spring constant, eV/Å².
        climbing: the bands whose highest image climbs: its force along the path is turned round, without springs.

    Returns:
        eV/Å; zero for atoms that do not move along the path and have no force.
    """
    images = chain.images
    tangent, stretch = tangents(chain, positions, energies)
    along = images.dot(forces, tangent)
    climbs = chain.highest(energies[: chain.n_images]) & climbing[chain.band_idx]
    return forces + images.by_atom(torch.where(climbs, -2 * along, k * stretch - along)) * tangent
