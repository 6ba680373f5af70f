"""Structures as an ensemble predicts them: the mean of its models, and their spread as an uncertainty."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from equicat.data.structure import Structure


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
