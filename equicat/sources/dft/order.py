"""Whether frames have the same atoms in the same order, and which order would fit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.optimize import linear_sum_assignment

from equicat.data.contacts import formula_of
from equicat.data.images import nearest_image
from equicat.data.structure import Structure

OTHER_ORDER = 1.5
"""Å. Only where some atom moves further is it asked whether another order of the atoms fits better."""


def reordered(initial: Structure, frame: Structure) -> Structure:
    """The frame with its atoms in the order of ``initial``; as it is if it does not have the same atoms."""
    if sorted(frame.numbers.tolist()) != sorted(initial.numbers.tolist()):
        return frame
    order, _ = best_order(initial, frame)
    names = ("numbers", "positions", "forces", "fixed", "tags", "free_directions")
    arrays = {name: getattr(frame, name) for name in names}
    changes: dict[str, Any] = {name: None if array is None else array[order] for name, array in arrays.items()}
    return replace(frame, **changes)


def atoms_differ(frames: Sequence[Structure]) -> str:
    """A message if the frames do not have the same atoms in the same order, else an empty string."""
    first = frames[0]
    for frame in frames[1:]:
        if sorted(frame.numbers.tolist()) != sorted(first.numbers.tolist()):
            return (
                f"{frame.where} has {formula_of(frame.numbers.tolist())}, {first.where} has "
                f"{formula_of(first.numbers.tolist())}; frames of one system must have the same atoms"
            )
        if not np.array_equal(frame.numbers, first.numbers):
            atom = int((frame.numbers != first.numbers).argmax())
            return (
                f"{frame.where} has the atoms of {first.where} in another order, from atom {atom}"
                f"{_order_advice(first, frame)}"
            )
    return ""


def order_differs(initial: Structure, relaxed: Structure) -> str:
    """A message if atoms of one element seem to have changed places, else an empty string.

    That is so if some atom moves far and, with the atoms in another order, none moves half as far.
    """
    shift, _ = nearest_image(relaxed.positions - initial.positions, relaxed.cell, relaxed.pbc)
    moves = np.linalg.norm(relaxed.positions - initial.positions + shift @ relaxed.cell, axis=1)
    if moves.max() < OTHER_ORDER:
        return ""
    order, furthest = best_order(initial, relaxed)
    if np.array_equal(order, np.arange(len(order))) or furthest > moves.max() / 2:
        return ""
    return (
        f"{relaxed.where} seems to have the atoms of {initial.where} in another order: atom {moves.argmax()} moves "
        f"{moves.max():.2f} Å{_order_advice(initial, relaxed)}"
    )


def best_order(initial: Structure, relaxed: Structure) -> tuple[Int[ndarray, "n_atoms"], float]:
    """Indices into ``relaxed`` that bring it closest to ``initial`` atom by atom, and the largest distance (Å) left."""
    order = np.zeros(len(initial), np.int64)
    furthest = 0.0
    for z in set(initial.numbers.tolist()):
        here, there = np.flatnonzero(initial.numbers == z), np.flatnonzero(relaxed.numbers == z)
        delta = (relaxed.positions[there] - initial.positions[here][:, None]).reshape(-1, 3)
        shift, _ = nearest_image(delta, relaxed.cell, relaxed.pbc)
        distance: Float[ndarray, "n n"] = np.linalg.norm(delta + shift @ relaxed.cell, axis=1).reshape(len(here), -1)
        rows, columns = linear_sum_assignment(distance**2)
        order[here[rows]] = there[columns]
        furthest = max(furthest, float(distance[rows, columns].max()))
    return order, furthest


def _order_advice(initial: Structure, relaxed: Structure) -> str:
    order, furthest = best_order(initial, relaxed)
    indices = " ".join(map(str, order)) if len(order) <= 24 else f"{' '.join(map(str, order[:24]))} ..."
    return (
        f"; reordered as [{indices}] no atom moves more than {furthest:.2f} Å: reorder the file, or let --reorder true "
        "do it"
    )
