"""Edges in rows of equal length, one for each centre: sums over edges become batched matrix products."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class _Pad(torch.autograd.Function):
    """Rows to their slots in a larger array of zeros; the adjoint of :class:`_Unpad`.

    Each slot gathers a row, and those that should be empty are then emptied: half the time of writing zeros everywhere
    and rows over them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, padding: "Padding") -> Tensor:
        ctx.padding = padding
        if not len(x):
            return x.new_zeros(padding.n_atoms * padding.n_max, x.shape[1])
        row, empty = padding.gathered
        return x.index_select(0, row).index_fill_(0, empty, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Unpad.apply(grad, ctx.padding), None


class _Unpad(torch.autograd.Function):
    """Rows back from their slots; the adjoint of :class:`_Pad`. No atomics, no sorting: a slot holds one row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, padding: "Padding") -> Tensor:
        ctx.padding = padding
        return x.index_select(0, padding.slot)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Pad.apply(grad.contiguous(), ctx.padding), None


@dataclass(frozen=True, eq=False)
class Padding:
    """A place for each edge in an array [n_atoms, n_max, …]."""

    slot: Int[Tensor, "n_edges"]
    """Where an edge goes, counted through all rows."""
    n_atoms: int
    n_max: int
    """The largest number of neighbours of a centre, at least 1."""

    @cached_property
    def gathered(self) -> tuple[Int[Tensor, "n_slots"], Int[Tensor, "n_empty"]]:
        """The edge of each slot, any one for a slot that stays empty; and the slots that stay empty."""
        edge = self.slot.new_full((self.n_atoms * self.n_max,), -1)
        edge[self.slot] = torch.arange(len(self.slot), device=edge.device)
        return edge.clamp(min=0), (edge < 0).nonzero()[:, 0]

    @classmethod
    def of_centers(cls, first: Int[Tensor, "n_ends"], n_edges: int) -> "Padding":
        """For edges sorted by centre, those of centre i being first[i] … first[i + 1] − 1."""
        counts, edge = first.diff(), torch.arange(n_edges, device=first.device)
        n_max = max(int(counts.max()), 1) if len(counts) else 1
        shift = torch.arange(len(counts), device=first.device) * n_max - first[:-1]
        return cls(edge + shift.repeat_interleave(counts, output_size=n_edges), len(counts), n_max)

    def pad(self, x: Float[Tensor, "n_edges *features"]) -> Float[Tensor, "n_atoms n_max *features"]:
        """Rows grouped by centre, zeros where an atom has fewer than n_max neighbours."""
        return _Pad.apply(x.flatten(1), self).view(self.n_atoms, self.n_max, *x.shape[1:])

    def unpad(self, x: Float[Tensor, "n_atoms n_max *features"]) -> Float[Tensor, "n_edges *features"]:
        """The inverse of :meth:`pad`; what stands in unused slots is dropped."""
        rows = _Unpad.apply(x.flatten(0, 1).flatten(1), self)
        return rows.view(len(rows), *x.shape[2:])
