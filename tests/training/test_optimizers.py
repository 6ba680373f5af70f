"""Learning rates: each schedule as a function of where the run is."""

import math

import pytest
import torch

from equicat.training.optimizers import (
    OptimizerConfig,
    make_optimizer,
    n_without_better,
    plateau_factor,
    rate_factor,
    set_rates,
)


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_plateau_is_that_of_pytorch(patience):
    generator = torch.Generator().manual_seed(1)
    losses = (torch.rand(60, generator=generator) * torch.linspace(1, 0.3, 60)).tolist()
    losses[10], losses[20] = math.nan, losses[19] * (1 - 1e-5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.7, patience=patience)
    options = OptimizerConfig(plateau_factor=0.7, plateau_patience=patience)
    for k, loss in enumerate(losses):
        schedule.step(loss)
        assert plateau_factor(options, losses[: k + 1]) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-7)
    assert rate_factor(options, 0, 0.0, losses) < 0.1


@pytest.mark.parametrize(
    ("options", "step", "progress", "factor"),
    [
        ({"schedule": "constant"}, 7, 0.5, 1.0),
        ({"schedule": "constant", "warmup_steps": 10}, 4, 0.5, 0.5),
        ({"schedule": "constant", "warmup_steps": 10, "warmup_from": 0.2}, 4, 0.5, 0.6),
        ({"schedule": "cosine"}, 7, 0.0, 1.0),
        ({"schedule": "cosine"}, 7, 0.5, 0.505),
        ({"schedule": "cosine"}, 7, 1.0, 0.01),
        ({"schedule": "milestones", "milestones": (5, 7)}, 6, 0.5, 0.1),
        ({"schedule": "milestones", "milestones": (5, 7)}, 7, 0.5, 0.01),
    ],
)
def test_schedules_depend_on_the_place_in_the_run_alone(options, step, progress, factor):
    assert rate_factor(OptimizerConfig(**options), step, progress, []) == pytest.approx(factor)


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_rates_are_those_of_the_options_whatever_the_optimiser_had(name):
    parameters = torch.nn.ParameterList(torch.zeros(shape) for shape in ((9, 9), (3,)))
    before, after = ({"matrix_lr": 2.0}, {"matrix_lr": 0.5}) if name == "muon" else ({}, {})
    optimizer = make_optimizer(OptimizerConfig(name=name, lr=1.0, **before), parameters)
    set_rates(optimizer, OptimizerConfig(name=name, lr=0.3, weight_decay=0.1, **after), 0.5)
    found = sorted((group["lr"], group["weight_decay"]) for group in optimizer.param_groups)
    assert found == ([(0.15, 0.1)] if name == "adam" else [(0.15, 0.1), (0.25, 0.1)])


def test_validations_without_a_better_one_are_counted():
    assert n_without_better([]) == 0
    assert n_without_better([2.0, 1.0, 3.0, 1.0]) == 2
    assert n_without_better([math.nan, 1.0]) == 0
    assert n_without_better([1.0, math.nan]) == 1
