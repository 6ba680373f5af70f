"""Relaxed structures that are the same: equal energies, and equal distances around every atom of the adsorbate.

Distances do not change when the surface lattice moves, turns or mirrors a structure into itself, so equivalent sites
and turns are found the same without knowing the symmetry of the slab.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import linear_sum_assignment

from equicat.data.images import nearest_distances
from equicat.data.structure import Structure

SAME_ENERGY = 0.02
"""eV."""
SAME_DISTANCE = 0.15
"""Å."""
NEAREST = 12
"""Distances to the nearest atoms of each element that are compared."""
FAR = 6.0
"""Å. Distances beyond this count as this."""


def representatives(
    structures: Sequence[Structure], energies: Sequence[float], n_slab: int, labels: Sequence[str]
) -> list[int]:
    """For each structure the number of the one that it is the same as; its own number if it is the first.

    Args:
        structures: relaxed; the order says which of several equal ones is the first.
        energies: eV.
        n_slab: atoms of the slab, which come first; the others are compared.
        labels: only structures with the same label are compared.
    """
    surroundings = [_surroundings(s, n_slab) for s in structures]
    firsts: list[int] = []
    found = []
    for k in range(len(structures)):
        same = (
            first
            for first in firsts
            if labels[first] == labels[k]
            and abs(energies[first] - energies[k]) < SAME_ENERGY
            and _alike(structures[first].numbers[n_slab:], surroundings[first], surroundings[k])
        )
        found.append(next(same, k))
        if found[-1] == k:
            firsts.append(k)
    return found


def _surroundings(structure: Structure, n_slab: int) -> Float[ndarray, "n_adsorbed n_distances"]:
    """Distances (Å) of each atom of the adsorbate to the nearest slab atoms and adsorbate atoms of each element."""
    adsorbate = structure.positions[n_slab:]
    distances = nearest_distances(adsorbate, structure.positions, structure.cell, structure.pbc).clip(max=FAR)
    of_slab = np.arange(len(structure)) < n_slab
    columns = []
    for part in (of_slab, ~of_slab):
        for z in np.unique(structure.numbers[part]):
            nearest = np.sort(distances[:, part & (structure.numbers == z)], axis=1)[:, :NEAREST]
            columns.append(nearest)
    return np.concatenate(columns, axis=1)


def _alike(numbers: ndarray, a: Float[ndarray, "n d"], b: Float[ndarray, "n d"]) -> bool:
    """Whether atoms of the same elements can be matched so that all their distances are the same."""
    apart = np.abs(a[:, None] - b).max(2)
    apart[numbers[:, None] != numbers] = 1e6
    rows, columns = linear_sum_assignment(apart**2)
    return bool(apart[rows, columns].max() < SAME_DISTANCE)
