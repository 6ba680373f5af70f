"""Batches filled up to sizes that come again: what a recorded training step reads."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equicat.data.batch import Batch, PairBatch


@dataclass(frozen=True, eq=False)
class PaddedBatch(PairBatch):
    """A batch and one more system at its end, of fixed atoms whose edges are longer than any cutoff.

    Its elements are those of the batch, and known to whom it is given. Positions and shifts are zeros.
    """

    sizes: Int[Tensor, "n_systems"] | None = None
    """Atoms of each system, where ``system_idx`` does not tell."""

    @property
    def n_atoms(self) -> Int[Tensor, "n_systems"]:
        """Atoms of each system."""
        return super().n_atoms if self.sizes is None else self.sizes

    def without_last_system(self) -> "PaddedBatch":
        """The batch as losses and metrics see it: all atoms, but the systems that were there before.

        The atoms of the last system are said to be of the one before; they are fixed, and so count nowhere.
        """
        shorter = {name: value[:-1] for name in PER_SYSTEM if (value := getattr(self, name)) is not None}
        system_idx = self.system_idx.clamp(max=self.n_systems - 2)
        return replace(self, system_idx=system_idx, sizes=self.n_atoms[:-1], **shorter)

    def write(self, batch: Batch, edge_vec: Float[Tensor, "n_edges 3"], far: float) -> None:
        """Take over the content of a batch, in few launches; arguments are those of :func:`padded`."""
        assert self.vectors is not None
        n_atoms, n_edges = len(batch.numbers), batch.n_edges
        added: dict[str, Any] = {"numbers": batch.numbers[0], "system_idx": batch.n_systems, "fixed": True}
        for name in (*PER_ATOM, *PER_SYSTEM):
            to, source = getattr(self, name), getattr(batch, name)
            if to is not None:
                to[: len(source)].copy_(source)
                if name in PER_ATOM:
                    to[n_atoms:].fill_(added.get(name, 0))
        self.vectors[:n_edges].copy_(edge_vec)
        self.edge_index[:, :n_edges].copy_(batch.edge_index)
        if more := len(self.vectors) - n_edges:
            self.vectors[n_edges:].zero_()
            self.vectors[n_edges:, 0].fill_(far)
            step, begin = len(self.numbers) - n_atoms, n_atoms * more
            numbers = torch.arange(begin, begin + step * more, step, device=self.edge_index.device)
            self.edge_index[:, n_edges:].copy_(numbers // more)


PER_ATOM = ("numbers", "system_idx", "fixed", "tags", "forces", "displacements")
"""Fields of a batch with a row for each atom, but positions."""
PER_SYSTEM = ("cell", "pbc", "energy", "stress", "relaxed_energy")
"""Fields of a batch with a row for each system."""


def room_for(batch: Batch, n_atoms: int, n_edges: int) -> PaddedBatch:
    """Memory for batches like this one, with as many systems, to :meth:`PaddedBatch.write` to."""
    rows = dict.fromkeys(PER_ATOM, n_atoms) | dict.fromkeys(PER_SYSTEM, batch.n_systems + 1)
    known = {name: x for name in rows if (x := getattr(batch, name)) is not None}
    fields: dict[str, Any] = {name: x.new_zeros(rows[name], *x.shape[1:]) for name, x in known.items()}
    fields["cell"][-1].fill_diagonal_(1)
    return PaddedBatch(
        positions=batch.positions.new_zeros(n_atoms, 3),
        edge_index=batch.edge_index.new_zeros(2, n_edges),
        edge_shift=batch.edge_shift.new_zeros(n_edges, 3),
        ids=batch.ids,
        sources=batch.sources,
        dtype=batch.dtype,
        vectors=batch.positions.new_zeros(n_edges, 3, dtype=batch.dtype),
        **fields,
    )


def padded(batch: Batch, edge_vec: Float[Tensor, "n_edges 3"], n_atoms: int, n_edges: int, far: float) -> PaddedBatch:
    """A batch with more atoms and edges, which belong to one more system; on the device of the batch.

    Args:
        batch: with at least one atom, of known elements.
        edge_vec: Å, its pair vectors.
        n_atoms: at least one more than the batch has.
        n_edges: at least as many as the batch has.
        far: Å, longer than any cutoff: the length of the edges that are added, a few to each added atom.
    """
    found = room_for(batch, n_atoms, n_edges)
    found.write(batch, edge_vec, far)
    return found
