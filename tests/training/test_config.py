"""Options that would have no effect are refused before any data are read."""

import pytest

from equicat import InputError
from equicat.training.config import from_mapping


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"normalization": {"displacement_scale": 2.0}}, "normalization.displacement_scale is for is2re and is2rs"),
        ({"task": "is2re", "loss": {"stress_weight": 2.0}}, "loss.stress_weight is for the task s2ef"),
        ({"loss": {"stress": "mse"}}, "loss.stress_weight is 0; leave one out"),
        ({"loss": {"late_from": 0.5}}, "loss.late_from says when the late weights count, but none is given"),
        ({"run": {"members": 2, "init_from": "a"}}, "run.members differ by their first weights"),
    ],
)
def test_options_without_an_effect_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        from_mapping({"data": {"train": ["a.xyz"]}, **values})
