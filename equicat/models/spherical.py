"""Real spherical harmonics in closed form; e3nn is the oracle (tests) and fixes order and normalisation."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

MAX_DEGREE = 3


def spherical_harmonics(l_max: int, unit: Float[Tensor, "n 3"]) -> Float[Tensor, "n dim"]:
    """Y_lm of unit vectors for l = 0 … l_max ≤ 3, in e3nn's order and ``component`` normalisation (|Y_l|² = 2l + 1).

    Written out as polynomials, so that value, gradient and second gradient are a handful of products.
    """
    if not 0 <= l_max <= MAX_DEGREE:
        raise ValueError(f"l_max is {l_max}; 0 to {MAX_DEGREE} are written out")
    x, y, z = unit.unbind(-1)  # e3nn's polar axis is y
    out = [torch.ones_like(x)]
    if l_max >= 1:
        c = math.sqrt(3)
        out += [c * x, c * y, c * z]
    if l_max >= 2:
        c = math.sqrt(15)
        y2, xx, zz = y * y, x * x, z * z
        out += [c * x * z, c * x * y, math.sqrt(5) * (1.5 * y2 - 0.5), c * y * z, 0.5 * c * (zz - xx)]
    if l_max >= 3:
        c1, c2, c3 = math.sqrt(35 / 8), math.sqrt(105), math.sqrt(21 / 8)
        five = 5 * y2 - 1
        out += [
            c1 * x * (3 * zz - xx),
            c2 * x * y * z,
            c3 * x * five,
            0.5 * math.sqrt(7) * y * (5 * y2 - 3),
            c3 * z * five,
            0.5 * c2 * y * (zz - xx),
            c1 * z * (zz - 3 * xx),
        ]
    return torch.stack(out, dim=-1)
