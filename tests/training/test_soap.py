"""SOAP: Adam where no turn is needed, steps that turn with their matrix, and a run that goes on exactly."""

import copy

import pytest
import torch
from torch import nn

from equicat.training.config import from_mapping
from equicat.training.optimizers import make_optimizer
from equicat.training.soap import BETAS, Soap

SIZES = 9, 9
"""A square, for the eigenvectors without a gradient, which a longer side has, are arbitrary."""


def orthogonal(n: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]


def path(turn_left: torch.Tensor, turn_right: torch.Tensor, n_steps: int, make=Soap) -> torch.Tensor:
    """Where an optimiser takes a matrix whose loss is that of the matrix turned back.

    The goal moves. With one that stays, gradients are diagonal among the first eigenvectors, and rounding beside the
    diagonal would be divided by the root of its own square.
    """
    torch.manual_seed(1)
    goal, scale, drift = torch.randn(3, *SIZES, dtype=torch.float64)
    p = nn.Parameter(torch.zeros(SIZES, dtype=torch.float64))
    optimizer = make([p], lr=0.05)
    for k in range(n_steps):
        optimizer.zero_grad()
        ((turn_left.T @ p @ turn_right - goal - 0.1 * k * drift) * scale).square().sum().backward()
        optimizer.step()
    return p.detach()


def test_steps_turn_with_the_matrix_and_those_of_adam_do_not():
    torch.manual_seed(0)
    left, right = orthogonal(SIZES[0]), orthogonal(SIZES[1])
    plain = torch.eye(SIZES[0], dtype=torch.float64), torch.eye(SIZES[1], dtype=torch.float64)
    for n_steps in (5, 35):  # before and after eigenvectors are corrected
        straight, turned = path(*plain, n_steps), path(left, right, n_steps)
        torch.testing.assert_close(left.T @ turned @ right, straight, rtol=1e-10, atol=1e-10)
    adam = path(left, right, 5, torch.optim.Adam)
    assert (left.T @ adam @ right - path(*plain, 5, torch.optim.Adam)).abs().max() > 0.01


def test_in_its_own_eigenbasis_it_is_adam():
    """Gradients that are diagonal, with entries in a fixed order, have unit vectors as eigenvectors."""
    slopes = torch.linspace(9.0, 1.0, 9, dtype=torch.float64).diag()
    ours, theirs = (nn.Parameter(torch.zeros(9, 9, dtype=torch.float64)) for _ in range(2))
    soap, adam = Soap([ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1, betas=BETAS)
    for k in range(25):
        for p, optimizer in ((ours, soap), (theirs, adam)):
            p.grad = slopes * (1 + 0.3 * (-1) ** k)
            if k or p is ours:  # the first step of SOAP finds eigenvectors alone
                optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_what_is_no_matrix_is_trained_by_adam():
    ours, theirs = (nn.Parameter(torch.ones(5)) for _ in range(2))
    soap = Soap([ours], lr=0.1, weight_decay=0.1)
    adam = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1, betas=BETAS)
    for _ in range(20):
        for p, optimizer in ((ours, soap), (theirs, adam)):
            optimizer.zero_grad()
            ((p - torch.arange(5.0)) ** 4).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_it_resumes_exactly():
    torch.manual_seed(0)
    weight, goal = nn.Parameter(torch.randn(16, 10)), torch.randn(16, 10)

    def step(optimizer, parameter):
        optimizer.zero_grad()
        (parameter - goal).pow(4).sum().backward()
        optimizer.step()

    soap = Soap([weight], lr=0.05)
    for _ in range(17):
        step(soap, weight)
    twin = nn.Parameter(weight.detach().clone())
    resumed = Soap([twin], lr=0.05)
    resumed.load_state_dict(copy.deepcopy(soap.state_dict()))
    for _ in range(7):
        step(soap, weight), step(resumed, twin)
    assert torch.equal(weight, twin)


def test_it_is_an_option():
    config = from_mapping({"optimizer": {"name": "soap", "lr": 0.01, "weight_decay": 0.1}}).optimizer
    optimizer = make_optimizer(config, nn.Linear(9, 9))
    assert isinstance(optimizer, Soap)
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.1)
