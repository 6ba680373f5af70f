"""`equicat study curves`: the numbers of a run's metrics.csv, drawn and tabulated."""

import csv
import json

import pytest

from equicat.cli.main import main
from equicat.studies.curves import Curve


def test_curves_of_a_run(run, tmp_path, capsys):
    assert main(["study", "curves", str(run), "--out", str(tmp_path / "out")]) == 0
    with (run / "metrics.csv").open() as file:
        epochs = list(csv.DictReader(file))
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["summary"]
    best = min(epochs, key=lambda epoch: float(epoch["val_loss"]))
    assert row["epochs"] == len(epochs) == 3
    assert row["saved_epoch"] == int(best["epoch"]) + 1
    assert row["val"] == pytest.approx(float(best["val_forces_mae"]))
    assert row["train"] == pytest.approx(float(best["train_forces_mae"]))
    with (tmp_path / "out" / "figure.csv").open() as file:
        points = list(csv.DictReader(file))
    assert [float(p["val"]) for p in points] == [float(e["val_forces_mae"]) for e in epochs]
    assert f"| {run.name} | 3 |" in (tmp_path / "out" / "table.md").read_text()


def test_what_is_no_run_is_one_line(tmp_path, capsys):
    assert main(["study", "curves", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no curve to draw" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_epochs_without_validation_are_gaps(run, tmp_path):
    for name in ("config.yaml", "metrics.csv"):
        (tmp_path / name).write_text((run / name).read_text())
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    header = lines[0].split(",")
    cells = lines[1].split(",")
    cells = ["" if name.startswith("val_") else cell for name, cell in zip(header, cells, strict=True)]
    (tmp_path / "metrics.csv").write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")
    series = Curve.read(tmp_path, "gaps").series("val")
    assert [value != value for value in series] == [True, False, False]
