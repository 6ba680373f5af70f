"""Lattice jumps: ASE's nearest image is the oracle, and whole lattice vectors are all that may change."""

import numpy as np
import pytest
from ase.geometry import complete_cell, find_mic, wrap_positions

from equicat.data.images import nearest_image
from equicat.sources.dft.unwrap import AMBIGUITY, unwrap

CUBE = 6.0 * np.eye(3)
SKEWED = np.array([[5.0, 0.0, 0.0], [23.0, 4.5, 0.0], [-9.0, 14.0, 20.0]])
"""A reduced basis of this is far from these vectors."""
OC20 = np.array([[8.70, 0.0, -0.29], [-4.19, 12.14, 0.57], [0.0, 0.0, 32.96]])
ALL = np.array([True, True, True])
SLAB = np.array([True, True, False])


@pytest.mark.parametrize("pbc", [ALL, SLAB, np.array([False, True, False]), np.zeros(3, bool)])
@pytest.mark.parametrize("cell", [CUBE, SKEWED, OC20])
def test_nearest_image_is_that_of_ase(cell, pbc):
    vectors = np.random.default_rng(0).normal(size=(200, 3)) * 15
    shift, margin = nearest_image(vectors, cell, pbc)
    found = np.linalg.norm(vectors + shift @ cell, axis=1)
    # ASE finds longer images where a vector that is not periodic leans, so give it one that does not.
    upright = complete_cell(cell * pbc[:, None])
    np.testing.assert_allclose(found, find_mic(vectors, upright, pbc)[1], atol=1e-9)
    assert (found <= find_mic(vectors, cell, pbc)[1] + 1e-9).all()
    assert shift.dtype == np.int64
    assert not shift[:, ~pbc].any()
    assert (margin >= 0).all()


def test_margin_is_the_lead_over_the_next_image():
    _, margin = nearest_image(np.array([[1.0, 0, 0], [2.9, 0, 0], [3.0, 0, 0]]), CUBE, ALL)
    np.testing.assert_allclose(margin, [4.0, 0.2, 0.0], atol=1e-9)


def test_a_vector_that_is_shortest_already_stays():
    """Half a lattice vector has two equally short images; the one in the file is kept."""
    shift, _ = nearest_image(np.array([[3.0, 0, 0], [-3.0, 0, 0]]), CUBE, ALL)
    assert not shift.any()


@pytest.mark.parametrize("pbc", [ALL, SLAB])
@pytest.mark.parametrize("cell", [CUBE, SKEWED, OC20])
def test_wrapping_every_frame_is_undone(cell, pbc):
    """A walk over several cells, wrapped into the cell in every frame but the first."""
    rng = np.random.default_rng(1)
    steps = rng.normal(size=(60, 5, 3)) * 0.3 + np.array([0.25, 0.1, 0.0])
    walk = 1.0 + np.concatenate([np.zeros((1, 5, 3)), np.cumsum(steps, 0)])
    wrapped = np.stack([walk[0], *(wrap_positions(p, cell, pbc, eps=0) for p in walk[1:])])
    result = unwrap(wrapped, np.broadcast_to(cell, (61, 3, 3)).copy(), pbc)
    np.testing.assert_allclose(result.positions, walk, atol=1e-8)
    assert result.n_jumps > 0
    assert result.after == pytest.approx(np.linalg.norm(walk - walk[0], axis=2).max())
    assert result.before == pytest.approx(np.linalg.norm(wrapped - wrapped[0], axis=2).max())
    assert result.after > 6.0, "further than half a cell: only steps from frame to frame can tell"


def test_only_whole_lattice_vectors_are_removed():
    rng = np.random.default_rng(2)
    start = rng.random((4, 3)) @ SKEWED
    jumps = rng.integers(-3, 4, size=(4, 3))
    result = unwrap(np.stack([start, start + 0.1 + jumps @ SKEWED]), np.stack([SKEWED, SKEWED]), ALL)
    np.testing.assert_allclose(result.positions[1], start + 0.1, atol=1e-9)
    assert result.n_jumps == int(jumps.any(1).sum())
    assert result.ambiguous == []


def test_what_does_not_jump_is_not_touched():
    positions = np.random.default_rng(3).normal(size=(4, 6, 3))
    positions[1:] = positions[0] + 0.01 * positions[1:]
    result = unwrap(positions, np.broadcast_to(SKEWED, (4, 3, 3)).copy(), ALL)
    np.testing.assert_array_equal(result.positions, positions)
    assert (result.n_jumps, result.before) == (0, result.after)


def test_ambiguous_steps_are_named():
    frames = np.zeros((3, 2, 3))
    frames[1, 1, 0] = 2.8
    frames[2, 1, 0] = 2.9
    cells = np.stack([CUBE] * 3)
    assert unwrap(frames, cells, ALL).ambiguous == [(1, 1)]
    frames[1:, 1, 0] -= AMBIGUITY
    assert unwrap(frames, cells, ALL).ambiguous == []


def test_atoms_are_carried_along_with_the_cell():
    """A cell that grows by a tenth moves an atom at its far end by 0.6 Å; that is no jump, nor is it removed."""
    start = np.array([[0.0, 0, 0], [5.8, 3.0, 3.0]])
    grown = 1.1 * start + np.array([6.6, 0, 0])
    result = unwrap(np.stack([start, grown]), np.stack([CUBE, 1.1 * CUBE]), ALL)
    np.testing.assert_allclose(result.positions[1], 1.1 * start, atol=1e-9)
    assert result.n_jumps == 2
