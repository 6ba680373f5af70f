"""The optimiser of a training run, and the learning rate at each of its steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

import torch
from torch import nn

from equicat.errors import InputError
from equicat.networks.published import published_scales
from equicat.options.values import Checked, Natural, NonNegativeNumber, Positive, PositiveNumber, Range, Share
from equicat.training.muon import EPS, Muon
from equicat.training.rates import split_by_rate
from equicat.training.soap import Soap

Factor = Annotated[float, Range(above=0, below=1)]
"""Factor that lowers a rate."""
ONLY_WITH = {
    "matrix_lr": ("name", "muon"),
    "amsgrad": ("name", "adam"),
    "parametrization": ("name", "adam"),
    "milestones": ("schedule", "milestones"),
    "milestone_factor": ("schedule", "milestones"),
    "plateau_factor": ("schedule", "plateau"),
    "plateau_patience": ("schedule", "plateau"),
}
"""Options that only one choice of another option reads."""
LAST_SHARE = 0.01
"""Share of the learning rate at which the cosine schedule ends."""
BETTER = 1e-4
"""A validation loss counts as better, for the plateau schedule, if it is lower by this share of the best."""


@dataclass(frozen=True)
class OptimizerConfig(Checked, section="optimizer"):
    """Adam, Muon or SOAP, a schedule, an average of the weights."""

    name: Literal["adam", "muon", "soap"] = "adam"
    """adam; muon, which orthogonalises the steps of weight matrices and leaves the rest to Adam; or soap, Adam in the
    eigenbasis of each matrix's gradients."""
    lr: PositiveNumber = 2e-3
    """Learning rate (of Adam and SOAP)."""
    matrix_lr: PositiveNumber = 0.01
    """Learning rate of Muon, of the weight matrices."""
    rates: dict[str, NonNegativeNumber] = field(default_factory=dict)
    """Factors on the learning rate of parts of the model, such as {network.two_body: 0.1}; 0 freezes a part."""
    schedule: Literal["plateau", "cosine", "milestones", "constant"] = "plateau"
    """plateau lowers the rate when val_loss stalls; cosine takes it to 1% over max_epochs, max_steps or
    max_minutes; milestones lowers it at given steps."""
    warmup_steps: Natural = 0
    """Linear warm-up of the rate (all but plateau)."""
    warmup_from: Share = 0.0
    """Share of the rate at which the warm-up starts."""
    milestones: tuple[Positive, ...] = ()
    """Steps at which the rate is lowered (milestones)."""
    milestone_factor: Factor = 0.1
    """Factor on the rate at each milestone."""
    plateau_factor: Factor = 0.8
    """Factor on the rate at each plateau."""
    plateau_patience: Natural = 5
    """Validations without a better val_loss before that."""
    ema_decay: Annotated[float, Range(at_least=0, below=1)] | None = 0.99
    """Exponential moving average of the weights, used for validation and saved; null turns it off."""
    gradient_clip: PositiveNumber | None = 10.0
    """Largest norm of the gradient; null turns it off."""
    weight_decay: NonNegativeNumber = 0.0
    """Decoupled weight decay (AdamW)."""
    amsgrad: bool = False
    """Adam with the largest second moment so far (Reddi et al. 2018)."""
    parametrization: Literal["equicat", "published"] = "equicat"
    """The weights that a step of Adam moves by lr: equicat, those that are applied; published, as in the code of
    Allegro's authors, those before a factor of about 1/sqrt(n_in), which makes steps 5 to 25 times smaller."""

    def __post_init__(self) -> None:
        super().__post_init__()
        defaults = {option.name: option.default for option in fields(self)}
        given = {name for name, default in defaults.items() if getattr(self, name) != default}
        for name, (choice, value) in ONLY_WITH.items():
            if name in given and getattr(self, choice) != value:
                raise InputError(
                    f"optimizer.{name} is for optimizer.{choice} {value}, but that is {getattr(self, choice)}; "
                    "leave one of them out"
                )
        if self.schedule == "milestones" and not self.milestones:
            raise InputError("optimizer.milestones is empty, so optimizer.schedule milestones never lowers the rate")
        if self.schedule == "plateau" and self.warmup_steps:
            raise InputError(
                f"optimizer.warmup_steps is {self.warmup_steps}, but the schedule plateau has no warm-up; take "
                "optimizer.schedule cosine, milestones or constant, or warmup_steps 0"
            )
        if self.warmup_from and not self.warmup_steps:
            raise InputError("optimizer.warmup_from is where a warm-up starts, but optimizer.warmup_steps is 0")


def make_optimizer(options: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a model's parameters that the options name, with the full learning rates.

    With ``parametrization`` published, weights W = s w are stepped as if w were the parameter, with the constants s of
    :func:`~equicat.networks.published.published_scales`. The gradient by w is s times that by W, a factor that Adam
    divides out but for its ε; so a step of w by ``lr`` is Adam's step of W with the rate s lr and with ε / s. The decay
    of w, a share lr λ of it a step, is that of W with λ / s. An average of W is s times that of w.

    Raises:
        InputError: if the parametrisation is published and the model holds no published Allegro.
    """
    if options.name == "muon":
        muon = Muon(model.parameters(), options.lr, options.matrix_lr, weight_decay=options.weight_decay)
        split_by_rate(muon, model, options.rates)
        return muon
    if options.name == "soap":
        soap = Soap(model.parameters(), options.lr, weight_decay=options.weight_decay)
        split_by_rate(soap, model, options.rates)
        return soap
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if options.parametrization == "published":
        parameters, scales = dict(model.named_parameters()), published_scales(model)
        by_scale = {s: [parameters[name] for name, own in scales.items() if own == s] for s in set(scales.values())}
        groups = [{"params": by_scale[s], "scale": s, "eps": EPS / s} for s in sorted(by_scale, reverse=True)]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, eps=EPS, amsgrad=options.amsgrad, fused=True)
    split_by_rate(optimizer, model, options.rates)
    set_rates(optimizer, options, 1.0)
    return optimizer


def set_rates(optimizer: torch.optim.Optimizer, options: OptimizerConfig, factor: float) -> None:
    """Set the learning rates of the next step to ``factor`` times those of the options, and the weight decay to theirs.

    A resumed run, whose checkpoint has rates of its own, thus goes on with those of its configuration.
    """
    for group in optimizer.param_groups:
        scale = group.get("scale", 1.0)
        group["lr"] = factor * group.get("rate", 1.0) * scale * (options.matrix_lr if group.get("muon") else options.lr)
        group["weight_decay"] = options.weight_decay / scale


def rate_of(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate as the options count it: that of the first parameters, without their factors."""
    group = optimizer.param_groups[0]
    return group["lr"] / group.get("scale", 1.0) / group.get("rate", 1.0)


def clip_gradient(optimizer: torch.optim.Optimizer, largest: float) -> None:
    """Scale the gradient down to a norm of at most ``largest``, that of the gradient by w where weights are W = s w.

    The host waits for nothing.
    """
    gradients = [(group.get("scale", 1.0), [p.grad for p in group["params"]]) for group in optimizer.param_groups]
    known = [(scale, [g for g in found if g is not None]) for scale, found in gradients]
    norms = [scale * nn.utils.get_total_norm(found) for scale, found in known if found]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grads_with_norm_(parameters, largest, torch.stack(norms).norm())


def rate_factor(options: OptimizerConfig, step: int, progress: float, val_losses: Sequence[float]) -> float:
    """Factor of the schedule on the learning rates.

    Args:
        options: the schedule.
        step: optimiser steps so far.
        progress: share of the run that is over, for the cosine.
        val_losses: of all validations so far, for the plateau.
    """
    if options.schedule == "plateau":
        return plateau_factor(options, val_losses)
    share = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    warmup = options.warmup_from + (1 - options.warmup_from) * share
    if options.schedule == "constant":
        return warmup
    if options.schedule == "milestones":
        return warmup * options.milestone_factor ** sum(step >= milestone for milestone in options.milestones)
    return warmup * (LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * progress)))


def plateau_factor(options: OptimizerConfig, val_losses: Sequence[float]) -> float:
    """Factor of the plateau schedule after these validations, as PyTorch's ``ReduceLROnPlateau`` computes it.

    It depends on the losses alone, so a resumed run needs no state of a scheduler to go on with the same rate.
    """
    factor, best, n_worse = 1.0, math.inf, 0
    for loss in val_losses:
        best, n_worse = (loss, 0) if loss < best * (1 - BETTER) else (best, n_worse + 1)
        if n_worse > options.plateau_patience:
            factor, n_worse = factor * options.plateau_factor, 0
    return factor


def n_without_better(val_losses: Sequence[float]) -> int:
    """Validations since the one with the lowest loss; one that is NaN is never the lowest."""
    known = [math.inf if math.isnan(loss) else loss for loss in val_losses]
    return len(known) - 1 - known.index(min(known)) if known else 0
