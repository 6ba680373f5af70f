"""Spherical Bessel functions j_l and the radial basis made of them, stable at any distance and for any derivative."""

import math
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import spherical_jn
from torch import Tensor, nn

from equicat.networks.layers import polynomial_envelope

N_TERMS = 20
"""Terms of the power series, used for x < degree + 1; the last is under 1e-17 of the sum for the degrees in use."""


def _series(degree: int, x: Tensor) -> Tensor:
    """x^l / (2l+1)!! · Σ_k (−x²/2)^k / (k! (2l+3)(2l+5)…(2l+2k+1)); for x up to about l + 1 nothing cancels."""
    half_square = x.square() * -0.5
    total = torch.ones_like(x)
    for k in range(N_TERMS, 0, -1):  # Horner
        total = 1 + total * half_square / (k * (2 * degree + 2 * k + 1))
    return total * x**degree / math.prod(range(1, 2 * degree + 2, 2))


def _recursion(degree: int, x: Tensor) -> Tensor:
    """j_{l+1} = (2l+1)/x j_l − j_{l−1} from j_0 = sin x / x and j_{−1} = cos x / x; stable for x > l."""
    last, this = torch.cos(x) / x, torch.sin(x) / x
    for k in range(degree):
        last, this = this, this * ((2 * k + 1) / x) - last
    return this


class _SphericalBessel(torch.autograd.Function):
    """The derivative is again made of j_l: (2l+1) j_l' = l j_{l−1} − (l+1) j_{l+1}, so all orders exist."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, degree: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.degree = degree
        turn = degree + 1.0
        return torch.where(x < turn, _series(degree, x.clamp(max=turn)), _recursion(degree, x.clamp(min=turn)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        degree = ctx.degree
        slope = _SphericalBessel.apply(x, degree + 1) * (-(degree + 1) / (2 * degree + 1))
        if degree:
            slope = slope + _SphericalBessel.apply(x, degree - 1) * (degree / (2 * degree + 1))
        return grad * slope, None


def spherical_bessel(degree: int, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """j_l(x) for x ≥ 0, in the precision of ``x``; the closed forms lose all digits at small x, this does not."""
    return _SphericalBessel.apply(x, degree)


@cache
def bessel_zeros(n_degrees: int, n_zeros: int) -> tuple[tuple[float, ...], ...]:
    """The first positive zeros of j_0 … j_{n_degrees−1}: those of j_l lie between those of j_{l−1}."""
    zeros = np.arange(1, n_zeros + n_degrees) * math.pi
    rows = [zeros[:n_zeros]]
    for degree in range(1, n_degrees):
        bracket = [(low, high) for low, high in pairwise(zeros)]
        zeros = np.array([brentq(lambda x, n=degree: spherical_jn(n, x), *b, xtol=1e-15) for b in bracket])
        rows.append(zeros[:n_zeros])
    return tuple(tuple(float(z) for z in row) for row in rows)


class SphericalBesselBasis(nn.Module):
    """R_ln(r) = sqrt(2) / |j_{l+1}(z_ln)| · j_l(z_ln x) u(x) / x with x = r / cutoff, j_l(z_ln) = 0.

    The radial part of the two-dimensional basis of Gasteiger et al. 2020 (DimeNet, eq. 6), up to the constant of the
    cutoff, times the envelope over x of the published code.

    Args:
        n_spherical: degrees l = 0 … n_spherical − 1.
        n_radial: functions of each degree.
        cutoff: Å.
        envelope_p: exponent of the polynomial envelope u.
    """

    zeros: Tensor
    norms: Tensor

    def __init__(self, n_spherical: int, n_radial: int, cutoff: float, envelope_p: int):
        super().__init__()
        self.cutoff, self.envelope_p = cutoff, envelope_p
        rows = bessel_zeros(n_spherical, n_radial)
        norms = [
            [math.sqrt(2) / abs(float(spherical_jn(degree + 1, z))) for z in row] for degree, row in enumerate(rows)
        ]
        self.register_buffer("zeros", torch.tensor(rows), persistent=False)
        self.register_buffer("norms", torch.tensor(norms), persistent=False)

    def forward(self, r: Float[Tensor, "n_edges"]) -> Float[Tensor, "n_edges n_spherical n_radial"]:
        x = (r / self.cutoff)[:, None]
        values = [spherical_bessel(degree, x * zeros) for degree, zeros in enumerate(self.zeros)]
        return torch.stack(values, dim=1) * self.norms * (polynomial_envelope(x, self.envelope_p) / x)[:, :, None]
