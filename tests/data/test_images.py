"""Nearest images: a search over all images in reach is the oracle, in cells as skewed as anyone may bring."""

from itertools import product

import numpy as np
import pytest

from equicat.data.images import minimum_image, nearest_image, reduced_basis

HEXAGONAL = np.array([[5.1, 0, 0], [-2.55, 5.1 * 3**0.5 / 2, 0], [0, 0, 20.0]])
FCC = np.array([[0, 2, 2], [2, 0, 2], [2, 2, 0.0]])
BCC = np.array([[-2, 2, 2], [2, -2, 2], [2, 2, -2.0]])
ALL = np.ones(3, bool)
SLAB = np.array([True, True, False])


def unimodular(rng: np.random.Generator, k: int, n_steps: int) -> np.ndarray:
    """Integers of determinant one: another basis of the same lattice."""
    matrix = np.eye(k, dtype=int)
    for _ in range(n_steps if k > 1 else 0):
        i, j = rng.permutation(k)[:2]
        matrix[i] += rng.integers(-2, 3) * matrix[j]
    return matrix


def random_cell(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A cell that is periodic in one to three directions, in which other atoms may lean over as far as they like."""
    pbc = np.zeros(3, bool)
    pbc[rng.permutation(3)[: rng.integers(1, 4)]] = True
    kinds = [HEXAGONAL, FCC, BCC, rng.normal(size=(3, 3)) * rng.uniform(1, 12, (3, 1))]
    cell = kinds[rng.integers(4)].copy()
    cell[pbc] = unimodular(rng, int(pbc.sum()), rng.integers(0, 4)) @ cell[pbc]
    return cell, pbc


def all_lengths(vector: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray | None:
    """Ascending lengths of the images of a vector: of all that are less than a lattice vector longer than it.

    Such an image has coordinates no further from zero than its length over the distance of lattice planes. None where
    these are too many to look at.
    """
    lattice = cell[pbc]
    inverse = np.linalg.pinv(lattice)
    reach = (np.linalg.norm(vector) + np.linalg.norm(lattice, axis=1).min()) * np.linalg.norm(inverse, axis=0)
    lowest = np.floor(-vector @ inverse - reach).astype(int)
    n_images = np.ceil(-vector @ inverse + reach).astype(int) - lowest + 1
    if n_images.prod() > 3000:
        return None
    shifts = lowest + np.indices(n_images).reshape(len(lattice), -1).T
    return np.sort(np.linalg.norm(vector + shifts @ lattice, axis=1))


def test_no_image_is_shorter():
    rng = np.random.default_rng(0)
    n_compared = 0
    for _ in range(300):
        cell, pbc = random_cell(rng)
        vectors = rng.normal(size=(3, 3)) * rng.uniform(0.5, 8)
        vectors[0] = rng.integers(-1, 2, pbc.sum()) / 2 @ reduced_basis(cell[pbc])[0]  # as long as its own images
        found = minimum_image(vectors, cell, pbc)
        shifts, margins = nearest_image(vectors, cell, pbc)
        for vector, image, shift, margin in zip(vectors, found, shifts, margins, strict=True):
            lengths = all_lengths(vector, cell, pbc)
            if lengths is not None:
                assert np.linalg.norm(image) == pytest.approx(lengths[0], abs=1e-8)
                assert np.linalg.norm(vector + shift @ cell) == pytest.approx(lengths[0], abs=1e-8)
                assert margin == pytest.approx(lengths[1] - lengths[0], abs=1e-7)
                assert not shift[~pbc].any()
                n_compared += 1
    assert n_compared > 500


@pytest.mark.parametrize("cell", [HEXAGONAL, FCC, BCC, np.diag([3.0, 5.0, 20.0])])
def test_a_vector_does_not_depend_on_the_others_in_the_call(cell):
    rng = np.random.default_rng(1)
    cell = unimodular(rng, 3, 6) @ cell
    vectors = np.concatenate([rng.normal(size=(40, 3)) * 6, rng.integers(-2, 3, (24, 3)) / 2 @ cell])
    together = minimum_image(vectors, cell, ALL)
    alone = np.concatenate([minimum_image(vector[None], cell, ALL) for vector in vectors])
    np.testing.assert_array_equal(alone, together)
    order = rng.permutation(len(vectors))
    np.testing.assert_array_equal(minimum_image(vectors[order], cell, ALL), together[order])


@pytest.mark.parametrize(
    ("vector", "cell", "pbc"),
    [
        ((0.0, 1.5, 0.1), np.array([[2, 1, 0], [3, 2, 0], [0, 0, 1]]) @ HEXAGONAL, ALL),
        ((0.17, 0.98, 0.1), np.array([[3, 1, 0], [4, 1, 0], [0, 0, 1]]) @ HEXAGONAL, ALL),
        ((0.3, 0.2, 4.0), np.array([[5.1, 0, 0], [-2.55, 4.4167, 0], [2.55, 1.4722, 2.0819]]), SLAB),
        ((0.3, 0.2, 1e4), np.array([[5.1, 0, 0], [-2.55, 4.4167, 0], [2.55, 1.4722, 2.0819]]), SLAB),
    ],
)
def test_a_vector_that_is_shortest_already_stays_as_it_is(vector, cell, pbc):
    """Skewed cells, and a vector that is not periodic and leans over: distances off the surface change nothing."""
    np.testing.assert_array_equal(minimum_image(np.array([vector]), cell, pbc)[0], vector)


def test_of_equal_images_the_given_one_is_kept():
    cube = 6.0 * np.eye(3)
    vectors = np.array([[3.0, 0, 0], [-3.0, 0, 0], [3.0, -3.0, 3.0]])
    np.testing.assert_array_equal(minimum_image(vectors, cube, ALL), vectors)
    assert not nearest_image(vectors, cube, ALL)[0].any()


def test_very_far_vectors_come_back():
    cell = np.array([[5.0, 0.0, 0.0], [23.0, 4.5, 0.0], [-9.0, 14.0, 20.0]])
    vector = np.array([[0.3, -0.2, 0.1]])
    found = minimum_image(vector + np.array([[20_000, -30_000, 10_000]]) @ cell, cell, ALL)
    np.testing.assert_allclose(found, vector, atol=1e-8)


class TestReducedBasis:
    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_spans_the_same_lattice_with_the_shortest_vectors(self, k):
        rng = np.random.default_rng(k)
        for _ in range(50):
            short = rng.normal(size=(k, 3)) * rng.uniform(1, 9, (k, 1))
            skewed = unimodular(rng, k, 8) @ short
            basis, combination = reduced_basis(skewed)
            np.testing.assert_allclose(basis, combination @ skewed, atol=1e-9)
            assert round(abs(np.linalg.det(combination))) == 1
            lengths = np.linalg.norm(basis, axis=1)
            assert (np.diff(lengths) >= -1e-9).all()
            # Minkowski's conditions: no vector gets shorter by adding or subtracting others.
            for steps in product((-1, 0, 1), repeat=k):
                last = max((i for i in range(k) if steps[i]), default=None)
                if last is not None:
                    assert np.linalg.norm(np.array(steps) @ basis) >= lengths[last] - 1e-9

    def test_of_a_basis_that_leans_over_a_billion_times_its_height(self):
        basis, _ = reduced_basis(np.array([[1.0, 0, 0], [12345678.0, 1, 0], [987654321.0, 33333, 1]]))
        np.testing.assert_allclose(np.abs(basis), np.eye(3), atol=1e-6)
