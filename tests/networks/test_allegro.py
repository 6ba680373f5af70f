"""Both flavours of the network against the plain version, against e3nn, and under rotations."""

import dataclasses

import pytest
import torch
from allegro_variants import VARIANTS, name
from conftest import SMALL, SMALL_NEQUIP
from e3nn import o3

from equicat.data.batch import Batch
from equicat.errors import InputError
from equicat.kernels import backend, forms
from equicat.kernels.forms import cut
from equicat.kernels.harmonics import spherical_harmonics
from equicat.kernels.irreps import Contraction, Paths, couplings, harmonics, layer_irreps
from equicat.kernels.wigner import wigner_3j
from equicat.networks.allegro import Allegro, AllegroConfig, NequipAllegroConfig
from equicat.networks.allegro_embeddings import SplineEmbedding
from equicat.networks.allegro_parts import NequipAllegro, PublishedAllegro
from equicat.networks.features import Features
from equicat.networks.layers import BesselBasis, SplineBasis, polynomial_envelope, silu
from equicat.testing import check_equivariance, example_structures
from equicat.testing.plain_allegro import plain_forward

ELEMENTS = (1, 8, 29)
VECTORS = [
    {"n_layers": 1, "vectors": True},
    {"n_layers": 2, "l_max": 1, "vectors": True},
    {"n_layers": 3, "vectors": True},
    {"n_layers": 2, "l_max": 3, "parity": "restricted", "vectors": True},
]
"""Published networks that keep vectors; those of the other flavour always do here."""

each_flavour = pytest.mark.parametrize("small", [SMALL, SMALL_NEQUIP], ids=name)


@pytest.fixture(params=["plain", "cpu"])
def version(request, monkeypatch) -> str:
    """Which version of the forms is used."""
    if request.param == "plain":
        monkeypatch.setattr(backend, "forms", lambda like, l_max: None)
    elif backend.forms(torch.zeros(1, dtype=torch.float64), 0) is None:
        pytest.skip("there is no C++ compiler on this machine")
    return request.param


def graph(seed: int = 0):
    batch = Batch.from_structures(example_structures(ELEMENTS, seed), SMALL.cutoff, dtype=torch.float64)
    species = torch.searchsorted(torch.tensor(ELEMENTS), batch.numbers)
    return batch.edge_vec(), batch.edge_index, species


def network(small=SMALL, vectors: bool = False, **changes) -> Allegro:
    torch.manual_seed(0)
    build = PublishedAllegro if small is SMALL else NequipAllegro
    return build(dataclasses.replace(small, **changes), 3, vectors).double()


def flat(features: Features) -> torch.Tensor:
    """Scalars and vectors as one."""
    assert features.per == "edge"
    return torch.cat([features.scalars, *([] if features.vectors is None else [features.vectors.flatten(1)])], dim=1)


@pytest.mark.parametrize(("small", "variant"), [*VARIANTS, *((SMALL, variant) for variant in VECTORS)], ids=name)
def test_agrees_with_the_plain_version_in_value_and_derivatives(version, small, variant):
    options = {"vectors": small is SMALL_NEQUIP and variant.get("l_max", 2) > 0} | variant
    model = network(small, **options)
    edge_vec, edge_index, species = graph()
    results = []
    for function in (model, lambda *x: plain_forward(model, *x)):
        vec = edge_vec.clone().requires_grad_()
        features = flat(function(vec, edge_index, species))
        (gradient,) = torch.autograd.grad(features.sin().sum(), vec, create_graph=True)
        parameters = [p for p in model.parameters() if p.requires_grad]
        second = torch.autograd.grad(gradient.square().sum() + features.sum(), [*parameters, vec])
        results.append([features, gradient, *second])
    assert results[0][0].shape[1] == model.n_features + 3 * model.n_vectors
    assert results[0][0].abs().amax(0).min() > 1e-4, "features are not trivially zero"
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)


@each_flavour
@pytest.mark.parametrize("floats", [1, 1 << 30])
def test_cutting_into_pieces_changes_nothing(monkeypatch, version, floats, small):
    model = network(small, vectors=True)
    edge_vec, edge_index, species = graph()
    expected = flat(plain_forward(model, edge_vec, edge_index, species))
    monkeypatch.setitem(forms.FLOATS_AT_A_TIME, "cpu", floats)
    monkeypatch.setattr(forms, "MIN_EDGES", 8)
    assert (len(cut(edge_index[0], len(species), model.floats_per_edge)) > 3) == (floats == 1)
    torch.testing.assert_close(flat(model(edge_vec, edge_index, species)), expected, rtol=1e-10, atol=1e-10)


@each_flavour
@pytest.mark.parametrize("radial", ["bessel", "spline"])
def test_without_any_edge_there_are_no_features(version, small, radial):
    model = network(small, vectors=True, **({} if small is SMALL else {"radial": radial}))
    nothing = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    features = flat(model(nothing, torch.zeros(2, 0, dtype=torch.long), torch.tensor([0, 2])))
    assert features.shape == (0, model.n_features + 3 * model.n_vectors)
    features.sum().backward()
    assert nothing.grad.shape == (0, 3)


@pytest.mark.parametrize("l1", range(6))
@pytest.mark.parametrize("l2", range(6))
def test_wigner_3j_agrees_with_e3nn(l1, l2):
    for l3 in range(abs(l1 - l2), l1 + l2 + 1):
        expected = o3.wigner_3j(l1, l2, l3, dtype=torch.float64)
        torch.testing.assert_close(wigner_3j(l1, l2, l3), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("l_max", range(6))
def test_spherical_harmonics_agree_with_e3nn(l_max):
    unit = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=1)
    expected = o3.spherical_harmonics(list(range(l_max + 1)), unit, normalize=False, normalization="component")
    torch.testing.assert_close(spherical_harmonics(l_max, unit), expected, rtol=1e-12, atol=1e-12)


def test_spherical_harmonics_rotate_and_reflect():
    def directions(x):
        unit = torch.nn.functional.normalize(x[:, :, 0][:, [0, 1, 2]], dim=1)
        return spherical_harmonics(3, unit)[:, :, None]

    check_equivariance(directions, "1o", "0e + 1o + 2e + 3o", channels=1)


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("l_max", [1, 2, 3])
def test_each_layer_rotates_and_reflects(k, l_max):
    layer, entering, leaving = network(n_layers=3, l_max=l_max).layers[k], *layer_irreps(l_max, 3, "full")[k : k + 2]
    written = lambda irreps: " + ".join(f"{d}{'e' if p == 1 else 'o'}" for d, p in irreps)  # noqa: E731
    n_edges = 6
    (segments,) = cut(torch.arange(2).repeat_interleave(3), 2, 1)

    def products(env, v):
        by_irrep = v.split([2 * d + 1 for d, _ in entering], dim=1)
        return layer.products(by_irrep, env[::3], segments)

    inputs = [written(harmonics(l_max)), written(entering)]
    options = {"n": n_edges, "channels": SMALL.tensor_channels}
    check_equivariance(lambda *x: torch.cat(products(*x)[1], dim=1), inputs, written(leaving), **options)
    check_equivariance(lambda *x: products(*x)[0][:, None], inputs, "0e", **options)


@each_flavour
def test_vectors_turn_and_reflect_with_the_system(small):
    model = network(small, vectors=True, n_layers=3)
    edge_vec, edge_index, species = graph()
    turned = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    turned = -turned if torch.det(turned) > 0 else turned  # with a reflection
    found, moved = model(edge_vec, edge_index, species), model(edge_vec @ turned.T, edge_index, species)
    torch.testing.assert_close(moved.scalars, found.scalars)
    torch.testing.assert_close(moved.vectors, torch.einsum("ab,ebu->eau", turned, found.vectors))
    assert found.vectors.abs().max() > 1e-3


@each_flavour
def test_no_vectors_from_scalars_alone(small):
    with pytest.raises(InputError, match=r"model.l_max is 0, so there are no vectors for this head"):
        network(small, vectors=True, l_max=0)


def test_dead_irreps_are_left_out():
    # At l_max 2 with two layers only 0e, 1o, 2e can still meet the harmonics in a scalar: 9 components, not 18.
    assert layer_irreps(2, 2, "full")[1] == [(0, 1), (1, -1), (2, 1)]
    three = layer_irreps(2, 3, "full")
    assert (0, -1) not in three[1]
    assert (1, 1) in three[1]
    assert layer_irreps(2, 3, "restricted")[1] == harmonics(2)


def test_paths_obey_selection_rules_and_keep_unit_variance():
    paths = Paths.build(harmonics(2), 2, (1, -1))
    assert ((0, 1), (1, -1)) in paths.pairs
    assert ((1, -1), (1, -1)) not in paths.pairs, "odd times odd is even"
    variance = paths.coefficients.square().sum((0, 3))
    torch.testing.assert_close(variance, torch.ones_like(variance))


def test_envelope_has_two_vanishing_derivatives_at_the_cutoff():
    x = torch.tensor([1e-9, 0.3, 0.999999, 1.0, 1.5], dtype=torch.float64, requires_grad=True)
    u = polynomial_envelope(x, 6)
    assert u[0].item() == 1
    assert u[3:].tolist() == [0, 0]
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert abs(first[2]) < 1e-9
    assert abs(second[2]) < 1e-3
    assert u[1].item() == pytest.approx(1 - 28 * 0.3**6 + 48 * 0.3**7 - 21 * 0.3**8)


def test_bessel_values():
    x = torch.tensor([[0.25], [0.5]], dtype=torch.float64)
    basis = BesselBasis(3).double()(x)
    expected = torch.sin(torch.pi * x * torch.arange(1.0, 4)) / (torch.pi * x)
    torch.testing.assert_close(basis, expected, rtol=1e-6, atol=1e-6)


@each_flavour
def test_coupling_coefficients_are_never_rounded(small):
    model = network(small).float()
    edge_vec, edge_index, species = graph()
    model(edge_vec.float(), edge_index, species)
    model, like = model.double(), edge_vec
    for layer in model.layers:
        if small is SMALL:
            paths, exact = layer.paths, layer.contraction.like(like).coefficients
            expected = Contraction.build(layer_irreps(small.l_max, small.n_layers, small.parity)[0], paths).coefficients
            if layer is model.layers[0]:
                assert torch.equal(exact, expected)
        else:
            exact = layer.product.coefficients.like(like)
            assert torch.equal(exact, couplings(layer.product.paths))
        assert exact.dtype == torch.float64


def test_splines_end_smoothly_at_the_cutoff():
    x = torch.linspace(0, 1.2, 241, dtype=torch.float64)[:, None].requires_grad_()
    basis = SplineBasis(6, 4)(x)
    assert basis.shape == (241, 6)
    assert (basis[x[:, 0] >= 1] == 0).all()
    assert basis.max().item() == pytest.approx(1)
    (first,) = torch.autograd.grad(basis.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    near = (x[:, 0] - 1).abs() < 0.006
    assert first[near].abs().max() < 1e-3 * first.abs().max()
    assert second[near].abs().max() < 0.1 * second.abs().max()


def test_spline_embedding_gives_each_pair_its_own_functions():
    torch.manual_seed(0)
    embedding = SplineEmbedding(5, 3, 4, 3).double()
    basis, pair = torch.randn(40, 5, dtype=torch.float64), torch.randint(0, 9, (40,))
    torch.testing.assert_close(embedding(basis, pair), torch.einsum("es,esd->ed", basis, embedding.weight[pair]))


@pytest.mark.parametrize("p", [2, 5, 6])
def test_envelope_keeps_its_digits_near_the_cutoff(p):
    x = torch.tensor([0.9, 0.99, 0.999, 0.9999])
    exact = polynomial_envelope(x.double(), p)
    torch.testing.assert_close(polynomial_envelope(x, p).double(), exact, rtol=1e-3, atol=0)
    u = 1 - (p + 1) * (p + 2) / 2 * x[0] ** p + p * (p + 2) * x[0] ** (p + 1) - p * (p + 1) / 2 * x[0] ** (p + 2)
    assert exact[0].item() == pytest.approx(u.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (
            AllegroConfig,
            {"latent_mlp": (32,)},
            r"two_body_mlp \[64, .* 512\] and model.latent_mlp \[32\] must be equal",
        ),
        (AllegroConfig, {"n_layers": 0}, "model.n_layers is 0; it must be a whole number of at least 1"),
        (AllegroConfig, {"cutoff": -1.0}, "model.cutoff is -1.0; it must be a number of at least 0.5"),
        (NequipAllegroConfig, {"n_layers": 0}, "model.n_layers is 0; it must be a whole number of at least 1"),
        (NequipAllegroConfig, {"n_scalars": 0}, "model.n_scalars is 0; it must be a whole number of at least 1"),
        (NequipAllegroConfig, {"latent_hidden": ()}, "model.latent_hidden is .* with at least 1 of them"),
        (NequipAllegroConfig, {"embedding_width": 5}, "model.embedding_width is 5; it must be even"),
    ],
)
def test_bad_hyperparameters(config, options, message):
    with pytest.raises(InputError, match=message):
        config(**options)


def test_silu_to_second_order():
    x = torch.linspace(-4, 4, 11, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(silu(x), torch.nn.functional.silu(x))
    assert torch.autograd.gradcheck(silu, (x,))
    assert torch.autograd.gradgradcheck(silu, (x,))
