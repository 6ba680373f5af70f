"""GPU kernels against plain operations: on a GPU if there is one, else in Triton's interpreter (see conftest)."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ase import Atoms
from conftest import SMALL, SMALL_NEQUIP

from equicat.data.batch import Batch
from equicat.data.structure import Structure
from equicat.kernels import edges
from equicat.kernels import edges as segments
from equicat.kernels.cpu import build
from equicat.kernels.edges import Segments
from equicat.kernels.irreps import SCALAR, VECTOR, Contraction, Irrep, Paths, harmonics
from equicat.kernels.tensor_product import tensor_product, tensor_product_plain
from equicat.models.potential import Potential
from equicat.networks.allegro import Allegro
from equicat.networks.centers import Chunk, layouts
from equicat.networks.nequip_allegro import NequipAllegro

pytest.importorskip("triton", reason="Triton is not installed (Linux only)")
from equicat.kernels.gpu import environment as triton_kernels
from equicat.kernels.gpu import tensor_product as triton_tensor_product

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COUNTS = (0, 5, 0, 1, 3, 0)
"""Edges of each centre."""
ELEMENTS = (1, 8, 29)


@pytest.fixture(autouse=True)
def few_edges_a_tile(monkeypatch):
    """So that short segments have several tiles, the last one not full."""
    monkeypatch.setattr(triton_kernels, "TILE", 16)
    monkeypatch.setattr(triton_tensor_product, "LANES", 16)
    monkeypatch.setattr(triton_tensor_product, "EDGES", 1)


def layout(counts: tuple[int, ...] = COUNTS) -> Segments:
    center = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(DEVICE)
    (found,) = segments.cut(center, len(counts), len(center))
    return found


def arguments(l_max: int, channels: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """w, Y and G; the first two columns of something larger, as they are in the network."""
    torch.manual_seed(0)
    n_edges, dim = sum(COUNTS), (l_max + 1) ** 2
    w = torch.randn(n_edges, (l_max + 1) * channels + 3, dtype=dtype, device=DEVICE)[:, 2:-1]
    y = torch.randn(n_edges, dim + 2, dtype=dtype, device=DEVICE)[:, 1:-1]
    g = torch.randn(len(COUNTS), dim, channels, dtype=dtype, device=DEVICE)
    return tuple(x.detach().requires_grad_() for x in (w, y, g))


def value_and_derivatives(function, inputs) -> list[torch.Tensor]:
    """Of sin(outputs) weighted, and of cos(gradients) with respect to inputs and weights."""
    out = function(*inputs, layout())
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=DEVICE).view_as(out).requires_grad_()
    first = torch.autograd.grad((out.sin() * weights).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(x.cos().sum() for x in first), [*inputs, weights])
    return [out, *first, *second]


@pytest.mark.parametrize(("l_max", "channels"), [(0, 1), (1, 3), (2, 5), (3, 2)])
@pytest.mark.parametrize("name", ["environment", "read_out"])
def test_agrees_with_the_plain_version_in_value_and_derivatives(name, l_max, channels):
    inputs = arguments(l_max, channels)[: 2 if name == "environment" else 3]
    kernel, plain = getattr(segments, name), getattr(segments, f"{name}_plain")
    for found, expected in zip(*(value_and_derivatives(f, inputs) for f in (kernel, plain)), strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_single_precision_stays_single():
    w, y, g = arguments(2, 3, torch.float32)
    env, out = segments.environment(w, y, layout()), segments.read_out(w, y, g, layout())
    assert env.dtype == out.dtype == torch.float32
    torch.testing.assert_close(env, segments.environment_plain(w, y, layout()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out, segments.read_out_plain(w, y, g, layout()), rtol=1e-5, atol=1e-5)


def test_gradients_that_are_one_number_repeated():
    """The derivative of a sum is a tensor whose elements share their memory."""
    inputs = arguments(1, 3)
    found, expected = (
        torch.autograd.grad(f(*inputs, layout()).sum(), inputs) for f in (segments.read_out, segments.read_out_plain)
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
def test_cut_between_centers(max_edges):
    center = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
    pieces = segments.cut(center, len(COUNTS), max_edges)
    assert len(pieces) == {1: 3, 4: 2, 6: 2, 8: 2}[max_edges]
    found = torch.cat([center[p.edges] for p in pieces])
    torch.testing.assert_close(found, center)
    for piece in pieces:
        own = center[piece.edges]
        assert len(own) == piece.n_edges
        assert piece.n_edges <= max_edges or len(own.unique()) == 1
        assert piece.first[0] == 0
        assert piece.first[-1] == piece.n_edges
        counts = piece.first.diff()
        torch.testing.assert_close(counts[counts > 0], own.unique_consecutive(return_counts=True)[1])
        torch.testing.assert_close(piece.of_center(own)[counts > 0], own.unique())


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
def test_a_potential_trains_on_the_same_numbers(small, changes, monkeypatch):
    monkeypatch.setattr(build, "load", lambda name, dtype: None)
    results = []
    for triton in (False, True):
        torch.manual_seed(0)
        model = Potential(dataclasses.replace(small, **changes), ELEMENTS, (5,)).double().to(DEVICE).train()
        model.network.triton = triton
        found = model(batch())
        (found.energy.square().sum() + found.forces.square().sum()).backward()
        results.append([found.energy, found.forces, *(p.grad for p in model.parameters() if p.requires_grad)])
    assert results[0][1].abs().max() > 1e-3
    for plain, found in zip(*results, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("network", "small"), [(NequipAllegro, SMALL_NEQUIP), (Allegro, SMALL)])
def test_vectors_and_several_pieces(network, small, monkeypatch):
    torch.manual_seed(0)
    model = network(dataclasses.replace(small, l_max=1), 3, vectors=True).double().to(DEVICE)
    system = batch()
    species = torch.searchsorted(torch.tensor(ELEMENTS, device=DEVICE), system.numbers)
    expected = model(system.edge_vec(), system.edge_index, species)
    model.triton = True
    monkeypatch.setitem(edges.FLOATS_PER_CHUNK, "cuda", 5 * model.floats_per_edge)
    pieces, position = layouts(system.edge_index[0], len(species), model.floats_per_edge, triton=True)
    assert len(pieces) == 4
    assert position is None
    found = model(system.edge_vec(), system.edge_index, species)
    torch.testing.assert_close(found.scalars, expected.scalars, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.vectors, expected.vectors, rtol=1e-10, atol=1e-12)


def test_used_on_gpus_where_triton_can_compile_them(monkeypatch):
    import triton

    gpu = torch.device("cuda")
    assert segments.has_kernels(gpu)
    assert not segments.has_kernels(torch.device("cpu"))
    with monkeypatch.context() as turned_off:
        turned_off.setenv("EQUICAT_NATIVE", "0")
        assert not segments.has_kernels(gpu)
    monkeypatch.setattr(triton, "__version__", "3.4.0+git1234")
    assert not segments.has_kernels(gpu)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not segments.has_kernels(gpu)


def test_not_used_by_themselves_on_a_cpu_nor_without_edges():
    center = torch.zeros(2, dtype=torch.long)
    assert isinstance(layouts(center, 1, 1, triton=None)[0][0], Chunk)
    assert isinstance(layouts(center, 1, 1, triton=True)[0][0], Segments)
    assert isinstance(layouts(center[:0], 1, 1, triton=True)[0][0], Chunk)


# ---- compiled ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("l_max", "channels"), [(0, 1), (3, 32)])
def test_they_compile_for_a_gpu(tmp_path, l_max, channels):
    """By the path that a call takes on a machine with a GPU, up to the launch; in float32 registers hold everything."""
    program = Path(__file__).parent / "triton_compile.py"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(program), "90", str(l_max), str(channels)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    single, double = found[: len(found) // 2], found[len(found) // 2 :]
    for kernels in (single, double):
        names = ["_environment", "_read_out", "_gradient", "_gradient", "_change", *["_derivative"] * 3]
        assert [f["kernel"] for f in kernels] == names
        assert all(f["bytes"] > 1000 for f in kernels)
    assert all(f.get("spilled", 0) == f.get("stack", 0) == 0 for f in single)
