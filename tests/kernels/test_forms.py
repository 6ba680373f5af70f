"""The three forms in each version against the plain one: C++, and Triton (in its interpreter where there is no GPU)."""

import dataclasses

import pytest
import torch
from ase import Atoms
from conftest import SMALL, SMALL_NEQUIP

from equicat.data.batch import Batch
from equicat.data.structure import Structure
from equicat.kernels import backend, forms
from equicat.kernels.cpu import build
from equicat.kernels.forms import Segments, tensor_product, tensor_product_plain
from equicat.kernels.irreps import SCALAR, VECTOR, Contraction, Irrep, Paths, harmonics
from equicat.models.gradient import ComputeOptions
from equicat.models.potential import Potential
from equicat.networks.allegro_parts import NequipAllegro, PublishedAllegro

DEVICE = torch.device("cpu")
COUNTS = (0, 5, 0, 1, 3, 0)
"""Edges of each centre."""
ELEMENTS = (1, 8, 29)
OPERATORS = ComputeOptions(kernels=False)


@pytest.fixture(params=["cpu", "triton"], autouse=True)
def version(request, monkeypatch):
    """The version that is tested, used whatever the device; Triton on a GPU if there is one."""
    if request.param == "cpu":
        if build.compiler() is None:
            pytest.skip("there is no C++ compiler on this machine")
        found = backend.CPU_FORMS
    else:
        pytest.importorskip("triton", reason="Triton is not installed (Linux only)")
        from equicat.kernels.gpu import environment, tensor_product

        # So that short segments have several tiles, the last one not full.
        monkeypatch.setattr(environment, "TILE", 16)
        monkeypatch.setattr(tensor_product, "LANES", 16)
        monkeypatch.setattr(tensor_product, "EDGES", 1)
        monkeypatch.setitem(globals(), "DEVICE", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        found = backend.triton_forms()
    monkeypatch.setattr(backend, "forms", lambda like, l_max: found)
    return found


def layout(counts: tuple[int, ...] = COUNTS) -> Segments:
    center = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(DEVICE)
    (found,) = forms.cut(center, len(counts), 1)
    return found


def arguments(l_max: int, channels: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """w, Y and G; the first two columns of something larger, as they are in the network."""
    torch.manual_seed(0)
    n_edges, dim = sum(COUNTS), (l_max + 1) ** 2
    w = torch.randn(n_edges, (l_max + 1) * channels + 3, dtype=dtype, device=DEVICE)[:, 2:-1]
    y = torch.randn(n_edges, dim + 2, dtype=dtype, device=DEVICE)[:, 1:-1]
    g = torch.randn(len(COUNTS), dim, channels, dtype=dtype, device=DEVICE)
    return tuple(x.detach().requires_grad_() for x in (w, y, g))


def y00_is_one(y: torch.Tensor) -> torch.Tensor:
    """As harmonics are: the plain version relies on it."""
    return torch.cat([0 * y[:, :1] + 1, y[:, 1:]], dim=1)


def value_and_derivatives(function, inputs) -> list[torch.Tensor]:
    """Of sin(outputs) weighted, and of cos(gradients) with respect to inputs and weights."""
    out = function(*inputs, layout())
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=DEVICE).view_as(out).requires_grad_()
    first = torch.autograd.grad((out.sin() * weights).sum(), inputs, create_graph=True, materialize_grads=True)
    second = torch.autograd.grad(sum(x.cos().sum() for x in first), [*inputs, weights], materialize_grads=True)
    return [out, *first, *second]


@pytest.mark.parametrize(("l_max", "channels"), [(0, 1), (1, 3), (2, 5), (3, 2), (2, 40)])
@pytest.mark.parametrize("name", ["environment", "read_out"])
def test_agrees_with_the_plain_version_in_value_and_derivatives(name, l_max, channels):
    inputs = arguments(l_max, channels)[: 2 if name == "environment" else 3]
    function, plain = getattr(forms, name), getattr(forms, f"{name}_plain")
    results = (
        value_and_derivatives(lambda w, y, *others, f=f: f(w, y00_is_one(y), *others), inputs)
        for f in (function, plain)
    )
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_single_precision_stays_single():
    w, y, g = arguments(2, 3, torch.float32)
    y = y00_is_one(y)
    env, out = forms.environment(w, y, layout()), forms.read_out(w, y, g, layout())
    assert env.dtype == out.dtype == torch.float32
    torch.testing.assert_close(env, forms.environment_plain(w, y, layout()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out, forms.read_out_plain(w, y, g, layout()), rtol=1e-5, atol=1e-5)


def test_gradients_that_are_one_number_repeated():
    """The derivative of a sum is a tensor whose elements share their memory."""
    w, y, g = arguments(1, 3)
    found, expected = (
        torch.autograd.grad(f(w, y00_is_one(y), g, layout()).sum(), (w, y, g))
        for f in (forms.read_out, forms.read_out_plain)
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def products(
    l_max: int, outputs: list[Irrep], channels: int, dtype: torch.dtype = torch.float64
) -> tuple[Contraction, list[torch.Tensor]]:
    """Tensor products of harmonics and a pseudovector with harmonics, and arguments: V by irrep, and M."""
    torch.manual_seed(0)
    entering = [*harmonics(l_max), *([(1, 1)] if l_max else [])]
    contraction = Contraction.build(entering, {out: Paths.build(entering, l_max, out) for out in outputs})
    shapes = [*((sum(COUNTS), d) for d in contraction.dims), (len(COUNTS), len(contraction.coefficients))]
    inputs = [torch.randn(*shape, channels, dtype=dtype, device=DEVICE, requires_grad=True) for shape in shapes]
    return contraction.to(inputs[0]), inputs


@pytest.mark.parametrize(
    ("l_max", "outputs", "channels"),
    [
        (0, [SCALAR], 1),
        (1, [SCALAR, VECTOR, (1, 1)], 3),
        (2, [SCALAR, VECTOR, (2, -1)], 3),
        (3, [(3, -1)], 5),
    ],
)
def test_tensor_products_agree_with_the_plain_version_in_value_and_derivatives(l_max, outputs, channels):
    contraction, inputs = products(l_max, outputs, channels)
    found, expected = (
        value_and_derivatives(
            lambda *x, f=f: torch.cat(f(x[:-2], x[-2], contraction, x[-1]), dim=1),  # the last is the layout
            inputs,
        )
        for f in (tensor_product, tensor_product_plain)
    )
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_third_derivatives_of_tensor_products():
    contraction, (*v, m) = products(1, [SCALAR, VECTOR], 2)
    results = []
    for function in (tensor_product, tensor_product_plain):
        value = sum(b.sin().sum() for b in function([x.detach() for x in v[:-1]] + v[-1:], m, contraction, layout()))
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, v[-1], create_graph=True)
            value = gradient.cos().sum()
        results.append(gradient)
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_tensor_products_in_single_precision_stay_single():
    contraction, (*v, m) = products(2, [SCALAR, VECTOR], 3, torch.float32)
    arguments = (v, m, contraction, layout())
    for found, expected in zip(tensor_product(*arguments), tensor_product_plain(*arguments), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("max_edges", [1, 4, 6, 8])
def test_cut_between_centers(monkeypatch, max_edges):
    monkeypatch.setattr(forms, "MIN_EDGES", max_edges)
    monkeypatch.setitem(forms.FLOATS_AT_A_TIME, "cpu", 1)
    center = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
    pieces = forms.cut(center, len(COUNTS), 1)
    assert len(pieces) == {1: 3, 4: 2, 6: 2, 8: 2}[max_edges]
    torch.testing.assert_close(torch.cat([center[p.edges] for p in pieces]), center)
    for piece in pieces:
        own = center[piece.edges]
        assert len(own) == piece.n_edges
        assert piece.n_edges <= max_edges or len(own.unique()) == 1
        assert piece.first[0] == 0
        assert piece.first[-1] == piece.n_edges
        torch.testing.assert_close(piece.center + piece.atoms.start, own)
        x = torch.randn(piece.n_edges, 2)
        padded = piece.padding.pad(x)
        torch.testing.assert_close(piece.padding.unpad(padded), x)
        torch.testing.assert_close(padded.sum(1), torch.zeros(len(padded), 2).index_add(0, piece.center, x))


# ---- the network ---------------------------------------------------------------------------------------------------


def batch() -> Batch:
    """A molecule of four atoms, another of two, and an atom on its own."""
    molecules = [
        Atoms("CuOHCu", [[0, 0, 0], [0, 0, 1.8], [1.1, 0.3, 2.5], [0.9, 1.4, 0.8]]),
        Atoms("OH", [[0, 0, 0], [0, 0.7, 0.7]]),
        Atoms("Cu"),
    ]
    systems = [Structure.from_ase(atoms) for atoms in molecules]
    return Batch.from_structures(systems, SMALL_NEQUIP.cutoff, dtype=torch.float64).to(DEVICE)


@pytest.mark.parametrize(
    ("small", "changes"),
    [
        (SMALL_NEQUIP, {"tensor_channels": 3}),
        (SMALL_NEQUIP, {"n_layers": 3, "l_max": 1, "coupling": "path", "radial": "spline"}),
        (SMALL, {"tensor_channels": 3}),
        (SMALL, {"n_layers": 3, "l_max": 1, "env_embed_mlp": (6,)}),
        (SMALL, {"n_layers": 1, "l_max": 3, "parity": "restricted"}),
    ],
    ids=["nequip-allegro", "deep, shared weights, spline", "published", "published, deep", "published, scalars alone"],
)
def test_a_potential_trains_on_the_same_numbers(small, changes, monkeypatch, version):
    results = []
    for used in (None, version):
        monkeypatch.setattr(backend, "forms", lambda like, l_max, used=used: used)
        torch.manual_seed(0)
        model = (
            Potential(dataclasses.replace(small, **changes), ELEMENTS, (5,), compute=OPERATORS)
            .double()
            .to(DEVICE)
            .train()
        )
        found = model(batch())
        (found.energy.square().sum() + found.forces.square().sum()).backward()
        results.append([found.energy, found.forces, *(p.grad for p in model.parameters() if p.requires_grad)])
    assert results[0][1].abs().max() > 1e-3
    for plain, found in zip(*results, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("network", "small"), [(NequipAllegro, SMALL_NEQUIP), (PublishedAllegro, SMALL)])
def test_vectors_and_several_pieces(network, small, monkeypatch, version):
    torch.manual_seed(0)
    model = network(dataclasses.replace(small, l_max=1), 3, vectors=True).double().to(DEVICE)
    system = batch()
    species = torch.searchsorted(torch.tensor(ELEMENTS, device=DEVICE), system.numbers)
    monkeypatch.setattr(backend, "forms", lambda like, l_max: None)
    expected = model(system.edge_vec(), system.edge_index, species)
    monkeypatch.setattr(backend, "forms", lambda like, l_max: version)
    monkeypatch.setitem(forms.FLOATS_AT_A_TIME, DEVICE.type, 5 * model.floats_per_edge)
    monkeypatch.setattr(forms, "MIN_EDGES", 1)
    assert len(forms.cut(system.edge_index[0], len(species), model.floats_per_edge)) == 4
    found = model(system.edge_vec(), system.edge_index, species)
    torch.testing.assert_close(found.scalars, expected.scalars, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.vectors, expected.vectors, rtol=1e-10, atol=1e-12)
