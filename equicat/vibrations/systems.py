"""Structures made ready: which are gas molecules, which atoms vibrate, and along which directions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from equicat.data.neighbors import neighbor_list
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.relaxation.held import check_constraints, free_directions
from equicat.vibrations.config import VibrationConfig
from equicat.vibrations.molecules import Geometry, as_molecule, geometry_of, why_no_gas

OVERLAP = 0.5
"""Å; how near atoms are looked for that stand at the same place."""
LOWEST_TAG = {"adsorbate": 2, "surface": 1}
"""Atoms with this tag or a higher one vibrate."""
FREE = 0.5
"""Eigenvalues of a projector are 0 or 1; those above this belong to free directions."""


@dataclass(frozen=True, eq=False)
class System:
    """A structure, and the coordinates along which its atoms are displaced."""

    structure: Structure
    """A gas molecule is in one piece and has no cell."""
    geometry: Geometry | None
    """Shape of a gas molecule; None for everything else."""
    atoms: Int[ndarray, "n_coordinates"]
    """The atom of each coordinate, ascending."""
    directions: Float[ndarray, "n_coordinates 3"]
    """Unit vectors; those of one atom are at right angles."""


def made_ready(structure: Structure, config: VibrationConfig) -> System:
    """The structure with the coordinates that vibrate.

    Raises:
        InputError: if no atom is chosen or all chosen ones are fixed, a chosen atom does not exist, atoms are at the
            same place, a constraint is not followed, or a gas molecule is not one.
    """
    check_constraints(structure, "vibrate")
    neighbor_list(structure, OVERLAP)
    no_gas = {"yes": "", "no": "--gas no says so", "auto": None}[config.gas]
    no_gas = why_no_gas(structure) if no_gas is None else no_gas
    if not no_gas:
        molecule = as_molecule(structure)
        atoms = np.repeat(np.arange(len(molecule)), 3)
        return System(molecule, geometry_of(molecule, config.geometry), atoms, np.tile(np.eye(3), (len(molecule), 1)))
    atoms, directions = _coordinates(structure, _chosen(structure, config.atoms, no_gas))
    if len(atoms) == 0:
        which = config.atoms if isinstance(config.atoms, str) else "chosen"
        raise InputError(
            f"{structure.where}: every {which} atom is fixed, so there is nothing to displace; choose others with "
            "--atoms, or free some"
        )
    return System(structure, None, atoms, directions)


def _chosen(structure: Structure, atoms: str | Sequence[int], no_gas: str) -> Bool[ndarray, "n_atoms"]:
    assert structure.tags is not None
    n = len(structure)
    if atoms == "free":
        return np.ones(n, bool)
    if isinstance(atoms, str):
        chosen = structure.tags >= LOWEST_TAG[atoms]
        if not chosen.any():
            raise InputError(
                f"{structure.where}: no atom has tag {LOWEST_TAG[atoms]}, so it is not known which are the {atoms}; "
                f"give tags, or say --atoms free, or --atoms with their numbers (it is no gas molecule: {no_gas})"
            )
        return chosen
    if not atoms:
        raise InputError("atoms is an empty list; give numbers of atoms from 0, or adsorbate, surface or free")
    outside = [k for k in atoms if not -n <= k < n]
    if outside:
        raise InputError(f"{structure.where}: there is no atom {outside[0]} among {n}; --atoms counts from 0")
    chosen = np.zeros(n, bool)
    chosen[list(atoms)] = True
    return chosen


def _coordinates(
    structure: Structure, chosen: Bool[ndarray, "n_atoms"]
) -> tuple[Int[ndarray, "n_coordinates"], Float[ndarray, "n_coordinates 3"]]:
    """For each chosen atom unit vectors that span what is free: x, y and z if it is not held at all."""
    atoms, directions = np.zeros(0, np.int64), np.zeros((0, 3))
    for atom, projector in zip(np.flatnonzero(chosen), free_directions(structure)[chosen], strict=True):
        strength, vectors = np.linalg.eigh(projector)
        free = np.eye(3) if (strength > FREE).all() else vectors.T[strength > FREE]
        atoms = np.concatenate([atoms, np.full(len(free), atom)])
        directions = np.concatenate([directions, free])
    return atoms, directions
