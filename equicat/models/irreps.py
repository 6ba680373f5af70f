"""Which irreps an Allegro layer needs, which paths lead to them, and their coupling coefficients.

An irrep is ``(l, p)``: degree and parity (+1 even, −1 odd).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from equicat.models.wigner import wigner_3j

Irrep = tuple[int, int]
Parity = Literal["full", "restricted"]

SCALAR: Irrep = (0, 1)
VECTOR: Irrep = (1, -1)
"""A polar vector, such as a displacement."""


def harmonics(l_max: int) -> list[Irrep]:
    """The irreps of the spherical harmonics: (l, (−1)^l)."""
    return [(degree, (-1) ** degree) for degree in range(l_max + 1)]


def dim(irreps: list[Irrep]) -> int:
    """Number of components."""
    return sum(2 * degree + 1 for degree, _ in irreps)


def offsets(irreps: list[Irrep]) -> dict[Irrep, slice]:
    """Where the components of each irrep stand."""
    slices, start = {}, 0
    for ir in irreps:
        slices[ir] = slice(start, start + 2 * ir[0] + 1)
        start += 2 * ir[0] + 1
    return slices


def couples(a: Irrep, b: Irrep, out: Irrep) -> bool:
    """The selection rule: |l_a − l_b| ≤ l_out ≤ l_a + l_b, and parities multiply."""
    return abs(a[0] - b[0]) <= out[0] <= a[0] + b[0] and a[1] * b[1] == out[1]


def layer_irreps(l_max: int, n_layers: int, parity: Parity, vectors: bool = False) -> list[list[Irrep]]:
    """Irreps of the tensor features that enter layers 1 … n_layers, dead ones left out.

    Layer 1 sees spherical harmonics. Later layers see what the one before can make ("restricted" keeps only the parity
    of the harmonics), less what can no longer reach a scalar (or, with ``vectors``, a polar vector after the last
    layer): those irreps would be computed and never used.
    """
    sh = harmonics(l_max)
    every = [(degree, p) for degree in range(l_max + 1) for p in (1, -1)]
    allowed = sh if parity == "restricted" else sorted(every, key=lambda ir: (ir not in sh, ir[0]))
    used = [SCALAR, VECTOR] if vectors else [SCALAR]
    # What the last layer can turn into those; scalars alone come from the harmonics' own parities.
    live = [[ir for ir in allowed if any(couples(ir, b, out) for b in sh for out in used)]]
    for _ in range(n_layers - 1):
        live.insert(0, [ir for ir in allowed if any(couples(ir, b, out) for b in sh for out in [*live[0], SCALAR])])
    entering = [sh]
    for later in live[1:]:
        entering.append([ir for ir in later if any(couples(a, b, ir) for a in entering[-1] for b in sh)])
    return entering


@dataclass(frozen=True)
class Paths:
    """The tensor products (l₁, p₁) ⊗ (l₂, p₂) → (l, p) of one layer that yield one output irrep.

    ``coefficients[a, m, path, b]`` couples component a of the tensor features and b of the environment to component m:
    Wigner 3j symbols times sqrt(2l+1), so that components of unit variance give the same.
    """

    pairs: list[tuple[Irrep, Irrep]]
    coefficients: Float[Tensor, "dim_in dim_out n_paths dim_env"]

    @classmethod
    def build(cls, irreps_in: list[Irrep], l_max: int, out: Irrep) -> "Paths":
        """All paths from ``irreps_in`` times harmonics up to ``l_max`` into ``out``."""
        env = harmonics(l_max)
        pairs = [(a, b) for a in irreps_in for b in env if couples(a, b, out)]
        at_in, at_env = offsets(irreps_in), offsets(env)
        coefficients = torch.zeros(dim(irreps_in), 2 * out[0] + 1, len(pairs), dim(env), dtype=torch.float64)
        for k, (a, b) in enumerate(pairs):
            w3j = wigner_3j(a[0], b[0], out[0]) * math.sqrt(2 * out[0] + 1)
            coefficients[at_in[a], :, k, at_env[b]] = w3j.permute(0, 2, 1)
        return cls(pairs, coefficients)
