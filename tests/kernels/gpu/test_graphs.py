"""Inferences filled up to sizes that can be recorded: the same numbers, and nothing that waits for the GPU."""

import copy
import dataclasses
from contextlib import nullcontext

import pytest
import torch
from conftest import SMALL, SMALL_NEQUIP
from replays import computed_here, recordings

from equicat.data.batch import Batch
from equicat.data.structure import Structure
from equicat.kernels.edges import Edges
from equicat.kernels.gpu import graphs
from equicat.kernels.gpu.graphs import FILL, Graphs, padded_size
from equicat.kernels.products import SPLIT, split_products
from equicat.models.gradient import ComputeOptions, PairGradients
from equicat.models.potential import Potential
from equicat.models.repulsion import EnergyTerms, Repulsion
from equicat.testing import example_structures
from equicat.training.trainer import matmul_precision

pytest.importorskip("triton", reason="Triton is not installed (Linux only)")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ELEMENTS = (1, 8, 29)


@pytest.fixture
def recorded(monkeypatch) -> list[tuple[int, int]]:
    """Sizes (atoms, edges) in the order in which they are recorded: on a GPU by CUDA."""
    found = []
    recordings(monkeypatch, lambda inputs: found.append((len(inputs.species), len(inputs.edge_vec))))
    return found


def potential(config) -> Potential:
    torch.manual_seed(0)
    terms = EnergyTerms(factors=(0.5, 1.0, 2.0), repulsion=Repulsion(6, (4.0,)))
    model = Potential(
        dataclasses.replace(config, l_max=1, n_layers=1, cutoff=3.5),
        ELEMENTS,
        (5,),
        scale=1.7,
        terms=terms,
        compute=ComputeOptions(kernels=False),
    )
    return model.double().to(DEVICE).eval().requires_grad_(False)


def clusters(*sizes: int) -> list[Structure]:
    """The first atoms of an example."""
    whole = example_structures(ELEMENTS, 0)[0]
    return [Structure(whole.numbers[:n], whole.positions[:n], whole.cell, whole.pbc) for n in sizes]


def batch_of(structures: list[Structure], model: Potential) -> Batch:
    return Batch.from_structures(structures, model.cutoff, dtype=torch.float64).to(DEVICE)


def with_and_without(model: Potential, batch: Batch) -> None:
    recording, model.pair_gradients = (
        model.pair_gradients,
        PairGradients(ComputeOptions(kernels=False, cuda_graphs=False)),
    )
    expected = model(batch, virial=True)
    model.pair_gradients = recording
    found = model(batch, virial=True)
    assert expected.forces.abs().max() > 1e-3
    for name in ("atom_energies", "forces", "virial"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("n", [*range(1, 70), 1000, 12345])
def test_sizes_grow_in_steps_of_at_most_a_quarter(n):
    assert n <= padded_size(n) <= max(1.25 * n, 1)
    assert padded_size(padded_size(n)) == padded_size(n)


def test_sizes_are_few():
    assert len({padded_size(n) for n in range(1000, 100000)}) < 40


@pytest.mark.parametrize(
    "config",
    [SMALL, SMALL_NEQUIP],
    ids=lambda config: config.name,
)
def test_the_same_numbers_whatever_was_recorded(recorded, config):
    model = potential(config)
    few, more = clusters(2, 4)
    for structure in (few, more):
        with_and_without(model, batch_of([structure], model))
    assert recorded == [], "sizes are recorded when they are met again"
    for factor in (0.99, 0.98):
        for structure in (more, few):
            moved = dataclasses.replace(structure, positions=factor * structure.positions)
            with_and_without(model, batch_of([moved], model))
    assert len(recorded) == 2, "and then no more"
    with torch.no_grad():
        model.head.mlp.weights[0].mul_(2)
    with_and_without(model, batch_of([structure], model))
    assert len(recorded) == 2, "weights are read where they are"
    other = copy.deepcopy(model)
    for _ in range(3):
        with_and_without(other, batch_of([structure], model))
    assert len(recorded) == 3, "these are others"


def test_filled_up_evenly():
    seen = []
    edge_vec, index = torch.ones(1100, 3, device=DEVICE), torch.zeros(2, 1100, dtype=torch.long, device=DEVICE)

    def function(edges):
        seen.append([x.clone() for x in edges])
        return edges.species.double(), edges.edge_vec

    Graphs(function, 8.0)(Edges(edge_vec, index, torch.ones(5, dtype=torch.long, device=DEVICE)))
    vectors, (center, neighbor), species = (x.cpu() for x in seen[-1])
    assert (len(vectors), len(species)) == (1280, 16)
    assert torch.equal(vectors[:1100], torch.ones(1100, 3))
    assert torch.equal(vectors[1100:], torch.tensor([8.0, 0, 0]).expand(180, 3))
    assert species.tolist() == [1] * 5 + [0] * 11
    assert torch.equal(center, center.sort().values)
    assert not center[:1100].any()
    assert torch.equal(center[1100:], neighbor[1100:])
    counts = center[1100:].bincount(minlength=16)
    assert not counts[:5].any()
    assert 0 < counts[5:].min() <= counts[5:].max() <= FILL / 4


def test_no_more_graphs_than_memory_should_hold(monkeypatch, recorded):
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    found = Graphs(lambda edges: (edges.species.double(), 2 * edges.edge_vec), 8.0)
    for n in (1, 1, 2, 2, 3, 3, 1):
        zeros = torch.zeros(2, n, dtype=torch.long, device=DEVICE)
        _, doubled = found(Edges(torch.full((n, 3), n, device=DEVICE).double(), zeros, zeros[0, :1]))
        assert torch.equal(doubled, torch.full_like(doubled, 2 * n))
        assert len(found.recorder.recorded) <= 2
    assert len(recorded) == 4


def test_recorded_again_when_products_have_another_precision(recorded):
    model = potential(SMALL_NEQUIP)
    batch = batch_of(clusters(4), model)
    for setting in (nullcontext(), matmul_precision("high"), split_products(not SPLIT.on), nullcontext()):
        with setting:
            model(batch)
            model(batch)
    assert len(recorded) == 3


def test_a_function_that_cannot_be_recorded_is_called_and_a_remark_says_so(monkeypatch, capsys):
    def refused(function, inputs, room):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(graphs, "record", refused)
    monkeypatch.setattr(graphs, "warmed_up", computed_here)
    seen = []

    def function(inputs):
        seen.append(inputs.item())
        return inputs + 1

    recorder = graphs.Recorder(function, "a sum")
    for value in (1.0, 2.0, 3.0):
        assert recorder("shape", lambda: torch.empty(1), lambda x, value=value: x.fill_(value)) == value + 1
    assert seen == [1.0, 2.0, 3.0], "each call computes it once"
    expected = "warning: a sum could not be recorded as a CUDA graph: operation not permitted when stream is capturing"
    assert capsys.readouterr().err == f"{expected}\n"


def test_left_alone_when_training_or_without_edges(recorded):
    model = potential(SMALL_NEQUIP).requires_grad_(True).train()
    alone, pair = clusters(1, 2)
    model(batch_of([pair], model)).forces.square().sum().backward()
    assert not model.eval()(batch_of([alone], model)).forces.any()
    assert recorded == []
