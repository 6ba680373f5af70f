"""Kernels in C++: against PyTorch's operators, and what happens where they cannot be had."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from allegro_variants import LARGE, VARIANTS, name
from conftest import SMALL, SMALL_NEQUIP

from equicat.data.batch import Batch
from equicat.data.structure import Structure
from equicat.kernels.cpu import build
from equicat.kernels.cpu import forms as cpu_forms
from equicat.kernels.cpu.build import MAX_DEGREE
from equicat.kernels.cpu.call import Kernel
from equicat.kernels.edges import Edges
from equicat.models.gradient import ComputeOptions, PairGradients
from equicat.models.model import minus_gradient
from equicat.models.potential import Potential
from equicat.models.repulsion import EnergyTerms, Repulsion
from equicat.networks.allegro_cpu import _nequip_lists
from equicat.networks.catalogue import architecture
from equicat.testing import example_structures

ELEMENTS = (1, 8, 29)
needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="there is no C++ compiler on this machine")


each_flavour = pytest.mark.parametrize("config", [SMALL, SMALL_NEQUIP], ids=name)


def structures():
    """Slabs, molecules, bulk, and an atom without a neighbour."""
    alone = Structure(np.array([29]), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, dtype=bool))
    return [*example_structures(ELEMENTS, 0), alone, *example_structures(ELEMENTS, 1)]


def potential(dtype=torch.float64, config=SMALL_NEQUIP, output_mlp=(8,), **changes) -> Potential:
    torch.manual_seed(0)
    terms = EnergyTerms(factors=(0.5, 1.0, 2.0), repulsion=Repulsion(6, (4.0,)))
    model = Potential(dataclasses.replace(config, **changes), ELEMENTS, output_mlp, scale=1.7, terms=terms)
    return model.to(dtype).train()


def found(model: Potential, **options) -> list[torch.Tensor]:
    """Energies, forces, virial, and the gradient of something that depends on energies and forces."""
    model.pair_gradients, dtype = PairGradients(ComputeOptions(**options)), model.dtype
    batch = Batch.from_structures(structures(), model.cutoff, dtype=dtype)
    prediction = model(batch, virial=True)
    weights = torch.linspace(-1, 2, len(batch.numbers), dtype=dtype)
    loss = (weights * prediction.atom_energies).sum() + (weights[:, None] * prediction.forces.sin()).sum()
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters)
    return [prediction.atom_energies, prediction.forces, prediction.virial, *gradients]


@needs_compiler
@pytest.mark.parametrize(("config", "variant"), VARIANTS, ids=name)
def test_agrees_with_the_operators(monkeypatch, config, variant):
    model = potential(config=config, **variant, output_mlp=(8, 9) if variant.get("l_max") == 3 else (8,))
    expected, calls = found(model, kernels=False), count_calls(monkeypatch)
    for mine, theirs in zip(found(model), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11 * theirs.abs().max().item())
    assert len(calls) == 1, "the kernel was not used"
    assert expected[1].abs().max() > 0.1, "forces are not trivially zero"


def count_calls(monkeypatch) -> list[str]:
    """Flavours of the kernels that are called from here on."""
    calls, compute = [], Kernel.energies_and_gradient

    def counted(kernel, *args, **kwargs):
        calls.append(kernel.flavour)
        return compute(kernel, *args, **kwargs)

    monkeypatch.setattr(Kernel, "energies_and_gradient", counted)
    return calls


@needs_compiler
@each_flavour
def test_single_precision(config):
    model = potential(torch.float32, config)
    for mine, theirs in zip(found(model), found(model, kernels=False), strict=True):
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


@needs_compiler
def test_calls_at_the_same_time_share_no_memory():
    """Memory is kept from call to call, for all precisions and flavours, and threads call at the same time."""
    kinds = [(dtype, config) for dtype in (torch.float32, torch.float64) for config in (SMALL, SMALL_NEQUIP)]
    models = [potential(dtype, config, **LARGE[config.name]) for dtype, config in kinds]
    n_threads = torch.get_num_threads()
    expected = [found(model) for model in models]
    with ThreadPoolExecutor(len(models), initializer=torch.set_num_threads, initargs=(n_threads,)) as pool:
        at_once = pool.map(lambda model: [found(model) for _ in range(4)], models)
        for several, alone in zip(at_once, expected, strict=True):
            for again in several:
                assert all(map(torch.equal, again, alone))


@needs_compiler
@each_flavour
def test_training_computes_again_or_keeps(config):
    model = potential(config=config, **LARGE[config.name])
    for mine, other in zip(found(model, recompute=True), found(model), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11 * other.abs().max().item())


def of_edges(model: Potential, differentiate, edges: Edges) -> list[torch.Tensor]:
    """Energies, their derivative by atoms and by pair vectors, and the gradient of something that depends on both."""
    energy, gradient = differentiate(edges, training=True)
    forces = minus_gradient(gradient, edges.edge_index, len(edges.species))
    loss = (energy * torch.linspace(-1, 2, len(energy))).sum() + forces.sin().sum()
    return [energy, forces, gradient, *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])]


@needs_compiler
@each_flavour
@pytest.mark.parametrize("case", ["all", "some edges missing", "vectors of both ends differ"])
def test_edges_that_share_their_embedding(config, case):
    """ij and ji do between atoms of one element, if both are there and one vector is minus the other."""
    model = potential(config=config, **LARGE[config.name])
    batch = Batch.from_structures(structures(), model.cutoff, dtype=torch.float64)
    edge_vec, edge_index, chance = batch.edge_vec(), batch.edge_index, torch.Generator().manual_seed(0)
    if case == "some edges missing":
        kept = torch.rand(len(edge_vec), generator=chance) < 0.7
        edge_vec, edge_index = edge_vec[kept], edge_index[:, kept]
    if case == "vectors of both ends differ":
        edge_vec = edge_vec + 1e-6 * torch.randn(edge_vec.shape, generator=chance, dtype=torch.float64)
    edges = Edges(edge_vec, edge_index, model.species(batch))
    energy, forces, gradient, *others = of_edges(model, model.by_kernel, edges)
    expected_energy, expected_forces, expected_gradient, *expected = of_edges(model, model.by_autograd, edges)
    for mine, theirs in zip([energy, forces, *others], [expected_energy, expected_forces, *expected], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11 * theirs.abs().max().item())
    # The radial part of the gradient of both edges is at one of them.
    moved = ((gradient - expected_gradient).abs().amax(1) > 1e-9).double().mean()
    assert {"all": 0.2 < moved < 0.9, "some edges missing": 0.1 < moved < 0.6}.get(case, moved == 0)


@needs_compiler
@each_flavour
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
@each_flavour
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
def test_large_values_do_not_overflow():
    """silu far outside the range of the exponential function."""
    model = potential(torch.float32, output_mlp=())
    with torch.no_grad():
        model.network.embedding.center.mul_(1e4)
    for mine, theirs in zip(found(model)[:2], found(model, kernels=False)[:2], strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())


@each_flavour
def test_weights_and_positions_of_different_precision_are_not_mixed(config):
    """As without kernels: an error, not numbers read as what they are not."""
    batch = Batch.from_structures(structures(), config.cutoff, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="dtype"):
        potential(torch.float32, config)(batch)


def test_terms_are_the_dense_coefficients():
    product = potential().network.layers[0].product
    dense = product.coefficients.exact
    lists = _nequip_lists(product, dense)
    out = torch.zeros(lists.sizes["n_rows"], dense.shape[3], dense.shape[2], dtype=torch.float64)
    out.index_put_(tuple(lists.terms.t()), lists.coefficients)
    assert torch.equal(out.unflatten(0, (-1, lists.sizes["n_columns"])).transpose(2, 3), dense)


# ---- failures ------------------------------------------------------------------------------------------------------


def launch_and_weights(model: Potential, **changes):
    """A call of the kernel with these arguments changed, the weights that it reads, and where it writes."""
    batch = Batch.from_structures(structures()[:1], model.cutoff, dtype=torch.float64)
    kernel, readout = architecture(model.config.name).kernel, list(model.head.mlp.weights)
    edges = Edges(batch.edge_vec(), batch.edge_index, model.species(batch))
    launch, weights = kernel.launch(model.network, readout, edges)
    launch = dataclasses.replace(launch, **changes)
    return launch, weights, {"energy": launch.problem.norm.clone(), "gradient": launch.edge_vec.clone()}


@needs_compiler
@each_flavour
@pytest.mark.parametrize("function", ["energies_and_gradient", "weight_gradients"])
def test_memory_that_cannot_be_had_is_an_error_not_the_end_of_the_process(config, function):
    """In a thread: the product of the radial functions with a matrix of 2^30 columns needs more than there can be."""
    n = 1 << 15
    changes = {
        "first_edge": torch.tensor([0, n]),
        "neighbor": torch.zeros(n, dtype=torch.long),
        "edge_vec": torch.ones(n, 3, dtype=torch.float64),
    }
    launch, weights, out = launch_and_weights(potential(config=config), **changes)
    weights[0] = torch.empty(0, 1 << 30, dtype=torch.float64)
    launch = dataclasses.replace(launch, problem=dataclasses.replace(launch.problem, norm=torch.ones(1).double()))
    out |= {"to_energy": torch.ones(1).double(), "tangent": torch.ones(n, 3).double()}
    with pytest.raises(MemoryError, match=rf"the kernel's {function} failed: there is not enough memory|larger than"):
        launch.run(function, weights, [None] * len(weights), None, out)


@needs_compiler
def test_what_no_network_asks_for_is_refused():
    model = potential()
    launch, weights, out = launch_and_weights(model)
    problem, backwards = launch.problem, launch.first_edge.flip(0)
    for changes, message in (
        ({"problem": dataclasses.replace(problem, l_max=MAX_DEGREE + 1)}, "the degree of harmonics is not supported"),
        ({"problem": dataclasses.replace(problem, channels=1 << 40)}, "channels is not a multiple of a block, below 2"),
        ({"first_edge": backwards}, "edges are not sorted by centre"),
    ):
        with pytest.raises(RuntimeError, match=message):
            dataclasses.replace(launch, **changes).run(
                "energies_and_gradient", weights, [None] * len(weights), None, out
            )


@needs_compiler
def test_forms_refuse_absurd_sizes():
    one = torch.ones(1, 1)
    for message, ends, w, y in (
        ("derivatives failed: the number of channels is not between 1 and 2", [0, 1], torch.ones(1, 0), one),
        ("the degree of harmonics is not supported", [0, 1], torch.ones(1, 40), torch.ones(1, 1600)),
        ("edges are not sorted by centre", [0, 3, 1], one, one),
    ):
        with pytest.raises(RuntimeError, match=message):
            cpu_forms.edges(torch.tensor(ends), w=w, y=y, by_g=one)


@needs_compiler
def test_numbers_below_the_smallest_normal_one_are_zero_there_and_nowhere_else():
    """A product with such a number takes a hundred times longer, and trained networks are full of them."""
    first, by_g = torch.tensor([0, 1]), torch.ones(1, 1, 16)
    cpu_forms.edges(first, w=torch.full((1, 16), 1e-30), y=torch.full((1, 1), 1e-5), by_g=by_g)
    assert (by_g / 1e-35).allclose(torch.ones(())), "a small normal one is there"
    cpu_forms.edges(first, w=torch.full((1, 16), 1e-30), y=torch.full((1, 1), 1e-10), by_g=by_g)
    assert by_g.tolist() == torch.zeros(1, 1, 16).tolist()
    assert (torch.tensor([1e-40]) * 1).item() > 0, "the caller's own arithmetic is as before"
