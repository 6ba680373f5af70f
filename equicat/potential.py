"""From positions to energies and forces: the only place where autograd meets geometry."""

from dataclasses import dataclass
from typing import Any

import torch
from ase.data import chemical_symbols
from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat.batch import Batch
from equicat.errors import InputError
from equicat.heads import ScalarHead
from equicat.models.networks import NetworkConfig, architecture, avg_num_neighbors


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a potential says about a batch."""

    energy: Float[Tensor, "n_systems"]
    """eV, float64."""
    atom_energies: Float[Tensor, "n_atoms"]
    """eV, without the reference energies of the elements."""
    forces: Float[Tensor, "n_atoms 3"] | None = None
    """eV/Å."""
    virial: Float[Tensor, "n_systems 3 3"] | None = None
    """−Σ r_ij ⊗ F_ij in eV, that is dE/dε; the stress is this over the volume."""


class AtomisticModel(nn.Module):
    """A network, the elements that it knows, and what an energy is made of; a task's model adds what it predicts.

    Args:
        config: of the network, ``avg_num_neighbors`` set.
        elements: atomic numbers that the model knows, ascending.
        scale: s, eV.
        reference_energies: ε by element, eV, in the order of ``elements``.
        vectors: whether a head needs the network's vectors.
    """

    scale: Tensor
    reference_energies: Tensor
    species_of_number: Tensor
    info: Any
    """Of a trained model, its :class:`~equicat.runs.ModelInfo`."""

    def __init__(
        self,
        config: NetworkConfig,
        elements: tuple[int, ...],
        scale: float = 1.0,
        reference_energies: tuple[float, ...] | None = None,
        vectors: bool = False,
    ):
        super().__init__()
        average = avg_num_neighbors(config)
        if average is None:
            raise InputError(
                "model.avg_num_neighbors is not set; training fits it to the data, otherwise give a number"
            )
        self.config, self.elements = config, elements
        self.avg_num_neighbors = average
        self.model: Any = architecture(config.name).build(config, elements, vectors)
        self.register_buffer("scale", torch.tensor(scale))
        # Per-atom energies of DFT are thousands of eV: summed in float64, whatever the model's own precision.
        references = reference_energies or (0.0,) * len(elements)
        self.register_buffer("reference_energies", torch.tensor(references, dtype=torch.float64))
        table = torch.full((len(chemical_symbols),), -1)
        table[list(elements)] = torch.arange(len(elements))
        self.register_buffer("species_of_number", table, persistent=False)

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.config.cutoff

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def species(self, batch: Batch) -> Int[Tensor, "n_atoms"]:
        """The model's index of each atom's element.

        Raises:
            InputError: for an element that the model was not trained on; names it and the system.
        """
        species = self.species_of_number[batch.numbers]
        if (species < 0).any():
            atom = int((species < 0).nonzero()[0])
            system = batch.ids[int(batch.system_idx[atom])] if batch.ids else int(batch.system_idx[atom])
            raise InputError(
                f"system {system}: element {chemical_symbols[int(batch.numbers[atom])]} was not in the training data; "
                f"this model knows {', '.join(chemical_symbols[z] for z in self.elements)}"
            )
        return species

    def system_energies(
        self, atom_energies: Float[Tensor, "n_atoms"], species: Int[Tensor, "n_atoms"], batch: Batch
    ) -> Float[Tensor, "n_systems"]:
        """Σ_i (E_i + ε_{Z_i}), eV; accumulated in float64, so that a large system's sum keeps its digits."""
        per_atom = atom_energies.double() + self.reference_energies[species]
        return per_atom.new_zeros(batch.n_systems).index_add(0, batch.system_idx, per_atom)


def minus_gradient(
    gradient: Float[Tensor, "n_edges 3"], edge_index: Int[Tensor, "2 n_edges"], n_atoms: int
) -> Float[Tensor, "n_atoms 3"]:
    """−∂/∂r_i of a scalar, from its derivatives with respect to the pair vectors r_j − r_i."""
    center, neighbor = edge_index
    return gradient.new_zeros(n_atoms, 3).index_add(0, center, gradient).index_add(0, neighbor, -gradient)


class Potential(AtomisticModel):
    """E = Σ_i (s Σ_j E_ij / sqrt(avg_num_neighbors) + ε_{Z_i}), F = −dE/dr.

    Args:
        config: of the network, ``avg_num_neighbors`` set.
        elements: atomic numbers that the model knows, ascending.
        output_mlp: hidden widths of the map from pair features to pair energy.
        scale: s, eV; the root mean square force of the training data is a good choice.
        reference_energies: ε by element, eV, in the order of ``elements``.
    """

    def __init__(
        self,
        config: NetworkConfig,
        elements: tuple[int, ...],
        output_mlp: tuple[int, ...] = (128,),
        scale: float = 1.0,
        reference_energies: tuple[float, ...] | None = None,
    ):
        super().__init__(config, elements, scale, reference_energies)
        self.head = ScalarHead(self.model.n_features, output_mlp, self.avg_num_neighbors)

    def forward(self, batch: Batch, forces: bool = True, virial: bool = False) -> Prediction:
        """Energies, and forces that stay differentiable while training.

        Args:
            batch: built with this model's cutoff.
            forces: compute forces; needs no grad mode from the caller.
            virial: also compute dE/dε.

        Raises:
            InputError: for an element that the model was not trained on.
        """
        species = self.species(batch)
        training = self.training and torch.is_grad_enabled()
        if not (forces or virial):
            atom_energies = self.atom_energies(batch.edge_vec(), batch.edge_index, species)
            return Prediction(self.system_energies(atom_energies, species, batch), atom_energies)
        with torch.enable_grad():
            edge_vec = batch.edge_vec().detach().requires_grad_()
            atom_energies = self.atom_energies(edge_vec, batch.edge_index, species)
            (gradient,) = torch.autograd.grad(atom_energies.sum(), edge_vec, create_graph=training)
        if not training:
            atom_energies = atom_energies.detach()
        energy = self.system_energies(atom_energies, species, batch)
        total = minus_gradient(gradient, batch.edge_index, len(batch.positions))
        stress = None
        if virial:
            outer = edge_vec.detach()[:, :, None] * gradient[:, None, :]
            systems = batch.system_idx[batch.edge_index[0]]
            stress = gradient.new_zeros(batch.n_systems, 3, 3).index_add(0, systems, outer)
        return Prediction(energy, atom_energies, total, stress)

    def atom_energies(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> Float[Tensor, "n_atoms"]:
        """s Σ_j E_ij / sqrt(avg_num_neighbors) for every centre, eV; the pure part, for compilers and exports."""
        features = self.model(edge_vec, edge_index, species)
        return self.head(features, edge_index[0], len(species)) * self.scale
