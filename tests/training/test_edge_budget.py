"""The edge budget `auto`: batches of the size that was asked for, and none larger than memory allows."""

import numpy as np
import pytest
import torch
from conftest import configuration
from lightning.pytorch import Trainer
from safetensors.torch import load_file

from equicat import InputError
from equicat.data.batches import BatchSampler
from equicat.run_directory import read_config
from equicat.training import edge_budget
from equicat.training.config import from_mapping
from equicat.training.edge_budget import EdgeBudget, even_budget, peak_memory
from equicat.training.train import train

SMALL = {"batch_size": 4, "max_epochs": 1, "edge_budget": "auto"}


def go(data, out, **run):
    return train(from_mapping(configuration(data, out, run=SMALL | run))).run


def budget_of(run) -> int:
    return read_config(run)["run"]["edge_budget"]


def test_batches_hold_the_structures_that_were_asked_for_on_average() -> None:
    costs = np.random.default_rng(0).integers(100, 900, 5000)
    for batch_size in (2, 8, 40):
        sampler = BatchSampler(5000, even_budget([costs], batch_size), costs, shuffle=True)
        sizes = [costs[batch].sum() for batch in sampler]
        assert 5000 / len(sizes) == pytest.approx(batch_size, rel=0.02)
        assert max(sizes) <= sampler.limit


def test_one_structure_a_batch_and_large_validation_structures_are_possible() -> None:
    costs, larger = np.full(10, 50), np.array([400])
    budget = even_budget([costs, larger], 1)
    assert budget == 800
    BatchSampler(1, budget, larger)


def test_the_peak_is_what_a_call_takes() -> None:
    def call() -> None:
        torch.ones(60, 2**20, dtype=torch.uint8)
        torch.ones(40, 2**20, dtype=torch.uint8)

    peak_memory(call, torch.device("cpu"))
    assert peak_memory(call, torch.device("cpu")) / 2**20 == pytest.approx(60, abs=8)


def test_a_run_has_its_budget_as_a_number_and_keeps_it(data, tmp_path, capfd, monkeypatch) -> None:
    run = go(data, tmp_path / "run")
    found = budget_of(run)
    assert f"batches hold up to {found:,} edges" in capfd.readouterr().err
    monkeypatch.setattr(EdgeBudget, "on_fit_start", lambda *_: pytest.fail("measured again"))
    go(data, tmp_path / "run", resume=True, max_epochs=2)
    assert budget_of(run) == found


def test_memory_makes_batches_smaller(data, tmp_path, capfd, monkeypatch) -> None:
    wanted = budget_of(go(data, tmp_path / "wanted", batch_size=8))
    monkeypatch.setattr(EdgeBudget, "_fitting", lambda *_: wanted - 500)
    run = go(data, tmp_path / "run", batch_size=8)
    assert budget_of(run) == wanted - 500
    assert "run.accumulate" in capfd.readouterr().err


def test_what_fits_follows_from_the_memory_that_is_free(data, tmp_path, monkeypatch) -> None:
    seen = []
    usual = EdgeBudget._fitting
    monkeypatch.setattr(EdgeBudget, "_fitting", lambda *args: seen.append(usual(*args)) or seen[-1])
    monkeypatch.setattr(edge_budget, "peak_memory", lambda step, device: step() or 2**20)
    for free in (2**30, 2**31):
        monkeypatch.setattr(edge_budget, "free_memory", lambda device, free=free: free)
        go(data, tmp_path / str(free))
    assert seen[1] == pytest.approx(2 * seen[0], rel=1e-3)
    assert seen[0] > 512 * 2  # half of a GiB is 512 times the memory of a probe of at least two structures


def test_structures_that_do_not_fit_are_told(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(edge_budget, "free_memory", lambda device: 1000)
    with pytest.raises(InputError, match=r"two structures have up to .* use run.recompute"):
        go(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_probe_changes_no_number_of_the_training(data, tmp_path) -> None:
    auto = go(data, tmp_path / "auto")
    given = go(data, tmp_path / "given", edge_budget=budget_of(auto))
    for a, b in zip(*(load_file(run / "model.safetensors").values() for run in (auto, given)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_peak_on_a_gpu() -> None:
    device = torch.device("cuda")
    peak = peak_memory(lambda: torch.ones(60, 2**20, dtype=torch.uint8, device=device), device)
    assert peak / 2**20 == pytest.approx(60, abs=4)


def test_the_trainer_of_another_budget_measures_nothing(data, tmp_path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(Trainer, "fit", lambda self, *_, **__: seen.extend(self.callbacks))
    with pytest.raises(InputError):  # no validation, so no model
        go(data, tmp_path / "run", edge_budget=None)
    assert seen
    assert not any(isinstance(callback, EdgeBudget) for callback in seen)
