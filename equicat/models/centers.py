"""Edges gathered by centre: the layout in which an environment sum is a batched matrix product."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

FLOATS_PER_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 30}
"""Largest intermediate of a chunk of edges: on a CPU one that stays in its cache, on a GPU only to bound memory."""
MIN_EDGES_PER_CHUNK = 256
"""Smaller chunks cost more in overhead than they save."""


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
class Chunk:
    """Some centres with all their edges; maps [n_edges, …] to [n_atoms, n_max, …] and back.

    Layers work on one chunk at a time: a pair depends on the pairs of its own centre only.
    """

    edges: Int[Tensor, "n_edges"] | slice
    """Which edges of the batch."""
    slot: Int[Tensor, "n_edges"]
    n_atoms: int
    n_max: int
    """The largest number of neighbours of a centre in the chunk."""

    def pad(self, x: Float[Tensor, "n_edges *features"]) -> Float[Tensor, "n_atoms n_max *features"]:
        """Rows grouped by centre, zeros where an atom has fewer than n_max neighbours."""
        padded = _Pad.apply(x.flatten(1), self.slot, self.n_atoms * self.n_max)
        return padded.view(self.n_atoms, self.n_max, *x.shape[1:])

    def unpad(self, x: Float[Tensor, "n_atoms n_max *features"]) -> Float[Tensor, "n_edges *features"]:
        """The inverse of :meth:`pad`; what stands in unused slots is dropped."""
        rows = _Unpad.apply(x.flatten(0, 1).flatten(1), self.slot)
        return rows.view(len(rows), *x.shape[2:])


def chunks(
    center: Int[Tensor, "n_edges"], n_atoms: int, floats_per_edge: int
) -> tuple[list[Chunk], Int[Tensor, "n_edges"] | None]:
    """Split edges, sorted by centre, into chunks of whole centres with similar numbers of neighbours.

    Similar numbers, because padding to the largest is wasted work.

    Returns:
        The chunks, and where each edge stands in their concatenation (None if they are already in order).
    """
    budget = max(
        FLOATS_PER_CHUNK.get(center.device.type, FLOATS_PER_CHUNK["cuda"]) // floats_per_edge, MIN_EDGES_PER_CHUNK
    )
    n_edges = len(center)
    counts = torch.bincount(center, minlength=n_atoms)
    starts = counts.cumsum(0) - counts
    within = torch.arange(n_edges, device=center.device) - starts[center]
    if n_edges <= budget:
        n_max = max(int(counts.max()), 1)
        return [Chunk(slice(None), center * n_max + within, n_atoms, n_max)], None
    order = counts.argsort(stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(n_atoms, device=center.device))
    sorted_counts = counts[order]
    ends = sorted_counts.cumsum(0)
    permutation = rank[center].argsort(stable=True)
    # Atoms without edges come first and fall into no chunk.
    first_atom = int((sorted_counts == 0).sum())
    chunk_of_atom = (ends - sorted_counts) // budget
    out = []
    for n in range(int(chunk_of_atom[-1]) + 1):
        atoms = (chunk_of_atom[first_atom:] == n).nonzero()[:, 0] + first_atom
        if len(atoms) == 0:
            continue
        first, last = int(atoms[0]), int(atoms[-1])
        edges = permutation[int(ends[first] - sorted_counts[first]) : int(ends[last])]
        n_max = int(sorted_counts[last])
        slot = (rank[center[edges]] - first) * n_max + within[edges]
        out.append(Chunk(edges, slot, last - first + 1, n_max))
    return out, torch.empty_like(permutation).scatter_(0, permutation, torch.arange(n_edges, device=center.device))
