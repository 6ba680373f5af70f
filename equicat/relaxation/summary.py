"""Relaxations of a set of systems beside those of a reference: numbers for files, and words for tables and reports."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from equicat.data.structure import Structure
from equicat.relaxation.judge import CLASSES, class_of


def summary_of(relaxed: Sequence[Structure], reference: Sequence[Structure]) -> dict[str, Any]:
    """Counts and averages, as plain numbers.

    Args:
        relaxed: what :func:`equicat.relaxation.relax.relax` made of some systems.
        reference: the same systems as the reference relaxed them, with its energies (eV).

    Returns:
        ``n_converged``, ``success_rate`` (share that converged without a flag), ``mean_steps``, ``seconds_a_system``,
        ``flags`` and ``classes`` (:func:`~equicat.relaxation.judge.class_of`) by name with their numbers, and
        ``energy_mae_normal`` (eV), of the systems of class normal, None if there are none.
    """
    infos = [s.info for s in relaxed]
    flags = [flag for info in infos for flag in info["flags"].split(",") if flag]
    classes = [class_of(r, s) for r, s in zip(reference, relaxed, strict=True)]
    errors = [
        abs(s.energy - r.energy)
        for r, s, found in zip(reference, relaxed, classes, strict=True)
        if found == "normal" and r.energy is not None and s.energy is not None
    ]
    return {
        "n_converged": sum(info["converged"] for info in infos),
        "success_rate": float(np.mean([info["converged"] and not info["flags"] for info in infos])),
        "mean_steps": float(np.mean([info["n_steps"] for info in infos])),
        "seconds_a_system": float(np.mean([info["seconds"] for info in infos])),
        "flags": {flag: flags.count(flag) for flag in sorted(set(flags))},
        "classes": {name: classes.count(name) for name in CLASSES},
        "energy_mae_normal": float(np.mean(errors)) if errors else None,
    }


def words_on(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """The numbers of :func:`summary_of` in words: how relaxations ended, their classes, and what they took.

    Args:
        summary: those numbers; with ``seconds_a_system_direct``, the time of a direct model is said as well.
    """
    flags = ", ".join(f"{n} {flag}" for flag, n in summary["flags"].items()) or "none"
    classes = ", ".join(f"{n} {name}" for name, n in summary["classes"].items())
    normal, direct = summary["energy_mae_normal"], summary.get("seconds_a_system_direct")
    return (
        f"{summary['n_converged']} converged, {summary['success_rate']:.1%} converged without a flag; flags: {flags}",
        classes + ("" if normal is None else f"; energy MAE of the normal ones {normal:.4f} eV"),
        f"{summary['mean_steps']:.1f} steps and {summary['seconds_a_system']:.3f} s a system on average"
        + ("" if direct is None else f"; {direct:.3f} s by the direct model"),
    )
