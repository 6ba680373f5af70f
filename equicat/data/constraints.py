"""Which atoms a file's constraints hold: wholly, or along one or two directions."""

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian, FixedLine, FixedPlane, FixScaled
from jaxtyping import Bool, Float
from numpy import ndarray

from equicat.errors import InputError

NONE_HELD = 1e-6
"""Largest eigenvalue, of a sum of projectors onto held directions, that is taken for zero."""

KNOWN = (FixAtoms, FixCartesian, FixScaled, FixedPlane, FixedLine)
"""Constraints that hold each atom by itself."""


def other_constraints(atoms: Atoms) -> tuple[str, ...]:
    """Names of the constraints that tie atoms to each other or act as forces, such as ``FixBondLengths``."""
    return tuple(sorted({type(c).__name__ for c in atoms.constraints if not isinstance(c, KNOWN)}))


def as_constraints(
    fixed: Bool[ndarray, "n_atoms"], free_directions: Float[ndarray, "n_atoms 3 3"] | None
) -> list[FixAtoms | FixCartesian | FixedLine | FixedPlane]:
    """ASE's constraints that hold the same; the inverse of :func:`held_atoms`.

    Args:
        fixed: the fixed atoms.
        free_directions: projectors onto the directions in which each atom may move.
    """
    found: list[FixAtoms | FixCartesian | FixedLine | FixedPlane] = [FixAtoms(mask=fixed)] if fixed.any() else []
    if free_directions is None:
        return found
    for atom, projector in enumerate(free_directions):
        strength, directions = np.linalg.eigh(projector)
        n_free = int((strength > 0.5).sum())
        if fixed[atom] or n_free == 3:
            continue
        if np.abs(projector - np.diag(np.diag(projector))).max() < NONE_HELD:
            found.append(FixCartesian([atom], mask=np.diag(projector) < 0.5))
        elif n_free == 1:
            found.append(FixedLine([atom], directions[:, 2]))
        else:
            found.append(FixedPlane([atom], directions[:, 0]))
    return found


def held_atoms(
    atoms: Atoms, source: str = "structure"
) -> tuple[Bool[ndarray, "n_atoms"], Float[ndarray, "n_atoms 3 3"] | None]:
    """Which atoms are fixed, and along which directions the others may move.

    Constraints that hold each atom by itself count: ``FixAtoms``, ``FixCartesian``, ``FixScaled`` (VASP's selective
    dynamics), ``FixedPlane`` and ``FixedLine``. An atom that several of them together hold in all three directions is
    fixed, however the file says it.

    Args:
        atoms: with its constraints.
        source: file and frame, for messages.

    Returns:
        The fixed atoms; and for each atom the orthogonal projector onto the directions in which it may move, or None if
        no atom is held along one or two directions only.

    Raises:
        InputError: if a constraint names an atom that is not there.
    """
    held = np.zeros((len(atoms), 3, 3))
    for constraint in atoms.constraints:
        if not isinstance(constraint, KNOWN):
            continue
        index = np.asarray(constraint.index)
        if len(index) and not -len(atoms) <= index.min() <= index.max() < len(atoms):
            raise InputError(
                f"{source}: a constraint holds atom {index.max()}, but there are {len(atoms)} atoms; correct it"
            )
        held[index] += np.eye(3) - _free_projector(constraint, atoms)
    if not held.any():
        return np.zeros(len(atoms), bool), None
    strength, directions = np.linalg.eigh(held)
    is_free = strength < NONE_HELD
    fixed = np.asarray(~is_free.any(axis=1))
    if (is_free.all(1) | fixed).all():
        return fixed, None
    free = directions * is_free[:, None, :]
    return fixed, free @ directions.transpose(0, 2, 1)


def _free_projector(
    constraint: FixAtoms | FixCartesian | FixScaled | FixedPlane | FixedLine, atoms: Atoms
) -> Float[ndarray, "3 3"]:
    """Projector onto the directions that one constraint leaves to an atom."""
    if isinstance(constraint, FixedPlane):
        return np.eye(3) - np.outer(constraint.dir, constraint.dir)
    if isinstance(constraint, FixedLine):
        return np.outer(constraint.dir, constraint.dir)
    if isinstance(constraint, FixAtoms):
        return np.zeros((3, 3))
    axes = np.eye(3) if isinstance(constraint, FixCartesian) else np.asarray(atoms.cell.complete())
    spanning = axes[~constraint.mask]
    return np.linalg.pinv(spanning) @ spanning
