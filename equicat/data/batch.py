"""Several systems as one set of tensors: what every model, loss and metric takes."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from equicat.data.neighbors import neighbor_list
from equicat.data.structure import Structure
from equicat.errors import InputError


@dataclass(frozen=True, eq=False)
class Batch:
    """Frozen; names, shapes and units are those of docs/conventions.md. Energies are float64, the rest of one dtype.

    Content is checked where it enters (:class:`~equicat.data.structure.Structure`), shapes once more here.
    """

    positions: Float[Tensor, "n_atoms 3"]
    cell: Float[Tensor, "n_systems 3 3"]
    pbc: Bool[Tensor, "n_systems 3"]
    numbers: Int[Tensor, "n_atoms"]
    system_idx: Int[Tensor, "n_atoms"]
    edge_index: Int[Tensor, "2 n_edges"]
    edge_shift: Int[Tensor, "n_edges 3"]
    fixed: Bool[Tensor, "n_atoms"]
    tags: Int[Tensor, "n_atoms"]
    energy: Float[Tensor, "n_systems"] | None = None
    forces: Float[Tensor, "n_atoms 3"] | None = None
    relaxed_energy: Float[Tensor, "n_systems"] | None = None
    displacements: Float[Tensor, "n_atoms 3"] | None = None
    """r_relaxed − r_initial by the minimum image, Å."""
    ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n, s, e = len(self.positions), len(self.cell), self.edge_index.shape[1]
        per_atom = ("numbers", "system_idx", "fixed", "tags", "forces", "displacements")
        expected = dict.fromkeys(per_atom, n) | {"pbc": s, "energy": s, "relaxed_energy": s, "edge_shift": e}
        for name, length in expected.items():
            value = getattr(self, name)
            if value is not None and len(value) != length:
                raise InputError(f"batch: {name} has {len(value)} rows, expected {length}")

    @property
    def n_systems(self) -> int:
        return len(self.cell)

    @property
    def n_edges(self) -> int:
        return self.edge_index.shape[1]

    @property
    def n_atoms(self) -> Int[Tensor, "n_systems"]:
        """Atoms of each system."""
        return torch.bincount(self.system_idx, minlength=self.n_systems)

    def edge_vec(self, edges: slice = slice(None)) -> Float[Tensor, "n_edges 3"]:
        """r_j + shift @ cell − r_i in Å, of all edges or some, differentiable in ``positions`` and ``cell``."""
        center, neighbor = self.edge_index[:, edges]
        cell = self.cell.index_select(0, self.system_idx.index_select(0, center))
        shift = torch.einsum("ek,ekx->ex", self.edge_shift[edges].to(cell.dtype), cell)
        return self.positions.index_select(0, neighbor) - self.positions.index_select(0, center) + shift

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """A copy with ``function`` applied to every tensor."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        mapped: dict[str, Any] = {name: function(v) if isinstance(v, Tensor) else v for name, v in fields.items()}
        return Batch(**mapped)

    def to(self, device: torch.device | str) -> "Batch":
        return self.map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        return self.map(Tensor.pin_memory)

    @classmethod
    def from_structures(
        cls,
        structures: Sequence[Structure],
        cutoff: float,
        *,
        dtype: torch.dtype = torch.float32,
        max_neighbors: int | None = None,
    ) -> "Batch":
        """Stack systems and build their neighbour lists.

        Pair vectors are differences of positions in ``dtype``: keep systems near the origin in float32.

        Args:
            structures: at least one.
            cutoff: Å.
            dtype: of positions, cells and forces; energies stay float64.
            max_neighbors: see :func:`~equicat.data.neighbors.neighbor_list`; breaks smoothness, off by default.

        Raises:
            InputError: for no structures, coincident atoms, or a label that only some of the structures have.
        """
        if not structures:
            raise InputError("cannot build a batch from no structures")
        n_atoms = np.array([len(s) for s in structures])
        first_atom = np.concatenate([[0], np.cumsum(n_atoms)[:-1]])
        graphs = [neighbor_list(s, cutoff, max_neighbors) for s in structures]
        for (edge_index, _), first in zip(graphs, first_atom, strict=True):
            edge_index += first

        def stacked(name: str, to: torch.dtype) -> Tensor:
            return torch.from_numpy(np.concatenate([getattr(s, name) for s in structures])).to(to)

        def label(name: str) -> list | None:
            values = [getattr(s, name) for s in structures]
            missing = [s.where for s, v in zip(structures, values, strict=True) if v is None]
            if missing and len(missing) < len(structures):
                raise InputError(f"{missing[0]}: no {name}, while other structures of the batch have it")
            return None if missing else values

        energy, relaxed_energy = label("energy"), label("relaxed_energy")
        forces, displacements = label("forces"), None
        if label("relaxed_positions") is not None:
            displacements = torch.from_numpy(np.concatenate([s.displacements for s in structures])).to(dtype)
        return cls(
            positions=stacked("positions", dtype),
            cell=torch.from_numpy(np.stack([s.cell for s in structures])).to(dtype),
            pbc=torch.from_numpy(np.stack([s.pbc for s in structures])),
            numbers=stacked("numbers", torch.int64),
            system_idx=torch.from_numpy(np.repeat(np.arange(len(structures)), n_atoms)),
            edge_index=torch.from_numpy(_joined([edge_index for edge_index, _ in graphs], axis=1)),
            edge_shift=torch.from_numpy(_joined([shift for _, shift in graphs], axis=0)),
            fixed=stacked("fixed", torch.bool),
            tags=stacked("tags", torch.int64),
            energy=None if energy is None else torch.tensor(energy, dtype=torch.float64),
            forces=None if forces is None else stacked("forces", dtype),
            relaxed_energy=None if relaxed_energy is None else torch.tensor(relaxed_energy, dtype=torch.float64),
            displacements=displacements,
            ids=tuple(s.id for s in structures),
        )


def _joined(arrays: Sequence[ndarray], axis: int) -> ndarray:
    """One after the other; a single one as it is, because it may be large."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=axis)
