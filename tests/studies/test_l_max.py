"""`equicat study l-max`: what is said of stored results."""

import pytest
from study_results import result, write_presets

from equicat.studies.l_max import LMaxOptions, cells, outcome
from equicat.studies.study_data import StudyData


def test_every_degree_is_trained_for_equal_epochs_and_equal_time(data, tmp_path):
    options = LMaxOptions(presets=str(write_presets(tmp_path)), seeds=2, tasks=("is2re",))
    plan = cells(StudyData(data), options)
    assert len({cell.name("") for cell in plan}) == len(plan) == 3 * 2 * 2
    lengths = {(c.budget, c.config["run"]["max_epochs"], c.config["run"]["max_minutes"]) for c in plan}
    assert lengths == {("10 epochs", 10, None), ("2 min", 100_000, 2.0)}
    assert {(c.model, c.config["model"]["l_max"]) for c in plan} == {(f"allegro-l{n}", n) for n in (1, 2, 3)}


def test_gains_and_costs_follow_from_the_numbers():
    results = [
        result(model, seed, error + 0.01 * seed, budget="10 epochs") | {"seconds": seconds}
        for model, error, seconds in (("allegro-l1", 0.40, 2.0), ("allegro-l2", 0.30, 5.0))
        for seed in range(2)
    ]
    found = outcome(results)
    assert "From allegro-l1 to allegro-l2 the error on val_id falls by 25%" in found.page
    assert "a step takes 2.5 times as long" in found.page
    error = (2 * (0.01 / 2**0.5) ** 2 / 2) ** 0.5
    assert f"{0.1 / error:.1f} standard errors" in found.page
    assert [row["error"] for row in found.rows] == pytest.approx([0.405, 0.305])


def test_one_seed_has_no_standard_error():
    found = outcome([result("allegro-l1", 0, 0.3), result("allegro-l2", 0, 0.4)])
    assert "rises by 33%" in found.page
    assert "With one seed there is no spread" in found.page
