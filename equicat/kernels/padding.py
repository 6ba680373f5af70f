"""Edges in rows of equal length, one for each centre: sums over edges become batched matrix products."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class _Pad(torch.autograd.Function):
    """Rows to their slots in a larger array of zeros; the adjoint of :class:`_Unpad`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Tensor, n_slots: int) -> Tensor:
        ctx.save_for_backward(slot)
        return x.new_zeros(n_slots, x.shape[1]).index_copy_(0, slot, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Unpad.apply(grad, *ctx.saved_tensors), None, None


class _Unpad(torch.autograd.Function):
    """Rows back from their slots; the adjoint of :class:`_Pad`. No atomics, no sorting: a slot holds one row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Tensor) -> Tensor:
        ctx.save_for_backward(slot)
        ctx.n_slots = len(x)
        return x.index_select(0, slot)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Pad.apply(grad.contiguous(), *ctx.saved_tensors, ctx.n_slots), None


@dataclass(frozen=True, eq=False)
class Padding:
    """A place for each edge in an array [n_atoms, n_max, …]."""

    slot: Int[Tensor, "n_edges"]
    """Where an edge goes, counted through all rows."""
    n_atoms: int
    n_max: int
    """The largest number of neighbours of a centre, at least 1."""

    @classmethod
    def of_centers(cls, first: Int[Tensor, "n_ends"], n_edges: int) -> "Padding":
        """For edges sorted by centre, those of centre i being first[i] … first[i + 1] − 1."""
        counts, edge = first.diff(), torch.arange(n_edges, device=first.device)
        n_max = max(int(counts.max()), 1) if len(counts) else 1
        shift = torch.arange(len(counts), device=first.device) * n_max - first[:-1]
        return cls(edge + shift.repeat_interleave(counts, output_size=n_edges), len(counts), n_max)

    def pad(self, x: Float[Tensor, "n_edges *features"]) -> Float[Tensor, "n_atoms n_max *features"]:
        """Rows grouped by centre, zeros where an atom has fewer than n_max neighbours."""
        padded = _Pad.apply(x.flatten(1), self.slot, self.n_atoms * self.n_max)
        return padded.view(self.n_atoms, self.n_max, *x.shape[1:])

    def unpad(self, x: Float[Tensor, "n_atoms n_max *features"]) -> Float[Tensor, "n_edges *features"]:
        """The inverse of :meth:`pad`; what stands in unused slots is dropped."""
        rows = _Unpad.apply(x.flatten(0, 1).flatten(1), self.slot)
        return rows.view(len(rows), *x.shape[2:])
