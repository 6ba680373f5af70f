"""The nonlinearity of networks, cheap to differentiate twice."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equicat.kernels import backend


class _SiLU(torch.autograd.Function):
    """x σ(x). PyTorch's own, differentiated twice, takes twice the passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return nn.functional.silu(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _SiLUSlope.apply(grad, *ctx.saved_tensors)


class _SiLUSlope(torch.autograd.Function):
    """g silu'(x), and its derivatives with respect to g and x (that to x is differentiable by autograd)."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(grad, x)
        return torch.ops.aten.silu_backward(grad, x)

    @staticmethod
    def backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor, Tensor]:
        grad, x = ctx.saved_tensors
        if not torch.is_grad_enabled() and backend.has_triton(x.device):
            from equicat.kernels.gpu.activations import slope_back  # needs Triton

            return slope_back(grad_grad, grad, x)
        s = torch.sigmoid(x)
        # silu''(x) = s (1 − s) (2 + x (1 − 2 s)), one fused pass for the first product.
        second = torch.ops.aten.sigmoid_backward(grad_grad * grad, s)
        return _SiLUSlope.apply(grad_grad, x), second * torch.addcmul(x, x, s, value=-2).add(2)


def silu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x σ(x), cheap to differentiate twice."""
    return _SiLU.apply(x)


def silu_slope(grad: Float[Tensor, "..."], x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """g silu'(x), differentiable."""
    return _SiLUSlope.apply(grad, x)
