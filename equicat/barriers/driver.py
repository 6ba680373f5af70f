"""The loop over bands: all images of all bands in one batch, each band with a FIRE of its own until it converges.

A band takes the steps that ASE's ``FIRE`` takes with ASE's ``NEB`` and the same forces. What becomes of it does not
depend on the bands beside it, as far as the model's own rounding does not; see :mod:`equicat.relaxation.driver`.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from equicat.barriers.chain import Chain, nudged_forces
from equicat.barriers.config import NEBConfig
from equicat.barriers.images import ImageForces
from equicat.data.structure import Structure
from equicat.relaxation.driver import MAX_FORCE
from equicat.relaxation.fire import FIRE, FIREState
from equicat.relaxation.held import Freedom, free_directions
from equicat.relaxation.layout import Change
from equicat.relaxation.models import ForceModel

SAVE_SECONDS = 10.0
"""Time after which what has been done is handed out to be saved."""

How = Literal["moving", "converged", "stopped", "exploded"]
"""Stopped: after ``max_steps``. Exploded: some energy or force is not finite, or a force is above
:data:`~equicat.relaxation.driver.MAX_FORCE`."""


@dataclass(frozen=True, eq=False)
class Band:
    """Two ends, with energies (eV), and the first path between them."""

    number: int
    """Place of the band in the input."""
    initial: Structure
    final: Structure
    """Not wrapped: each atom is where it comes to from where it is in ``initial``."""
    inner: Float[ndarray, "n_images n_atoms 3"]
    """Images between the ends, Å."""


@dataclass(frozen=True, eq=False)
class Progress:
    """Where the images of a band stand, with all that its next step depends on."""

    positions: Float[ndarray, "n_images n_atoms 3"]
    """Å; where forces are asked for next."""
    listed: Float[ndarray, "n_images n_atoms 3"]
    """Å; where the neighbour list of each image was made. It decides the order of sums, so also the last digits."""
    velocities: Float[ndarray, "n_images n_atoms 3"]
    path: Float[ndarray, "n_images n_atoms 3"]
    """Å; the last images with finite numbers."""
    energies: Float[ndarray, "n_images"]
    """eV, at ``path``; NaN if there never were any."""
    forces: Float[ndarray, "n_images n_atoms 3"]
    """eV/Å, of all atoms, at ``path``."""
    fmax: float = float("nan")
    """eV/Å; the longest nudged force on an atom, at ``path``."""
    time_step: float = FIRE.time_step
    mixing: float = FIRE.mixing
    n_downhill: int = 0
    started: bool = False
    climbing: bool = False
    n_steps: int = 0
    seconds: float = 0.0
    """Share of the time of all batches, by atoms."""
    how: How = "moving"

    @classmethod
    def begin(cls, inner: Float[ndarray, "n_images n_atoms 3"]) -> "Progress":
        """Before the first step."""
        zero = np.zeros_like(inner)
        return cls(inner, inner, zero, inner, np.full(len(inner), np.nan), zero)


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """Positions of all images between ends with what was computed there, float64; energies are NaN before the first."""

    positions: Float[Tensor, "n_atoms 3"]
    energies: Float[Tensor, "n_images"]
    forces: Float[Tensor, "n_atoms 3"]
    fmax: Float[Tensor, "n_bands"]


class Driver:
    """Moves bands until each has converged.

    Args:
        model: what gives energies and forces.
        config: how to move.
        save: is given the progress of the bands that still move, by number, now and then.
    """

    def __init__(
        self,
        model: ForceModel,
        config: NEBConfig,
        save: Callable[[Mapping[int, Progress]], None] = lambda progress: None,
    ):
        self.model, self.config, self.save = model, config, save
        self.fire = FIRE(max_step=config.max_step)
        self.bands: list[Band] = []
        """Bands that move."""
        self.n_steps: list[int] = []
        self.seconds: list[float] = []

    def run(self, bands: Sequence[Band], progress: Sequence[Progress]) -> Iterator[tuple[int, Progress]]:
        """Move bands from where they stand; each comes back with its number when it has ended.

        Raises:
            InputError: if two atoms of an image are at the same place.
        """
        self._begin(bands, progress)
        saved = time.perf_counter()
        while self.bands:
            started = time.perf_counter()
            free_forces, good = self._evaluate()
            ended = self._ended(good)
            self.state, positions = self.fire.step(self.state, self.positions, free_forces, self.chain.bands)
            self.positions = torch.where(self.freedom.moves, positions, self.positions)
            share = (time.perf_counter() - started) / len(self.positions)
            for k in range(len(self.bands)):
                self.n_steps[k] += k not in ended
                self.seconds[k] += share * self.bands[k].inner.shape[0] * len(self.bands[k].initial)
            if ended:
                everything = self._progress()
                yield from ((self.bands[k].number, dataclasses.replace(everything[k], how=ended[k])) for k in ended)
                self._drop(ended)
            if self.bands and time.perf_counter() - saved >= SAVE_SECONDS:
                self.save({band.number: p for band, p in zip(self.bands, self._progress(), strict=True)})
                saved = time.perf_counter()

    positions: Float[Tensor, "n_atoms 3"]
    state: FIREState

    def _begin(self, bands: Sequence[Band], progress: Sequence[Progress]) -> None:
        self.bands = list(bands)
        listed = [
            dataclasses.replace(band.initial, positions=r, source=f"{band.initial.where}, image {k}")
            for band, p in zip(bands, progress, strict=True)
            for k, r in enumerate(p.listed, start=1)
        ]
        names = [f"{band.number}-{k}" for band in bands for k in range(len(band.inner))]
        self.images = ImageForces(self.model, listed, names, self.config.skin, self.config.edges)
        self._lay_out()
        self.positions = self._of_atoms([p.positions for p in progress])
        self.n_steps, self.seconds = [p.n_steps for p in progress], [p.seconds for p in progress]
        self.climbing = self._of_bands([p.climbing for p in progress], torch.bool)
        self.state = FIREState(
            self.fire,
            self._of_atoms([p.velocities for p in progress]),
            self._of_bands([p.time_step for p in progress]),
            self._of_bands([p.mixing for p in progress]),
            self._of_bands([p.n_downhill for p in progress], torch.int64),
            self._of_bands([p.started for p in progress], torch.bool),
        )
        energies = np.concatenate([np.zeros(0), *(p.energies for p in progress)])
        self.last = _Evaluation(
            self._of_atoms([p.path for p in progress]),
            torch.from_numpy(energies).to(self.model.device),
            self._of_atoms([p.forces for p in progress]),
            self._of_bands([p.fmax for p in progress]),
        )

    def _lay_out(self) -> None:
        """Everything that depends on which bands there are, but not on where their images are."""
        bands, device = self.bands, self.model.device
        self.chain = Chain.of([len(b.inner) for b in bands], [len(b.initial) for b in bands], device)
        ends = [end for band in bands for end in (band.initial, band.final)]
        self.end_positions = self._of_atoms([end.positions[None] for end in ends])
        self.end_energies = self._of_bands([end.energy for end in ends])
        directions = [np.tile(free_directions(band.initial), (len(band.inner), 1, 1)) for band in bands]
        projectors = np.concatenate([np.zeros((0, 3, 3)), *directions])
        self.freedom = Freedom.of(torch.from_numpy(projectors).to(device))

    def _of_atoms(self, arrays: Sequence[Float[ndarray, "_ _ 3"]]) -> Float[Tensor, "n_atoms 3"]:
        flat = np.concatenate([np.zeros((0, 3)), *(a.reshape(-1, 3) for a in arrays)])
        return torch.from_numpy(flat).to(self.model.device)

    def _of_bands(self, values: Sequence[Any], dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.model.device)

    def _evaluate(self) -> tuple[Float[Tensor, "n_atoms 3"], Bool[Tensor, "n_bands"]]:
        """Nudged forces at the present positions, and which bands have finite numbers; the others keep their last."""
        energies, forces = self.images(self.positions)
        bands, images, free = self.chain.bands, self.chain.images, self.freedom.along(forces)
        fine = energies.isfinite() & images.largest(forces).isfinite() & (images.largest(free) < MAX_FORCE)
        bad = torch.zeros(len(self.bands), dtype=torch.int64, device=self.model.device)
        good = bad.index_add_(0, self.chain.band_idx, (~fine).long()) == 0
        nudged, fmax = self._nudged(energies, free)
        if self.config.climb:
            limit = max(self.config.climb_below, self.config.fmax)
            starting = ~self.climbing & good & (fmax < limit)
            if starting.any():
                self.climbing = self.climbing | starting
                nudged, fmax = self._nudged(energies, free)
        good_atoms = bands.by_atom(good)
        self.last = _Evaluation(
            torch.where(good_atoms, self.positions, self.last.positions),
            torch.where(good[self.chain.band_idx], energies, self.last.energies),
            torch.where(good_atoms, forces, self.last.forces),
            torch.where(good, fmax, self.last.fmax),
        )
        return nudged, good

    def _nudged(self, energies: Tensor, free_forces: Tensor) -> tuple[Tensor, Tensor]:
        """Nudged forces along what is free, and the longest one on an atom of each band."""
        positions = torch.cat([self.positions, self.end_positions])
        energies = torch.cat([energies, self.end_energies])
        nudged = nudged_forces(self.chain, positions, energies, free_forces, self.config.k, self.climbing)
        return nudged, self.chain.bands.largest(nudged)

    def _ended(self, good: Bool[Tensor, "n_bands"]) -> dict[int, How]:
        """Which bands leave after an evaluation, by their place, and how."""
        ended: dict[int, How] = {}
        for k, (fine, fmax) in enumerate(zip(good.tolist(), self.last.fmax.tolist(), strict=True)):
            if not fine:
                ended[k] = "exploded"
            elif fmax < self.config.fmax:
                ended[k] = "converged"
            elif self.n_steps[k] >= self.config.max_steps:
                ended[k] = "stopped"
        return ended

    def _progress(self) -> list[Progress]:
        """Where each band stands."""
        shapes = [(len(band.inner), len(band.initial), 3) for band in self.bands]
        ends = np.cumsum([m * n for m, n, _ in shapes])[:-1]
        listed = torch.from_numpy(np.concatenate([pairs.positions for pairs in self.images.lists]))

        def arrays(values: Tensor) -> list[ndarray]:
            parts = np.split(values.cpu().numpy(), ends)
            return [part.reshape(shape).copy() for part, shape in zip(parts, shapes, strict=True)]

        state, last = self.state, self.last
        energies = np.split(last.energies.cpu().numpy(), np.cumsum([m for m, _, _ in shapes])[:-1])
        columns = (
            *map(arrays, (self.positions, listed, state.velocities, last.positions)),
            energies,
            arrays(last.forces),
            *(x.tolist() for x in (last.fmax, state.time_step, state.mixing, state.n_downhill, state.started)),
            self.climbing.tolist(),
            self.n_steps,
            self.seconds,
        )
        return [Progress(*values) for values in zip(*columns, strict=True)]

    def _drop(self, ended: Mapping[int, How]) -> None:
        """Go on without some bands."""
        device, chain, last = self.model.device, self.chain, self.last
        stay = torch.tensor([k not in ended for k in range(len(self.bands))], dtype=torch.bool, device=device)
        images = stay[chain.band_idx].nonzero()[:, 0]
        of_atoms = chain.bands.atoms_of(stay)
        self.state = self.state.changed(Change(of_atoms, stay.nonzero()[:, 0], 0, 0))
        self.positions, self.climbing = self.positions[of_atoms], self.climbing[stay]
        self.last = _Evaluation(last.positions[of_atoms], last.energies[images], last.forces[of_atoms], last.fmax[stay])
        places = [k for k in range(len(self.bands)) if k not in ended]
        self.bands = [self.bands[k] for k in places]
        self.n_steps, self.seconds = [self.n_steps[k] for k in places], [self.seconds[k] for k in places]
        self.images.keep(images.tolist())
        self._lay_out()
