"""The Triton kernel of the second derivative of SiLUs (:mod:`equicat.kernels.activations`); importing needs Triton."""

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
def _slope_back(grad_grad, grad, x, outputs, n, block: constexpr):
    """h silu'(x) and h g silu''(x), with silu'' = s (1 − s) (2 + x (1 − 2 s))."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    exists = at < n
    h = tl.load(grad_grad + at, mask=exists, other=0)
    g = tl.load(grad + at, mask=exists, other=0)
    z = tl.load(x + at, mask=exists, other=0)
    s = 1 / (1 + tl.exp(-z))
    tl.store(outputs[0] + at, h * (s * (1 + z * (1 - s))), mask=exists)
    tl.store(outputs[1] + at, h * g * (s * (1 - s) * (2 + z * (1 - 2 * s))), mask=exists)


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
