"""Wigner 3j symbols of real harmonics, with the signs of e3nn, which is the oracle in the tests.

Its ``o3`` itself would bring PyTorch's compiler along: two seconds and 160 MB in every process.
"""

import math
from functools import cache
from itertools import product
from math import factorial

import torch
from jaxtyping import Complex, Float
from torch import Tensor


def _clebsch_gordan(l1: int, m1: int, l2: int, m2: int, l3: int) -> float:
    """⟨l1 m1 l2 m2 | l3 m1+m2⟩ by Racah's formula (Phys. Rev. 62, 438 (1942), eq. 16)."""
    m3, total = m1 + m2, 0.0
    for k in range(max(0, l2 - l3 - m1, l1 - l3 + m2), min(l1 + l2 - l3, l1 - m1, l2 + m2) + 1):
        below = (k, l1 + l2 - l3 - k, l1 - m1 - k, l2 + m2 - k, l3 - l2 + m1 + k, l3 - l1 - m2 + k)
        total += (-1) ** k / math.prod(map(factorial, below))
    triangle = math.prod(map(factorial, (l3 + l1 - l2, l3 - l1 + l2, l1 + l2 - l3))) / factorial(l1 + l2 + l3 + 1)
    turns = math.prod(map(factorial, (l1 + m1, l1 - m1, l2 + m2, l2 - m2, l3 + m3, l3 - m3)))
    return total * math.sqrt((2 * l3 + 1) * triangle * turns)


def _real_to_complex(degree: int) -> Complex[Tensor, "dim dim"]:
    """Rows are complex harmonics by m, columns real ones; times (−i)^l, which makes couplings real."""
    out = torch.zeros(2 * degree + 1, 2 * degree + 1, dtype=torch.complex128)
    out[degree, degree] = 1
    for m in range(1, degree + 1):
        out[degree - m, [degree + m, degree - m]] = torch.tensor([1, -1j], dtype=out.dtype) / math.sqrt(2)
        out[degree + m, [degree + m, degree - m]] = torch.tensor([1, 1j], dtype=out.dtype) * (-1) ** m / math.sqrt(2)
    return (-1j) ** degree * out


@cache
def wigner_3j(l1: int, l2: int, l3: int) -> Float[Tensor, "dim_1 dim_2 dim_3"]:
    """C with Σ C² = 1 that is invariant under rotations of its three real irreps; |l1 − l2| ≤ l3 ≤ l1 + l2."""
    couplings = torch.zeros(2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1, dtype=torch.complex128)
    for m1, m2 in product(range(-l1, l1 + 1), range(-l2, l2 + 1)):
        if abs(m1 + m2) <= l3:
            couplings[l1 + m1, l2 + m2, l3 + m1 + m2] = _clebsch_gordan(l1, m1, l2, m2, l3)
    turns = [_real_to_complex(l1), _real_to_complex(l2), _real_to_complex(l3).conj()]
    real = torch.einsum("abc,ai,bj,ck->ijk", couplings, *turns).real
    return torch.where(real.abs() > 1e-12, real, 0) / real.norm()
