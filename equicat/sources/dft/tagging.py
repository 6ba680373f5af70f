"""Tags of atoms: fixed ones, those of the adsorbate, those of the surface; and how they were found."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from equicat.data.contacts import (
    BONDED_RATIO,
    NONMETALS,
    bonded_groups,
    composition,
    contact_ratios,
    formula_of,
    molecules_of,
)
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.sources.dft.vacuum import NoVacuum, UnclearAdsorbate, heights, is_surrounded_by_vacuum

SURFACE_DEPTH = 2.0
"""Å. Where the constraint does not divide the slab, its atoms down to this below the highest are the surface."""
SAME_HEIGHT = 0.3
"""Å. Atoms of one element closer in height than this are equally likely to be the adsorbate."""
UNMOVED = 1e-4
"""Å. An atom that stays within this through a relaxation in which others move is taken to be held."""
FIXED_MOVES = 0.05
"""Å. A fixed atom that moves further contradicts its constraint."""


class NoAdsorbate(UnclearAdsorbate):
    """No atom can be an adsorbate: the structure may be a clean slab."""


@dataclass(frozen=True)
class Tagging:
    """Tags of a system and where they come from."""

    tags: Int[ndarray, "n_atoms"]
    """0 subsurface, 1 surface, 2 adsorbate."""
    adsorbate: str
    """The given name, or the formulas of the different molecules: ``CO``, ``CO+O``; empty without one."""
    method: str
    """How the tags were found, in words for the report."""


def fixed_atoms(
    structure: Structure, positions: Float[ndarray, "n_frames n_atoms 3"], infer: bool
) -> tuple[Bool[ndarray, "n_atoms"], str]:
    """The fixed atoms, and how they were found.

    Args:
        structure: the first frame of a relaxation.
        positions: of all its frames (Å), without jumps.
        infer: without a constraint, take atoms that never move while others do.

    Raises:
        InputError: if a fixed atom moves.
    """
    fixed = np.array(structure.fixed)
    in_part = structure.free_directions is not None
    moves = np.linalg.norm(positions - positions[0], axis=2).max(0)
    if fixed.any():
        held = np.where(fixed, moves, 0.0)
        if held.max() > FIXED_MOVES:
            raise InputError(
                f"{structure.where}: atom {held.argmax()} is fixed but moves {held.max():.2f} Å along the trajectory; "
                "correct the constraint"
            )
        return fixed, "constraint, which holds others in part" if in_part else "constraint"
    if in_part:
        return fixed, "none: the constraint holds atoms in part only"
    if infer and moves.max() > 100 * UNMOVED:
        unmoved = moves < UNMOVED
        return unmoved, "atoms that never move" if unmoved.any() else "none: every atom moves"
    return fixed, "none: no constraint"


def tag_atoms(structure: Structure, fixed: Bool[ndarray, "n_atoms"], name: str = "", trust: bool = True) -> Tagging:
    """Tags from the structure's own tags, else from the adsorbate's formula, else from elements and bonds.

    Args:
        structure: the initial structure.
        fixed: which atoms do not move; they are never the adsorbate.
        name: formula of the adsorbate, or of one of several equal ones; empty if unknown.
        trust: use the structure's own tags if it has some.

    Raises:
        NoAdsorbate: if no atom can be one.
        UnclearAdsorbate: if several choices are equally good, or there is no surface.
        InputError: if what is given contradicts itself: an adsorbate atom is fixed, or tags and formula differ.
    """
    counts = composition(name, "the adsorbate")
    tags = structure.tags
    assert tags is not None
    surface_given = False
    if trust and tags.max() == 2 and tags.min() >= 0:
        adsorbate, method = tags == 2, "tags in the file"
        surface_given = bool((tags == 1).any())
    elif trust and tags.max() > 2 and tags.min() == 0:
        # How ase.build numbers the layers of a slab, from 1 at the top.
        adsorbate, method = tags == 0, "layer tags of ase.build: 0 is the adsorbate"
    elif counts and not (NONMETALS | set(counts)) & set(structure.numbers.tolist()):
        raise NoAdsorbate(f"{structure.where}: no adsorbate found: metals only, none of the atoms of {name}")
    elif counts:
        adsorbate, method = _by_formula(structure, fixed, counts), f"adsorbate formula {name}"
    else:
        adsorbate, method = _by_element(structure, fixed), "elements that the slab does not have"
    _check(structure, adsorbate, fixed, counts, name)
    if surface_given:
        surface = tags == 1
    else:
        surface, how = _surface(structure, adsorbate, fixed)
        method += f"; surface: {how}"
    ratios = contact_ratios(structure.numbers, structure.positions, structure.cell, structure.pbc, adsorbate)
    molecules = molecules_of(structure.numbers[adsorbate], bonded_groups(ratios[:, adsorbate], BONDED_RATIO))
    return Tagging(np.where(adsorbate, 2, surface.astype(np.int64)), name or molecules, method)


def is_molecule(structure: Structure) -> bool:
    """Whether the structure is one molecule in empty space: nonmetals, all bonded, no tags that speak of a slab."""
    assert structure.tags is not None
    tagged = structure.tags == 2
    if not np.isin(structure.numbers, list(NONMETALS)).all() or (tagged.any() and not tagged.all()):
        return False
    if not is_surrounded_by_vacuum(structure):
        return False
    everything = np.ones(len(structure), bool)
    ratios = contact_ratios(structure.numbers, structure.positions, structure.cell, structure.pbc, everything)
    return bool(bonded_groups(ratios, BONDED_RATIO).max() == 0)


def slab_only(structure: Structure, fixed: Bool[ndarray, "n_atoms"]) -> Int[ndarray, "n_atoms"]:
    """Tags of a slab without adsorbate.

    Raises:
        NoVacuum: if there is no surface.
    """
    return _surface(structure, np.zeros(len(structure), bool), fixed)[0].astype(np.int64)


def _check(
    structure: Structure,
    adsorbate: Bool[ndarray, "n_atoms"],
    fixed: Bool[ndarray, "n_atoms"],
    counts: dict[int, int],
    name: str,
) -> None:
    held = np.flatnonzero(adsorbate & fixed)
    given = structure.tags is not None and structure.tags.any()
    layers = " (ase.build numbers layers from the top; --trust_tags false ignores such tags)"
    if len(held):
        raise InputError(
            f"{structure.where}: adsorbate atom {held[0]} ({chemical_symbols[structure.numbers[held[0]]]}) is fixed; "
            f"correct the tags or the constraint{layers if given else ''}"
        )
    if adsorbate.all():
        raise InputError(f"{structure.where}: every atom is tagged as adsorbate, there is no slab; correct the tags")
    if _is_below(structure, adsorbate, fixed):
        raise InputError(
            f"{structure.where}: the adsorbate lies below every other atom; correct the tags{layers if given else ''}"
        )
    found = Counter(structure.numbers[adsorbate].tolist())
    if counts:
        n = found[next(iter(counts))] // next(iter(counts.values()))
        if n == 0 or found != Counter({z: n * count for z, count in counts.items()}):
            raise InputError(
                f"{structure.where}: the atoms tagged as adsorbate are {formula_of(found.elements())}, "
                f"the adsorbate is given as {name}; correct one of them"
            )


def _is_below(structure: Structure, adsorbate: Bool[ndarray, "n_atoms"], fixed: Bool[ndarray, "n_atoms"]) -> bool:
    try:
        height = heights(structure, fixed)
    except NoVacuum:
        return False
    return bool(height[adsorbate].max() < height[~adsorbate].min())


def _by_element(structure: Structure, fixed: Bool[ndarray, "n_atoms"]) -> Bool[ndarray, "n_atoms"]:
    """Free nonmetals that do not occur in the slab.

    Raises:
        UnclearAdsorbate: if there are none, or one is bonded to a free nonmetal of the slab (which may be part of it).
    """
    of_slab = slab_elements(structure, fixed)
    nonmetal = np.isin(structure.numbers, list(NONMETALS))
    adsorbate = nonmetal & ~np.isin(structure.numbers, list(of_slab))
    if not adsorbate.any():
        raise NoAdsorbate(
            f"{structure.where}: no adsorbate found: no nonmetal that the slab does not have (slab: "
            f"{', '.join(chemical_symbols[z] for z in sorted(of_slab))}); give tags or the adsorbate's formula"
        )
    ratios = contact_ratios(structure.numbers, structure.positions, structure.cell, structure.pbc, adsorbate)
    doubtful = np.flatnonzero(nonmetal & ~adsorbate & ~fixed & (ratios < BONDED_RATIO).any(0))
    if len(doubtful):
        raise UnclearAdsorbate(
            f"{structure.where}: atom {doubtful[0]} ({chemical_symbols[structure.numbers[doubtful[0]]]}) is bonded to "
            "the adsorbate and may belong to it or to the slab; give tags or the adsorbate's formula"
        )
    return adsorbate


def _by_formula(
    structure: Structure, fixed: Bool[ndarray, "n_atoms"], counts: dict[int, int]
) -> Bool[ndarray, "n_atoms"]:
    """Atoms that make up one or several of the adsorbate.

    Certain are all atoms of the elements that the slab does not have. Of elements that it has too, those come next that
    are bonded most closely to atoms found before; without certain ones, the highest.

    Raises:
        UnclearAdsorbate: if there are not enough such atoms, or the choice is not clear.
    """
    numbers = structure.numbers
    of_slab = slab_elements(structure, fixed)
    certain = {z: int((numbers == z).sum()) for z in counts if z not in of_slab}
    multiples = {found / counts[z] for z, found in certain.items()} or {1.0}
    n_adsorbates = int(min(multiples))
    if n_adsorbates < 1 or multiples != {n_adsorbates}:
        found = formula_of(Counter(certain).elements()) or "none of its atoms"
        raise UnclearAdsorbate(
            f"{structure.where}: found {found} beside the slab, which is no multiple of the adsorbate "
            f"{formula_of(Counter(counts).elements())}; give tags"
        )
    adsorbate = np.isin(numbers, list(certain))
    height = heights(structure, fixed)
    for z in (z for z in counts if z in of_slab):
        for _ in range(n_adsorbates * counts[z]):
            candidates = np.flatnonzero((numbers == z) & ~fixed & ~adsorbate)
            if not len(candidates):
                raise UnclearAdsorbate(f"{structure.where}: not enough free {chemical_symbols[z]} for the adsorbate")
            rank = -height
            if certain:
                rank = contact_ratios(numbers, structure.positions, structure.cell, structure.pbc, adsorbate).min(0)
            adsorbate[candidates[rank[candidates].argmin()]] = True
        chosen, rest = ((numbers == z) & ~fixed & (adsorbate == of_it) for of_it in (True, False))
        if not certain and rest.any() and height[chosen].min() - height[rest].max() < SAME_HEIGHT:
            raise UnclearAdsorbate(
                f"{structure.where}: which {chemical_symbols[z]} atoms are the adsorbate is not clear: others lie as "
                "high; give tags"
            )
    return adsorbate


def slab_elements(structure: Structure, fixed: Bool[ndarray, "n_atoms"]) -> set[int]:
    """Elements that the slab has for sure: all metals, and what is among its fixed atoms, or in its lower half."""
    metals = set(structure.numbers.tolist()) - NONMETALS
    if fixed.any():
        return metals | set(structure.numbers[fixed].tolist())
    height = heights(structure, fixed)
    return metals | set(structure.numbers[height < height.max() / 2].tolist())


def _surface(
    structure: Structure, adsorbate: Bool[ndarray, "n_atoms"], fixed: Bool[ndarray, "n_atoms"]
) -> tuple[Bool[ndarray, "n_atoms"], str]:
    """Slab atoms that are the surface: the free ones, as in OC20, or the highest."""
    slab = ~adsorbate
    if (slab & fixed).any() and (slab & ~fixed).any():
        return slab & ~fixed, "free slab atoms"
    height = heights(structure, fixed)
    return slab & (height > height[slab].max() - SURFACE_DEPTH), f"highest {SURFACE_DEPTH:g} Å of the slab"
