"""The Triton kernel of derivatives by a narrow matrix: sums over many rows of products of theirs; needs Triton.

Numbers are split where they are loaded, for each is read once or twice only: what takes time is reading them. Wide
matrices, where a number is used more often, have :func:`equicat.kernels.gpu.products.sums_over_rows`.
"""

from collections.abc import Sequence
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.language import constexpr

from equicat.kernels.gpu.activations import silu
from equicat.kernels.gpu.products import MULTIPROCESSORS, halved, matrix, multiplied
from equicat.kernels.gpu.tiles import HOPPER, Tiles, shared_memory

TILES = Tiles(64, 64, 64, 4, 2)
"""Columns of X, and of G, that a program works on, and the rows that it loads at a time."""
PARTS = 2 * MULTIPROCESSORS
"""Parts that the rows are divided into, at most."""


@triton.jit
@no_type_check
def _product(left, right, e, k, n, size, act: constexpr):
    """Σ_e X[e, k] G[e, n] over a chunk of rows, or with silu(X)."""
    n_e, n_k, n_n = size
    in_e, at = (e < n_e)[:, None], e.to(tl.int64)[:, None]
    x_ek = tl.load(left[0] + at * left[1] + k[None, :], mask=in_e & (k < n_k)[None, :], other=0)
    if act:
        x_ek = silu(x_ek)
    x_high, x_low, x_unit = halved(x_ek, 0)
    g = halved(tl.load(right[0] + at * right[1] + n[None, :], mask=in_e & (n < n_n)[None, :], other=0), 0)
    return multiplied((tl.trans(x_high), tl.trans(x_low)), g) * tl.trans(x_unit) * g[2]


@triton.jit
@no_type_check
def _sums(first, second, out, size, part, shape: constexpr, act: constexpr):
    """Xᵀ G, or silu(X)ᵀ G, plus Hᵀ D, over a part of the rows."""
    rows: constexpr = shape[0]
    columns: constexpr = shape[1]
    chunk: constexpr = shape[2]
    n_e, n_k, n_n = size
    k, n = tl.arange(0, rows), tl.program_id(1) * columns + tl.arange(0, columns)
    begin = tl.program_id(0) * part
    total = tl.zeros((rows, columns), tl.float32)
    for start in range(begin, tl.minimum(begin + part, n_e), chunk):
        e = start + tl.arange(0, chunk)
        total += _product(first[0], first[1], e, k, n, size, act)
        total += _product(second[0], second[1], e, k, n, size, False)
    to = out[0] + (tl.program_id(0).to(tl.int64) * n_k + k)[:, None] * out[1] + n[None, :]
    tl.store(to, total, mask=(k < n_k)[:, None] & (n < n_n)[None, :])


def sums(
    x: Float[Tensor, "n_edges n_k"],
    grads: Sequence[Float[Tensor, "n_edges _"]],
    moved: Float[Tensor, "n_edges n_k"],
    others: Sequence[Float[Tensor, "n_edges _"]],
    act: bool = False,
) -> Float[Tensor, "n_k n_n"]:
    """Xᵀ (G_1 ‖ G_2 …) + Hᵀ (D_1 ‖ D_2 …) at float32's accuracy, for at most 128 columns of X.

    Args:
        x: X.
        grads: G_j.
        moved: H.
        others: D_j, as wide as G_j.
        act: whether X goes through a SiLU.
    """
    (n_e, n_k), widths = x.shape, [g.shape[1] for g in grads]
    stages = TILES.stages if shared_memory(x.device) >= HOPPER else 1
    rows = max(triton.next_power_of_2(n_k), 16)
    part = triton.cdiv(triton.cdiv(n_e, TILES.block), PARTS) * TILES.block
    out = x.new_empty(triton.cdiv(n_e, part), n_k, sum(widths))
    for g, d, to in zip(grads, others, out.split(widths, dim=2), strict=True):
        n_n = g.shape[1]
        columns = max(min(triton.next_power_of_2(n_n), TILES.columns), 16)
        pairs = ((matrix(a)[:2], matrix(b)[:2]) for a, b in ((x, g), (moved, d)))
        with torch.cuda.device_of(x):
            _sums[(len(out), triton.cdiv(n_n, columns))](
                *(*pairs, (to, out.stride(1)), (n_e, n_k, n_n), part),
                shape=(rows, columns, TILES.block),
                act=act,
                num_warps=TILES.warps if rows <= TILES.rows else 2 * TILES.warps,
                num_stages=stages,
            )
    return out.sum(0)
