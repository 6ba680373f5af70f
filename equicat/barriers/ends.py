"""Two ends of a path: whether they are two states of one system, and where each atom goes."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from equicat.data.images import nearest_image
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.relaxation.held import free_directions
from equicat.sources.dft.order import OTHER_ORDER, atoms_differ, best_order, reordered

SAME_CELL = 1e-4
"""Å; lattice vectors that differ by less are the same; files round."""
HELD = 0.01
"""Å; by so much a fixed atom may be elsewhere in the other end; it is then put to where it is in the first."""
SAME = 0.05
"""Å; ends are the same structure if no atom moves further."""
SAME_MINIMUM = 0.1
"""Å; the same for relaxed ends, each of which is only near its minimum."""
EXCHANGED = 0.4
"""Atoms have changed places if, put back, none of them moves further than this share of the furthest now. An adatom
that pushes another one out of the surface, after which both have moved a little, is no such case."""
UNCLEAR = 0.1
"""Å; if an atom's way to another periodic image is not longer than this, which one is meant is not clear."""


@dataclass(frozen=True, eq=False)
class Ends:
    """Two states of one system, and the images of a user's own path, if there is one."""

    initial: Structure
    final: Structure
    """The initial structure with other positions, not wrapped: each atom is where it comes to from where it was."""
    inner: Float[ndarray, "n_images n_atoms 3"] | None = None
    """Images between the ends, Å; None: they are still to be interpolated."""
    notes: tuple[str, ...] = ()
    """Sentences on what was changed or is not clear."""


def ends_of(initial: Structure, final: Structure, reorder: bool | None) -> Ends:
    """Two structures as the ends of a path, each atom by the shortest way, across boundaries of the cell.

    Args:
        initial: the system.
        final: another state of it.
        reorder: put the atoms of ``final`` in the order in which they move least; None: refuse ends whose atoms seem to
            have changed places; False: take their order as it is.

    Raises:
        InputError: if atoms, cell or constraints differ (the first atom is named), a fixed atom moves, or both are the
            same structure.
    """
    after, notes = follow(initial, final, reorder)
    _check_different(initial, after)
    return Ends(initial, after, notes=notes)


def path_of(images: Sequence[Structure]) -> Ends:
    """The images of a user's own path, from one end to the other.

    Raises:
        InputError: if there are fewer than three, or they are not images of one system.
    """
    if len(images) < 3:
        raise InputError(
            f"{images[0].where}: a path needs both ends and at least one image between them, this one has "
            f"{len(images)}; give more images, or two files with the ends"
        )
    path, notes = [images[0]], tuple[str, ...]()
    for image in images[1:]:
        after, more = follow(path[-1], image, reorder=False)
        path.append(after)
        notes += more
    _check_different(path[0], path[-1])
    return Ends(path[0], path[-1], np.stack([image.positions for image in path[1:-1]]), notes)


def follow(before: Structure, after: Structure, reorder: bool | None) -> tuple[Structure, tuple[str, ...]]:
    """``before`` with its atoms at the nearest images of where they are in ``after``, and notes.

    Raises:
        InputError: as :func:`ends_of`, but that both may be the same.
    """
    bare: dict[str, Any] = {
        "energy": None,
        "forces": None,
        "relaxed_energy": None,
        "relaxed_positions": None,
        "stress": None,
    }
    after, notes = dataclasses.replace(after, **bare), list[str]()
    if reorder:
        was, after = after, reordered(before, after)
        if not np.array_equal(was.positions, after.positions):
            notes.append(f"The atoms of {after.where} were put in the order of {before.where}.")
    _check_same_system(before, after)
    way, lead = _way(before, after)
    if reorder is None:
        _check_order(before, after, way)
    unclear = np.flatnonzero((lead < UNCLEAR) & (np.linalg.norm(way, axis=1) > HELD))
    if len(unclear):
        notes.append(
            f"Atom {unclear[0]} moves by about half a lattice vector, so it could as well go the other way round; "
            "--path takes a path that says which."
        )
    free = np.einsum("nij,nj->ni", free_directions(before), way)
    held = np.linalg.norm(way - free, axis=1)
    if held.max() > HELD:
        atom = int(held.argmax())
        raise InputError(
            f"{after.where}: atom {atom} is held, but {held[atom]:.2f} Å from where it is in {before.where}; make both "
            "ends from the same slab, or free that atom in both"
        )
    return dataclasses.replace(before, positions=before.positions + free, source=after.where, **bare), tuple(notes)


def _way(before: Structure, after: Structure) -> tuple[Float[ndarray, "n_atoms 3"], Float[ndarray, "n_atoms"]]:
    """The shortest way of each atom, and by how much the next one is longer, Å."""
    way = after.positions - before.positions
    shift, lead = nearest_image(way, before.cell, before.pbc)
    return way + shift @ before.cell, lead


def _check_order(before: Structure, after: Structure, way: Float[ndarray, "n_atoms 3"]) -> None:
    """Refuse ends in which some atoms, had they changed places, would hardly have moved.

    That adsorbates move far says nothing: only the atoms that would change places are looked at.
    """
    order, _ = best_order(before, after)
    changed = np.flatnonzero(order != np.arange(len(order)))
    if not len(changed):
        return
    moves = np.linalg.norm(way[changed], axis=1)
    others = np.linalg.norm(_way(before, reordered(before, after))[0][changed], axis=1)
    if moves.max() > OTHER_ORDER and others.max() < EXCHANGED * moves.max():
        names = ", ".join(map(str, changed[:8])) + (" …" if len(changed) > 8 else "")
        raise InputError(
            f"{after.where} seems to have the atoms of {before.where} in another order: atom {changed[moves.argmax()]} "
            f"moves {moves.max():.2f} Å, and with the places of atoms {names} exchanged at most {others.max():.2f} Å; "
            "--reorder true puts them in order, --reorder false takes them as they are"
        )


def _check_different(initial: Structure, final: Structure) -> None:
    moved = np.linalg.norm(final.positions - initial.positions, axis=1).max()
    if moved < SAME:
        raise InputError(
            f"{initial.where} and {final.where} are the same structure (no atom moves more than {moved:.3f} Å), "
            "so there is no path between them; give two different minima"
        )


def _check_same_system(before: Structure, after: Structure) -> None:
    if text := atoms_differ([before, after]):
        raise InputError(text)
    periodic = before.cell[before.pbc], after.cell[before.pbc]
    if not np.array_equal(before.pbc, after.pbc) or np.abs(periodic[0] - periodic[1]).max(initial=0.0) > SAME_CELL:
        raise InputError(
            f"{after.where}: the cell is not that of {before.where}; both ends of a path must have the same"
        )
    differ = np.abs(free_directions(before) - free_directions(after)).max(axis=(1, 2)) > 1e-6
    if differ.any():
        raise InputError(
            f"{after.where}: atom {differ.argmax()} is not held as it is in {before.where}; hold the same atoms in both"
        )
