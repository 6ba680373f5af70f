"""Steps that are not finite are skipped and counted, and the structures that spoil them are named."""

import csv
import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import configuration, damaged, labelled

import equicat
from equicat import InputError
from equicat.data.batch import Batch
from equicat.data.info import DatasetInfo
from equicat.data.store import write_store
from equicat.tasks.metrics import Values
from equicat.tasks.tasks import LossConfig, loss_at, resolved
from equicat.training.config import from_mapping
from equicat.training.health import Health, broken_structures, has_finite_gradient
from equicat.training.train import train


def rows(run) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """A data set of 1,000 structures, one of them with forces that are not numbers."""
    root = tmp_path_factory.mktemp("spoilt")
    few = [labelled(seed) for seed in range(20)]
    structures = [dataclasses.replace(few[i % 20], sid=f"s{i}") for i in range(1000)]
    structures[537] = damaged(structures[537], forces=np.full_like(structures[537].forces, np.nan))
    write_store(root / "s2ef" / "train", structures, DatasetInfo("adsorption"))
    write_store(root / "s2ef" / "val_id", few[:6], DatasetInfo("adsorption"))
    return root


@pytest.mark.slow
def test_one_structure_of_a_thousand_costs_one_step_an_epoch(spoilt, tmp_path, capsys):
    run = train(from_mapping(configuration(spoilt, tmp_path / "run", run={"batch_size": 100, "max_epochs": 2}))).run
    assert [row["skipped"] for row in rows(run)] == ["1", "2"]
    assert all(math.isfinite(float(row[name])) for row in rows(run) for name in ("train_loss", "val_loss"))
    model = equicat.load(run)
    assert all(bool(p.isfinite().all()) for p in model.state_dict().values())
    said = capsys.readouterr().err
    assert said.count("warning: a step is skipped: the training loss is nan at epoch 0, batch") == 1
    assert said.count("s2ef/train, structure 537\n") == 2


def test_past_the_limit_the_structure_is_named(spoilt, tmp_path):
    options = {"batch_size": 100, "max_skipped_steps": 0}
    with pytest.raises(InputError, match=r"1 steps were not finite, more than run.max_skipped_steps, .* 537; look"):
        train(from_mapping(configuration(spoilt, tmp_path / "run", run=options)))


def test_broken_structures_are_found_by_any_of_their_numbers():
    batch = Batch.from_structures([labelled(seed) for seed in range(4)], 4.0)
    energy, forces = batch.energy.clone(), batch.forces.clone()
    energy[1] = math.inf
    forces[int((batch.system_idx == 3).nonzero()[0]), 2] = math.nan
    assert broken_structures(batch, Values(energy=energy), Values(forces=forces)) == [
        batch.sources[1],
        batch.sources[3],
    ]
    assert broken_structures(batch, Values(batch.energy, batch.forces)) == []


def test_a_step_without_a_finite_gradient_leaves_weights_and_moments_alone():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    health = Health(limit=1)

    def step(gradient: list[float]) -> torch.Tensor:
        weight.grad = torch.tensor(gradient)
        if health.skips(has_finite_gradient([weight]), "batch 1", ["a"]):
            optimizer.zero_grad()
        optimizer.step()
        return weight.detach().clone()

    first = step([1.0, 2.0, 3.0])
    moments = {name: value.clone() for name, value in optimizer.state[weight].items()}
    assert torch.equal(step([1.0, math.nan, 3.0]), first)
    assert all(torch.equal(value, moments[name]) for name, value in optimizer.state[weight].items())
    assert not torch.equal(step([1.0, 2.0, 3.0]), first)
    assert health.n_skipped == 1
    with pytest.raises(InputError, match=r"the gradient is not finite at batch 1; 2 steps were not finite"):
        step([math.inf, 0.0, 0.0])


def test_late_weights_count_at_the_end_and_in_every_validation(data, tmp_path):
    frozen = {"lr": 1e-30, "ema_decay": None}
    values = configuration(data, tmp_path / "run", optimizer=frozen, run={"max_epochs": 2})
    plain = rows(train(from_mapping(values)).run)
    values["run"]["out"] = str(tmp_path / "late")
    values["loss"] = {"late_energy_weight": 1000.0, "late_from": 0.5}
    late = rows(train(from_mapping(values)).run)
    values["run"]["out"] = str(tmp_path / "all")
    values["loss"] = {"energy_weight": 1000.0}
    everywhere = rows(train(from_mapping(values)).run)
    assert late[0]["train_loss"] == plain[0]["train_loss"]
    assert late[1]["train_loss"] == everywhere[1]["train_loss"]
    assert [row["val_loss"] for row in late] == [row["val_loss"] for row in everywhere]


def test_late_weights_without_an_effect_are_refused():
    assert loss_at(LossConfig(late_forces_weight=2.0), 0.7).forces_weight == 30.0
    assert loss_at(LossConfig(late_forces_weight=2.0), 0.75).forces_weight == 2.0
    with pytest.raises(InputError, match=r"loss.late_from says when the late weights count, but none is given"):
        LossConfig(late_from=0.5)
    with pytest.raises(InputError, match=r"loss.late_energy_weight is for s2ef"):
        resolved("is2re", LossConfig(late_energy_weight=2.0))


def test_with_the_published_parametrisation_a_step_is_skipped_as_well(spoilt, tmp_path):
    values = configuration(spoilt, tmp_path / "run", run={"batch_size": 100, "max_epochs": 1})
    values["optimizer"] = {"name": "adam", "parametrization": "published", "gradient_clip": 0.1}
    values |= {"initialization": "published", "output_nonlinearity": None}
    values["model"] |= {"normalize_basis": True, "n_types": 84, "avg_num_neighbors": 37}
    assert [row["skipped"] for row in rows(train(from_mapping(values)).run)] == ["1"]
