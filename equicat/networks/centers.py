"""Edges gathered by centre: the layout in which an environment sum is a batched matrix product."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equicat.kernels.edges import FLOATS_PER_CHUNK, Segments, cut, has_kernels

MIN_EDGES_PER_CHUNK = 256
"""Smaller chunks cost more in overhead than they save."""
MAX_PADDING = 1.2
"""A chunk that holds something already ends where the number of neighbours exceeds its smallest by this factor."""


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

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an array in this layout, less its last axis."""
        return (self.n_atoms, self.n_max)

    def pad(self, x: Float[Tensor, "n_edges *features"]) -> Float[Tensor, "n_atoms n_max *features"]:
        """Rows grouped by centre, zeros where an atom has fewer than n_max neighbours."""
        padded = _Pad.apply(x.flatten(1), self.slot, self.n_atoms * self.n_max)
        return padded.view(self.n_atoms, self.n_max, *x.shape[1:])

    def unpad(self, x: Float[Tensor, "n_atoms n_max *features"]) -> Float[Tensor, "n_edges *features"]:
        """The inverse of :meth:`pad`; what stands in unused slots is dropped."""
        rows = _Unpad.apply(x.flatten(0, 1).flatten(1), self.slot)
        return rows.view(len(rows), *x.shape[2:])

    def pad_index(self, x: Int[Tensor, "n_edges"]) -> Int[Tensor, "n_slots"]:
        """What :meth:`pad` does, for integers, and as one axis."""
        return x.new_zeros(self.n_atoms * self.n_max).index_copy_(0, self.slot, x)

    def of_center(self, x: Int[Tensor, "n_slots"]) -> Int[Tensor, "n_atoms"]:
        """What all edges of a centre have in common."""
        return x.view(self.shape)[:, 0]


def chunks(
    center: Int[Tensor, "n_edges"], n_atoms: int, floats_per_edge: int
) -> tuple[list[Chunk], Int[Tensor, "n_edges"] | None]:
    """Split edges, sorted by centre, into chunks of whole centres with similar numbers of neighbours.

    Similar numbers, because padding to the largest is wasted work. Atoms without edges fall into no chunk.

    Returns:
        The chunks, and where each edge stands in their concatenation (None if they are already in order).
    """
    device, n_edges = center.device, len(center)
    budget = max(FLOATS_PER_CHUNK.get(device.type, FLOATS_PER_CHUNK["cuda"]) // floats_per_edge, MIN_EDGES_PER_CHUNK)
    counts = torch.bincount(center, minlength=n_atoms)
    order = counts.argsort(stable=True)
    counts_in_order = counts[order]
    occurring, how_often = torch.unique_consecutive(counts_in_order, return_counts=True)
    runs = _runs(occurring.tolist(), how_often.tolist(), budget)
    edge = torch.arange(n_edges, device=device)
    if len(runs) < 2:
        # Without any edge a chunk has one slot, unused: no operation meets an empty array.
        n_max, n_atoms = (runs[0][2], int(center[-1]) + 1) if runs else (1, 1)
        first_edge = (counts.cumsum(0) - counts)[center]
        return [Chunk(slice(None), center * n_max + edge - first_edge, n_atoms, n_max)], None
    # Where each atom's edges begin in the batch, and in the order of the chunks.
    begin, begin_in_order = (counts.cumsum(0) - counts)[order], counts_in_order.cumsum(0) - counts_in_order
    permutation = edge + torch.repeat_interleave(begin - begin_in_order, counts_in_order, output_size=n_edges)
    out, at = [], 0
    for first, stop, n_max in runs:
        atoms = slice(first, stop)
        end = int(begin_in_order[stop]) if stop < n_atoms else n_edges
        # The first edge of the k-th atom goes to slot k n_max, the next ones follow it.
        shift = torch.arange(stop - first, device=device) * n_max - (begin_in_order[atoms] - at)
        slot = edge[: end - at] + torch.repeat_interleave(shift, counts_in_order[atoms], output_size=end - at)
        out.append(Chunk(permutation[at:end], slot, stop - first, n_max))
        at = end
    return out, torch.empty_like(permutation).scatter_(0, permutation, edge)


def _runs(counts: list[int], n_atoms: list[int], budget: int) -> list[tuple[int, int, int]]:
    """Cuts of atoms that are in the order of their number of neighbours: first, stop, largest number.

    Args:
        counts: numbers of neighbours that occur, ascending.
        n_atoms: how many atoms have them.
        budget: largest number of edges in a cut.
    """
    runs: list[tuple[int, int, int]] = []
    first = at = edges = smallest = largest = 0

    def close() -> None:
        nonlocal first, edges
        if at > first:
            runs.append((first, at, largest))
        first, edges = at, 0

    for count, n in zip(counts, n_atoms, strict=True):
        if count == 0:
            first = at = n
            continue
        if edges > budget // 4 and count > MAX_PADDING * smallest:
            close()
        while n:
            room = (budget - edges) // count
            if room < 1 and edges:
                close()
                continue
            if not edges:
                smallest = count
            taken = min(n, max(room, 1))
            at, n, edges, largest = at + taken, n - taken, edges + taken * count, count
    close()
    return runs


def join(parts: tuple[Tensor, ...], position: Int[Tensor, "n_edges"] | None) -> Tensor:
    """The edges of all chunks in the order of the batch; ``position`` as :func:`chunks` gives it."""
    edges = parts[0] if len(parts) == 1 else torch.cat(parts)
    return edges if position is None else edges.index_select(0, position)


def layouts(
    center: Int[Tensor, "n_edges"], n_atoms: int, floats_per_edge: int, triton: bool | None
) -> tuple[list[Segments] | list[Chunk], Int[Tensor, "n_edges"] | None]:
    """All edges, as they lie where kernels are used, else padded; and where each is found, if not in its place.

    Args:
        center: of each edge, ascending.
        n_atoms: number of centres.
        floats_per_edge: largest intermediate of an edge, which bounds how many are worked on at a time.
        triton: whether kernels are to be used; None: see :func:`has_kernels`.
    """
    triton = has_kernels(center.device) if triton is None else triton
    if triton and len(center):
        return cut(center, n_atoms, FLOATS_PER_CHUNK["cuda"] // floats_per_edge), None
    return chunks(center, n_atoms, floats_per_edge)
