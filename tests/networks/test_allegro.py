"""The network against the plain version, against e3nn, and layer by layer under rotation and reflection."""

import dataclasses

import pytest
import torch
from conftest import SMALL
from e3nn import o3

from equicat.data.batch import Batch
from equicat.errors import InputError
from equicat.kernels.harmonics import spherical_harmonics
from equicat.kernels.irreps import Paths, harmonics, layer_irreps
from equicat.kernels.wigner import wigner_3j
from equicat.networks import centers
from equicat.networks.allegro import Allegro, AllegroConfig
from equicat.networks.centers import Chunk, chunks
from equicat.networks.features import Features
from equicat.networks.layers import BesselBasis, polynomial_envelope
from equicat.testing import check_equivariance, example_structures
from equicat.testing.plain_allegro import plain_forward

VARIANTS = [
    {"n_layers": 1},
    {"n_layers": 2},
    {"n_layers": 3},
    {"n_layers": 3, "parity": "restricted"},
    {"n_layers": 2, "l_max": 0},
    {"n_layers": 2, "l_max": 1, "env_embed_mlp": (6,)},
    {"n_layers": 2, "l_max": 3, "bessel_trainable": False},
    {"n_layers": 4, "l_max": 3},
    {"n_layers": 1, "vectors": True},
    {"n_layers": 2, "l_max": 1, "vectors": True},
    {"n_layers": 3, "vectors": True},
    {"n_layers": 2, "l_max": 3, "parity": "restricted", "vectors": True},
]


def graph(seed: int = 0):
    batch = Batch.from_structures(example_structures((1, 8, 29), seed), SMALL.cutoff, dtype=torch.float64)
    species = torch.searchsorted(torch.tensor([1, 8, 29]), batch.numbers)
    return batch.edge_vec(), batch.edge_index, species


def network(vectors: bool = False, **changes) -> Allegro:
    torch.manual_seed(0)
    return Allegro(dataclasses.replace(SMALL, **changes), 3, vectors).double()


def flat(features: Features) -> torch.Tensor:
    """Scalars and vectors as one."""
    assert features.per == "edge"
    return torch.cat([features.scalars, *([] if features.vectors is None else [features.vectors.flatten(1)])], dim=1)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_agrees_with_the_plain_version_in_value_and_derivatives(variant):
    model = network(**variant)
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
    assert results[0][0].abs().amax(0).min() > 1e-3, "features are not trivially zero"
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("floats", [1, 1 << 30])
def test_cutting_into_chunks_changes_nothing(monkeypatch, floats):
    model = network(vectors=True)
    edge_vec, edge_index, species = graph()
    vec = edge_vec.requires_grad_()
    expected = flat(plain_forward(model, vec, edge_index, species))
    monkeypatch.setitem(centers.FLOATS_PER_CHUNK, "cpu", floats)
    monkeypatch.setattr(centers, "MIN_EDGES_PER_CHUNK", 8)
    pieces, _ = chunks(edge_index[0], len(species), model.floats_per_edge)
    assert (len(pieces) > 3) == (floats == 1)
    torch.testing.assert_close(flat(model(vec, edge_index, species)), expected, rtol=1e-10, atol=1e-10)


def test_chunks_hold_every_edge_once_with_whole_centres(monkeypatch):
    monkeypatch.setattr(centers, "MIN_EDGES_PER_CHUNK", 10)
    counts = torch.tensor([0, 3, 7, 0, 1, 12, 12, 3, 0])
    center = torch.repeat_interleave(torch.arange(9), counts)
    pieces, position = chunks(center, 9, 1 << 40)
    edges = torch.cat([p.edges for p in pieces])
    assert sorted(edges.tolist()) == list(range(len(center)))
    assert torch.equal(edges[position], torch.arange(len(center)))
    for piece in pieces:
        x = torch.randn(len(piece.edges), 2)
        padded = piece.pad(x)
        assert torch.equal(piece.unpad(padded), x)
        assert padded.abs().sum() == pytest.approx(x.abs().sum().item(), rel=1e-5), "unused slots are zero"
        for i in center[piece.edges].unique():
            assert (center[piece.edges] == i).sum() == counts[i], "a centre is not torn apart"


def test_pad_is_differentiable_twice():
    piece = Chunk(slice(None), torch.tensor([0, 1, 3, 4, 5]), 2, 3)
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    function = lambda x: piece.unpad(piece.pad(x) ** 3)  # noqa: E731
    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(function, (x,))


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


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("l_max", [1, 2, 3])
def test_each_layer_rotates_and_reflects(first, l_max):
    model = network(n_layers=3, l_max=l_max)
    k = 0 if first else 1
    layer, entering, leaving = model.layers[k], *layer_irreps(l_max, 3, "full")[k : k + 2]
    name = lambda irreps: " + ".join(f"{d}{'e' if p == 1 else 'o'}" for d, p in irreps)  # noqa: E731
    n_atoms, n_max = 2, 3
    piece = Chunk(slice(None), torch.arange(n_atoms * n_max), n_atoms, n_max)
    x = torch.randn(n_atoms * n_max, SMALL.n_features, dtype=torch.float64)
    envelope = torch.rand(len(x), 1, dtype=torch.float64)

    def slots(features):
        return features.view(n_atoms, n_max, *features.shape[1:])

    def by_irrep(features, irreps):
        return list(slots(features).split([2 * d + 1 for d, _ in irreps], dim=2))

    def tensors(sh, v):
        v = [] if first else by_irrep(v, entering)
        return torch.cat(layer(x, v, slots(sh)[..., 0], envelope, piece)[1], dim=2).flatten(0, 1)

    def scalars(sh, v):
        v = [] if first else by_irrep(v, entering)
        return layer(x, v, slots(sh)[..., 0], envelope, piece)[0][:, :, None].transpose(1, 2)

    inputs = [name(harmonics(l_max)), name(entering)]
    options = {"n": n_atoms * n_max, "channels": SMALL.tensor_channels}
    check_equivariance(tensors, inputs, name(leaving), **options)
    check_equivariance(scalars, inputs, "0e", **options)


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


def test_double_precision_reaches_the_coupling_coefficients():
    model = network().float().double()
    for layer in model.layers:
        for ours, paths in zip(layer.coefficients, layer.paths.values(), strict=True):
            assert torch.equal(ours, paths.coefficients)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_mlp": (32,)}, r"two_body_mlp \[64, 128, 256, 512\] and latent_mlp \[32\] must be equal"),
        ({"n_layers": 0}, "must be positive"),
        ({"cutoff": -1.0}, "must be positive"),
    ],
)
def test_bad_hyperparameters(options, message):
    with pytest.raises(InputError, match=message):
        AllegroConfig(**options)
