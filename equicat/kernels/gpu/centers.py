"""The Triton kernel of tensor products of centres, g[a] = Σ_bc C[a, b, c] w A[b] h[c]; importing needs Triton.

This is the derivative by G of one form, linear in each of its three arguments, channel by channel:

F(G, A, H) = Σ_i n_i Σ_t w[t, u] G[i, a_t, u] A[i, b_t, u] H[i, c_t, u]

over the terms t that are not zero, with a factor n_i of the centre. The kernel makes any of its derivatives: terms are
listed once by each argument, and a program sums those of one component, for some centres.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from triton.language import constexpr

G, A, H = range(3)
"""The arguments of the form."""
CENTERS = 16
"""Centres of a program."""


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


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms of a form, listed by each of its arguments."""

    lists: tuple[Int[Tensor, "n_terms 3"], ...]
    """For each argument: number of the term, and components of the two others in their order."""
    ends: tuple[Int[Tensor, "_"], ...]
    """For each argument: where the terms of each component begin, and where the last ones end."""

    @classmethod
    def of(cls, places: Int[Tensor, "n_terms 3"], sizes: Sequence[int], device: torch.device) -> "Terms":
        """Terms (a, b, c) among so many components."""
        lists, ends = [], []
        for argument, size in enumerate(sizes):
            order = places[:, argument].argsort(stable=True)
            others = [k for k in range(3) if k != argument]
            lists.append(torch.cat([order[:, None], places[order][:, others]], dim=1).to(device))
            found = torch.searchsorted(places[order][:, argument].contiguous(), torch.arange(size + 1))
            ends.append(found.to(device))
        return cls(tuple(lists), tuple(ends))


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
