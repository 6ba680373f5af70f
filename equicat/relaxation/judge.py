"""Flags of relaxed systems, for what does not belong to a plain relaxation, by the rules of all data sources."""

import dataclasses

import numpy as np

from equicat.data.structure import Structure
from equicat.relaxation.driver import Outcome
from equicat.sources.dft.rules import judge

NAMES = {"reconstructed": "surface_changed"}
"""Flags that have another name than the rule that raises them."""
NO_FLAGS = ("exploded", "unconverged", "cell_changed", "migrated")
"""Rules that are not asked: the loop itself says what exploded, ``converged`` has its own column, the cell is never
changed, and an initial structure is no reference that an adsorbate migrates from."""


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
