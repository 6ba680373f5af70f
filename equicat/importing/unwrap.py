"""Undo the jumps of atoms by whole lattice vectors between the frames of a trajectory."""

from dataclasses import dataclass

import numpy as np
from ase.geometry import complete_cell, minkowski_reduce
from jaxtyping import Bool, Float, Int
from numpy import ndarray

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
    """The same without jumps."""


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


def nearest_image(
    vectors: Float[ndarray, "n 3"], cell: Float[ndarray, "3 3"], pbc: Bool[ndarray, "3"]
) -> tuple[Int[ndarray, "n 3"], Float[ndarray, "n"]]:
    """Lattice vectors that make each vector as short as it can be, also in a very skewed cell.

    Args:
        vectors: Å.
        cell: rows are the lattice vectors.
        pbc: along the others nothing is moved.

    Returns:
        Integers s, such that ``vectors + s @ cell`` is shortest, and by how much (Å) the next image is longer.
    """
    if not pbc.any():
        return np.zeros(vectors.shape, np.int64), np.full(len(vectors), np.inf)
    # A direction that is not periodic is made perpendicular to those that are: it has no say in what is nearest.
    reduced, combination = minkowski_reduce(complete_cell(cell * pbc[:, None]), pbc)
    nearest = -np.round(np.linalg.solve(reduced.T, vectors.T).T) * pbc
    # In a reduced cell the shortest image is next to the one that rounding finds.
    around = np.stack(np.meshgrid(*(np.arange(-int(p), int(p) + 1) for p in pbc), indexing="ij"), -1).reshape(-1, 3)
    shifts = nearest[:, None] + around
    lengths = np.linalg.norm(vectors[:, None] + shifts @ reduced, axis=2)
    # Of images of the same length the one that was there: a vector that is shortest already is not touched.
    lengths_with_preference = lengths - 1e-9 * (shifts == 0).all(2)
    best = lengths_with_preference.argmin(1)
    rows = np.arange(len(vectors))
    shortest = lengths[rows, best]
    lengths[rows, best] = np.inf
    integers = (shifts[rows, best] @ combination).round().astype(np.int64)
    return integers, lengths.min(1) - shortest
