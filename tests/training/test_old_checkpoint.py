"""A run that commit b139b12 stopped goes on as it would have gone on then."""

import csv
import shutil

import pytest
from places import FIXTURES

from equicat.cli.main import main

STORED = FIXTURES / "runs_b139b12"


def test_training_goes_on_from_a_checkpoint_of_then(tmp_path, monkeypatch):
    shutil.copytree(STORED / "data", tmp_path / "data")
    shutil.copytree(STORED / "allegro_resumable", tmp_path / "allegro_resumable")
    monkeypatch.chdir(tmp_path)
    options = ["--run.resume", "true", "--run.max_epochs", "3", "--run.progress", "false"]
    assert main(["train", "allegro_resumable/config.yaml", *options]) == 0
    with open("allegro_resumable/metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    # The commit itself went on with these figures. (Its train_loss was a mean of the means of batches.)
    assert float(rows[2]["train_energy_mae"]) == pytest.approx(0.794818, rel=1e-4)
    assert float(rows[2]["train_forces_mae"]) == pytest.approx(0.220867, rel=1e-4)
    assert float(rows[2]["val_loss"]) == pytest.approx(1.62046, rel=1e-4)
