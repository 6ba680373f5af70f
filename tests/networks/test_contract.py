"""Hand-written derivatives against autograd's, to second order."""

import pytest
import torch

from equicat.networks.contract import contract_and_mix, contract_and_mix_plain
from equicat.networks.layers import silu


def inputs(dim_out: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(0)
    n_atoms, n_max, dim_in, rows, channels = 3, 4, 5, 6, 2
    shapes = [(n_atoms, n_max, dim_in), (n_atoms, dim_in, dim_out * rows), (n_atoms, n_max, rows), (rows, channels)]
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("dim_out", [1, 3])
def test_value_and_derivatives_agree_with_autograd(dim_out):
    y, m, w, _ = x = inputs(dim_out)
    torch.testing.assert_close(contract_and_mix(*x), contract_and_mix_plain(*x))
    assert torch.autograd.gradcheck(contract_and_mix, x)
    results = []
    for function in (contract_and_mix, contract_and_mix_plain):
        # What training does: a scalar, its gradient, a function of that, and the gradient to everything.
        energy = (function(*x).sin() * torch.arange(1.0, dim_out + 1)[:, None]).sum()
        forces = torch.autograd.grad(energy, (y, m, w), create_graph=True)
        loss = energy + sum((f.cos() * k).sum() for k, f in enumerate(forces, start=1))
        results.append(torch.autograd.grad(loss, x))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain)


def test_silu_to_second_order():
    x = torch.linspace(-4, 4, 11, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(silu(x), torch.nn.functional.silu(x))
    assert torch.autograd.gradcheck(silu, (x,))
    assert torch.autograd.gradgradcheck(silu, (x,))
