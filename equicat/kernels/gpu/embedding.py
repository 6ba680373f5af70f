"""Triton kernels of the embedding and the harmonics of edges in a nequip-allegro network, for inference.

From pair vectors and elements to Bessel functions, their product with matrix and table, and Y_lm; and back to the pair
vectors: one launch each, where operators are dozens. Importing this needs Triton.
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
    store_gradient,
    store_harmonics,
)

EMBEDDED = 4096
"""Edges times columns of a program."""


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
def _embed(edges, elements, radial, out, sizes: constexpr, couplings: constexpr):
    """The embedding and the harmonics of some edges."""
    inverse_cutoff, frequencies, weights, table = radial
    width: constexpr = sizes[0]
    padded: constexpr = sizes[1]
    tile: constexpr = sizes[5]
    e, in_e, unit, r, pair, per_r = _load_edges(edges, elements, inverse_cutoff, tile)
    x = r * per_r
    envelope, _ = envelope_of(x, sizes[3])
    u = tl.arange(0, padded)
    sums = tl.zeros((tile, padded), tl.float32)
    for n in range(sizes[2]):
        function, _, _ = bessel_of(tl.load(frequencies + n), x)
        sums += (function * envelope)[:, None] * tl.load(weights + n * width + u, mask=u < width, other=0)[None, :]
    in_eu = in_e[:, None] & (u < width)[None, :]
    sums *= tl.load(table + pair[:, None] * width + u[None, :], mask=in_eu, other=0)
    tl.store(out[0] + e[:, None] * width + u[None, :], sums, mask=in_eu)
    store_harmonics(out[1], e, in_e, harmonics_of(unit, couplings, sizes[4]))


@triton.jit
@no_type_check
def _embed_back(edges, elements, radial, grads, out, sizes: constexpr, couplings: constexpr):
    """The gradient by the pair vectors from those by the embedding and by the harmonics."""
    inverse_cutoff, frequencies, weights, table = radial
    width: constexpr = sizes[0]
    padded: constexpr = sizes[1]
    e, in_e, unit, r, pair, per_r = _load_edges(edges, elements, inverse_cutoff, sizes[5])
    x = r * per_r
    envelope, slope = envelope_of(x, sizes[3])
    u = tl.arange(0, padded)
    in_eu = in_e[:, None] & (u < width)[None, :]
    by_sums = tl.load(grads[0] + e[:, None] * width + u[None, :], mask=in_eu, other=0)
    by_sums *= tl.load(table + pair[:, None] * width + u[None, :], mask=in_eu, other=0)
    by_x = tl.zeros_like(x)
    for n in range(sizes[2]):
        function, rising, _ = bessel_of(tl.load(frequencies + n), x)
        w = tl.load(weights + n * width + u, mask=u < width, other=0)
        by_x += tl.sum(by_sums * w[None, :], axis=1) * (rising * envelope + function * slope)
    by_unit = harmonics_back(grads[1], e, in_e, unit, couplings, sizes[4])
    store_gradient(out, e, in_e, unit, r, by_unit, by_x * per_r)


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

    def _launch(self, kernel: Any, edges: Edges, *arrays: Tensor | tuple[Tensor, ...]) -> None:
        width = self.weights.shape[1]
        padded = triton.next_power_of_2(width)
        widths, tile = (width, padded, len(self.frequencies)), max(EMBEDDED // padded, 1)
        with torch.cuda.device_of(self.weights):
            kernel[(triton.cdiv(len(edges.edge_vec), tile),)](
                tuple(edges),
                (len(edges.edge_vec), self.n_species),
                (self.inverse_cutoff, self.frequencies, self.weights, self.table),
                *arrays,
                sizes=(*widths, self.envelope_p, self.l_max, tile),
                couplings=couplings(self.l_max),
                num_warps=4,
            )
