"""Energies, forces and virials of a network's features: the physics of a potential, and nothing else.

Which of its two ways to differentiate is taken (autograd or a kernel), and whether in pieces, recomputed or recorded,
:mod:`equicat.models.gradient` decides.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equicat.data.batch import Batch
from equicat.errors import InputError
from equicat.kernels.edges import Edges
from equicat.kernels.switches import BY_VECTORS_TWICE, BY_WEIGHTS, switched
from equicat.models.electrostatics import LatentCharges
from equicat.models.gradient import (
    DEFAULTS,
    ComputeOptions,
    Energies,
    EnergiesAndGradient,
    PairGradients,
    pair_vectors,
)
from equicat.models.heads import DisplacementHead, OutputMLP, ScalarHead, needs_vectors, vector_head
from equicat.models.model import AtomisticModel, Prediction, float64_bits, minus_gradient
from equicat.models.repulsion import NO_TERMS, ZBL, EnergyTerms
from equicat.networks import allegro_gpu, allegro_gpu_training
from equicat.networks.catalogue import NetworkConfig, architecture
from equicat.networks.features import Features


def check_long_range(force_head: DisplacementHead, recompute: bool) -> None:
    """Refuse what does not go with the energy of latent charges.

    Raises:
        InputError: if forces are direct ones, or centres are to be computed a few at a time.
    """
    if force_head != "gradient":
        raise InputError(
            f"long_range is an energy, but force_head {force_head} makes forces that are no derivative; leave one out"
        )
    if recompute:
        raise InputError("run.recompute takes a few centres at a time, but long_range couples all; leave one out")


class Potential(AtomisticModel, Energies):
    """E = Σ_i (s f_{Z_i} Σ_j E_ij / sqrt(avg_num_neighbors) + E_i,ZBL + ½ q_i φ_i + ε_{Z_i}), F = −dE/dr.

    Args:
        config: of the network, ``avg_num_neighbors`` set.
        elements: atomic numbers that the model knows, ascending.
        output_mlp: the map from pair features to pair energy: hidden widths, or its form.
        scale: s, eV; the root mean square force of the training data is a good choice.
        reference_energies: ε by element, eV, in the order of ``elements``.
        terms: f, the repulsion, and the latent charges q (:mod:`equicat.models.electrostatics`); none by default.
        force_head: ``gradient``, or another head of :mod:`equicat.models.heads` for direct forces, which are faster and
            not the derivative of the energy.
        compute: how derivatives are computed.

    Raises:
        InputError: if the network cannot feed the head, or latent charges are to go with direct forces or recomputing.
    """

    factor_bits: Tensor | None

    def __init__(
        self,
        config: NetworkConfig,
        elements: tuple[int, ...],
        output_mlp: OutputMLP | tuple[int, ...] = (128,),
        scale: float = 1.0,
        reference_energies: tuple[float, ...] | None = None,
        terms: EnergyTerms = NO_TERMS,
        force_head: DisplacementHead = "gradient",
        compute: ComputeOptions = DEFAULTS,
    ):
        super().__init__(config, elements, scale, reference_energies, vectors=needs_vectors(force_head))
        output = OutputMLP.of(output_mlp)
        self.head = ScalarHead(self.network.n_features, output.hidden, self.avg_num_neighbors, output.linear)
        factors = None if terms.factors is None else float64_bits(terms.factors)
        self.register_buffer("factor_bits", factors, persistent=False)
        self.repulsion = None if terms.repulsion is None else ZBL(terms.repulsion, elements)
        self.direct_forces = None
        if force_head != "gradient":
            self.direct_forces = vector_head(
                config.name, force_head, self.network, output.hidden, self.avg_num_neighbors
            )
        self.long_range = None
        if terms.long_range.smearing is not None:
            check_long_range(force_head, compute.recompute)
            self.long_range = LatentCharges(
                terms.long_range.smearing, self.network.n_features, output, self.avg_num_neighbors
            )
        self.pair_gradients = PairGradients(compute)

    @property
    def strictly_local(self) -> bool:
        """Whether all forces are derivatives of energies of atoms that depend on their own neighbours only."""
        return architecture(self.config.name).strictly_local and self.direct_forces is None and self.long_range is None

    def forward(self, batch: Batch, forces: bool = True, virial: bool = False) -> Prediction:
        """Energies, and forces that stay differentiable by the weights while training.

        Args:
            batch: built with this model's cutoff.
            forces: compute forces; needs no grad mode from the caller.
            virial: also compute dE/dε.

        Raises:
            InputError: for an element that the model was not trained on, for the virial of direct forces, or for a
                system that is periodic in one direction, if there are latent charges.
        """
        species = self.species(batch)
        if self.direct_forces is not None:
            if virial:
                raise InputError("a model with direct forces has no virial: they are not the derivative of its energy")
            return self.with_direct_forces(batch, species, forces)
        if self.long_range is not None:
            return self.with_long_range(batch, species, forces, virial)
        if not (forces or virial):
            edges = Edges(batch.edge_vec(), batch.edge_index, species)
            atom_energies = self.atom_energies(self.network(*edges), edges)
            return Prediction(self.system_energies(atom_energies, species, batch), atom_energies)
        energies = []
        force = batch.positions.new_zeros(len(species), 3, dtype=batch.dtype)
        strain = force.new_zeros(batch.n_systems, 3, 3)
        training = self.training and torch.is_grad_enabled()
        for piece, differentiate in self.pair_gradients.plan(self, batch, species, training):
            edge_vec = pair_vectors(batch, piece.edges)
            found, gradient = differentiate(Edges(edge_vec, piece.edge_index, piece.species))
            energies.append(found[piece.own])
            center, neighbor = batch.edge_index[:, piece.edges]
            # r_ij = r_j − r_i: F_i = −dE/dr_i = Σ_j dE/dr_ij over the edges of i, less that of edges that end at i.
            force.index_add_(0, center, gradient).index_add_(0, neighbor, gradient, alpha=-1)
            if virial:
                outer = edge_vec[:, :, None] * gradient[:, None, :]
                strain.index_add_(0, batch.system_idx[center], outer)
        atom_energies = torch.cat(energies)
        energy = self.system_energies(atom_energies, species, batch)
        return Prediction(energy, atom_energies, force if forces else None, strain if virial else None)

    def atom_energies(self, features: Features, edges: Edges) -> Float[Tensor, "n_atoms"]:
        """E_i − ε_{Z_i} of every centre in eV, without latent charges, from the network's features of these edges."""
        species = edges.species
        energies = self.head(features, edges.edge_index[0], len(species)) * self.factor(species)
        if self.repulsion is not None:
            energies = energies + self.repulsion(*edges, len(self.elements))
        return energies

    def with_direct_forces(self, batch: Batch, species: Int[Tensor, "n_atoms"], forces: bool) -> Prediction:
        """Energies, and forces from a head of their own, which are not the derivative of the energy."""
        assert self.direct_forces is not None
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            edges = Edges(batch.edge_vec(), batch.edge_index, species)
            features = self.network(*edges)
            atom_energies = self.atom_energies(features, edges)
            force = None
            if forces:
                unit = torch.nn.functional.normalize(edges.edge_vec, dim=1)
                force = self.direct_forces(features, edges.edge_index[0], unit, len(species)) * self.scale
        return Prediction(self.system_energies(atom_energies, species, batch), atom_energies, force)

    def with_long_range(self, batch: Batch, species: Int[Tensor, "n_atoms"], forces: bool, virial: bool) -> Prediction:
        """Energies with those of latent charges; derivatives by autograd, through charges and directly."""
        assert self.long_range is not None
        training = self.training and torch.is_grad_enabled()
        index, force, strained = batch.edge_index, None, None
        edge_vec, positions, strain = batch.edge_vec().detach(), batch.positions.detach(), torch.zeros_like(batch.cell)
        with torch.set_grad_enabled(training or forces or virial):
            variables = [x.requires_grad_(forces or virial) for x in (edge_vec, positions, strain)]
            edges = Edges(edge_vec, index, species)
            with switched(BY_VECTORS_TWICE, False):
                features = self.network(*edges)
            atom_energies = self.atom_energies(features, edges)
            atom_energies = atom_energies + self.long_range(features, batch, positions, strain).to(self.dtype)
            if forces or virial:
                with switched(BY_WEIGHTS, False):
                    slopes = torch.autograd.grad(atom_energies.sum(), variables, create_graph=training)
                by_pair, by_position, by_strain = (slope.to(self.dtype) for slope in slopes)
                force = minus_gradient(by_pair, index, len(species)) - by_position
        if virial:
            outer = edge_vec.detach()[:, :, None] * by_pair[:, None, :]
            strained = by_strain.index_add(0, batch.system_idx[index[0]], outer)
        atom_energies = atom_energies if training else atom_energies.detach()
        energy = self.system_energies(atom_energies, species, batch)
        return Prediction(energy, atom_energies, force if forces else None, strained)

    def by_autograd(self, edges: Edges, training: bool = False) -> EnergiesAndGradient:
        """E_i − ε_{Z_i} of every centre in eV and dE/dr_ij in eV/Å, by PyTorch's operators.

        Args:
            edges: of some centres, all that they have.
            training: whether both must stay differentiable by the weights.
        """
        with torch.enable_grad():
            edges = edges._replace(edge_vec=edges.edge_vec.detach().requires_grad_())
            with switched(BY_VECTORS_TWICE, False):
                features = self.network(*edges)
            energies = self.atom_energies(features, edges)
            with switched(BY_WEIGHTS, False):
                (gradient,) = torch.autograd.grad(energies.sum(), edges.edge_vec, create_graph=training)
        return (energies if training else energies.detach()), gradient

    def by_kernel(self, edges: Edges, training: bool = False, keep: bool = True) -> EnergiesAndGradient:
        """:meth:`by_autograd` by the network's kernel, which gives Σ_j MLP(x^ij) and its derivative.

        Args:
            edges: of some centres, all that they have.
            training: whether both must stay differentiable by the weights.
            keep: keep products of large matrices for that: less time, more memory.
        """
        kernel, readout = architecture(self.config.name).kernel, self.head.mlp.matrices()
        assert kernel is not None
        found = kernel.energies_and_gradient(self.network, readout, edges, training, keep)
        return self._with_terms(*found, edges)

    def by_launches(self, edges: Edges, training: bool = False) -> EnergiesAndGradient:
        """:meth:`by_autograd` by a GPU's kernels for the whole network, where it has them.

        Args:
            edges: of some centres, all that they have.
            training: whether both must stay differentiable by the weights.
        """
        readout = self.head.mlp.matrices()
        if training:
            if not len(edges.edge_vec) or not allegro_gpu_training.trains(self.network, readout, edges.edge_vec):
                return self.by_autograd(edges, training)
            return self._with_terms(*allegro_gpu_training.energies_and_gradient(self.network, readout, edges), edges)
        if not allegro_gpu.serves(self.network, readout, edges.edge_vec):
            return self.by_autograd(edges)
        found = allegro_gpu.energies_and_gradient(self, self.network, readout, edges)
        return self._with_terms(*found, edges)

    def _with_terms(
        self, sums: Float[Tensor, "n_atoms"], slope: Float[Tensor, "n_edges 3"], edges: Edges
    ) -> EnergiesAndGradient:
        """Energies and gradient from Σ_j MLP(x^ij) and its derivative: in eV, and with the repulsion."""
        factor = self.factor(edges.species) * self.head.sum.norm
        energies = sums * factor
        gradient = slope * (factor[edges.edge_index[0]][:, None] if factor.ndim else factor)
        if self.repulsion is not None:
            with torch.enable_grad():
                edges = edges._replace(edge_vec=edges.edge_vec.detach().requires_grad_())
                repulsion = self.repulsion(*edges, len(self.elements))
                (slope,) = torch.autograd.grad(repulsion.sum(), edges.edge_vec)
            energies, gradient = energies + repulsion.detach(), gradient + slope
        return energies, gradient

    def factor(self, species: Int[Tensor, "n_atoms"]) -> Float[Tensor, "n_atoms"] | Float[Tensor, ""]:
        """s f_{Z_i} of every atom in eV; one number where there is no f."""
        if self.factor_bits is None:
            return self.scale
        return self.scale * self.factor_bits.view(torch.float64)[species].to(self.dtype)
