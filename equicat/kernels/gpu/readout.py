"""Triton kernels of a readout: sums over the edges of centres, with their derivatives; importing needs Triton."""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from triton.language import constexpr

from equicat.kernels.gpu.activations import silu, silu_curvature, silu_slope

READ = 1024
"""Edges times features that a program works on at a time."""


@triton.jit
@no_type_check
def _entries(start, end, u, n_x, tile: constexpr):
    """Where the entries of some edges lie, and which exist."""
    e = start + tl.arange(0, tile)
    return e.to(tl.int64)[:, None] * n_x + u[None, :], (e < end)[:, None] & (u < n_x)[None, :]


@triton.jit
@no_type_check
def _read(inputs, outputs, first, n_x, act: constexpr, shape: constexpr):
    """The sum of a centre, and the slope, which may take the place of X."""
    tile: constexpr = shape[0]
    width: constexpr = shape[1]
    center = tl.program_id(0)
    u = tl.arange(0, width)
    h = tl.load(inputs[1] + u, mask=u < n_x, other=0)[None, :]
    total = tl.zeros((tile, width), tl.float32)
    end = tl.load(first + center + 1)
    for start in range(tl.load(first + center), end, tile):
        at, exists = _entries(start, end, u, n_x, tile)
        x_eu = tl.load(inputs[0] + at, mask=exists, other=0)
        if act:
            total += silu(x_eu) * h
            tl.store(outputs[1] + at, silu_slope(x_eu) * h, mask=exists)
        else:
            total += x_eu * h
            tl.store(outputs[1] + at, h + tl.zeros_like(x_eu), mask=exists)
    tl.store(outputs[0] + center, tl.sum(tl.sum(total, axis=1), axis=0))


@triton.jit
@no_type_check
def _read_moving(inputs, outputs, first, n_x, act: constexpr, shape: constexpr):
    """The derivatives of f Σ_e s(x) · h + Σ_e (s'(x) ∘ m) · h by X and, for one centre, by h; s is the SiLU, or x."""
    x, weights, move, factors = inputs
    tile: constexpr = shape[0]
    width: constexpr = shape[1]
    center = tl.program_id(0)
    u = tl.arange(0, width)
    h = tl.load(weights + u, mask=u < n_x, other=0)[None, :]
    factor = tl.load(factors + center)
    total = tl.zeros((tile, width), tl.float32)
    end = tl.load(first + center + 1)
    for start in range(tl.load(first + center), end, tile):
        at, exists = _entries(start, end, u, n_x, tile)
        x_eu, move_eu = tl.load(x + at, mask=exists, other=0), tl.load(move + at, mask=exists, other=0)
        if act:
            slope = silu_slope(x_eu)
            total += factor * silu(x_eu) + slope * move_eu
            tl.store(outputs[0] + at, (factor * slope + silu_curvature(x_eu) * move_eu) * h, mask=exists)
        else:
            total += factor * x_eu + move_eu
            tl.store(outputs[0] + at, factor * h + tl.zeros_like(x_eu), mask=exists)
    tl.store(outputs[1] + center * n_x + u, tl.sum(total, axis=0), mask=u < n_x)


def read(
    x: Float[Tensor, "n_edges n_x"],
    weights: Float[Tensor, "n_x"],
    act: bool,
    first: Int[Tensor, "n_ends"],
    slope: Float[Tensor, "n_edges n_x"] | None = None,
) -> Float[Tensor, "n_atoms"]:
    """Σ_e x_e · h of every centre, or with the SiLU of x; all arrays are contiguous.

    Args:
        x: of edges, by centre.
        weights: h.
        act: whether x goes through a SiLU.
        first: where the edges of each centre begin, and where the last ones end.
        slope: the derivative by x is written there; None: in the place of x.
    """
    sums = x.new_empty(len(first) - 1)
    _launch(_read, (x, weights), (sums, x if slope is None else slope), first, act)
    return sums


def read_moving(
    x: Float[Tensor, "n_edges n_x"],
    move: Float[Tensor, "n_edges n_x"],
    weights: Float[Tensor, "n_x"],
    factors: Float[Tensor, "n_atoms"],
    act: bool,
    first: Int[Tensor, "n_ends"],
) -> tuple[Float[Tensor, "n_edges n_x"], Float[Tensor, "n_x"]]:
    """The derivatives, by x and by h, of Σ_i f_i (sum of centre i) and of how all sums change along a move of x.

    Args:
        x: of edges, by centre, contiguous.
        move: of x.
        weights: h.
        factors: f.
        act: whether x goes through a SiLU.
        first: where the edges of each centre begin, and where the last ones end.
    """
    by_x, by_weights = torch.empty_like(x), x.new_empty(len(first) - 1, x.shape[1])
    _launch(_read_moving, (x, weights, move, factors), (by_x, by_weights), first, act)
    return by_x, by_weights.sum(0)


def _launch(
    kernel: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], first: Int[Tensor, "n_ends"], act: bool
) -> None:
    """One program for each centre."""
    n_x = inputs[0].shape[1]
    width = triton.next_power_of_2(n_x)
    shape = max(READ // width, 1), width
    with torch.cuda.device_of(first):
        kernel[(len(first) - 1,)](inputs, outputs, first, n_x, act=act, shape=shape, num_warps=4)
