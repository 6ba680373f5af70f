"""The Triton kernel of a readout: sums over the edges of centres, and their derivative; importing needs Triton."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from triton.language import constexpr

from equicat.kernels.gpu.activations import silu, silu_slope

READ = 1024
"""Edges times features that a program works on at a time."""


@triton.jit
@no_type_check
def _read(x, weights, sums, first, n_x, width: constexpr, act: constexpr, tile: constexpr):
    """The sum of a centre, and the slope in the place of X."""
    center = tl.program_id(0)
    u = tl.arange(0, width)
    h = tl.load(weights + u, mask=u < n_x, other=0)[None, :]
    total = tl.zeros((tile, width), tl.float32)
    end = tl.load(first + center + 1)
    for start in range(tl.load(first + center), end, tile):
        e = start + tl.arange(0, tile)
        exists = (e < end)[:, None] & (u < n_x)[None, :]
        at = x + e.to(tl.int64)[:, None] * n_x + u[None, :]
        x_eu = tl.load(at, mask=exists, other=0)
        if act:
            total += silu(x_eu) * h
            tl.store(at, silu_slope(x_eu) * h, mask=exists)
        else:
            total += x_eu * h
            tl.store(at, h + tl.zeros_like(x_eu), mask=exists)
    tl.store(sums + center, tl.sum(tl.sum(total, axis=1), axis=0))


def read(
    x: Float[Tensor, "n_edges n_x"], weights: Float[Tensor, "n_x"], act: bool, first: Int[Tensor, "n_ends"]
) -> Float[Tensor, "n_atoms"]:
    """Σ_e x_e · h of every centre, or with the SiLU of x; its slope is written in the place of x, which is contiguous.

    Args:
        x: of edges, by centre.
        weights: h.
        act: whether x goes through a SiLU.
        first: where the edges of each centre begin, and where the last ones end.
    """
    sums = x.new_empty(len(first) - 1)
    width = triton.next_power_of_2(x.shape[1])
    with torch.cuda.device_of(x):
        _read[(len(sums),)](
            x, weights, sums, first, x.shape[1], width=width, act=act, tile=max(READ // width, 1), num_warps=4
        )
    return sums
