"""Products of many rows with a matrix, at float32's accuracy on a GPU's tensor cores; elsewhere they are PyTorch's own.

A product and all its derivatives come from one form, linear in each of its three arguments:

F(X, W, G) = Σ_e Σ_kn X[e, k] W[k, n] G[e, n]

The product XW is ∂F/∂G. Its derivatives are ∂F/∂X = G Wᵀ and ∂F/∂W = Xᵀ G with the gradient that comes in in the place
of G, and so on: no order needs anything else.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from equicat.kernels import backend
from equicat.kernels.activations import silu
from equicat.kernels.switches import BY_WEIGHTS, Switch, switched

X, W, G = range(3)
"""The arguments of the form."""
MIN_ROWS = 4096
"""Fewer rows do not fill a GPU with tiles."""
MIN_WIDTH = 128
"""Narrower matrices are bound by memory, and PyTorch's products serve."""
SPLIT = Switch()
"""Whether products of the whole process are split; off means PyTorch's products in the precision that it is set to."""


def split_products(on: bool) -> AbstractContextManager[None]:
    """Split products on GPUs, or leave them to PyTorch, and restore the setting that was there."""
    return switched(SPLIT, on)


def product(x: Float[Tensor, "n_rows n_k"], w: Float[Tensor, "n_k n_n"]) -> Float[Tensor, "n_rows n_n"]:
    """X W, differentiable any number of times; split where that is faster than PyTorch's float32."""
    return _Derivative.apply(G, x, w) if splits(x, w) else x @ w


def splits(x: Float[Tensor, "n_rows n_k"], w: Float[Tensor, "n_k n_n"]) -> bool:
    """Whether this product is made of split numbers: on a GPU, in float32 that is not to be rounded, if it is large."""
    # Sizes come last, which an export keeps open.
    return is_split(x, w) and len(x) >= MIN_ROWS and min(w.shape) >= MIN_WIDTH


def is_split(x: Shaped[Tensor, "..."], w: Shaped[Tensor, "..."]) -> bool:
    """Whether products of any size, of what is like these, may be made of split numbers: on a GPU, in float32 that is
    not to be rounded."""
    return (
        SPLIT.on
        and backend.has_triton(x.device)
        and x.dtype == w.dtype == torch.float32
        and torch.get_float32_matmul_precision() == "highest"
    )


class _Derivative(torch.autograd.Function):
    """∂F by one of its arguments, from the other two."""

    @staticmethod
    def forward(ctx: Any, by: int, one: Tensor, other: Tensor) -> Tensor:
        ctx.by = by
        ctx.save_for_backward(one, other)
        from equicat.kernels.gpu import products as kernels  # the only place that needs Triton

        if by == X:
            return kernels.rows([other], kernels.halves(one.t()))
        if by == W:
            return kernels.sums_over_rows(one, [other])
        return kernels.rows([one], kernels.halves(other))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        arguments = list(ctx.saved_tensors)
        arguments.insert(ctx.by, grad)
        needed = iter(ctx.needs_input_grad[1:])
        out: list[Tensor | None] = []
        for by in (X, W, G):
            if by != ctx.by:
                rest = [x for argument, x in enumerate(arguments) if argument != by]
                is_needed = next(needed) and (by != W or BY_WEIGHTS.on)
                out.append(_Derivative.apply(by, *rest) if is_needed else None)
        return None, *out


# ---- a SiLU and what reads it --------------------------------------------------------------------------------------


def activated(
    z: Float[Tensor, "n_rows n_k"],
    w: Float[Tensor, "n_k n_n"],
    added: Sequence[Float[Tensor, "n_rows _"] | None],
    widths: Sequence[int],
) -> tuple[Float[Tensor, "n_rows _"], ...]:
    """C_j + silu(Z) W_j for matrices W_j side by side, each result an array of its own; differentiable twice.

    Args:
        z: before the SiLU.
        w: all W_j.
        added: C_j; None adds nothing.
        widths: of W_j.
    """
    if splits(z, w):
        return _Activated.apply(tuple(widths), z, w, *added)
    return activated_plain(z, w, added, widths)


def activated_plain(
    z: Float[Tensor, "n_rows n_k"],
    w: Float[Tensor, "n_k n_n"],
    added: Sequence[Float[Tensor, "n_rows _"] | None],
    widths: Sequence[int],
) -> tuple[Float[Tensor, "n_rows _"], ...]:
    """:func:`activated` in operators that are differentiable twice."""
    found = product(silu(z), w).split(list(widths), dim=1)
    return tuple(x if c is None else c + x for c, x in zip(added, found, strict=True))


def hidden(
    x: Float[Tensor, "n_rows n_x"],
    z: Float[Tensor, "n_rows n_z"] | None,
    matrices: tuple[Float[Tensor, "n_x n_z"], Float[Tensor, "n_z n_n"]],
    added: Sequence[Float[Tensor, "n_rows _"] | None],
    widths: Sequence[int],
) -> tuple[Float[Tensor, "n_rows _"], ...]:
    """C_j + silu(Z + X A) B_j for matrices B_j side by side; differentiable twice, and on a CPU more often.

    Args:
        x: X.
        z: Z; None adds nothing.
        matrices: A, and all B_j.
        added: C_j; None adds nothing.
        widths: of B_j.
    """
    first, last = matrices
    if is_split(x, first):
        from equicat.kernels.gpu import hidden as kernels

        if kernels.is_narrow(first):
            return kernels.hidden(x, z, matrices, added, widths)
    before = product(x, first) if z is None else torch.addmm(z, x, first)
    return activated(before, last, added, widths)


class _Activated(torch.autograd.Function):
    """Fused: silu(Z) and its products are never written by themselves."""

    @staticmethod
    def forward(ctx: Any, widths: tuple[int, ...], z: Tensor, w: Tensor, *added: Tensor | None) -> tuple[Tensor, ...]:
        from equicat.kernels.gpu import products as kernels

        ctx.widths, ctx.is_added = widths, [c is not None for c in added]
        ctx.save_for_backward(z, w)
        return tuple(kernels.beside(z, kernels.halves(w), widths, added, act=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from equicat.kernels.gpu import products as kernels

        (z, w), (to_z, to_w) = ctx.saved_tensors, (None, None)
        needs_w = ctx.needs_input_grad[2] and BY_WEIGHTS.on
        if torch.is_grad_enabled():
            to_z = _ActivatedGradient.apply(z, w, *grads)
            to_w = _Derivative.apply(W, silu(z), torch.cat(grads, dim=1)) if needs_w else None
        else:
            if ctx.needs_input_grad[1]:
                to_z = kernels.rows(grads, kernels.halves(w.t()), kernels.Extra(sloping=z))
            if needs_w:
                to_w = kernels.sums_over_rows(z, grads, act=True)
        return None, to_z, to_w, *(g if is_added else None for g, is_added in zip(grads, ctx.is_added, strict=True))


class _ActivatedGradient(torch.autograd.Function):
    """Σ_j G_j W_jᵀ times the slope of the SiLU at Z, differentiable once."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, w: Tensor, *grads: Tensor) -> Tensor:
        from equicat.kernels.gpu import products as kernels

        by_h = kernels.rows(grads, kernels.halves(w.t()))
        ctx.save_for_backward(z, w, by_h, *grads)
        return torch.ops.aten.silu_backward(by_h, z)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, move: Tensor) -> tuple[Tensor | None, ...]:
        from equicat.kernels.gpu import products as kernels
        from equicat.kernels.gpu.activations import slope_back

        z, w, by_h, *grads = ctx.saved_tensors
        move_h, to_z = slope_back(move, by_h, z)
        to_w = None
        if ctx.needs_input_grad[1] and BY_WEIGHTS.on:
            to_w = kernels.sums_over_rows(move_h, grads)
        widths = [g.shape[1] for g in grads]
        to_grads = kernels.beside(move_h, kernels.halves(w), widths, [None] * len(widths), act=False)
        return to_z, to_w, *to_grads
