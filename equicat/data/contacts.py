"""Adsorbates on surfaces: what touches what, which atoms hang together, and what to call them.

Distances are in sums of covalent radii, so that one number says for all elements how close two atoms are.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.formula import Formula
from ase.geometry import get_distances
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.sparse.csgraph import connected_components


def contact_ratios(
    numbers: Int[ndarray, "n_atoms"],
    positions: Float[ndarray, "n_atoms 3"],
    cell: Float[ndarray, "3 3"],
    pbc: Bool[ndarray, "3"],
    chosen: Bool[ndarray, "n_atoms"],
) -> Float[ndarray, "n_chosen n_atoms"]:
    """Distance (nearest image) of each chosen atom to every atom, in sums of their covalent radii; zero to itself."""
    # ASE may miss the nearest image where a vector that is not periodic leans; without it, ASE takes an upright one.
    _, distance = get_distances(positions[chosen], positions, cell=cell * pbc[:, None], pbc=pbc)
    return distance / (covalent_radii[numbers[chosen]][:, None] + covalent_radii[numbers])


def bonded_groups(ratios: Float[ndarray, "n_atoms n_atoms"], limit: float) -> Int[ndarray, "n_atoms"]:
    """Group of each atom, from 0: two atoms are in one if a chain of distances below ``limit`` links them."""
    return connected_components(ratios < limit, directed=False)[1].astype(np.int64)


def formula_of(numbers: Iterable[int]) -> str:
    """Formula in the Hill order: ``CH3O``, ``Cu3Pd``; of no atoms an empty string."""
    counts = Counter(chemical_symbols[z] for z in numbers)
    return Formula.from_dict(counts).format("hill") if counts else ""


def molecules_of(numbers: Int[ndarray, "n_atoms"], groups: Int[ndarray, "n_atoms"]) -> str:
    """The different molecules among the groups, in alphabetical order: ``O`` for two oxygen atoms apart, ``CO+O``."""
    return "+".join(sorted({formula_of(numbers[groups == group].tolist()) for group in set(groups.tolist())}))
