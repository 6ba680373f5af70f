"""Pictures of relaxations for a report: the initial structure from the side, with arrows to where atoms go."""

from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from jaxtyping import Float, Int
from markupsafe import Markup
from numpy import ndarray

from equicat.report.templates import template
from equicat.report.viewer.viewer import FROM_THE_SIDE

AMPLIFIED = 1.5
"""Arrows are so many times as long as the displacements."""
SHOWN = 0.02
"""Å; shorter displacements get no arrow."""
PIXELS = 26.0
"""Pixels for an Å."""


@dataclass(frozen=True)
class Relaxation:
    """One system: where it starts, where it goes, and where a model says it goes. Å."""

    name: str
    numbers: Int[ndarray, "n_atoms"]
    positions: Float[ndarray, "n_atoms 3"]
    true: Float[ndarray, "n_atoms 3"]
    """Displacements to the relaxed structure."""
    predicted: Float[ndarray, "n_atoms 3"]
    """Displacements that a model predicts."""
    vectors: str = "displacements"
    """A word for the vectors that the arrows show."""


@dataclass(frozen=True)
class Circle:
    """An atom of a picture, in pixels."""

    x: float
    y: float
    radius: float
    color: str


@dataclass(frozen=True)
class Arrow:
    """A displacement of a picture, in pixels: a line and the three points of its head."""

    start: tuple[float, float]
    end: tuple[float, float]
    head: tuple[tuple[float, float], ...]
    series: int
    """Number of its colour: 1 is the reference, 2 the prediction."""


def picture(relaxation: Relaxation) -> Markup:
    """One system as SVG: atoms in their elements' colours, arrows to the reference and to the prediction."""
    depth_axis = np.cross(FROM_THE_SIDE[0], FROM_THE_SIDE[1])
    order = np.argsort(-(relaxation.positions @ depth_axis))
    flat = relaxation.positions @ FROM_THE_SIDE.T * [1, -1]
    radii = 0.65 * covalent_radii[relaxation.numbers]
    tips = [
        flat + AMPLIFIED * (vectors @ FROM_THE_SIDE.T * [1, -1]) for vectors in (relaxation.true, relaxation.predicted)
    ]
    low = np.concatenate([flat - radii[:, None], *tips]).min(0) - 0.3
    high = np.concatenate([flat + radii[:, None], *tips]).max(0) + 0.3
    width, height = (high - low) * PIXELS
    at = (flat - low) * PIXELS
    circles = []
    for i in order:
        color = "#" + "".join(f"{round(255 * c):02x}" for c in jmol_colors[relaxation.numbers[i]])
        circles.append(Circle(float(at[i, 0]), float(at[i, 1]), float(radii[i] * PIXELS), color))
    arrows = []
    for series, (vectors, tip) in enumerate(zip((relaxation.true, relaxation.predicted), tips, strict=True), start=1):
        ends = (tip - low) * PIXELS
        long = [i for i in order if np.linalg.norm(vectors[i]) > SHOWN and np.linalg.norm(ends[i] - at[i]) > 1e-6]
        arrows += [_arrow(at[i], ends[i], series) for i in long]
    label = f"{relaxation.name}: structure from the side, with {relaxation.vectors}"
    svg = template("picture.svg.j2").render(width=width, height=height, label=label, circles=circles, arrows=arrows)
    return Markup(svg)


def _arrow(start: Float[ndarray, "2"], end: Float[ndarray, "2"], series: int) -> Arrow:
    """A line with a head that shrinks with it."""
    along = end - start
    length = float(np.linalg.norm(along))
    unit = along / length
    head = min(7.0, 0.5 * length)
    left, right = (end - head * unit + sign * 0.5 * head * unit[::-1] * [1, -1] for sign in (1, -1))
    points = tuple((float(x), float(y)) for x, y in (left, end, right))
    return Arrow((float(start[0]), float(start[1])), (float(end[0]), float(end[1])), points, series)
