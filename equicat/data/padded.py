"""Batches filled up to sizes that come again: what a recorded training step reads."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from equicat.data.batch import Batch, PairBatch


@dataclass(frozen=True, eq=False)
class PaddedBatch(PairBatch):
    """A batch and one more system at its end, of fixed atoms whose edges are longer than any cutoff.

    Its elements are those of the batch, and known to whom it is given. Positions and shifts are zeros.
    """

    sizes: Int[Tensor, "n_systems"] | None = None
    """Atoms of each system."""

    @property
    def n_atoms(self) -> Int[Tensor, "n_systems"]:
        """Atoms of each system."""
        assert self.sizes is not None
        return self.sizes

    def without_last_system(self) -> "PaddedBatch":
        """The batch as losses and metrics see it: all atoms, but the systems that were there before.

        The atoms of the last system are said to be of the one before; they are fixed, and so count nowhere.
        """
        systems = {f.name: getattr(self, f.name) for f in fields(self) if f.name in PER_SYSTEM}
        shorter = {name: value[:-1] for name, value in systems.items() if value is not None}
        return replace(self, system_idx=self.system_idx.clamp(max=self.n_systems - 2), **shorter)

    @property
    def tensors(self) -> list[Shaped[Tensor, "..."]]:
        """All tensors, in the order of the fields."""
        values = (getattr(self, f.name) for f in fields(self))
        return [value for value in values if isinstance(value, Tensor)]

    def overwrite(self, batch: "PaddedBatch") -> None:
        """Take over the content of a batch of the same shapes, in few launches."""
        torch._foreach_copy_(self.tensors, batch.tensors)


PER_SYSTEM = ("cell", "pbc", "energy", "stress", "relaxed_energy", "sizes")
"""Fields of a batch with a row for each system."""


def padded(batch: Batch, n_atoms: int, n_edges: int, far: float) -> PaddedBatch:
    """A batch with more atoms and edges, which belong to one more system; on the device of the batch.

    Args:
        batch: with at least one atom, of known elements.
        n_atoms: at least one more than the batch has.
        n_edges: at least as many as the batch has.
        far: Å, longer than any cutoff: the length of the edges that are added, a few to each added atom.
    """
    here, more_edges = len(batch.numbers), n_edges - batch.n_edges
    numbers = torch.arange(more_edges, device=batch.edge_index.device)
    added = here + numbers * (n_atoms - here) // max(more_edges, 1)
    vectors = _filled(batch.edge_vec(), n_edges)
    vectors[batch.n_edges :, 0] = far
    n_systems = batch.n_systems + 1
    per_atom = {"forces": batch.forces, "displacements": batch.displacements}
    per_system = {name: getattr(batch, name) for name in PER_SYSTEM if name not in ("cell", "sizes")}
    labels: dict[str, Any] = {name: None if x is None else _filled(x, n_atoms) for name, x in per_atom.items()}
    labels |= {name: None if x is None else _filled(x, n_systems) for name, x in per_system.items()}
    return PaddedBatch(
        positions=batch.positions.new_zeros(n_atoms, 3),
        cell=torch.cat([batch.cell, torch.eye(3, device=batch.cell.device, dtype=batch.cell.dtype)[None]]),
        numbers=torch.cat([batch.numbers, batch.numbers[:1].expand(n_atoms - here)]),
        system_idx=_filled(batch.system_idx, n_atoms, batch.n_systems),
        edge_index=torch.cat([batch.edge_index, added.expand(2, -1)], dim=1),
        edge_shift=batch.edge_shift.new_zeros(n_edges, 3),
        fixed=_filled(batch.fixed, n_atoms, True),
        tags=_filled(batch.tags, n_atoms),
        ids=batch.ids,
        sources=batch.sources,
        dtype=batch.dtype,
        vectors=vectors,
        sizes=_filled(batch.n_atoms, n_systems, n_atoms - here),
        **labels,
    )


def _filled(x: Shaped[Tensor, "n *rest"], n: int, value: int = 0) -> Shaped[Tensor, "n_more *rest"]:
    """More rows of one value."""
    return torch.cat([x, x.new_full((n - len(x), *x.shape[1:]), value)])
