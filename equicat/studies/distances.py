"""How far atoms are from the adsorbate, and the adsorbate from the slab; errors against these distances."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from equicat.data.datasets import Dataset
from equicat.data.images import nearest_distances
from equicat.data.structure import Structure
from equicat.tasks.metrics import ADSORBATE_TAG


def distance_to_adsorbate(structure: Structure) -> Float[ndarray, "n_atoms"]:
    """Distance (Å) of every atom to the nearest image of the nearest adsorbate atom (tag 2); NaN without adsorbate.

    It is zero for the adsorbate's own atoms.
    """
    is_adsorbate = np.asarray(structure.tags) == ADSORBATE_TAG
    if not is_adsorbate.any():
        return np.full(len(structure), np.nan)
    to = structure.positions[is_adsorbate]
    return nearest_distances(structure.positions, to, structure.cell, structure.pbc).min(axis=1)


def reach_of_adsorbate(structure: Structure) -> float:
    """Distance (Å) from the slab of the adsorbate atom that is furthest from it; NaN without slab or adsorbate."""
    is_adsorbate = np.asarray(structure.tags) == ADSORBATE_TAG
    if is_adsorbate.all() or not is_adsorbate.any():
        return float("nan")
    adsorbate, slab = structure.positions[is_adsorbate], structure.positions[~is_adsorbate]
    return float(nearest_distances(adsorbate, slab, structure.cell, structure.pbc).min(axis=1).max())


@dataclass(frozen=True)
class Bin:
    """The errors in one interval of distances, its lower end included."""

    low: float
    high: float
    mean: float
    """Mean absolute error."""
    guess: float
    """Mean absolute error of zero, the guess that needs no model."""
    n: int
    """Components or systems."""


def binned(
    distances: Float[ndarray, "n"],
    errors: Float[ndarray, "n"],
    targets: Float[ndarray, "n"],
    edges: Sequence[float],
) -> list[Bin]:
    """Mean absolute errors by distance; intervals in which there is nothing are left out.

    Args:
        distances: Å; NaN is in no interval.
        errors: prediction − target.
        targets: as large as the errors of the guess that everything is zero.
        edges: ascending ends of the intervals.
    """
    found = []
    for low, high in pairwise(edges):
        here = (distances >= low) & (distances < high)
        if here.any():
            mean, guess = np.abs(errors[here]).mean(), np.abs(targets[here]).mean()
            found.append(Bin(float(low), float(high), float(mean), float(guess), int(here.sum())))
    return found


@dataclass(frozen=True, eq=False)
class Errors:
    """Errors of forces by component of free atoms, or of energies by system, with a distance for each."""

    distances: Float[ndarray, "n"]
    """Å."""
    errors: Float[ndarray, "n"]
    """eV/Å or eV."""
    targets: Float[ndarray, "n"]
    """eV/Å; for energies their deviation from the mean of the split, eV."""


def force_errors(predictions: Path, distances: Float[ndarray, "n_free"]) -> Errors:
    """The force errors of an evaluation, against the distances of its free atoms.

    Args:
        predictions: file with ``forces_true`` and ``forces_pred`` of free atoms, as evaluation writes it.
        distances: see :func:`free_distances`.
    """
    with np.load(predictions) as arrays:
        true, found = arrays["forces_true"].astype(float), arrays["forces_pred"].astype(float)
    return Errors(np.repeat(distances, 3), (found - true).ravel(), true.ravel())


def energy_errors(predictions: Path, reach: Float[ndarray, "n_systems"]) -> Errors:
    """The energy errors of an evaluation, against the reach of the adsorbates of its systems.

    Args:
        predictions: file with ``energy_true`` and ``energy_pred``, as evaluation writes it.
        reach: see :func:`reaches`.
    """
    with np.load(predictions) as arrays:
        true, found = arrays["energy_true"].astype(float), arrays["energy_pred"].astype(float)
    return Errors(reach, found - true, true - true.mean())


def free_distances(dataset: Dataset) -> Float[ndarray, "n_free"]:
    """Distance (Å) to the adsorbate of every free atom of a data set, in its order."""
    return np.concatenate([distance_to_adsorbate(s)[~np.asarray(s.fixed)] for s in dataset])


def reaches(dataset: Dataset) -> Float[ndarray, "n_systems"]:
    """:func:`reach_of_adsorbate` of every system of a data set."""
    return np.array([reach_of_adsorbate(s) for s in dataset])


def thirds(values: Float[ndarray, "n"]) -> list[float]:
    """Ends of three intervals with about as many values in each, the last one open."""
    known = values[np.isfinite(values)]
    if not len(known):
        return []
    inner = np.quantile(known, [1 / 3, 2 / 3])
    return sorted({0.0, *map(float, inner), float("inf")})
