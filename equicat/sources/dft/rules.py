"""Rules that say what does not look right in a relaxation, and what is done with it.

:func:`judge` is the one judge of relaxations: of those that are imported, of the toy data, and of those that a model
makes. Its words and those of the field:

=============  =====================================  ======================================================
here           OC20 (``DetectTrajAnomaly``)           CatBench
=============  =====================================  ======================================================
desorbed       desorbed: no bond to the slab left     (a large change of a bond)
dissociated    dissociated: other bonds within the    (a large change of a bond)
               adsorbate than at the start
reconstructed  surface changed: other bonds within    unphysical relaxation: a slab atom moves more than 0.5 Å
               the slab
intercalated   intercalated: bond to a frozen atom
migrated                                              adsorbate migration: a distance between an adsorbate atom
                                                      and any atom within 6 Å changes by more than 20 %
unconverged                                           unphysical relaxation: out of steps
=============  =====================================  ======================================================

Sources: fairchem (``fairchem.data.oc``, ``utils/flag_anomaly.py``), where two atoms are bonded below the sum of their
covalent radii plus 0.6 Å, times 1.5 as a cushion; CatBench, Moon et al., Cell Rep. Phys. Sci. 6, 102968 (2025).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from ase.data import covalent_radii
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from equicat.data.contacts import BONDED_RATIO, bonded_groups, contact_ratios, formula_of
from equicat.data.images import minimum_image
from equicat.data.structure import Structure
from equicat.options.values import Checked, PositiveNumber, Range

SAME_CELL = 1e-3
"""Å. Lattice vectors that change by more change the cell."""
MIGRATION_REACH = 6.0
"""Å. Distances from an adsorbate atom that are longer, before and after, do not tell of migration."""

Limit = Annotated[float, Range(above=0, infinite=True)]
"""A number that is not exceeded; infinity is never exceeded."""


@dataclass(frozen=True)
class Rules(Checked, section="rules"):
    """When a frame or a system is left out.

    error ends the import, drop leaves the system out, frames leaves it out of IS2RE and IS2RS but keeps its frames for
    S2EF (their energies and forces are right), keep keeps it.
    """

    max_force: Limit = 30.0
    """eV/Å. A frame with a larger force on a free atom has exploded and is dropped; .inf keeps all."""
    max_energy_jump: Limit = 5.0
    """eV. A frame this far above the frame kept before it, or below the last one kept, is dropped; .inf keeps all."""
    fmax: PositiveNumber = 0.05
    """eV/Å. Converged if no force on a free atom of the last frame is larger; along directions in which a constraint
    holds an atom, forces do not count."""
    unconverged: Literal["error", "drop", "frames", "keep"] = "frames"
    """Last frame not converged."""
    desorbed_ratio: PositiveNumber = 1.5
    """A molecule is desorbed if it is further than this from every slab atom, in sums of covalent radii."""
    desorbed: Literal["error", "drop", "frames", "keep"] = "frames"
    """A part of the adsorbate has left the surface."""
    dissociated_ratio: PositiveNumber = 1.5
    """Adsorbate atoms are apart if no chain of distances below this links them, in sums of covalent radii."""
    dissociated: Literal["error", "drop", "frames", "keep"] = "frames"
    """Adsorbate atoms bonded at the start (within 1.3 sums of covalent radii, or through others) are apart at the
    end."""
    max_slab_move: Limit = 1.5
    """Å. A slab atom that has moved further has left its place."""
    reconstructed: Literal["error", "drop", "frames", "keep"] = "frames"
    """A slab atom has left its place."""
    intercalated: Literal["error", "drop", "frames", "keep"] = "keep"
    """An adsorbate atom is bonded (within 1.3 sums of covalent radii) to a subsurface atom (tag 0) at the end."""
    migrated_share: PositiveNumber = 0.2
    """An adsorbate has migrated if its distance to an atom within 6 Å changes by a larger share. Import does not ask:
    an initial structure is no reference; compare a model's relaxed structure with that of DFT."""
    held_in_part: Literal["error", "drop", "frames", "keep"] = "keep"
    """A constraint holds an atom along one or two directions only."""
    ambiguous_step: Literal["error", "drop", "frames", "keep"] = "frames"
    """An atom moves by about half a lattice vector in one step, so which way it went is not known."""
    cell_changed: Literal["error", "drop", "frames", "keep"] = "frames"
    """The cell is not the same at the start and at the end."""
    single_frame: Literal["error", "drop", "frames"] = "frames"
    """A trajectory with one frame: no relaxation."""
    no_adsorbate: Literal["error", "drop", "frames", "keep"] = "frames"
    """No adsorbate found, or not clear which atoms it is. Molecules, and clean slabs that are metals, are known as such
    and are no systems for IS2RE and IS2RS; keep makes slabs systems all the same."""
    different_atoms: Literal["error", "drop"] = "error"
    """Frames of a system, or initial and relaxed, have different atoms or another order."""
    contradiction: Literal["error", "drop"] = "error"
    """Tags, formula and constraint contradict each other."""
    no_reference: Literal["error", "drop"] = "error"
    """A reference energy is missing."""
    unreadable: Literal["error", "drop"] = "drop"
    """A frame or file that cannot be read."""


def fmax_of(frame: Structure) -> float | None:
    """Largest force (eV/Å) on a free atom along the directions in which it may move; None without forces.

    Zero if no atom is free.
    """
    if frame.forces is None:
        return None
    assert frame.fixed is not None
    forces = frame.forces
    if frame.free_directions is not None:
        forces = (frame.free_directions @ forces[:, :, None])[:, :, 0]
    return float(np.linalg.norm(forces[~frame.fixed], axis=1).max(initial=0.0))


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


def judge(initial: Structure, relaxed: Structure, rules: Rules | None = None) -> dict[str, str]:
    """Find what is wrong with a relaxed structure: rule, and what was found in words.

    Args:
        initial: where the relaxation started, tagged (adsorbate 2, subsurface 0); or, to ask whether an adsorbate has
            migrated as CatBench does, the structure that DFT relaxed.
        relaxed: its end: the same atoms in the same order, in any periodic image. Its forces tell whether it has
            converged or exploded; without forces neither is asked.
        rules: the limits; by default those of :class:`Rules`.

    Returns:
        Any of ``exploded``, ``unconverged``, ``cell_changed``, ``desorbed``, ``dissociated``, ``intercalated``,
        ``migrated`` and ``reconstructed``; nothing if all is well. Without an adsorbate, nothing is said of it.
    """
    rules = rules or Rules()
    found: dict[str, str] = {}
    fmax = fmax_of(relaxed)
    if fmax is not None and fmax > rules.max_force:
        found["exploded"] = f"largest force {fmax:.3g} eV/Å in the last frame"
    elif fmax is not None and fmax > rules.fmax:
        found["unconverged"] = f"largest force {fmax:.3f} eV/Å in the last frame"
    change = np.abs(relaxed.cell - initial.cell).max()
    if change > SAME_CELL:
        found["cell_changed"] = f"a lattice vector changes by {change:.3f} Å"
    assert initial.tags is not None
    adsorbate = initial.tags == 2
    if adsorbate.any() and not adsorbate.all():
        found |= _judge_adsorbate(initial, relaxed, adsorbate, rules)
    steps = minimum_image(relaxed.positions - initial.positions, relaxed.cell, relaxed.pbc)
    moved = np.where(adsorbate, 0.0, np.linalg.norm(steps, axis=1))
    if moved.max() > rules.max_slab_move:
        found["reconstructed"] = f"slab atom {moved.argmax()} moves {moved.max():.2f} Å"
    return found


def _judge_adsorbate(
    initial: Structure, relaxed: Structure, adsorbate: Bool[ndarray, "n_atoms"], rules: Rules
) -> dict[str, str]:
    before, after = (contact_ratios(s.numbers, s.positions, s.cell, s.pbc, adsorbate) for s in (initial, relaxed))
    numbers = initial.numbers[adsorbate]
    found: dict[str, str] = {}
    piece = bonded_groups(after[:, adsorbate], rules.dissociated_ratio)
    for members in (piece == k for k in range(piece.max() + 1)):
        distance = after[members][:, ~adsorbate].min()
        if distance > rules.desorbed_ratio:
            formula = formula_of(numbers[members].tolist())
            found.setdefault("desorbed", f"{formula} is {distance:.2f} sums of covalent radii from the slab")
    molecule = bonded_groups(before[:, adsorbate], BONDED_RATIO)
    for members in (molecule == k for k in range(molecule.max() + 1)):
        n_pieces = len(set(piece[members].tolist()))
        if n_pieces > 1:
            formula = formula_of(numbers[members].tolist())
            found.setdefault("dissociated", f"{formula} falls into {n_pieces} pieces")
    assert initial.tags is not None
    subsurface = np.asarray(initial.tags == 0)
    if subsurface.any() and 1 in initial.tags:
        atom, deep = np.unravel_index(after[:, subsurface].argmin(), after[:, subsurface].shape)
        if after[:, subsurface][atom, deep] < BONDED_RATIO:
            which = f"{formula_of([int(numbers[atom])])} (atom {np.flatnonzero(adsorbate)[atom]})"
            found["intercalated"] = f"{which} is bonded to subsurface atom {np.flatnonzero(subsurface)[deep]}"
    change = _largest_change(numbers, initial.numbers, before, after)
    if change > rules.migrated_share:
        found["migrated"] = f"a distance between the adsorbate and an atom near it changes by {change:.0%}"
    return found


def _largest_change(
    adsorbate: Int[ndarray, "n_adsorbate"],
    numbers: Int[ndarray, "n_atoms"],
    before: Float[ndarray, "n_adsorbate n_atoms"],
    after: Float[ndarray, "n_adsorbate n_atoms"],
) -> float:
    """Largest relative change of the distance between an adsorbate atom and an atom that is near it before or after.

    Args:
        adsorbate: atomic numbers of the adsorbate.
        numbers: atomic numbers of all atoms.
        before, after: their distances in sums of covalent radii.
    """
    radii = covalent_radii[adsorbate][:, None] + covalent_radii[numbers]
    near = (np.minimum(before, after) * radii <= MIGRATION_REACH) & (before > 0)
    return float((np.abs(after - before)[near] / before[near]).max(initial=0.0))
