"""A linear model of adsorption energies: the adsorbate's elements, and the elements of the slab right below them."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from equicat.data.batch import Batch

DECAY = 0.3
"""Å; slab atoms that are further from an atom of the adsorbate by this count e times less."""


class LocalLinear(nn.Module):
    """E = Σ_i (α_{Z_i} + Σ_j w_ij β_{Z_j} / (w_c + Σ_j w_ij)), i over the adsorbate's atoms and j over the slab's.

    The weights w_ij = exp(−r_ij / 0.3 Å) (1 − r_ij / r_c)² make the second term a mean over the slab atoms that are
    nearest to atom i; w_c = exp(−r_c / 0.3 Å) / 10 takes it to 0 when the last of them leaves the cutoff. The model is
    strictly local: a clean slab has 0 eV, and slabs of any size have the same energy.

    Args:
        n_elements: number of elements.
        cutoff: r_c, Å.
        share: of this model in a prediction, between 0 and 1.
    """

    coefficients: Float[Tensor, "n_elements 2"]
    """α and β of each element, eV."""

    def __init__(self, n_elements: int, cutoff: float, share: float):
        super().__init__()
        self.cutoff, self.share = cutoff, share
        self.register_buffer("coefficients", torch.zeros(n_elements, 2, dtype=torch.float64))

    def forward(
        self, batch: Batch, species: Int[Tensor, "n_atoms"], adsorbate: Bool[Tensor, "n_atoms"]
    ) -> Float[Tensor, "n_systems"]:
        """Energies in eV, float64.

        Args:
            batch: systems, with the edges of the adsorbate's atoms at least.
            species: index of each atom's element.
            adsorbate: the atoms whose energies are summed.
        """
        return self.descriptors(batch, species, adsorbate).flatten(1) @ self.coefficients.double().flatten()

    def descriptors(
        self, batch: Batch, species: Int[Tensor, "n_atoms"], adsorbate: Bool[Tensor, "n_atoms"]
    ) -> Float[Tensor, "n_systems n_elements 2"]:
        """Numbers that the coefficients are multiplied with: atoms of the adsorbate, and sums of shares of the slab
        atoms near each of them, by element; float64."""
        center, neighbor = batch.edge_index
        read = adsorbate[center] & ~adsorbate[neighbor]
        center, neighbor = center[read], neighbor[read]
        length = batch.edge_vec().detach()[read].double().norm(dim=1)
        weight = torch.exp(-length / DECAY) * (1 - length / self.cutoff).clamp(min=0).square()
        total = weight.new_zeros(len(species)).index_add(0, center, weight)
        weight = weight / (total[center] + math.exp(-self.cutoff / DECAY) / 10)
        found = weight.new_zeros(batch.n_systems, len(self.coefficients), 2)
        found.index_put_((batch.system_idx, species, torch.zeros_like(species)), adsorbate.to(weight), accumulate=True)
        found.index_put_(
            (batch.system_idx[center], species[neighbor], torch.ones_like(neighbor)), weight, accumulate=True
        )
        return found
