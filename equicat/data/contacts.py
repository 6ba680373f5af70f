"""Adsorbates on surfaces: which atoms touch, which form a molecule, and what it is called.

Distances are in sums of covalent radii, so that one number says for all elements how close two atoms are.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from ase.formula import Formula
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.sparse.csgraph import connected_components

from equicat.data.images import nearest_distances
from equicat.errors import InputError

NONMETALS = frozenset({1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 33, 34, 35, 52, 53})
"""Atomic numbers that molecules are made of: H, B to F, Si to Cl, As to Br, Te, I. All others count as metals."""
BONDED_RATIO = 1.3
"""Two atoms of an adsorbate or molecule closer than this many sums of covalent radii are bonded."""

_ORDER = ("B", "Si", "As", "P", "N", "H", "Te", "Se", "S", "I", "Br", "Cl", "O", "F")
"""Order of nonmetals in a formula without carbon (IUPAC): NH3, H2O, SO2."""
_CUSTOMARY = {"HO": "OH", "HO2": "OOH", "HS": "SH", "HSe": "SeH", "NHO": "HNO", "CHN": "HCN"}
"""Formulas that everybody writes otherwise."""


def contact_ratios(
    numbers: Int[ndarray, "n_atoms"],
    positions: Float[ndarray, "n_atoms 3"],
    cell: Float[ndarray, "3 3"],
    pbc: Bool[ndarray, "3"],
    chosen: Bool[ndarray, "n_atoms"],
) -> Float[ndarray, "n_chosen n_atoms"]:
    """Distance (nearest image) of each chosen atom to every atom, in sums of their covalent radii; zero to itself."""
    distance = nearest_distances(positions[chosen], positions, cell, pbc)
    return distance / (covalent_radii[numbers[chosen]][:, None] + covalent_radii[numbers])


def bonded_groups(ratios: Float[ndarray, "n_atoms n_atoms"], limit: float) -> Int[ndarray, "n_atoms"]:
    """Group of each atom, from 0: two atoms are in one if a chain of distances below ``limit`` links them."""
    return connected_components(ratios < limit, directed=False)[1].astype(np.int64)


def formula_of(numbers: Iterable[int]) -> str:
    """The formula as chemists write it: ``OH``, ``NH3``, ``CH3O``, ``TiO2``, ``Cu12OH``; of no atoms an empty string.

    Metals come first, in alphabetical order. Nonmetals follow: with carbon in the Hill order (C, H, then the alphabet),
    without it in that of IUPAC, except for a few that everybody writes otherwise.
    """
    counts = Counter(chemical_symbols[z] for z in numbers)
    metals = sorted(symbol for symbol in counts if atomic_numbers[symbol] not in NONMETALS)
    others = sorted(counts.keys() - metals)
    order = ("C", "H", *others) if "C" in others else _ORDER
    rest = _written(sorted(others, key=order.index), counts)
    return _written(metals, counts) + _CUSTOMARY.get(rest, rest)


def _written(symbols: Iterable[str], counts: Mapping[str, int]) -> str:
    return "".join(f"{symbol}{counts[symbol] if counts[symbol] > 1 else ''}" for symbol in symbols)


def composition(formula: str, what: str) -> dict[int, int]:
    """Atoms of a formula, atomic number to count; ``*`` (an adsorbate's bond to the surface) is ignored.

    Args:
        formula: such as ``CO`` or ``*CH3O``.
        what: the thing it is the formula of, for the message.

    Raises:
        InputError: if it is no formula.
    """
    try:
        counts = Formula(formula.replace("*", "")).count()
        return {atomic_numbers[symbol]: n for symbol, n in counts.items()}
    except (ValueError, KeyError) as error:
        raise InputError(f"{what}: {formula!r} is no chemical formula; write such as CO, CH3O or H2O") from error


def molecules_of(numbers: Int[ndarray, "n_atoms"], groups: Int[ndarray, "n_atoms"]) -> str:
    """The different molecules among the groups, in alphabetical order: ``O`` for two oxygen atoms apart, ``CO+O``."""
    return "+".join(sorted({formula_of(numbers[groups == group].tolist()) for group in set(groups.tolist())}))
