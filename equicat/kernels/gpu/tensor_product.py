"""The Triton kernel of :func:`equicat.kernels.forms.tensor_product`, for GPUs; importing this needs Triton.

It computes the derivatives of one form, linear in each of its three arguments, where a column c is a component of a
path, k counts the components of V that enter it, and u channels:

F(V, M, B) = Σ_e Σ_cku B[e, c, u] V[e, k, u] M[i(e), c, k, u]

A program has one centre and one irrep of V, with all columns that begin with this irrep. Their list is read from a
table, so that code is written out for the components of an irrep only; nothing is padded to equal degrees. What it
sums over edges it keeps and writes once, and what belongs to an edge only it writes: no atomics, the same numbers every
time.
"""

from collections.abc import Sequence
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from triton.language import constexpr

from equicat.kernels.gpu.environment import zeros
from equicat.kernels.irreps import Contraction

LANES = 32
"""Threads of a warp."""
EDGES = (4, 1, 4)
"""How many edges a thread works on at a time, in ∂F/∂V, ∂F/∂M and ∂F/∂B: rows of M are read once for these."""
COLUMNS = tl.constexpr(4)
"""How many columns are summed over edges at a time: V is read once for these."""


@triton.jit
@no_type_check
def _tile(start, end, channels, tile: constexpr):
    """Some edges, which of their numbers exist, and channels once for each edge."""
    u, n_channels = channels
    e = start + tl.arange(0, tile)
    return e, (e < end)[:, None] & (u < n_channels)[None, :], u[None, :] + tl.zeros_like(e)[:, None]


@triton.jit
@no_type_check
def _load_irrep(v, e, in_eu, channels, dim: constexpr):
    """The components of V, each [edges, channels]."""
    u, n_channels = channels
    components = ()
    for k in tl.static_range(dim):
        at = (e * dim + k)[:, None] * n_channels + u[None, :]
        components = components + (tl.load(v + at, mask=in_eu, other=0),)
    return components


@triton.jit
@no_type_check
def _select(tensors, which):
    """One of several, known only when the kernel runs."""
    chosen = tensors[0]
    for k in tl.static_range(1, len(tensors)):
        if which == k:
            chosen = tensors[k]
    return chosen


@triton.jit
@no_type_check
def _entries(column, columns, b, e, channels):
    """Where B has a column: pointers [edges, channels]."""
    u, n_channels = channels
    entry = columns[0] + 4 * column
    rows = e * tl.load(entry + 2) + tl.load(entry + 3)
    return _select(b, tl.load(entry + 1)) + (rows[:, None] * n_channels + u[None, :])


@triton.jit
@no_type_check
def _by_v(arguments, edges, columns, channels, dim: constexpr, tile: constexpr, width: constexpr):
    """∂F/∂V[e, k] = Σ_c B[e, c] M[c, k]."""
    v, m, b = arguments
    u, n_channels = channels
    for start in range(edges[0], edges[1], tile):
        e, in_eu, u_eu = _tile(start, edges[1], channels, tile)
        sums = zeros(tile, width, dim, m.dtype.element_ty)
        for column in range(columns[1], columns[2]):
            b_eu = tl.load(_entries(column, columns, b, e, channels), mask=in_eu, other=0)
            row = m + (column - columns[1]) * dim * n_channels
            added = ()
            for k in tl.static_range(dim):
                added = added + (sums[k] + b_eu * tl.load(row + k * n_channels + u_eu, mask=in_eu, other=0),)
            sums = added
        for k in tl.static_range(dim):
            tl.store(v + ((e * dim + k)[:, None] * n_channels + u[None, :]), sums[k], mask=in_eu)


@triton.jit
@no_type_check
def _by_m(arguments, edges, columns, channels, dim: constexpr, tile: constexpr, width: constexpr):
    """∂F/∂M[c, k] = Σ_e B[e, c] V[e, k]."""
    v, m, b = arguments
    u, n_channels = channels
    for block in range(columns[1], columns[2], COLUMNS):
        sums = zeros(tile, width, COLUMNS * dim, m.dtype.element_ty)
        for start in range(edges[0], edges[1], tile):
            e, in_eu, _ = _tile(start, edges[1], channels, tile)
            v_k = _load_irrep(v, e, in_eu, channels, dim)
            added = ()
            for c in tl.static_range(COLUMNS):
                column = tl.minimum(block + c, columns[2] - 1)
                b_eu = tl.load(_entries(column, columns, b, e, channels), mask=in_eu, other=0)
                for k in tl.static_range(dim):
                    added = added + (sums[c * dim + k] + b_eu * v_k[k],)
            sums = added
        for c in tl.static_range(COLUMNS):
            exists = (u < n_channels) & (block + c < columns[2])
            row = m + (block + c - columns[1]) * dim * n_channels
            for k in tl.static_range(dim):
                tl.store(row + k * n_channels + u, tl.sum(sums[c * dim + k], axis=0), mask=exists)


@triton.jit
@no_type_check
def _by_b(arguments, edges, columns, channels, dim: constexpr, tile: constexpr, width: constexpr):
    """∂F/∂B[e, c] = Σ_k V[e, k] M[c, k]."""
    v, m, b = arguments
    n_channels = channels[1]
    for start in range(edges[0], edges[1], tile):
        e, in_eu, u_eu = _tile(start, edges[1], channels, tile)
        v_k = _load_irrep(v, e, in_eu, channels, dim)
        for column in range(columns[1], columns[2]):
            row = m + (column - columns[1]) * dim * n_channels
            sum_k = tl.zeros((tile, width), m.dtype.element_ty)
            for k in tl.static_range(dim):
                sum_k += v_k[k] * tl.load(row + k * n_channels + u_eu, mask=in_eu, other=0)
            tl.store(_entries(column, columns, b, e, channels), sum_k, mask=in_eu)


@triton.jit
@no_type_check
def _derivative(arguments, lists, n_channels, by: constexpr, n_degrees: constexpr, tile: constexpr, width: constexpr):
    """∂F by V (0), M (1) or B (2), which is written, from the other two."""
    v, m, b = arguments
    first, irreps, table = lists
    atom, irrep = tl.program_id(0), tl.program_id(1)
    edges = (tl.load(first + atom), tl.load(first + atom + 1))
    dim, row = tl.load(irreps + 3 * irrep), tl.load(irreps + 3 * irrep + 2)
    columns = (table, tl.load(irreps + 3 * irrep + 1), tl.load(irreps + 3 * irrep + 4))
    n_rows = tl.load(irreps + 3 * tl.num_programs(1) + 2)
    of_irrep = (_select(v, irrep), m + (atom * n_rows + row) * n_channels, b)
    channels = (tl.arange(0, width), n_channels)
    for degree in tl.static_range(n_degrees):
        if dim == 2 * degree + 1:
            if by == 0:
                _by_v(of_irrep, edges, columns, channels, 2 * degree + 1, tile, width)
            elif by == 1:
                _by_m(of_irrep, edges, columns, channels, 2 * degree + 1, tile, width)
            else:
                _by_b(of_irrep, edges, columns, channels, 2 * degree + 1, tile, width)


def tensors(
    by: int, arguments: Sequence[Sequence[Float[Tensor, "..."]]], contraction: Contraction, first: Int[Tensor, "n_ends"]
) -> None:
    """Write the derivative of F by V (0), M (1) or B (2); see :func:`equicat.kernels.cpu.forms.tensors`."""
    v, (m,), b = map(tuple, arguments)
    channels = m.shape[2]
    width = triton.next_power_of_2(channels)
    with torch.cuda.device_of(first):
        _derivative[(len(first) - 1, len(contraction.dims))](
            (v, m, b),
            (first, contraction.irreps, contraction.columns),
            channels,
            by=by,
            n_degrees=max(contraction.dims) // 2 + 1,
            tile=max(LANES // width, 1) * EDGES[by],
            width=width,
            num_warps=max(width // LANES, 1),
        )
