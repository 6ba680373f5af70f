"""Repulsion of nuclei at short distances: Ziegler, Biersack and Littmark, Stopping and Range of Ions in Solids (1985).

What a model learned says nothing of distances that its data lack; this keeps atoms apart there.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat.models.electrostatics import COULOMB, LongRange
from equicat.networks.layers import polynomial_envelope

LENGTH = 0.4685
"""Å; over Z_i^0.23 + Z_j^0.23 it is the screening length."""
SCREENING = ((0.02817, 0.20162), (0.28022, 0.4029), (0.50986, 0.94229), (0.18175, 3.1998))
"""Coefficients and exponents of the universal screening function, with the digits of LAMMPS's pair style zbl."""


@dataclass(frozen=True)
class Repulsion:
    """How the repulsion is switched off at the cutoff."""

    envelope_p: int = 6
    """Exponent of the polynomial envelope."""
    cutoffs: tuple[float, ...] = (6.0,)
    """Å: one for all, or one for each ordered pair of elements (centre, neighbour), row by row."""


class ZBL(nn.Module):
    """E_i = ½ Σ_j e²/4πε₀ · Z_i Z_j / r · φ(r (Z_i^0.23 + Z_j^0.23) / 0.4685 Å) · u(r / cutoff), eV.

    Args:
        repulsion: envelope and cutoffs.
        elements: atomic numbers by species.
    """

    prefactor: Tensor
    inverse_length: Tensor
    inverse_cutoff: Tensor

    def __init__(self, repulsion: Repulsion, elements: tuple[int, ...]):
        super().__init__()
        self.envelope_p, n = repulsion.envelope_p, len(elements)
        z = torch.tensor(elements, dtype=torch.float64)
        by_pair = {
            "prefactor": 0.5 * COULOMB * z[:, None] * z,
            "inverse_length": (z[:, None] ** 0.23 + z**0.23) / LENGTH,
            "inverse_cutoff": 1 / torch.tensor(repulsion.cutoffs, dtype=torch.float64).expand(n * n),
        }
        for name, table in by_pair.items():
            self.register_buffer(name, table.flatten().clone(), persistent=False)

    def forward(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
        n_species: int,
    ) -> Float[Tensor, "n_atoms"]:
        """Energy of each atom."""
        center, neighbor = edge_index
        pair = species[center] * n_species + species[neighbor]
        r = torch.linalg.vector_norm(edge_vec, dim=1)
        d = r * self.inverse_length[pair].to(r)
        screening = torch.stack([c * torch.exp(-k * d) for c, k in SCREENING]).sum(0)
        u = polynomial_envelope(r * self.inverse_cutoff[pair].to(r), self.envelope_p)
        energy = self.prefactor[pair].to(r) / r * screening * u
        return torch.zeros_like(species, dtype=energy.dtype).index_add(0, center, energy)


@dataclass(frozen=True)
class EnergyTerms:
    """Per-element scale factors and a repulsion, which models converted from nequip-allegro have; latent charges."""

    factors: tuple[float, ...] | None = None
    """Factor on the energies of each element's atoms, ascending by atomic number; None: 1."""
    repulsion: Repulsion | None = None
    """Repulsion of the nuclei, added to the energies; None: none."""
    long_range: LongRange = field(default_factory=LongRange)
    """Energy of latent charges, added to the energies; by default there is none."""


NO_TERMS = EnergyTerms()
"""Neither factors nor a repulsion, and no latent charges."""
