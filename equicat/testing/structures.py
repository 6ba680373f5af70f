"""Small systems to check a potential on."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from equicat.data.structure import Structure

SPACING = 2.5
"""Å between neighbours, before rattling."""


def example_structures(elements: Sequence[int], seed: int = 0) -> list[Structure]:
    """A cluster, a slab with an adsorbate and fixed atoms (periodic along two vectors), and a small skewed bulk cell.

    Positions are random but reproducible, so that nothing is symmetric by accident.

    Args:
        elements: atomic numbers to draw from.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)
    grid = SPACING * np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)

    def rattled(positions: ndarray, amplitude: float = 0.3) -> ndarray:
        return positions + rng.uniform(-amplitude, amplitude, positions.shape)

    slab = np.concatenate([grid, [[1.2, 1.4, 4.4], [1.6, 2.2, 5.6]]])
    return [
        Structure(rng.choice(elements, 7), rattled(grid[:7]), source="cluster"),
        Structure(
            rng.choice(elements, len(slab)),
            rattled(slab, 0.2),
            cell=np.array([[5.2, 0.1, 0.0], [0.7, 5.1, 0.0], [0.3, -0.2, 19.0]]),
            pbc=np.array([True, True, False]),
            fixed=_bottom(slab),
            tags=np.r_[np.where(_bottom(grid), 0, 1), 2, 2],
            source="slab",
        ),
        Structure(
            rng.choice(elements, 2),
            np.array([[0.2, 0.1, -0.3], [1.9, 1.5, 1.4]]),
            cell=np.array([[3.1, 0.2, 0.1], [1.1, 2.9, -0.2], [-0.9, 0.8, 3.3]]),
            pbc=np.ones(3, bool),
            source="bulk",
        ),
    ]


def _bottom(positions: Float[ndarray, "n_atoms 3"]) -> Bool[ndarray, "n_atoms"]:
    """The lower layer of the slab's grid."""
    return positions[:, 2] < SPACING / 2


def random_rotation(seed: int = 0) -> Float[ndarray, "3 3"]:
    """A 3×3 rotation matrix (determinant +1), float64."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))
