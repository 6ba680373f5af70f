"""Triplets found from positions and cell alone: loops over atoms and images, no neighbour list."""

import itertools

import numpy as np

from equicat.data.structure import Structure

Edge = tuple[int, int, tuple[int, int, int]]
"""Centre i, neighbour j, image of j."""


def images(structure: Structure, cutoff: float) -> list[tuple[int, int, int]]:
    """All cells that could hold a neighbour of an atom, wherever in space the atoms are."""
    if not structure.pbc.any():
        return [(0, 0, 0)]
    heights = 1 / np.linalg.norm(np.linalg.inv(structure.cell), axis=0)
    spread = np.ptp(structure.positions, axis=0)
    reach = np.ceil((cutoff + np.linalg.norm(spread)) / heights).astype(int) * structure.pbc
    return list(itertools.product(*[range(-k, k + 1) for k in reach]))


def edges(structure: Structure, cutoff: float) -> list[Edge]:
    """All ordered pairs nearer than the cutoff, images of the atom itself included."""
    return [
        (i, j, n)
        for i, j in itertools.product(range(len(structure)), repeat=2)
        for n in images(structure, cutoff)
        if (i != j or any(n)) and np.linalg.norm(vector(structure, (i, j, n))) < cutoff
    ]


def vector(structure: Structure, edge: Edge) -> np.ndarray:
    i, j, n = edge
    return structure.positions[j] + n @ structure.cell - structure.positions[i]


def triplets(structure: Structure, cutoff: float) -> list[tuple[Edge, Edge]]:
    """All k → j → i as (edge of i to j, edge of j to k), without those where k is i itself; an image of i is no i."""
    found = edges(structure, cutoff)
    return [
        (ij, jk)
        for ij, jk in itertools.product(found, repeat=2)
        if ij[1] == jk[0] and not (jk[1] == ij[0] and tuple(np.add(ij[2], jk[2])) == (0, 0, 0))
    ]
