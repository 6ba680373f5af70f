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
from equicat.kernels.forms import Segments
from equicat.kernels.irreps import SCALAR, VECTOR, Contraction, Irrep, Paths, harmonics
from equicat.models.gradient import ComputeOptions
from equicat.models.potential import Potential

DEVICE = torch.device("cpu")
COUNTS = (0, 5, 0, 1, 3, 0)
"""Edges of each centre."""
FEW = (0, 2, 1)
"""Edges of each centre where a program has one edge: Triton's interpreter takes a second for each."""
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

        # Few lanes, so that short segments have several tiles, the last one not full.
        monkeypatch.setattr(environment, "SHAPES", dict.fromkeys(environment.SHAPES, (16, 4)))
        monkeypatch.setattr(tensor_product, "LANES", 16)
        monkeypatch.setattr(tensor_product, "EDGES", (1, 1, 1))
        monkeypatch.setitem(globals(), "DEVICE", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        found = backend.triton_forms()
    monkeypatch.setattr(backend, "forms", lambda like, l_max: found)
    return found


def layout(counts: tuple[int, ...]) -> Segments:
    center = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(DEVICE)
    (found,) = forms.cut(center, len(counts), 1)
    return found


def edge_form(name: str, l_max: int, channels: int, dtype: torch.dtype):
    """Environment or read-out and its plain version, and w, Y and G: columns of something larger, as in the network."""
    n_edges, dim, segments = sum(COUNTS), (l_max + 1) ** 2, layout(COUNTS)
    w = torch.randn(n_edges, (l_max + 1) * channels + 3, dtype=dtype, device=DEVICE)[:, 2:-1]
    y = torch.randn(n_edges, dim + 2, dtype=dtype, device=DEVICE)[:, 1:-1]
    g = torch.randn(len(COUNTS), dim, channels, dtype=dtype, device=DEVICE)
    inputs = (w, y) if name == "environment" else (w, y, g)

    def with_y00(function):
        """Y_00 is 1, as the plain version relies on."""
        return lambda w, y, *g: function(w, torch.cat([0 * y[:, :1] + 1, y[:, 1:]], dim=1), *g, segments)

    functions = (with_y00(getattr(forms, x)) for x in (name, f"{name}_plain"))
    return *functions, [x.detach().requires_grad_() for x in inputs]


def products(outputs: list[Irrep], l_max: int, channels: int, dtype: torch.dtype):
    """Tensor products of harmonics and a pseudovector with harmonics, their plain version, and V by irrep and M."""
    segments = layout(FEW)
    entering = [*harmonics(l_max), *([(1, 1)] if l_max else [])]
    contraction = Contraction.build(entering, {out: Paths.build(entering, l_max, out) for out in outputs})
    shapes = [*((sum(FEW), d) for d in contraction.dims), (len(FEW), len(contraction.coefficients))]
    inputs = [torch.randn(*shape, channels, dtype=dtype, device=DEVICE, requires_grad=True) for shape in shapes]
    contraction = contraction.to(inputs[0])

    def joined(function):
        return lambda *x: torch.cat(function(x[:-1], x[-1], contraction, segments), dim=1)

    return joined(forms.tensor_product), joined(forms.tensor_product_plain), inputs


def operation(form, l_max: int, channels: int, dtype: torch.dtype = torch.float64):
    """A form, its plain version, and what both take."""
    torch.manual_seed(0)
    return (edge_form if isinstance(form, str) else products)(form, l_max, channels, dtype)


def value_and_derivatives(function, inputs) -> list[torch.Tensor]:
    """Values and derivatives of weighted sin(outputs), and of cos(gradients), with respect to inputs and weights."""
    out = function(*inputs)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=DEVICE).view_as(out).requires_grad_()
    first = torch.autograd.grad((out.sin() * weights).sum(), inputs, create_graph=True, materialize_grads=True)
    second = torch.autograd.grad(sum(x.cos().sum() for x in first), [*inputs, weights], materialize_grads=True)
    return [out, *first, *second]


SIZES = [(0, 1), (1, 3), (2, 5), (3, 2), (2, 40)]
PRODUCTS = [
    ([SCALAR], 0, 1),
    ([SCALAR, VECTOR, (1, 1)], 1, 3),
    ([SCALAR, VECTOR, (2, -1)], 2, 3),
    pytest.param(([(3, -1)], 3, 5), marks=pytest.mark.slow),  # 15 s in Triton's interpreter
]


@pytest.mark.parametrize(
    "form", [*((name, *size) for name in ("environment", "read_out") for size in SIZES), *PRODUCTS], ids=str
)
def test_agrees_with_the_plain_version_in_value_and_derivatives(form):
    *functions, inputs = operation(*form)
    for found, expected in zip(*(value_and_derivatives(f, inputs) for f in functions), strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["environment", "read_out", [SCALAR, VECTOR]], ids=str)
def test_single_precision_stays_single(form):
    function, plain, inputs = operation(form, 2, 3, torch.float32)
    found = function(*inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain(*inputs), rtol=1e-5, atol=1e-5)


def test_gradients_that_are_one_number_repeated():
    """The derivative of a sum is a tensor whose elements share their memory."""
    *functions, inputs = operation("read_out", 1, 3)
    found, expected = (torch.autograd.grad(f(*inputs).sum(), inputs) for f in functions)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_third_derivatives_of_tensor_products():
    *functions, inputs = operation([SCALAR, VECTOR], 1, 2)
    results = []
    for function in functions:
        value = function(*inputs).sin().sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, inputs[-2], create_graph=True)
            value = gradient.cos().sum()
        results.append(gradient)
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


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


@pytest.mark.parametrize(("counts", "max_edges", "expected"), [
    ([64] * 100, 5000, [3200, 3200]),  # not 4992 and 1408
    ([64, 60, 50] * 40, 3000, [2326, 2322, 2312]),
    ([10] * 4, 25, [20, 20]),
    ([0, 0, 5, 0, 70, 3, 0, 0], 10, [5, 70, 3]),
    ([0, 0, 0], 4, [0]),
])  # fmt: skip
def test_parts_are_few_and_of_even_size(counts, max_edges, expected):
    ends = torch.tensor(counts).cumsum(0)
    parts = list(forms.consecutive(ends, max_edges))
    assert [edges.stop - edges.start for _, edges in parts] == expected
    assert [k for atoms, _ in parts for k in range(atoms.start, atoms.stop)] == list(range(len(counts)))
    assert [int(ends[atoms.stop - 1]) for atoms, _ in parts] == [edges.stop for _, edges in parts]


# ---- the network ---------------------------------------------------------------------------------------------------


def batch() -> Batch:
    """A molecule of three atoms, another of two, and an atom on its own."""
    molecules = [
        Atoms("CuOH", [[0, 0, 0], [0, 0, 1.8], [1.1, 0.3, 2.5]]),
        Atoms("OH", [[0, 0, 0], [0, 0.7, 0.7]]),
        Atoms("Cu"),
    ]
    systems = [Structure.from_ase(atoms) for atoms in molecules]
    return Batch.from_structures(systems, SMALL_NEQUIP.cutoff, dtype=torch.float64).to(DEVICE)


@pytest.mark.parametrize("version", ["triton"], indirect=True)  # the network in C++ and by operators: test_allegro.py
@pytest.mark.parametrize(
    ("small", "changes"),
    [
        (SMALL_NEQUIP, {"tensor_channels": 3}),
        (SMALL_NEQUIP, {"n_layers": 3, "l_max": 1, "coupling": "path", "radial": "spline"}),
        (SMALL, {"tensor_channels": 3, "l_max": 1}),
        pytest.param(SMALL, {"n_layers": 3, "l_max": 1, "env_embed_mlp": (6,)}, marks=pytest.mark.slow),
        (SMALL, {"n_layers": 1, "l_max": 3, "parity": "restricted"}),
    ],
    ids=["nequip-allegro", "deep, shared weights, spline", "published", "published, deep", "published, scalars alone"],
)
def test_a_potential_trains_on_the_same_numbers(small, changes, monkeypatch, version):
    """By Triton some centres at a time, by PyTorch's operators all together."""
    torch.manual_seed(0)
    model = Potential(dataclasses.replace(small, **changes), ELEMENTS, (5,), compute=OPERATORS).double().to(DEVICE)
    system, results = batch(), []
    for used, edges_at_a_time in ((None, 1000), (version, 4)):
        monkeypatch.setattr(backend, "forms", lambda like, l_max, used=used: used)
        monkeypatch.setattr(forms, "MIN_EDGES", 1)
        monkeypatch.setitem(forms.FLOATS_AT_A_TIME, DEVICE.type, edges_at_a_time * model.network.floats_per_edge)
        found = model.train()(system)
        loss, weights = found.energy.square().sum() + found.forces.square().sum(), model.parameters()
        gradients = torch.autograd.grad(loss, [p for p in weights if p.requires_grad])
        results.append([found.energy, found.forces, *gradients])
    assert results[0][1].abs().max() > 1e-3
    for plain, found in zip(*results, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)
