"""Molecules of a gas: whether a structure is one, in one piece; its shape, symmetry number and spin."""

import dataclasses
from itertools import product
from typing import Literal

import numpy as np
from ase.data import covalent_radii
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from equicat.data.contacts import BONDED_RATIO, NONMETALS, formula_of
from equicat.data.neighbors import neighbor_list
from equicat.data.structure import Structure
from equicat.errors import InputError

Geometry = Literal["monatomic", "linear", "nonlinear"]
"""Shape of a molecule, as ASE calls it."""
STRAIGHT, BENT = 0.03, 0.15
"""Å. A molecule is linear if no atom is further from its axis than the first, nonlinear if one is further than the
second; between the two nobody can tell."""
SAME, ALIKE = 0.05, 0.2
"""Å. Positions after a rotation that leaves a molecule as it is are that near to the old ones: strictly and loosely."""

SPINS = {"C": 1.0, "N": 1.5, "O": 1.0, "S": 1.0, "Si": 1.0, "P": 1.5, "O2": 1.0, "S2": 1.0, "SO": 1.0, "NH": 1.0}
SPINS |= {"CH2": 1.0}
"""Total spins of ground states that are not those of the lowest possible spin (NIST WebBook; Herzberg)."""


def why_no_gas(structure: Structure) -> str:
    """Why a structure is not taken for a gas molecule by itself, or an empty string."""
    assert structure.fixed is not None
    assert structure.tags is not None
    if not set(structure.numbers.tolist()) <= NONMETALS:
        return "it has metal atoms"
    if structure.fixed.any() or structure.free_directions is not None:
        return "some atoms are held"
    if len(set(structure.tags.tolist())) > 1:
        return "its tags differ"
    return _open_pieces(structure)[1]


def as_molecule(structure: Structure) -> Structure:
    """The molecule in one piece and in open space: without a cell.

    Raises:
        InputError: if the structure is not one molecule that could fly on its own, with all its atoms free.
    """
    assert structure.fixed is not None
    positions, reason = _open_pieces(structure)
    if not reason and (structure.fixed.any() or structure.free_directions is not None):
        reason = "some of its atoms are held; take the constraints away"
    if reason:
        raise InputError(f"{structure.where}: cannot be a gas molecule: {reason}")
    return dataclasses.replace(
        structure, positions=positions, cell=np.zeros((3, 3)), pbc=np.zeros(3, bool), stress=None
    )


def _open_pieces(structure: Structure) -> tuple[Float[ndarray, "n_atoms 3"], str]:
    """Positions (Å) with all bonded atoms side by side, and what keeps the structure from being one molecule."""
    n, radii = len(structure), covalent_radii[structure.numbers]
    (i, j), shift = neighbor_list(structure, 2 * BONDED_RATIO * float(radii.max()))
    vectors = structure.positions[j] + shift @ structure.cell - structure.positions[i]
    bonded = np.linalg.norm(vectors, axis=1) < BONDED_RATIO * (radii[i] + radii[j])
    i, j, shift = i[bonded], j[bonded], shift[bonded].astype(np.int64)
    graph = coo_array((np.ones(len(i)), (i, j)), shape=(n, n)).tocsr()
    pieces, _ = connected_components(graph, directed=False)
    if pieces > 1:
        return structure.positions, f"its atoms are {pieces} molecules or pieces"
    first = {(a, b): s for a, b, s in zip(i.tolist(), j.tolist(), shift, strict=True)}
    order, before = breadth_first_order(graph, 0, directed=False)
    image = np.zeros((n, 3), np.int64)
    for atom in order[1:].tolist():
        image[atom] = image[before[atom]] + first[int(before[atom]), atom]
    if (image[j] != image[i] + shift).any():
        return structure.positions, "it is bonded to its own periodic image"
    return structure.positions + image @ structure.cell, ""


def geometry_of(molecule: Structure, if_unclear: Literal["auto", "linear", "nonlinear"] = "auto") -> Geometry:
    """The shape of a molecule.

    Args:
        molecule: in one piece.
        if_unclear: what it is if it is neither straight nor bent; ``auto`` refuses it.

    Raises:
        InputError: if that is not clear.
    """
    if len(molecule) == 1:
        return "monatomic"
    centred = molecule.positions - molecule.positions.mean(0)
    axis = np.linalg.svd(centred)[2][0]
    off = float(np.linalg.norm(centred - np.outer(centred @ axis, axis), axis=1).max())
    if STRAIGHT < off < BENT and if_unclear != "auto":
        return if_unclear
    if STRAIGHT < off < BENT:
        raise InputError(
            f"{molecule.where}: cannot tell whether {formula_of(molecule.numbers.tolist())} is linear, an atom is "
            f"{off:.2f} Å off its axis; relax it, or say --geometry linear or nonlinear"
        )
    return "linear" if off <= STRAIGHT else "nonlinear"


def external_motions(
    masses: Float[ndarray, "n_atoms"], positions: Float[ndarray, "n_atoms 3"], geometry: Geometry
) -> Float[ndarray, "n_motions n_coordinates"]:
    """Translations and rotations of a molecule as a whole, orthonormal in mass-weighted coordinates.

    Three and three; of a linear molecule two rotations, of an atom none. (Wilson, Decius and Cross, Molecular
    Vibrations, 1955, section 2-2.)
    """
    weights = np.sqrt(masses)[:, None]
    arms = positions - masses @ positions / masses.sum()
    translations = [(weights * axis).ravel() / np.sqrt(masses.sum()) for axis in np.eye(3)]
    turns = np.array([(weights * np.cross(axis, arms)).ravel() for axis in np.eye(3)])
    n_turns = {"monatomic": 0, "linear": 2, "nonlinear": 3}[geometry]
    return np.array([*translations, *np.linalg.svd(turns, full_matrices=False)[2][:n_turns]])


def symmetry_number(molecule: Structure, geometry: Geometry) -> int:
    """Number of rotations that turn the molecule into itself.

    Raises:
        InputError: if a slightly distorted molecule has more of them the less strictly one looks.
    """
    strict, loose = (n_rotations(molecule.numbers, molecule.positions, geometry, limit) for limit in (SAME, ALIKE))
    if strict != loose:
        name = formula_of(molecule.numbers.tolist())
        raise InputError(
            f"{molecule.where}: the symmetry number of {name} is not clear, {strict} rotations fit within {SAME} Å and "
            f"{loose} within {ALIKE} Å; relax it, or say --symmetry_numbers '{{{name}: {loose}}}'"
        )
    return strict


def n_rotations(
    numbers: Int[ndarray, "n_atoms"], positions: Float[ndarray, "n_atoms 3"], geometry: Geometry, limit: float
) -> int:
    """Number of rotations after which each atom has one of its kind within ``limit`` (Å); of a linear molecule, those
    across its axis and the identity."""
    arms = positions - positions.mean(0)
    if geometry == "monatomic":
        return 1
    if geometry == "linear":
        return 1 + int(_fits(numbers, arms, -np.eye(3), limit))  # a half turn does to a line as the inversion does
    lengths = np.linalg.norm(arms, axis=1)
    first = int(lengths.argmax())
    second = int(np.linalg.norm(np.cross(arms, arms[first]), axis=1).argmax())
    angle = arms[first] @ arms[second]
    found: list[ndarray] = []
    alike = [_like(numbers, lengths, atom, limit) for atom in (first, second)]
    for a, b in product(*(np.flatnonzero(mask) for mask in alike)):
        on_a_line = np.linalg.norm(np.cross(arms[a], arms[b])) < 1e-6
        if on_a_line or abs(arms[a] @ arms[b] - angle) > 2 * limit * lengths[first]:
            continue
        turn = _frame(arms[first], arms[second]).T @ _frame(arms[a], arms[b])
        if _fits(numbers, arms, turn, limit) and all(np.trace(turn @ other.T) < 2.9 for other in found):
            found.append(turn)
    return len(found)


def _like(
    numbers: Int[ndarray, "n_atoms"], lengths: Float[ndarray, "n_atoms"], atom: int, limit: float
) -> Bool[ndarray, "n_atoms"]:
    return (numbers == numbers[atom]) & (np.abs(lengths - lengths[atom]) < limit)


def _frame(a: Float[ndarray, "3"], b: Float[ndarray, "3"]) -> Float[ndarray, "3 3"]:
    """Orthonormal rows: along ``a``, across it towards ``b``, and across both."""
    x = a / np.linalg.norm(a)
    z = np.cross(x, b)
    z /= np.linalg.norm(z)
    return np.stack([x, np.cross(z, x), z])


def _fits(
    numbers: Int[ndarray, "n_atoms"], arms: Float[ndarray, "n_atoms 3"], turn: Float[ndarray, "3 3"], limit: float
) -> bool:
    distances = np.linalg.norm((arms @ turn)[:, None] - arms, axis=2)
    distances[numbers[:, None] != numbers] = np.inf
    return bool(distances.min(1).max() < limit)


def spin_of(molecule: Structure) -> float:
    """Total spin of the ground state: 0 for paired electrons, 0.5 for one that is unpaired, 1 for a triplet.

    Raises:
        InputError: for a molecule with metal atoms, of which no rule is known.
    """
    name = formula_of(molecule.numbers.tolist())
    if name in SPINS:
        return SPINS[name]
    if not set(molecule.numbers.tolist()) <= NONMETALS:
        raise InputError(f"{molecule.where}: the spin of {name} is not known; say --spins '{{{name}: 0}}'")
    return 0.5 * (int(molecule.numbers.sum()) % 2)
