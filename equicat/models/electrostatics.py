"""Energy beyond the cutoff: the latent Ewald summation of charges that a model learns without ever being told one.

Cheng, npj Comput. Mater. 11, 80 (2025), arXiv 2408.15165; with Allegro arXiv 2507.14302. Every atom reads a latent
charge q_i out of its features. These are Gaussians of width σ/√2 each, so that two of them interact like points of
width zero beyond a few σ and smoothly below, where the network learns the rest:

    E = ½ k_e Σ_{i≠j, images} q_i q_j erf(r_ij / (√2 σ)) / r_ij.

The energy of every atom, ½ q_i φ_i, depends on all atoms of its system: it ends strict locality. Work and memory grow
with atoms times volume. Latent charges need not be neutral. In crystals the mean potential is left out (k = 0), which
is a uniform background that neutralises; in slabs charged planes have the potential −2π k_e Q |z| / area.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from equicat.data.batch import Batch
from equicat.errors import InputError
from equicat.models.heads import OutputMLP, ScalarHead
from equicat.networks.features import Features
from equicat.options.values import Checked, Range

COULOMB = 14.399645
"""k_e = e² / 4πε₀, eV Å, as in LAMMPS's metal units."""
TOLERANCE = 1e-6
"""Largest exp(−σ²k²/2) of a wave that is left out, and largest factor on the interaction of a slab with its images."""
HEIGHT_STEP = 4.0
"""Å; heights of the boxes of slabs are multiples of it, so that they seldom change while atoms move."""
MIN_GAP = 8.0
"""Empty space between a slab and its image, in units of σ: there Gaussians no longer overlap."""


@dataclass(frozen=True)
class LongRange(Checked, section="long_range"):
    """Energy of latent charges beyond the cutoff (latent Ewald summation), learned from energies and forces alone."""

    smearing: Annotated[float, Range(at_least=0.3, at_most=10)] | None = None
    """Å, about 1: the width σ in erf(r / (√2 σ)) / r, by which two latent charges interact. null: no such energy. It
    ends strict locality (no LAMMPS, no exports), and is for s2ef with forces that are derivatives."""


class LatentCharges(nn.Module):
    """Latent charges (e) from a read-out of their own, Σ_j MLP(x^ij) / sqrt(n̄) or MLP(x^i), and their energy.

    Args:
        smearing: σ, Å.
        n_features: scalar features of the network.
        output: form of the read-out.
        avg_num_neighbors: n̄.
    """

    def __init__(self, smearing: float, n_features: int, output: OutputMLP, avg_num_neighbors: float):
        super().__init__()
        self.smearing = smearing
        self.head = ScalarHead(n_features, output.hidden, avg_num_neighbors, output.linear)

    def forward(
        self,
        features: Features,
        batch: Batch,
        positions: Float64[Tensor, "n_atoms 3"],
        strain: Float64[Tensor, "n_systems 3 3"],
    ) -> Float64[Tensor, "n_atoms"]:
        """½ q_i φ_i of every atom in eV.

        Args:
            features: of the network.
            batch: gives cells, periodic directions and edges.
            positions: of the batch, Å; the energy is differentiable by them at fixed charges.
            strain: ε of each system, in positions r (1 + ε) and lattice vectors a (1 + ε); differentiable as well.

        Raises:
            InputError: for a system that is periodic in one direction.
        """
        charges = self.head(features, batch.edge_index[0], len(positions)).double()
        moved = positions + torch.einsum("na,nab->nb", positions, strain[batch.system_idx])
        cells, sizes, found = batch.cell + batch.cell @ strain, batch.n_atoms.tolist(), []
        systems = zip(charges.split(sizes), moved.split(sizes), cells, batch.pbc.tolist(), strict=True)
        for k, (q, r, cell, pbc) in enumerate(systems):
            if sum(pbc) == 1:
                where = batch.sources[k] if batch.sources else f"system {k}"
                raise InputError(
                    f"{where}: periodic in one direction, for which there is no energy of latent charges; make it "
                    "periodic in none, two or three, or use a model without long_range"
                )
            found.append(0.5 * q * potential(q, r, cell[pbc], self.smearing))
        return torch.cat(found)


def potential(
    charges: Float64[Tensor, "n_atoms"],
    positions: Float64[Tensor, "n_atoms 3"],
    lattice: Float64[Tensor, "n_periodic 3"],
    smearing: float,
    tolerance: float = TOLERANCE,
) -> Float64[Tensor, "n_atoms"]:
    """φ_i = ∂E/∂q_i in V at the atoms of one system, of all other atoms and all images; E = ½ Σ_i q_i φ_i.

    Args:
        charges: q, e.
        positions: Å.
        lattice: vectors of the periodic directions, Å: three, two or none.
        smearing: σ, Å.
        tolerance: see :data:`TOLERANCE`.
    """
    if len(lattice) == 0:
        return _of_molecule(charges, positions, smearing)
    periodic = _of_slab if len(lattice) == 2 else _of_crystal
    return periodic(charges, positions, lattice, smearing, tolerance)


def _of_molecule(charges: Tensor, positions: Tensor, smearing: float) -> Float64[Tensor, "n_atoms"]:
    """k_e Σ_{j≠i} q_j erf(r_ij / (√2 σ)) / r_ij."""
    itself = torch.eye(len(charges), dtype=charges.dtype, device=charges.device)
    r = torch.sqrt((positions[:, None] - positions).square().sum(2) + itself)  # any length but 0 for an atom and itself
    return COULOMB * ((1 - itself) * torch.erf(r / (math.sqrt(2) * smearing)) / r) @ charges


def _of_crystal(
    charges: Tensor, positions: Tensor, lattice: Tensor, smearing: float, tolerance: float
) -> Float64[Tensor, "n_atoms"]:
    """(4π k_e / V) Σ_{0<|k|<k_c} exp(−σ²k²/2) / k² Σ_j q_j cos(k·r_ij), without the potential of an atom itself."""
    waves = _waves(lattice.detach(), math.sqrt(-2 * math.log(tolerance)) / smearing)
    k = 2 * math.pi * waves @ torch.linalg.inv(lattice).T
    square = k.square().sum(1)
    weight = 8 * math.pi * COULOMB / torch.linalg.det(lattice).abs() * torch.exp(-(smearing**2) / 2 * square) / square
    phase = positions @ k.T
    cos, sin = torch.cos(phase), torch.sin(phase)
    itself = COULOMB * math.sqrt(2 / math.pi) / smearing * charges
    return cos @ (weight * (charges @ cos)) + sin @ (weight * (charges @ sin)) - itself


def _waves(lattice: Float64[Tensor, "3 3"], largest: float) -> Float64[Tensor, "n_waves 3"]:
    """Whole numbers n of the waves k = 2π n·(a, b, c)⁻¹ with 0 < |k| < ``largest`` (1/Å), one of each pair ±n."""
    bounds = (largest / (2 * math.pi) * torch.linalg.vector_norm(lattice, dim=1)).long().tolist()
    n = torch.cartesian_prod(*(torch.arange(-b, b + 1, device=lattice.device) for b in bounds)).to(lattice)
    n = n[len(n) // 2 + 1 :]  # in lexicographic order −n stands as far before 0 as n behind it
    k = 2 * math.pi * n @ torch.linalg.inv(lattice).T
    return n[torch.linalg.vector_norm(k, dim=1) < largest]


def _of_slab(
    charges: Tensor, positions: Tensor, lattice: Tensor, smearing: float, tolerance: float
) -> Float64[Tensor, "n_atoms"]:
    """The sum over a lattice in the plane: that of a crystal of slabs, less the part of its images.

    Yeh and Berkowitz, J. Chem. Phys. 111, 3155 (1999), for neutral slabs; Ballenegger, Arnold and Cerdà, J. Chem. Phys.
    131, 094107 (2009), for charged ones; the second moment σ² of Gaussians is added here. What is left of the images
    falls off as exp(−G gap), G the shortest wave of the plane; the gap is our own choice, whatever the cell has.
    """
    normal = torch.linalg.cross(lattice[0], lattice[1])
    area = torch.linalg.vector_norm(normal)
    normal = normal / area
    z = positions @ normal
    z = z - z.detach().mean()
    height = _height(lattice.detach(), float(z.detach().max() - z.detach().min()), smearing, tolerance)
    box = torch.cat([lattice, height * normal[None]])
    total, dipole, second = charges.sum(), charges @ z, charges @ z.square()
    images = z.square() * total - 2 * z * dipole + second + (smearing**2 + height**2 / 6) * total
    return _of_crystal(charges, positions, box, smearing, tolerance) - 2 * math.pi * COULOMB / (area * height) * images


def _height(lattice: Float64[Tensor, "2 3"], thickness: float, smearing: float, tolerance: float) -> float:
    """Å; height of the box of a slab, such that exp(−G gap) is below the tolerance.

    A vector of the lattice is a multiple of a, or its part across a is at least area / |a|. So no wave of the plane is
    shorter than 2π min(|a| / area, 1 / |a|), and nor than the same with b.
    """
    area = float(torch.linalg.vector_norm(torch.linalg.cross(lattice[0], lattice[1])))
    lengths = torch.linalg.vector_norm(lattice, dim=1).tolist()
    shortest = 2 * math.pi * max(min(length / area, 1 / length) for length in lengths)
    gap = max(-math.log(tolerance) / shortest, MIN_GAP * smearing)
    return math.ceil((thickness + gap) / HEIGHT_STEP) * HEIGHT_STEP
