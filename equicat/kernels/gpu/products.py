"""Triton kernels of :mod:`equicat.kernels.products`: float32 matrix products on tensor cores; importing needs Triton.

Tensor cores multiply numbers of 11 significant bits, those of half precision twice as fast as TF32 ones. A float32
number is split in two halves, x s = h + l, and three products make xw = h_x h_w + h_x l_w + l_x h_w; what is left out,
and the rounding of l, are of the order of 2⁻²² of the product. Half precision has few exponents, so the factor s, a
power of 2, brings the largest number of a row (that is multiplied at a time) just below 2¹⁴. Numbers down to 2⁻¹⁷ of it
keep all their bits, smaller ones are exact to 2⁻³⁹ of it. Tensor cores also cut off sums instead of rounding them
(Ootomo and Yokota, Int. J. High Perform. Comput. Appl. 36, 475 (2022)), so a sum is made in pieces of ``block`` terms
there, and the pieces are added up outside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float16, Shaped
from torch import Tensor
from triton.language import constexpr

from equicat.kernels.gpu.activations import silu, silu_slope
from equicat.kernels.gpu.tiles import HOPPER, Tiles, shared_memory

ROWS = Tiles(128, 128, 64, 8, 3)
"""For products of edges with a matrix."""
COLUMNS = Tiles(128, 128, 64, 8, 3)
"""For sums over edges of products of their rows; a block is the chunk of edges that share units."""
SPLIT_ROWS = 4
"""Rows that a program splits, if each has a unit."""
SPLIT_COLUMNS = 64
"""Columns that a program splits, if each has units."""
WIDE = 1024
"""Columns of all matrices together for which it pays to split rows of edges beforehand, not in each program."""
MULTIPROCESSORS = 132
"""Programs that a GPU works on at a time."""
MAX_PARTS = 16
"""Parts that a sum over edges is divided into at most."""


@triton.jit
@no_type_check
def halved(x, axis: constexpr):
    """High and low halves of numbers times a power of 2, one for all along an axis, and the inverse of that power."""
    largest = tl.max(x.to(tl.uint32, bitcast=True) & 0x7F800000, axis=axis, keep_dims=True)  # its exponent
    largest = tl.maximum(largest, 14 << 23)
    x *= ((267 << 23) - largest).to(tl.float32, bitcast=True)
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16), (largest - (13 << 23)).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def multiplied(x, other):
    """The product of two matrices in halves, without their units; the largest of the three comes last."""
    products = tl.zeros((x[0].shape[0], other[0].shape[1]), tl.float32)
    # Without a limit, which is that of another precision and not used here, Triton merges a sum with these products.
    products = tl.dot(x[1], other[0], products, max_num_imprecise_acc=1)
    products = tl.dot(x[0], other[1], products, max_num_imprecise_acc=1)
    return tl.dot(x[0], other[0], products, max_num_imprecise_acc=1)


@triton.jit
@no_type_check
def load_halves(halves, n, k, exists):
    """The halves of a matrix, entries [k, n]."""
    at = n[None, :] * halves[3] + k[:, None]
    return tl.load(halves[0] + at, mask=exists, other=0), tl.load(halves[1] + at, mask=exists, other=0)


@triton.jit
@no_type_check
def _rows(inputs, given, halves, out, extra, size, tile: constexpr, act: constexpr):
    """Σ_i X_i W_i for rows of edges, or of their SiLU; the matrices come one after the other, in halves [n, k].

    A single X may come in halves as well. A matrix may be added to the sum, and the sum be multiplied by the slope of a
    SiLU.
    """
    rows: constexpr = tile[0]
    columns: constexpr = tile[1]
    block: constexpr = tile[2]
    n_e, n_n = size
    tiles_n = tl.cdiv(n_n, columns)
    e = (tl.program_id(0) // tiles_n) * rows + tl.arange(0, rows)
    n = (tl.program_id(0) % tiles_n) * columns + tl.arange(0, columns)
    k = tl.arange(0, block)
    first = 0
    total = tl.zeros((rows, columns), tl.float32)
    for i in tl.static_range(len(inputs)):
        x, stride, width = inputs[i]
        x_at = e.to(tl.int64)[:, None] * stride + k[None, :]
        for start in range(0, width, block):
            in_k = k < width - start
            in_x = (e < n_e)[:, None] & in_k[None, :]
            x_ek = tl.load(x + start + x_at, mask=in_x, other=0)
            w_kn = load_halves(halves, n, first + start + k, in_k[:, None] & (n < n_n)[None, :])
            if given is not None:
                total += multiplied((x_ek, tl.load(given[0] + start + x_at, mask=in_x, other=0)), w_kn)
            else:
                if act:
                    x_ek = silu(x_ek)
                high, low, unit = halved(x_ek, 1)
                total += multiplied((high, low), w_kn) * unit
        first += width
    if given is not None:
        total *= tl.load(given[1] + e, mask=e < n_e, other=0)[:, None]
    exists = (e < n_e)[:, None] & (n < n_n)[None, :]
    total *= tl.load(halves[2] + n, mask=n < n_n, other=0)[None, :]
    added, sloping = extra
    if added is not None:
        total += tl.load(added[0] + e.to(tl.int64)[:, None] * added[1] + n[None, :], mask=exists, other=0)
    if sloping is not None:
        z = tl.load(sloping[0] + e.to(tl.int64)[:, None] * sloping[1] + n[None, :], mask=exists, other=0)
        total *= silu_slope(z)
    tl.store(out + e.to(tl.int64)[:, None] * n_n + n[None, :], total, mask=exists)


@triton.jit
@no_type_check
def _split(x, strides, out, size, act: constexpr, axis: constexpr, shape: constexpr):
    """Halves of a matrix, or of its SiLU, with a unit for each row (axis 1), or for each column of some rows (0)."""
    rows: constexpr = shape[0]
    columns: constexpr = shape[1]
    n_e, n_k = size
    e, k = tl.program_id(0) * rows + tl.arange(0, rows), tl.program_id(1) * columns + tl.arange(0, columns)
    exists, at = (e < n_e)[:, None] & (k < n_k)[None, :], e.to(tl.int64)[:, None]
    x_ek = tl.load(x + at * strides[0] + k[None, :] * strides[1], mask=exists, other=0)
    if act:
        x_ek = silu(x_ek)
    high, low, unit = halved(x_ek, axis)
    tl.store(out[0] + at * n_k + k[None, :], high, mask=exists)
    tl.store(out[1] + at * n_k + k[None, :], low, mask=exists)
    if axis == 1:
        tl.store(out[2] + e[:, None], unit, mask=(e < n_e)[:, None])
    else:
        tl.store(out[2] + tl.program_id(0) * n_k + k[None, :], unit, mask=(k < n_k)[None, :])


@triton.jit
@no_type_check
def _columns(x, g, out, size, part, tile: constexpr):
    """Σ_e X[e, k] G[e, n] over some edges, a part of them for each matrix [k, n]; both come in halves."""
    rows: constexpr = tile[0]
    columns: constexpr = tile[1]
    chunk: constexpr = tile[2]
    n_e, n_k, n_n = size
    k = tl.program_id(0) * rows + tl.arange(0, rows)
    n = tl.program_id(1) * columns + tl.arange(0, columns)
    in_k, in_n = (k < n_k)[None, :], (n < n_n)[None, :]
    begin = tl.program_id(2) * part
    total = tl.zeros((rows, columns), tl.float32)
    for start in range(begin, tl.minimum(begin + part, n_e), chunk):
        e = start + tl.arange(0, chunk)
        in_e, at = (e < n_e)[:, None], e.to(tl.int64)[:, None]
        to_x, to_g = at * n_k + k[None, :], at * n_n + n[None, :]
        x_high = tl.load(x[0] + to_x, mask=in_e & in_k, other=0)
        x_low = tl.load(x[1] + to_x, mask=in_e & in_k, other=0)
        g_high = tl.load(g[0] + to_g, mask=in_e & in_n, other=0)
        g_low = tl.load(g[1] + to_g, mask=in_e & in_n, other=0)
        x_unit = tl.load(x[2] + start // chunk * n_k + k, mask=k < n_k, other=0)[:, None]
        g_unit = tl.load(g[2] + start // chunk * n_n + n, mask=n < n_n, other=0)[None, :]
        total += multiplied((tl.trans(x_high), tl.trans(x_low)), (g_high, g_low)) * x_unit * g_unit
    to = (tl.program_id(2).to(tl.int64) * n_k + k)[:, None] * n_n + n[None, :]
    tl.store(out + to, total, mask=(k < n_k)[:, None] & in_n)


@dataclass(frozen=True, eq=False)
class Halves:
    """A matrix times powers of 2 as the sum of two matrices in half precision."""

    high: Float16[Tensor, "n_rows n_k"]
    low: Float16[Tensor, "n_rows n_k"]
    unit: Float[Tensor, "..."]
    """The inverse of each row's power of 2 [n_rows], or that of each column in a chunk of rows [n_chunks, n_k]."""

    @classmethod
    def by_row(cls, x: Float[Tensor, "n_rows n_k"], act: bool = False) -> "Halves":
        """The halves for :func:`rows` of X, or of silu(X), of any strides."""
        return cls._make(x, act, 1, (SPLIT_ROWS, triton.next_power_of_2(x.shape[1])))

    @classmethod
    def by_chunk(cls, x: Float[Tensor, "n_rows n_k"], act: bool = False) -> "Halves":
        """The halves for :func:`columns` of X, or of silu(X), of any strides."""
        return cls._make(x, act, 0, (COLUMNS.fitting(x.device).block, SPLIT_COLUMNS))

    @classmethod
    def _make(cls, x: Tensor, act: bool, axis: int, shape: tuple[int, int]) -> "Halves":
        n, n_k = x.shape
        grid = triton.cdiv(n, shape[0]), triton.cdiv(n_k, shape[1])
        high, low = (x.new_empty(n, n_k, dtype=torch.float16) for _ in range(2))
        unit = x.new_empty(n) if axis == 1 else x.new_empty(grid[0], n_k)
        with torch.cuda.device_of(x):
            _split[grid](x, x.stride(), (high, low, unit), (n, n_k), act=act, axis=axis, shape=shape)
        return cls(high, low, unit)

    def split(self, sizes: Sequence[int]) -> "list[Halves]":
        """Consecutive rows, so many at a time, of a matrix that has a unit for each."""
        parts = zip(*(x.split(list(sizes)) for x in (self.high, self.low, self.unit)), strict=True)
        return [Halves(*part) for part in parts]

    def arguments(self) -> tuple[Any, ...]:
        """The halves, the units and the row's width, for a kernel."""
        return self.high, self.low, self.unit, self.high.shape[1]


def halves(w: Float[Tensor, "n_k n_n"]) -> Halves:
    """The halves of a matrix that rows are multiplied by: those of its transpose, with a unit for each column."""
    return Halves.by_row(w.t())


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
    x: Sequence[Float[Tensor, "n_edges _"]] | Halves, split: Halves, extra: Extra = PLAIN
) -> Float[Tensor, "n_edges n_n"]:
    """Σ_i X_i W_i at float32's accuracy, for many rows.

    Args:
        x: float32, whose widths add up to n_k; or a single one in halves, by row.
        split: :func:`halves` of the matrices, which stand one below the other.
        extra: what is done before and after; the SiLU of what comes in halves was taken before.
    """
    n_n, tiles = len(split.unit), ROWS
    if isinstance(x, Halves):
        like, n_e = split.unit, len(x.high)
        inputs, given = [matrix(x.high)], (x.low, x.unit)
    else:
        like, n_e = x[0], len(x[0])
        inputs, given = list(map(matrix, x)), None
    tiles = replace(tiles, columns=max(min(tiles.columns, triton.next_power_of_2(n_n)), 16)).fitting(like.device)
    out = like.new_empty(n_e, n_n)
    n_programs = triton.cdiv(n_e, tiles.rows) * triton.cdiv(n_n, tiles.columns)
    after = tuple(None if a is None else matrix(a)[:2] for a in (extra.added, extra.sloping))
    with torch.cuda.device_of(like):
        _rows[(n_programs,)](
            *(tuple(inputs), given, split.arguments(), out, after, (n_e, n_n)), act=extra.silu, **tiles.options()
        )
    return out


def beside(
    x: Float[Tensor, "n_edges n_k"],
    w: Halves,
    widths: Sequence[int],
    added: Sequence[Float[Tensor, "n_edges _"] | None],
    act: bool,
) -> list[Float[Tensor, "n_edges _"]]:
    """C_j + X W_j, or with silu(X), for matrices W_j of these widths side by side; a C_j that is None adds nothing."""
    is_wide = len(w.unit) >= WIDE
    left = Halves.by_row(x, act) if is_wide else [x]
    return [rows(left, part, Extra(act and not is_wide, c)) for part, c in zip(w.split(widths), added, strict=True)]


def columns(x: Halves, g: Halves) -> Float[Tensor, "n_k n_n"]:
    """Xᵀ G at float32's accuracy, a sum over many rows; both in halves, by chunk."""
    (n_e, n_k), n_n, tiles = x.high.shape, g.high.shape[1], COLUMNS.fitting(x.high.device)
    grid = triton.cdiv(n_k, tiles.rows), triton.cdiv(n_n, tiles.columns)
    n_parts = min(_parts(grid[0] * grid[1]), len(x.unit))
    part = triton.cdiv(len(x.unit), n_parts) * tiles.block
    out = x.unit.new_empty(triton.cdiv(n_e, part), n_k, n_n)
    arguments = ((a.high, a.low, a.unit) for a in (x, g))
    with torch.cuda.device_of(out):
        _columns[(*grid, len(out))](*arguments, out, (n_e, n_k, n_n), part, **tiles.options())
    return out.sum(0)


def sums_over_rows(
    x: Float[Tensor, "n_edges n_k"], grads: Sequence[Float[Tensor, "n_edges _"]], act: bool = False
) -> Float[Tensor, "n_k n_n"]:
    """Xᵀ (G_1 ‖ G_2 …) at float32's accuracy, or with silu(X).

    Where shared memory is short of what Hopper has, registers do not hold the kernel, and PyTorch's product serves.
    """
    if shared_memory(x.device) < HOPPER:
        return (torch.nn.functional.silu(x) if act else x).t() @ torch.cat(list(grads), dim=1)
    left = Halves.by_chunk(x, act)
    return torch.cat([columns(left, Halves.by_chunk(g)) for g in grads], dim=1)


def _parts(n_tiles: int) -> int:
    """Into how many parts to divide a sum with so many tiles: the fewest with which hardly a multiprocessor waits."""

    def waiting(parts: int) -> float:
        programs = n_tiles * parts
        return 1 - programs / (-(-programs // MULTIPROCESSORS) * MULTIPROCESSORS)

    return min(range(1, MAX_PARTS + 1), key=lambda parts: waiting(parts) + 0.01 * parts)


def matrix(x: Shaped[Tensor, "n_rows n_columns"]) -> tuple[Shaped[Tensor, "n_rows n_columns"], int, int]:
    """Rows, the stride between them, and their width; within a row entries are neighbours."""
    x = x if x.stride(1) == 1 else x.contiguous()
    return x, x.stride(0), x.shape[1]
