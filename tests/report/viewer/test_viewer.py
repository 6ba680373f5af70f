"""Structures as JSON: what is in it, in which units, and that no text can leave it."""

import dataclasses
import json

import numpy as np
import pytest
from report_runs import slabs_of

from equicat.report.viewer import viewer
from equicat.report.viewer.viewer import State, View, view_of


@pytest.fixture(scope="module")
def slab():
    (slab,) = slabs_of(1)
    rng = np.random.default_rng(0)
    return dataclasses.replace(slab, forces=rng.normal(size=slab.positions.shape))


def test_a_structure_with_forces(slab):
    found = view_of(slab).as_json()
    assert found["name"] == "slab0"
    symbols = [found["elements"][kind]["symbol"] for kind in found["kinds"]]
    assert symbols == ["Cu"] * 12 + ["O"]
    (state,) = found["states"]
    np.testing.assert_allclose(np.reshape(state["positions"], (-1, 3)) / 100, slab.positions, atol=0.0051)
    (arrows,) = state["arrows"]
    np.testing.assert_allclose(np.reshape(arrows["vectors"], (-1, 3)) / 1000, slab.forces, atol=0.00051)
    assert found["fixed"] == np.flatnonzero(slab.fixed).tolist()
    assert found["adsorbate"] == [12]
    np.testing.assert_allclose(np.reshape(found["cell"], (3, 3)) / 100, slab.cell, atol=0.0051)


def test_before_and_after_do_not_jump_through_the_cell(slab):
    moved = slab.positions + 0.1
    wrapped = dataclasses.replace(slab, relaxed_positions=moved + slab.cell[0])
    states = view_of(wrapped).states
    assert [state.title for state in states] == ["initial", "relaxed"]
    np.testing.assert_allclose(states[1].positions, moved, atol=1e-9)
    after = dataclasses.replace(slab, positions=moved, initial_positions=slab.positions - slab.cell[1])
    states = view_of(after).states
    np.testing.assert_allclose(states[0].positions, slab.positions, atol=1e-9)


def test_a_prediction_stands_beside(slab):
    predicted = dataclasses.replace(slab, positions=slab.positions + 0.2, forces=2 * slab.forces)
    first, last = view_of(slab, predicted=predicted).states
    assert [arrows.title for arrows in first.arrows] == ["reference forces", "predicted forces"]
    assert last.title == "predicted"


def test_no_text_leaves_its_element_and_no_number_breaks_it():
    evil = "</script><!-- & \u2028"
    arrows = viewer.Arrows(evil, np.array([[np.nan, np.inf, 1.0]]))
    view = View(evil, np.array([29]), (State(evil, np.zeros((1, 3)), (arrows,)),), cell=np.zeros((3, 3)))
    assert not set("<>&") & set(view.json)
    found = json.loads(view.json)
    assert found["name"] == evil
    assert "cell" not in found
    assert found["states"][0]["arrows"][0]["vectors"] == [0, 0, 1000]


def test_the_view_begins_as_the_picture():
    """The quaternion turns the direction that points right in the picture to the screen's right."""
    x, y, z, w = viewer._quaternion()
    axis = np.array([x, y, z])
    right, up = viewer.FROM_THE_SIDE

    def turned(v):
        return v + 2 * np.cross(axis, np.cross(axis, v) + w * v)

    np.testing.assert_allclose(turned(right / np.linalg.norm(right)), [1, 0, 0], atol=1e-4)
    assert turned(up)[1] > 0.95
