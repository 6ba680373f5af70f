"""Structures in all kinds of cells, drawn at random."""

import numpy as np

from equicat import Structure

SLAB = np.array([True, True, False])
ALL = np.ones(3, bool)
THREE = np.array([[0.0, 0, 0], [2.5, 0, 0], [3, 3, 3]])


def random_structure(seed: int) -> Structure:
    """Random skewed cells from far smaller to larger than the cutoff, any pbc, atoms far outside the cell."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 12))
    cell = np.diag(rng.uniform(2.0, 12.0, 3)) + rng.uniform(-1.5, 1.5, (3, 3))
    pbc = np.array([(seed >> k) & 1 for k in range(3)], bool)
    cell[~pbc] *= rng.integers(0, 2)  # a direction without periodicity may have no vector
    fractional = rng.uniform(-2, 3, (n, 3))
    spread = np.where(np.abs(cell).sum(1, keepdims=True) > 0, cell, 5 * np.eye(3))
    return Structure(numbers=np.full(n, 29), positions=fractional @ spread, cell=cell, pbc=pbc)


def skewed_structure(rng: np.random.Generator) -> Structure:
    """A few atoms, some far away, in a cell of any shape with zero to three periodic directions."""
    pbc = rng.random(3) < 0.6
    cell = rng.normal(size=(3, 3)) * rng.uniform(1, 12, (3, 1))
    for _ in range(rng.integers(0, 4)):
        i, j = rng.permutation(3)[:2]
        cell[i] += rng.integers(-3, 4) * cell[j]
    positions = rng.uniform(-15, 15, (int(rng.integers(1, 6)), 3))
    positions[0] += rng.choice([0, 50, 3e4]) * rng.normal(size=3)
    positions[-1] += rng.choice([0, 40]) * np.where(pbc[:, None], cell, 0).sum(0)
    return Structure(np.full(len(positions), 29), positions, cell, pbc)
