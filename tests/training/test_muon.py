"""Muon: orthogonal steps for matrices, exactly Adam for the rest."""

import copy

import pytest
import torch
from torch import nn

from equicat.training.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(8, 8), (40, 12), (12, 40)])
def test_orthogonalized_keeps_singular_vectors_and_levels_singular_values(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 1e-3
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalized(matrix) @ vh.T
    assert s.max() / s.min() > 1.8
    values = inner.diagonal()[s > 0.1 * s.max()]
    assert values.min() > 0.5
    assert values.max() < 1.3
    torch.testing.assert_close(inner - inner.diagonal().diag(), torch.zeros_like(inner), rtol=0, atol=1e-3)


def test_what_is_no_matrix_is_trained_by_adam():
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(5)) for _ in range(2))
    matrix = nn.Parameter(torch.randn(16, 16))
    muon = Muon([ours, matrix], lr=0.1, matrix_lr=0.01, weight_decay=0.1)
    adam = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1)
    for k in range(20):
        for p, optimizer in ((ours, muon), (theirs, adam)):
            optimizer.zero_grad()
            ((p - torch.arange(5.0)) ** 4).sum().backward()
            if p is ours:
                (matrix - k).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_it_fits_a_badly_scaled_matrix_and_resumes_exactly():
    torch.manual_seed(0)
    goal = 0.2 * torch.randn(16, 16) * torch.logspace(0, -3, 16)
    weight = nn.Parameter(torch.zeros(16, 16))
    scale = torch.logspace(0, -2, 16)

    def step(optimizer, parameter):
        optimizer.zero_grad()
        loss = ((parameter - goal) * scale).square().sum()
        loss.backward()
        optimizer.step()
        return loss.item()

    muon = Muon([weight], lr=0.0, matrix_lr=0.02)
    losses = [step(muon, weight) for _ in range(100)]
    assert losses[-1] < 0.05 * losses[0]
    twin = nn.Parameter(weight.detach().clone())
    resumed = Muon([twin], lr=0.0, matrix_lr=0.02)
    resumed.load_state_dict(copy.deepcopy(muon.state_dict()))
    for _ in range(3):
        step(muon, weight), step(resumed, twin)
    assert torch.equal(weight, twin)
