"""Products of split numbers: in Triton's interpreter where there is no GPU, against float64 and PyTorch's own."""

import pytest
import torch

from equicat.kernels import backend, products

pytest.importorskip("triton", reason="Triton is not installed (Linux only)")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def split(monkeypatch):
    """Small products are split, too; in one tile's sizes, so that edges of tiles are met."""
    from equicat.kernels.gpu import products as kernels

    monkeypatch.setattr(kernels, "ROWS", kernels.Tiles(32, 16, 16, 4, 1))
    monkeypatch.setattr(kernels, "COLUMNS", kernels.Tiles(16, 32, 16, 4, 1))
    monkeypatch.setattr(kernels, "MULTIPROCESSORS", 17)
    monkeypatch.setattr(kernels, "WIDE", 30)
    monkeypatch.setattr(products, "MIN_ROWS", 1)
    monkeypatch.setattr(products, "MIN_WIDTH", 1)
    monkeypatch.setattr(backend, "has_triton", lambda device: True)
    with products.split_products(True):
        yield


def inputs(dtype: torch.dtype, n: int = 70, n_k: int = 21, n_n: int = 37) -> list[torch.Tensor]:
    """Rows of something wider, as slices of a layer's output are, and a matrix."""
    generator = torch.Generator().manual_seed(0)
    wide, w = (torch.randn(*size, generator=generator, dtype=torch.float32) for size in ((n, n_k + 3), (n_k, n_n)))
    return [x.to(DEVICE, dtype).requires_grad_() for x in (wide[:, 1:-2], w)]


def value_and_derivatives(function, x, w) -> list[torch.Tensor]:
    """Values and derivatives of weighted sin(outputs), and of cos(gradients), by both factors."""
    out = function(x, w)
    weights = torch.linspace(-1, 1, out.numel(), device=DEVICE).to(out).view_as(out)
    first = torch.autograd.grad((out.sin() * weights).sum(), (x, w), create_graph=True)
    second = torch.autograd.grad(sum(a.cos().sum() for a in first), (x, w))
    return [out, *first, *second]


def test_as_exact_as_float32_in_value_and_derivatives(split):
    exact = value_and_derivatives(torch.matmul, *inputs(torch.float64))
    assert products.splits(*inputs(torch.float32))
    found = value_and_derivatives(products.product, *inputs(torch.float32))
    plain = value_and_derivatives(torch.matmul, *inputs(torch.float32))
    for a, b, c in zip(found, plain, exact, strict=True):
        assert a.dtype == torch.float32
        error, plain_error = ((x.double() - c).square().mean().sqrt() / c.square().mean().sqrt() for x in (a, b))
        assert error < max(2 * plain_error, 3e-7)


@pytest.mark.parametrize("size", [1, 1e-30, 1e30])
def test_halves_of_a_matrix_add_up_whatever_the_size_of_its_numbers(split, size):
    from equicat.kernels.gpu.products import halves

    _, w = inputs(torch.float32)
    w = size * w.detach()
    w[:, 3] *= 1e-4
    w[:, 4] = 0
    for matrix in (w, w.t()):
        found = halves(matrix)
        sums = (found.high.double() + found.low.double()) * found.unit.double()[:, None]
        torch.testing.assert_close(sums, matrix.t().double(), rtol=2**-22, atol=2**-36 * w.abs().max().item())


@pytest.mark.parametrize("size", [1e-30, 1e12])
def test_rows_of_any_size_are_multiplied_exactly(split, size):
    """Half precision knows numbers from 6e-8 to 65504 only; rows differ from one another by a factor of a thousand."""
    x, w = (a.detach() for a in inputs(torch.float32))
    x = size * x * torch.logspace(-3, 0, len(x), device=DEVICE)[:, None]
    exact = x.double() @ w.double()
    error = ((products.product(x, w).double() - exact) / exact.square().mean(1, keepdim=True).sqrt()).abs().max()
    assert error < 1e-6
    summed = products._Derivative.apply(products.W, x, exact.float() / size)
    exact = x.double().t() @ (exact / size)
    assert ((summed.double() - exact) / exact.square().mean().sqrt()).abs().max() < 1e-6


@pytest.mark.parametrize("room", [232_448, 166_912, 101_376, 65_536])
def test_tiles_fit_into_the_shared_memory_of_smaller_gpus(room, monkeypatch):
    from equicat.kernels.gpu import products as kernels
    from equicat.kernels.gpu import tiles as sizes

    monkeypatch.setattr(sizes, "shared_memory", lambda device: room)
    for tiles in (kernels.ROWS, kernels.COLUMNS):
        found = tiles.fitting(DEVICE)
        assert (found == tiles) == (room > 200_000)
        assert found.n_bytes <= room
        assert (found.rows, found.columns) == (tiles.rows, tiles.columns)


def test_sums_over_rows_are_pytorchs_on_gpus_before_hopper(split, monkeypatch):
    from equicat.kernels.gpu import products as kernels

    x, w = (a.detach() for a in inputs(torch.float32))
    grads, expected = [x @ w, (x @ w)[:, :5]], kernels.sums_over_rows(x, [x @ w, (x @ w)[:, :5]], act=True)
    monkeypatch.setattr(kernels, "shared_memory", lambda device: 101_376)
    monkeypatch.setattr(kernels, "columns", None)
    torch.testing.assert_close(kernels.sums_over_rows(x, grads, act=True), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_that_are_none_stay_such(split, wrong):
    x, w = (a.detach() for a in inputs(torch.float32))
    x[5, 2] = wrong
    found = products.product(x, w)
    assert not found[5].isfinite().any()
    assert found[:5].isfinite().all()
    assert found[6:].isfinite().all()
    assert not products.product(w.t().contiguous(), x.t()).isfinite().all()


def test_third_derivatives(split):
    results = []
    for function, dtype in ((products.product, torch.float32), (torch.matmul, torch.float64)):
        x, w = inputs(dtype, 33, 16, 16)
        value = (0.1 * function(x, w)).sin().sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, w, create_graph=True)
            value = (0.1 * gradient).cos().sum()
        results.append(gradient.double())
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4 * results[1].abs().max().item())


def test_a_silu_and_its_readers_in_value_and_derivatives(split):
    """In float64 the plain version is the oracle; some results have something added, and one is narrow."""
    widths, results = [20, 3, 14], []
    for function, dtype in ((products.activated, torch.float32), (products.activated_plain, torch.float64)):
        z, w = inputs(dtype)
        added = [None, z[:, :3].detach().cos().requires_grad_(), None]

        def joined(z, w, function=function, added=added):
            return torch.cat(function(z, w, added, widths), dim=1)

        with torch.enable_grad():
            (to_added,) = torch.autograd.grad(joined(z, w).sin().sum(), added[1])
        plain_weights = torch.autograd.grad(joined(z, w.detach()).sin().sum(), z)
        both = torch.autograd.grad(joined(z, w).sin().sum(), (z, w))
        results.append([to_added, *plain_weights, *both, *value_and_derivatives(joined, z, w)])
    for found, expected in zip(*results, strict=True):
        assert found.dtype == torch.float32
        scale = expected.abs().max().item()
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * scale)


def test_left_to_pytorch_where_that_is_asked_for_or_as_good(split):
    x, w = inputs(torch.float32)
    assert products.splits(x, w)
    with products.split_products(False):
        assert not products.splits(x, w)
    assert not products.splits(*inputs(torch.float64))
    torch.set_float32_matmul_precision("high")
    try:
        assert not products.splits(x, w)
    finally:
        torch.set_float32_matmul_precision("highest")
