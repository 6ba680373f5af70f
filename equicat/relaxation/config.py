"""The options of a relaxation."""

from dataclasses import dataclass
from typing import Annotated, Literal

from equicat.options.values import Checked, Natural, Positive, PositiveNumber, Range


@dataclass(frozen=True)
class RelaxConfig(Checked):
    """How to relax."""

    optimizer: Literal["lbfgs", "fire"] = "lbfgs"
    """Which optimiser."""
    preset: Literal["oc20", "ase"] = "oc20"
    """Settings of L-BFGS. oc20: memory 50, steps of at most 0.04 Å; ase: memory 100, steps of at most 0.2 Å."""
    max_step: PositiveNumber | None = None
    """Å; the furthest that an atom moves in one step. Default: that of the preset; for FIRE 0.2, as ASE's."""
    fmax: PositiveNumber = 0.05
    """eV/Å; a system is relaxed when the force on each atom, along what is free, is shorter."""
    max_steps: Natural = 300
    """Steps after which a system is given up as not converged."""
    skin: Annotated[float, Range(above=0, at_most=20)] = 0.5
    """Å beyond the cutoff that neighbour lists reach, so that they hold for several steps; changes no result."""
    edges: Positive | None = None
    """Edges in a batch at most; a system with more is relaxed alone. Default: 100,000 for strictly local models, 10,000
    for others; on a GPU what fits into half of the free memory."""
