"""Real DFT data and the paper's size: minutes, so only `make test-slow` runs them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import configuration
from places import DFT_DATA, needs_dft_data

from equicat.apply.evaluate import evaluate
from equicat.data.readers import read
from equicat.models.potential import Potential
from equicat.networks.allegro import AllegroConfig
from equicat.options.text import read_yaml
from equicat.testing import check_all
from equicat.training.config import from_mapping
from equicat.training.presets import find_configuration
from equicat.training.train import train


@pytest.mark.slow
def test_physics_of_the_paper_size_model():
    torch.manual_seed(0)
    config = AllegroConfig(avg_num_neighbors=30.0)
    check_all(Potential(config, (1, 8, 29)))


@pytest.mark.benchmark
@needs_dft_data
def test_a_minute_on_3bpa_beats_zero_forces_tenfold(tmp_path):
    values = read_yaml(find_configuration("3bpa"))
    del values["pretraining"]  # a quarter of an hour
    values["data"]["train"] = [str(DFT_DATA / "3bpa" / "train_300K.xyz")]
    values["run"] |= {"out": str(tmp_path / "run"), "max_minutes": 3, "progress": False}
    run = train(from_mapping(values)).run
    rows = evaluate(run, DFT_DATA / "3bpa" / "test_300K.extxyz", progress=False)["splits"]["test_300K"]["rows"]
    assert rows["allegro"]["forces_rmse"] < 0.1 * rows["mean energy, F = 0"]["forces_rmse"]


@pytest.mark.benchmark
@needs_dft_data
def test_oc20_relaxations_read_and_train(tmp_path):
    files = sorted((DFT_DATA / "oc20_mini" / "trajectories").glob("*.xz"))[:3]
    frames = [s for f in files for s in read(f, "energy_minus_linref")]
    assert any(np.abs(s.forces[s.fixed]).max() > 0.01 for s in frames), "forces of fixed atoms are kept"
    options = {
        "train": [str(f) for f in files],
        "val": [str(f) for f in files],
        "train_where": {"split": "train"},
        "val_where": {"split": "val_id"},
        "energy_key": "energy_minus_linref",
    }
    values = configuration(tmp_path, tmp_path / "run", options, run={"max_epochs": 1})
    assert np.isfinite(train(from_mapping(values)).best_val_loss)


@pytest.mark.slow
def test_two_processes_train_as_one_run(data, tmp_path):
    values = configuration(data, tmp_path / "run", run={"devices": "2", "max_epochs": 2})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "equicat", "train", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in log[1:]] == [["0", "2"], ["1", "4"]], "16 structures, 4 a step, 2 processes"
    assert done.stdout.count("trained for") == 1, "one process reports"
