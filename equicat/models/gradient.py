"""How the energies of atoms and their derivatives by the pair vectors are computed; the only place that chooses.

:class:`~equicat.models.potential.Potential` says what the energy is. Here is decided whether PyTorch's autograd or the
network's kernel differentiates it, on the whole batch or some centres at a time, keeping or computing again what
training needs, and whether a CUDA graph repeats it. The numbers are the same, to rounding (tests hold them together).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat.data.batch import Batch
from equicat.kernels import backend
from equicat.kernels.cpu.call import Kernel
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
    """Use the network's C++ kernel on a processor, where there is one."""
    recompute: bool = False
    """Train with bounded memory: some centres at a time, computed twice (networks without message passing)."""
    cuda_graphs: bool = True
    """Record inferences of small systems as CUDA graphs, where Triton kernels are used (an Allegro on a GPU)."""


DEFAULTS = ComputeOptions()


class Energies(ABC):
    """A sum of energies of atoms, which depend on pair vectors: what :class:`PairGradients` differentiates.

    Not a protocol: from Python 3.12 on these do not see the submodules of a module.
    """

    config: NetworkConfig
    elements: tuple[int, ...]
    network: Any

    @abstractmethod
    def atom_energies(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> Float[Tensor, "n_atoms"]:
        """E_i of every centre in eV, without reference energies, by PyTorch's operators."""

    @abstractmethod
    def kernel_energies(
        self,
        kernel: Kernel,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
        training: bool,
        keep: bool,
    ) -> tuple[Float[Tensor, "n_atoms"], Float[Tensor, "n_edges 3"]]:
        """E_i of every centre in eV and dE/dr_ij in eV/Å, by the network's kernel."""


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


@dataclass(frozen=True, eq=False)
class PairGradient:
    """The energies of some atoms, and their derivative by the pair vectors of their edges."""

    edges: slice
    """Edges of the batch whose centres these atoms are."""
    edge_vec: Float[Tensor, "n_edges 3"]
    """r_ij in Å."""
    atom_energies: Float[Tensor, "n_own"]
    """E_i in eV, without reference energies."""
    gradient: Float[Tensor, "n_edges 3"]
    """dE/dr_ij in eV/Å, perhaps in memory that the next piece overwrites."""


def can_be_recorded(potential: Energies, edge_vec: Float[Tensor, "n_edges 3"]) -> bool:
    """Whether the gradient of so many edges is one that a CUDA graph can repeat, and small enough to gain by it."""
    recordable = isinstance(potential.network, Allegro) and potential.network.recordable
    return recordable and 0 < len(edge_vec) <= MAX_EDGES and backend.has_triton(edge_vec.device)


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
    ends = torch.bincount(center, minlength=len(species)).cumsum(0)
    cut = []
    for atoms, edges in consecutive(ends, budget):
        n_own, neighbors = atoms.stop - atoms.start, neighbor[edges]
        inside = (neighbors >= atoms.start) & (neighbors < atoms.stop)
        stand_in = atoms.stop + species[neighbors]
        index = torch.stack([center[edges], torch.where(inside, neighbors, stand_in)]) - atoms.start
        kinds = torch.cat([species[atoms], torch.arange(n_species, device=species.device)])
        cut.append(Piece(edges, slice(n_own), index, kinds))
    return cut


class PairGradients:
    """Differentiates the energies of a potential by its pair vectors, in the way that options and machine allow."""

    def __init__(self, options: ComputeOptions) -> None:
        self.options = options
        self._graphs: tuple[tuple[int, ...], Graphs] | None = None
        """Recorded CUDA graphs, and the addresses of the weights that they read."""

    def __call__(
        self, potential: Energies, batch: Batch, species: Int[Tensor, "n_atoms"], training: bool
    ) -> Iterator[PairGradient]:
        """Energies and gradients of all atoms, some consecutive centres at a time.

        Args:
            potential: the energy to differentiate.
            batch: built with its cutoff.
            species: of each atom, as the potential counts elements.
            training: whether both must stay differentiable by the weights.
        """
        kernel = self._kernel(potential, batch.edge_vec(slice(0)))
        for piece in self._pieces(potential, batch, species, training, kernel):
            edge_vec = batch.edge_vec(piece.edges).detach()
            energies, gradient = self._compute(potential, edge_vec, piece, training, kernel)
            yield PairGradient(piece.edges, edge_vec, energies[piece.own], gradient)

    def _kernel(self, potential: Energies, edge_vec: Float[Tensor, "n_edges 3"]) -> Kernel | None:
        """The C++ kernel for such pair vectors, if the network has one that can be used."""
        kernel = architecture(potential.config.name).kernel if self.options.kernels else None
        return kernel if kernel is not None and kernel.library(potential.network, edge_vec) is not None else None

    def _pieces(
        self,
        potential: Energies,
        batch: Batch,
        species: Int[Tensor, "n_atoms"],
        training: bool,
        kernel: Kernel | None,
    ) -> list[Piece]:
        strictly_local = architecture(potential.config.name).strictly_local
        if not strictly_local or (training and not self.options.recompute):
            return [whole(batch.edge_index, species)]
        floats = potential.network.floats_per_edge if kernel is None else KERNEL_FLOATS_PER_EDGE
        return pieces(batch, species, floats, len(potential.elements))

    def _compute(
        self,
        potential: Energies,
        edge_vec: Float[Tensor, "n_edges 3"],
        piece: Piece,
        training: bool,
        kernel: Kernel | None,
    ) -> tuple[Float[Tensor, "n_atoms"], Float[Tensor, "n_edges 3"]]:
        if kernel is not None:
            keep = not self.options.recompute
            return potential.kernel_energies(kernel, edge_vec, piece.edge_index, piece.species, training, keep)
        if training and self.options.recompute:
            assert isinstance(potential, nn.Module)
            weights = [p for p in potential.parameters() if p.requires_grad]
            return _Recomputed.apply(potential, edge_vec, piece, *weights)
        if self.options.cuda_graphs and not training and can_be_recorded(potential, edge_vec):
            return self._recorded(potential)(edge_vec, piece.edge_index, piece.species)
        return by_autograd(potential, edge_vec, piece.edge_index, piece.species, training)

    def _recorded(self, potential: Energies) -> Graphs:
        """CUDA graphs of the potential; recorded anew if its weights lie elsewhere than before."""
        assert isinstance(potential, nn.Module)
        addresses = tuple(p.data_ptr() for p in potential.parameters())
        if self._graphs is None or self._graphs[0] != addresses:

            def function(edge_vec: Tensor, edge_index: Tensor, species: Tensor) -> tuple[Tensor, Tensor]:
                return by_autograd(potential, edge_vec, edge_index, species, training=False)

            self._graphs = addresses, Graphs(function, far=2 * potential.config.cutoff)
        return self._graphs[1]


def by_autograd(
    potential: Energies,
    edge_vec: Float[Tensor, "n_edges 3"],
    edge_index: Int[Tensor, "2 n_edges"],
    species: Int[Tensor, "n_atoms"],
    training: bool,
) -> tuple[Float[Tensor, "n_atoms"], Float[Tensor, "n_edges 3"]]:
    """E_i of every centre in eV and dE/dr_ij in eV/Å, by PyTorch's operators and autograd.

    Args:
        potential: the energy to differentiate.
        edge_vec: r_ij in Å.
        edge_index: centre and neighbour of each edge, sorted by centre.
        species: of each atom.
        training: whether both must stay differentiable by the weights.
    """
    with torch.enable_grad():
        edge_vec = edge_vec.detach().requires_grad_()
        energies = potential.atom_energies(edge_vec, edge_index, species)
        (gradient,) = torch.autograd.grad(energies.sum(), edge_vec, create_graph=training)
    return (energies if training else energies.detach()), gradient


class _Recomputed(torch.autograd.Function):
    """:func:`by_autograd` that keeps nothing but its inputs; the backward pass computes everything again."""

    @staticmethod
    def forward(
        ctx: Any, potential: Energies, edge_vec: Tensor, piece: Piece, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.potential, ctx.piece = potential, piece
        ctx.save_for_backward(edge_vec, *weights)
        return by_autograd(potential, edge_vec, piece.edge_index, piece.species, training=False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_energies: Tensor, to_gradient: Tensor) -> tuple[Tensor | None, ...]:
        edge_vec, *weights = ctx.saved_tensors
        found = by_autograd(ctx.potential, edge_vec, ctx.piece.edge_index, ctx.piece.species, training=True)
        return None, None, None, *torch.autograd.grad(found, weights, (to_energies, to_gradient), allow_unused=True)
