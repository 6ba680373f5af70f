"""Triton kernels of the embedding and the harmonics of edges in a nequip-allegro network.

From pair vectors and elements to Bessel functions, their product with matrix and table, and Y_lm; and back to the pair
vectors: one launch each, where operators are dozens. Training has two more: how embedding and harmonics change along a
direction, and derivatives by matrix and table. Importing this needs Triton.
"""

from dataclasses import dataclass
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.language import constexpr

from equicat.kernels.edges import Edges
from equicat.kernels.gpu.geometry import (
    bessel_of,
    couplings,
    direction_of,
    envelope_of,
    harmonics_back,
    harmonics_of,
    load_moves,
    moving_harmonics,
    store_gradient,
    store_harmonics,
)

EMBEDDED = 4096
"""Edges times columns of a program."""
MAX_TILE = 64
"""Edges of a program, at most: registers hold sines and cosines of so many."""
FEW_PAIRS = 128
"""Ordered pairs of elements up to which sums over their edges are a product of matrices."""


@triton.jit
@no_type_check
def _load_edges(edges, elements, inverse_cutoff, tile: constexpr):
    """Numbers of edges, which exist, directions and lengths, the ordered pairs of elements, and 1 / cutoff of these."""
    vectors, index, species = edges
    n_edges, n_species = elements
    e = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    in_e = e < n_edges
    unit, r = direction_of(vectors, e, in_e)
    center = tl.load(index + e, mask=in_e, other=0)
    neighbor = tl.load(index + n_edges + e, mask=in_e, other=0)
    pair = tl.load(species + center, mask=in_e, other=0) * n_species + tl.load(species + neighbor, mask=in_e, other=0)
    return e, in_e, unit, r, pair, tl.load(inverse_cutoff + pair, mask=in_e, other=1)


@triton.jit
@no_type_check
def _functions(x, radial, sizes: constexpr):
    """Bessel functions of edges times the envelope, and their derivatives by x, side by side, so that each is computed
    once; and the matrix that multiplies them.
    """
    _, frequencies, weights, _ = radial
    envelope, slope = envelope_of(x, sizes[3])
    n, u = tl.arange(0, sizes[6]), tl.arange(0, sizes[1])
    in_n, in_u = n < sizes[2], u < sizes[0]
    functions, rising, _ = bessel_of(tl.load(frequencies + n, mask=in_n, other=0)[None, :], x[:, None])
    w_nu = tl.load(weights + n[:, None] * sizes[0] + u[None, :], mask=in_n[:, None] & in_u[None, :], other=0)
    slopes = rising * envelope[:, None] + functions * slope[:, None]
    return functions * envelope[:, None], slopes, w_nu, u, in_u


@triton.jit
@no_type_check
def _embed(edges, elements, radial, out, sizes: constexpr, couplings: constexpr):
    """The embedding and the harmonics of some edges."""
    inverse_cutoff, _, _, table = radial
    width: constexpr = sizes[0]
    tile: constexpr = sizes[5]
    e, in_e, unit, r, pair, per_r = _load_edges(edges, elements, inverse_cutoff, tile)
    functions, _, w_nu, u, in_u = _functions(r * per_r, radial, sizes)
    sums = tl.dot(functions, w_nu, input_precision="ieee")
    in_eu = in_e[:, None] & in_u[None, :]
    sums *= tl.load(table + pair[:, None] * width + u[None, :], mask=in_eu, other=0)
    tl.store(out[0] + e[:, None] * width + u[None, :], sums, mask=in_eu)
    store_harmonics(out[1], e, in_e, harmonics_of(unit, couplings, sizes[4]))


@triton.jit
@no_type_check
def _embed_back(edges, elements, radial, grads, out, sizes: constexpr, couplings: constexpr):
    """The gradient by the pair vectors from those by the embedding and by the harmonics."""
    inverse_cutoff, _, _, table = radial
    width: constexpr = sizes[0]
    e, in_e, unit, r, pair, per_r = _load_edges(edges, elements, inverse_cutoff, sizes[5])
    _, slopes, w_nu, u, in_u = _functions(r * per_r, radial, sizes)
    in_eu = in_e[:, None] & in_u[None, :]
    by_sums = tl.load(grads[0] + e[:, None] * width + u[None, :], mask=in_eu, other=0)
    by_sums *= tl.load(table + pair[:, None] * width + u[None, :], mask=in_eu, other=0)
    by_x = tl.sum(tl.dot(by_sums, tl.trans(w_nu), input_precision="ieee") * slopes, axis=1)
    by_unit = harmonics_back(grads[1], e, in_e, unit, couplings, sizes[4])
    store_gradient(out, e, in_e, unit, r, by_unit, by_x * per_r)


@triton.jit
@no_type_check
def _embed_moving(edges, elements, radial, moves, out, sizes: constexpr, couplings: constexpr):
    """How the embedding and the harmonics change when pair vectors move."""
    inverse_cutoff, _, _, table = radial
    width: constexpr = sizes[0]
    e, in_e, unit, r, pair, per_r = _load_edges(edges, elements, inverse_cutoff, sizes[5])
    along, turning = load_moves(moves, e, in_e, unit, r)
    _, slopes, w_nu, u, in_u = _functions(r * per_r, radial, sizes)
    in_eu = in_e[:, None] & in_u[None, :]
    sums = tl.dot(slopes * (along * per_r)[:, None], w_nu, input_precision="ieee")
    sums *= tl.load(table + pair[:, None] * width + u[None, :], mask=in_eu, other=0)
    tl.store(out[0] + e[:, None] * width + u[None, :], sums, mask=in_eu)
    store_harmonics(out[1], e, in_e, moving_harmonics(unit, turning, couplings, sizes[4]))


@triton.jit
@no_type_check
def _embed_by_weights(edges, elements, radial, moves, grads, out, sizes: constexpr, couplings: constexpr):
    """Derivatives of Σ X · G + Σ (change of X) · D by the matrix, for a program's edges, and by T of each edge."""
    inverse_cutoff, _, _, table = radial
    width: constexpr = sizes[0]
    e, in_e, unit, r, pair, per_r = _load_edges(edges, elements, inverse_cutoff, sizes[5])
    along, _ = load_moves(moves, e, in_e, unit, r)
    functions, slopes, w_nu, u, in_u = _functions(r * per_r, radial, sizes)
    changes = slopes * (along * per_r)[:, None]
    in_eu = in_e[:, None] & in_u[None, :]
    at = e[:, None] * width + u[None, :]
    by_x, by_change = tl.load(grads[0] + at, mask=in_eu, other=0), tl.load(grads[1] + at, mask=in_eu, other=0)
    by_table = by_x * tl.dot(functions, w_nu, input_precision="ieee")
    tl.store(out[0] + at, by_table + by_change * tl.dot(changes, w_nu, input_precision="ieee"), mask=in_eu)
    t = tl.load(table + pair[:, None] * width + u[None, :], mask=in_eu, other=0)
    # Edges beyond the last one have zeros in both gradients.
    total = tl.dot(tl.trans(functions), by_x * t, input_precision="ieee")
    total += tl.dot(tl.trans(changes), by_change * t, input_precision="ieee")
    n = tl.arange(0, sizes[6])
    to = (tl.program_id(0) * sizes[2] + n)[:, None] * width + u[None, :]
    tl.store(out[1] + to, total, mask=(n < sizes[2])[:, None] & in_u[None, :])


@dataclass(frozen=True, eq=False)
class Embedding:
    """Bessel functions times an envelope times a matrix times a vector of the ordered pair of elements."""

    inverse_cutoff: Float[Tensor, "n_pairs"]
    """1/Å."""
    frequencies: Float[Tensor, "n_radial"]
    weights: Float[Tensor, "n_radial width"]
    table: Float[Tensor, "n_pairs width"]
    envelope_p: int
    l_max: int
    n_species: int

    def __call__(self, edges: Edges) -> tuple[Float[Tensor, "n_edges width"], Float[Tensor, "n_edges dim"]]:
        """The embedding and the harmonics of edges."""
        n, like = len(edges.edge_vec), self.weights
        out = like.new_empty(n, self.weights.shape[1]), like.new_empty(n, (self.l_max + 1) ** 2)
        self._launch(_embed, edges, out)
        return out

    def back(
        self, edges: Edges, by_embedding: Float[Tensor, "n_edges width"], by_harmonics: Float[Tensor, "n_edges dim"]
    ) -> Float[Tensor, "n_edges 3"]:
        """The gradient by the pair vectors from those by the embedding and the harmonics, both contiguous."""
        out = self.weights.new_empty(len(by_embedding), 3)
        self._launch(_embed_back, edges, (by_embedding, by_harmonics), out)
        return out

    def moving(
        self, edges: Edges, moves: Float[Tensor, "n_edges 3"]
    ) -> tuple[Float[Tensor, "n_edges width"], Float[Tensor, "n_edges dim"]]:
        """How the embedding and the harmonics change along moves of the pair vectors, which are contiguous."""
        n, like = len(moves), self.weights
        out = like.new_empty(n, like.shape[1]), like.new_empty(n, (self.l_max + 1) ** 2)
        self._launch(_embed_moving, edges, moves, out)
        return out

    def by_weights(
        self,
        edges: Edges,
        moves: Float[Tensor, "n_edges 3"],
        by_embedding: Float[Tensor, "n_edges width"],
        by_change: Float[Tensor, "n_edges width"],
    ) -> tuple[Float[Tensor, "n_radial width"], Float[Tensor, "n_pairs width"]]:
        """Derivatives by the matrix and by the table, from those by the embedding and by how it changes along moves."""
        by_each = torch.empty_like(by_embedding)
        by_matrix = self.weights.new_empty(triton.cdiv(len(moves), self._tile), *self.weights.shape)
        self._launch(_embed_by_weights, edges, moves, (by_embedding, by_change), (by_each, by_matrix))
        pair = edges.species[edges.edge_index[0]] * self.n_species + edges.species[edges.edge_index[1]]
        if len(self.table) > FEW_PAIRS:
            return by_matrix.sum(0), torch.zeros_like(self.table).index_add_(0, pair, by_each)
        which = (pair[:, None] == torch.arange(len(self.table), device=pair.device)).to(by_each)
        return by_matrix.sum(0), which.t() @ by_each

    @property
    def _tile(self) -> int:
        """Edges of a program."""
        return max(min(EMBEDDED // self._padded, MAX_TILE), 1)

    @property
    def _padded(self) -> int:
        """Columns of a program; products of matrices ask for 16."""
        return max(triton.next_power_of_2(self.weights.shape[1]), 16)

    def _launch(self, kernel: Any, edges: Edges, *arrays: Tensor | tuple[Tensor, ...]) -> None:
        width = self.weights.shape[1]
        widths, tile = (width, self._padded, len(self.frequencies)), self._tile
        with torch.cuda.device_of(self.weights):
            kernel[(triton.cdiv(len(edges.edge_vec), tile),)](
                tuple(edges),
                (len(edges.edge_vec), self.n_species),
                (self.inverse_cutoff, self.frequencies, self.weights, self.table),
                *arrays,
                sizes=(*widths, self.envelope_p, self.l_max, tile, max(triton.next_power_of_2(widths[2]), 16)),
                couplings=couplings(self.l_max),
                num_warps=4,
            )
