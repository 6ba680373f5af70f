"""IS2RE and IS2RS without a relaxation: relaxed energy and displacements straight from the initial structure."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from equicat.data.batch import Batch
from equicat.errors import InputError
from equicat.kernels.switches import BY_VECTORS_TWICE, BY_WEIGHTS, switched
from equicat.models.domain import ADSORBATE_TAG
from equicat.models.heads import (
    MLP_HEAD,
    DisplacementHead,
    EnergyHead,
    OutputMLP,
    OwnHead,
    ScalarHead,
    check_rows,
    energy_head,
    needs_vectors,
    vector_head,
)
from equicat.models.local_linear import LocalLinear
from equicat.models.model import AtomisticModel, minus_gradient
from equicat.networks.catalogue import NetworkConfig, architecture

EnergyAtoms = Literal["all", "adsorbate"]


@dataclass(frozen=True)
class DirectHeads:
    """The quantities that a direct model predicts, and the heads that predict them."""

    energy: Literal["mlp"] | OwnHead | None = MLP_HEAD
    """How relaxed energies are predicted; None does not."""
    energy_atoms: EnergyAtoms = "all"
    """Whose energies are summed: all atoms, or those with tag 2."""
    displacements: DisplacementHead | OwnHead | None = None
    """How displacements are predicted; None does not."""
    linear_share: float = 0.0
    """Share of a :class:`~equicat.models.local_linear.LocalLinear` in energies of the adsorbate."""


@dataclass(frozen=True, eq=False)
class RelaxedPrediction:
    """Predictions of a direct model for a batch of initial structures; None where it was not trained for them."""

    relaxed_energy: Float[Tensor, "n_systems"] | None = None
    """eV, float64."""
    displacements: Float[Tensor, "n_atoms 3"] | None = None
    """r_relaxed − r_initial, Å; zero for fixed atoms."""


class DirectModel(AtomisticModel):
    """Relaxed energy, E = Σ_i (s e_i + ε_{Z_i}), and displacements, r_d, of the atoms that are not fixed.

    Both read the same features of the network. See :mod:`equicat.models.heads` for the displacement heads.

    With ``energy_atoms`` adsorbate the sum is over atoms with tag 2 alone, which is for adsorption energies: a clean
    slab has exactly 0, and no layer or cell that the adsorbate does not see adds anything.

    A strictly local network computes the centres that are read: of displacements those of free atoms, but for the
    gradient head, and of energies those whose energies are summed.

    Args:
        config: of the network, ``avg_num_neighbors`` set.
        elements: atomic numbers that the model knows, ascending.
        output_mlp: the maps from features to outputs: hidden widths, or their form.
        heads: what to predict, and how.
        scale: s, eV; the root mean square of what a linear fit to the composition leaves is a good choice.
        displacement_scale: Å; the root mean square component in the training data is a good choice.
        reference_energies: ε by element, eV, in the order of ``elements``.

    Raises:
        InputError: if the network cannot feed a head, or Python does not find one of one's own.
    """

    displacement_scale: Tensor

    def __init__(
        self,
        config: NetworkConfig,
        elements: tuple[int, ...],
        output_mlp: OutputMLP | tuple[int, ...] = (128,),
        heads: DirectHeads = DirectHeads(),
        *,
        scale: float = 1.0,
        displacement_scale: float = 1.0,
        reference_energies: tuple[float, ...] | None = None,
    ):
        super().__init__(config, elements, scale, reference_energies, vectors=needs_vectors(heads.displacements))
        self.register_buffer("displacement_scale", torch.tensor(displacement_scale, dtype=torch.float64))
        self.heads, self.energy_atoms = heads, heads.energy_atoms
        n_features, output = self.network.n_features, OutputMLP.of(output_mlp)
        scalar = partial(ScalarHead, n_features, output.hidden, self.avg_num_neighbors, output.linear)
        sizes = (self.network, output.hidden, self.avg_num_neighbors)
        self.energy: ScalarHead | EnergyHead | None = None
        if heads.energy is not None:
            self.energy = scalar() if heads.energy == MLP_HEAD else energy_head(config.name, heads.energy, *sizes)
        self.local_linear: LocalLinear | None = None
        if heads.linear_share:
            self.local_linear = LocalLinear(len(elements), config.cutoff, heads.linear_share)
        self.potential = self.displacement = None
        if heads.displacements == "gradient":
            self.potential = scalar()
        elif heads.displacements is not None:
            self.displacement = vector_head(config.name, heads.displacements, *sizes)

    def forward(self, batch: Batch) -> RelaxedPrediction:
        """Relaxed energies and displacements, differentiable while training.

        A linear model that has a share in energies has none in training mode: the network learns the whole energy.

        Raises:
            InputError: for an element that the model was not trained on; if the energy is that of the adsorbate, for a
                system whose atoms have no tags; and if a head of one's own gives anything but a row for each atom.
        """
        counted = self.counted(batch)
        if architecture(self.config.name).strictly_local:
            batch = _with_centers(batch, self._needed(batch, counted))
        species, center, n_atoms = self.species(batch), batch.edge_index[0], len(batch.positions)
        training = self.training and torch.is_grad_enabled()
        energy = displacements = None
        with torch.enable_grad() if self.potential is not None else torch.set_grad_enabled(training):
            edge_vec = batch.edge_vec().detach()
            if self.potential is not None:
                edge_vec.requires_grad_()
            with switched(BY_VECTORS_TWICE, False):
                features = self.network(edge_vec, batch.edge_index, species)
            if self.energy is not None:
                rows = self.energy(features, center, n_atoms)
                check_rows("energy_head", str(self.heads.energy), rows, n_atoms)
                atom_energies = rows * self.scale
                energy = self.system_energies(atom_energies, species, batch, counted)
                if self.local_linear is not None and counted is not None and not self.training:
                    energy = energy.lerp(self.local_linear(batch, species, counted), self.local_linear.share)
            if self.potential is not None:
                total = self.potential(features, center, n_atoms).sum()
                with switched(BY_WEIGHTS, False):
                    (gradient,) = torch.autograd.grad(total, edge_vec, create_graph=training)
                displacements = minus_gradient(gradient, batch.edge_index, n_atoms)
            elif self.displacement is not None:
                unit = torch.nn.functional.normalize(edge_vec, dim=1)
                displacements = self.displacement(features, center, unit, n_atoms)
                check_rows("displacement_head", str(self.heads.displacements), displacements, n_atoms, 3)
        if displacements is not None:
            displacements = (displacements * self.displacement_scale).masked_fill(batch.fixed[:, None], 0.0)
        if energy is not None and not training:
            energy = energy.detach()
        return RelaxedPrediction(energy, displacements)

    def counted(self, batch: Batch) -> Bool[Tensor, "n_atoms"] | None:
        """The atoms whose energies are summed; None for all.

        Raises:
            InputError: if those with tag 2 are meant and a system has no tags; names it.
        """
        if self.energy_atoms == "all":
            return None
        tagged = torch.zeros(batch.n_systems, dtype=torch.bool, device=batch.tags.device)
        tagged[batch.system_idx[batch.tags > 0]] = True
        if not tagged.all():
            system = int((~tagged).nonzero()[0])
            where = batch.sources[system] if batch.sources else f"system {system}"
            raise InputError(
                f"{where}: its atoms have no tags, but this model sums the energies of the adsorbate, the atoms with "
                f"tag {ADSORBATE_TAG}; set tags (0 below, 1 surface, 2 adsorbate)"
            )
        return batch.tags == ADSORBATE_TAG

    def _needed(self, batch: Batch, counted: Bool[Tensor, "n_atoms"] | None) -> Bool[Tensor, "n_atoms"] | None:
        """The centres whose features are read, in a strictly local network; None for all."""
        if self.potential is not None or (self.energy is not None and counted is None):
            return None
        needed = torch.zeros_like(batch.fixed) if self.energy is None or counted is None else counted
        return needed if self.displacement is None else needed | ~batch.fixed


def _with_centers(batch: Batch, centers: Bool[Tensor, "n_atoms"] | None) -> Batch:
    """The batch with the edges of some centres only."""
    if centers is None:
        return batch
    kept = centers[batch.edge_index[0]]
    return replace(batch, edge_index=batch.edge_index[:, kept], edge_shift=batch.edge_shift[kept])
