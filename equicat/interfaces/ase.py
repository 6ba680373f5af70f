"""A trained model as an ASE calculator, for one system at a time or for many at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from jaxtyping import Float
from numpy import ndarray

from equicat.errors import InputError
from equicat.interfaces.evaluator import SKIN, Evaluator, no_stress, stress_of, unlabelled
from equicat.models import saved
from equicat.models.domain import Action
from equicat.models.gradient import ComputeOptions
from equicat.models.uncertainty import no_grade


class Calculator(AseCalculator):
    """Energies (eV), forces (eV/Å) and, for periodic cells with volume, stress (eV/Å³) of a run's model.

    The stress is computed from the first time on that somebody asks for it. That of a slab, periodic along two
    directions, has components in its plane only, and is over the volume of the cell, vacuum included. A model with
    direct forces has no stress. ``calculator.get_property("grades", atoms)`` gives the extrapolation grade of each
    atom (:mod:`equicat.models.uncertainty`), above 1 where the model extrapolates; a step without that question costs
    nothing more. Which energy it is, adsorption, total or relative, stands in
    ``calculator.energy_reference``.
    """

    implemented_properties = [  # noqa: RUF012 (declared by ASE)
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
        "grades",
    ]

    def __init__(
        self,
        run: str | Path,
        device: str = "auto",
        cuda_graphs: bool = True,
        outside_training: Action = "warn",
        skin: float = SKIN,
        dtype: Literal["float32", "float64"] | None = None,
        max_grade: float | None = None,
        **kwargs: Any,
    ):
        """Load the model of a run.

        Args:
            run: run directory that `equicat train` wrote, or the folder of an ensemble, for its mean.
            device: where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N.
            cuda_graphs: record inferences of small systems (:mod:`equicat.kernels.gpu.graphs`) on a GPU with Triton.
            outside_training: what to do about structures unlike those that the model was trained on: ``warn`` once of
                each kind (:class:`~equicat.errors.OutsideTraining`), raise an ``error``, or ``ignore`` it.
            skin: Å beyond the cutoff that neighbour lists reach, so that they hold for several steps; changes no
                result.
            dtype: precision of the model; as it was trained if not given.
            max_grade: compute grades at every step, and do about one above this what ``outside_training`` says.
            kwargs: see ASE's ``Calculator``.

        Raises:
            InputError: if the run has no weights or predicts no forces, or no grades to compare with ``max_grade``, or
                the device is not there; when computing, for an element that the model does not know, or a structure
                outside of the training data if that is an ``error``.
        """
        super().__init__(**kwargs)
        self.potential = saved.load_potential(run, device, ComputeOptions(cuda_graphs=cuda_graphs))
        if dtype is not None:
            self.potential = self.potential.to(getattr(torch, dtype))
        self.energy_reference = self.potential.info.energy_reference
        self.evaluator = Evaluator(self.potential, skin, outside_training, numbered=False, max_grade=max_grade)
        self.with_stress = False
        """Whether somebody has asked for the stress."""

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """Changes in what the model sees; ASE would look at charges and magnetic moments as well."""
        if self.atoms is None:
            return list(all_changes)
        before, now = self.atoms, atoms
        if len(before) != len(now):
            return ["positions", "numbers"]
        pairs = {
            "positions": (before.positions, now.positions),
            "numbers": (before.numbers, now.numbers),
            "cell": (before.cell.array, now.cell.array),
            "pbc": (before.pbc, now.pbc),
        }
        return [name for name, (a, b) in pairs.items() if not np.array_equal(a, b)]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fills ``results``; see ASE."""
        if atoms is not None:
            self.atoms = atoms.copy()
        assert self.atoms is not None
        structure = unlabelled(self.atoms, "atoms")
        if system_changes:
            self.results = {}
        if "grades" in (properties or ()) and (reason := no_grade(self.potential)):
            raise PropertyNotImplementedError(f"no grades: {reason}")
        if properties == ["grades"]:
            self.results["grades"] = self.evaluator.grades([structure])[0]
            return
        self.with_stress |= "stress" in (properties or ())
        missing = no_stress(self.potential, structure) if self.with_stress else "not asked for"
        if missing and "stress" in (properties or ()):
            raise PropertyNotImplementedError(f"no stress: {missing}")
        (found,) = self.evaluator([structure], virial=not missing, grades="grades" in (properties or ()))
        self.results |= {
            "energy": found.energy,
            "free_energy": found.energy,
            "energies": found.atom_energies,
            "forces": found.forces,
        }
        if found.virial is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress_of(found.virial, structure))
        if found.grades is not None:
            self.results["grades"] = found.grades


@dataclass(frozen=True, eq=False)
class BatchResults:
    """Results for several systems, in the order in which they were given."""

    energies: Float[ndarray, "n_systems"]
    """eV."""
    forces: list[Float[ndarray, "_ 3"]]
    """eV/Å, one array for each system; constraints are not applied."""
    stresses: list[Float[ndarray, "3 3"]] | None = None
    """eV/Å³, as :class:`Calculator` defines them; None if they were not asked for."""
    grades: list[Float[ndarray, "_"]] | None = None
    """Extrapolation grades of the atoms of each system; None if they were not asked for."""


class BatchCalculator:
    """Energies, forces, stresses and grades of many systems at once.

    Neighbour lists are kept from one call to the next for the system at the same place in the list, so MD or
    relaxations of many systems make new ones only when they must. :func:`equicat.relax` relaxes in batches by itself.
    """

    def __init__(
        self,
        run: str | Path,
        device: str = "auto",
        outside_training: Action = "warn",
        skin: float = SKIN,
        max_grade: float | None = None,
    ):
        """Load the model of a run.

        Args:
            run: run directory that `equicat train` wrote, or the folder of an ensemble, for its mean.
            device: where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N.
            outside_training: what to do about structures unlike those in training: ``warn`` once of each kind, raise an
                ``error``, or ``ignore`` it.
            skin: Å beyond the cutoff that neighbour lists reach, so that they hold for several calls; changes no
                result.
            max_grade: always compute grades, and do about one above this what ``outside_training`` says.

        Raises:
            InputError: if the run has no weights or predicts no forces, or no grades to compare with ``max_grade``, or
                the device is not there.
        """
        self.potential = saved.load_potential(run, device)
        self.energy_reference = self.potential.info.energy_reference
        self.evaluator = Evaluator(self.potential, skin, outside_training, max_grade=max_grade)

    def __call__(self, systems: Sequence[Atoms], stress: bool = False, grades: bool = False) -> BatchResults:
        """The results of all systems.

        Args:
            systems: at least one; their calculators, constraints and tags are not looked at.
            stress: also compute stresses.
            grades: also compute the extrapolation grade of every atom, if ``max_grade`` does not ask for it anyway.

        Raises:
            InputError: for no systems, an invalid one, an element that the model does not know, or a system without a
                stress if that was asked for; names the system by its number. For grades of a run that has none.
        """
        if not systems:
            raise InputError("no systems to compute; give at least one")
        structures = [unlabelled(atoms, f"system {k}") for k, atoms in enumerate(systems)]
        for structure in structures if stress else ():
            if reason := no_stress(self.potential, structure):
                raise InputError(f"{structure.source}: no stress: {reason}")
        if grades and (reason := no_grade(self.potential)):
            raise InputError(f"no grades: {reason}")
        found = self.evaluator(structures, virial=stress, grades=grades)
        stresses = [stress_of(f.virial, s) for f, s in zip(found, structures, strict=True) if f.virial is not None]
        graded = [f.grades for f in found if f.grades is not None]
        energies, forces = np.array([f.energy for f in found]), [f.forces for f in found]
        return BatchResults(energies, forces, stresses if stress else None, graded or None)
