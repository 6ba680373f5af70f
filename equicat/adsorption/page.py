"""One self-contained HTML page of adsorption energies: a table that sorts, and a picture of the best of each site."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import equicat.report
from equicat import __version__
from equicat.adsorption.results import STRUCTURES, AdsorptionEnergies, Row
from equicat.adsorption.slabs import Slab
from equicat.files import replacing_file
from equicat.report.pictures import Relaxation, picture

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
    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    style = Path(equicat.report.__path__[0], "page.css").read_text(encoding="utf-8")
    best = result.best()
    strongest = [next(row for row in result.rows if row.adsorbate == name) for name in _names(result)]
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(template)
    text = page.render(
        title=title,
        style=Markup(style),
        result=result,
        strongest=strongest,
        several=any(row.n_adsorbates > 1 for row in result.rows),
        pictures=[(row, Markup(_picture(result.slab, row))) for row in best[:MAX_PICTURES]],
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


def _picture(slab: Slab, row: Row) -> str:
    """The relaxed structure from the side."""
    upright = row.structure.positions @ slab.frame.T
    still = np.zeros_like(upright)
    return picture(Relaxation(f"{row.adsorbate}, {row.relaxed_site}", row.structure.numbers, upright, still, still))
