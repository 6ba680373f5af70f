"""What happened to a system that does not belong to a plain relaxation: one call to the rules of all data sources."""

import dataclasses

import numpy as np

from equicat.data.structure import Structure
from equicat.relaxation.driver import Outcome
from equicat.sources.dft.rules import Rules, judge_ends

NAMES = {"reconstructed": "surface_changed"}
"""Flags that have another name than the rule that raises them."""
NO_FLAGS = ("unconverged", "cell_changed")
"""Rules that say nothing new: ``converged`` has its own column, and the cell is never changed."""


def flags_of(outcome: Outcome) -> tuple[str, ...]:
    """``exploded``, ``desorbed``, ``dissociated``, ``surface_changed``: what was found, in this order, or nothing.

    Everything but ``exploded`` is judged from the first and the last frame by :mod:`equicat.sources.dft.rules`, and
    needs tags that say which atoms are the adsorbate (2).
    """
    found = ["exploded"] if outcome.how == "exploded" else []
    initial = outcome.initial
    assert initial.tags is not None
    if outcome.last is not None and (initial.tags == 2).any():
        found += [NAMES.get(rule, rule) for rule, _ in judge_ends(initial, _relaxed(outcome), Rules())]
    return tuple(flag for flag in dict.fromkeys(found) if flag not in NO_FLAGS)


def _relaxed(outcome: Outcome) -> Structure:
    assert outcome.last is not None
    bare = dataclasses.replace(outcome.initial, energy=None, forces=None, relaxed_energy=None, relaxed_positions=None)
    positions = np.array(outcome.last.positions)
    return Structure.unchecked(**{**vars(bare), "positions": positions, "forces": outcome.last.forces})
