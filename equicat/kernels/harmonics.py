"""Real spherical harmonics by recursion; e3nn is the oracle (tests) and fixes order and normalisation."""

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from equicat.kernels.wigner import wigner_3j


@cache
def _raise_degree_like(degree: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "n_products dim_out"]:
    """:func:`raise_degree` for computing on a device; a copy to a GPU could not be recorded in a CUDA graph."""
    return raise_degree(degree).to(device, dtype)


@cache
def raise_degree(degree: int) -> Float[Tensor, "n_products dim_out"]:
    """C with Y_{l+1} = (Y_l ⊗ Y_1) C: the part of degree l+1 of that product is Y_{l+1} up to a factor.

    The factor follows from evaluating both sides at the pole, where Y_{l0} = sqrt(2l + 1) and all other m vanish.
    """
    w3j = wigner_3j(degree, 1, degree + 1)
    factor = math.sqrt((2 * degree + 3) / (2 * degree + 1) / 3) / w3j[degree, 1, degree + 1]
    return (w3j * factor).flatten(0, 1)


def spherical_harmonics(l_max: int, unit: Float[Tensor, "n 3"]) -> Float[Tensor, "n dim"]:
    """Y_lm of unit vectors for l = 0 … l_max, in e3nn's order and ``component`` normalisation (|Y_l|² = 2l + 1).

    One outer product and one matrix product a degree, so that value, gradient and second gradient are few operations;
    edges run along the last axis in between, where a processor's vectors are filled.
    """
    first = unit.t().contiguous() * math.sqrt(3)
    out = [torch.ones_like(first[:1]), first][: l_max + 1]
    for degree in range(1, l_max):
        outer = (out[-1][:, None] * first[None]).flatten(0, 1)
        out.append(_raise_degree_like(degree, outer.dtype, outer.device).t() @ outer)
    return torch.cat(out).t()
