"""Vibrations of structures: frequencies and normal modes from force constants."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.data import atomic_masses
from jaxtyping import Float, Int
from numpy import ndarray

from equicat.data.labels import LABELS
from equicat.data.structure import Structure
from equicat.models.potential import Potential
from equicat.relaxation.models import ForceModel, check_elements, force_model
from equicat.terminal.progress import progress_bar
from equicat.vibrations.config import VibrationConfig
from equicat.vibrations.differences import Differences, differences
from equicat.vibrations.molecules import Geometry, external_motions
from equicat.vibrations.systems import System, made_ready

WAVENUMBER = units._hbar * units.m * np.sqrt(1 / (units._e * units._amu)) / units.invcm
"""cm⁻¹ of an oscillator with a force constant of 1 eV/Å² and a mass of 1 amu: 521.47."""


@dataclass(frozen=True, eq=False)
class Vibrations:
    """Vibrations of one structure."""

    structure: Structure
    """With the model's energy (eV) and forces (eV/Å); a gas molecule is in one piece and without a cell. Without
    energy and forces if they were not finite."""
    geometry: Geometry | None
    """Shape of a gas molecule; None for everything else."""
    atoms: Int[ndarray, "n_atoms"]
    """Numbers of the atoms that vibrate."""
    fmax: float
    """eV/Å; longest force on one of them, along what is free; NaN if forces were not finite."""
    coordinates: Int[ndarray, "n_coordinates"]
    """The atom of each coordinate of the force constants."""
    directions: Float[ndarray, "n_coordinates 3"]
    """Unit vector of each coordinate: x, y and z for an atom that is not held."""
    force_constants: Float[ndarray, "n_coordinates n_coordinates"]
    """eV/Å²; NaN if forces were not finite."""

    @property
    def is_gas(self) -> bool:
        """Whether it is a molecule of a gas."""
        return self.geometry is not None

    @property
    def is_finite(self) -> bool:
        """Whether the model gave finite numbers; if not, there are no frequencies."""
        return self.structure.energy is not None and bool(np.isfinite(self.force_constants).all())

    @property
    def frequencies(self) -> Float[ndarray, "n_modes"]:
        """cm⁻¹, ascending; imaginary ones are negative. None of a system with numbers that are not finite.

        Of a gas molecule translations and rotations are taken out, so 3N − 6 are left, 3N − 5 of a linear one.
        """
        return self._frequencies_and_modes[0]

    @property
    def modes(self) -> Float[ndarray, "n_modes n_atoms 3"]:
        """Displacements of all atoms of the structure in each mode, amu^(−1/2): mass-weighted they have length 1."""
        return self._frequencies_and_modes[1]

    @property
    def n_imaginary(self) -> int:
        """Number of imaginary modes: 0 in a minimum, 1 at a saddle point."""
        return int((self.frequencies < 0).sum())

    @cached_property
    def _frequencies_and_modes(self) -> tuple[Float[ndarray, "n_modes"], Float[ndarray, "n_modes n_atoms 3"]]:
        n_atoms = len(self.structure)
        if not self.is_finite:
            return np.zeros(0), np.zeros((0, n_atoms, 3))
        masses = atomic_masses[self.structure.numbers]
        roots = np.sqrt(masses[self.coordinates])
        weighted = self.force_constants / np.outer(roots, roots)
        internal = np.eye(len(roots))
        if self.geometry is not None:
            outer = external_motions(masses, self.structure.positions, self.geometry)
            internal = np.linalg.svd(outer)[2][len(outer) :]
        squares, vectors = np.linalg.eigh(internal @ weighted @ internal.T)
        along = (vectors.T @ internal) / roots
        modes = np.zeros((len(squares), n_atoms, 3))
        for k, (atom, direction) in enumerate(zip(self.coordinates, self.directions, strict=True)):
            modes[:, atom] += along[:, k, None] * direction
        return WAVENUMBER * np.sign(squares) * np.sqrt(np.abs(squares)), modes


def vibrations_of(
    structures: Sequence[Structure | Atoms],
    model: str | Path | Potential | ForceModel,
    config: VibrationConfig | None = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = torch.float64,
    progress: bool = False,
) -> list[Vibrations]:
    """Vibrations of structures at minima or saddle points, by finite differences of forces.

    Displaced copies of all structures go through the model together. A structure whose forces are not finite does not
    change the numbers of the others.

    Args:
        structures: relaxed ones, or saddle points.
        model: run directory, a loaded potential, or another source of energies and forces
            (:class:`~equicat.relaxation.models.ForceModel`, such as ASE calculators).
        config: which atoms vibrate, and how far they are displaced.
        device: where the model of a run computes.
        dtype: of the model; None: as it was trained. Differences of forces lose digits, so float64 is the default.
        progress: show a progress bar.

    Raises:
        InputError: for a structure that cannot vibrate (it is named), or a model without forces.
    """
    config = config or VibrationConfig()
    forces = force_model(model, device, dtype)
    named = ((f"structure {k}", s) for k, s in enumerate(structures))
    given = [Structure.from_ase(s, source=name, labels=()) if isinstance(s, Atoms) else s for name, s in named]
    check_elements(forces, given)
    return vibrations_of_systems([made_ready(s, config) for s in given], forces, config, progress)


def vibrations_of_systems(
    systems: Sequence[System], model: ForceModel, config: VibrationConfig, progress: bool
) -> list[Vibrations]:
    """Vibrations of structures that were made ready, in their order."""
    found = zip(systems, differences(model, systems, config), strict=True)
    bar = progress_bar(found, total=len(systems), desc="vibrations", unit="system", disable=not progress)
    return [_vibrations(system, result) for system, result in bar]


def _vibrations(system: System, found: Differences) -> Vibrations:
    finite = bool(np.isfinite(found.energy) and np.isfinite(found.forces).all())
    labels: dict[str, Any] = dict.fromkeys(LABELS)
    if finite:
        labels |= {"energy": found.energy, "forces": found.forces}
    structure = dataclasses.replace(system.structure, **labels)
    along = (found.forces[system.atoms] * system.directions).sum(1)
    squares = np.bincount(system.atoms, weights=along**2)
    return Vibrations(
        structure=structure,
        geometry=system.geometry,
        atoms=np.unique(system.atoms),
        fmax=float(np.sqrt(squares.max())) if finite else float("nan"),
        coordinates=system.atoms,
        directions=system.directions,
        force_constants=found.force_constants,
    )
