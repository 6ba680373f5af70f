"""The Triton kernel of tensor products of centres, g[a] = Σ_bc C[a, b, c] w A[b] h[c]; importing needs Triton.

This is the derivative by G of one form, linear in each of its three arguments, channel by channel:

F(G, A, H) = Σ_i n_i Σ_t w[t, u] G[i, a_t, u] A[i, b_t, u] H[i, c_t, u]

over the terms t that are not zero, with a factor n_i of the centre. One kernel makes its derivatives by G, A and H:
terms are listed once by each argument, and a program sums those of one component, for some centres. Another makes those
by w.
"""

from collections.abc import Sequence
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.language import constexpr

from equicat.kernels.switches import BY_WEIGHTS
from equicat.kernels.terms import Terms

G, A, H = range(3)
"""The arguments of the form."""
CENTERS = 16
"""Centres of a program."""
TERMS = 2048
"""Centres times channels that a program of a derivative by weights works on at a time."""
PARTS = 16
"""Parts that its sums over centres are divided into, at most."""


@triton.jit
@no_type_check
def _contract(arguments, weights, norm, lists, size, onto: constexpr, tile: constexpr, width: constexpr):
    """One component of a derivative; without the second of the two factors, this one is 1."""
    out, n_out, x, n_x, y, n_y = arguments
    terms, ends = lists
    n_centers, n_channels = size
    component = tl.program_id(1)
    i, u = tl.program_id(0) * tile + tl.arange(0, tile), tl.arange(0, width)
    exists = (i < n_centers)[:, None] & (u < n_channels)[None, :]
    at = i.to(tl.int64)[:, None]
    total = tl.zeros((tile, width), weights.dtype.element_ty)
    for t in range(tl.load(ends + component), tl.load(ends + component + 1)):
        w = tl.load(weights + tl.load(terms + 3 * t) * n_channels + u, mask=u < n_channels, other=0)[None, :]
        product = w * tl.load(x + (at * n_x + tl.load(terms + 3 * t + 1)) * n_channels + u, mask=exists, other=0)
        if y is not None:
            product *= tl.load(y + (at * n_y + tl.load(terms + 3 * t + 2)) * n_channels + u, mask=exists, other=0)
        total += product
    total *= tl.load(norm + i, mask=i < n_centers, other=0)[:, None]
    to = out + (at * n_out + component) * n_channels + u[None, :]
    if onto:
        total += tl.load(to, mask=exists, other=0)
    tl.store(to, total, mask=exists)


@triton.jit
@no_type_check
def _by_weights(out, arguments, norm, places, size, tile: constexpr, width: constexpr):
    """The derivative by the weights of one term, summed over a part of the centres; without H, this one is 1."""
    g, n_g, a, n_a, h, n_h = arguments
    n_terms, n_centers, n_channels, part = size
    term, u, begin = tl.program_id(0), tl.arange(0, width), tl.program_id(1) * part
    g_at, a_at, h_at = tl.load(places + 3 * term), tl.load(places + 3 * term + 1), tl.load(places + 3 * term + 2)
    total = tl.zeros((tile, width), out.dtype.element_ty)
    for start in range(begin, tl.minimum(begin + part, n_centers), tile):
        i = start + tl.arange(0, tile)
        exists, at = (i < n_centers)[:, None] & (u < n_channels)[None, :], i.to(tl.int64)[:, None]
        product = tl.load(norm + i, mask=i < n_centers, other=0)[:, None]
        product *= tl.load(g + (at * n_g + g_at) * n_channels + u[None, :], mask=exists, other=0)
        product *= tl.load(a + (at * n_a + a_at) * n_channels + u[None, :], mask=exists, other=0)
        if h is not None:
            product *= tl.load(h + (at * n_h + h_at) * n_channels + u[None, :], mask=exists, other=0)
        total += product
    row = tl.program_id(1) * n_terms + term
    tl.store(out + row * n_channels + u, tl.sum(total, axis=0), mask=u < n_channels)


def contract(
    by: int,
    arguments: Sequence[Float[Tensor, "n_centers _ channels"] | None],
    weights: Float[Tensor, "n_terms channels"],
    norm: Float[Tensor, "n_centers"],
    terms: Terms,
    onto: bool = False,
) -> None:
    """Write the derivative of F by G (0), A (1) or H (2), or add it to what is there; all arrays are contiguous.

    Args:
        by: the argument that is written.
        arguments: G, A and H; an H that is None is 1.
        weights: w.
        norm: n.
        terms: of the form.
        onto: whether to add.
    """
    out, (x, y) = arguments[by], (a for k, a in enumerate(arguments) if k != by)
    assert out is not None
    assert x is not None
    n, size, channels = out.shape
    with torch.cuda.device_of(out):
        _contract[(triton.cdiv(n, CENTERS), size)](
            (out, size, x, x.shape[1], y, 1 if y is None else y.shape[1]),
            weights,
            norm,
            (terms.lists[by], terms.ends[by]),
            (n, channels),
            onto=onto,
            tile=CENTERS,
            width=triton.next_power_of_2(channels),
            num_warps=4,
        )


def by_weights(
    arguments: Sequence[Float[Tensor, "n_centers _ channels"] | None], norm: Float[Tensor, "n_centers"], terms: Terms
) -> Float[Tensor, "n_terms channels"]:
    """The derivative of F by w; arguments as of :func:`contract`."""
    g, a, h = arguments
    assert g is not None
    assert a is not None
    n, _, channels = g.shape
    width = triton.next_power_of_2(channels)
    tile = max(TERMS // width, 1)
    part = triton.cdiv(triton.cdiv(n, tile), PARTS) * tile
    out = g.new_empty(triton.cdiv(n, part), len(terms.places), channels)
    with torch.cuda.device_of(out):
        _by_weights[(len(terms.places), len(out))](
            out,
            (g, g.shape[1], a, a.shape[1], h, 1 if h is None else h.shape[1]),
            norm,
            terms.places,
            (len(terms.places), n, channels, part),
            tile=tile,
            width=width,
            num_warps=4,
        )
    return out.sum(0)


def product(
    terms: Terms,
    norm: Float[Tensor, "n_centers"],
    weights: Float[Tensor, "n_terms channels"],
    a: Float[Tensor, "n_centers _ channels"],
    h: Float[Tensor, "n_centers _ channels"] | None,
) -> Float[Tensor, "n_centers _ channels"]:
    """The derivative of F by G, differentiable any number of times by w, A and H.

    Args:
        terms: of the form.
        norm: n.
        weights: w.
        a: A.
        h: H; None is 1.
    """
    return _Product.apply(G, terms, norm, weights, a, h)


def by_weights_plain(
    arguments: Sequence[Float[Tensor, "n_centers _ channels"] | None], norm: Float[Tensor, "n_centers"], terms: Terms
) -> Float[Tensor, "n_terms channels"]:
    """:func:`by_weights` in PyTorch's operators, differentiable any number of times."""
    product = norm[:, None, None]
    for argument, components in zip(arguments, terms.places.unbind(1), strict=True):
        if argument is not None:
            product = product * argument.index_select(1, components)
    return product.sum(0)


class _Product(torch.autograd.Function):
    """The derivative of F by one of G, A and H from the two others and w, differentiable any number of times."""

    @staticmethod
    def forward(
        ctx: Any, by: int, terms: Terms, norm: Tensor, weights: Tensor, one: Tensor, other: Tensor | None
    ) -> Tensor:
        ctx.by, ctx.terms = by, terms
        one, other = one.contiguous(), None if other is None else other.contiguous()
        ctx.save_for_backward(norm, weights, one, other)
        arguments = _arguments(by, one.new_empty(len(one), len(terms.ends[by]) - 1, one.shape[2]), one, other)
        contract(by, arguments, weights, norm, terms)
        return arguments[by]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        norm, weights, *others = ctx.saved_tensors
        arguments = _arguments(ctx.by, grad.contiguous(), *others)
        needed, out = iter(ctx.needs_input_grad[4:]), list[Tensor | None]()
        for by in (G, A, H):
            if by != ctx.by:
                rest = [x for argument, x in enumerate(arguments) if argument != by]
                out.append(_Product.apply(by, ctx.terms, norm, weights, *rest) if next(needed) else None)
        to_weights = None
        if ctx.needs_input_grad[3] and BY_WEIGHTS.on:
            function = by_weights_plain if torch.is_grad_enabled() else by_weights
            to_weights = function(arguments, norm, ctx.terms)
        return None, None, None, to_weights, *out


def _arguments(by: int, new: Tensor, one: Tensor, other: Tensor | None) -> list[Any]:
    """G, A and H: the new one where ``by`` says, and the others in their order."""
    arguments: list[Any] = [one, other]
    arguments.insert(by, new)
    return arguments
