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

TILE = 128
"""Edges times channels that a program works on at a time; with all degrees to 3, what registers hold."""
WARPS = 4


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
def _components(degree: constexpr, in_e, in_u):
    """The components lm of a degree, and masks of [edges, m] and [m, channels]."""
    m = tl.arange(0, triton.next_power_of_2(2 * degree + 1))
    in_m = m < 2 * degree + 1
    return degree * degree + m, in_e[:, None] & in_m[None, :], in_m[:, None] & in_u[None, :]


@triton.jit
@no_type_check
def _zeros(tile: constexpr, width: constexpr, n_degrees: constexpr, dtype: constexpr):
    """Accumulators over tiles, [edges of a tile, m, channels] for each degree."""
    sums = ()
    for degree in tl.static_range(n_degrees):
        sums = sums + (tl.zeros((tile, triton.next_power_of_2(2 * degree + 1), width), dtype),)
    return sums


@triton.jit
@no_type_check
def _store_sums(matrix, sums, rows, u, n_channels, tile: constexpr, n_degrees: constexpr):
    """Sums over the edges of a centre, into its rows."""
    for degree in tl.static_range(n_degrees):
        lm, _, in_mu = _components(degree, tl.arange(0, tile) >= 0, u < n_channels)
        _store(matrix, rows + lm, u, in_mu, tl.sum(sums[degree], axis=0))


@triton.jit
@no_type_check
def _environment(
    inputs, outputs, first, n_channels, tile: constexpr, width: constexpr, n_degrees: constexpr, dtype: constexpr
):
    """∂F/∂G at a = 1."""
    w, y = inputs
    u, rows, begin, end = _center(first, width, n_degrees)
    sums = _zeros(tile, width, n_degrees, dtype)
    for start in range(begin, end, tile):
        e, in_eu = _tile(start, end, u, n_channels, tile)
        added = ()
        for degree in tl.static_range(n_degrees):
            lm, in_em, _ = _components(degree, e < end, u < n_channels)
            w_eu = _load(w, e, degree * n_channels + u, in_eu, dtype)
            y_em = _load(y, e, lm, in_em, dtype)
            added = added + (sums[degree] + w_eu[:, None, :] * y_em[:, :, None],)
        sums = added
    _store_sums(outputs[0], sums, rows, u, n_channels, tile, n_degrees)


@triton.jit
@no_type_check
def _read_out(
    inputs, outputs, first, n_channels, tile: constexpr, width: constexpr, n_degrees: constexpr, dtype: constexpr
):
    """∂F/∂a."""
    w, y, g = inputs
    u, rows, begin, end = _center(first, width, n_degrees)
    for start in range(begin, end, tile):
        e, in_eu = _tile(start, end, u, n_channels, tile)
        to_a = tl.zeros((tile, width), dtype)
        for degree in tl.static_range(n_degrees):
            lm, in_em, in_mu = _components(degree, e < end, u < n_channels)
            w_eu = _load(w, e, degree * n_channels + u, in_eu, dtype)
            y_em = _load(y, e, lm, in_em, dtype)[:, :, None]
            g_mu = _load(g, rows + lm, u, in_mu, dtype)[None, :, :]
            to_a += w_eu * tl.sum(y_em * g_mu, axis=1)
        _store(outputs[0], e, u, in_eu, to_a)


@triton.jit
@no_type_check
def _gradient(
    inputs, outputs, first, n_channels, tile: constexpr, width: constexpr, n_degrees: constexpr, dtype: constexpr
):
    """∂F/∂w and ∂F/∂Y; unless ``a`` is None, which means 1, also ∂F/∂G."""
    a, w, y, g = inputs
    u, rows, begin, end = _center(first, width, n_degrees)
    sums = _zeros(tile, width, n_degrees, dtype)
    for start in range(begin, end, tile):
        e, in_eu = _tile(start, end, u, n_channels, tile)
        a_eu = tl.full((tile, width), 1, dtype)
        if a is not None:
            a_eu = _load(a, e, u, in_eu, dtype)
        added = ()
        for degree in tl.static_range(n_degrees):
            lm, in_em, in_mu = _components(degree, e < end, u < n_channels)
            q = (_load(w, e, degree * n_channels + u, in_eu, dtype) * a_eu)[:, None, :]
            y_em = _load(y, e, lm, in_em, dtype)[:, :, None]
            g_mu = _load(g, rows + lm, u, in_mu, dtype)[None, :, :]
            _store(outputs[0], e, degree * n_channels + u, in_eu, a_eu * tl.sum(y_em * g_mu, axis=1))
            _store(outputs[1], e, lm, in_em, tl.sum(q * g_mu, axis=2))
            added = added + (sums[degree] + q * y_em,)
        sums = added
    if a is not None:
        _store_sums(outputs[2], sums, rows, u, n_channels, tile, n_degrees)


@triton.jit
@no_type_check
def _change(
    inputs, outputs, first, n_channels, tile: constexpr, width: constexpr, n_degrees: constexpr, dtype: constexpr
):
    """How all four derivatives of F change when w, Y and G move along h_w, h_Y and h_G."""
    a, w, y, g, h_w, h_y, h_g = inputs
    u, rows, begin, end = _center(first, width, n_degrees)
    sums = _zeros(tile, width, n_degrees, dtype)
    for start in range(begin, end, tile):
        e, in_eu = _tile(start, end, u, n_channels, tile)
        a_eu = _load(a, e, u, in_eu, dtype)
        to_a = tl.zeros((tile, width), dtype)
        added = ()
        for degree in tl.static_range(n_degrees):
            lm, in_em, in_mu = _components(degree, e < end, u < n_channels)
            w_eu = _load(w, e, degree * n_channels + u, in_eu, dtype)
            dw_eu = _load(h_w, e, degree * n_channels + u, in_eu, dtype)
            y_em = _load(y, e, lm, in_em, dtype)[:, :, None]
            dy_em = _load(h_y, e, lm, in_em, dtype)[:, :, None]
            g_mu = _load(g, rows + lm, u, in_mu, dtype)[None, :, :]
            dg_mu = _load(h_g, rows + lm, u, in_mu, dtype)[None, :, :]
            dp = tl.sum(dy_em * g_mu + y_em * dg_mu, axis=1)
            to_a += dw_eu * tl.sum(y_em * g_mu, axis=1) + w_eu * dp
            q, dq = (a_eu * w_eu)[:, None, :], (a_eu * dw_eu)[:, None, :]
            _store(outputs[1], e, degree * n_channels + u, in_eu, a_eu * dp)
            _store(outputs[2], e, lm, in_em, tl.sum(dq * g_mu + q * dg_mu, axis=2))
            added = added + (sums[degree] + dq * y_em + q * dy_em,)
        sums = added
        _store(outputs[0], e, u, in_eu, to_a)
    _store_sums(outputs[3], sums, rows, u, n_channels, tile, n_degrees)


def edges(first: Int[Tensor, "n_ends"], **matrices: Float[Tensor, "..."]) -> None:
    """Write derivatives of F, or how they change; see :func:`equicat.kernels.cpu.forms.edges`."""
    names = ("a", "w", "y", "g")
    if "move_w" in matrices:
        _launch(_change, first, matrices, (*names, "move_w", "move_y", "move_g"), ("by_a", "by_w", "by_y", "by_g"))
    elif "by_w" in matrices:
        _launch(_gradient, first, matrices, names, ("by_w", "by_y", *(["by_g"] if "a" in matrices else [])))
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
    with torch.cuda.device_of(first):
        kernel[(len(first) - 1,)](
            tuple(_matrix(matrices[name]) if name in matrices else None for name in inputs),
            tuple(_matrix(matrices[name]) for name in outputs),
            first,
            channels,
            tile=max(TILE // width, 1),
            width=width,
            n_degrees=n_degrees,
            dtype=tl.float64 if w.dtype == torch.float64 else tl.float32,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )


def _matrix(x: Tensor) -> tuple[Tensor, int]:
    """Rows of edges, or rows (atom, lm), with the stride between them; within a row entries are neighbours."""
    x = (x if x.stride(-1) == 1 else x.contiguous()).flatten(0, -2)
    return x, x.stride(0)
