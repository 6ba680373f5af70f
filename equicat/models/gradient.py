"""Chooses how energies are differentiated by the pair vectors; the only place that does.

:class:`~equicat.models.potential.Potential` says what the energy is, and has two ways to differentiate it: PyTorch's
autograd, and the network's kernel. Here is decided which of them is called, on the whole batch or some centres at a
time, keeping or computing again what training needs, and whether a CUDA graph repeats it. The numbers are the same, to
rounding (tests hold them together).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat.data.batch import Batch
from equicat.kernels import backend
from equicat.kernels.edges import Edges
from equicat.kernels.forms import consecutive
from equicat.kernels.gpu.graphs import MAX_EDGES, Graphs
from equicat.networks.allegro import Allegro
from equicat.networks.catalogue import NetworkConfig, architecture

FLOATS_AT_A_TIME = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Number of edges whose derivatives are alive at once, times the largest intermediate of an edge; bounds memory."""
KERNEL_FLOATS_PER_EDGE = 8
"""Floats that a C++ kernel keeps of an edge: its pair vector and the derivative; the rest stays in the cache."""


@dataclass(frozen=True)
class ComputeOptions:
    """How a potential computes; given when it is made, and without influence on the numbers."""

    kernels: bool = True
    """Use kernels of the whole network where there are any: in C++ on a processor, in Triton on a GPU."""
    recompute: bool = False
    """Train with bounded memory: some centres at a time, computed twice (networks without message passing)."""
    cuda_graphs: bool = True
    """Record inferences of small systems as CUDA graphs, where Triton kernels are used (an Allegro on a GPU)."""


DEFAULTS = ComputeOptions()


EnergiesAndGradient = tuple[Float[Tensor, "n_atoms"], Float[Tensor, "n_edges 3"]]
"""E_i of every centre in eV, without reference energies, and dE/dr_ij in eV/Å."""
GradientFunction = Callable[[Edges], EnergiesAndGradient]


class Energies(ABC):
    """A sum of energies of atoms, which depend on pair vectors, and its two ways to be differentiated.

    Not a protocol: from Python 3.12 on these do not see the submodules of a module.
    """

    config: NetworkConfig
    elements: tuple[int, ...]
    network: Any

    @abstractmethod
    def by_autograd(self, edges: Edges, training: bool = False) -> EnergiesAndGradient:
        """Energies and gradient by PyTorch's operators; while training both stay differentiable by the weights."""

    @abstractmethod
    def by_kernel(self, edges: Edges, training: bool = False, keep: bool = True) -> EnergiesAndGradient:
        """Energies and gradient by the network's kernel; ``keep`` takes less time and more memory while training."""

    @abstractmethod
    def by_launches(self, edges: Edges, training: bool = False) -> EnergiesAndGradient:
        """Energies and gradient by a GPU's kernels, or, where it has none for them, by operators."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Some consecutive centres with all their edges, as a system of its own."""

    edges: slice
    """Edges of the batch."""
    own: slice
    """Atoms among those of ``species`` that are centres of the piece, and whose energies are therefore complete."""
    edge_index: Int[Tensor, "2 n_edges"]
    """Centre and neighbour of each edge, counted in ``species``."""
    species: Int[Tensor, "n_atoms"]


def whole(edge_index: Int[Tensor, "2 n_edges"], species: Int[Tensor, "n_atoms"]) -> Piece:
    """All centres and edges as one piece."""
    return Piece(slice(None), slice(None), edge_index, species)


def pieces(batch: Batch, species: Int[Tensor, "n_atoms"], floats_per_edge: int, n_species: int) -> list[Piece]:
    """Cut a batch between centres, so that few edges are worked on at a time.

    A strictly local network needs only a neighbour's species. So a piece holds its own centres and, for each species,
    one stand-in atom for all neighbours outside.
    """
    center, neighbor = batch.edge_index
    budget = FLOATS_AT_A_TIME.get(center.device.type, FLOATS_AT_A_TIME["cuda"]) // floats_per_edge
    if len(center) <= budget:
        return [whole(batch.edge_index, species)]
    ends = torch.bincount(center, minlength=len(species)).cumsum(0).cpu()  # one wait, instead of two for each piece
    cut = []
    for atoms, edges in consecutive(ends, budget):
        n_own, neighbors = atoms.stop - atoms.start, neighbor[edges]
        inside = (neighbors >= atoms.start) & (neighbors < atoms.stop)
        stand_in = atoms.stop + species[neighbors]
        index = torch.stack([center[edges], torch.where(inside, neighbors, stand_in)]) - atoms.start
        kinds = torch.cat([species[atoms], torch.arange(n_species, device=species.device)])
        cut.append(Piece(edges, slice(n_own), index, kinds))
    return cut


def pair_vectors(batch: Batch, edges: slice) -> Float[Tensor, "n_edges 3"]:
    """The pair vectors (Å) of some edges without derivatives, on a GPU by a kernel."""
    if type(batch) is not Batch or not backend.has_triton(batch.positions.device):
        return batch.edge_vec(edges).detach()
    from equicat.kernels.gpu import vectors  # needs Triton

    atoms = batch.positions, batch.cell, batch.system_idx
    return vectors.pair_vectors(*atoms, batch.edge_index[:, edges], batch.edge_shift[edges], batch.dtype)


class PairGradients:
    """Decides how the energies of a potential are differentiated by its pair vectors, as options and machine allow."""

    def __init__(self, options: ComputeOptions) -> None:
        self.options = options
        self._graphs: tuple[list[tuple[int, int]], Graphs] | None = None
        """Recorded CUDA graphs, and the state of the weights that they read."""

    def plan(
        self, potential: Energies, batch: Batch, species: Int[Tensor, "n_atoms"], training: bool
    ) -> Iterator[tuple[Piece, GradientFunction]]:
        """Some consecutive centres at a time, and the function that differentiates their energies.

        Args:
            potential: the energy to differentiate.
            batch: built with its cutoff.
            species: of each atom, as the potential counts elements.
            training: whether energies and gradient must stay differentiable by the weights.

        Yields:
            A piece, and a function of its edges; what this returns for edges may lie in memory that the next piece
            overwrites.
        """
        known = architecture(potential.config.name)
        kernel, like = known.kernel if self.options.kernels else None, batch.positions.new_empty(0, dtype=batch.dtype)
        has_kernel = kernel is not None and kernel.library(potential.network, like) is not None
        cut = [whole(batch.edge_index, species)]
        if known.strictly_local and (self.options.recompute or not training):
            floats_per_edge = KERNEL_FLOATS_PER_EDGE if has_kernel else potential.network.floats_per_edge
            cut = pieces(batch, species, floats_per_edge, len(potential.elements))
        for piece in cut:
            yield piece, self._function(potential, piece, training, has_kernel)

    def _function(self, potential: Energies, piece: Piece, training: bool, has_kernel: bool) -> GradientFunction:
        if has_kernel:
            return partial(potential.by_kernel, training=training, keep=not self.options.recompute)
        if training and self.options.recompute:
            return partial(recomputed, potential)
        launches = self.options.kernels and backend.has_triton(piece.edge_index.device)
        function = potential.by_launches if launches else potential.by_autograd
        if training:
            return partial(function, training=True)
        if self.options.cuda_graphs and can_be_recorded(potential, piece):
            return self._recorded(potential, function)
        return function

    def _recorded(self, potential: Energies, function: GradientFunction) -> Graphs:
        """CUDA graphs of the potential; recorded anew if its weights lie elsewhere than before, or frozen ones have
        changed, of which graphs read only what was made of them."""
        assert isinstance(potential, nn.Module)
        state = [(p.data_ptr(), 0 if p.requires_grad else p._version) for p in potential.parameters()]
        if self._graphs is None or self._graphs[0] != state:
            self._graphs = state, Graphs(function, far=2 * potential.config.cutoff)
        return self._graphs[1]


def can_be_recorded(potential: Energies, piece: Piece) -> bool:
    """Whether the gradient of that piece is one that a CUDA graph can repeat, and small enough to gain by it."""
    recordable = isinstance(potential.network, Allegro) and potential.network.recordable
    return recordable and 0 < piece.edge_index.shape[1] <= MAX_EDGES and backend.has_triton(piece.edge_index.device)


def recomputed(potential: Energies, edges: Edges) -> EnergiesAndGradient:
    """:meth:`Energies.by_autograd` for training that keeps nothing but its inputs and computes everything again."""
    assert isinstance(potential, nn.Module)
    weights = [p for p in potential.parameters() if p.requires_grad]
    return _Recomputed.apply(potential, *edges, *weights)


class _Recomputed(torch.autograd.Function):
    """Energies and gradient, without a graph; the backward pass computes them again with one."""

    @staticmethod
    def forward(
        ctx: Any, potential: Energies, edge_vec: Tensor, edge_index: Tensor, species: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.potential = potential
        ctx.save_for_backward(edge_vec, edge_index, species, *weights)
        return potential.by_autograd(Edges(edge_vec, edge_index, species))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_energies: Tensor, to_gradient: Tensor) -> tuple[Tensor | None, ...]:
        edge_vec, edge_index, species, *weights = ctx.saved_tensors
        found = ctx.potential.by_autograd(Edges(edge_vec, edge_index, species), training=True)
        to_weights = torch.autograd.grad(found, weights, (to_energies, to_gradient), allow_unused=True)
        return None, None, None, None, *to_weights
