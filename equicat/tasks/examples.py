"""Structures of a split that an evaluation keeps whole, and how a file of predictions holds them.

:mod:`equicat.apply.kept` chooses them and :mod:`equicat.report.structures` shows them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy import ndarray

N_WORST = 10
"""Structures with the largest errors of energies, and as many with those of forces, that are kept and shown."""
FIELDS = ("numbers", "positions", "fixed", "tags", "true", "pred")
"""Arrays of each example, a row for each atom."""
SCORES = ("energy_error", "vector_error", "moved")
"""Numbers by which examples are chosen."""


@dataclass(frozen=True, eq=False)
class Frames:
    """Steps of a relaxation."""

    steps: Int[ndarray, "n_frames"]
    energies: Float[ndarray, "n_frames"]
    """eV."""
    fmax: Float[ndarray, "n_frames"]
    """eV/Å; the longest force on a free atom."""
    positions: Float[ndarray, "n_frames n_atoms 3"]
    """Å."""


@dataclass(frozen=True, eq=False)
class Example:
    """One structure kept whole; vectors are forces (eV/Å) or displacements (Å) of all atoms."""

    name: str
    fields: dict[str, ndarray]
    """See :data:`FIELDS`; a row for each atom."""
    cell: Float[ndarray, "3 3"]
    """Å; zeros where it was not kept."""
    energies: tuple[float, float]
    """True and predicted, eV; NaN where there is none."""
    scores: dict[str, float]
    """Errors of the energy (eV) and of the vectors of free atoms (per component), and how far those atoms move (Å)."""
    why: str = ""
    """The reason why it is kept, where that is no score: ``best``, ``median`` or ``worst``."""
    frames: Frames | None = None
    """The steps that led to it, where it was relaxed."""


def arrays_of(examples: list[Example], what: str) -> dict[str, Shaped[ndarray, "_ ..."]]:
    """The examples as arrays of a file of predictions, structures one after the other; nothing if there are none.

    Args:
        examples: of one split.
        what: of the vectors: ``forces`` or ``displacements``.
    """
    if not examples:
        return {}
    fields, scores = (getattr(examples[0], name) for name in ("fields", "scores"))
    found = {f"example_{n}": np.concatenate([e.fields[n] for e in examples]) for n in fields}
    found |= {f"example_{n}": np.array([e.scores.get(n, np.nan) for e in examples]) for n in scores}
    found |= {
        "example_n_atoms": np.array([len(e.fields["numbers"]) for e in examples]),
        "example_names": np.array([e.name for e in examples]),
        "example_why": np.array([e.why for e in examples]),
        "example_cells": np.stack([e.cell for e in examples]),
        "example_energies": np.array([e.energies for e in examples]),
        "example_what": np.array(what),
    }
    frames = [e.frames for e in examples]
    if not any(frames):
        return found
    found["example_n_frames"] = np.array([0 if f is None else len(f.steps) for f in frames])
    there = [f for f in frames if f is not None]
    found |= {f"frame_{n}": np.concatenate([getattr(f, n) for f in there]) for n in ("steps", "energies", "fmax")}
    return found | {"frame_positions": np.concatenate([f.positions.reshape(-1, 3) for f in there])}


def examples_in(arrays: Mapping[str, Shaped[ndarray, "..."]]) -> list[Example]:
    """The examples of a file of predictions; the inverse of :func:`arrays_of`.

    Evaluations of earlier versions kept displacements alone: of these ``fixed``, ``tags``, cells, energies and scores
    are missing.
    """
    if "example_n_atoms" not in arrays:
        return []
    counts = arrays["example_n_atoms"]
    ends, n = np.cumsum(counts)[:-1], len(counts)
    there = {name: arrays[f"example_{name}"] for name in (*FIELDS, *SCORES) if f"example_{name}" in arrays}
    fields = {name: np.split(values, ends) for name, values in there.items() if name in FIELDS}
    names, why = (arrays.get(f"example_{name}", np.full(n, "")) for name in ("names", "why"))
    cells, frames = arrays.get("example_cells", np.zeros((n, 3, 3))), _frames_in(arrays, counts)
    energies = arrays.get("example_energies", np.full((n, 2), np.nan))
    return [
        Example(
            str(names[k]),
            {name: values[k] for name, values in fields.items()},
            cells[k],
            (float(energies[k, 0]), float(energies[k, 1])),
            {name: float(there[name][k]) for name in SCORES if name in there},
            str(why[k]),
            frames[k],
        )
        for k in range(n)
    ]


def what_in(arrays: Mapping[str, Shaped[ndarray, "..."]]) -> str:
    """The vectors of the examples of a file: ``forces`` or ``displacements``."""
    return str(arrays.get("example_what", "displacements"))


def _frames_in(arrays: Mapping[str, Shaped[ndarray, "..."]], n_atoms: Int[ndarray, "n"]) -> list[Frames | None]:
    if "example_n_frames" not in arrays:
        return [None] * len(n_atoms)
    found: list[Frames | None] = []
    frame = row = 0
    for n_frames, n in zip(arrays["example_n_frames"], n_atoms, strict=True):
        here = slice(frame, frame + n_frames)
        positions = arrays["frame_positions"][row : row + n_frames * n].reshape(n_frames, n, 3)
        steps, energies, fmax = (arrays[f"frame_{name}"][here] for name in ("steps", "energies", "fmax"))
        found.append(Frames(steps, energies, fmax, positions) if n_frames else None)
        frame, row = frame + n_frames, row + n_frames * n
    return found
