"""Neighbour lists that follow moving atoms (Verlet lists), each system's made anew only when its own atoms require it.

A list holds all pairs within the cutoff plus a skin. While no atom has moved further than half the skin since it was
made, no pair within the cutoff can be missing. At each step the pairs within the cutoff are taken out of it, so that a
model sees exactly the edges that a new list would have, and longer ones never reach it.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray
from torch import Tensor

from equicat.data.batch import PairBatch
from equicat.data.device_neighbors import neighbor_lists
from equicat.data.neighbors import neighbor_list
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.kernels.cpu.relaxation import native
from equicat.relaxation.layout import Layout


@dataclass(frozen=True, eq=False)
class VerletList:
    """The pairs of one system within cutoff and skin, its atoms counted from 0, on the device of the positions."""

    edge_index: Int[Tensor, "2 n_edges"]
    edge_shift: Int[Tensor, "n_edges 3"]
    shift_vectors: Float[Tensor, "n_edges 3"]
    """shift @ cell, Å."""
    positions: Float[Tensor, "n_atoms 3"]
    """Where the atoms were when it was made, Å."""
    complete: "VerletList | None" = None
    """The list with the pairs of all centres, if this one leaves some out."""

    def of_centers(self, chosen: Bool[Tensor, "n_atoms"]) -> "VerletList":
        """The pairs of some centres; the list itself if there are no others."""
        kept = chosen.index_select(0, self.edge_index[0]).nonzero()[:, 0]
        if len(kept) == len(self.edge_shift):
            return self
        index, shifts = self.edge_index.index_select(1, kept), self.edge_shift.index_select(0, kept)
        return VerletList(index, shifts, self.shift_vectors.index_select(0, kept), self.positions, complete=self)

    def of_active(self, moving: Bool[Tensor, "n_atoms"]) -> "VerletList":
        """The pairs of centres that can move, or that see an atom which can; of the others nothing changes.

        In a strictly local model the energies of the others are constants, and no atom that can move feels a force of
        them. Energies of systems are then short of these constants, and forces on atoms that cannot move are wrong.
        """
        center, neighbor = self.edge_index
        seen = torch.zeros(len(moving), dtype=torch.int64, device=moving.device)
        seen.index_add_(0, center, moving.index_select(0, neighbor).long())
        return self.of_centers(moving | (seen > 0))

    def split(self, n_atoms: Sequence[int]) -> list["VerletList"]:
        """The lists of systems with these numbers of atoms, which this one holds as if they were one system."""
        if self.complete is not None:
            pairs = zip(replace(self, complete=None).split(n_atoms), self.complete.split(n_atoms), strict=True)
            return [part if part.n_edges == whole.n_edges else replace(part, complete=whole) for part, whole in pairs]
        device = self.positions.device
        first_atom = _on(device, [0, *itertools.accumulate(n_atoms)])
        first_edge = torch.searchsorted(self.edge_index[0].contiguous(), first_atom).tolist()
        n_edges = [end - start for start, end in itertools.pairwise(first_edge)]
        owner = torch.repeat_interleave(first_atom[:-1], _on(device, n_edges), output_size=first_edge[-1])
        parts = ((self.edge_index - owner).split(n_edges, 1), self.edge_shift.split(n_edges))
        more = (self.shift_vectors.split(n_edges), self.positions.split(list(n_atoms)))
        return [VerletList(*fields) for fields in zip(*parts, *more, strict=True)]

    @property
    def n_edges(self) -> int:
        """Pairs in the list."""
        return len(self.edge_shift)


def on_device(arrays: Sequence[Shaped[ndarray, "..."]], device: torch.device | str) -> list[Shaped[Tensor, "..."]]:
    """Copies of arrays, one for each system, on a device; all in one transfer."""
    joined = torch.from_numpy(np.concatenate(arrays)).to(device)
    return list(joined.split([len(array) for array in arrays]))


def verlet_lists(
    structures: Sequence[Structure],
    positions: Sequence[Float[Tensor, "_ 3"]],
    reach: float | None,
    moving: Sequence[Bool[Tensor, "_"]] | None = None,
) -> list[VerletList]:
    """The list of each system: on a GPU all are made in one call, on a CPU one after the other by the search there.

    Args:
        structures: whose cells and numbers of atoms count.
        positions: of each, Å; the lists come to the same device.
        reach: Å; None makes empty lists.
        moving: which atoms of each system can move, if lists are only to have :meth:`VerletList.of_active` pairs.

    Raises:
        InputError: if two atoms of a system are at the same place.
    """
    if not structures:
        return []
    if reach is None:
        return [_empty(r) for r in positions]
    if not _in_one_call(positions[0].device):
        lists = [_on_cpu(s, r, reach) for s, r in zip(structures, positions, strict=True)]
        return lists if moving is None else [v.of_active(m) for v, m in zip(lists, moving, strict=True)]
    joined = _as_one(structures, torch.cat(list(positions)), reach)
    joined = joined if moving is None else joined.of_active(torch.cat(list(moving)))
    return joined.split([len(s) for s in structures])


def verlet_lists_or_none(
    structures: Sequence[Structure],
    positions: Sequence[Float[Tensor, "_ 3"]],
    reach: float | None,
    moving: Sequence[Bool[Tensor, "_"]] | None = None,
) -> list[VerletList | None]:
    """Lists as :func:`verlet_lists` makes them; None for a system in which two atoms are at the same place."""
    try:
        return [*verlet_lists(structures, positions, reach, moving)]
    except InputError:
        if len(structures) == 1:
            return [None]
    found: list[VerletList | None] = []
    for k in range(len(structures)):
        one = slice(k, k + 1)
        found += verlet_lists_or_none(structures[one], positions[one], reach, None if moving is None else moving[one])
    return found


def _in_one_call(device: torch.device) -> bool:
    """Whether the search in PyTorch is the faster one."""
    return device.type != "cpu"


def _empty(positions: Float[Tensor, "n_atoms 3"]) -> VerletList:
    none = torch.zeros(0, 3, dtype=torch.int64, device=positions.device)
    return VerletList(none.view(2, 0), none.int(), positions.new_zeros(0, 3), positions)


def _on_cpu(structure: Structure, positions: Float[Tensor, "n_atoms 3"], reach: float) -> VerletList:
    moved = Structure.unchecked(**{**vars(structure), "positions": positions.numpy()})
    edge_index, edge_shift = neighbor_list(moved, reach)
    vectors = torch.from_numpy(edge_shift @ structure.cell)
    return VerletList(torch.from_numpy(edge_index), torch.from_numpy(edge_shift).int(), vectors, positions)


def _as_one(structures: Sequence[Structure], positions: Float[Tensor, "n_atoms 3"], reach: float) -> VerletList:
    """The lists of all systems as one."""
    edge_index, edge_shift = neighbor_lists(structures, positions, reach)
    n_atoms = _on(positions.device, [len(s) for s in structures])
    cells = torch.from_numpy(np.stack([s.cell for s in structures])).to(positions.device, non_blocking=True)
    system = torch.repeat_interleave(n_atoms, output_size=len(positions)).index_select(0, edge_index[0])
    a, b, c = (edge_shift[:, k, None] * cells[:, k].index_select(0, system) for k in range(3))
    return VerletList(edge_index, edge_shift, a + b + c, positions)


def _on(device: torch.device, numbers: Sequence[int]) -> Int[Tensor, "n"]:
    """Whole numbers on a device, without a wait."""
    return torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)


@dataclass(frozen=True, eq=False)
class Pairs:
    """The lists of all systems as tensors, and everything else about the systems that does not move."""

    layout: Layout
    n_atoms: tuple[int, ...]
    """Atoms of each system."""
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
            lists: theirs, on that device.
            ids: a name of each, all different.
            cutoff: of the model, Å.
            device: where to put everything.
        """
        n_atoms = tuple(len(s) for s in structures)

        def joined(name: str, how: Callable[..., ndarray]) -> Tensor:
            return torch.from_numpy(how([getattr(s, name) for s in structures])).to(device)

        layout = Layout.of(torch.tensor(n_atoms, device=device))
        still: dict[str, Any] = {name: joined(name, np.concatenate) for name in ("numbers", "fixed", "tags")}
        still |= {name: joined(name, np.stack) for name in ("cell", "pbc")}
        still |= {"ids": tuple(ids), "sources": tuple(s.where for s in structures), "system_idx": layout.system_idx}
        return cls(layout, n_atoms, cutoff, still, *_together(lists, n_atoms))

    def with_lists(self, lists: Sequence[VerletList]) -> "Pairs":
        """These systems with other lists."""
        return Pairs(self.layout, self.n_atoms, self.cutoff, self.still, *_together(lists, self.n_atoms))

    def batch(self, positions: Float[Tensor, "n_atoms 3"]) -> PairBatch:
        """The systems at these positions (float64, Å), with the pairs nearer than the cutoff."""
        pairs = (self.edge_index, self.edge_shift, self.shift_vectors)
        limit = math.inf if self.cutoff is None else self.cutoff
        steps = native(positions)
        edge_index, edge_shift, vectors = (near_pairs if steps is None else steps.near)(*pairs, positions, limit)
        edges: dict[str, Any] = {"edge_index": edge_index, "edge_shift": edge_shift, "vectors": vectors}
        return PairBatch(positions, dtype=vectors.dtype, **edges, **self.still)

    def moved(self, positions: Float[Tensor, "n_atoms 3"]) -> Float[Tensor, "n_systems"]:
        """How far (Å) the atom that moved most is from where it was when its system's list was made."""
        return self.layout.largest(positions - self.positions)


def near_pairs(
    edge_index: Int[Tensor, "2 n_edges"],
    edge_shift: Int[Tensor, "n_edges 3"],
    shift_vectors: Float[Tensor, "n_edges 3"],
    positions: Float[Tensor, "n_atoms 3"],
    cutoff: float,
) -> tuple[Int[Tensor, "2 n_near"], Int[Tensor, "n_near 3"], Float[Tensor, "n_near 3"]]:
    """The plain version of :meth:`equicat.kernels.cpu.relaxation.Steps.near`, on any device."""
    center, neighbor = edge_index
    vectors = positions.index_select(0, neighbor)
    vectors.sub_(positions.index_select(0, center)).add_(shift_vectors)
    near = (torch.linalg.vector_norm(vectors, dim=1) < cutoff).nonzero()[:, 0]
    return edge_index.index_select(1, near), edge_shift.index_select(0, near), vectors.index_select(0, near)


def _together(lists: Sequence[VerletList], n_atoms: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Index, shifts, shift vectors and positions of all lists, atoms counted through all systems."""
    device, n_edges = lists[0].positions.device, [v.n_edges for v in lists]
    first_atom = _on(device, [0, *itertools.accumulate(n_atoms[:-1])])
    edge_index = torch.cat([v.edge_index for v in lists], dim=1)
    edge_index += torch.repeat_interleave(first_atom, _on(device, n_edges), output_size=edge_index.shape[1])
    shifts, vectors = torch.cat([v.edge_shift for v in lists]), torch.cat([v.shift_vectors for v in lists])
    return edge_index, shifts, vectors, torch.cat([v.positions for v in lists])
