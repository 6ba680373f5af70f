"""A trained model that learns further elements: what it knows stays, and a new one begins as the most similar."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from jaxtyping import Shaped
from torch import Tensor

from equicat.errors import InputError
from equicat.models import saved
from equicat.models.direct import DirectModel
from equicat.models.gradient import ComputeOptions
from equicat.models.model import ModelInfo
from equicat.models.potential import Potential

NOBLE = (0, 2, 10, 18, 36, 54, 86, 118)
"""Atomic numbers at which the periods of the periodic table end."""
PERIOD = 0.4
"""Distance between two elements of one group in neighbouring periods, where that between two groups is 1."""


def group_and_period(z: int) -> tuple[int, int]:
    """Place in the periodic table, groups 1 to 18; lanthanides and actinides stand in group 3."""
    period = next(p for p, last in enumerate(NOBLE) if z <= last)
    from_the_left, from_the_right = z - NOBLE[period - 1], NOBLE[period] - z
    if from_the_left <= 2 and z != 2:
        return from_the_left, period
    return max(18 - from_the_right, 3), period


def most_similar(z: int, known: Sequence[int]) -> int:
    """The known element that is nearest in the periodic table, the lighter one of two."""
    group, period = group_and_period(z)

    def distance(other: int) -> float:
        its_group, its_period = group_and_period(other)
        return abs(group - its_group) + PERIOD * abs(period - its_period)

    return min(known, key=distance)


def with_new_elements(
    model: Potential | DirectModel, new: Sequence[int], compute: ComputeOptions
) -> tuple[Potential | DirectModel, str]:
    """A model that predicts the same for the elements that it knows, and has rows for new ones in all its tables.

    A row of a new element, or of a pair with one, is a copy of that of the most similar known element. Its reference
    energy is 0 until it is fitted.

    Args:
        model: as it was trained.
        new: atomic numbers that it does not know.
        compute: how the larger model computes derivatives.

    Returns:
        The model, and what there is to say.

    Raises:
        InputError: if the architecture has numbers for its elements that are no such tables.
    """
    info, known = model.info, list(model.elements)
    elements = tuple(sorted({*known, *new}))
    like = [known.index(z if z in known else most_similar(z, known)) for z in elements]
    pairs = [a * len(known) + b for a in like for b in like]
    statistics = info.statistics
    references = [statistics.linear_reference[i] if z in known else 0.0 for z, i in zip(elements, like, strict=True)]
    statistics = replace(statistics, elements=elements, linear_reference=tuple(references))
    larger = saved.build(_info_for(replace(info, statistics=statistics), like, pairs), compute=compute)
    state, before = larger.state_dict(), model.state_dict()
    for name, tensor in state.items():
        if name == "reference_energies":
            rows = before[name][like]
            state[name] = torch.where(torch.tensor([z in known for z in elements]), rows, 0.0)
        else:
            state[name] = _grown(name, before[name], tensor, like, pairs)
    larger.load_state_dict(state)
    names = [f"{chemical_symbols[z]} as {chemical_symbols[known[like[elements.index(z)]]]}" for z in new]
    return larger, f"new elements begin as the most similar known ones: {', '.join(names)}"


def _grown(
    name: str, before: Shaped[Tensor, "..."], now: Shaped[Tensor, "..."], like: list[int], pairs: list[int]
) -> Shaped[Tensor, "..."]:
    """A tensor of the larger model: as it was, or with rows for new elements or for pairs with them."""
    if before.shape == now.shape:
        return before
    for rows in (like, pairs):
        if before.shape[1:] == now.shape[1:] and len(now) == len(rows) and len(before) == max(rows) + 1:
            return before[rows]
    raise InputError(f"run.init_from: {name} has no rows for elements, so this network cannot learn new ones")


def _info_for(info: ModelInfo, like: list[int], pairs: list[int]) -> ModelInfo:
    """The description with numbers for new elements where it has one for each element, or ordered pair of them."""
    options: dict[str, Any] = {field.name: getattr(info.network, field.name) for field in fields(info.network)}
    by_element = {"pair_cutoffs": pairs, "neighbors_of_element": like}
    grown: dict[str, Any] = {
        name: _taken(options[name], rows) for name, rows in by_element.items() if options.get(name)
    }
    terms, repulsion = info.terms, info.terms.repulsion
    if repulsion is not None and len(repulsion.cutoffs) > 1:
        repulsion = replace(repulsion, cutoffs=_taken(repulsion.cutoffs, pairs))
    factors = None if terms.factors is None else _taken(terms.factors, like)
    return replace(
        info, network=replace(info.network, **grown), terms=replace(terms, factors=factors, repulsion=repulsion)
    )


def _taken(values: Sequence[float], rows: list[int]) -> tuple[float, ...]:
    return tuple(np.asarray(values)[rows].tolist())
