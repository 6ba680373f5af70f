"""Structures as the JSON that ``viewer.js`` draws, and the parts of a page that draw it, all inside the page.

A template takes the macros of ``viewer/view.html.j2``: ``assets()`` once, at the end of the page, and ``turnable(view,
picture)`` for every picture whose structure can be turned. The drawing is done by 3Dmol.js (Rego and Koes,
Bioinformatics 31, 1322, 2015), which lies in the page compressed and is unpacked when the first view is opened.
"""

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii, vdw_radii
from ase.data.colors import jmol_colors
from jaxtyping import Bool, Float, Int
from markupsafe import Markup
from numpy import ndarray

from equicat.data.images import minimum_image
from equicat.data.structure import Structure

FROM_THE_SIDE = np.array([[0.94, 0.34, 0.0], [-0.10, 0.28, 0.955]])
"""Rows: the directions that point right and up on the screen; from the side, a little turned and from above."""
FORCE_LENGTH = 1.0
"""Length in Å of the arrow of a force of 1 eV/Å."""
FILES = Path(__file__).parent
UNKNOWN_RADIUS = 2.0
"""Å; the van der Waals radius of elements for which ASE knows none."""


@dataclass(frozen=True, eq=False)
class Arrows:
    """One vector for each atom: forces (eV/Å) or displacements (Å)."""

    title: str
    """Beside its switch: ``reference forces``."""
    vectors: Float[ndarray, "n_atoms 3"]
    series: int = 1
    """The colour is the page's ``--series-N``."""
    length: float = FORCE_LENGTH
    """Length in Å of the arrow of a vector of length one."""


@dataclass(frozen=True, eq=False)
class State:
    """Where the atoms of a view are at one moment."""

    title: str
    """On its button or beside the slider: ``initial``, ``relaxed``, ``step 12``."""
    positions: Float[ndarray, "n_atoms 3"]
    """Å."""
    arrows: tuple[Arrows, ...] = ()


@dataclass(frozen=True, eq=False)
class View:
    """One system, in one or several states."""

    name: str
    numbers: Int[ndarray, "n_atoms"]
    states: tuple[State, ...]
    """Up to four have a button each, more have a slider."""
    cell: Float[ndarray, "3 3"] | None = None
    """Rows are the lattice vectors, Å."""
    fixed: Bool[ndarray, "n_atoms"] | None = None
    """Fixed atoms are drawn pale."""
    tags: Int[ndarray, "n_atoms"] | None = None
    """Atoms with the tag 2 are said to be of the adsorbate."""

    def as_json(self) -> dict[str, Any]:
        """The view as ``viewer.js`` takes it: lengths in hundredths of an Å, vectors in thousandths of their unit."""
        kinds, kind_of = np.unique(self.numbers, return_inverse=True)
        found: dict[str, Any] = {
            "name": self.name,
            "elements": [_element(int(z)) for z in kinds],
            "kinds": kind_of.tolist(),
            "states": [
                {
                    "title": state.title,
                    "positions": _whole(state.positions, 100),
                    "arrows": [
                        {"title": a.title, "series": a.series, "length": a.length, "vectors": _whole(a.vectors, 1000)}
                        for a in state.arrows
                    ],
                }
                for state in self.states
            ],
            "turn": _quaternion(),
        }
        if self.cell is not None and np.abs(np.linalg.det(self.cell)) > 1e-6:
            found["cell"] = _whole(self.cell, 100)
        if self.fixed is not None and self.fixed.any():
            found["fixed"] = np.flatnonzero(self.fixed).tolist()
        if self.tags is not None and (self.tags == 2).any():
            found["adsorbate"] = np.flatnonzero(self.tags == 2).tolist()
        return found

    @property
    def json(self) -> Markup:
        """:meth:`as_json` as the content of a ``<script type="application/json">``, which no text in it can end."""
        text = json.dumps(self.as_json(), separators=(",", ":"))
        return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def view_of(structure: Structure, name: str = "", predicted: Structure | None = None) -> View:
    """One structure with what it holds: its relaxation before and after, and its forces.

    Args:
        structure: with ``relaxed_positions`` (then ``positions`` are the initial ones), with ``initial_positions``
            (then ``positions`` are the relaxed ones), or with neither.
        name: of the view; empty: the id of the structure or where it comes from.
        predicted: the same atoms by a model. Its forces stand beside those of ``structure``; its relaxed positions,
            or its positions where these differ, are one more state.
    """
    here, arrows = structure.positions, _forces(structure, "forces" if predicted is None else "reference forces", 1)
    if predicted is not None:
        arrows += _forces(predicted, "predicted forces", 2)
    if structure.initial_positions is not None:
        start = here + _moved(structure, structure.initial_positions)
        states = [State("initial", start), State("relaxed", here, arrows)]
    else:
        after = structure.relaxed_positions
        states = [State("structure" if after is None else "initial", here, arrows)]
        if after is not None:
            states.append(State("relaxed", here + _moved(structure, after)))
    if predicted is not None:
        there = predicted.positions if predicted.relaxed_positions is None else predicted.relaxed_positions
        moved = _moved(structure, there)
        if np.abs(moved).max() > 1e-3:
            states.append(State("predicted", here + moved))
    return _view(structure, name, states)


def _view(structure: Structure, name: str, states: Sequence[State]) -> View:
    cell = structure.cell if structure.pbc.any() else None
    title = name or structure.id or structure.source
    return View(title, structure.numbers, tuple(states), cell, structure.fixed, structure.tags)


def _moved(structure: Structure, positions: Float[ndarray, "n_atoms 3"]) -> Float[ndarray, "n_atoms 3"]:
    """Displacements by the minimum image, so that no atom jumps to the other side of the cell."""
    return minimum_image(positions - structure.positions, structure.cell, structure.pbc)


def _forces(structure: Structure, title: str, series: int) -> tuple[Arrows, ...]:
    return () if structure.forces is None else (Arrows(title, structure.forces, series),)


def _element(number: int) -> dict[str, Any]:
    color = "#" + "".join(f"{round(255 * c):02x}" for c in jmol_colors[number])
    full = float(vdw_radii[number]) if number < len(vdw_radii) else np.nan
    return {
        "symbol": chemical_symbols[number],
        "color": color,
        "radius": round(float(covalent_radii[number]), 2),
        "full": round(full, 2) if np.isfinite(full) else UNKNOWN_RADIUS,
    }


def _whole(values: Float[ndarray, "n 3"], factor: int) -> list[int]:
    """Rounded multiples in a row; what is not finite, as forces of a model can be, becomes zero."""
    return np.rint(np.nan_to_num(values, posinf=0.0, neginf=0.0) * factor).astype(int).ravel().tolist()


@cache
def _quaternion() -> list[float]:
    """x, y, z, w of the rotation that brings :data:`FROM_THE_SIDE` to the right and up."""
    right, up = FROM_THE_SIDE / np.linalg.norm(FROM_THE_SIDE, axis=1, keepdims=True)
    up = up - (up @ right) * right
    m = np.array([right, up / np.linalg.norm(up), np.cross(right, up / np.linalg.norm(up))])
    w = 0.5 * np.sqrt(1 + np.trace(m))
    axis = np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]]) / (4 * w)
    return [round(float(v), 5) for v in (*axis, w)]


@cache
def library() -> str:
    """3Dmol.js, compressed and as base64: some 210 kB of a page."""
    packed = gzip.compress((FILES / "3Dmol-min.js").read_bytes(), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode("ascii")


def license() -> str:
    """The licence of 3Dmol.js, which asks to be wherever the library is."""
    return (FILES / "LICENSE").read_text(encoding="utf-8")


def script() -> Markup:
    """``viewer.js``, for a ``<script>``."""
    return Markup((FILES / "viewer.js").read_text(encoding="utf-8"))


def style() -> Markup:
    """``viewer.css``, for a ``<style>``; it takes the colours of the page."""
    return Markup((FILES / "viewer.css").read_text(encoding="utf-8"))
