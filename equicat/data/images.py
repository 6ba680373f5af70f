"""The nearest periodic image of a vector."""

import numpy as np
from ase.geometry import complete_cell, find_mic, minkowski_reduce
from jaxtyping import Bool, Float, Int
from numpy import ndarray


def minimum_image(
    vectors: Float[ndarray, "n 3"], cell: Float[ndarray, "3 3"], pbc: Bool[ndarray, "3"]
) -> Float[ndarray, "n 3"]:
    """The shortest of all periodic images of each vector, for any cell, skewed ones included."""
    if not pbc.any():
        return vectors
    if pbc.sum() == 1:  # ASE 3.29 gets this case wrong when the vector is not along an axis
        (a,) = cell[pbc]
        return vectors - np.round(vectors @ a / (a @ a))[:, None] * a
    # What is shorter than half the distance of neighbouring lattice planes has no shorter image; the rest is searched.
    lattice = np.where(pbc[:, None], cell, 0.0)
    heights = 1 / np.linalg.norm(np.linalg.pinv(lattice)[:, pbc], axis=0)
    far = np.linalg.norm(vectors, axis=1) >= 0.5 * heights.min()
    result = vectors.copy()
    if far.any():
        result[far] = find_mic(vectors[far], cell, pbc)[0]
    return result


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
