"""Learning rates of parts of a model: slower ones for what was learned before, none for what is to stay."""

from collections.abc import Mapping

import torch
from torch import nn

from equicat.errors import InputError, nearest


def factors_of(model: nn.Module, rates: Mapping[str, float]) -> dict[str, float]:
    """The factor on the learning rate of each parameter.

    Args:
        model: holds the parameters.
        rates: factors by beginnings of names, such as ``network.two_body``; the longest that fits counts.

    Raises:
        InputError: if no parameter has such a name.
    """
    names = [name for name, _ in model.named_parameters()]

    def fits(part: str, name: str) -> bool:
        return name == part or name.startswith(f"{part}.")

    parts = {name.rsplit(".", depth)[0] for name in names for depth in range(name.count(".") + 1)}
    for part in rates:
        if not any(fits(part, name) for name in names):
            first = ", ".join(sorted(part for part in parts if part.count(".") < 2))
            raise InputError(f"optimizer.rates: the model has no part {part!r}{nearest(part, parts)}; it has {first}")
    return {
        name: rates[max(fitting, key=len)] if (fitting := [part for part in rates if fits(part, name)]) else 1.0
        for name in names
    }


def freeze(model: nn.Module, rates: Mapping[str, float]) -> None:
    """Take parameters whose factor is 0 out of the training.

    Raises:
        InputError: if nothing is left to train, or a part is not there.
    """
    factors = factors_of(model, rates)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(factors[name] > 0)
    if not any(factors.values()):
        raise InputError("optimizer.rates are all 0, which leaves nothing to train")


def split_by_rate(optimizer: torch.optim.Optimizer, model: nn.Module, rates: Mapping[str, float]) -> None:
    """Give parameters with another factor groups of their own, whose entry ``rate`` is the factor."""
    if not rates:
        return
    factors = factors_of(model, rates)
    factor_of = {id(parameter): factors[name] for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        for factor in sorted({factor_of[id(p)] for p in group["params"]} - {0.0}, reverse=True):
            chosen = [p for p in group["params"] if factor_of[id(p)] == factor]
            groups.append({**group, "params": chosen, "rate": factor})
    optimizer.param_groups[:] = groups
