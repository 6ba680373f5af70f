"""Triton kernels of :mod:`equicat.kernels.products`: float32 matrix products on tensor cores; importing needs Triton.

Tensor cores multiply TF32 numbers, which have 11 significant bits. A float32 number is split in two of them, x = h + l,
and three products make xw = h_x h_w + h_x l_w + l_x h_w; what is left out, and the rounding of l, are of the order of
2⁻²² of the product. They also cut off sums instead of rounding them (Ootomo and Yokota, Int. J. High Perform. Comput.
Appl. 36, 475 (2022)), so a sum is made in pieces of ``block`` terms there, and the pieces are added up outside.

A program makes one tile of a result. Sums over all edges, which the derivatives by a matrix are, stay with PyTorch: a
kernel of this kind reached 32 to 40 TFLOP/s there on an H100, its float32 product 50.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.language import constexpr


@dataclass(frozen=True)
class Tiles:
    """Sizes of a program's tile of a result, and how it is made."""

    rows: int
    columns: int
    block: int
    """Terms of a sum that are loaded at a time."""
    warps: int
    stages: int
    """Blocks that are on their way at a time."""

    def options(self) -> dict[str, Any]:
        """Arguments of a kernel."""
        tile = self.rows, self.columns, self.block
        return {"tile": tile, "num_warps": self.warps, "num_stages": self.stages}


ROWS = Tiles(128, 128, 32, 8, 3)
"""For products of edges with a matrix."""
SPLIT_TILE = 32
"""Rows and columns of a matrix that a program splits."""


@triton.jit
@no_type_check
def _tf32(x):
    """The nearest number with 11 significant bits."""
    bits = x.to(tl.uint32, bitcast=True)
    return ((bits + 0x1000) & 0xFFFFE000).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def _added(total, high, low, other_high, other_low):
    """The total and the three products, of which the last one is largest."""
    products = tl.zeros_like(total)
    # Without a limit, which is that of another precision and not used here, Triton merges the sum with the products.
    products = tl.dot(low, other_high, products, input_precision="tf32", max_num_imprecise_acc=1)
    products = tl.dot(high, other_low, products, input_precision="tf32", max_num_imprecise_acc=1)
    products = tl.dot(high, other_high, products, input_precision="tf32", max_num_imprecise_acc=1)
    return total + products


@triton.jit
@no_type_check
def _split(w, stride_k, stride_n, halves, size, tile: constexpr):
    """The two numbers of each entry of W [k, n], as matrices [n, k]."""
    high, low = halves
    n_k, n_n = size
    k = tl.program_id(0) * tile + tl.arange(0, tile)
    n = tl.program_id(1) * tile + tl.arange(0, tile)
    exists = (n < n_n)[:, None] & (k < n_k)[None, :]
    x = tl.load(w + n[:, None] * stride_n + k[None, :] * stride_k, mask=exists, other=0)
    to = n[:, None] * n_k + k[None, :]
    tl.store(high + to, _tf32(x), mask=exists)
    tl.store(low + to, _tf32(x - _tf32(x)), mask=exists)


@triton.jit
@no_type_check
def _silu(x):
    """x σ(x)."""
    return x / (1 + tl.exp(-x))


@triton.jit
@no_type_check
def _rows(inputs, halves, out, extra, size, tile: constexpr, silu: constexpr):
    """Σ_i X_i W_i for rows of edges, or of their SiLU; the matrices come one after the other, in halves [n, k].

    A matrix may be added to the sum, and the sum be multiplied by the slope of a SiLU.
    """
    rows: constexpr = tile[0]
    columns: constexpr = tile[1]
    block: constexpr = tile[2]
    high, low, n_k = halves
    n_e, n_n = size
    tiles_n = tl.cdiv(n_n, columns)
    e = (tl.program_id(0) // tiles_n) * rows + tl.arange(0, rows)
    n = (tl.program_id(0) % tiles_n) * columns + tl.arange(0, columns)
    k = tl.arange(0, block)
    w_at = n[None, :] * n_k + k[:, None]
    total = tl.zeros((rows, columns), tl.float32)
    for i in tl.static_range(len(inputs)):
        x, stride, width = inputs[i]
        x_at = x + e.to(tl.int64)[:, None] * stride + k[None, :]
        for start in range(0, width, block):
            in_k = k < width - start
            x_ek = tl.load(x_at + start, mask=(e < n_e)[:, None] & in_k[None, :], other=0)
            in_w = in_k[:, None] & (n < n_n)[None, :]
            w_high = tl.load(high + start + w_at, mask=in_w, other=0)
            w_low = tl.load(low + start + w_at, mask=in_w, other=0)
            if silu:
                x_ek = _silu(x_ek)
            x_high = _tf32(x_ek)
            total = _added(total, x_high, _tf32(x_ek - x_high), w_high, w_low)
        w_at += width
    exists = (e < n_e)[:, None] & (n < n_n)[None, :]
    added, sloping = extra
    if added is not None:
        total += tl.load(added[0] + e.to(tl.int64)[:, None] * added[1] + n[None, :], mask=exists, other=0)
    if sloping is not None:
        z = tl.load(sloping[0] + e.to(tl.int64)[:, None] * sloping[1] + n[None, :], mask=exists, other=0)
        s = 1 / (1 + tl.exp(-z))
        total *= s * (1 + z * (1 - s))
    tl.store(out + e.to(tl.int64)[:, None] * n_n + n[None, :], total, mask=exists)


def halves(w: Float[Tensor, "n_k n_n"]) -> tuple[Float[Tensor, "n_n n_k"], Float[Tensor, "n_n n_k"]]:
    """A matrix of any strides as the sum of two matrices of TF32 numbers, both transposed."""
    n_k, n_n = w.shape
    high, low = w.new_empty(n_n, n_k), w.new_empty(n_n, n_k)
    grid = triton.cdiv(n_k, SPLIT_TILE), triton.cdiv(n_n, SPLIT_TILE)
    with torch.cuda.device_of(w):
        _split[grid](w, w.stride(0), w.stride(1), (high, low), (n_k, n_n), tile=SPLIT_TILE)
    return high, low


@dataclass(frozen=True, eq=False)
class Extra:
    """Steps before and after a sum of products, for which the arrays are at hand."""

    silu: bool = False
    """Multiply the SiLU of the rows."""
    added: Float[Tensor, "n_edges n_n"] | None = None
    """Added to the sum."""
    sloping: Float[Tensor, "n_edges n_n"] | None = None
    """The sum is multiplied by the slope of the SiLU at these numbers."""


PLAIN = Extra()


def rows(
    x: Sequence[Float[Tensor, "n_edges _"]],
    split: tuple[Float[Tensor, "n_n n_k"], Float[Tensor, "n_n n_k"]],
    extra: Extra = PLAIN,
) -> Float[Tensor, "n_edges n_n"]:
    """Σ_i X_i W_i at float32's accuracy, for many rows.

    Args:
        x: float32, whose widths add up to n_k.
        split: halves of the matrices, one below the other; or rows of these halves.
        extra: what is done before and after.
    """
    (high, low), tiles, first = split, ROWS, x[0]
    n_e, n_n = len(first), len(high)
    tiles = replace(tiles, columns=max(min(tiles.columns, triton.next_power_of_2(n_n)), 16))
    out = first.new_empty(n_e, n_n)
    n_programs = triton.cdiv(n_e, tiles.rows) * triton.cdiv(n_n, tiles.columns)
    after = tuple(None if a is None else _matrix(a)[:2] for a in (extra.added, extra.sloping))
    with torch.cuda.device_of(first):
        _rows[(n_programs,)](
            tuple(map(_matrix, x)),
            (high, low, high.shape[1]),
            out,
            after,
            (n_e, n_n),
            silu=extra.silu,
            **tiles.options(),
        )
    return out


def _matrix(x: Tensor) -> tuple[Tensor, int, int]:
    """Rows, the stride between them, and their width; within a row entries are neighbours."""
    x = x if x.stride(1) == 1 else x.contiguous()
    return x, x.stride(0), x.shape[1]
