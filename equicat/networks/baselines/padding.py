"""Edges in chunks of whole centres with similar numbers of neighbours, each padded to its largest."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from equicat.kernels.forms import FLOATS_AT_A_TIME
from equicat.kernels.padding import Padding

MIN_EDGES_PER_CHUNK = 256
"""Smaller chunks cost more in overhead than they save."""
MAX_PADDING = 1.2
"""A chunk that holds something already ends where the number of neighbours exceeds its smallest by this factor."""


@dataclass(frozen=True, eq=False)
class Chunk(Padding):
    """Some centres with all their edges; maps [n_edges, …] to [n_atoms, n_max, …] and back."""

    edges: Int[Tensor, "n_edges"] | slice
    """Which edges of the batch."""


def chunks(
    center: Int[Tensor, "n_edges"], n_atoms: int, floats_per_edge: int
) -> tuple[list[Chunk], Int[Tensor, "n_edges"] | None]:
    """Split edges, sorted by centre, into chunks of whole centres with similar numbers of neighbours.

    Similar numbers, because padding to the largest is wasted work. Atoms without edges fall into no chunk.

    Returns:
        The chunks, and where each edge stands in their concatenation (None if they are already in order).
    """
    device, n_edges = center.device, len(center)
    budget = max(FLOATS_AT_A_TIME.get(device.type, FLOATS_AT_A_TIME["cuda"]) // floats_per_edge, MIN_EDGES_PER_CHUNK)
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
        return [Chunk(center * n_max + edge - first_edge, n_atoms, n_max, slice(None))], None
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
        out.append(Chunk(slot, stop - first, n_max, permutation[at:end]))
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
