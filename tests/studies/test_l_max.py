"""`equicat study l-max`: what is said of stored results."""

import pytest
from study_results import result

from equicat.studies.l_max import outcome


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
