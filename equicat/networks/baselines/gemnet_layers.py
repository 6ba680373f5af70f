"""Layers of GemNet that keep the variance of what passes them (Gasteiger et al., arXiv:2106.08903)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equicat.networks.layers import silu


def orthogonal(weight: Float[Tensor, "*n_in n_out"]) -> Float[Tensor, "*n_in n_out"]:
    """Random, orthogonal, then standardised over inputs so that unit-variance inputs give unit-variance outputs.

    Args:
        weight: [n_in, n_out], or [n_first, n_second, n_out] for a map from pairs of features; filled in place.
    """
    n_in = weight[..., 0].numel()
    nn.init.orthogonal_(weight)
    with torch.no_grad():
        inputs = tuple(range(weight.dim() - 1))
        variance, mean = torch.var_mean(weight, dim=inputs, keepdim=True)
        return weight.sub_(mean).div_(torch.sqrt((variance + 1e-6) * n_in))


ACTIVATION_GAIN = 1 / 0.6
"""silu times this about keeps the variance of a standard normal variable."""


class Dense(nn.Module):
    """x W, without bias; with ``activate``, silu of it times a constant."""

    def __init__(self, n_in: int, n_out: int, activate: bool = False):
        super().__init__()
        self.weight = nn.Parameter(orthogonal(torch.empty(n_in, n_out)))
        self.activate = activate

    def forward(self, x: Float[Tensor, "n n_in"]) -> Float[Tensor, "n n_out"]:
        x = x @ self.weight
        return silu(x) * ACTIVATION_GAIN if self.activate else x


class Residual(nn.Module):
    """(x + Dense(Dense(x))) / √2."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(Dense(width, width, True), Dense(width, width, True))

    def forward(self, x: Float[Tensor, "n n_in"]) -> Float[Tensor, "n n_in"]:
        return merge(x, self.layers(x))


def merge(a: Float[Tensor, "n width"], b: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
    """(a + b) / √2: a skip connection that keeps the variance."""
    return (a + b) * (1 / math.sqrt(2))


def mlp(n_in: int, width: int, n_residual: int) -> nn.Sequential:
    """A dense layer, then residual layers."""
    return nn.Sequential(Dense(n_in, width, True), *(Residual(width) for _ in range(n_residual)))


class Scale(nn.Module):
    """x times a constant, such that its variance is that of a reference."""

    factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(()))
        self.variances: Tensor | None = None
        """Variances of the reference and of x, summed over rows, while the factor is being fitted; else None."""

    def forward(
        self, x: Float[Tensor, "n n_features"], reference: Float[Tensor, "m n_other"]
    ) -> Float[Tensor, "n n_features"]:
        if self.variances is None:
            return x * self.factor
        variances = torch.stack([y.var(0, unbiased=False).mean() for y in (reference, x)]).double().nan_to_num().cpu()
        self.variances += len(x) * variances
        ratio = variances[0] / variances[1]
        return x * math.sqrt(ratio) if ratio.isfinite() and ratio > 0 else x
