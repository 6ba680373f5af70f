"""Shapes in signatures are checked while tests run, and not for ever."""

from collections.abc import Callable

import checking
import jaxtyping
import pytest
import torch
from jaxtyping import Float

from equicat.models.model import minus_gradient

WRONG = torch.zeros(4, 2), torch.zeros(2, 4, dtype=torch.int64), 3
"""Arguments whose vectors have two components instead of three."""


def test_a_wrong_shape_is_refused():
    with pytest.raises(jaxtyping.TypeCheckError, match="minus_gradient"):
        minus_gradient(*WRONG)


def test_functions_within_functions_are_checked_and_their_check_is_compiled_once():
    def made() -> Callable[..., torch.Tensor]:
        @jaxtyping.jaxtyped(typechecker=checking.first_calls)
        def inner(x: Float[torch.Tensor, "n 3"]) -> Float[torch.Tensor, "n"]:
            return x.sum(dim=1)

        return inner

    made()(torch.zeros(2, 3))
    before = len(checking._checks)
    made()(torch.zeros(2, 3))
    assert len(checking._checks) == before
    with pytest.raises(jaxtyping.TypeCheckError, match="inner"):
        made()(torch.zeros(2, 2))


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
