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
from conftest import SMALL_NEQUIP

from equicat import native
from equicat.batch import Batch
from equicat.models import centers, segments
from equicat.models.centers import Chunk
from equicat.models.nequip_allegro import NequipAllegro
from equicat.models.segments import Segments
from equicat.potential import Potential
from equicat.structure import Structure

pytest.importorskip("triton", reason="Triton is not installed (Linux only)")
from equicat.models import triton_kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COUNTS = (0, 5, 0, 1, 3, 0)
"""Edges of each centre."""
ELEMENTS = (1, 8, 29)


@pytest.fixture(autouse=True)
def few_edges_a_tile(monkeypatch):
    """So that short segments have several tiles, the last one not full."""
    monkeypatch.setattr(triton_kernels, "TILE", 16)


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
    "changes",
    [{"tensor_channels": 3}, {"n_layers": 3, "l_max": 1, "coupling": "path", "radial": "spline"}],
    ids=["small", "deep, shared weights, spline"],
)
def test_a_potential_trains_on_the_same_numbers(changes, monkeypatch):
    monkeypatch.setattr(native, "load", lambda name, dtype: None)
    results = []
    for triton in (False, True):
        torch.manual_seed(0)
        model = Potential(dataclasses.replace(SMALL_NEQUIP, **changes), ELEMENTS, (5,)).double().to(DEVICE).train()
        model.model.triton = triton
        found = model(batch())
        (found.energy.square().sum() + found.forces.square().sum()).backward()
        results.append([found.energy, found.forces, *(p.grad for p in model.parameters() if p.requires_grad)])
    assert results[0][1].abs().max() > 1e-3
    for plain, found in zip(*results, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)


def test_vectors_and_several_pieces(monkeypatch):
    torch.manual_seed(0)
    model = NequipAllegro(dataclasses.replace(SMALL_NEQUIP, l_max=1), 3, vectors=True).double().to(DEVICE)
    system = batch()
    species = torch.searchsorted(torch.tensor(ELEMENTS, device=DEVICE), system.numbers)
    expected = model(system.edge_vec(), system.edge_index, species)
    model.triton = True
    monkeypatch.setitem(centers.FLOATS_PER_CHUNK, "cuda", 5 * model.floats_per_edge)
    pieces, position = model.layouts(system.edge_index[0], len(species))
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
    model = NequipAllegro(SMALL_NEQUIP, 3)
    center = torch.zeros(2, dtype=torch.long)
    assert isinstance(model.layouts(center, 1)[0][0], Chunk)
    model.triton = True
    assert isinstance(model.layouts(center, 1)[0][0], Segments)
    assert isinstance(model.layouts(center[:0], 1)[0][0], Chunk)


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
        assert [f["kernel"] for f in kernels] == ["_environment", "_read_out", "_gradient", "_gradient", "_change"]
        assert all(f["bytes"] > 1000 for f in kernels)
    assert all(f.get("spilled", 0) == f.get("stack", 0) == 0 for f in single)
