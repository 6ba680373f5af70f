"""FIRE on many systems at once, step for step as ASE's ``FIRE`` does it for one.

Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006): dynamics that is pulled towards the force, with a time step that
grows while the energy falls and is cut when it rises.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from equicat.errors import InputError
from equicat.relaxation.layout import Change, Layout


@dataclass(frozen=True)
class FIRE:
    """Settings of the optimiser; the defaults and the units of time and mass are ASE's."""

    time_step: float = 0.1
    """At the start."""
    max_time_step: float = 1.0
    max_step: float = 0.2
    """Å; the longest step, taken as one vector of all coordinates of a system."""
    n_min: int = 5
    """Steps downhill before the time step grows."""
    growth: float = 1.1
    """Factor by which it grows."""
    cut: float = 0.5
    """Factor by which it is cut after a step uphill."""
    mixing: float = 0.1
    """Share of the velocity that is turned into the force's direction, at the start."""
    mixing_decay: float = 0.99
    """Factor on the share while the time step grows."""

    def __post_init__(self) -> None:
        if min(self.time_step, self.max_time_step, self.max_step, self.growth, self.cut) <= 0:
            raise InputError(f"{self}: time steps, max_step and factors must be positive")

    def init(self, layout: Layout, like: Float[Tensor, "n_atoms 3"]) -> "FIREState":
        """See :func:`fire_init`."""
        return fire_init(self, layout, like)

    def step(
        self,
        state: "FIREState",
        positions: Float[Tensor, "n_atoms 3"],
        forces: Float[Tensor, "n_atoms 3"],
        layout: Layout,
    ) -> tuple["FIREState", Float[Tensor, "n_atoms 3"]]:
        """See :func:`fire_step`."""
        return fire_step(self, state, positions, forces, layout)


@dataclass(frozen=True, eq=False)
class FIREState:
    """State of the optimiser for all systems."""

    config: FIRE
    velocities: Float[Tensor, "n_atoms 3"]
    time_step: Float[Tensor, "n_systems"]
    mixing: Float[Tensor, "n_systems"]
    n_downhill: Int[Tensor, "n_systems"]
    """Steps downhill in a row."""
    started: Bool[Tensor, "n_systems"]
    """Whether the system has made a step."""

    def changed(self, change: Change) -> "FIREState":
        """The state after some systems have left and others, at rest, have come."""
        return FIREState(
            self.config,
            change.of_atoms(self.velocities),
            change.of_systems(self.time_step, new=self.config.time_step),
            change.of_systems(self.mixing, new=self.config.mixing),
            change.of_systems(self.n_downhill),
            change.of_systems(self.started),
        )


def fire_init(config: FIRE, layout: Layout, like: Float[Tensor, "n_atoms 3"]) -> FIREState:
    """The state before the first step, with the dtype and device of ``like``."""
    n = layout.n_systems
    return FIREState(
        config,
        torch.zeros_like(like),
        like.new_full((n,), config.time_step),
        like.new_full((n,), config.mixing),
        torch.zeros(n, dtype=torch.int64, device=like.device),
        torch.zeros(n, dtype=torch.bool, device=like.device),
    )


def fire_step(
    config: FIRE,
    state: FIREState,
    positions: Float[Tensor, "n_atoms 3"],
    forces: Float[Tensor, "n_atoms 3"],
    layout: Layout,
) -> tuple[FIREState, Float[Tensor, "n_atoms 3"]]:
    """One step of every system; arguments and result as those of :func:`equicat.relaxation.lbfgs.lbfgs_step`."""
    velocities, time_step, mixing, n_downhill = state.velocities, state.time_step, state.mixing, state.n_downhill
    downhill = layout.dot(forces, velocities) > 0
    uphill = state.started & ~downhill

    force, speed = layout.dot(forces, forces).sqrt(), layout.dot(velocities, velocities).sqrt()
    share = layout.by_atom(mixing)
    pulled = (1 - share) * velocities + share * forces * layout.by_atom(speed / force)
    velocities = torch.where(layout.by_atom(downhill), pulled, torch.zeros_like(velocities))
    faster = downhill & (n_downhill > config.n_min)
    time_step = torch.where(faster, (time_step * config.growth).clamp(max=config.max_time_step), time_step)
    time_step = torch.where(uphill, time_step * config.cut, time_step)
    mixing = torch.where(faster, mixing * config.mixing_decay, torch.where(uphill, config.mixing, mixing))
    n_downhill = torch.where(downhill, n_downhill + 1, 0)

    velocities = velocities + layout.by_atom(time_step) * forces
    step = layout.by_atom(time_step) * velocities
    length = layout.dot(step, step).sqrt()
    scale = torch.where(length > config.max_step, config.max_step / length, 1.0)
    state = FIREState(config, velocities, time_step, mixing, n_downhill, torch.ones_like(state.started))
    return state, positions + step * layout.by_atom(scale)
