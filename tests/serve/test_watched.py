"""Notes on relaxations that are going on: what they hold, and the rows that the page makes of them."""

import json
import math

import pytest
from emt_slabs import structures
from places import FIXTURES

from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.models import CalculatorForces, force_model
from equicat.relaxation.relax import relax
from equicat.serve import watched as module
from equicat.serve.home import STEPS
from equicat.serve.progress import live_rows
from equicat.serve.watched import steps_in, watched

RUN = FIXTURES / "runs_b139b12" / "allegro"


def test_a_watched_model_notes_steps_and_forces_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)
    systems = structures(2)
    config = RelaxConfig(max_steps=3, fmax=1e-6)
    plain = force_model(RUN)
    model = watched(plain, tmp_path / STEPS)
    found, expected = (relax(systems, one, config, progress=False).structures for one in (model, plain))
    assert [s.energy for s in found] == [s.energy for s in expected]
    steps = steps_in(tmp_path / STEPS)
    assert steps.keys() == {0, 1}
    assert steps[1][0] >= 3
    assert steps[1][1] == pytest.approx(expected[1].info["fmax"], rel=1e-4)


def test_calculators_are_not_watched(tmp_path):
    model = CalculatorForces(lambda: None)
    assert watched(model, tmp_path / STEPS) is model
    assert steps_in(tmp_path / STEPS) == {}


def test_rows_of_placements_that_are_being_relaxed(tmp_path):
    (tmp_path / STEPS).write_text(json.dumps({"0": [7, 0.5], "1": [7, 0.25], "2": [7, math.inf]}))
    slab, one = {"kind": "slab"}, {"kind": "placement", "adsorbate": "O", "site": "fcc"}
    row, wild = live_rows(tmp_path, [slab, one, one], running=True)
    assert wild["fmax"] is None
    assert (row["system"], row["relaxing"], row["energy"], row["n_steps"], row["fmax"]) == (1, True, None, 7, 0.25)
    assert live_rows(tmp_path, [slab, one], running=False) == []
