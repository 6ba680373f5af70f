"""Structures of a report that can be turned: those with the largest errors, and chosen relaxations with traces."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray

from equicat.report import figures, pictures
from equicat.report.content import Figure, figure_of, named_splits
from equicat.report.read import Evaluation
from equicat.report.viewer.viewer import Arrows, State, View

N_WORST = 10
LONGEST = 3.0
"""Å; arrows of forces are made shorter together where the longest would be longer than this."""


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of a relaxation: their numbers, energies (eV), longest forces (eV/Å) and positions (Å)."""

    numbers: Int[ndarray, "n_frames"]
    energies: Float[ndarray, "n_frames"]
    fmax: Float[ndarray, "n_frames"]
    positions: Float[ndarray, "n_frames n_atoms 3"]


@dataclass(frozen=True, eq=False)
class Example:
    """One structure that an evaluation kept whole (:mod:`equicat.apply.kept`)."""

    split: str
    name: str
    what: str
    """``forces`` or ``displacements``: the vectors ``true`` and ``pred``, eV/Å or Å."""
    why: str
    """``best``, ``median`` or ``worst`` of the relaxations; else empty."""
    numbers: Int[ndarray, "n_atoms"]
    positions: Float[ndarray, "n_atoms 3"]
    true: Float[ndarray, "n_atoms 3"]
    pred: Float[ndarray, "n_atoms 3"]
    fixed: Bool[ndarray, "n_atoms"] | None = None
    tags: Int[ndarray, "n_atoms"] | None = None
    cell: Float[ndarray, "3 3"] | None = None
    energies: Float[ndarray, "2"] | None = None
    """True and predicted, eV."""
    vector_error: float = float("nan")
    energy_error: float = float("nan")
    steps: Steps | None = None


def examples(shown: Sequence[Evaluation]) -> list[Example]:
    """All examples of all splits."""
    return [example for split, _, arrays in named_splits(shown) for example in _examples(split, arrays)]


def _examples(split: str, arrays: dict[str, Shaped[ndarray, "..."]]) -> list[Example]:
    if "example_n_atoms" not in arrays:
        return []
    counts = arrays["example_n_atoms"]
    ends = np.cumsum(counts)[:-1]
    of_atoms = {
        name: np.split(arrays[f"example_{name}"], ends)
        for name in ("numbers", "positions", "true", "pred", "fixed", "tags")
        if f"example_{name}" in arrays
    }
    of_examples = {"name": "names", "why": "why", "cell": "cells", "energies": "energies"}
    of_examples |= {name: name for name in ("vector_error", "energy_error")}
    there = {name: arrays[f"example_{key}"] for name, key in of_examples.items() if f"example_{key}" in arrays}
    steps = _steps(arrays, counts)
    found = []
    for k in range(len(counts)):
        own: dict[str, Any] = {name: values[k] for name, values in (of_atoms | there).items()}
        own |= {name: str(own.get(name, "")) for name in ("name", "why")}
        what = str(arrays.get("example_what", "displacements"))
        found.append(Example(split=split, what=what, steps=steps[k], **own))
    return found


def _steps(arrays: dict[str, Shaped[ndarray, "..."]], n_atoms: Int[ndarray, "n"]) -> list[Steps | None]:
    if "example_n_frames" not in arrays:
        return [None] * len(n_atoms)
    found: list[Steps | None] = []
    frame = row = 0
    for n_frames, n in zip(arrays["example_n_frames"], n_atoms, strict=True):
        here = slice(frame, frame + n_frames)
        positions = arrays["frame_positions"][row : row + n_frames * n].reshape(n_frames, n, 3)
        numbers, energies, fmax = (arrays[f"frame_{name}"][here] for name in ("steps", "energies", "fmax"))
        found.append(Steps(numbers, energies, fmax, positions) if n_frames else None)
        frame, row = frame + n_frames, row + n_frames * n
    return found


# ---- what is shown -----------------------------------------------------------------------------------------------


def worst(every: Sequence[Example], score: str) -> list[Figure]:
    """The structures with the largest ``vector_error`` of forces, or ``energy_error``, over all splits."""
    forces = {  # the same structure may be in a run's own validation and in an evaluation on the same data
        (e.name, e.vector_error, e.energy_error): e
        for e in every
        if e.what == "forces" and np.isfinite(getattr(e, score))
    }
    chosen = sorted(forces.values(), key=lambda e: -getattr(e, score))[:N_WORST]
    return [_figure(example, f"{score}-{k}") for k, example in enumerate(chosen)]


def moved(every: Sequence[Example]) -> list[Figure]:
    """Where atoms go, and where the model says they go: the systems that move most, of splits without relaxations."""
    relaxed = {example.split for example in every if example.why}
    chosen = [e for e in every if e.what == "displacements" and e.split not in relaxed]
    return [_figure(example, f"moved-{k}") for k, example in enumerate(chosen)]


def relaxations(every: Sequence[Example]) -> list[Figure]:
    """The relaxations of each split with the best, the median and the worst energy."""
    chosen = [example for example in every if example.why]
    return [_figure(example, f"relaxation-{k}") for k, example in enumerate(chosen)]


def _figure(example: Example, key: str) -> Figure:
    details = [example.split]
    if example.why:
        details = [f"{example.split}, {example.why} energy"]
    if np.isfinite(example.energy_error):
        details.append(f"energy error {example.energy_error:.3f} eV")
    if np.isfinite(example.vector_error):
        kind, unit = ("force", "eV/Å") if example.what == "forces" else ("position", "Å")
        details.append(f"{kind} error {example.vector_error:.3f} {unit}")
    if example.steps is not None:
        details.append(f"{example.steps.numbers[-1]} steps")
    scale = 1.0
    if example.what == "forces":
        longest = max(float(np.linalg.norm(v, axis=1).max(initial=0.0)) for v in (example.true, example.pred))
        scale = min(1.0, LONGEST / longest) if np.isfinite(longest) and longest > 0 else 1.0
    vectors = (np.nan_to_num(example.true) * scale, np.nan_to_num(example.pred) * scale)
    still = pictures.picture(
        pictures.Relaxation(example.name, example.numbers, example.positions, *vectors, example.what)
    )
    return Figure(example.name, tuple(details), still, view=_view(example, scale), key=key)


def _view(example: Example, scale: float) -> View:
    e = example
    word = "forces" if e.what == "forces" else "displacements"
    arrows = (Arrows(f"reference {word}", e.true, 1, scale), Arrows(f"predicted {word}", e.pred, 2, scale))
    if e.what == "forces":
        states = [State("structure", e.positions, arrows)]
    elif e.steps is not None:
        # Steps may begin in another image of the cell than the positions do; both are those of the initial structure.
        states = [State(f"step {n}", p) for n, p in zip(e.steps.numbers, e.steps.positions, strict=True)]
        states.append(State("reference", e.positions + e.true))
    else:
        states = [State("initial", e.positions, arrows)]
        states += [State("relaxed", e.positions + e.true), State("predicted", e.positions + e.pred)]
    return View(e.name, e.numbers, tuple(states), e.cell, e.fixed, e.tags)


def traces(every: Sequence[Example]) -> list[Figure]:
    """Energies and longest forces against the steps of the chosen relaxations, split by split."""
    drawn = []
    for split in dict.fromkeys(example.split for example in every):
        chosen = [e for e in every if e.split == split and e.steps is not None and e.energies is not None]
        energies, forces = [], []
        for k, e in enumerate(chosen):
            assert e.steps is not None
            assert e.energies is not None
            x = e.steps.numbers.astype(float)
            energies.append(figures.Curve(x, e.steps.energies - e.energies[0], k, title=e.why))
            forces.append(figures.Curve(x, e.steps.fmax, k, title=e.why))
        if chosen:
            above = figures.Scales("step", "energy − reference [eV]")
            longest = figures.Scales("step", "longest force [eV/Å]", log_y=True)
            drawn.append(
                figure_of(split, figures.lines(energies, above, f"energies of relaxations, {split}"), "energy")
            )
            drawn.append(figure_of(split, figures.lines(forces, longest, f"forces of relaxations, {split}"), "force"))
    return drawn


def endings(shown: Sequence[Evaluation]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """How the relaxations of each split ended: headings and rows of a table, with a column for each flag and class."""
    summaries = {name: result["relaxations"] for name, result, _ in named_splits(shown) if result.get("relaxations")}
    flags = sorted({flag for summary in summaries.values() for flag in summary["flags"]})
    classes = list(dict.fromkeys(name for summary in summaries.values() for name in summary["classes"]))
    rows = []
    for name, summary in summaries.items():
        numbers = [str(summary["flags"].get(flag, 0)) for flag in flags]
        numbers += [str(summary["classes"].get(kind, 0)) for kind in classes]
        first = (f"{summary['n_converged']}", f"{summary['success_rate']:.0%}", f"{summary['mean_steps']:.1f}")
        rows.append((name, *first, *numbers))
    headings = ("split", "converged", "without a flag", "mean steps", *(f"flag: {flag}" for flag in flags), *classes)
    return headings, rows
