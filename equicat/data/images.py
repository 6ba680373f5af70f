"""The periodic images of a vector: which one is the shortest, in any cell.

Everything rests on a *reduced* basis of the lattice, one whose vectors are as short as they can be (Minkowski; Nguyen
and Stehlé, ACM Trans. Algorithms 5, 46, 2009). There, rounding the coordinates of a vector finds a lattice point next
to the nearest one: a point of the Voronoi cell has coordinates smaller than 3/2, so no coordinate is off by more than
one.
"""

from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

TIE = 1e-9
"""Å; images whose lengths differ by less are equally long. The vector itself is then preferred to its images."""

ROWS_AT_A_TIME = 10_000
"""Vectors whose images are compared at a time; bounds the memory."""


def minimum_image(
    vectors: Float[ndarray, "n 3"], cell: Float[ndarray, "3 3"], pbc: Bool[ndarray, "3"]
) -> Float[ndarray, "n 3"]:
    """The shortest of all periodic images of each vector (Å), for any cell and any mix of periodic directions.

    What becomes of a vector does not depend on the others in the call.

    Args:
        vectors: Å.
        cell: rows are the lattice vectors, Å.
        pbc: only along these directions are there images.
    """
    if not pbc.any():
        return vectors
    # Every lattice vector is at least as long as the distance of two lattice planes is, so what is shorter than half
    # of that has no shorter image. This spares nearly all displacements of a relaxation the search.
    distances_of_planes = 1 / np.linalg.norm(np.linalg.pinv(cell[pbc]), axis=0)
    far = np.linalg.norm(vectors, axis=1) >= 0.5 * distances_of_planes.min()
    result = vectors.copy()
    if far.any():
        basis, _ = reduced_basis(cell[pbc])
        result[far] += _combined(_shortening(vectors[far], basis), basis)
    return result


def nearest_distances(
    first: Float[ndarray, "n 3"], second: Float[ndarray, "m 3"], cell: Float[ndarray, "3 3"], pbc: Bool[ndarray, "3"]
) -> Float[ndarray, "n m"]:
    """Distance (Å) of each point of ``first`` to the nearest image of each point of ``second``."""
    vectors = (second - first[:, None]).reshape(-1, 3)
    return np.linalg.norm(minimum_image(vectors, cell, pbc), axis=1).reshape(len(first), len(second))


def nearest_image(
    vectors: Float[ndarray, "n 3"], cell: Float[ndarray, "3 3"], pbc: Bool[ndarray, "3"]
) -> tuple[Int[ndarray, "n 3"], Float[ndarray, "n"]]:
    """Lattice vectors that make each vector as short as it can be, and how clear the choice is.

    Args:
        vectors: Å.
        cell: rows are the lattice vectors, Å.
        pbc: along the other directions nothing is moved.

    Returns:
        Integers s [n, 3], such that ``vectors + s @ cell`` is shortest, and by how much (Å) the second shortest image
        is longer, infinity without periodic directions.
    """
    shifts = np.zeros(vectors.shape, np.int64)
    if not pbc.any():
        return shifts, np.full(len(vectors), np.inf)
    basis, combination = reduced_basis(cell[pbc])
    coefficients = _shortening(vectors, basis)
    # The second nearest lattice point is a neighbour of the nearest in the sense of Voronoi, and in a reduced basis
    # the coordinates of these neighbours are -1, 0 or 1.
    around = _combined(_steps(len(basis)), basis)
    lead = np.empty(len(vectors))
    for rows in _parts(len(vectors)):
        shortest = vectors[rows] + _combined(coefficients[rows], basis)
        first, second = np.partition(np.linalg.norm(shortest[:, None] + around, axis=2), 1, axis=1)[:, :2].T
        lead[rows] = second - first
    shifts[:, pbc] = coefficients @ combination
    return shifts, lead


def reduced_basis(vectors: Float[ndarray, "k 3"]) -> tuple[Float[ndarray, "k 3"], Int[ndarray, "k k"]]:
    """The shortest basis of the same lattice, in ascending order of lengths.

    Args:
        vectors: none to three linearly independent ones, Å.

    Returns:
        The basis, and the integers H of determinant ±1 for which it is ``H @ vectors``.
    """
    combination = np.eye(len(vectors), dtype=np.int64)
    basis = vectors
    while len(vectors) > 0:
        order = np.argsort(np.linalg.norm(basis, axis=1), kind="stable")
        combination = combination[order]
        if len(vectors) == 3:
            combination[:2] = reduced_basis(combination[:2] @ vectors)[1] @ combination[:2]
        basis = combination @ vectors
        if len(vectors) == 1:
            break
        # The longest vector is replaced by the shortest one that differs from it by a vector of the others' lattice.
        change = _shortening(basis[-1:], basis[:-1])[0]
        shortened = basis[-1] + change @ basis[:-1]
        if np.linalg.norm(shortened) >= (1 - 1e-12) * np.linalg.norm(basis[-1]):
            break
        combination[-1] += change @ combination[:-1]
        basis = combination @ vectors
    return basis, combination


def _shortening(vectors: Float[ndarray, "n 3"], basis: Float[ndarray, "k 3"]) -> Int[ndarray, "n k"]:
    """Coefficients of the lattice vector to add to each vector to make it shortest; ``basis`` is reduced.

    Of equally short images the vector itself is taken, else the first in the order of the coefficients: this does not
    depend on how rounding errors fall.
    """
    coefficients = -np.rint(vectors @ np.linalg.pinv(basis)).astype(np.int64)
    steps = _steps(len(basis))
    around = _combined(steps, basis)
    for rows in _parts(len(vectors)):
        images = (vectors[rows] + _combined(coefficients[rows], basis))[:, None] + around
        own, lengths = np.linalg.norm(vectors[rows], axis=1), np.linalg.norm(images, axis=2)
        longest = lengths.min(1) + TIE + 1e-12 * own
        first = (lengths <= longest[:, None]).argmax(1)
        coefficients[rows] = np.where((own <= longest)[:, None], 0, coefficients[rows] + steps[first])
    return coefficients


def _steps(k: int) -> Int[ndarray, "n k"]:
    """A lattice point and all around it, in ascending order of their k coordinates."""
    return np.array(list(product((-1, 0, 1), repeat=k)), dtype=np.int64)


def _parts(n: int) -> list[slice]:
    """Consecutive rows, few enough for all their images to be in memory."""
    return [slice(start, start + ROWS_AT_A_TIME) for start in range(0, n, ROWS_AT_A_TIME)]


def _combined(coefficients: Int[ndarray, "n k"], basis: Float[ndarray, "k 3"]) -> Float[ndarray, "n 3"]:
    """``coefficients @ basis``, each row on its own: a matrix product may round a row as its neighbours have it."""
    return sum((coefficients[:, i, None] * row for i, row in enumerate(basis)), np.zeros((len(coefficients), 3)))
