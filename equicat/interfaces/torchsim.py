"""A trained model for TorchSim, which runs MD and relaxations of many systems at once (Python 3.12 or newer).

TorchSim drops constraints when it takes over ASE's atoms. :func:`torch_sim_state` carries fixed atoms over and refuses
what TorchSim has no word for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor, nn

from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.extras import extra
from equicat.interfaces.evaluator import SKIN, Evaluator, no_stress, stress_of
from equicat.models import saved
from equicat.models.domain import Action
from equicat.models.uncertainty import no_grade


class TorchSimModel(nn.Module):
    """Energies (eV), forces (eV/Å) and stresses (eV/Å³) as TorchSim's ``ModelInterface`` asks for them.

    Neighbour lists are kept from one step to the next. Periodic directions are followed as the state has them: the
    stress of a slab has components in its plane only, and that of a molecule is zero.
    """

    memory_scales_with = "n_atoms_x_density"

    def __init__(
        self,
        run: str | Path,
        device: str = "auto",
        dtype: torch.dtype = torch.float64,
        compute_stress: bool = False,
        outside_training: Action = "warn",
        skin: float = SKIN,
        compute_grades: bool = False,
        max_grade: float | None = None,
    ):
        """Load the model of a run.

        Args:
            run: run directory that `equicat train` wrote, or the folder of an ensemble, for its mean.
            device: where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N.
            dtype: of positions and results in TorchSim; the network keeps its own precision.
            compute_stress: whether to compute stresses.
            outside_training: what to do about structures unlike those in training: ``warn`` once of each kind, raise an
                ``error``, or ``ignore`` it.
            skin: Å beyond the cutoff that neighbour lists reach, so that they hold for several steps.
            compute_grades: whether to compute the extrapolation grade of each atom, ``grades`` [n_atoms], above 1 where
                the model extrapolates.
            max_grade: compute grades, and do about one above this what ``outside_training`` says.

        Raises:
            InputError: if TorchSim is not installed, the run has no weights or predicts no forces, has direct forces
                and the stress is asked for, or has no grades and they are.
        """
        super().__init__()
        extra("torch_sim.models.interface", "torchsim").ModelInterface.register(type(self))
        self.potential = saved.load_potential(run, device)
        self.energy_reference = self.potential.info.energy_reference
        self.evaluator = Evaluator(self.potential, skin, outside_training, max_grade=max_grade)
        self.device, self.dtype = self.evaluator.device, dtype
        self.compute_forces, self.compute_stress = True, compute_stress
        self.compute_grades = compute_grades or max_grade is not None
        if self.compute_grades and (reason := no_grade(self.potential)):
            raise InputError(f"{run}: no grades: {reason}; leave compute_grades out")
        if compute_stress and self.potential.direct_forces is not None:
            raise InputError(f"{run}: no stress: its forces are direct ones; leave compute_stress out")

    def forward(self, state: Any, **more: Any) -> dict[str, Float[Tensor, "..."]]:
        """Energies [n_systems], forces [n_atoms, 3] and, if asked for, stresses [n_systems, 3, 3] and grades [n_atoms].

        Args:
            state: a ``torch_sim.SimState``, which is not changed.
            more: not used.

        Raises:
            InputError: for an element that the model does not know, or a cell whose stress is asked for and not
                defined.
        """
        structures = structures_of(state)
        found = self.evaluator(structures, virial=self.compute_stress, grades=self.compute_grades)
        results = {
            "energy": np.array([one.energy for one in found]),
            "forces": np.concatenate([one.forces for one in found]),
        }
        if self.compute_grades:
            results["grades"] = np.concatenate([one.grades for one in found if one.grades is not None])
        if self.compute_stress:
            stresses = np.zeros((len(found), 3, 3))
            for k, (one, structure) in enumerate(zip(found, structures, strict=True)):
                if structure.pbc.any():  # else a strain of the cell moves nothing
                    if reason := no_stress(self.potential, structure):
                        raise InputError(f"{structure.source}: no stress: {reason}")
                    assert one.virial is not None
                    stresses[k] = stress_of(one.virial, structure)
            results["stress"] = stresses
        return {name: torch.from_numpy(x).to(self.device, self.dtype) for name, x in results.items()}


def structures_of(state: Any) -> list[Structure]:
    """The systems of a ``torch_sim.SimState``, which has lattice vectors as columns; not checked."""
    n_atoms = torch.bincount(state.system_idx, minlength=len(state.cell)).cumsum(0)[:-1].tolist()
    numbers = np.split(state.atomic_numbers.cpu().numpy().astype(np.int64), n_atoms)
    positions = np.split(state.positions.detach().double().cpu().numpy(), n_atoms)
    cells = state.cell.detach().double().mT.cpu().numpy()
    pbc = np.broadcast_to(torch.as_tensor(state.pbc).cpu().numpy(), 3).copy()
    return [
        Structure.unchecked(numbers=z, positions=r, cell=cell, pbc=pbc, source=f"system {k}", info={})
        for k, (z, r, cell) in enumerate(zip(numbers, positions, cells, strict=True))
    ]


def torch_sim_state(systems: Sequence[Atoms], model: TorchSimModel) -> Any:
    """A ``torch_sim.SimState`` of some atoms with their fixed atoms, on the model's device.

    Args:
        systems: periodic along the same directions.
        model: for which the state is made.

    Raises:
        InputError: for systems that differ in their periodic directions, or a constraint other than ``FixAtoms``.
    """
    io, constraints = extra("torch_sim.io", "torchsim"), extra("torch_sim.constraints", "torchsim")
    fixed = list[ndarray]()
    for k, atoms in enumerate(systems):
        where = f"system {k}"
        if not np.array_equal(atoms.pbc, systems[0].pbc):
            raise InputError(
                f"{where}: periodic along {atoms.pbc.tolist()}, system 0 along {systems[0].pbc.tolist()}; TorchSim "
                "takes such systems in separate states"
            )
        structure = Structure.from_ase(atoms, source=where, labels=())
        if structure.free_directions is not None or structure.other_constraints:
            names = ", ".join(type(c).__name__ for c in atoms.constraints)
            raise InputError(f"{where}: TorchSim follows FixAtoms, not all of its constraints ({names}); change them")
        assert structure.fixed is not None
        fixed.append(structure.fixed)
    state = io.atoms_to_state(list(systems), model.device, model.dtype)
    mask = torch.from_numpy(np.concatenate(fixed)).to(model.device)
    if mask.any():
        state.constraints = [constraints.FixAtoms(atom_idx=mask.nonzero()[:, 0])]
    return state
