"""Kernels in C++: against PyTorch's operators, and what happens where they cannot be had."""

import dataclasses
import stat

import numpy as np
import pytest
import torch
from conftest import SMALL, SMALL_NEQUIP

from equicat.data.batch import Batch
from equicat.data.structure import Structure
from equicat.kernels.cpu import build
from equicat.kernels.cpu.call import MAX_DEGREE, Kernel
from equicat.models.gradient import ComputeOptions, PairGradients, by_autograd
from equicat.models.model import minus_gradient
from equicat.models.potential import Potential
from equicat.models.repulsion import EnergyTerms, Repulsion
from equicat.networks import catalogue as networks
from equicat.networks.catalogue import architecture
from equicat.networks.nequip_allegro_cpu import Terms
from equicat.testing import example_structures

ELEMENTS = (1, 8, 29)
VARIANTS = [
    {"n_layers": 1},
    {"n_layers": 3, "l_max": 3},
    {"l_max": 0},
    {"l_max": MAX_DEGREE, "n_layers": 1},
    {"n_layers": 3, "parity": "restricted", "coupling": "path"},
    {"radial": "spline", "n_radial": 6, "spline_span": 4},
    {"two_body_hidden": (), "latent_hidden": (5, 6), "embedding_width": 4, "features_silu": False},
    {"two_body_hidden": (20, 30), "tensor_channels": 5, "n_features": 7, "bessel_trainable": True},
    {"n_scalars": 256, "latent_hidden": (256,), "two_body_hidden": (256,)},
    {"neighbors_of_element": (3.0, 7.0, 12.0), "pair_cutoffs": (2.0, 3.0, 4.0, 3.0, 2.5, 4.0, 4.0, 3.5, 4.0)},
]

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="there is no C++ compiler on this machine")


PUBLISHED = [
    {"n_layers": 1},
    {},
    {"n_layers": 3, "l_max": 3},
    {"n_layers": 3, "parity": "restricted", "tensor_channels": 5},
    {"l_max": 0, "n_layers": 2},
    {"l_max": 1, "n_layers": 3, "env_embed_mlp": (9, 6), "latent_mlp": (7, 16), "bessel_trainable": False},
    {"l_max": MAX_DEGREE, "n_layers": 1, "two_body_mlp": (8, 9, 16)},
    {"two_body_mlp": (64, 256), "latent_mlp": (256, 256), "tensor_channels": 16},
]


def structures():
    """Slabs, molecules, bulk, and an atom without a neighbour."""
    alone = Structure(np.array([29]), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, dtype=bool))
    return [*example_structures(ELEMENTS, 0), alone, *example_structures(ELEMENTS, 1)]


def potential(dtype=torch.float64, config=SMALL_NEQUIP, output_mlp=(8,), **changes) -> Potential:
    torch.manual_seed(0)
    terms = EnergyTerms(factors=(0.5, 1.0, 2.0), repulsion=Repulsion(6, (4.0,)))
    model = Potential(dataclasses.replace(config, **changes), ELEMENTS, output_mlp, scale=1.7, terms=terms)
    return model.to(dtype).train()


def found(model: Potential, dtype=torch.float64) -> list[torch.Tensor]:
    """Energies, forces, virial, and the gradient of something that depends on energies and forces."""
    batch = Batch.from_structures(structures(), model.cutoff, dtype=dtype)
    prediction = model(batch, virial=True)
    weights = torch.linspace(-1, 2, len(batch.numbers), dtype=dtype)
    loss = (weights * prediction.atom_energies).sum() + (weights[:, None] * prediction.forces.sin()).sum()
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters)
    return [prediction.atom_energies, prediction.forces, prediction.virial, *gradients]


def without_kernel(monkeypatch, model: Potential, dtype=torch.float64) -> list[torch.Tensor]:
    with monkeypatch.context() as patch:
        name = model.config.name
        patch.setitem(networks.NETWORKS, name, dataclasses.replace(networks.NETWORKS[name], kernel=None))
        return found(model, dtype)


@needs_compiler
@pytest.mark.parametrize(
    ("config", "variant"),
    [*((SMALL_NEQUIP, variant) for variant in VARIANTS), *((SMALL, variant) for variant in PUBLISHED)],
    ids=lambda x: x.name if dataclasses.is_dataclass(x) else str(x),
)
def test_agrees_with_the_operators(monkeypatch, config, variant):
    model = potential(config=config, **variant, output_mlp=(8, 9) if variant.get("l_max") == 3 else (8,))
    expected = without_kernel(monkeypatch, model)
    calls = count_calls(monkeypatch)
    for mine, theirs in zip(found(model), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11 * theirs.abs().max().item())
    assert len(calls) == 1, "the kernel was not used"
    assert expected[1].abs().max() > 0.1, "forces are not trivially zero"


def count_calls(monkeypatch) -> list[str]:
    """Sources of the kernels that are called from here on."""
    calls, compute = [], Kernel.energies_and_gradient

    def counted(kernel, *args, **kwargs):
        calls.append(kernel.source)
        return compute(kernel, *args, **kwargs)

    monkeypatch.setattr(Kernel, "energies_and_gradient", counted)
    return calls


@needs_compiler
@pytest.mark.parametrize("config", [SMALL, SMALL_NEQUIP], ids=lambda config: config.name)
def test_single_precision(monkeypatch, config):
    model = potential(torch.float32, config)
    expected = without_kernel(monkeypatch, model, torch.float32)
    for mine, theirs in zip(found(model, torch.float32), expected, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


@needs_compiler
@pytest.mark.parametrize("n_threads", [1, 3, 64])
def test_any_number_of_threads(n_threads):
    model, before = potential(), torch.get_num_threads()
    expected = found(model)
    torch.set_num_threads(n_threads)
    try:
        again, once_more = found(model), found(model)
    finally:
        torch.set_num_threads(before)
    for first, second, other in zip(again, once_more, expected, strict=True):
        assert torch.equal(first, second), "the same sums in the same order"
        torch.testing.assert_close(first, other, rtol=1e-10, atol=1e-12)


LARGE = {SMALL.name: PUBLISHED[-1], SMALL_NEQUIP.name: VARIANTS[-2]}
"""Variants whose weights do not fit into a cache: what products of matrices yield is kept between the passes."""


@needs_compiler
@pytest.mark.parametrize("config", [SMALL, SMALL_NEQUIP], ids=lambda config: config.name)
def test_training_computes_again_or_keeps(config):
    model = potential(config=config, **LARGE[config.name])
    kept = found(model)
    model.pair_gradients = PairGradients(ComputeOptions(recompute=True))
    for mine, other in zip(found(model), kept, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11 * other.abs().max().item())


def of_edges(model: Potential, edge_vec: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
    """Energies, their derivative by pair vectors and by atoms, and the gradient of something that depends on both."""
    kernel = architecture(model.config.name).kernel
    arguments = edge_vec, batch.edge_index, model.species(batch), True
    if kernel is None:
        energy, gradient = by_autograd(model, *arguments)
    else:
        energy, gradient = model.kernel_energies(kernel, *arguments, keep=True)
    forces = minus_gradient(gradient, batch.edge_index, len(batch.numbers))
    loss = (energy * torch.linspace(-1, 2, len(energy))).sum() + forces.sin().sum()
    return [energy, forces, gradient, *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])]


@needs_compiler
@pytest.mark.parametrize("config", [SMALL, SMALL_NEQUIP], ids=lambda config: config.name)
@pytest.mark.parametrize("case", ["all", "some edges missing", "vectors of both ends differ"])
def test_edges_that_share_their_embedding(monkeypatch, config, case):
    """ij and ji do between atoms of one element, if both are there and one vector is minus the other."""
    model = potential(config=config, **LARGE[config.name])
    batch = Batch.from_structures(structures(), model.cutoff, dtype=torch.float64)
    edge_vec, chance = batch.edge_vec(), torch.Generator().manual_seed(0)
    if case == "some edges missing":
        kept = torch.rand(len(edge_vec), generator=chance) < 0.7
        batch = dataclasses.replace(batch, edge_index=batch.edge_index[:, kept], edge_shift=batch.edge_shift[kept])
        edge_vec = edge_vec[kept]
    if case == "vectors of both ends differ":
        edge_vec = edge_vec + 1e-6 * torch.randn(edge_vec.shape, generator=chance, dtype=torch.float64)
    energy, forces, gradient, *others = of_edges(model, edge_vec, batch)
    with monkeypatch.context() as patch:
        name = model.config.name
        patch.setitem(networks.NETWORKS, name, dataclasses.replace(networks.NETWORKS[name], kernel=None))
        expected_energy, expected_forces, expected_gradient, *expected = of_edges(model, edge_vec, batch)
    for mine, theirs in zip([energy, forces, *others], [expected_energy, expected_forces, *expected], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11 * theirs.abs().max().item())
    # The radial part of the gradient of both edges is at one of them.
    moved = ((gradient - expected_gradient).abs().amax(1) > 1e-9).double().mean()
    assert {"all": 0.2 < moved < 0.9, "some edges missing": 0.1 < moved < 0.6}.get(case, moved == 0)


@needs_compiler
@pytest.mark.parametrize("config", [SMALL, SMALL_NEQUIP], ids=lambda config: config.name)
def test_what_is_kept_serves_twice_and_with_other_threads(config):
    model = potential(config=config, **LARGE[config.name])
    batch = Batch.from_structures(structures(), model.cutoff, dtype=torch.float64)
    parameters, before = list(model.head.parameters()), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        loss = model(batch).forces.square().sum()
        first = torch.autograd.grad(loss, parameters, retain_graph=True)
        torch.set_num_threads(2)
        second = torch.autograd.grad(loss, parameters)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(first, second, strict=True):
        assert a.abs().max() > 0
        assert torch.equal(a, b)


@needs_compiler
@pytest.mark.parametrize("config", [SMALL, SMALL_NEQUIP], ids=lambda config: config.name)
def test_no_edge_at_all(monkeypatch, config):
    model, calls = potential(config=config), count_calls(monkeypatch)
    alone = Structure(np.array([29, 8]), np.array([[0.0, 0, 0], [50, 0, 0]]), np.zeros((3, 3)), np.zeros(3, dtype=bool))
    prediction = model(Batch.from_structures([alone], model.cutoff, dtype=torch.float64), virial=True)
    (prediction.energy.sum() + prediction.forces.sum()).backward()
    assert calls
    assert prediction.energy.item() == 0
    assert not prediction.forces.any()
    assert not prediction.virial.any()


@needs_compiler
def test_large_values_do_not_overflow(monkeypatch):
    """silu far outside the range of the exponential function."""
    model = potential(torch.float32, output_mlp=())
    with torch.no_grad():
        model.network.embedding.center.mul_(1e4)
    for mine, theirs in zip(
        found(model, torch.float32)[:2], without_kernel(monkeypatch, model, torch.float32)[:2], strict=True
    ):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize("config", [SMALL, SMALL_NEQUIP], ids=lambda config: config.name)
def test_weights_and_positions_of_different_precision_are_not_mixed(config):
    """As without kernels: an error, not numbers read as what they are not."""
    batch = Batch.from_structures(structures(), config.cutoff, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="dtype"):
        potential(torch.float32, config)(batch)


def test_terms_are_the_dense_coefficients():
    model = potential().network
    dense = model.layers[0].product.coefficients
    terms = Terms.of(dense)
    out = torch.zeros(
        terms.dim_in, terms.dim_out, dense[0].shape[3], sum(c.shape[2] for c in dense), dtype=torch.float64
    )
    out.index_put_(tuple(terms.indices.t()), terms.coefficients)
    p = c = 0
    for array in dense:
        block = out[:, c : c + array.shape[1], :, p : p + array.shape[2]]
        assert torch.equal(block.permute(0, 1, 3, 2), array)
        c, p = c + array.shape[1], p + array.shape[2]


class TestLoading:
    @pytest.fixture(autouse=True)
    def own_cache(self, monkeypatch, tmp_path):
        """Not the user's, and nothing remembered from other tests."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        build.load.cache_clear()
        yield
        build.load.cache_clear()

    def fake_compiler(self, monkeypatch, path, line: str) -> None:
        path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{line}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", str(path))

    def test_a_failing_compiler_costs_speed_only(self, monkeypatch, tmp_path):
        self.fake_compiler(monkeypatch, tmp_path / "cxx", "echo unknown flag >&2; exit 1")
        model = potential()
        with pytest.warns(UserWarning, match="could not be compiled by .*cxx.*slower operators are used: unknown flag"):
            energies, *_ = found(model)
        assert torch.equal(energies, without_kernel(monkeypatch, model)[0])
        assert list((tmp_path / "cache" / "equicat").iterdir()) == [], "nothing is left behind"

    def test_turned_off(self, monkeypatch, tmp_path):
        monkeypatch.setenv("EQUICAT_NATIVE", "0")
        assert build.load("nequip_allegro", torch.float64) is None
        assert not (tmp_path / "cache").exists()

    def test_no_compiler(self, monkeypatch, tmp_path):
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert build.load("nequip_allegro", torch.float32) is None

    def test_no_kernel_for_other_types(self):
        assert build.load("nequip_allegro", torch.bfloat16) is None

    @needs_compiler
    def test_compiled_once(self, monkeypatch, tmp_path):
        assert build.load("nequip_allegro", torch.float64) is not None
        (library,) = (tmp_path / "cache" / "equicat").iterdir()
        self.fake_compiler(monkeypatch, tmp_path / "cxx", "exit 1")  # another compiler, another library
        build.load.cache_clear()
        with pytest.warns(UserWarning, match="could not be compiled"):
            assert build.load("nequip_allegro", torch.float64) is None
        monkeypatch.delenv("CXX")
        build.load.cache_clear()
        modified = library.stat().st_mtime_ns
        assert build.load("nequip_allegro", torch.float64) is not None
        assert library.stat().st_mtime_ns == modified
