"""Remarks beside the numbers of an evaluation: few systems, systems trained on, no better than a guess."""

import math
from collections.abc import Mapping
from typing import Any

from equicat.tasks.tables import FEW_SYSTEMS, amount, metrics_shown

NO_BETTER = 0.95
"""A model whose error is above this share of the best baseline's has learnt nothing of use."""
OVERFITTED = 4.0
"""A validation error of more than so many times the training error is remarked upon."""


def remarks_on(splits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Remarks on the splits of an evaluation, one line each; ``splits`` as in ``evaluation.json``."""
    remarks = []
    few = [
        f"{name} {amount(s['n_structures'], s['n_systems'])}"
        for name, s in splits.items()
        if s["n_systems"] < FEW_SYSTEMS
    ]
    if few:
        remarks.append(
            "errors from few systems say little about the next one, those of single relaxations differ several-fold: "
            + ", ".join(few)
        )
    for name, split in splits.items():
        n, known = split["n_systems"], split["n_trained_on"]
        if known:
            remarks.append(
                f"{name}: {known:,} of {n:,} systems were trained on (the same relaxation or structure); there the "
                "model repeats what it has seen, and new systems will have larger errors"
            )
        remarks += [f"{name}: {text}" for text in no_better_than_a_guess(split["rows"])]
    return remarks


def no_better_than_a_guess(rows: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """For each headline error of the model (the first row) that a baseline beats or nearly so, one line."""
    (_, model), *baselines = rows.items()
    lines = []
    for metric in metrics_shown("headline"):
        error = model.get(metric.name)
        guesses = {title: row.get(metric.name) for title, row in baselines}
        finite = [(value, title) for title, value in guesses.items() if value is not None and math.isfinite(value)]
        if error is None or not finite:
            continue
        best, title = min(finite)
        if not error <= NO_BETTER * best:  # a model's NaN is no better either
            lines.append(
                f"{metric.title} {metric.text(error)} {metric.unit} is no better than the baseline {title!r} "
                f"({metric.text(best)}): the model has not learnt this"
            )
    return lines


def overfitting(training: Mapping[str, float], validation: Mapping[str, float | None]) -> list[str]:
    """One line if training errors of the saved epoch are far below those of validation.

    Args:
        training: the row of ``metrics.csv``, its columns ``train_*`` without the prefix.
        validation: the model's row of the evaluation.
    """
    lines = []
    for metric in metrics_shown("headline"):
        low, high = training.get(metric.name, math.nan), validation.get(metric.name)
        if high is not None and high > OVERFITTED * low:
            lines.append(
                f"{metric.title} {metric.text(low)} {metric.unit} in training, {metric.text(high)} in validation"
            )
    if not lines:
        return []
    return [f"{'; '.join(lines)}: the model knows its training data by heart; more systems would help most"]
