"""The tensor products of edges in the published Allegro, for edges as they lie (:mod:`equicat.kernels.edges`).

What an edge makes of its tensor features and the matrix of its centre is the derivative by B of a form that is linear
in each of its three arguments:

F(V, M, B) = Σ_e Σ_cku B[e, c, u] V[e, k, u] M[i(e), c, k, u]

with columns c, the components k that enter them, and channels u (:class:`equicat.kernels.irreps.Contraction`). So the
derivatives of ∂F/∂B are ∂F/∂V and ∂F/∂M with the gradient that comes in in the place of B; and those of each of these
again two of the three. Derivatives of any order need no other operation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from equicat.kernels.edges import Segments
from equicat.kernels.irreps import Contraction

V, M, B = range(3)
"""The arguments of F."""


def tensor_product(
    v: Sequence[Float[Tensor, "n_edges _ channels"]],
    m: Float[Tensor, "n_atoms n_rows channels"],
    contraction: Contraction,
    segments: Segments,
) -> tuple[Float[Tensor, "n_edges _ channels"], ...]:
    """All columns of all edges, by output; differentiable any number of times.

    Args:
        v: tensor features by irrep.
        m: matrices of the centres.
        contraction: which columns there are.
        segments: edges and their centres.
    """
    return _Derivative.apply(B, contraction, segments.first, *v, m)


def tensor_product_plain(
    v: Sequence[Tensor], m: Tensor, contraction: Contraction, segments: Segments
) -> tuple[Tensor, ...]:
    """:func:`tensor_product` by autograd; the oracle."""
    center = torch.arange(len(m)).to(m.device).repeat_interleave(segments.first.diff())
    found = dict[tuple[int, int], Tensor]()
    row = 0
    for irrep, output, _, place in contraction.columns.tolist():
        n = contraction.dims[irrep]
        found[output, place] = (v[irrep] * m[center, row : row + n]).sum(1)
        row += n
    return tuple(
        torch.stack([found[output, place] for place in range(width)], dim=1)
        for output, width in enumerate(contraction.widths)
    )


class _Derivative(torch.autograd.Function):
    """∂F by one of its arguments, from the other two."""

    @staticmethod
    def forward(ctx: Any, by: int, contraction: Contraction, first: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        from equicat.kernels.gpu import tensor_product as triton_tensor_product

        ctx.by, ctx.contraction = by, contraction
        ctx.save_for_backward(first, *others)
        return triton_tensor_product.derivative(by, _arguments(by, (), others, contraction), contraction, first)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        first, *others = ctx.saved_tensors
        arguments = _arguments(ctx.by, grads, others, ctx.contraction)
        needed = _arguments(ctx.by, (), ctx.needs_input_grad[3:], ctx.contraction)
        out: list[Tensor | None] = []
        for by in (V, M, B):
            if any(needed[by]):
                rest = [x for argument in (V, M, B) if argument != by for x in arguments[argument]]
                out += _Derivative.apply(by, ctx.contraction, first, *rest)
            elif by != ctx.by:
                out += [None] * len(arguments[by])
        return None, None, None, *out


def _arguments(by: int, one: Sequence, others: Sequence, contraction: Contraction) -> list[Sequence]:
    """V, M and B, each as what it consists of, from one of them and the others in their order."""
    sizes = [len(contraction.dims), 1, len(contraction.widths)]
    rest = iter(others)
    return [one if k == by else [next(rest) for _ in range(n)] for k, n in enumerate(sizes)]
