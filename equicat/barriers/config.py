"""The options of nudged elastic bands."""

from dataclasses import dataclass
from typing import Annotated, Literal

from equicat.options.values import Checked, Natural, Positive, PositiveNumber, Range


@dataclass(frozen=True)
class NEBConfig(Checked):
    """How bands are made, moved and judged."""

    images: Annotated[int, Range(at_least=1, at_most=1000)] = 7
    """Images between the two ends; a path of your own has its own."""
    interpolation: Literal["idpp", "linear"] = "idpp"
    """First path. idpp: along it distances between atoms change evenly, so atoms keep out of each other's way; linear:
    straight lines."""
    reorder: bool | None = None
    """Put the atoms of the final structure in the order in which they move least. Not given: refuse ends whose atoms
    seem to have changed places, and say which order would fit; false: take the order as it is."""
    relax_ends: bool = True
    """Relax both ends first, with L-BFGS; false: take them as they are, with a flag where they are no minima."""
    k: PositiveNumber = 0.1
    """eV/Å²; spring constant."""
    climb: bool = True
    """Let the highest image climb to the saddle point."""
    climb_below: Annotated[float, Range(above=0, infinite=True)] = 0.5
    """eV/Å; it climbs once the largest force of the band is below this; .inf: from the first step."""
    fmax: PositiveNumber = 0.05
    """eV/Å; a band has converged when the nudged force on each atom of each image is shorter. The ends are relaxed to
    the same."""
    max_steps: Natural = 500
    """Steps after which a band is given up as not converged; an end, too."""
    max_step: PositiveNumber = 0.2
    """Å; the longest step of a band, taken as one vector of all coordinates of all images."""
    check_saddle: bool = True
    """Count the imaginary frequencies at the highest image, by finite differences of the atoms that move."""
    skin: Annotated[float, Range(above=0, at_most=20)] = 0.5
    """Å beyond the cutoff that neighbour lists reach, so that they hold for several steps; changes no result."""
    edges: Positive | None = None
    """Edges in a batch at most; an image with more is computed alone. Default: 100,000 for strictly local models,
    10,000 for others."""
