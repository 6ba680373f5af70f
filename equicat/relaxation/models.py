"""Sources of energies and forces for relaxations: a trained model, or ASE calculators in its place."""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols
from jaxtyping import Float
from torch import Tensor

from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.models.potential import Potential
from equicat.models.saved import load_potential
from equicat.relaxation.pairs import PairBatch

EDGES = {True: 100_000, False: 10_000}
"""Default number of edges in a batch. Strictly local networks compute gradients a few centres at a time, and from about
here on larger batches are no faster on a CPU; others keep the intermediates of all edges, up to 0.4 MB each."""


@runtime_checkable
class ForceModel(Protocol):
    """Energies and forces of a batch, and what has to be known to make one."""

    cutoff: float | None
    """Å; None if it finds its own neighbours."""
    elements: tuple[int, ...] | None
    """Atomic numbers that it knows; None: any."""
    energy_reference: str
    """adsorption, total or relative."""
    device: torch.device
    edges: int
    """Edges that a batch holds at most, unless the user says otherwise."""

    def __call__(self, batch: PairBatch) -> tuple[Float[Tensor, "n_systems"], Float[Tensor, "n_atoms 3"]]:
        """Energies (eV) and the forces (eV/Å) of all atoms, fixed ones included."""
        ...


class PotentialForces:
    """A trained model of energies and forces, conservative or direct ones."""

    def __init__(self, potential: Potential):
        self.potential = potential
        self.cutoff: float | None = potential.cutoff
        self.elements: tuple[int, ...] | None = potential.elements
        self.energy_reference = potential.info.energy_reference
        self.device = potential.scale.device
        self.is_strictly_local = potential.strictly_local
        """Whether all forces are derivatives of energies of atoms that depend on their own neighbours only."""
        self.edges = EDGES[self.is_strictly_local]

    def __call__(self, batch: PairBatch) -> tuple[Float[Tensor, "n_systems"], Float[Tensor, "n_atoms 3"]]:
        with torch.no_grad():
            prediction = self.potential(batch.in_dtype(self.potential.dtype))
        assert prediction.forces is not None
        return prediction.energy, prediction.forces


class CalculatorForces:
    """ASE calculators, one for each system that is being relaxed, as slow or fast as they are.

    Args:
        make: gives a new calculator, such as ``ase.calculators.emt.EMT``.
        energy_reference: what its energies are.
    """

    cutoff: float | None = None
    elements: tuple[int, ...] | None = None
    device = torch.device("cpu")
    edges = EDGES[True]

    def __init__(self, make: Callable[[], Calculator], energy_reference: str = "total"):
        self.make, self.energy_reference = make, energy_reference
        self.calculators: dict[str, Calculator] = {}

    def __call__(self, batch: PairBatch) -> tuple[Float[Tensor, "n_systems"], Float[Tensor, "n_atoms 3"]]:
        energies, forces = [], []
        ends = batch.n_atoms.cumsum(0).tolist()
        for k, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            atoms = Atoms(
                batch.numbers[start:end].numpy(),
                batch.positions[start:end].numpy(),
                cell=batch.cell[k].numpy(),
                pbc=batch.pbc[k].numpy(),
            )
            atoms.calc = self.calculators.setdefault(batch.ids[k], self.make())
            energies.append(float(atoms.get_potential_energy()))
            forces.append(np.array(atoms.get_forces(apply_constraint=False)))
        self.calculators = {name: self.calculators[name] for name in batch.ids}
        return torch.tensor(energies, dtype=torch.float64), torch.from_numpy(np.concatenate(forces))


def force_model(
    model: str | Path | Potential | ForceModel, device: str = "cpu", dtype: torch.dtype | None = None
) -> ForceModel:
    """The source of energies and forces that ``model`` stands for.

    Args:
        model: run directory, a loaded potential, or anything that is a :class:`ForceModel` already.
        device: where the model of a run computes.
        dtype: of the model; None: as it was trained. Positions are float64 anyway.

    Raises:
        InputError: if the run holds no model, or one without forces.
    """
    if isinstance(model, str | Path):
        model = load_potential(model, device)
    if not isinstance(model, torch.nn.Module):
        return model
    if not isinstance(model, Potential):
        raise InputError("a relaxation needs forces; this model predicts relaxed energies or structures directly")
    if dtype not in (None, model.dtype):
        model = copy.deepcopy(model).to(dtype)  # the caller's own model stays as it is
    return PotentialForces(model)


def check_elements(model: ForceModel, structures: Iterable[Structure]) -> None:
    """Make sure that the model knows all elements, before anything is computed.

    Raises:
        InputError: naming the first structure with another element, and that element.
    """
    if model.elements is None:
        return
    known = np.array(model.elements)
    for structure in structures:
        unknown = structure.numbers[~np.isin(structure.numbers, known)]
        if len(unknown):
            raise InputError(
                f"{structure.where}: element {chemical_symbols[unknown[0]]} was not in the training data; this model "
                f"knows {', '.join(chemical_symbols[z] for z in model.elements)}"
            )
