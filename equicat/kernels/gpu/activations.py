"""SiLUs in Triton kernels, and the kernel of their second derivative (:mod:`equicat.kernels.activations`)."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.language import constexpr

BLOCK = 1024
"""Numbers of a program."""


@triton.jit
@no_type_check
def silu(x):
    """x σ(x)."""
    return x / (1 + tl.exp(-x))


@triton.jit
@no_type_check
def silu_slope(x):
    """The derivative of x σ(x)."""
    s = 1 / (1 + tl.exp(-x))
    return s * (1 + x * (1 - s))


@triton.jit
@no_type_check
def silu_curvature(x):
    """The second derivative of x σ(x), s (1 − s) (2 + x (1 − 2 s)) with s = σ(x)."""
    s = 1 / (1 + tl.exp(-x))
    return s * (1 - s) * (2 + x * (1 - 2 * s))


@triton.jit
@no_type_check
def _slope_back(grad_grad, grad, x, outputs, n, block: constexpr):
    """h silu'(x) and h g silu''(x)."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    exists = at < n
    h = tl.load(grad_grad + at, mask=exists, other=0)
    g = tl.load(grad + at, mask=exists, other=0)
    z = tl.load(x + at, mask=exists, other=0)
    tl.store(outputs[0] + at, h * silu_slope(z), mask=exists)
    tl.store(outputs[1] + at, h * g * silu_curvature(z), mask=exists)


def slope_back(
    grad_grad: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """The derivatives of Σ h g silu'(x) by g and by x, in one pass over memory.

    Args:
        grad_grad: h.
        grad: g.
        x: before the SiLU.
    """
    inputs = [a.contiguous() for a in (grad_grad, grad, x)]
    outputs = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    if n := x.numel():
        with torch.cuda.device_of(x):
            _slope_back[(triton.cdiv(n, BLOCK),)](*inputs, outputs, n, block=BLOCK)
    return outputs
