"""Structures of a report that can be turned: those with the largest errors, and chosen relaxations with traces."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from equicat.report import figures, pictures
from equicat.report.content import Figure, figure_of, named_splits
from equicat.report.read import Evaluation
from equicat.report.viewer.viewer import Arrows, State, View
from equicat.tasks.examples import N_WORST, Example, examples_in, what_in

LONGEST = 3.0
"""Å; arrows of forces are made shorter together where the longest would be longer than this."""


@dataclass(frozen=True, eq=False)
class Shown:
    """A structure that an evaluation kept whole, with its split and the quantity that its vectors are."""

    split: str
    what: str
    """``forces`` or ``displacements``: the vectors ``true`` and ``pred``, eV/Å or Å."""
    example: Example

    def field(self, name: str) -> Any:
        """One of :data:`~equicat.tasks.examples.FIELDS`; None where it was not kept."""
        return self.example.fields.get(name)

    def score(self, name: str) -> float:
        """One of :data:`~equicat.tasks.examples.SCORES`; NaN where it was not kept."""
        return self.example.scores.get(name, float("nan"))


def examples(shown: Sequence[Evaluation]) -> list[Shown]:
    """All examples of all splits."""
    return [
        Shown(split, what_in(arrays), example)
        for split, _, arrays in named_splits(shown)
        for example in examples_in(arrays)
    ]


# ---- what is shown -----------------------------------------------------------------------------------------------


def worst(every: Sequence[Shown], score: str) -> list[Figure]:
    """The structures with the largest ``vector_error`` of forces, or ``energy_error``, over all splits."""
    forces = {  # the same structure may be in a run's own validation and in an evaluation on the same data
        (e.example.name, e.score("vector_error"), e.score("energy_error")): e
        for e in every
        if e.what == "forces" and np.isfinite(e.score(score))
    }
    chosen = sorted(forces.values(), key=lambda e: -e.score(score))[:N_WORST]
    return [_figure(example, f"{score}-{k}") for k, example in enumerate(chosen)]


def moved(every: Sequence[Shown]) -> list[Figure]:
    """Where atoms go, and where the model says they go: the systems that move most, of splits without relaxations."""
    relaxed = {e.split for e in every if e.example.why}
    chosen = [e for e in every if e.what == "displacements" and e.split not in relaxed]
    return [_figure(example, f"moved-{k}") for k, example in enumerate(chosen)]


def relaxations(every: Sequence[Shown]) -> list[Figure]:
    """The relaxations of each split with the best, the median and the worst energy."""
    chosen = [e for e in every if e.example.why]
    return [_figure(example, f"relaxation-{k}") for k, example in enumerate(chosen)]


def _figure(shown: Shown, key: str) -> Figure:
    example, details = shown.example, [shown.split]
    energy_error, vector_error = shown.score("energy_error"), shown.score("vector_error")
    if example.why:
        details = [f"{shown.split}, {example.why} energy"]
    if np.isfinite(energy_error):
        details.append(f"energy error {energy_error:.3f} eV")
    if np.isfinite(vector_error):
        kind, unit = ("force", "eV/Å") if shown.what == "forces" else ("position", "Å")
        details.append(f"{kind} error {vector_error:.3f} {unit}")
    if example.frames is not None:
        details.append(f"{example.frames.steps[-1]} steps")
    scale, vectors = 1.0, (shown.field("true"), shown.field("pred"))
    if shown.what == "forces":
        longest = max(float(np.linalg.norm(v, axis=1).max(initial=0.0)) for v in vectors)
        scale = min(1.0, LONGEST / longest) if np.isfinite(longest) and longest > 0 else 1.0
    true, pred = (np.nan_to_num(v) * scale for v in vectors)
    numbers, positions = shown.field("numbers"), shown.field("positions")
    still = pictures.picture(pictures.Relaxation(example.name, numbers, positions, true, pred, shown.what))
    return Figure(example.name, tuple(details), still, view=_view(shown, scale), key=key)


def _view(shown: Shown, scale: float) -> View:
    example, positions, true, pred = shown.example, *(shown.field(name) for name in ("positions", "true", "pred"))
    arrows = (Arrows(f"reference {shown.what}", true, 1, scale), Arrows(f"predicted {shown.what}", pred, 2, scale))
    if shown.what == "forces":
        states = [State("structure", positions, arrows)]
    elif example.frames is not None:
        # Steps may begin in another image of the cell than the positions do; both are those of the initial structure.
        frames = zip(example.frames.steps, example.frames.positions, strict=True)
        states = [*(State(f"step {n}", p) for n, p in frames), State("reference", positions + true)]
    else:
        states = [State("initial", positions, arrows)]
        states += [State("relaxed", positions + true), State("predicted", positions + pred)]
    fixed, tags = shown.field("fixed"), shown.field("tags")
    return View(example.name, shown.field("numbers"), tuple(states), example.cell, fixed, tags)


def traces(every: Sequence[Shown]) -> list[Figure]:
    """Energies and longest forces against the steps of the chosen relaxations, split by split."""
    drawn = []
    for split in dict.fromkeys(shown.split for shown in every):
        energies, forces = [], []
        relaxed = [(e.example, e.example.frames) for e in every if e.split == split and e.example.frames is not None]
        for k, (example, frames) in enumerate(relaxed):
            x = frames.steps.astype(float)
            energies.append(figures.Curve(x, frames.energies - example.energies[0], k, title=example.why))
            forces.append(figures.Curve(x, frames.fmax, k, title=example.why))
        if relaxed:
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
