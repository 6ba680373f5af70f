"""The second flavour: against its plain version, its physics, and what it writes."""

import dataclasses

import pytest
import torch
from conftest import SMALL_NEQUIP

from equicat.data.batch import Batch
from equicat.errors import InputError
from equicat.models.potential import Potential
from equicat.models.repulsion import EnergyTerms, Repulsion
from equicat.networks import centers
from equicat.networks.centers import chunks
from equicat.networks.layers import SplineBasis, polynomial_envelope
from equicat.networks.nequip_allegro import NequipAllegro, NequipAllegroConfig, SplineEmbedding
from equicat.testing import check_all, example_structures
from equicat.testing.plain_nequip_allegro import plain_forward

ELEMENTS = (1, 8, 29)
VARIANTS = [
    {"n_layers": 1},
    {"n_layers": 2},
    {"n_layers": 3},
    {"n_layers": 3, "parity": "restricted", "coupling": "path"},
    {"l_max": 0},
    {"l_max": 3, "n_layers": 3},
    {"radial": "spline", "n_radial": 6, "spline_span": 4},
    {"two_body_hidden": (), "latent_hidden": (5, 6), "embedding_width": 4, "features_silu": False},
    {"neighbors_of_element": (3.0, 7.0, 12.0), "pair_cutoffs": (2.0, 3.0, 4.0, 3.0, 2.5, 4.0, 4.0, 3.5, 4.0)},
]


def graph(seed: int = 0):
    batch = Batch.from_structures(example_structures(ELEMENTS, seed), SMALL_NEQUIP.cutoff, dtype=torch.float64)
    return batch.edge_vec(), batch.edge_index, torch.searchsorted(torch.tensor(ELEMENTS), batch.numbers)


def network(vectors: bool = False, **changes) -> NequipAllegro:
    torch.manual_seed(0)
    return NequipAllegro(dataclasses.replace(SMALL_NEQUIP, **changes), 3, vectors).double()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_agrees_with_the_plain_version_in_value_and_derivatives(variant):
    model = network(vectors=variant.get("l_max", 2) > 0, **variant)
    edge_vec, edge_index, species = graph()
    results = []
    for function in (model, lambda *x: plain_forward(model, *x)):
        vec = edge_vec.clone().requires_grad_()
        features = function(vec, edge_index, species)
        total = features.scalars.sin().sum()
        if features.vectors is not None:
            total = total + (features.vectors.sin() * torch.tensor([[1.0], [2.0], [3.0]])).sum()
        (gradient,) = torch.autograd.grad(total, vec, create_graph=True)
        parameters = [p for p in model.parameters() if p.requires_grad]
        second = torch.autograd.grad(gradient.square().sum() + total, [*parameters, vec])
        found = [features.scalars, gradient, *second]
        results.append(found if features.vectors is None else [*found, features.vectors])
    assert results[0][0].abs().max() > 0.1, "features are not trivially zero"
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("floats", [1, 1 << 30])
def test_cutting_into_chunks_changes_nothing(monkeypatch, floats):
    model = network(vectors=True)
    edge_vec, edge_index, species = graph()
    expected = plain_forward(model, edge_vec, edge_index, species)
    monkeypatch.setitem(centers.FLOATS_PER_CHUNK, "cpu", floats)
    monkeypatch.setattr(centers, "MIN_EDGES_PER_CHUNK", 8)
    assert (len(chunks(edge_index[0], len(species), model.floats_per_edge)[0]) > 3) == (floats == 1)
    found = model(edge_vec, edge_index, species)
    torch.testing.assert_close(found.scalars, expected.scalars, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.vectors, expected.vectors, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({}, EnergyTerms()),
        ({"n_layers": 3, "l_max": 3}, EnergyTerms(factors=(0.5, 1.0, 2.0))),
        ({"radial": "spline", "n_radial": 8, "spline_span": 6}, EnergyTerms(repulsion=Repulsion(6, (4.0,)))),
    ],
    ids=["bessel", "deep, own factors", "spline, ZBL"],
)
def test_physics(changes, terms):
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL_NEQUIP, **changes)
    check_all(Potential(config, ELEMENTS, (), 0.7, (-13.6, -432.0, -1.5), terms))


def test_vectors_turn_and_reflect_with_the_system():
    model = network(vectors=True, n_layers=3)
    edge_vec, edge_index, species = graph()
    turned = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    turned = -turned if torch.det(turned) > 0 else turned  # with a reflection
    found, moved = model(edge_vec, edge_index, species), model(edge_vec @ turned.T, edge_index, species)
    torch.testing.assert_close(moved.scalars, found.scalars)
    torch.testing.assert_close(moved.vectors, torch.einsum("ab,ebu->eau", turned, found.vectors))
    assert found.vectors.abs().max() > 1e-3


def test_no_vectors_from_scalars_alone():
    with pytest.raises(InputError, match=r"model.l_max is 0, so there are no vectors for this head"):
        network(vectors=True, l_max=0)


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


def test_zbl_of_two_copper_atoms():
    """Figures worked out by hand from the formula: 1 Å, no envelope to speak of at a cutoff of 100 Å."""
    torch.manual_seed(0)
    terms = EnergyTerms(repulsion=Repulsion(6, (100.0,)))
    zbl = Potential(SMALL_NEQUIP, (29,), (), 1.0, None, terms).double().repulsion
    edge_vec = torch.tensor([[0, 0, 1.0], [0, 0, -1.0]], dtype=torch.float64)
    energy = zbl(edge_vec, torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 0]), 1)
    d = 2 * 29**0.23 / 0.4685
    terms = ((0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162))
    screening = sum(c * 2.718281828459045 ** (-k * d) for c, k in terms)
    assert energy.sum().item() == pytest.approx(14.399645 * 29**2 * screening, rel=1e-9)
    assert energy[0] == energy[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_layers": 0}, "must be positive"),
        ({"n_scalars": 0}, "must be positive"),
        ({"latent_hidden": ()}, "latent_hidden needs at least one hidden width"),
        ({"embedding_width": 5}, "embedding_width 5 must be even"),
    ],
)
def test_bad_hyperparameters(options, message):
    with pytest.raises(InputError, match=message):
        NequipAllegroConfig(**options)
