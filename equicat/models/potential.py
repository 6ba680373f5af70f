"""From positions to energies and forces: the only place where autograd meets geometry."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equicat.data.batch import Batch
from equicat.errors import InputError
from equicat.kernels.cpu.call import Kernel
from equicat.kernels.gpu.graphs import MAX_EDGES, Graphs
from equicat.models.gradient import KERNEL_FLOATS_PER_EDGE, _Piece, _pieces, _Recomputed
from equicat.models.heads import NEEDS_VECTORS, DisplacementHead, ScalarHead, vector_head
from equicat.models.model import AtomisticModel, Prediction
from equicat.models.repulsion import NO_TERMS, ZBL, EnergyTerms
from equicat.networks.catalogue import NetworkConfig, architecture
from equicat.networks.features import Features


class Potential(AtomisticModel):
    """E = Σ_i (s f_{Z_i} Σ_j E_ij / sqrt(avg_num_neighbors) + E_i,ZBL + ε_{Z_i}), F = −dE/dr.

    Args:
        config: of the network, ``avg_num_neighbors`` set.
        elements: atomic numbers that the model knows, ascending.
        output_mlp: hidden widths of the map from pair features to pair energy.
        scale: s, eV; the root mean square force of the training data is a good choice.
        reference_energies: ε by element, eV, in the order of ``elements``.
        terms: f and the repulsion; neither by default.
        force_head: ``gradient``, or another head of :mod:`equicat.models.heads` for direct forces, which are faster and
            not the derivative of the energy.

    Raises:
        InputError: if the network cannot feed the head.
    """

    factors: Tensor | None
    recompute = False
    """Whether training, too, works on a few centres at a time, and computes them twice: less memory, more time."""
    cuda_graphs = False
    """Whether inferences of small systems are recorded as CUDA graphs, where Triton kernels are used (never run)."""
    graphs: tuple[tuple[int, ...], Graphs] | None = None
    """Those of weights at these addresses."""

    def __init__(
        self,
        config: NetworkConfig,
        elements: tuple[int, ...],
        output_mlp: tuple[int, ...] = (128,),
        scale: float = 1.0,
        reference_energies: tuple[float, ...] | None = None,
        terms: EnergyTerms = NO_TERMS,
        force_head: DisplacementHead = "gradient",
    ):
        super().__init__(config, elements, scale, reference_energies, vectors=force_head in NEEDS_VECTORS)
        self.head = ScalarHead(self.model.n_features, output_mlp, self.avg_num_neighbors)
        factors = None if terms.factors is None else torch.tensor(terms.factors, dtype=torch.float64)
        self.register_buffer("factors", factors, persistent=False)
        self.repulsion = None if terms.repulsion is None else ZBL(terms.repulsion, elements)
        self.direct_forces = None
        if force_head != "gradient":
            self.direct_forces = vector_head(config.name, force_head, self.model, output_mlp, self.avg_num_neighbors)

    def forward(self, batch: Batch, forces: bool = True, virial: bool = False) -> Prediction:
        """Energies, and forces that stay differentiable while training.

        Args:
            batch: built with this model's cutoff.
            forces: compute forces; needs no grad mode from the caller.
            virial: also compute dE/dε.

        Raises:
            InputError: for an element that the model was not trained on, or for the virial of direct forces.
        """
        species = self.species(batch)
        training = self.training and torch.is_grad_enabled()
        if self.direct_forces is not None:
            if virial:
                raise InputError("a model with direct forces has no virial: they are not the derivative of its energy")
            return self.direct(batch, species, forces)
        if not (forces or virial):
            atom_energies = self.atom_energies(batch.edge_vec(), batch.edge_index, species)
            return Prediction(self.system_energies(atom_energies, species, batch), atom_energies)
        pieces = [_Piece(slice(None), slice(None), batch.edge_index, species)]
        if architecture(self.config.name).strictly_local and (self.recompute or not training):
            floats = KERNEL_FLOATS_PER_EDGE if self.kernel(batch.positions) else self.model.floats_per_edge
            pieces = _pieces(batch, species, floats, len(self.elements))
        parameters = [p for p in self.parameters() if p.requires_grad]
        energies = []
        total = batch.positions.new_zeros(len(species), 3)
        strain = batch.positions.new_zeros(batch.n_systems, 3, 3)
        for piece in pieces:
            edge_vec = batch.edge_vec(piece.edges).detach()
            if training and self.recompute and not self.kernel(edge_vec):
                energy, gradient = _Recomputed.apply(self.energies_and_gradient, edge_vec, piece, *parameters)
            elif not training and self.cuda_graphs and 0 < len(edge_vec) <= MAX_EDGES:
                energy, gradient = self.by_graph(edge_vec, piece)
            else:
                energy, gradient = self.energies_and_gradient(edge_vec, piece, create_graph=training)
            center, neighbor = batch.edge_index[:, piece.edges]
            energies.append(energy)
            total.index_add_(0, center, gradient).index_add_(0, neighbor, -gradient)
            if virial:
                strain.index_add_(0, batch.system_idx[center], edge_vec[:, :, None] * gradient[:, None, :])
        atom_energies = torch.cat(energies)
        energy = self.system_energies(atom_energies, species, batch)
        return Prediction(energy, atom_energies, total if forces else None, strain if virial else None)

    def direct(self, batch: Batch, species: Int[Tensor, "n_atoms"], forces: bool = True) -> Prediction:
        """Energies, and forces from a head of their own."""
        assert self.direct_forces is not None
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            edge_vec, (center, n_atoms) = batch.edge_vec(), (batch.edge_index[0], len(species))
            features = self.model(edge_vec, batch.edge_index, species)
            atom_energies = self.of_atoms(features, edge_vec, batch.edge_index, species)
            found = None
            if forces:
                unit = torch.nn.functional.normalize(edge_vec, dim=1)
                found = self.direct_forces(features, center, unit, n_atoms) * self.scale
        return Prediction(self.system_energies(atom_energies, species, batch), atom_energies, found)

    def kernel(self, like: Float[Tensor, "n 3"]) -> Kernel | None:
        """What computes the network's energies and gradient instead of autograd, for such positions or pair vectors."""
        kernel = architecture(self.config.name).kernel
        return kernel if kernel is not None and kernel.library(self.model, like) is not None else None

    def energies_and_gradient(
        self, edge_vec: Float[Tensor, "n_edges 3"], piece: _Piece, create_graph: bool
    ) -> tuple[Float[Tensor, "n_own"], Float[Tensor, "n_edges 3"]]:
        """Of the centres of a piece, and the derivative of their sum with respect to the pair vectors.

        By the network's kernel where it has one, else by autograd.
        """
        kernel, index = self.kernel(edge_vec), piece.edge_index
        if kernel is not None:
            readout = list(self.head.mlp.weights)
            sums, gradient = kernel.energies_and_gradient(
                self.model, readout, edge_vec, index, piece.species, create_graph, keep=not self.recompute
            )
            factor = self.factor(piece.species) * self.head.sum.norm
            energy = sums * factor
            gradient = gradient * (factor[index[0]][:, None] if factor.ndim else factor)
            if self.repulsion is not None:
                repulsion, slope = self.repulsion_and_gradient(edge_vec, piece)
                energy, gradient = energy + repulsion, gradient + slope
            return energy[piece.own], gradient
        with torch.enable_grad():
            edge_vec = edge_vec.detach().requires_grad_()
            energy = self.atom_energies(edge_vec, piece.edge_index, piece.species)[piece.own]
            (gradient,) = torch.autograd.grad(energy.sum(), edge_vec, create_graph=create_graph)
        return (energy if create_graph else energy.detach()), gradient

    def by_graph(
        self, edge_vec: Float[Tensor, "n_edges 3"], piece: _Piece
    ) -> tuple[Float[Tensor, "n_own"], Float[Tensor, "n_edges 3"]]:
        """What :meth:`energies_and_gradient` computes without a graph of its own, from a CUDA graph."""

        def function(edge_vec: Tensor, edge_index: Tensor, species: Tensor) -> tuple[Tensor, Tensor]:
            whole = _Piece(slice(None), slice(None), edge_index, species)
            return self.energies_and_gradient(edge_vec, whole, create_graph=False)

        addresses = tuple(p.data_ptr() for p in self.parameters())
        if self.graphs is None or self.graphs[0] != addresses:
            self.graphs = addresses, Graphs(function, far=2 * self.cutoff)
        energy, gradient = self.graphs[1](edge_vec, piece.edge_index, piece.species)
        return energy[piece.own], gradient

    def repulsion_and_gradient(
        self, edge_vec: Float[Tensor, "n_edges 3"], piece: _Piece
    ) -> tuple[Float[Tensor, "n_atoms"], Float[Tensor, "n_edges 3"]]:
        """The same of the repulsion of the nuclei alone, which has no weights."""
        assert self.repulsion is not None
        with torch.enable_grad():
            edge_vec = edge_vec.detach().requires_grad_()
            energy = self.repulsion(edge_vec, piece.edge_index, piece.species, len(self.elements))
            (gradient,) = torch.autograd.grad(energy.sum(), edge_vec)
        return energy.detach(), gradient

    def factor(self, species: Int[Tensor, "n_atoms"]) -> Tensor:
        """s f of every atom, eV; without f one number."""
        return self.scale if self.factors is None else self.scale * self.factors[species].to(self.scale)

    def atom_energies(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> Float[Tensor, "n_atoms"]:
        """All but ε for every centre, eV; the pure part, for compilers and exports."""
        return self.of_atoms(self.model(edge_vec, edge_index, species), edge_vec, edge_index, species)

    def of_atoms(
        self,
        features: Features,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> Float[Tensor, "n_atoms"]:
        """The same, from the features of the network."""
        energies = self.head(features, edge_index[0], len(species)) * self.factor(species)
        if self.repulsion is not None:
            energies = energies + self.repulsion(edge_vec, edge_index, species, len(self.elements))
        return energies
