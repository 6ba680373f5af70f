"""Pairs within a cutoff, taken out of a longer list by the compiled function and by PyTorch's operators."""

import pytest
import torch

from equicat.kernels.cpu.relaxation import native
from equicat.relaxation.pairs import near_pairs


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize(("n_edges", "cutoff"), [(0, 1.0), (2, 1.0), (500, 0.7), (500, 0.0), (500, float("inf"))])
def test_near_pairs_are_those_of_the_operators(n_edges, cutoff, n_threads, monkeypatch):
    steps = native(torch.zeros(0, dtype=torch.float64))
    if steps is None:
        pytest.skip("there is no C++ compiler on this machine")
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    torch.manual_seed(0)
    index = torch.randint(0, 20, (2, n_edges))
    shift = torch.randint(-1, 2, (n_edges, 3), dtype=torch.int32)
    given = (index, shift, 2.0 * shift.double(), torch.rand(20, 3, dtype=torch.float64), cutoff)
    for found, expected in zip(steps.near(*given), near_pairs(*given), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_operators_are_used_where_the_kernel_cannot_be(monkeypatch):
    assert native(torch.zeros(1, dtype=torch.float32)) is None
    assert native(torch.zeros(1, dtype=torch.float64, device="meta")) is None
    monkeypatch.setenv("EQUICAT_NATIVE", "0")
    assert native(torch.zeros(1, dtype=torch.float64)) is None
