"""Learning curves: slopes of known power laws, and what is said of them."""

from dataclasses import replace

import numpy as np
import pytest
from study_results import result, write_presets

from equicat.studies.data_efficiency import DataEfficiencyOptions, cells, fit, laws, outcome, verdict_on
from equicat.studies.study_data import StudyData

SIZES = (10, 20, 40, 80)
MIDDLE = float(np.exp(np.log(SIZES).mean()))


def noisy(slope: float, height: float, noise: float = 0.02, seed: int = 0, n_seeds: int = 5) -> np.ndarray:
    """Errors of a power law with this error in the middle of the sizes, and with noise of each seed."""
    factors = np.exp(noise * np.random.default_rng(seed).normal(size=(n_seeds, len(SIZES))))
    return height * (np.array(SIZES) / MIDDLE) ** slope * factors


@pytest.mark.parametrize("slope", [-0.8, -0.25, 0.1])
def test_slopes_of_exact_power_laws_are_found(slope):
    law = fit(SIZES, noisy(slope, 0.3, noise=0.0))
    assert law.slope == pytest.approx(slope, abs=1e-12)
    assert law.error_mid == pytest.approx(0.3)
    assert law.slope_std == pytest.approx(0.0, abs=1e-12)


def test_spread_over_seeds_is_that_of_the_slopes():
    """The bootstrap's standard error of a mean is that of the formula, up to the noise of 1000 draws."""
    errors = noisy(-0.3, 0.3, noise=0.0, n_seeds=20)
    tilts = np.random.default_rng(3).normal(scale=0.1, size=20)
    errors *= (np.array(SIZES) / MIDDLE) ** tilts[:, None]  # each seed an exact law, so there is no scatter
    law = fit(SIZES, errors)
    assert law.slope == pytest.approx(-0.3 + tilts.mean())
    assert law.slope_std == pytest.approx(np.std(tilts) / np.sqrt(20), rel=0.1)


def test_a_curve_that_is_no_power_law_has_a_large_spread():
    errors = np.array([[2.0, 0.28, 0.28, 0.22]])
    _, covariance = np.polyfit(np.log(SIZES), np.log(errors[0]), 1, cov=True)
    law = fit(SIZES, np.repeat(errors, 3, axis=0))
    assert law.slope_std == pytest.approx(np.sqrt(covariance[0, 0]))
    _, covariance = np.polyfit(np.log(SIZES) - np.log(MIDDLE), np.log(errors[0]), 1, cov=True)
    assert law.log_mid_std == pytest.approx(np.sqrt(covariance[1, 1]))


@pytest.mark.parametrize(
    ("ours", "others", "words"),
    [
        ((-0.6, 0.3), (-0.3, 0.3), ("slope is steeper than that of", "middle of the sizes is not told apart from")),
        ((-0.3, 0.2), (-0.3, 0.4), ("slope is not told apart from", "middle of the sizes is lower than that of")),
        ((-0.1, 0.4), (-0.3, 0.2), ("slope is flatter than that of", "middle of the sizes is higher than that of")),
    ],
)
def test_the_verdict_follows_from_the_numbers(ours, others, words):
    text = verdict_on({"allegro-l2": fit(SIZES, noisy(*ours, seed=1)), "schnet": fit(SIZES, noisy(*others, seed=2))})
    assert all(word in text for word in words), text


def test_one_seed_with_two_sizes_has_no_spread():
    law = fit((10, 20), np.array([[0.4, 0.3]]))
    assert law.slope_std == pytest.approx(0.0, abs=1e-12)
    text = verdict_on({"allegro-l2": replace(law, slope_std=0.0, log_mid_std=0.0), "cgcnn": law})
    assert text.count("cgcnn") == 2


def test_laws_and_tables_of_stored_results():
    results = [
        result(model, seed, float(noisy(slope, 0.3, seed=seed)[0, k]), n)
        for model, slope in (("allegro-l2", -0.7), ("cgcnn", -0.3))
        for seed in range(3)
        for k, n in enumerate(SIZES)
    ]
    found = laws(results, "val_id")
    assert found["allegro-l2"].slope == pytest.approx(-0.7, abs=0.05)
    written = outcome(results)
    assert "steeper than that of cgcnn" in written.page
    assert len(written.rows) == 2 * 2 * len(SIZES)
    assert written.rows[0]["slope"] == found["allegro-l2"].slope


def test_a_model_without_all_sizes_has_no_slope():
    results = [result("cgcnn", 0, 0.3, n) for n in SIZES] + [result("allegro-l2", 0, 0.3, SIZES[0])]
    assert list(laws(results, "val_id")) == ["cgcnn"]
    assert "| allegro-l2 | 0.3000 | – | – | – | – |" in outcome(results).page


def test_subsets_are_nested_eighths_to_all(data, tmp_path):
    options = DataEfficiencyOptions(("schnet", "allegro-l1"), 2, epochs=1, presets=str(write_presets(tmp_path)))
    plan = cells(StudyData(data), options)
    for task in ("s2ef", "is2re", "is2rs"):
        mine = [cell for cell in plan if cell.task == task]
        assert sorted({cell.n_train for cell in mine}) == [2, 4, 8, 16]
        assert len(mine) == 2 * 2 * 4
        assert len({(cell.seed, cell.config["data"]["split_seed"]) for cell in mine}) == 2, "one draw a seed"
    assert {cell.head for cell in plan if cell.task == "is2rs"} == {"gradient"}


def test_subsets_of_all_sizes_are_trained_for_as_many_steps(data, tmp_path):
    options = DataEfficiencyOptions(
        presets=str(write_presets(tmp_path)), models=("schnet",), seeds=1, steps=50, direct_steps=20
    )
    plan = cells(StudyData(data), options)
    assert {(c.task, *(c.config["run"][k] for k in ("max_steps", "max_minutes", "val_every"))) for c in plan} == {
        ("s2ef", 50, None, "5 steps"),
        ("is2re", 20, None, "2 steps"),
        ("is2rs", 20, None, "2 steps"),
    }
    assert {c.budget for c in plan} == {"50 steps (20 direct)"}
    assert len({c.n_train for c in plan if c.task == "s2ef"}) == 4
