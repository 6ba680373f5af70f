"""Which irreps an Allegro layer needs, which paths lead to them, and their coupling coefficients.

An irrep is ``(l, p)``: degree and parity (+1 even, −1 odd).
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equicat.kernels.wigner import wigner_3j

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
    # Irreps that the last layer can turn into those; scalars alone come from the harmonics' own parities.
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


def couplings(outputs: dict[Irrep, Paths]) -> Float[Tensor, "dim_in dim_out n_paths dim_env"]:
    """The coefficients of several outputs as one array: components and paths one after the other, zeros elsewhere."""
    arrays = [paths.coefficients for paths in outputs.values()]
    n_out, n_paths = (sum(array.shape[axis] for array in arrays) for axis in (1, 2))
    out = arrays[0].new_zeros(len(arrays[0]), n_out, n_paths, arrays[0].shape[3])
    c = p = 0
    for array in arrays:
        out[:, c : c + array.shape[1], p : p + array.shape[2]] = array
        c, p = c + array.shape[1], p + array.shape[2]
    return out


@dataclass(frozen=True, eq=False)
class Contraction:
    """A layer's tensor products as a product with a matrix M of the centre, made of its environment A.

    A column c of M yields one component of one path, Σ_k V[k] M[i, c, k], where k counts the components of the path's
    first irrep. Columns are ordered by this irrep, then by output, component and path. M is stored with a row for each
    pair (c, k): M[i, row, u] = Σ_b C[row, b] A[i, b, u].
    """

    coefficients: Float[Tensor, "n_rows dim_env"]
    """C."""
    columns: Int[Tensor, "n_columns 4"]
    """Irrep of V, output, number of columns of that output, and place among these (component · n_paths + path)."""
    irreps: Int[Tensor, "n_ends 3"]
    """For each irrep of V its components, first column and first row of M; a last entry holds the totals."""
    dims: list[int]
    """Components of V's irreps."""
    widths: list[int]
    """Columns of each output."""

    @classmethod
    def build(cls, irreps_in: list[Irrep], outputs: dict[Irrep, Paths]) -> "Contraction":
        """All paths from ``irreps_in``, by output."""
        at_in = offsets(irreps_in)
        widths = [paths.coefficients[0, :, :, 0].numel() for paths in outputs.values()]
        rows, columns, irreps = list[Tensor](), list[tuple[int, int, int, int]](), list[tuple[int, int, int]]()
        for irrep, a in enumerate(irreps_in):
            irreps.append((dim([a]), len(columns), sum(map(len, rows))))
            for output, paths in enumerate(outputs.values()):
                by_place = paths.coefficients[at_in[a]].flatten(1, 2)
                for place in range(widths[output]):
                    if paths.pairs[place % len(paths.pairs)][0] == a:
                        columns.append((irrep, output, widths[output], place))
                        rows.append(by_place[:, place])
        irreps.append((0, len(columns), sum(map(len, rows))))
        return cls(torch.cat(rows), torch.tensor(columns), torch.tensor(irreps), [dim([a]) for a in irreps_in], widths)

    @cached_property
    def places(self) -> Int[Tensor, "n_rows"]:
        """Where the rows of M stand in a dense matrix of all components of V and all columns by output."""
        irrep, output, _, place = self.columns.unbind(1)
        dims, widths = (self.columns.new_tensor(x) for x in (self.dims, self.widths))
        n = dims[irrep]
        component = torch.arange(int(n.sum()), device=n.device) - (n.cumsum(0) - n).repeat_interleave(n)
        first, column = (dims.cumsum(0) - dims)[irrep], (widths.cumsum(0) - widths)[output] + place
        return (first.repeat_interleave(n) + component) * sum(self.widths) + column.repeat_interleave(n)

    def by_output(self) -> Int[Tensor, "n_columns"]:
        """The order of columns by output, component and path."""
        widths = self.irreps.new_tensor(self.widths)
        _, output, _, place = self.columns.unbind(1)
        return ((widths.cumsum(0) - widths)[output] + place).argsort()

    def to(self, like: Float[Tensor, "..."]) -> "Contraction":
        """On the device of this tensor; coefficients also in its precision."""
        columns, irreps = self.columns.to(like.device), self.irreps.to(like.device)
        return replace(self, coefficients=self.coefficients.to(like), columns=columns, irreps=irreps)
