"""What does not look right in a relaxation, and what is done with it: stated rules, nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import linear_sum_assignment

from equicat.data.contacts import bonded_groups, contact_ratios, formula_of
from equicat.data.images import nearest_image
from equicat.data.structure import Structure
from equicat.sources.dft.tagging import BONDED_RATIO

SAME_CELL = 1e-3
"""Å. Lattice vectors that change by more change the cell."""
OTHER_ORDER = 1.5
"""Å. Only where some atom moves further is it asked whether another order of the atoms fits better."""


@dataclass(frozen=True)
class Rules:
    """When a frame or a system is left out.

    error ends the import, drop leaves the system out, frames leaves it out of IS2RE and IS2RS but keeps its frames for
    S2EF (their energies and forces are right), keep keeps it.
    """

    max_force: float = 30.0
    """eV/Å. A frame with a larger force on a free atom has exploded and is dropped; .inf keeps all."""
    max_energy_jump: float = 5.0
    """eV. A frame this far above the frame kept before it, or below the last one kept, is dropped; .inf keeps all."""
    fmax: float = 0.05
    """eV/Å. Converged if no force on a free atom of the last frame is larger."""
    unconverged: Literal["error", "drop", "frames", "keep"] = "frames"
    """Last frame not converged."""
    desorbed_ratio: float = 1.5
    """A molecule is desorbed if it is further than this from every slab atom, in sums of covalent radii."""
    desorbed: Literal["error", "drop", "frames", "keep"] = "frames"
    """A part of the adsorbate has left the surface."""
    dissociated: Literal["error", "drop", "frames", "keep"] = "frames"
    """Adsorbate atoms bonded at the start (within 1.3 sums of covalent radii, or through others) are not at the end."""
    max_slab_move: float = 1.5
    """Å. A slab atom that has moved further has left its place."""
    reconstructed: Literal["error", "drop", "frames", "keep"] = "frames"
    """A slab atom has left its place."""
    ambiguous_step: Literal["error", "drop", "frames", "keep"] = "frames"
    """An atom moves by about half a lattice vector in one step, so which way it went is not known."""
    cell_changed: Literal["error", "drop", "frames", "keep"] = "frames"
    """The cell is not the same at the start and at the end."""
    single_frame: Literal["error", "drop", "frames"] = "frames"
    """A trajectory with one frame: no relaxation."""
    no_adsorbate: Literal["error", "drop", "frames", "keep"] = "frames"
    """No adsorbate found, or not clear which atoms it is."""
    different_atoms: Literal["error", "drop"] = "error"
    """Frames of a system, or initial and relaxed, have different atoms or another order."""
    contradiction: Literal["error", "drop"] = "error"
    """Tags, formula and constraint contradict each other."""
    no_reference: Literal["error", "drop"] = "error"
    """A reference energy is missing."""
    unreadable: Literal["error", "drop"] = "drop"
    """A frame or file that cannot be read."""


def fmax_of(frame: Structure) -> float | None:
    """Largest force (eV/Å) on a free atom, 0 if none is free; None without forces."""
    if frame.forces is None:
        return None
    assert frame.fixed is not None
    return float(np.linalg.norm(frame.forces[~frame.fixed], axis=1).max(initial=0.0))


def judge_frames(frames: Sequence[Structure], rules: Rules) -> list[str]:
    """For each frame of a relaxation the rule that drops it from S2EF, or an empty string."""
    fate = []
    for frame in frames:
        fmax = fmax_of(frame)
        if frame.energy is None:
            fate.append("no_energy")
        elif fmax is None:
            fate.append("no_forces")
        else:
            fate.append("exploded" if fmax > rules.max_force else "")
    kept = [(i, frame.energy) for i, frame in enumerate(frames) if not fate[i] and frame.energy is not None]
    last = None
    for i, energy in kept:
        if last is not None and energy > last + rules.max_energy_jump:
            fate[i] = "energy_jump"
        else:
            last = energy
    for i, energy in kept:
        if last is not None and energy < last - rules.max_energy_jump:
            fate[i] = "energy_jump"
    return fate


def judge_ends(first: Structure, last: Structure, rules: Rules) -> list[tuple[str, str]]:
    """Anomalies of a relaxed system: rule, and what was found in words.

    The kinds are those of OC20 (``DetectTrajAnomaly`` in fairchem: desorbed, dissociated, surface changed); here each
    is one distance, so that a user can say what is meant.

    Args:
        first: the initial structure, tagged.
        last: the relaxed one, with the same tags and without jumps.
        rules: the limits.
    """
    found = []
    fmax = fmax_of(last)
    if fmax is not None and fmax > rules.fmax:
        found.append(("unconverged", f"largest force {fmax:.3f} eV/Å in the last frame"))
    if np.abs(last.cell - first.cell).max() > SAME_CELL:
        found.append(("cell_changed", f"a lattice vector changes by {np.abs(last.cell - first.cell).max():.3f} Å"))
    assert first.tags is not None
    adsorbate = first.tags == 2
    if adsorbate.any():
        found += _judge_adsorbate(first, last, rules)
    moved = np.where(adsorbate, 0.0, np.linalg.norm(last.positions - first.positions, axis=1))
    if moved.max() > rules.max_slab_move:
        found.append(("reconstructed", f"slab atom {moved.argmax()} moves {moved.max():.2f} Å"))
    return found


def _judge_adsorbate(first: Structure, last: Structure, rules: Rules) -> list[tuple[str, str]]:
    assert first.tags is not None
    adsorbate = first.tags == 2
    before, after = (contact_ratios(s.numbers, s.positions, s.cell, s.pbc, adsorbate) for s in (first, last))
    bonded_before, bonded_after = (bonded_groups(ratios[:, adsorbate], BONDED_RATIO) for ratios in (before, after))
    numbers = first.numbers[adsorbate]
    found = []
    for group in range(bonded_after.max() + 1):
        members = bonded_after == group
        distance = after[members][:, ~adsorbate].min()
        if distance > rules.desorbed_ratio:
            molecule = formula_of(numbers[members].tolist())
            found.append(("desorbed", f"{molecule} is {distance:.2f} sums of covalent radii from the slab"))
    for group in range(bonded_before.max() + 1):
        pieces = bonded_after[bonded_before == group]
        if len(set(pieces.tolist())) > 1:
            molecule = formula_of(numbers[bonded_before == group].tolist())
            found.append(("dissociated", f"{molecule} falls into {len(set(pieces.tolist()))} pieces"))
    return found


def atoms_differ(frames: Sequence[Structure]) -> str:
    """What is wrong if the frames do not have the same atoms in the same order, or an empty string."""
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
    """What is wrong if atoms of one element seem to have changed places, or an empty string.

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


def best_order(initial: Structure, relaxed: Structure) -> tuple[ndarray, float]:
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
