"""Record of a relaxed system, as a line of JSON and as a structure."""

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equicat.data.readers import write
from equicat.data.structure import Structure
from equicat.relaxation.driver import Frame, Outcome
from equicat.relaxation.judge import flags_of

INFO_KEYS = ("energy_reference", "converged", "n_steps", "seconds", "flags", "fmax", "grade")
"""Keys of ``info`` that describe a relaxation; those of an initial structure that was relaxed before are dropped."""


@dataclass(frozen=True, eq=False)
class Record:
    """The result of a system, beside its initial structure."""

    number: int
    """Place in the input."""
    last: Frame | None
    converged: bool
    n_steps: int
    fmax: float
    """eV/Å; NaN if no frame had finite numbers."""
    seconds: float
    flags: tuple[str, ...]

    @classmethod
    def of(cls, outcome: Outcome) -> "Record":
        """The record of an outcome, flags included."""
        return cls(
            outcome.number,
            outcome.last,
            outcome.how == "converged",
            outcome.n_steps,
            outcome.fmax,
            outcome.seconds,
            flags_of(outcome),
        )

    def as_line(self) -> str:
        """One line of JSON; numbers keep all their digits."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["fmax"] = None if math.isnan(self.fmax) else self.fmax
        if self.last is not None:
            last = self.last
            values["last"] = [last.energy, last.positions.tolist(), last.forces.tolist()]
        return json.dumps(values)

    @classmethod
    def from_line(cls, line: str) -> "Record":
        """The record of a line.

        Raises:
            ValueError, KeyError, TypeError: if it is not a whole record.
        """
        values = json.loads(line)
        last = None
        if values["last"] is not None:
            energy, positions, forces = values["last"]
            last = Frame(energy, np.array(positions), np.array(forces))
        fmax = math.nan if values["fmax"] is None else values["fmax"]
        return cls(**{**values, "last": last, "fmax": fmax, "flags": tuple(values["flags"])})

    def structure(self, initial: Structure, energy_reference: str) -> Structure:
        """The relaxed structure with energy and forces, and everything else in ``info``.

        A system without a frame with finite numbers keeps its initial positions and gets no labels.
        """
        info = {
            **{key: value for key, value in initial.info.items() if key not in INFO_KEYS},
            "energy_reference": energy_reference,
            "converged": self.converged,
            "n_steps": self.n_steps,
            "seconds": round(self.seconds, 6),
            "flags": ",".join(self.flags),
        }
        if not math.isnan(self.fmax):
            info["fmax"] = self.fmax
        return _labelled(initial, self.last, info)


def _labelled(initial: Structure, frame: Frame | None, info: dict[str, Any]) -> Structure:
    labels: dict[str, Any] = {"energy": None, "forces": None, "relaxed_energy": None, "relaxed_positions": None}
    if frame is not None:
        labels |= {"energy": frame.energy, "forces": frame.forces, "positions": frame.positions}
    return dataclasses.replace(initial, **labels, info=info)


def trajectory_file(folder: Path, number: int, structure: Structure) -> Path:
    """Where the trajectory of a system goes: ``000012_sid.extxyz``."""
    name = re.sub(r"[^\w.-]", "_", structure.id)
    return folder / f"{number:06d}{'_' if name else ''}{name}.extxyz"


def write_trajectory(folder: Path, outcome: Outcome, energy_reference: str) -> None:
    """Write all frames of a system, whole or not at all; nothing if it has no frame with finite numbers.

    Raises:
        InputError: if the folder is missing.
    """
    if outcome.frames:
        info = {**outcome.initial.info, "energy_reference": energy_reference}
        frames = (
            dataclasses.replace(_labelled(outcome.initial, frame, info), fid=step)
            for step, frame in enumerate(outcome.frames)
        )
        write(trajectory_file(folder, outcome.number, outcome.initial), frames)


def table(records: list[Record], wall_seconds: float, n_atom_steps: int) -> str:
    """The lines that `equicat relax` prints at the end.

    Args:
        records: of all systems.
        wall_seconds: of this process.
        n_atom_steps: evaluations of this process times atoms.
    """
    n_steps = np.array([record.n_steps for record in records])
    flags = [flag for record in records for flag in record.flags]
    counts = ", ".join(f"{flags.count(flag)} {flag}" for flag in dict.fromkeys(flags)) or "none"
    seconds = np.array([record.seconds for record in records])
    rows = {
        "converged": f"{sum(record.converged for record in records)} of {len(records)}",
        "steps": f"{n_steps.mean():.1f} on average, {n_steps.max()} at most",
        "flags": counts,
        "seconds a system": f"{seconds.mean():.3f} on average (its share of a batch)",
    }
    if n_atom_steps:
        rows["speed"] = f"{n_atom_steps / wall_seconds:,.0f} atoms x steps a second, {wall_seconds:.1f} s in all"
    return "\n".join(f"{name:<18}{text}" for name, text in rows.items())
