"""Figures as files: their names, which never collide, and what the CSV holds."""

import csv
from pathlib import Path

import numpy as np
import pytest
from report_runs import run_with_structures

from equicat.report import figures
from equicat.report.page import write_report


def test_every_figure_has_files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(figures, "_svg", lambda figure, label: "<svg></svg>")
    stems: list[str] = []
    monkeypatch.setattr(figures.Drawing, "write", lambda self, folder, stem: stems.append(stem) or [])
    page = write_report(run_with_structures(tmp_path), evaluations=("all",), figures=tmp_path / "figures")
    assert len(set(stems)) == len(stems)
    drawn = page.read_text().count("<svg></svg>")
    assert len(stems) == drawn
    assert {
        "error-by-split-energy-mae",
        "by-element-force-mae",
        "distribution-force-components",
        "grade-free-atoms",
        "learning-by-epoch-loss",
        "relaxations-data-relax-val_id",
        "parity-forces-validation-val_id",
    } <= set(stems)


def test_the_csv_has_the_numbers_and_the_files_have_colours_of_their_own(tmp_path: Path):
    curve = figures.Curve(np.arange(3.0), np.array([0.5, np.nan, 0.25]), 1, title="mine")
    drawing = figures.lines([curve], figures.Scales("step", "energy [eV]"), "energies")
    names = [path.name for path in drawing.write(tmp_path, "energies")]
    assert names == ["energies.svg", "energies.png", "energies.csv"]
    rows = list(csv.reader((tmp_path / "energies.csv").open()))
    assert rows == [
        ["series", "step", "energy [eV]"],
        ["mine", "0.0", "0.5"],
        ["mine", "1.0", "nan"],
        ["mine", "2.0", "0.25"],
    ]
    assert figures.FILE.series[1] in (tmp_path / "energies.svg").read_text()
    assert figures.PAGE.ink not in (tmp_path / "energies.svg").read_text()
