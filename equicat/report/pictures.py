"""Pictures of relaxations for a report: the initial structure from the side, with arrows to where atoms go."""

from dataclasses import dataclass
from html import escape

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from jaxtyping import Float, Int
from numpy import ndarray

VIEW = np.array([[0.94, 0.34, 0.0], [-0.10, 0.28, 0.955]])
"""Rows: what is to the right and what is up; from the side, a little turned and from above."""
AMPLIFIED = 1.5
"""Arrows are longer than the displacements by this."""
SHOWN = 0.02
"""Å; shorter displacements get no arrow."""
PIXELS = 26.0
"""Per Å."""


@dataclass(frozen=True)
class Relaxation:
    """One system: where it starts, where it goes, and where a model says it goes. Å."""

    name: str
    numbers: Int[ndarray, "n_atoms"]
    positions: Float[ndarray, "n_atoms 3"]
    true: Float[ndarray, "n_atoms 3"]
    """Displacements."""
    predicted: Float[ndarray, "n_atoms 3"]


def relaxations(arrays: dict[str, ndarray]) -> list[Relaxation]:
    """The examples among a split's predictions; none if the task has none."""
    if "example_n_atoms" not in arrays:
        return []
    ends = np.cumsum(arrays["example_n_atoms"])[:-1]
    parts = [np.split(arrays[f"example_{name}"], ends) for name in ("numbers", "positions", "true", "pred")]
    names = [str(name) for name in arrays["example_names"]]
    return [Relaxation(name, *values) for name, *values in zip(names, *parts, strict=True)]


def picture(relaxation: Relaxation) -> str:
    """One system as SVG: atoms in their elements' colours, arrows to the reference and to the prediction."""
    depth_axis = np.cross(VIEW[0], VIEW[1])
    order = np.argsort(-(relaxation.positions @ depth_axis))
    flat = relaxation.positions @ VIEW.T * [1, -1]
    radii = 0.65 * covalent_radii[relaxation.numbers]
    tips = [flat + AMPLIFIED * (vectors @ VIEW.T * [1, -1]) for vectors in (relaxation.true, relaxation.predicted)]
    low = np.concatenate([flat - radii[:, None], *tips]).min(0) - 0.3
    high = np.concatenate([flat + radii[:, None], *tips]).max(0) + 0.3
    width, height = (high - low) * PIXELS
    at = (flat - low) * PIXELS
    shapes = []
    for i in order:
        color = "#" + "".join(f"{round(255 * c):02x}" for c in jmol_colors[relaxation.numbers[i]])
        shapes.append(
            f'<circle cx="{at[i, 0]:.1f}" cy="{at[i, 1]:.1f}" r="{radii[i] * PIXELS:.1f}" fill="{color}" '
            f'stroke="#000" stroke-opacity=".45"><title>{chemical_symbols[relaxation.numbers[i]]}</title></circle>'
        )
    for series, (vectors, tip) in enumerate(zip((relaxation.true, relaxation.predicted), tips, strict=True), start=1):
        ends = (tip - low) * PIXELS
        shapes += [_arrow(at[i], ends[i], series) for i in order if np.linalg.norm(vectors[i]) > SHOWN]
    label = f"{escape(relaxation.name)}: initial structure with displacements"
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{label}">' + "".join(shapes) + "</svg>"


def _arrow(start: Float[ndarray, "2"], end: Float[ndarray, "2"], series: int) -> str:
    """A line with a head that shrinks with it."""
    along = end - start
    length = float(np.linalg.norm(along))
    if length < 1e-6:
        return ""
    unit = along / length
    head = min(7.0, 0.5 * length)
    left, right = (end - head * unit + sign * 0.5 * head * unit[::-1] * [1, -1] for sign in (1, -1))
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (left, end, right))
    style = f'stroke="var(--series-{series})" stroke-width="{3.2 if series == 1 else 2.0}" fill="none"'
    return (
        f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" {style}/>'
        f'<polyline points="{points}" {style}/>'
    )
