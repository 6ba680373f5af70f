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
from equicat.kernels.gpu.geometry import PI, couplings, envelope_of, harmonics_back, harmonics_of

EMBEDDED = 4096
"""Edges times columns of a program."""


@triton.jit
@no_type_check
def _distances(edges, elements, e, in_e):
    """Direction and length of pair vectors, and the ordered pairs of elements."""
    vectors, index, species = edges
    x = tl.load(vectors + 3 * e, mask=in_e, other=1)
    y = tl.load(vectors + 3 * e + 1, mask=in_e, other=0)
    z = tl.load(vectors + 3 * e + 2, mask=in_e, other=0)
    r = tl.sqrt(x * x + y * y + z * z)
    center = tl.load(index + e, mask=in_e, other=0)
    neighbor = tl.load(index + elements[0] + e, mask=in_e, other=0)
    n_species = elements[1]
    pair = tl.load(species + center, mask=in_e, other=0) * n_species + tl.load(species + neighbor, mask=in_e, other=0)
    return (x / r, y / r, z / r), r, pair


@triton.jit
@no_type_check
def _embed(edges, elements, radial, out, sizes: constexpr, couplings: constexpr):
    """The embedding and the harmonics of some edges."""
    inverse_cutoff, frequencies, weights, table = radial
    width: constexpr = sizes[0]
    padded: constexpr = sizes[1]
    n_radial: constexpr = sizes[2]
    p: constexpr = sizes[3]
    l_max: constexpr = sizes[4]
    tile: constexpr = sizes[5]
    e = tl.program_id(0) * tile + tl.arange(0, tile)
    in_e = e < elements[0]
    unit, r, pair = _distances(edges, elements, e, in_e)
    x = r * tl.load(inverse_cutoff + pair, mask=in_e, other=0)
    envelope = envelope_of(x, p)[0]
    u = tl.arange(0, padded)
    sums = tl.zeros((tile, padded), tl.float32)
    for n in range(n_radial):
        function = tl.sin(tl.load(frequencies + n) * x) / (x * PI) * envelope
        sums += function[:, None] * tl.load(weights + n * width + u, mask=u < width, other=0)[None, :]
    in_eu = in_e[:, None] & (u < width)[None, :]
    sums *= tl.load(table + pair[:, None] * width + u[None, :], mask=in_eu, other=0)
    at = e.to(tl.int64)
    tl.store(out[0] + at[:, None] * width + u[None, :], sums, mask=in_eu)
    y = harmonics_of(unit, couplings, l_max)
    for lm in tl.static_range((l_max + 1) * (l_max + 1)):
        tl.store(out[1] + at * (l_max + 1) * (l_max + 1) + lm, y[lm], mask=in_e)


@triton.jit
@no_type_check
def _embed_back(edges, elements, radial, grads, out, sizes: constexpr, couplings: constexpr):
    """The gradient by the pair vectors from those by the embedding and by the harmonics."""
    inverse_cutoff, frequencies, weights, table = radial
    width: constexpr = sizes[0]
    padded: constexpr = sizes[1]
    n_radial: constexpr = sizes[2]
    p: constexpr = sizes[3]
    l_max: constexpr = sizes[4]
    tile: constexpr = sizes[5]
    e = tl.program_id(0) * tile + tl.arange(0, tile)
    in_e, at = e < elements[0], e.to(tl.int64)
    unit, r, pair = _distances(edges, elements, e, in_e)
    scale = tl.load(inverse_cutoff + pair, mask=in_e, other=0)
    x = r * scale
    envelope, envelope_slope = envelope_of(x, p)
    u = tl.arange(0, padded)
    in_eu = in_e[:, None] & (u < width)[None, :]
    by_sums = tl.load(grads[0] + at[:, None] * width + u[None, :], mask=in_eu, other=0)
    by_sums *= tl.load(table + pair[:, None] * width + u[None, :], mask=in_eu, other=0)
    by_x = tl.zeros_like(x)
    for n in range(n_radial):
        w = tl.load(weights + n * width + u, mask=u < width, other=0)
        frequency = tl.load(frequencies + n)
        function = tl.sin(frequency * x) / (x * PI)
        rising = (frequency * tl.cos(frequency * x) / PI - function) / x
        by_x += tl.sum(by_sums * w[None, :], axis=1) * (rising * envelope + function * envelope_slope)
    by_r = tl.where(in_e, by_x * scale, 0)
    by_unit = harmonics_back(grads[1], at, in_e, unit, couplings, l_max)
    along = by_unit[0] * unit[0] + by_unit[1] * unit[1] + by_unit[2] * unit[2]
    for k in tl.static_range(3):
        tl.store(out + 3 * at + k, (by_unit[k] - along * unit[k]) / r + by_r * unit[k], mask=in_e)


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
