"""Recorded training steps: the losses, metrics and gradients of plain ones, and nothing that cannot be recorded."""

import csv
import dataclasses
import itertools
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import SMALL, SMALL_NEQUIP, configuration, damaged, labelled
from replays import recordings

from equicat.data.batch import Batch
from equicat.data.info import DatasetInfo
from equicat.data.padded import PaddedBatch, padded
from equicat.data.store import write_store
from equicat.kernels.edges import Edges
from equicat.kernels.products import SPLIT, split_products
from equicat.models.gradient import ComputeOptions
from equicat.models.potential import Potential
from equicat.run_directory import LAST
from equicat.tasks.tables import MetricSums
from equicat.tasks.tasks import LossConfig, resolved, task_of, total_loss
from equicat.training.config import from_mapping
from equicat.training.recorded import Objective, RecordedSteps
from equicat.training.train import train
from equicat.training.trainer import matmul_precision

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WHERE = {"accelerator": "gpu" if DEVICE.type == "cuda" else "cpu", "dtype": "float64"}
"""Options of a run."""


@pytest.fixture
def recorded(monkeypatch) -> list[tuple[int, int] | str]:
    """Sizes (atoms, edges) of steps, and updates, in the order in which they are recorded."""
    found = []

    def note(inputs):
        if isinstance(inputs, PaddedBatch):
            found.append((len(inputs.numbers), inputs.n_edges))
        elif not isinstance(inputs, Edges):  # of an inference in a validation
            found.append("update")

    recordings(monkeypatch, note)
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
    torch.testing.assert_close(step.rows, rows.cpu(), rtol=1e-9, atol=1e-11)
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
    filled, again = (padded(b, b.edge_vec(), n_atoms, n_edges, 8.0) for b in (batch, batch_of(2, 1)))
    assert not torch.equal(filled.forces, again.forces)
    fewer = dataclasses.replace(batch, edge_index=batch.edge_index[:, 7:], edge_shift=batch.edge_shift[7:])
    again.write(fewer, fewer.edge_vec(), 8.0)
    assert (again.edge_vec()[fewer.n_edges :].norm(dim=1) == 8.0).all()
    again.write(batch, batch.edge_vec(), 8.0)
    for field in dataclasses.fields(filled):
        if isinstance(value := getattr(filled, field.name), torch.Tensor):
            assert torch.equal(value, getattr(again, field.name)), field.name
    assert torch.equal(again.edge_vec()[: batch.n_edges], batch.edge_vec())
    assert torch.equal(again.edge_vec()[batch.n_edges :].norm(dim=1), torch.full((200,), 8.0).double())
    center, neighbor = again.edge_index[:, batch.n_edges :]
    assert torch.equal(center, neighbor)
    assert center.bincount(minlength=n_atoms)[-5:].tolist() == [40] * 5
    assert again.n_atoms.tolist() == [*batch.n_atoms.tolist(), 5]
    assert again.fixed[-5:].all()
    shorter = again.without_last_system()
    assert shorter.n_systems == 2
    assert shorter.n_atoms.tolist() == batch.n_atoms.tolist()


OPTIMIZERS = {
    "adam": ({}, {}, True),
    "adam, without average and clipping": ({"ema_decay": None, "gradient_clip": None, "amsgrad": True}, {}, True),
    "muon": ({"name": "muon", "weight_decay": 0.1, "gradient_clip": 0.5, "schedule": "cosine"}, {}, True),
    "muon, parts with other rates": ({"name": "muon", "rates": {"network.two_body": 0.1, "head": 0.0}}, {}, True),
    "soap": ({"name": "soap"}, {}, False),
    "two batches a step": ({}, {"accumulate": 2}, False),
}
"""Options of the optimiser and of the run, and whether a step of the optimiser is recorded."""


@pytest.mark.parametrize(
    ("optimizer", "run", "is_recorded"),
    [
        pytest.param(*given, id=name, marks=[] if name in ("adam", "muon", "soap") else [pytest.mark.slow])
        for name, given in OPTIMIZERS.items()
    ],
)
def test_training_is_the_same(recorded, data, tmp_path, optimizer, run, is_recorded):
    """Weights after some epochs of a run, validation included."""
    weights, losses = [], []
    for name, cuda_graphs in (("plain", False), ("recorded", True)):
        options = run | WHERE | {"cuda_graphs": cuda_graphs}
        values = configuration(data, tmp_path / name, optimizer=optimizer, run=options)
        losses.append(train(from_mapping(values)).best_val_loss)
        state = torch.load(tmp_path / name / LAST, weights_only=False, map_location="cpu")
        weights.append(state["state_dict"] | {f"now {k}": v for k, v in state.get("current_model_state", {}).items()})
    assert any(isinstance(size, tuple) for size in recorded)
    assert ("update" in recorded) == is_recorded
    if DEVICE.type == "cuda" and optimizer.get("name") == "soap":
        # A GPU adds up what is filled up in another order, and bases of SOAP turn by what rounding leaves of small
        # gradients: on an H100 losses differed by 2e-5, and single weights by whole steps.
        assert losses[1] == pytest.approx(losses[0], rel=1e-3)
        return
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-5, atol=1e-7)


def test_a_recorded_training_goes_on_as_it_would_have_gone_on(recorded, data, tmp_path):
    def goes_on(name: str, *n_epochs: int) -> float:
        for session, n in enumerate(n_epochs):
            options = WHERE | {"max_epochs": n, "resume": session > 0}
            values = configuration(data, tmp_path / name, optimizer={"name": "muon"}, run=options)
            result = train(from_mapping(values))
        return result.best_val_loss

    straight, halves = goes_on("straight", 4), goes_on("halves", 2, 4)
    assert halves == pytest.approx(straight, rel=1e-6 if DEVICE.type == "cuda" else 0, abs=0)
    assert "update" in recorded


def test_recorded_steps_that_are_not_finite_are_skipped_as_plain_ones_are(recorded, tmp_path):
    structures = [labelled(seed) for seed in range(12)]
    structures[5] = damaged(structures[5], forces=np.full_like(structures[5].forces, np.nan))
    for split, chosen in {"train": structures, "val_id": structures[:4]}.items():
        write_store(tmp_path / "data" / "s2ef" / split, chosen, DatasetInfo("adsorption"))
    losses, skipped = [], []
    for name, cuda_graphs in (("plain", False), ("recorded", True)):
        options = WHERE | {"cuda_graphs": cuda_graphs, "batch_size": 2}
        result = train(from_mapping(configuration(tmp_path / "data", tmp_path / name, run=options)))
        losses.append(result.best_val_loss)
        *_, last = csv.DictReader((tmp_path / name / "metrics.csv").read_text(encoding="utf-8").splitlines())
        skipped.append(last["skipped"])
    assert "update" in recorded
    assert skipped == ["3", "3"], "one an epoch"
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
