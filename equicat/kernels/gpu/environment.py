"""Triton kernels of environment and read-out (:mod:`equicat.kernels.forms`), for GPUs; importing this needs Triton.

One program works on one centre and walks along its edges, a tile at a time. What it sums over edges it keeps and writes
once, and what belongs to an edge only it writes: no atomics, no padding, the same numbers every time. All kernels are
derivatives of one form, linear in each of its four arguments:

F(a, w, Y, G) = Σ_e Σ_lu a[e, u] w[e, l, u] Σ_m Y[e, lm] G[i(e), lm, u]

Products and sums are made in the precision of the data. None of them is a matrix product worth the name: an edge's
numbers are used 2l + 1 times at most, far less often than a GPU could while it reads them, so tensor cores (TF32, bf16)
would gain nothing here. A matrix comes as a pair, pointer and stride of its rows.
"""

import math
from collections.abc import Sequence
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from triton.language import constexpr

SHAPES: dict[str, tuple[int, int]] = {
    "_environment": (512, 4),
    "_read_out": (512, 4),
    "_gradient": (512, 4),
    "_change": (256, 4),
}
"""Edges times channels that a program of each kernel works on at a time, and its warps (measured:
``benchmarks/gpu_products.py``)."""


@triton.jit
@no_type_check
def _load(matrix, rows, columns, mask, dtype: constexpr):
    """Entries [rows, columns], zeros where masked."""
    pointer, stride = matrix
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=mask, other=0).to(dtype)


@triton.jit
@no_type_check
def _store(matrix, rows, columns, mask, values):
    """The counterpart of :func:`_load`."""
    pointer, stride = matrix
    tl.store(pointer + rows[:, None] * stride + columns[None, :], values, mask=mask)


@triton.jit
@no_type_check
def _center(first, width: constexpr, n_degrees: constexpr):
    """Channels, the first row of this program's centre, and its edges from … to."""
    center = tl.program_id(0)
    begin, end = tl.load(first + center), tl.load(first + center + 1)
    return tl.arange(0, width), center.to(tl.int64) * n_degrees * n_degrees, begin, end


@triton.jit
@no_type_check
def _tile(start, end, u, n_channels, tile: constexpr):
    """The edges of a tile, and which of its numbers [edges, channels] exist."""
    e = start + tl.arange(0, tile)
    return e, (e < end)[:, None] & (u < n_channels)[None, :]


@triton.jit
@no_type_check
def _load_column(matrix, rows, column: constexpr, mask, dtype: constexpr):
    """One number of each row, [rows, 1]."""
    pointer, stride = matrix
    return tl.load(pointer + rows * stride + column, mask=mask, other=0).to(dtype)[:, None]


@triton.jit
@no_type_check
def _store_column(matrix, rows, column: constexpr, mask, values):
    """The counterpart of :func:`_load_column`, for values [rows]."""
    pointer, stride = matrix
    tl.store(pointer + rows * stride + column, values, mask=mask)


@triton.jit
@no_type_check
def _load_rows(matrix, first_row, u, n_channels, n_rows: constexpr, dtype: constexpr):
    """Some rows of channels that a program needs for each of its edges, every one [1, channels]."""
    pointer, stride = matrix
    rows = ()
    for lm in tl.static_range(n_rows):
        at = pointer + (first_row + lm) * stride + u
        rows = rows + (tl.load(at, mask=u < n_channels, other=0).to(dtype)[None, :],)
    return rows


@triton.jit
@no_type_check
def zeros(tile: constexpr, width: constexpr, n: constexpr, dtype: constexpr):
    """Accumulators of n components over tiles, each [edges of a tile, channels]."""
    sums = ()
    for _ in tl.static_range(n):
        sums = sums + (tl.zeros((tile, width), dtype),)
    return sums


@triton.jit
@no_type_check
def _store_sums(matrix, sums, first_row, u, n_channels):
    """Sums over the edges of a centre, into its rows."""
    pointer, stride = matrix
    for lm in tl.static_range(len(sums)):
        tl.store(pointer + (first_row + lm) * stride + u, tl.sum(sums[lm], axis=0), mask=u < n_channels)


@triton.jit
@no_type_check
def _environment(
    inputs, outputs, first, n_channels, tile: constexpr, width: constexpr, n_degrees: constexpr, dtype: constexpr
):
    """∂F/∂G at a = 1."""
    w, y = inputs
    u, rows, begin, end = _center(first, width, n_degrees)
    sums = zeros(tile, width, n_degrees * n_degrees, dtype)
    for start in range(begin, end, tile):
        e, in_eu = _tile(start, end, u, n_channels, tile)
        added = ()
        for degree in tl.static_range(n_degrees):
            w_eu = _load(w, e, degree * n_channels + u, in_eu, dtype)
            for lm in tl.static_range(degree * degree, (degree + 1) * (degree + 1)):
                added = added + (sums[lm] + w_eu * _load_column(y, e, lm, e < end, dtype),)
        sums = added
    _store_sums(outputs[0], sums, rows, u, n_channels)


@triton.jit
@no_type_check
def _read_out(
    inputs, outputs, first, n_channels, tile: constexpr, width: constexpr, n_degrees: constexpr, dtype: constexpr
):
    """∂F/∂a."""
    w, y, g = inputs
    u, rows, begin, end = _center(first, width, n_degrees)
    g_u = _load_rows(g, rows, u, n_channels, n_degrees * n_degrees, dtype)
    for start in range(begin, end, tile):
        e, in_eu = _tile(start, end, u, n_channels, tile)
        to_a = tl.zeros((tile, width), dtype)
        for degree in tl.static_range(n_degrees):
            p = tl.zeros((tile, width), dtype)
            for lm in tl.static_range(degree * degree, (degree + 1) * (degree + 1)):
                p += _load_column(y, e, lm, e < end, dtype) * g_u[lm]
            to_a += _load(w, e, degree * n_channels + u, in_eu, dtype) * p
        _store(outputs[0], e, u, in_eu, to_a)


@triton.jit
@no_type_check
def _gradient(
    inputs, outputs, first, n_channels, tile: constexpr, width: constexpr, n_degrees: constexpr, dtype: constexpr
):
    """∂F/∂w and, unless nobody asks for it, ∂F/∂Y; unless ``a`` is None, which means 1, also ∂F/∂G.

    The last two inputs are what the first two derivatives are added to, or None.
    """
    a, w, y, g, onto_w, onto_y = inputs
    u, rows, begin, end = _center(first, width, n_degrees)
    g_u = _load_rows(g, rows, u, n_channels, n_degrees * n_degrees, dtype)
    sums = zeros(tile, width, n_degrees * n_degrees, dtype)
    for start in range(begin, end, tile):
        e, in_eu = _tile(start, end, u, n_channels, tile)
        a_eu = tl.full((tile, width), 1, dtype)
        if a is not None:
            a_eu = _load(a, e, u, in_eu, dtype)
        added = ()
        for degree in tl.static_range(n_degrees):
            q = _load(w, e, degree * n_channels + u, in_eu, dtype) * a_eu
            p = tl.zeros((tile, width), dtype)
            for lm in tl.static_range(degree * degree, (degree + 1) * (degree + 1)):
                y_e = _load_column(y, e, lm, e < end, dtype)
                p += y_e * g_u[lm]
                if outputs[1] is not None:
                    by_y = tl.sum(q * g_u[lm], axis=1)
                    if onto_y is not None:
                        by_y += tl.load(onto_y[0] + e * onto_y[1] + lm, mask=e < end, other=0).to(dtype)
                    _store_column(outputs[1], e, lm, e < end, by_y)
                added = added + (sums[lm] + q * y_e,)
            by_w = a_eu * p
            if onto_w is not None:
                by_w += _load(onto_w, e, degree * n_channels + u, in_eu, dtype)
            _store(outputs[0], e, degree * n_channels + u, in_eu, by_w)
        if a is not None:
            sums = added
    if a is not None:
        _store_sums(outputs[2], sums, rows, u, n_channels)


@triton.jit
@no_type_check
def _change(
    inputs, outputs, first, n_channels, tile: constexpr, width: constexpr, n_degrees: constexpr, dtype: constexpr
):
    """How all four derivatives of F, or all but that by Y, change when w, Y and G move along h_w, h_Y and h_G.

    The last input is what the change of ∂F/∂w is added to, or None.
    """
    a, w, y, g, h_w, h_y, h_g, onto_w = inputs
    u, rows, begin, end = _center(first, width, n_degrees)
    g_u = _load_rows(g, rows, u, n_channels, n_degrees * n_degrees, dtype)
    dg_u = _load_rows(h_g, rows, u, n_channels, n_degrees * n_degrees, dtype)
    sums = zeros(tile, width, n_degrees * n_degrees, dtype)
    for start in range(begin, end, tile):
        e, in_eu = _tile(start, end, u, n_channels, tile)
        a_eu = _load(a, e, u, in_eu, dtype)
        to_a = tl.zeros((tile, width), dtype)
        added = ()
        for degree in tl.static_range(n_degrees):
            w_eu = _load(w, e, degree * n_channels + u, in_eu, dtype)
            dw_eu = _load(h_w, e, degree * n_channels + u, in_eu, dtype)
            q, dq = a_eu * w_eu, a_eu * dw_eu
            p, dp = tl.zeros((tile, width), dtype), tl.zeros((tile, width), dtype)
            for lm in tl.static_range(degree * degree, (degree + 1) * (degree + 1)):
                y_e, dy_e = _load_column(y, e, lm, e < end, dtype), _load_column(h_y, e, lm, e < end, dtype)
                p += y_e * g_u[lm]
                dp += dy_e * g_u[lm] + y_e * dg_u[lm]
                if outputs[2] is not None:
                    _store_column(outputs[2], e, lm, e < end, tl.sum(dq * g_u[lm] + q * dg_u[lm], axis=1))
                added = added + (sums[lm] + dq * y_e + q * dy_e,)
            to_a += dw_eu * p + w_eu * dp
            to_w = a_eu * dp
            if onto_w is not None:
                to_w += _load(onto_w, e, degree * n_channels + u, in_eu, dtype)
            _store(outputs[1], e, degree * n_channels + u, in_eu, to_w)
        sums = added
        _store(outputs[0], e, u, in_eu, to_a)
    _store_sums(outputs[3], sums, rows, u, n_channels)


def edges(first: Int[Tensor, "n_ends"], **matrices: Float[Tensor, "..."]) -> None:
    """Write derivatives of F, or how they change; see :func:`equicat.kernels.cpu.forms.edges`.

    ∂F/∂w and ∂F/∂Y are added to ``onto_w`` and ``onto_y`` where these are given; they may be the arrays written.
    Without ``by_y``, derivatives by Y are not computed.
    """
    names = ("a", "w", "y", "g")
    if "move_w" in matrices:
        inputs = (*names, "move_w", "move_y", "move_g", "onto_w")
        _launch(_change, first, matrices, inputs, ("by_a", "by_w", "by_y", "by_g"))
    elif "by_w" in matrices:
        outputs = ("by_w", "by_y", *(["by_g"] if "a" in matrices else []))
        _launch(_gradient, first, matrices, (*names, "onto_w", "onto_y"), outputs)
    elif "by_a" in matrices:
        _launch(_read_out, first, matrices, names[1:], ("by_a",))
    else:
        _launch(_environment, first, matrices, ("w", "y"), ("by_g",))


def _launch(
    kernel: Any, first: Tensor, matrices: dict[str, Tensor], inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """One program for each centre."""
    w, n_degrees = matrices["w"], math.isqrt(matrices["y"].shape[1])
    channels = w.shape[1] // n_degrees
    width = triton.next_power_of_2(channels)
    tile, warps = SHAPES[kernel.fn.__name__]
    with torch.cuda.device_of(first):
        kernel[(len(first) - 1,)](
            tuple(_matrix(matrices[name]) if name in matrices else None for name in inputs),
            tuple(_matrix(matrices[name]) if name in matrices else None for name in outputs),
            first,
            channels,
            tile=max(tile // width, 1),
            width=width,
            n_degrees=n_degrees,
            dtype=tl.float64 if w.dtype == torch.float64 else tl.float32,
            num_warps=warps,
            enable_fp_fusion=True,
        )


def _matrix(x: Tensor) -> tuple[Tensor, int]:
    """Rows of edges, or rows (atom, lm), with the stride between them; within a row entries are neighbours."""
    x = (x if x.stride(-1) == 1 else x.contiguous()).flatten(0, -2)
    return x, x.stride(0)
