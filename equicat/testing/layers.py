"""Equivariance of one layer of a network."""

from collections.abc import Callable, Sequence

import torch
from e3nn import o3
from jaxtyping import Float64
from torch import Tensor

from equicat.testing.structures import random_rotation

EQUIVARIANCE = 1e-9
"""Deviation allowed relative to the largest entry of the result, in float64."""


def check_equivariance(
    function: Callable[..., Float64[Tensor, "n dim_out channels_out"]],
    irreps_in: str | o3.Irreps | Sequence[str | o3.Irreps],
    irreps_out: str | o3.Irreps,
    *,
    n: int = 5,
    channels: int = 3,
    tolerance: float = EQUIVARIANCE,
) -> None:
    """f(D_in x) = D_out f(x) for a rotation, the inversion and their product; for one layer of a network.

    Args:
        function: maps float64 features [n, dim, channels], one argument for each entry of ``irreps_in``, to features
            [n, dim_out, channels_out].
        irreps_in: of the components of each argument; one for one argument.
        irreps_out: of the components of the result.
        n: rows.
        channels: channels of every argument.
        tolerance: relative to the largest entry of the result.

    Raises:
        AssertionError: naming the operation and the deviation.
    """
    several = [irreps_in] if isinstance(irreps_in, str | o3.Irreps) else list(irreps_in)
    inputs, out = [o3.Irreps(irreps) for irreps in several], o3.Irreps(irreps_out)
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(n, irreps.dim, channels, dtype=torch.float64, generator=generator) for irreps in inputs]
    rotation = torch.from_numpy(random_rotation())
    expected = function(*x)
    for name, matrix in (("rotation", rotation), ("inversion", -torch.eye(3).double()), ("reflection", -rotation)):
        turned = [torch.einsum("ab,nbc->nac", _representation(i, matrix), f) for i, f in zip(inputs, x, strict=True)]
        error = (function(*turned) - torch.einsum("ab,nbc->nac", _representation(out, matrix), expected)).abs().max()
        allowed = tolerance * expected.abs().max().item()
        if not error.item() <= allowed:  # also when NaN
            shapes = f"{', '.join(map(str, inputs))} -> {out}"
            raise AssertionError(f"{name}, {shapes}: the result is off by {error.item():.3g}; allowed {allowed:.3g}")


def _representation(irreps: o3.Irreps, matrix: Tensor) -> Tensor:
    """D(matrix) for a rotation or a rotation times the inversion, [dim, dim].

    Solved from Y(R x) = D Y(x) at random points: e3nn's own ``D_from_matrix`` keeps only seven digits.
    """
    sign = torch.linalg.det(matrix).sign()
    points = torch.nn.functional.normalize(torch.randn(99, 3, dtype=torch.float64), dim=1)
    blocks = []
    for multiplicity, (degree, parity) in irreps:
        before, after = (o3.spherical_harmonics(degree, x, False) for x in (points, points @ (sign * matrix).T))
        d = torch.linalg.lstsq(before, after).solution.T
        blocks += multiplicity * [d if sign > 0 else parity * d]
    return torch.block_diag(*blocks)
