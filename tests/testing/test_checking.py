"""Shapes in signatures are checked while tests run, and not for ever."""

import checking
import jaxtyping
import pytest
import torch

from equicat.models.model import minus_gradient

WRONG = torch.zeros(4, 2), torch.zeros(2, 4, dtype=torch.int64), 3
"""Arguments whose vectors have two components instead of three."""


def test_a_wrong_shape_is_refused():
    with pytest.raises(jaxtyping.TypeCheckError, match="minus_gradient"):
        minus_gradient(*WRONG)


def test_after_many_calls_it_is_not_looked_at(monkeypatch):
    monkeypatch.setattr(checking, "CALLS", 3)
    checking.begin()
    right = torch.zeros(4, 3), *WRONG[1:]
    for _ in range(4):
        minus_gradient(*right)
    assert minus_gradient(torch.zeros(4, 3), *WRONG[1:]).shape == (3, 3)
    assert jaxtyping.config.jaxtyping_disable


def test_the_next_test_is_checked_again():
    test_a_wrong_shape_is_refused()
