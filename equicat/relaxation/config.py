"""The options of a relaxation."""

import math
from dataclasses import dataclass
from typing import Literal

from equicat.errors import InputError


@dataclass(frozen=True)
class RelaxConfig:
    """How to relax."""

    optimizer: Literal["lbfgs", "fire"] = "lbfgs"
    """Which optimiser."""
    preset: Literal["oc20", "ase"] = "oc20"
    """Settings of L-BFGS. oc20: memory 50, steps of at most 0.04 Å; ase: memory 100, steps of at most 0.2 Å."""
    max_step: float | None = None
    """Å; the furthest that an atom moves in one step. Default: that of the preset; for FIRE 0.2, as ASE's."""
    fmax: float = 0.05
    """eV/Å; a system is relaxed when the force on each atom, along what is free, is shorter."""
    max_steps: int = 300
    """Steps after which a system is given up as not converged."""
    skin: float = 0.5
    """Å beyond the cutoff that neighbour lists reach, so that they hold for several steps; changes no result."""
    edges: int | None = None
    """Edges in a batch at most; a system with more is relaxed alone. Default: 100,000 for strictly local models, 10,000
    for others; on a GPU what fits into half of the free memory."""

    def __post_init__(self) -> None:
        limits = {"fmax": self.fmax, "skin": self.skin, "max_step": self.max_step, "edges": self.edges}
        for name, value in limits.items():
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; it must be a positive number")
        if self.max_steps < 0:
            raise InputError(f"max_steps is {self.max_steps}; it must not be negative")
        if self.optimizer not in ("lbfgs", "fire") or self.preset not in ("oc20", "ase"):
            raise InputError(
                f"{self.optimizer!r}, {self.preset!r}: the optimizer is lbfgs or fire, the preset oc20 or ase"
            )
