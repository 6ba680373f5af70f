"""Barriers of finished bands: what is read off a path, flags, and the table for people."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from equicat.barriers.saddle import IMAGINARY
from equicat.data.structure import Structure

DIP = 0.02
"""eV; an image that lies deeper than this below both sides is taken for a minimum of its own."""


@dataclass(frozen=True, eq=False)
class Barrier:
    """The path between two minima, with what it says about the reaction."""

    number: int
    """Place of the band in the input."""
    name: str
    path: list[Structure]
    """From the initial to the final minimum, not wrapped, with energies (eV) and forces (eV/Å); only the two ends if no
    path was made."""
    converged: bool
    n_steps: int
    fmax: float
    """eV/Å; the longest nudged force on an atom of an image; NaN if there is none."""
    seconds: float
    """Share of the time of all batches, by atoms."""
    failure: str = ""
    """A flag that says why there is no whole path: ``end_exploded``, ``same_minimum``, ``collision``, ``exploded``."""
    notes: tuple[str, ...] = ()
    """Sentences on what was done to the ends and what is not clear."""
    frequencies: Float[ndarray, "n_modes"] | None = None
    """cm⁻¹, at the highest image, imaginary ones negative; None if they were not computed."""

    @property
    def energies(self) -> Float[ndarray, "n_images"]:
        """eV, of all images from end to end; NaN where there is none."""
        return np.array([np.nan if image.energy is None else image.energy for image in self.path])

    @property
    def lengths(self) -> Float[ndarray, "n_images"]:
        """Å, along the path up to each image, in the space of all coordinates."""
        steps = [np.linalg.norm(b.positions - a.positions) for a, b in zip(self.path, self.path[1:], strict=False)]
        return np.concatenate([[0.0], np.cumsum(steps)])

    @property
    def saddle(self) -> int | None:
        """The highest image, counted from 0, the initial end; None without a whole path."""
        return None if self.failure or not np.isfinite(self.energies).all() else int(self.energies.argmax())

    @property
    def forward(self) -> float | None:
        """eV, from the initial minimum to the highest image."""
        return None if self.saddle is None else float(self.energies[self.saddle] - self.energies[0])

    @property
    def reverse(self) -> float | None:
        """eV, from the final minimum to the highest image."""
        return None if self.saddle is None else float(self.energies[self.saddle] - self.energies[-1])

    @property
    def reaction_energy(self) -> float | None:
        """eV, of the final minimum above the initial one."""
        difference = float(self.energies[-1] - self.energies[0])
        return difference if np.isfinite(difference) else None

    @property
    def n_imaginary(self) -> int | None:
        """Imaginary frequencies at the highest image, beyond :data:`~equicat.barriers.saddle.IMAGINARY`."""
        return None if self.frequencies is None else int((self.frequencies < -IMAGINARY).sum())

    @property
    def flags(self) -> tuple[str, ...]:
        """Whatever speaks against the barrier; docs/barriers.md says what each means."""
        if self.failure:
            return (self.failure,)
        found = ["end_not_minimum"] if not all(end.info["converged"] for end in (self.path[0], self.path[-1])) else []
        energies = self.energies
        if self.saddle in (0, len(energies) - 1):
            found.append("no_saddle")
        else:
            found += ["not_one_imaginary"] if self.n_imaginary not in (None, 1) else []
        below = [min(energies[:k].max(), energies[k + 1 :].max()) - energies[k] for k in range(1, len(energies) - 1)]
        return (*found, *(["intermediate_minimum"] if max(below) > DIP else []))

    @property
    def remarks(self) -> str:
        """Flags and ``not converged``, for people."""
        return ", ".join([*self.flags, *([] if self.converged or self.failure else ["not converged"])])


@dataclass(frozen=True, eq=False)
class Barriers:
    """Results of :func:`equicat.neb`."""

    bands: list[Barrier]
    """In the order of the input."""
    energy_reference: str
    """Which energy the model predicts; differences along a path are the same for each."""

    def as_text(self) -> str:
        """A table for the terminal, and the notes below it."""
        width = max(4, *(len(band.name) for band in self.bands))
        lines = [
            f"{'band':<{width}}{'forward':>9}{'reverse':>9}{'reaction':>10}{'saddle':>8}{'imaginary':>11}{'steps':>7}"
            f"{'fmax':>8}  remarks"
        ]
        for band in self.bands:
            energies = "".join(
                f"{_shown(value):>{columns}}"
                for value, columns in ((band.forward, 9), (band.reverse, 9), (band.reaction_energy, 10))
            )
            counts = f"{_whole(band.saddle):>8}{_whole(band.n_imaginary):>11}{band.n_steps:>7}"
            force = _shown(None if np.isnan(band.fmax) else band.fmax)
            lines.append(f"{band.name:<{width}}{energies}{counts}{force:>8}  {band.remarks}".rstrip())
        lines += ["energies in eV, fmax in eV/Å; saddle: the highest image, 0 is the initial structure"]
        return "\n".join([*lines, *(f"{band.name}: {note}" for band in self.bands for note in band.notes)])


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _whole(value: int | None) -> str:
    return "-" if value is None else str(value)
