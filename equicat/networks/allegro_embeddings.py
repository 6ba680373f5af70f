"""How Allegro first describes a pair: its distance and the elements of both atoms."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat.networks.allegro import AllegroConfig, Geometry
from equicat.networks.layers import MLP, BesselBasis, linear_weight, silu


class TwoBody(nn.Module):
    """x^ij,0 = MLP(1hot(Z_i) ‖ 1hot(Z_j) ‖ B(r_ij)) u(r_ij), eq. 13 without its first product.

    A one-hot vector times a matrix is a row of the matrix: the first layer adds a row of a table of ordered pairs.
    Its variance counts the entries that are non-zero (two of the one-hots), not all that there are.
    """

    def __init__(self, config: AllegroConfig, n_species: int):
        super().__init__()
        width = config.two_body_mlp[0]
        scale = 1 / math.sqrt(2 + config.n_bessel)
        self.center_embedding = nn.Parameter(torch.randn(n_species, width) * scale)
        self.neighbor_embedding = nn.Parameter(torch.randn(n_species, width) * scale)
        self.radial = nn.Parameter(torch.randn(config.n_bessel, width) * scale)
        self.bessel = BesselBasis(config.n_bessel, config.bessel_trainable, config.normalize_basis)
        self.mlp = MLP(config.two_body_mlp, silu_input=True)

    def forward(self, geometry: Geometry, table: Float[Tensor, "n_pairs width"]) -> Float[Tensor, "n_edges n_features"]:
        first = torch.addmm(table.index_select(0, geometry.pair), geometry.radial, self.radial)
        return self.mlp(silu(first)) * geometry.envelope

    def table(self) -> Float[Tensor, "n_pairs width"]:
        """The rows of all ordered pairs of elements."""
        return (self.center_embedding[:, None] + self.neighbor_embedding[None, :]).flatten(0, 1)


class ProductEmbedding(nn.Module):
    """(c[Z_i] ‖ n[Z_j]) ∘ B(r) W: a learned vector of the ordered pair times radial functions."""

    def __init__(self, n_radial: int, width: int, n_species: int):
        super().__init__()
        self.center = nn.Parameter(torch.randn(n_species, width // 2))
        self.neighbor = nn.Parameter(torch.randn(n_species, width // 2))
        self.radial = linear_weight(n_radial, width)

    def forward(
        self, basis: Float[Tensor, "n_edges n_radial"], pair: Int[Tensor, "n_edges"]
    ) -> Float[Tensor, "n_edges width"]:
        return self.table().index_select(0, pair) * (basis @ self.radial)

    def table(self) -> Float[Tensor, "n_pairs width"]:
        """c[Z_i] ‖ n[Z_j] of all ordered pairs."""
        n = len(self.center)
        return torch.cat([self.center.repeat_interleave(n, 0), self.neighbor.repeat(n, 1)], dim=1)


class SplineEmbedding(nn.Module):
    """Σ_s φ_s(r) W[Z_i, Z_j, s]: each ordered pair of elements has its own radial functions."""

    def __init__(self, n_radial: int, span: int, width: int, n_species: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_species**2, n_radial, width) / math.sqrt(max(span, 1)))

    def forward(
        self, basis: Float[Tensor, "n_edges n_radial"], pair: Int[Tensor, "n_edges"]
    ) -> Float[Tensor, "n_edges width"]:
        """One product for each ordered pair of elements that occurs; edges are never given a matrix of their own."""
        order = pair.argsort()
        present, counts = torch.unique_consecutive(pair[order], return_counts=True)
        rows = basis.index_select(0, order).split(counts.tolist())
        found = [r @ self.weight[p] for r, p in zip(rows, present.tolist(), strict=True)]
        out = torch.cat([basis[:0] @ self.weight[0], *found])  # the first is empty, and there without any edge, too
        return out.index_select(0, torch.empty_like(order).scatter_(0, order, torch.arange(len(order)).to(order)))
