"""Recorded training steps: the losses, metrics and gradients of plain ones, and nothing that cannot be recorded."""

import dataclasses
import itertools
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import SMALL, SMALL_NEQUIP, configuration, labelled
from replays import computed_again, products_in_operators

from equicat.data.batch import Batch
from equicat.data.padded import PaddedBatch, padded
from equicat.kernels import backend
from equicat.kernels.gpu import graphs
from equicat.kernels.products import SPLIT, split_products
from equicat.models.gradient import ComputeOptions
from equicat.models.potential import Potential
from equicat.tasks.tables import MetricSums
from equicat.tasks.tasks import LossConfig, resolved, task_of, total_loss
from equicat.training.config import from_mapping
from equicat.training.recorded import Objective, RecordedSteps
from equicat.training.train import train
from equicat.training.trainer import matmul_precision

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def recorded(monkeypatch) -> list[tuple[int, int]]:
    """Sizes (atoms, edges) in the order in which they are recorded."""
    found, record = [], graphs.record if DEVICE.type == "cuda" else computed_again
    monkeypatch.setattr(backend, "has_triton", lambda device: True)
    if DEVICE.type == "cpu":
        monkeypatch.setattr(backend, "forms", lambda like, l_max: backend.CPU_FORMS)
        products_in_operators(monkeypatch)

    def counting(function, inputs, room):
        if isinstance(inputs, PaddedBatch):  # else it is an inference of a validation
            found.append((len(inputs.numbers), inputs.n_edges))
        return record(function, inputs, room)

    monkeypatch.setattr(graphs, "record", counting)
    return found


def objective(config, loss: LossConfig, force_head: str = "gradient") -> Objective:
    torch.manual_seed(0)
    outputs = ("energy", "forces", "stress") if loss.stress_weight else ("energy", "forces")
    compute = ComputeOptions(kernels=False)
    model = Potential(config, (8, 29), (5,), 1.7, (-430.0, -1500.0), force_head=force_head, compute=compute).double()
    task = task_of(outputs)
    return Objective(model.to(DEVICE).train(), task, resolved("s2ef", loss), MetricSums(task.quantities, "log"))


def batch_of(*seeds: int) -> Batch:
    """Systems of different size with stresses."""
    systems = [dataclasses.replace(labelled(s), stress=0.01 * s * np.eye(3)) for s in seeds]
    return Batch.from_structures(systems, SMALL.cutoff, dtype=torch.float64)


def plain(objective: Objective, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor | None]]:
    """Rows, loss and gradients of a step that is not filled up."""
    batch = batch.to(DEVICE)
    terms, rows = objective.judged(objective.model(batch, **objective.task.extras), batch)
    loss = total_loss(terms)
    objective.model.zero_grad()
    loss.backward()
    return rows, loss, [p.grad for p in objective.model.parameters()]


LOSSES = [
    LossConfig(energy=energy, forces=forces)
    for energy, forces in itertools.product(("mae", "per_atom_mae", "per_atom_mse"), ("l2", "mae", "mse"))
] + [LossConfig(stress_weight=5.0, stress=kind) for kind in ("mae", "mse")]


def check_same(objective: Objective, steps: RecordedSteps, batch: Batch) -> None:
    rows, loss, gradients = plain(objective, batch)
    objective.model.zero_grad()
    step = steps(batch.to(DEVICE))
    torch.testing.assert_close(step.rows, rows, rtol=1e-9, atol=1e-11)
    (3 * step.loss(loss.item())).backward()
    assert any(g is not None and g.abs().max() > 1e-3 for g in gradients)
    for p, expected in zip(objective.model.parameters(), gradients, strict=True):
        assert (p.grad is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(p.grad, 3 * expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda c: f"{c.energy}, {c.forces}, {c.stress_weight} {c.stress}")
def test_a_step_that_is_filled_up_is_the_plain_one(recorded, loss):
    tested = objective(dataclasses.replace(SMALL_NEQUIP, n_layers=1), loss)
    steps = RecordedSteps(tested)
    check_same(tested, steps, batch_of(1, 2))


@pytest.mark.parametrize("head", ["gradient", "vector", "pair"])
@pytest.mark.parametrize("config", [SMALL, SMALL_NEQUIP], ids=lambda config: config.name)
def test_steps_of_several_sizes(recorded, config, head):
    tested = objective(config, LossConfig(), head)
    steps = RecordedSteps(tested)
    few, more = batch_of(1), batch_of(2, 3, 4)
    for batch in (few, more, few, more, batch_of(5), few):
        check_same(tested, steps, batch)
        with torch.no_grad():
            next(tested.model.parameters()).mul_(1.1)
    assert len(recorded) in (2, 3)


def test_a_step_shares_no_node_with_graphs_that_are_alive_elsewhere(recorded):
    """Autograd ties the node of a weight to the stream of the first graph that has it, and a recording may not wait
    for another stream: as long as a loss from before was alive, an H100 could not record steps."""
    tested = objective(dataclasses.replace(SMALL_NEQUIP, n_layers=1), LossConfig())
    batch, touched = batch_of(1).to(DEVICE), []
    for weight in tested.model.parameters():
        if weight.requires_grad:
            weight.register_hook(touched.append)
    _, alive, _ = plain(tested, batch)
    assert alive.grad_fn is not None
    assert touched
    touched.clear()
    steps = RecordedSteps(tested)
    found = [steps(batch) for _ in range(3)]
    assert len(recorded) == 1
    assert not touched
    found[-1].loss(1.0).backward()
    assert len(touched) == len(found[-1].weights)


def test_steps_are_recorded_again_when_products_have_another_precision(recorded):
    tested = objective(dataclasses.replace(SMALL_NEQUIP, n_layers=1), LossConfig())
    steps, batch = RecordedSteps(tested), batch_of(1).to(DEVICE)
    for setting in (nullcontext(), matmul_precision("high"), split_products(not SPLIT.on), nullcontext()):
        with setting:
            steps(batch)
            steps(batch)
    assert len(recorded) == 3


def test_a_padded_batch_has_one_system_more_and_takes_over_another():
    batch = batch_of(1, 2)
    n_atoms, n_edges = len(batch.numbers) + 5, batch.n_edges + 200
    filled, again = padded(batch, n_atoms, n_edges, 8.0), padded(batch_of(1, 2), n_atoms, n_edges, 8.0)
    for tensor in again.tensors:
        tensor.zero_()
    again.overwrite(filled)
    for field in dataclasses.fields(filled):
        value, other = getattr(filled, field.name), getattr(again, field.name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    assert torch.equal(again.edge_vec()[: batch.n_edges], batch.edge_vec())
    assert torch.equal(again.edge_vec()[batch.n_edges :].norm(dim=1), torch.full((200,), 8.0).double())
    center, neighbor = again.edge_index[:, batch.n_edges :]
    assert torch.equal(center, neighbor)
    assert center.bincount(minlength=n_atoms)[-5:].tolist() == [40] * 5
    assert again.n_atoms.tolist() == [*batch.n_atoms.tolist(), 5]
    assert again.fixed[-5:].all()
    assert again.without_last_system().n_systems == 2


def test_training_is_the_same(recorded, data, tmp_path):
    """Weights after some epochs of a run, validation included."""
    losses = []
    for name, cuda_graphs in (("plain", False), ("recorded", True)):
        accelerator = "gpu" if DEVICE.type == "cuda" else "cpu"
        options = {"cuda_graphs": cuda_graphs, "dtype": "float64", "accelerator": accelerator}
        losses.append(train(from_mapping(configuration(data, tmp_path / name, run=options))).best_val_loss)
    assert recorded
    assert losses[1] == pytest.approx(losses[0], rel=1e-7)
