"""Energies along paths as a figure, with curves that follow the forces."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from ase.utils.forcecurve import ForceFit, fit_raw
from matplotlib.figure import Figure

from equicat.barriers.results import Barrier
from equicat.files import replacing_file

MAX_NAMED = 12
"""With more bands than this there is no legend."""


def curve(band: Barrier) -> ForceFit:
    """A cubic spline of the energies (eV) over the length of the path (Å), whose slopes are those of the forces.

    Args:
        band: with a whole path.
    """
    return fit_raw(band.energies, [image.forces for image in band.path], [image.positions for image in band.path])


def write_figure(path: Path, bands: Sequence[Barrier]) -> None:
    """Write the energy profiles of all bands that have one as SVG."""
    shown = [band for band in bands if band.saddle is not None]
    named = 0 < len(shown) <= MAX_NAMED
    figure = Figure(figsize=(6.0, 3.6 + named * (0.4 + 0.18 * len(shown))), layout="constrained")
    axes = figure.add_subplot()
    for k, band in enumerate(shown):
        fit, color = curve(band), f"C{k % 10}"
        axes.plot(fit.fit_path, fit.fit_energies, color=color, linewidth=1.4)
        said = f"{band.name}: {band.forward:.3f} eV"
        axes.plot(fit.path, fit.energies, "o", color=color, markersize=4, label=said)
    axes.set_xlabel("length of the path [Å]")
    axes.set_ylabel("energy above the initial structure [eV]")
    axes.spines[["top", "right"]].set_visible(False)
    if named:
        figure.legend(title="barrier", frameon=False, fontsize=8, loc="outside lower center")
    # Text stays text, and the same bands give the same file.
    with replacing_file(path) as temporary, matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "neb"}):
        figure.savefig(temporary, format="svg", metadata={"Date": None})
