"""Pieces that several networks share."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from equicat.kernels.activations import silu
from equicat.kernels.irreps import Contraction
from equicat.kernels.products import product
from equicat.kernels.terms import Terms

SILU_GAIN = 1.6791767
"""1 / sqrt(E[silu(z)²]) for z ~ N(0, 1): weights after a SiLU are drawn larger by this, so that signals keep size."""


T = TypeVar("T", Tensor, Contraction, Terms)


class Exact(Generic[T]):
    """A float64 constant, and copies of it in the precision and on the device of other tensors, each made once.

    A buffer of a module would be rounded for good by ``module.float().double()``.
    """

    def __init__(self, exact: T):
        self.exact: T = exact
        self.copies: dict[tuple[torch.device, torch.dtype], T] = {}

    def like(self, tensor: Shaped[Tensor, "..."]) -> T:
        """The constant for computing with this tensor."""
        key = (tensor.device, tensor.dtype)
        if key not in self.copies:
            self.copies[key] = self.exact.to(tensor)
        return self.copies[key]


def linear_weight(n_in: int, n_out: int, gain: float = 1.0) -> nn.Parameter:
    """[n_in, n_out], normal with variance gain² / n_in: unit-variance inputs give unit-variance outputs."""
    return nn.Parameter(torch.randn(n_in, n_out) * gain / math.sqrt(n_in))


class MLP(nn.Module):
    """x W₁ → SiLU → W₂ → SiLU … → Wₙ, without biases, so that 0 maps to 0 (features vanish at the cutoff).

    Args:
        widths: of input, hidden layers and output; two widths make a plain linear map.
        silu_input: the input comes out of a SiLU (sets the variance of the first weights only).
        last_gain: makes the last weights smaller or larger at the start.
        linear: leave out the SiLUs, so that the MLP is a linear map in several factors.
    """

    scales: list[float]
    """Standard deviation of each matrix that keeps signals at unit variance: 1 / sqrt(n_in), larger after a SiLU."""

    def __init__(
        self, widths: Sequence[int], silu_input: bool = False, last_gain: float = 1.0, linear: bool = False
    ) -> None:
        super().__init__()
        self.linear = linear
        gains = [SILU_GAIN if silu_input or (k and not linear) else 1.0 for k in range(len(widths) - 1)]
        self.scales = [gain / math.sqrt(n) for gain, n in zip(gains, widths[:-1], strict=True)]
        gains[-1] *= last_gain
        self.weights = nn.ParameterList(map(linear_weight, widths[:-1], widths[1:], gains))

    def forward(self, x: Float[Tensor, "n n_in"]) -> Float[Tensor, "n n_out"]:
        first, *rest = self.weights
        x = product(x, first)
        for weight in rest:
            x = product(x if self.linear else silu(x), weight)
        return x

    def matrices(self) -> list[Float[Tensor, "_ _"]]:
        """The matrices between SiLUs: all weights, or their product where there are no SiLUs."""
        weights = list(self.weights)
        return [reduce(torch.matmul, weights)] if self.linear else weights


class BesselBasis(nn.Module):
    """B_n(x) = sin(nπx) / (πx) for x = r / cutoff, frequencies trainable from nπ on (Gasteiger et al. 2020, eq. 7).

    These are the published functions up to a factor, which makes them of order one at bond lengths.

    Args:
        n: number of functions.
        trainable: train the frequencies.
        normalized: give (B_n − μ_n) / σ_n instead, with the mean and standard deviation that each function has over
            (0, 1] before training, taken at 4,000 points as in the authors' code (Musaelian et al. 2023).
    """

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, n: int, trainable: bool = True, normalized: bool = False):
        super().__init__()
        self.frequencies = nn.Parameter(math.pi * torch.arange(1.0, n + 1), requires_grad=trainable)
        self.normalized = normalized
        mean, std = torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
        if normalized:
            x = torch.linspace(0, 1, 4001, dtype=torch.float64)[1:, None]
            std, mean = torch.std_mean(torch.sin(x * math.pi * torch.arange(1, n + 1)) / (math.pi * x), dim=0)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("inverse_std", 1 / std, persistent=False)

    def forward(self, x: Float[Tensor, "n 1"]) -> Float[Tensor, "n n_basis"]:
        functions = torch.sin(x * self.frequencies) / (math.pi * x)
        if not self.normalized:
            return functions
        return (functions - self.mean.to(functions)) * self.inverse_std.to(functions)


class SplineBasis(nn.Module):
    """φ_s(x) = (1 − cos 2π(x − a_s) / d)² / 4 on [a_s, a_s + d] and 0 elsewhere, for x = r / cutoff.

    The supports start at a_s = (s − span) / n and are d = (span + 1) / n long, so that the last one ends at the cutoff;
    φ_s has three continuous derivatives (the splines of the nequip-allegro package).
    """

    def __init__(self, n: int, span: int):
        super().__init__()
        self.n, self.span = n, span

    def forward(self, x: Float[Tensor, "n 1"]) -> Float[Tensor, "n n_basis"]:
        start = torch.arange(-self.span, self.n - self.span, dtype=x.dtype, device=x.device) / self.n
        length = (self.span + 1) / self.n
        t = (x - start).clamp(0, length) * (2 * math.pi / length)
        return 0.25 * (1 - torch.cos(t)).square()


def polynomial_envelope(x: Float[Tensor, "..."], p: int) -> Float[Tensor, "..."]:
    """u(x) for x = r / cutoff: 1 at 0, and 0 with zero first and second derivative at 1 (Gasteiger et al. 2020, eq. 8).

    u(x) = 1 − (p+1)(p+2)/2 xᵖ + p(p+2) xᵖ⁺¹ − p(p+1)/2 xᵖ⁺²; 0 beyond 1. Computed as the equal
    (1 − x)³ Σ_k<p (k+1)(k+2)/2 xᵏ, whose terms do not cancel near the cutoff.
    """
    total = torch.full_like(x, p * (p + 1) / 2)
    for k in reversed(range(p - 1)):
        total = total * x + (k + 1) * (k + 2) / 2
    return (1 - x).clamp(min=0) ** 3 * total
