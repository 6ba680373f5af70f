"""Several systems as one set of tensors: what every model, loss and metric takes."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Shaped
from numpy import ndarray
from torch import Tensor

from equicat.data.device_neighbors import neighbor_lists
from equicat.data.neighbors import neighbor_list
from equicat.data.structure import LABELS, Structure
from equicat.errors import InputError

WEIGHTS = ("energy_weight", "forces_weight")
"""Factors on losses, by their names in a structure and in a batch."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Frozen; names, shapes and units are those of docs/conventions.md.

    Positions and cells are float64, so that nothing depends on how far from the origin a structure is, or how many
    lattice vectors away an atom. :meth:`edge_vec` rounds pair vectors, which are short, to ``dtype``. Energies are
    float64 as well; labels that are vectors or tensors are ``dtype``.

    For the same atoms elsewhere use ``dataclasses.replace(batch, positions=…)``: the list of edges stays, their vectors
    follow. Content is checked where it enters (:class:`~equicat.data.structure.Structure`), shapes once more here.
    """

    positions: Float64[Tensor, "n_atoms 3"]
    cell: Float64[Tensor, "n_systems 3 3"]
    pbc: Bool[Tensor, "n_systems 3"]
    numbers: Int[Tensor, "n_atoms"]
    system_idx: Int[Tensor, "n_atoms"]
    edge_index: Int[Tensor, "2 n_edges"]
    edge_shift: Int[Tensor, "n_edges 3"]
    fixed: Bool[Tensor, "n_atoms"]
    tags: Int[Tensor, "n_atoms"]
    energy: Float64[Tensor, "n_systems"] | None = None
    forces: Float[Tensor, "n_atoms 3"] | None = None
    stress: Float[Tensor, "n_systems 3 3"] | None = None
    """(dE/dε) / volume, eV/Å³."""
    relaxed_energy: Float64[Tensor, "n_systems"] | None = None
    displacements: Float[Tensor, "n_atoms 3"] | None = None
    """r_relaxed − r_initial by the minimum image, Å."""
    energy_weight: Float64[Tensor, "n_systems"] | None = None
    """Factor on the loss of each system's energy; energies with 0 count nowhere. None is 1 for all."""
    forces_weight: Float64[Tensor, "n_systems"] | None = None
    """Factor on the loss of each system's forces; forces with 0 count nowhere. None is 1 for all."""
    ids: tuple[str, ...] = ()
    """``sid`` or ``sid_fid`` of each system, empty where a file has none."""
    sources: tuple[str, ...] = ()
    """How messages name each system: file and frame."""
    dtype: torch.dtype = torch.float32
    """Type of pair vectors, and so of all that a network computes."""

    def __post_init__(self) -> None:
        n, s, e = len(self.positions), len(self.cell), self.edge_index.shape[1]
        per_atom = ("numbers", "system_idx", "fixed", "tags", "forces", "displacements")
        per_system = ("pbc", "energy", "stress", "relaxed_energy", *WEIGHTS)
        expected = dict.fromkeys(per_atom, n) | dict.fromkeys(per_system, s) | {"edge_shift": e}
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
        return self.system_idx.new_zeros(self.n_systems).index_add(0, self.system_idx, torch.ones_like(self.system_idx))

    @property
    def with_energy(self) -> Bool[Tensor, "n_systems"] | None:
        """The systems whose energies count; None if all do."""
        return None if self.energy_weight is None else self.energy_weight > 0

    @property
    def with_forces(self) -> Bool[Tensor, "n_atoms"]:
        """The free atoms of systems whose forces count."""
        return ~self.fixed if self.forces_weight is None else ~self.fixed & (self.forces_weight > 0)[self.system_idx]

    @property
    def with_both(self) -> Bool[Tensor, "n_systems"] | None:
        """The systems whose energies and forces count; None if all do."""
        factors = [w for w in (self.energy_weight, self.forces_weight) if w is not None]
        return torch.stack(factors).amin(0) > 0 if factors else None

    @property
    def volume(self) -> Float64[Tensor, "n_systems"]:
        """Å³ of each cell; 0 where a lattice vector is missing."""
        a, b, c = self.cell.unbind(1)
        return (torch.linalg.cross(a, b) * c).sum(1).abs()

    def edge_vec(self, edges: slice = slice(None)) -> Float[Tensor, "n_edges 3"]:
        """r_j + shift @ cell − r_i in Å, of all edges or some, differentiable by ``positions`` and ``cell``.

        Formed in float64 and then rounded to ``dtype``.
        """
        center, neighbor = self.edge_index[:, edges]
        shift = self.edge_shift[edges]
        vectors = self.positions.index_select(0, neighbor) - self.positions.index_select(0, center)
        if shift.device.type != "cpu":  # to find the edges that leave the cell would wait for the device
            return (vectors + self._offsets(center, shift)).to(self.dtype)
        # Most edges stay within the cell; a lattice vector for each would take longer than all the rest.
        crossing = (shift[:, 0] | shift[:, 1] | shift[:, 2]).nonzero()[:, 0]
        offsets = self._offsets(center.index_select(0, crossing), shift.index_select(0, crossing))
        return vectors.index_add(0, crossing, offsets).to(self.dtype)

    def _offsets(self, center: Int[Tensor, "n_edges"], shift: Int[Tensor, "n_edges 3"]) -> Float64[Tensor, "n_edges 3"]:
        """shift @ cell in Å of edges of these centres."""
        shift = shift.to(self.cell.dtype)
        if self.n_systems == 1:
            return shift @ self.cell[0]
        system = self.system_idx.index_select(0, center)
        a, b, c = (shift[:, k, None] * self.cell[:, k].index_select(0, system) for k in range(3))
        return a + b + c

    def named(self, limit: int = 4) -> str:
        """The systems as messages name them: file and frame of the first ``limit``, and how many more there are."""
        more = f" and {self.n_systems - limit} more" if self.n_systems > limit else ""
        return "; ".join(self.sources[:limit]) + more

    def map(self, function: Callable[[Shaped[Tensor, "*shape"]], Shaped[Tensor, "*shape"]]) -> "Batch":
        """A copy with ``function`` applied to every tensor."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        mapped: dict[str, Any] = {name: function(v) for name, v in fields.items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **mapped)

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
        labels: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> "Batch":
        """Stack systems and build their neighbour lists.

        Args:
            structures: at least one.
            cutoff: Å.
            dtype: of pair vectors, forces, stress and displacements; positions, cells and energies are float64.
            max_neighbors: see :func:`~equicat.data.neighbors.neighbor_list`; breaks smoothness, off by default.
            labels: the labels to take along, by their names in a structure; every structure must have them. None takes
                those that all structures have.
            device: where the batch is to be. On a GPU the lists are made there, unless ``max_neighbors`` is given.

        Raises:
            InputError: for no structures, coincident atoms, or a structure without one of ``labels``.
        """
        if not structures:
            raise InputError("cannot build a batch from no structures")
        n_atoms = np.array([len(s) for s in structures])

        def stacked(name: str, to: torch.dtype) -> Tensor:
            return torch.from_numpy(np.concatenate([getattr(s, name) for s in structures])).to(to)

        positions = stacked("positions", torch.float64)
        if torch.device(device).type == "cpu" or max_neighbors is not None:
            edge_index, edge_shift = _edges(structures, cutoff, max_neighbors)
        else:
            positions = positions.to(device)
            edge_index, edge_shift = neighbor_lists(structures, positions, cutoff)
        batch = cls(
            positions=positions,
            cell=torch.from_numpy(np.stack([s.cell for s in structures])).to(torch.float64),
            pbc=torch.from_numpy(np.stack([s.pbc for s in structures])),
            numbers=stacked("numbers", torch.int64),
            system_idx=torch.from_numpy(np.repeat(np.arange(len(structures)), n_atoms)),
            edge_index=edge_index,
            edge_shift=edge_shift,
            fixed=stacked("fixed", torch.bool),
            tags=stacked("tags", torch.int64),
            ids=tuple(s.id for s in structures),
            sources=tuple(s.where if s.source or s.sid else f"structure {i}" for i, s in enumerate(structures)),
            dtype=dtype,
            **_labels(structures, labels, dtype),
            **_weights(structures),
        )
        return batch if torch.device(device).type == "cpu" else batch.to(device)


@dataclass(frozen=True, eq=False)
class PairBatch(Batch):
    """A batch that brings its pair vectors, because what picks its edges has formed them already."""

    vectors: Float[Tensor, "n_edges 3"] | None = None
    """Å, float64."""

    def edge_vec(self, edges: slice = slice(None)) -> Float[Tensor, "n_edges 3"]:
        """The pair vectors (Å) of all edges or some, in ``dtype``; no derivatives by positions or cell."""
        assert self.vectors is not None
        return self.vectors[edges].to(self.dtype)

    def in_dtype(self, dtype: torch.dtype) -> "PairBatch":
        """A copy whose pair vectors are ``dtype``."""
        return dataclasses.replace(self, dtype=dtype)


def _edges(
    structures: Sequence[Structure], cutoff: float, max_neighbors: int | None
) -> tuple[Int[Tensor, "2 n_edges"], Int[Tensor, "n_edges 3"]]:
    """Edges and shifts of all systems on the CPU, one list after the other, with atoms counted through all of them."""
    graphs = [neighbor_list(s, cutoff, max_neighbors) for s in structures]
    first = 0
    for (edge_index, _), structure in zip(graphs, structures, strict=True):
        edge_index += first
        first += len(structure)
    index, shift = (_joined(list(parts), axis) for parts, axis in zip(zip(*graphs, strict=True), (1, 0), strict=True))
    return torch.from_numpy(index), torch.from_numpy(shift)


def _labels(structures: Sequence[Structure], labels: Sequence[str] | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """The labels of a batch by the names that they have there."""
    if labels is None:
        labels = [name for name in LABELS if all(getattr(s, name) is not None for s in structures)]
    found = {}
    for name in labels:
        without = next((s for s in structures if getattr(s, name) is None), None)
        if without is not None:
            raise InputError(f"{without.where}: no {name}")
        if name == "relaxed_positions":
            values = np.concatenate([s.displacements for s in structures])
            found["displacements"] = torch.from_numpy(values).to(dtype)
        elif name == "forces":
            found[name] = torch.from_numpy(np.concatenate([getattr(s, name) for s in structures])).to(dtype)
        else:
            values = np.array([getattr(s, name) for s in structures], dtype=np.float64)
            found[name] = torch.from_numpy(values).to(dtype if name == "stress" else torch.float64)
    return found


def _weights(structures: Sequence[Structure]) -> dict[str, Tensor]:
    """Factors on losses by their names, where one is not 1."""
    found = {name: torch.tensor([getattr(s, name) for s in structures], dtype=torch.float64) for name in WEIGHTS}
    return {name: factors for name, factors in found.items() if not (factors == 1).all()}


def _joined(arrays: Sequence[ndarray], axis: int) -> ndarray:
    """One after the other; a single one as it is, because it may be large."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=axis)
