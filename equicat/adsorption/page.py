"""One self-contained HTML page of adsorption energies: a table that sorts, and the best of each site, to be turned."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from equicat import __version__
from equicat.adsorption.results import STRUCTURES, AdsorptionEnergies, Row
from equicat.adsorption.slabs import Slab
from equicat.files import replacing_file
from equicat.report.content import Figure
from equicat.report.pictures import Relaxation, picture
from equicat.report.templates import sorting, style, template
from equicat.report.viewer import viewer
from equicat.report.viewer.viewer import Arrows, State, View

PAGE = "page.html"
MAX_PICTURES = 60


def write_page(folder: Path, result: AdsorptionEnergies, title: str, plan: Mapping[str, Any]) -> Path:
    """Write ``page.html``, complete or not at all; what comes from files and options is escaped.

    Args:
        folder: where to write.
        result: what to show.
        title: of the page.
        plan: settings, shown as JSON.
    """
    strongest = [next(row for row in result.rows if row.adsorbate == name) for name in _names(result)]
    text = template("page.html.j2", "equicat.adsorption").render(
        title=title,
        style=style(),
        sorting=sorting(),
        viewer=viewer,
        result=result,
        strongest=strongest,
        several=any(row.n_adsorbates > 1 for row in result.rows),
        figures=[_figure(result.slab, row, k) for k, row in enumerate(result.best()[:MAX_PICTURES])],
        structures=STRUCTURES,
        number=_number,
        settings=json.dumps(plan, indent=2),
        version=__version__,
    )
    with replacing_file(folder / PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / PAGE


def _names(result: AdsorptionEnergies) -> list[str]:
    return list(dict.fromkeys(row.adsorbate for row in result.rows))


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _figure(slab: Slab, row: Row, number: int) -> Figure:
    """The relaxed structure from the side, and before and after to turn."""
    structure, name = row.structure, f"{row.adsorbate}, {row.relaxed_site}"
    placed, relaxed = row.start @ slab.frame.T, structure.positions @ slab.frame.T
    still = np.zeros_like(relaxed)
    forces = () if structure.forces is None else (Arrows("forces", structure.forces @ slab.frame.T),)
    states = (State("relaxed", relaxed, forces), State("as placed", placed))
    cell = structure.cell @ slab.frame.T
    details = [f"{_number(row.energy_per_adsorbate, 3)} eV", *([row.remarks] if row.remarks else [])]
    svg = picture(Relaxation(name, structure.numbers, relaxed, still, still))
    view = View(name, structure.numbers, states, cell, structure.fixed, structure.tags)
    return Figure(name, (", ".join(details),), svg, view=view, key=f"view-{number}")
