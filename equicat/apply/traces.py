"""Chosen relaxations of an evaluation, kept step by step: the best, the median and the worst by their energies."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from equicat.data.structure import Structure
from equicat.models.potential import Potential
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.driver import Driver, Outcome
from equicat.relaxation.models import force_model
from equicat.tasks.examples import Example, Frames

CHOSEN = ("best", "median", "worst")
MAX_FRAMES = 40
"""Steps of a relaxation whose positions are kept, evenly spread, the first and the last among them."""


def chosen(errors: Float[ndarray, "n"]) -> dict[str, int]:
    """The places of the smallest, the median and the largest error; fewer where there are fewer finite ones.

    Args:
        errors: absolute errors in eV; those that are not finite are not chosen.
    """
    order = [int(k) for k in np.argsort(errors, kind="stable") if np.isfinite(errors[k])]
    if not order:
        return {}
    places = {"worst": order[-1], "median": order[len(order) // 2], "best": order[0]}
    first = {place: why for why, place in places.items()}  # one place is called by the last name that it has
    return {why: place for place, why in sorted(first.items(), key=lambda item: CHOSEN.index(item[1]))}


def with_frames(
    examples: Sequence[Example], initial: Sequence[Structure], model: Potential, config: RelaxConfig
) -> list[Example]:
    """The examples with the steps that lead to them; relaxes them once more.

    Which systems are chosen is known when all are relaxed, and keeping the steps of all would cost more than this: a
    relaxation whose steps are kept computes fixed atoms at every step as well.

    Args:
        examples: a few systems.
        initial: the structures from which they were relaxed, in the same order.
        model: that relaxed them.
        config: how they were relaxed.
    """
    driver = Driver(force_model(model), config, keep_frames=True)
    outcomes = {outcome.number: outcome for outcome in driver.run(enumerate(initial))}
    return [dataclasses.replace(example, frames=_frames(outcomes[k])) for k, example in enumerate(examples)]


def _frames(outcome: Outcome) -> Frames | None:
    frames = outcome.frames
    if not frames:
        return None
    assert outcome.initial.fixed is not None
    free = ~outcome.initial.fixed
    steps = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), MAX_FRAMES)).round().astype(int))
    return Frames(
        steps,
        np.array([frames[k].energy for k in steps]),
        np.array([np.linalg.norm(frames[k].forces[free], axis=1).max(initial=0.0) for k in steps]),
        np.stack([frames[k].positions for k in steps]).astype(np.float32),
    )
