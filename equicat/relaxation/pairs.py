"""Neighbour lists that follow moving atoms (Verlet lists), each system's made anew only when its own atoms require it.

A list holds all pairs within the cutoff plus a skin. While no atom has moved further than half the skin since it was
made, no pair within the cutoff can be missing. At each step the pairs within the cutoff are taken out of it, so that a
model sees exactly the edges that a new list would have, and longer ones never reach it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from equicat.data.batch import PairBatch
from equicat.data.neighbors import neighbor_list
from equicat.data.structure import Structure
from equicat.relaxation.layout import Layout


@dataclass(frozen=True, eq=False)
class VerletList:
    """The pairs of one system within cutoff and skin, its atoms counted from 0."""

    edge_index: Int[ndarray, "2 n_edges"]
    edge_shift: Int[ndarray, "n_edges 3"]
    shift_vectors: Float[ndarray, "n_edges 3"]
    """shift @ cell, Å."""
    positions: Float[ndarray, "n_atoms 3"]
    """Where the atoms were when it was made, Å."""
    complete: "VerletList | None" = None
    """The list with the pairs of all centres, if this one leaves some out."""

    @classmethod
    def of(cls, structure: Structure, positions: Float[ndarray, "n_atoms 3"], reach: float | None) -> "VerletList":
        """All pairs within ``reach`` (Å), or none.

        Raises:
            InputError: if two atoms are at the same place.
        """
        if reach is None:
            return cls(np.empty((2, 0), np.int64), np.empty((0, 3), np.int32), np.empty((0, 3)), positions)
        moved = Structure.unchecked(**{**vars(structure), "positions": positions})
        edge_index, edge_shift = neighbor_list(moved, reach)
        return cls(edge_index, edge_shift, edge_shift @ structure.cell, positions)

    def of_active(self, moving: Bool[ndarray, "n_atoms"]) -> "VerletList":
        """The pairs of centres that can move, or that see an atom which can; of the others nothing changes.

        In a strictly local model the energies of the others are constants, and no atom that can move feels a force of
        them. Energies of systems are then short of these constants, and forces on atoms that cannot move are wrong.
        """
        center, neighbor = self.edge_index
        active = moving.copy()
        active[center[moving[neighbor]]] = True
        if active.all():
            return self
        kept = active[center]
        shifts, vectors = self.edge_shift[kept], self.shift_vectors[kept]
        return VerletList(self.edge_index[:, kept], shifts, vectors, self.positions, complete=self)


@dataclass(frozen=True, eq=False)
class Pairs:
    """The lists of all systems as tensors, and everything else about the systems that does not move."""

    layout: Layout
    cutoff: float | None
    """Å; None: the model takes no pairs."""
    still: dict[str, Any]
    """Fields of a :class:`~equicat.data.batch.Batch` that a relaxation does not change."""
    edge_index: Int[Tensor, "2 n_edges"]
    edge_shift: Int[Tensor, "n_edges 3"]
    shift_vectors: Float[Tensor, "n_edges 3"]
    """shift @ cell, Å."""
    positions: Float[Tensor, "n_atoms 3"]
    """Where the atoms were when their system's list was made, Å."""

    @classmethod
    def of(
        cls,
        structures: Sequence[Structure],
        lists: Sequence[VerletList],
        ids: Sequence[str],
        cutoff: float | None,
        device: torch.device | str,
    ) -> "Pairs":
        """Put the lists of some systems together on a device.

        Args:
            structures: the systems.
            lists: theirs.
            ids: a name of each, all different.
            cutoff: of the model, Å.
            device: where to put everything.
        """
        n_atoms = np.array([len(s) for s in structures])
        first_atom = np.concatenate([[0], np.cumsum(n_atoms)[:-1]])
        edge_index = np.concatenate([v.edge_index + first for v, first in zip(lists, first_atom, strict=True)], axis=1)

        def on_device(array: ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        def stacked(name: str) -> Tensor:
            return on_device(np.concatenate([getattr(s, name) for s in structures]))

        layout = Layout.of(on_device(n_atoms))
        still: dict[str, Any] = {name: stacked(name) for name in ("numbers", "fixed", "tags")}
        still |= {name: on_device(np.stack([getattr(s, name) for s in structures])) for name in ("cell", "pbc")}
        still |= {"ids": tuple(ids), "sources": tuple(s.where for s in structures), "system_idx": layout.system_idx}
        return cls(
            layout,
            cutoff,
            still,
            on_device(edge_index),
            on_device(np.concatenate([v.edge_shift for v in lists])),
            on_device(np.concatenate([v.shift_vectors for v in lists])),
            on_device(np.concatenate([v.positions for v in lists])),
        )

    def batch(self, positions: Float[Tensor, "n_atoms 3"]) -> PairBatch:
        """The systems at these positions (float64, Å), with the pairs nearer than the cutoff."""
        center, neighbor = self.edge_index
        vectors = positions.index_select(0, neighbor)
        vectors.sub_(positions.index_select(0, center)).add_(self.shift_vectors)
        edge_index, edge_shift = self.edge_index, self.edge_shift
        if self.cutoff is not None:
            near = (torch.linalg.vector_norm(vectors, dim=1) < self.cutoff).nonzero()[:, 0]
            edge_index, edge_shift = edge_index.index_select(1, near), edge_shift.index_select(0, near)
            vectors = vectors.index_select(0, near)
        edges: dict[str, Any] = {"edge_index": edge_index, "edge_shift": edge_shift, "vectors": vectors}
        return PairBatch(positions, dtype=vectors.dtype, **edges, **self.still)

    def moved(self, positions: Float[Tensor, "n_atoms 3"]) -> Float[Tensor, "n_systems"]:
        """How far (Å) the atom that moved most is from where it was when its system's list was made."""
        return self.layout.largest(positions - self.positions)
