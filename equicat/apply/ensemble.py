"""Predictions of an ensemble: models that differ by their seed, their mean, and their spread as an uncertainty."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equicat.data.structure import Structure
from equicat.run_directory import DESCRIPTION, WEIGHTS
from equicat.tasks.tasks import AnyPrediction


def members_of(run: str | Path) -> list[Path]:
    """The runs of an ensemble that `equicat train --run.members N` wrote, or the run itself."""
    run = Path(run)
    found = [path.parent for path in sorted(run.glob(f"seed_*/{WEIGHTS}"))]
    return [run] if (run / DESCRIPTION).is_file() or not found else found


def mean_prediction(predicted: Sequence[AnyPrediction]) -> AnyPrediction:
    """The mean of what several models predict for one batch, quantity by quantity."""
    first = predicted[0]
    if len(predicted) == 1:
        return first
    by_name = {part.name: [getattr(p, part.name) for p in predicted] for part in dataclasses.fields(first)}
    means: dict[str, Any] = {name: torch.stack(v).mean(0) for name, v in by_name.items() if v[0] is not None}
    return dataclasses.replace(first, **means)


def mean_of(predicted: Sequence[Structure]) -> Structure:
    """One structure as several models predicted it: the mean of all, and in ``info`` how far they are apart.

    Args:
        predicted: by each model; the first one's grades are kept.

    Returns:
        The structure with mean labels. ``energy_std`` is the standard deviation of the (relaxed) energy in eV,
        ``forces_std`` the largest of a free atom's force in eV/Å, root mean square of the deviations' lengths, and
        ``positions_std`` the same of relaxed positions in Å.
    """
    first, labels, spread = predicted[0], dict[str, Any](), dict[str, float]()
    if len(predicted) == 1:
        return first
    assert first.fixed is not None
    for name in ("energy", "forces", "stress", "relaxed_energy", "relaxed_positions"):
        if getattr(first, name) is None:
            continue
        values = np.stack([np.asarray(getattr(s, name)) for s in predicted])
        mean = values.mean(0)
        labels[name] = float(mean) if mean.ndim == 0 else mean
        if mean.ndim == 0:
            spread["energy_std"] = float(values.std())
        elif name != "stress":
            lengths = np.sqrt(np.square(values - mean).sum(2).mean(0))[~first.fixed]
            spread["forces_std" if name == "forces" else "positions_std"] = float(lengths.max(initial=0.0))
    info = {**first.info, **{name: round(value, 6) for name, value in spread.items()}, "n_models": len(predicted)}
    return dataclasses.replace(first, **labels, info=info)
