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

TILE = 128
"""Edges times channels that a program works on at a time; with all degrees to 3, what registers hold."""
WARPS = 4


@triton.jit
@no_type_check
def _load(matrix, rows, columns, mask, dtype: tl.constexpr):
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
def _components(degree: tl.constexpr, in_e, in_u):
    """The components lm of a degree, and masks of [edges, m] and [m, channels]."""
    m = tl.arange(0, triton.next_power_of_2(2 * degree + 1))
    in_m = m < 2 * degree + 1
    return degree * degree + m, in_e[:, None] & in_m[None, :], in_m[:, None] & in_u[None, :]


@triton.jit
@no_type_check
def _zeros(tile: tl.constexpr, width: tl.constexpr, n_degrees: tl.constexpr, dtype: tl.constexpr):
    """Accumulators over tiles, [edges of a tile, m, channels] for each degree."""
    sums = ()
    for degree in tl.static_range(n_degrees):
        sums = sums + (tl.zeros((tile, triton.next_power_of_2(2 * degree + 1), width), dtype),)
    return sums


@triton.jit
@no_type_check
def _store_sums(matrix, sums, n_channels, tile: tl.constexpr, width: tl.constexpr, n_degrees: tl.constexpr):
    """Sums over the edges of this program's centre, into its rows."""
    e, u = tl.arange(0, tile), tl.arange(0, width)
    rows = tl.program_id(0).to(tl.int64) * n_degrees * n_degrees
    for degree in tl.static_range(n_degrees):
        lm, _, in_mu = _components(degree, e >= 0, u < n_channels)
        _store(matrix, rows + lm, u, in_mu, tl.sum(sums[degree], axis=0))


@triton.jit
@no_type_check
def _environment(
    inputs,
    outputs,
    first,
    n_channels,
    tile: tl.constexpr,
    width: tl.constexpr,
    n_degrees: tl.constexpr,
    dtype: tl.constexpr,
):
    """∂F/∂G at a = 1."""
    w, y = inputs
    u = tl.arange(0, width)
    begin, end = tl.load(first + tl.program_id(0)), tl.load(first + tl.program_id(0) + 1)
    sums = _zeros(tile, width, n_degrees, dtype)
    for start in range(begin, end, tile):
        e = start + tl.arange(0, tile)
        in_eu = (e < end)[:, None] & (u < n_channels)[None, :]
        added = ()
        for degree in tl.static_range(n_degrees):
            lm, in_em, _ = _components(degree, e < end, u < n_channels)
            w_eu = _load(w, e, degree * n_channels + u, in_eu, dtype)
            y_em = _load(y, e, lm, in_em, dtype)
            added = added + (sums[degree] + w_eu[:, None, :] * y_em[:, :, None],)
        sums = added
    _store_sums(outputs[0], sums, n_channels, tile, width, n_degrees)


@triton.jit
@no_type_check
def _read_out(
    inputs,
    outputs,
    first,
    n_channels,
    tile: tl.constexpr,
    width: tl.constexpr,
    n_degrees: tl.constexpr,
    dtype: tl.constexpr,
):
    """∂F/∂a."""
    w, y, g = inputs
    u = tl.arange(0, width)
    rows = tl.program_id(0).to(tl.int64) * n_degrees * n_degrees
    begin, end = tl.load(first + tl.program_id(0)), tl.load(first + tl.program_id(0) + 1)
    for start in range(begin, end, tile):
        e = start + tl.arange(0, tile)
        in_eu = (e < end)[:, None] & (u < n_channels)[None, :]
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
    inputs,
    outputs,
    first,
    n_channels,
    tile: tl.constexpr,
    width: tl.constexpr,
    n_degrees: tl.constexpr,
    dtype: tl.constexpr,
):
    """∂F/∂w and ∂F/∂Y; unless ``a`` is None, which means 1, also ∂F/∂G."""
    a, w, y, g = inputs
    u = tl.arange(0, width)
    rows = tl.program_id(0).to(tl.int64) * n_degrees * n_degrees
    begin, end = tl.load(first + tl.program_id(0)), tl.load(first + tl.program_id(0) + 1)
    sums = _zeros(tile, width, n_degrees, dtype)
    for start in range(begin, end, tile):
        e = start + tl.arange(0, tile)
        in_eu = (e < end)[:, None] & (u < n_channels)[None, :]
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
        _store_sums(outputs[2], sums, n_channels, tile, width, n_degrees)


@triton.jit
@no_type_check
def _change(
    inputs,
    outputs,
    first,
    n_channels,
    tile: tl.constexpr,
    width: tl.constexpr,
    n_degrees: tl.constexpr,
    dtype: tl.constexpr,
):
    """How all four derivatives of F change when w, Y and G move along h_w, h_Y and h_G."""
    a, w, y, g, h_w, h_y, h_g = inputs
    u = tl.arange(0, width)
    rows = tl.program_id(0).to(tl.int64) * n_degrees * n_degrees
    begin, end = tl.load(first + tl.program_id(0)), tl.load(first + tl.program_id(0) + 1)
    sums = _zeros(tile, width, n_degrees, dtype)
    for start in range(begin, end, tile):
        e = start + tl.arange(0, tile)
        in_eu = (e < end)[:, None] & (u < n_channels)[None, :]
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
    _store_sums(outputs[3], sums, n_channels, tile, width, n_degrees)


def environment(
    w: Float[Tensor, "n_edges n_weights"], y: Float[Tensor, "n_edges dim_env"], first: Int[Tensor, "n_ends"]
) -> Float[Tensor, "n_atoms dim_env channels"]:
    """∂F/∂G at a = 1, Σ_e w[e, l, u] Y[e, lm] over the edges first[i] … first[i + 1] − 1 of each centre i."""
    env = w.new_empty(len(first) - 1, y.shape[1], w.shape[1] // math.isqrt(y.shape[1]))
    _launch(_environment, (w, y), (env,), first, env)
    return env


def read_out(
    w: Float[Tensor, "n_edges n_weights"],
    y: Float[Tensor, "n_edges dim_env"],
    g: Float[Tensor, "n_atoms dim_env channels"],
    first: Int[Tensor, "n_ends"],
) -> Float[Tensor, "n_edges channels"]:
    """∂F/∂a."""
    out = w.new_empty(len(w), g.shape[2])
    _launch(_read_out, (w, y, g), (out,), first, g)
    return out


def gradient(
    a: Float[Tensor, "n_edges channels"] | None,
    w: Float[Tensor, "n_edges n_weights"],
    y: Float[Tensor, "n_edges dim_env"],
    g: Float[Tensor, "n_atoms dim_env channels"],
    first: Int[Tensor, "n_ends"],
) -> tuple[Tensor, ...]:
    """∂F/∂w, ∂F/∂Y and ∂F/∂G, the last only with ``a``; None means 1."""
    outputs = tuple(x.new_empty(x.shape) for x in ((w, y) if a is None else (w, y, g)))
    _launch(_gradient, (a, w, y, g), outputs, first, g)
    return outputs


def change(
    arguments: tuple[Tensor, Tensor, Tensor, Tensor], moves: tuple[Tensor, Tensor, Tensor], first: Int[Tensor, "n_ends"]
) -> tuple[Tensor, ...]:
    """How ∂F/∂(a, w, Y, G) change at these arguments when (w, Y, G) move."""
    outputs = tuple(x.new_empty(x.shape) for x in arguments)
    _launch(_change, (*arguments, *moves), outputs, first, arguments[3])
    return outputs


def _launch(
    kernel: Any, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], first: Tensor, by_atom: Tensor
) -> None:
    """One program for each centre; ``by_atom`` has the shape [n_atoms, dim_env, channels]."""
    n_atoms, dim_env, channels = by_atom.shape
    width = triton.next_power_of_2(channels)
    with torch.cuda.device_of(first):
        kernel[(n_atoms,)](
            tuple(None if x is None else _matrix(x) for x in inputs),
            tuple(_matrix(x) for x in outputs),
            first,
            channels,
            tile=max(TILE // width, 1),
            width=width,
            n_degrees=math.isqrt(dim_env),
            dtype=tl.float64 if by_atom.dtype == torch.float64 else tl.float32,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )


def _matrix(x: Tensor) -> tuple[Tensor, int]:
    """Rows of edges, or rows (atom, lm), with the stride between them; within a row entries are neighbours."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    x = x.flatten(0, -2)
    return x, x.stride(0)
