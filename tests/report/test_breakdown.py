"""Errors by element, adsorbate, size and length, as they are by hand; distributions and grades."""

import numpy as np
import pytest
from report_runs import kept_of

from equicat.report import breakdown
from equicat.report import figures as report_figures
from equicat.report.breakdown import breakdowns, distributions, errors_of, grades
from equicat.report.read import Evaluation


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_figures, "_svg", lambda figure, label: "<svg></svg>")


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return kept_of(32)


def test_errors_by_element_and_adsorbate(arrays):
    (errors,) = errors_of([Evaluation("", {}, {"val": arrays})])
    found = {part.title: {row[0]: row[2:] for row in part.rows} for part in breakdowns(errors)}
    assert set(found) == {"Element", "Adsorbate", "Length of the force"}, "all slabs are of one size"
    off = np.abs(arrays["forces_pred"] - arrays["forces_true"])
    gold = off[arrays["free_numbers"] == 79].mean()
    # Every second slab of eight has N, four times over, and two structures in a row are one system.
    assert found["Element"]["Au"] == ("8", f"{gold:.4f}")
    owner = np.repeat(np.arange(32), arrays["n_free"])
    nitrogen = arrays["adsorbates"] == "N"
    energy = np.abs(arrays["energy_pred"] - arrays["energy_true"])[nitrogen].mean()
    assert found["Adsorbate"]["N"] == ("16", f"{energy:.4f}", f"{off[nitrogen[owner]].mean():.4f}")
    lengths = np.linalg.norm(arrays["forces_true"], axis=1)
    assert found["Length of the force"]["> 2.0 eV/Å"][1] == f"{off[lengths >= 2].mean():.4f}"


def test_groups_of_numbers_are_in_their_order(arrays):
    (errors,) = errors_of([Evaluation("", {}, {"val": arrays})])
    (part,) = [part for part in breakdowns(errors) if part.title == "Length of the force"]
    names = list(dict.fromkeys(row[0] for row in part.rows))
    order = ["< 0.05", "0.05–0.1", "0.1–0.2", "0.2–0.5", "0.5–1.0", "1.0–2.0", "> 2.0"]
    assert names == [f"{name} eV/Å" for name in order if f"{name} eV/Å" in names]
    assert len(names) > 3


def test_sizes_have_about_as_many_structures_each(arrays):
    sizes = np.repeat([10, 20, 30, 60, 61], [8, 8, 6, 5, 5])
    (errors,) = errors_of([Evaluation("", {}, {"val": arrays | {"n_atoms": sizes}})])
    (part,) = [part for part in breakdowns(errors) if part.title == "Size"]
    names = [row[0] for row in part.rows]
    assert names[0].startswith("10")
    assert names[-1].endswith("61 atoms")
    assert sum(int(row[2]) for row in part.rows) == pytest.approx(16, abs=3), "a system may be in two groups"


def test_distributions_mark_the_thresholds(arrays):
    (errors,) = errors_of([Evaluation("", {}, {"val": arrays})])
    energy, force = distributions(errors)
    assert "0.02 eV" in energy.details[0]
    assert "0.03 eV/Å" in force.details[0]
    columns = force.drawing.columns
    x, share = columns["force error [eV/Å]"], columns["% below"]
    off = np.abs(arrays["forces_pred"] - arrays["forces_true"])
    assert np.interp(0.05, x, share) == pytest.approx(100 * (off < 0.05).mean(), abs=1)


def test_grades_are_shown_with_their_rank_correlation(arrays):
    graded = arrays | {"grades": np.abs(arrays["forces_pred"] - arrays["forces_true"]).mean(1) * 10}
    (errors,) = errors_of([Evaluation("", {}, {"val": graded})])
    (figure,) = grades(errors)
    assert "val 1.00" in figure.details[0]
    (errors,) = errors_of([Evaluation("", {}, {"val": {k: v for k, v in arrays.items() if k != "grades"}})])
    assert grades(errors) == []


def test_predictions_of_earlier_versions_are_left_out(arrays):
    old = {name: arrays[name] for name in ("n_atoms", "energy_true", "energy_pred", "forces_true", "forces_pred")}
    assert errors_of([Evaluation("", {}, {"val": old})]) == []


def test_many_adsorbates_are_cut(arrays):
    names = np.array([f"C{k}" for k in range(32)])
    (errors,) = errors_of([Evaluation("", {}, {"val": arrays | {"adsorbates": names}})])
    (part,) = [part for part in breakdowns(errors) if part.title == "Adsorbate"]
    assert len(part.rows) == breakdown.MAX_GROUPS
    assert "most systems" in part.note
