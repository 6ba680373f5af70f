"""Undo the jumps of atoms by whole lattice vectors between the frames of a trajectory."""

from dataclasses import dataclass

import numpy as np
from ase.geometry import complete_cell
from jaxtyping import Bool, Float
from numpy import ndarray

from equicat.data.images import nearest_image

AMBIGUITY = 0.5
"""Å. A step is ambiguous if the second shortest image is less than this longer than the shortest: who moves half a
lattice vector may have gone either way."""


@dataclass(frozen=True)
class Unwrapped:
    """A trajectory without jumps."""

    positions: Float[ndarray, "n_frames n_atoms 3"]
    """Å; the first frame is as it was, the others differ from what they were by whole lattice vectors."""
    n_jumps: int
    """Steps of an atom from one frame to the next that lattice vectors were removed from."""
    ambiguous: list[tuple[int, int]]
    """Frame and atom where the nearest image is not clear (see :data:`AMBIGUITY`)."""
    before: float
    """Largest distance (Å) of an atom from its place in the first frame, as the positions were."""
    after: float
    """Largest distance (Å) of an atom from its place in the first frame, without jumps."""


def unwrap(
    positions: Float[ndarray, "n_frames n_atoms 3"],
    cells: Float[ndarray, "n_frames 3 3"],
    pbc: Bool[ndarray, "3"],
) -> Unwrapped:
    """Make every step from frame to frame the shortest of its periodic images.

    Steps are taken from frame to frame, not from the first frame: a relaxation may take an atom further than half a
    lattice vector, but not in one step. Where the cell changes, a step is what is left when the atom is carried along.
    """
    unwrapped = positions.copy()
    shift = np.zeros(positions.shape[1:], np.int64)
    n_jumps, ambiguous = 0, []
    for k in range(1, len(positions)):
        step = positions[k] - positions[k - 1]
        if not np.array_equal(cells[k], cells[k - 1]):
            # The atom's place in the previous frame, carried along with the cell.
            before, now = complete_cell(cells[k - 1]), complete_cell(cells[k])
            step = positions[k] - np.linalg.solve(before.T, positions[k - 1].T).T @ now
        jump, margin = nearest_image(step, cells[k], pbc)
        shift += jump
        n_jumps += int(jump.any(1).sum())
        ambiguous += [(k, int(atom)) for atom in np.flatnonzero(margin < AMBIGUITY)]
        unwrapped[k] = positions[k] + shift @ cells[k]
    return Unwrapped(unwrapped, n_jumps, ambiguous, largest_move(positions), largest_move(unwrapped))


def largest_move(positions: Float[ndarray, "n_frames n_atoms 3"]) -> float:
    """Largest distance (Å) of an atom from its place in the first frame."""
    return float(np.linalg.norm(positions - positions[0], axis=2).max())
