"""The whole network in Triton kernels, in its interpreter where there is no GPU, against autograd in float64."""

import copy
import dataclasses

import pytest
import torch
from conftest import SMALL as SMALL_PUBLISHED
from conftest import SMALL_NEQUIP

from equicat.data.batch import Batch
from equicat.data.structure import Structure
from equicat.kernels import backend
from equicat.kernels.edges import Edges
from equicat.kernels.frozen import Frozen
from equicat.kernels.products import split_products
from equicat.kernels.terms import Terms
from equicat.models.gradient import ComputeOptions, pair_vectors
from equicat.models.potential import Potential
from equicat.models.repulsion import EnergyTerms, Repulsion
from equicat.networks import allegro_gpu, allegro_gpu_training
from equicat.testing import example_structures

pytest.importorskip("triton", reason="Triton is not installed (Linux only)")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ELEMENTS = (1, 8, 29)
SMALL = dataclasses.replace(
    SMALL_NEQUIP, cutoff=3.5, l_max=1, tensor_channels=3, n_radial=3, neighbors_of_element=(4.0, 9.0, 16.0)
)
CASES = {
    "as it is": ({}, ()),
    "pairs and paths": (
        {
            "pair_cutoffs": (3.5, 3.0, 3.2, 3.0, 3.5, 3.1, 3.3, 3.1, 3.4),
            "coupling": "path",
            "parity": "restricted",
            "n_layers": 3,
        },
        (),
    ),
    "degrees, hidden readout": ({"l_max": 2, "envelope_p": 2}, (9,)),
    "scalars alone": ({"l_max": 0, "n_layers": 1, "features_silu": False, "envelope_p": 8}, ()),
    "linear features, hidden readout": ({"features_silu": False, "n_layers": 1}, (3,)),
    "wider than a program": ({"two_body_hidden": (40,), "n_layers": 1, "l_max": 0}, (33,)),
}


def some_of(cases: dict[str, tuple], slow: tuple[str, ...]) -> list:
    """The cases as parameters, some of them for slow checks only."""
    return [pytest.param(*c, id=n, marks=[pytest.mark.slow] if n in slow else []) for n, c in cases.items()]


@pytest.fixture(autouse=True)
def triton(monkeypatch):
    from equicat.kernels.gpu import centers, embedding, environment, hidden, products, sums

    monkeypatch.setattr(backend, "has_triton", lambda device: True)
    monkeypatch.setattr(backend, "enabled", lambda: False)  # no kernel in C++ in its place
    found = backend.triton_forms()
    monkeypatch.setattr(backend, "forms", lambda like, l_max: found)
    # Several programs, the last one not full.
    monkeypatch.setattr(environment, "SHAPES", dict.fromkeys(environment.SHAPES, (16, 4)))
    monkeypatch.setattr(products, "ROWS", products.Tiles(32, 16, 16, 4, 1))
    monkeypatch.setattr(hidden, "NARROW", 32)
    monkeypatch.setattr(hidden, "EDGES", 32)
    monkeypatch.setattr(hidden, "COLUMNS", 16)
    monkeypatch.setattr(embedding, "EMBEDDED", 256)
    monkeypatch.setattr(centers, "CENTERS", 4)
    monkeypatch.setattr(centers, "TERMS", 8)
    monkeypatch.setattr(sums, "TILES", products.Tiles(32, 16, 16, 4, 1))


def potential(head: tuple[int, ...] = (), **changes) -> Potential:
    torch.manual_seed(0)
    terms = EnergyTerms(factors=(0.5, 1.0, 2.0), repulsion=Repulsion(6, (4.0,)))
    config = dataclasses.replace(SMALL, **changes)
    model = Potential(config, ELEMENTS, head, scale=1.7, terms=terms, compute=ComputeOptions(cuda_graphs=False))
    return model.to(DEVICE).eval().requires_grad_(False)


def cluster(n: int = 9) -> Batch:
    whole = example_structures(ELEMENTS, 0)[0]
    structures = [Structure(whole.numbers[:n], whole.positions[:n], whole.cell, whole.pbc)]
    return Batch.from_structures(structures, SMALL.cutoff).to(DEVICE)


def edges_of(model: Potential) -> Edges:
    """Edges of all atoms but the last and one in the middle; one is longer than the cutoff."""
    batch = cluster()
    vectors, index = batch.edge_vec(), batch.edge_index
    keep = (index[0] != 3) & (index[0] != len(batch.numbers) - 1)
    vectors, index = vectors[keep].clone(), index[:, keep]
    vectors[4] *= 2 * SMALL.cutoff / vectors[4].norm()
    return Edges(vectors, index, model.species(batch))


@pytest.mark.parametrize(("changes", "head"), some_of(CASES, slow=("pairs and paths", "scalars alone")))
def test_energies_and_gradient(changes, head):
    model = potential(head, **changes)
    edges = edges_of(model)
    assert allegro_gpu.serves(model.network, model.head.mlp.matrices(), edges.edge_vec)
    found = model.by_launches(edges)
    exact = copy.deepcopy(model).double().by_autograd(edges._replace(edge_vec=edges.edge_vec.double()))
    assert exact[1].abs().max() > 1e-2
    assert (found[1][4] == 0).all()  # beyond the cutoff
    for ours, expected in zip(found, exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours.double() - expected).abs().max() < 4e-6 * expected.abs().max()


def test_without_edges():
    model = potential()
    edges = edges_of(model)
    none = Edges(edges.edge_vec[:0], edges.edge_index[:, :0], edges.species)
    energies, gradient = model.by_launches(none)
    assert gradient.shape == (0, 3)
    assert (energies == 0).all()


def test_a_model_uses_it_and_sees_new_weights(monkeypatch):
    model, batch = potential(), cluster()
    calls, run = [], allegro_gpu.energies_and_gradient

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allegro_gpu, "energies_and_gradient", lambda *a: calls.append(1) or run(*a))
        before = model(batch)
        with torch.no_grad():
            model.network.readout.mul_(2)
        after = model(batch)
    assert len(calls) == 2
    assert (before.forces - after.forces).abs().max() > 1e-3
    monkeypatch.setattr(backend, "has_triton", lambda device: False)
    monkeypatch.setattr(backend, "forms", lambda like, l_max: None)
    for model_, expected in ((model, after), (potential(), before)):
        plain = copy.deepcopy(model_).double()
        torch.testing.assert_close(expected.forces.double(), plain(in_float64(batch)).forces, rtol=1e-5, atol=1e-5)


def in_float64(batch: Batch) -> Batch:
    return dataclasses.replace(batch, dtype=torch.float64)


@pytest.mark.parametrize(
    "changes",
    [{"radial": "spline"}, {"two_body_hidden": (4, 4)}, {"latent_hidden": (4, 4)}, {"l_max": 5, "n_layers": 1}],
)
def test_where_operators_compute(changes):
    model = potential(**changes)
    assert not allegro_gpu.serves(model.network, model.head.mlp.matrices(), torch.zeros(0, device=DEVICE))


def test_where_operators_compute_for_other_reasons():
    model, like = potential(), torch.zeros(0, device=DEVICE)
    readout = model.head.mlp.matrices()
    assert allegro_gpu.serves(model.network, readout, like)
    assert not allegro_gpu.serves(model.network, readout, like.double())
    assert not allegro_gpu.serves(model.network, [*readout, *readout, *readout], like)
    with split_products(False):
        assert not allegro_gpu.serves(model.network, readout, like)
    other = Potential(SMALL_PUBLISHED, ELEMENTS)
    assert not allegro_gpu.serves(other.network, other.head.mlp.matrices(), like)


def test_what_is_made_of_frozen_weights_is_made_once():
    module, made = torch.nn.Linear(2, 2), []
    frozen = Frozen[int]()

    def ask() -> int:
        return frozen(module, list(module.parameters()), lambda: made.append(1) or len(made))

    assert [ask(), ask()] == [1, 2]  # these are trained
    module.requires_grad_(False)
    assert [ask(), ask()] == [3, 3]
    module.weight.mul_(2)
    assert [ask(), ask()] == [4, 4]
    module.double()
    assert ask() == 5


def test_pair_vectors():
    structures = example_structures(ELEMENTS, 0)
    batch = Batch.from_structures(structures, 4.0).to(DEVICE)
    assert batch.n_systems > 1
    assert batch.edge_shift.any()
    for some in (slice(None), slice(7, 50), slice(0)):
        torch.testing.assert_close(pair_vectors(batch, some), batch.edge_vec(some), rtol=2**-23, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_derivative_of_a_silu(dtype, monkeypatch):
    from equicat.kernels import activations

    torch.manual_seed(0)
    x = torch.randn(50, 7, dtype=dtype, device=DEVICE).t().requires_grad_()

    def second() -> torch.Tensor:
        (slope,) = torch.autograd.grad(activations.silu(3 * x).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.cos().sum(), x)[0]

    found = second()
    monkeypatch.setattr(backend, "has_triton", lambda device: False)
    torch.testing.assert_close(found, second(), rtol=1e-5, atol=1e-5)


# ---- training ------------------------------------------------------------------------------------------------------

PUBLISHED = dataclasses.replace(SMALL_PUBLISHED, cutoff=3.5, l_max=1, tensor_channels=3, n_bessel=3)
TRAINED = {
    "published": (PUBLISHED, {}),
    "published, normalised basis": (PUBLISHED, {"normalize_basis": True, "l_max": 2, "n_layers": 1}),
    "nequip-allegro": (SMALL, {}),
    "three layers, paths": (SMALL, {"n_layers": 3, "coupling": "path", "bessel_trainable": True}),
    "scalars alone": (SMALL, {"l_max": 0, "n_layers": 1}),
}


@pytest.mark.parametrize(
    ("config", "changes"), some_of(TRAINED, slow=("published", "three layers, paths", "scalars alone"))
)
def test_a_training_step(config, changes, monkeypatch):
    """Energies, forces, and the gradient of a loss of both by all weights, in float64."""
    from equicat.kernels.gpu import centers, geometry

    called, functions = set(), {(geometry, "geometry"), (centers, "product")}
    for module, name in functions:
        run = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, key=(module, name), run=run: called.add(key) or run(*a))
    found = of_a_step(config, changes)
    assert called == ({(geometry, "geometry")} if config is PUBLISHED else functions)
    monkeypatch.setattr(backend, "has_triton", lambda device: False)
    monkeypatch.setattr(backend, "forms", lambda like, l_max: None)
    for ours, expected in zip(found, of_a_step(config, changes), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


WRITTEN_OUT = {
    "two layers": ({}, 128),
    "many elements": ({"n_layers": 1, "l_max": 0}, 4),
    "scalars, linear features": ({"n_layers": 1, "l_max": 0, "features_silu": False}, 128),
    "three layers, paths": ({"n_layers": 3, "coupling": "path", "neighbors_of_element": None}, 128),
    "degrees, pairs": ({"n_layers": 2, "l_max": 2, "parity": "restricted", "pair_cutoffs": (3.5, 3.0, 3.2) * 3}, 128),
}
"""Changes of the network, and the number of pairs of elements above which sums over their edges are made otherwise."""


@pytest.mark.parametrize(("changes", "few_pairs"), some_of(WRITTEN_OUT, tuple(WRITTEN_OUT)[2:]))
def test_derivatives_by_weights_that_are_written_out(changes, few_pairs, monkeypatch):
    from equicat.kernels.gpu import embedding

    monkeypatch.setattr(embedding, "FEW_PAIRS", few_pairs)
    model = potential(**changes).train().requires_grad_(True)
    model.network.basis.frequencies.requires_grad_(False)
    edges = edges_of(model)
    assert allegro_gpu_training.trains(model.network, model.head.mlp.matrices(), edges.edge_vec)
    found = derivatives(model, edges, model.by_launches)
    monkeypatch.setattr(backend, "has_triton", lambda device: False)
    monkeypatch.setattr(backend, "forms", lambda like, l_max: None)
    exact = copy.deepcopy(model).double()
    expected = derivatives(exact, edges._replace(edge_vec=edges.edge_vec.double()), exact.by_autograd)
    for name, ours in found.items():
        assert (ours.double() - expected[name]).abs().max() < 1e-5 * expected[name].abs().max(), name


def derivatives(model: Potential, edges: Edges, differentiated) -> dict[str, torch.Tensor]:
    """Energies, their gradient, and the derivatives of a loss of both by the weights."""
    energies, gradient = differentiated(edges, training=True)
    numbers = torch.arange(gradient.numel(), dtype=gradient.dtype, device=DEVICE).view_as(gradient)
    loss = (energies * numbers[: len(energies), 0]).sin().sum() + (gradient * numbers.cos()).sin().sum()
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    by_weights = torch.autograd.grad(loss, list(weights.values()))
    return {"energies": energies.detach(), "gradient": gradient.detach()} | dict(zip(weights, by_weights, strict=True))


def test_where_a_training_step_is_not_written_out():
    model, like = potential(), torch.zeros(0, device=DEVICE)
    readout = model.head.mlp.matrices()
    assert allegro_gpu_training.trains(model.network, readout, like)
    assert not allegro_gpu_training.trains(model.network, readout, like.double())
    assert not allegro_gpu_training.trains(model.network, [*readout, *readout], like)
    model.network.basis.frequencies.requires_grad_(True)
    assert not allegro_gpu_training.trains(model.network, readout, like)
    wide = potential(latent_hidden=(40,))
    assert not allegro_gpu_training.trains(wide.network, wide.head.mlp.matrices(), like)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_layers": 1},
        pytest.param({"n_layers": 3, "l_max": 0, "tensor_channels": 19, "n_features": 20}, marks=pytest.mark.slow),
    ],
)
def test_a_training_step_in_float32(changes, monkeypatch):
    """Hidden layers are computed by kernels of their own there."""
    from equicat.kernels.gpu import hidden

    called, run = [], hidden.hidden
    monkeypatch.setattr(hidden, "hidden", lambda *a: called.append(1) or run(*a))
    found = of_a_step(SMALL, changes, torch.float32)
    assert len(called) == 1 + changes.get("n_layers", 2)
    monkeypatch.setattr(backend, "has_triton", lambda device: False)
    monkeypatch.setattr(backend, "forms", lambda like, l_max: None)
    for ours, expected in zip(found, of_a_step(SMALL, changes), strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_hidden_layers_that_a_program_has_room_for(monkeypatch):
    from equicat.kernels.gpu import hidden

    monkeypatch.setattr(hidden, "NARROW", 128)
    widths = (17, 64, 65, 128, 129)
    for room, expected in ((232_448, 4), (101_376, 4), (65_536, 2)):
        monkeypatch.setattr(hidden, "shared_memory", lambda device, room=room: room)
        assert [hidden.is_narrow(torch.zeros(32, n)) for n in widths] == [True] * expected + [False] * (5 - expected)


def of_a_step(config, changes, dtype=torch.float64) -> list[torch.Tensor]:
    torch.manual_seed(0)
    options = ComputeOptions(cuda_graphs=False)
    model = Potential(dataclasses.replace(config, **changes), ELEMENTS, (4,), compute=options).to(DEVICE, dtype)
    out = model.train()(dataclasses.replace(cluster(7), dtype=dtype))
    factors = torch.arange(out.forces.numel(), device=DEVICE).view_as(out.forces)
    loss = out.energy.square().sum() + (out.forces * factors).sin().sum()
    weights = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, weights)
    assert all(g.abs().max() > 0 for g in found)
    return [out.energy.detach(), out.forces.detach(), *found]


def test_derivatives_by_weights_of_a_gradient_that_has_a_graph():
    """The products of centres give them in operators, so that they are differentiable."""
    from equicat.kernels.gpu.centers import product

    torch.manual_seed(0)
    coefficients = torch.zeros(3, 3, 2, 1, dtype=torch.float64)
    for a, b, c in ((0, 1, 0), (2, 0, 1), (1, 1, 1), (2, 2, 0)):
        coefficients[a, b, c] = 1
    terms = Terms.of(coefficients).to(coefficients.to(DEVICE))
    norm = torch.rand(2, dtype=torch.float64, device=DEVICE)
    shapes = ((4, 1), (2, 3, 1), (2, 2, 1))
    inputs = [torch.randn(*s, dtype=torch.float64, device=DEVICE, requires_grad=True) for s in shapes]

    def of_terms(w, a, h):
        return product(terms, norm, w, a, h)

    assert torch.autograd.gradcheck(of_terms, inputs)
    assert torch.autograd.gradgradcheck(of_terms, inputs)


def test_a_gradient_by_frequencies_does_not_keep_that_by_vectors_from_being_differentiated():
    from equicat.kernels.gpu.geometry import Shape, geometry

    torch.manual_seed(0)
    shape = Shape(torch.zeros(2).double().to(DEVICE), torch.ones(2).double().to(DEVICE), 6, 1)
    vectors, frequencies = torch.rand(5, 3).double().to(DEVICE), torch.tensor([3.0, 6.0]).double().to(DEVICE)
    inputs = vectors.requires_grad_(), frequencies.requires_grad_()
    radial, _, harmonics = geometry(shape, vectors, vectors.new_full((5,), 0.3), frequencies)
    total = radial.square().sum() + harmonics.sin().sum()
    by_vectors, by_frequencies = torch.autograd.grad(total, inputs, create_graph=True)
    (again,) = torch.autograd.grad(by_vectors.square().sum(), frequencies, retain_graph=True)
    assert again.abs().min() > 0
    with pytest.raises(NotImplementedError, match="frequencies"):
        torch.autograd.grad(by_frequencies.sum(), vectors)


def test_a_network_by_itself_is_differentiable_twice_by_pair_vectors():
    """Only potentials, which make these vectors themselves, say that nobody asks for that."""
    torch.manual_seed(0)
    model = potential().double().train().requires_grad_(True)
    edges = edges_of(model)
    vectors = edges.edge_vec.double().requires_grad_()
    total = model.network(vectors, *edges[1:]).scalars.square().sum()
    (first,) = torch.autograd.grad(total, vectors, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), vectors)
    assert second.abs().max() > 1e-3
