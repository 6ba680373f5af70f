"""Flags of relaxed systems, for what does not belong to a plain relaxation, by the rules of all data sources.

Where a reference calculation has relaxed the same system, :func:`class_of` compares the two.
"""

import dataclasses
from typing import Literal

import numpy as np

from equicat.data.structure import Structure
from equicat.relaxation.driver import Outcome
from equicat.sources.dft.rules import Rules, judge

NAMES = {"reconstructed": "surface_changed"}
"""Flags that have another name than the rule that raises them."""
NO_FLAGS = ("exploded", "unconverged", "cell_changed", "migrated")
"""Rules that are not asked: the loop itself says what exploded, ``converged`` has its own column, the cell is never
changed, and an initial structure is no reference that an adsorbate migrates from."""

Class = Literal["normal", "migrated", "anomaly"]
CLASSES: tuple[Class, ...] = ("normal", "migrated", "anomaly")
CATBENCH = Rules(max_slab_move=0.5, migrated_share=0.2)
"""CatBench's limits: 0.5 Å for an atom of the slab, 20 % for a distance from the adsorbate."""
IMPLAUSIBLE_ERROR = 2.0
"""eV. CatBench calls a larger error of an adsorption energy an energy anomaly."""


def flags_of(outcome: Outcome) -> tuple[str, ...]:
    """``exploded``, ``desorbed``, ``dissociated``, ``intercalated``, ``surface_changed``: those found, in this order.

    Everything but ``exploded`` is judged from the first and the last frame by :mod:`equicat.sources.dft.rules`, and
    needs tags that say which atoms are the adsorbate (2).
    """
    found = ["exploded"] if outcome.how == "exploded" else []
    initial = outcome.initial
    assert initial.tags is not None
    if outcome.last is not None and (initial.tags == 2).any():
        found += [NAMES.get(rule, rule) for rule in judge(initial, _relaxed(outcome)) if rule not in NO_FLAGS]
    return tuple(found)


def _relaxed(outcome: Outcome) -> Structure:
    assert outcome.last is not None
    bare = dataclasses.replace(outcome.initial, energy=None, forces=None, relaxed_energy=None, relaxed_positions=None)
    positions = np.array(outcome.last.positions)
    return Structure.unchecked(**{**vars(bare), "positions": positions, "forces": outcome.last.forces})


def class_of(reference: Structure, relaxed: Structure) -> Class:
    """CatBench's class of a system that a model has relaxed, beside the same system as the reference relaxed it.

    The first that applies: anomaly, if it exploded or did not converge, or an atom of the slab lies more than 0.5 Å
    away; migrated, if a distance between an atom of the adsorbate and an atom within 6 Å differs by more than 20 %;
    anomaly, if the energies differ by more than 2 eV; normal. CatBench relaxes each system three times and also calls
    it an anomaly if the energies scatter by more than 0.2 eV; here it is relaxed once.

    Args:
        reference: the relaxed structure of the reference, with its energy (eV) if it has one.
        relaxed: the model's, with ``converged`` in ``info``; its energy is None if it exploded.

    Source: Moon et al., Cell Rep. Phys. Sci. 6, 102968 (2025); ``classify_reaction`` of github.com/JinukMoon/CatBench.
    """
    found = judge(reference, dataclasses.replace(relaxed, forces=None), CATBENCH)
    if relaxed.energy is None or not relaxed.info["converged"] or "reconstructed" in found:
        return "anomaly"
    if "migrated" in found:
        return "migrated"
    error = 0.0 if reference.energy is None else abs(relaxed.energy - reference.energy)
    return "anomaly" if error > IMPLAUSIBLE_ERROR else "normal"
