"""Where a model errs: by element, adsorbate, size and strength of the force; distributions of errors; grades.

All of it comes from the arrays that :mod:`equicat.apply.kept` lists; predictions of earlier versions have fewer, and
what they lack is left out.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Float, Int, Shaped
from numpy import ndarray

from equicat.report import figures
from equicat.report.content import Figure, Key, figure_of, named_splits
from equicat.report.read import Evaluation
from equicat.tasks.metrics import ENERGY_THRESHOLD, FORCE_THRESHOLD
from equicat.tasks.tables import METRICS

MAX_SPLITS = 6
"""There are so many colours."""
MAX_GROUPS = 16
"""Adsorbates and elements that are shown: those of most systems."""
N_SIZES = 5
"""Groups of sizes."""
STEPS = {"forces": (0.05, 0.1, 0.2, 0.5, 1.0, 2.0), "displacements": (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)}
"""Lengths of forces (eV/Å) and displacements (Å) between groups."""
VECTOR_METRICS = {"forces": METRICS["forces_mae"], "displacements": METRICS["positions_mae"]}
MIN_IN_BIN = 5
"""Atoms that a bin of grades must have."""
N_GRADES = 12


@dataclass(frozen=True, eq=False)
class Errors:
    """The errors of one split, with what they are grouped by."""

    split: str
    systems: Int[ndarray, "n"]
    """System of each structure."""
    energy: Float[ndarray, "n"] | None
    """Absolute errors, eV."""
    vector: Float[ndarray, "m 3"] | None
    """Absolute errors of the components of each free atom, eV/Å or Å."""
    owner: Int[ndarray, "m"]
    """Structure of each free atom."""
    what: str
    """``forces``, ``displacements`` or empty."""
    arrays: dict[str, Shaped[ndarray, "..."]]


@dataclass(frozen=True)
class Breakdown:
    """Errors by one property: figures, and the numbers as a table."""

    title: str
    note: str
    figures: tuple[Figure, ...]
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def errors_of(shown: Sequence[Evaluation]) -> list[list[Errors]]:
    """The splits whose predictions hold systems and elements: those with forces, with displacements, with neither.

    Of the same data twice, as of a run's own validation and of an evaluation on them, the last counts.
    """
    found: dict[str, dict[bytes, Errors]] = {}
    for name, _, arrays in named_splits(shown):
        if not {"systems", "free_numbers", "n_free"} <= arrays.keys():
            continue
        what = next((key for key in STEPS if f"{key}_true" in arrays), "")
        energy = np.abs(arrays["energy_pred"] - arrays["energy_true"]) if "energy_true" in arrays else None
        vector = np.abs(arrays[f"{what}_pred"] - arrays[f"{what}_true"]) if what else None
        owner = np.repeat(np.arange(len(arrays["n_free"])), arrays["n_free"])
        errors = Errors(name, arrays["systems"], energy, vector, owner, what, arrays)
        same = b"".join(arrays[key].tobytes() for key in sorted(arrays) if key.endswith(("_true", "_pred")))
        found.setdefault(what, {})[hashlib.sha256(same).digest()] = errors
    return [list(found[what].values())[:MAX_SPLITS] for what in (*STEPS, "") if what in found]


def legend(errors: Sequence[Errors]) -> list[Key]:
    """The colour of each split."""
    return [Key(one.split, k + 1) for k, one in enumerate(errors)]


# ---- groups ------------------------------------------------------------------------------------------------------

Labels = Callable[[Errors], Shaped[ndarray, "_"]]


def breakdowns(errors: Sequence[Errors]) -> list[Breakdown]:
    """By element, adsorbate, size, and length of the force or displacement; what has one group only is left out.

    Args:
        errors: of splits with the same kind of vectors.
    """
    found = []
    what = errors[0].what
    for title, of_atoms, labels in (
        ("Element", True, _elements),
        ("Adsorbate", False, _adsorbates),
        ("Size", False, _sizes(errors)),
        ("Length of the force" if what == "forces" else "Length of the displacement", True, _lengths),
    ):
        if of_atoms and not what:
            continue
        breakdown = _breakdown(title, errors, labels, of_atoms)
        if breakdown is not None:
            found.append(breakdown)
    return found


def _elements(one: Errors) -> ndarray:
    return np.array(chemical_symbols)[one.arrays["free_numbers"]]


def _adsorbates(one: Errors) -> ndarray:
    names = one.arrays.get("adsorbates", np.full(len(one.systems), "?"))
    return np.where(names == "", "clean slab", np.where(names == "?", "", names))


def _sizes(errors: Sequence[Errors]) -> Labels:
    """Groups of about as many structures each, by their number of atoms."""
    every = np.concatenate([one.arrays["n_atoms"] for one in errors] or [np.array([0])])
    edges = np.unique(np.quantile(every, np.linspace(0, 1, N_SIZES + 1), method="nearest")).astype(int)
    if len(edges) < 2:
        return lambda one: np.full(len(one.systems), "")
    upper = [*(edges[1:-1] - 1), edges[-1]]
    names = [f"{a}–{b} atoms" if a < b else f"{a} atoms" for a, b in zip(edges[:-1], upper, strict=True)]
    return lambda one: np.array(names)[np.digitize(one.arrays["n_atoms"], edges[1:-1])]


def _lengths(one: Errors) -> ndarray:
    steps, unit = STEPS[one.what], "eV/Å" if one.what == "forces" else "Å"
    names = [f"< {steps[0]}", *(f"{a}–{b}" for a, b in pairwise(steps)), f"> {steps[-1]}"]
    lengths = np.linalg.norm(one.arrays[f"{one.what}_true"], axis=1)
    return np.array([f"{name} {unit}" for name in names])[np.digitize(lengths, steps)]


def _breakdown(title: str, errors: Sequence[Errors], labels: Labels, of_atoms: bool) -> Breakdown | None:
    names = [labels(one) for one in errors]
    groups, counts = _groups(names, errors, of_atoms)
    if len(groups) < 2:
        return None
    metrics = [] if of_atoms else [("energy", METRICS["energy_mae"])]
    metrics += [("vector", VECTOR_METRICS[errors[0].what])] if errors[0].what else []
    values = {
        (kind, one.split): [_mean(one, own == group, kind, of_atoms) for group in groups]
        for kind, _ in metrics
        for one, own in zip(errors, names, strict=True)
    }
    drawn, headings = [], ["", "split", "systems"]
    titles = [f"{group} · {n:,}" for group, n in counts.items()]
    for kind, metric in metrics:
        by_split = {one.split: values[kind, one.split] for one in errors}
        if np.isfinite(np.array(list(by_split.values()))).any():
            label = f"{metric.heading} by {title.lower()}"
            drawn.append(figure_of(metric.heading, figures.dots(by_split, titles, metric.heading, label)))
            headings.append(metric.heading)
    rows = []
    for k, group in enumerate(groups):
        for one, own in zip(errors, names, strict=True):
            n = _n_systems(one, own == group, of_atoms)
            if n:
                numbers = [(metric, values[kind, one.split][k]) for kind, metric in metrics]
                texts = [m.text(v) if np.isfinite(v) else "–" for m, v in numbers if m.heading in headings]
                rows.append((str(group), one.split, f"{n:,}", *texts))
    most = f" The {MAX_GROUPS} of most systems are shown." if len(groups) == MAX_GROUPS else ""
    return Breakdown(
        title, f"Beside each name stands the number of systems.{most}", tuple(drawn), tuple(headings), tuple(rows)
    )


def _groups(names: Sequence[ndarray], errors: Sequence[Errors], of_atoms: bool) -> tuple[list[str], dict[str, int]]:
    """The names that are not empty, and how many systems have each: in the order of numbers, or of most systems."""
    counts: dict[str, int] = {}
    for one, own in zip(errors, names, strict=True):
        for name in np.unique(own[own != ""]).tolist():
            counts[name] = counts.get(name, 0) + _n_systems(one, own == name, of_atoms)
    kept = sorted(counts, key=lambda name: -counts[name])[:MAX_GROUPS]
    numbered = [name for name in kept if name[0].isdigit() or name[0] in "<>"]
    if numbered == kept:
        kept.sort(key=lambda name: (name[0] == ">", name[0] != "<", float(name.strip("<> ").split("–")[0].split()[0])))
    return kept, {name: counts[name] for name in kept}


def _n_systems(one: Errors, which: Shaped[ndarray, "_"], of_atoms: bool) -> int:
    return len(np.unique(one.systems[one.owner[which]] if of_atoms else one.systems[which]))


def _mean(one: Errors, which: Shaped[ndarray, "_"], kind: str, of_atoms: bool) -> float:
    """The mean absolute error of the structures or atoms of a group; NaN if there are none."""
    if not which.any():
        return float("nan")
    if kind == "energy":
        return float("nan") if one.energy is None else float(one.energy[which].mean())
    if one.vector is None:
        return float("nan")
    chosen = one.vector[which if of_atoms else which[one.owner]]
    return float(chosen.mean()) if len(chosen) else float("nan")


# ---- distributions and grades --------------------------------------------------------------------------------------


def distributions(errors: Sequence[Errors]) -> list[Figure]:
    """The share of errors below each value, with OC20's thresholds marked."""
    drawn = []
    energy = {one.split: one.energy for one in errors if one.energy is not None}
    if energy:
        drawing = figures.cumulative(energy, "energy error [eV]", "share of energy errors below", ENERGY_THRESHOLD)
        drawn.append(figure_of("Energy", drawing, f"The line is EwT's threshold, {ENERGY_THRESHOLD} eV."))
    what = errors[0].what
    vector = {one.split: one.vector.ravel() for one in errors if one.vector is not None}
    if vector:
        title, unit = ("Force", "eV/Å") if what == "forces" else ("Position", "Å")
        at = FORCE_THRESHOLD if what == "forces" else None
        drawing = figures.cumulative(vector, f"{title.lower()} error [{unit}]", f"share of {what} errors below", at)
        said = (f"The line is EFwT's threshold, {at} eV/Å.",) if at else ()
        drawn.append(figure_of(f"{title} components", drawing, *said))
    return drawn


def grades(errors: Sequence[Errors]) -> list[Figure]:
    """Mean error of free atoms against their extrapolation grade; nothing if predictions hold no grades."""
    curves, said = [], []
    graded = [(k, one) for k, one in enumerate(errors) if "grades" in one.arrays and one.vector is not None]
    if not graded:
        return []
    every = np.concatenate([one.arrays["grades"] for _, one in graded])
    edges = np.unique(np.quantile(every[every > 0], np.linspace(0, 1, N_GRADES + 1))) if (every > 0).any() else every
    for k, one in graded:
        assert one.vector is not None
        grade, error = one.arrays["grades"], one.vector.mean(1)
        place = np.digitize(grade, edges[1:-1])
        bins = [b for b in range(N_GRADES) if (place == b).sum() >= MIN_IN_BIN]
        if bins:
            middles, means = (np.array([values[place == b].mean() for b in bins]) for values in (grade, error))
            curves.append(figures.Curve(middles, means, k, title=one.split))
            said.append(f"{one.split} {_rank_correlation(grade, error):.2f}")
    if not curves:
        return []
    metric = VECTOR_METRICS[graded[0][1].what]
    scales = figures.Scales("extrapolation grade", metric.heading, log_x=True, log_y=True)
    drawing = figures.lines(curves, scales, f"{metric.heading} against the extrapolation grade", at=1.0)
    return [figure_of("Free atoms", drawing, f"Rank correlation: {', '.join(said)}.")]


def _rank_correlation(a: Float[ndarray, "n"], b: Float[ndarray, "n"]) -> float:
    """Spearman's; 0 where one of them does not vary."""
    if min(np.ptp(a), np.ptp(b)) == 0:
        return 0.0
    first, second = (np.argsort(np.argsort(values)) for values in (a, b))
    return float(np.corrcoef(first, second)[0, 1])
