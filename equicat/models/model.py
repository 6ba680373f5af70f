"""Base of all models: elements, reference energies and scale; predictions; the description in ``model.json``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary, ref

import torch
from ase.data import chemical_symbols
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from equicat.data.batch import Batch
from equicat.data.fitted import Domain, Statistics
from equicat.data.info import DatasetInfo
from equicat.data.padded import PaddedBatch
from equicat.errors import InputError
from equicat.models.electrostatics import LongRange
from equicat.models.heads import MLP_HEAD, DisplacementHead, OwnHead
from equicat.models.repulsion import EnergyTerms
from equicat.models.uncertainty import Grade, Graded
from equicat.networks.catalogue import NetworkConfig, architecture, avg_num_neighbors
from equicat.networks.own import modules_of


@dataclass(frozen=True)
class ModelInfo:
    """Description of a model: everything but its weights."""

    task: str
    network: NetworkConfig
    output_mlp: tuple[int, ...]
    dtype: str
    energy_reference: str
    """adsorption, total or relative: which energy the model predicts."""
    statistics: Statistics
    """Statistics of the training data."""
    outputs: tuple[str, ...] = ("energy", "forces")
    """Predicted quantities: energy and forces, or relaxed_energy, displacements or both."""
    energy_head: Literal["mlp"] | OwnHead = MLP_HEAD
    """How relaxed energies are predicted."""
    displacement_head: DisplacementHead | OwnHead | None = None
    force_head: DisplacementHead = "gradient"
    output_nonlinearity: Literal["silu"] | None = "silu"
    """Nonlinearity between the matrices of ``output_mlp``, for scalar outputs."""
    dataset_references: dict[str, float] = field(default_factory=dict)
    """Energies (eV) that the data set had subtracted, by what they belong to."""
    terms: EnergyTerms = field(default_factory=EnergyTerms)
    energy_atoms: Literal["all", "adsorbate"] = "all"
    """Whose energies a relaxed energy is the sum of: all atoms, or those with tag 2."""
    linear_share: float = 0.0
    """Share of a linear model (:mod:`equicat.models.local_linear`) in relaxed energies."""
    domain: Domain | None = None
    """Chemistry and distances of the training data; None for runs of earlier versions, which did not keep it."""

    @property
    def long_range(self) -> LongRange:
        """Energy of latent charges."""
        return self.terms.long_range

    @property
    def own_modules(self) -> tuple[str, ...]:
        """Modules outside of equicat that hold the network or heads; loading the model imports them."""
        return modules_of(self.network.name, self.energy_head, self.displacement_head)

    @property
    def element_symbols(self) -> list[str]:
        return [chemical_symbols[z] for z in self.statistics.elements]


def check_energy_reference(info: ModelInfo, dataset: DatasetInfo, where: str | Path, option: str = "") -> None:
    """Refuse to compare two different kinds of energy.

    Args:
        info: of the model.
        dataset: what is said of the data.
        where: the data, for the message.
        option: that tells which energies a structure file has, if the file was taken to have total ones.

    Raises:
        InputError: naming both kinds, and the option.
    """
    if dataset.energy_reference != info.energy_reference and info.outputs != ("displacements",):
        assumed = f" (a file's are, unless {option} says otherwise)" if option else ""
        advice = f"; if they are {info.energy_reference} ones, say {option} {info.energy_reference}" if option else ""
        raise InputError(
            f"{where}: its energies are {dataset.energy_reference!r}{assumed}, the model predicts "
            f"{info.energy_reference!r} ones; the two cannot be mixed{advice}"
        )


@dataclass(frozen=True, eq=False)
class Prediction:
    """Energies, forces and virial that a potential predicts for a batch."""

    energy: Float[Tensor, "n_systems"]
    """eV, float64."""
    atom_energies: Float[Tensor, "n_atoms"]
    """eV, without the reference energies of the elements."""
    forces: Float[Tensor, "n_atoms 3"] | None = None
    """eV/Å."""
    virial: Float[Tensor, "n_systems 3 3"] | None = None
    """−Σ r_ij ⊗ F_ij in eV, that is dE/dε; the stress is this over the volume."""


def float64_bits(values: Sequence[float]) -> Int[Tensor, "n"]:
    """Numbers in float64 as integers with the same bits, for a buffer that must keep its digits.

    ``Module.to(dtype)``, ``half()`` and their like cast every floating-point buffer and leave integers alone; copies,
    moves between devices and checkpoints treat both alike. ``bits.view(torch.float64)`` are the numbers.
    """
    return torch.tensor(values, dtype=torch.float64).view(torch.int64)


def _save_references(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """State-dict hook: files and checkpoints hold reference energies as the numbers that they are (float64)."""
    state[f"{prefix}reference_energies"] = state.pop(f"{prefix}reference_bits").view(torch.float64)


def _load_references(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """State-dict hook: takes reference energies of any floating-point dtype, as they are."""
    references = state.pop(f"{prefix}reference_energies", None)
    if references is not None:
        state[f"{prefix}reference_bits"] = references.double().view(torch.int64)


_SPECIES: WeakKeyDictionary[nn.Module, tuple[ref[Tensor], tuple[int, int], Int[Tensor, "n_atoms"]]] = (
    WeakKeyDictionary()
)
"""For models on a GPU: the atomic numbers that were looked at last, their version, and the elements. To look at them
again, as when atoms move, would wait for the GPU."""


class AtomisticModel(nn.Module, Graded):
    """A network, the elements that it knows, and what an energy is made of; a task's model adds what it predicts.

    Args:
        config: of the network, ``avg_num_neighbors`` set.
        elements: atomic numbers that the model knows, ascending.
        scale: s, eV.
        reference_energies: ε by element, eV, in the order of ``elements``.
        vectors: whether a head needs the network's vectors.
    """

    scale: Tensor
    reference_bits: Tensor
    species_of_number: Tensor
    grade: Grade | None = None
    """Tells how unlike the training data an atom is; None for an untrained model, and for runs of earlier versions."""
    info: ModelInfo
    """Description of the model, set by :func:`equicat.models.saved.build`."""

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
        self.network: Any = architecture(config.name).build(config, elements, vectors)
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))  # follows the model's dtype
        self.register_buffer("reference_bits", float64_bits(reference_energies or (0.0,) * len(elements)))
        self.register_state_dict_post_hook(_save_references)
        table = torch.full((len(chemical_symbols),), -1)
        table[list(elements)] = torch.arange(len(elements))
        self.register_buffer("species_of_number", table, persistent=False)
        self.register_load_state_dict_pre_hook(_rename_network)
        self.register_load_state_dict_pre_hook(_load_references)

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.config.cutoff

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def reference_energies(self) -> Float64[Tensor, "n_elements"]:
        """ε by element, eV: float64 whatever the model's dtype, for all-electron energies are 10⁵ eV an atom."""
        return self.reference_bits.view(torch.float64)

    def species(self, batch: Batch) -> Int[Tensor, "n_atoms"]:
        """The model's index of each atom's element.

        Raises:
            InputError: for an element that the model was not trained on; names it and the system.
        """
        if isinstance(batch, PaddedBatch):  # its elements were looked at before, and looking would wait for a GPU
            return self.species_of_number[batch.numbers]
        state = None
        if batch.numbers.device.type != "cpu" and not batch.numbers.is_inference():
            state = batch.numbers._version, self.species_of_number.data_ptr()
            known = _SPECIES.get(self)
            if known is not None and known[0]() is batch.numbers and known[1] == state:
                return known[2]
        species = self.species_of_number[batch.numbers]
        if (species < 0).any():
            atom = int((species < 0).nonzero()[0])
            system = int(batch.system_idx[atom])
            where = batch.sources[system] if batch.sources else f"system {system}"
            raise InputError(
                f"{where}: element {chemical_symbols[int(batch.numbers[atom])]} was not in the training data; "
                f"this model knows {', '.join(chemical_symbols[z] for z in self.elements)}"
            )
        if state is not None:
            _SPECIES[self] = ref(batch.numbers), state, species
        return species

    def system_energies(
        self,
        atom_energies: Float[Tensor, "n_atoms"],
        species: Int[Tensor, "n_atoms"],
        batch: Batch,
        counted: Bool[Tensor, "n_atoms"] | None = None,
    ) -> Float[Tensor, "n_systems"]:
        """Σ_i (E_i + ε_{Z_i}) over all atoms or those counted, eV; accumulated in float64, so that a large system's sum
        keeps its digits."""
        per_atom = atom_energies.double() + self.reference_energies[species]
        if counted is not None:
            per_atom = per_atom.masked_fill(~counted, 0.0)
        return per_atom.new_zeros(batch.n_systems).index_add(0, batch.system_idx, per_atom)


def _rename_network(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Weights written before format 2 call the network ``model``."""
    before = f"{prefix}model."
    for name in [name for name in state_dict if name.startswith(before)]:
        state_dict[f"{prefix}network.{name.removeprefix(before)}"] = state_dict.pop(name)


def minus_gradient(
    gradient: Float[Tensor, "n_edges 3"], edge_index: Int[Tensor, "2 n_edges"], n_atoms: int
) -> Float[Tensor, "n_atoms 3"]:
    """−∂/∂r_i of a scalar, from its derivatives with respect to the pair vectors r_j − r_i."""
    center, neighbor = edge_index
    return gradient.new_zeros(n_atoms, 3).index_add(0, center, gradient).index_add(0, neighbor, -gradient)
