"""What is fitted to the training data before training: references, scale, number of neighbours."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Float, Int
from numpy import ndarray

from equicat.data.neighbors import neighbor_list

if TYPE_CHECKING:
    from equicat.data.datasets import Dataset

NEIGHBOR_SAMPLE = 500
"""Structures from which the average number of neighbours is taken."""


@dataclass(frozen=True)
class Statistics:
    """Of a training set; kept with the model, because the trivial baselines are made of them."""

    elements: tuple[int, ...]
    """Atomic numbers that occur, ascending."""
    mean_energy: float
    """eV per system."""
    linear_reference: tuple[float, ...]
    """eV per atom of each element: least squares of the energies on the element_counts."""
    forces_rms: float
    """eV/Å, components on free atoms; 1 if there are no forces."""
    avg_num_neighbors: float
    """Within the model's cutoff."""
    energy_residual_rms: float = 1.0
    """eV per system, of what the linear reference leaves; 1 if it leaves nothing."""
    displacements_rms: float = 1.0
    """Å, components on free atoms; 1 if there are no relaxed positions."""


def fit_statistics(
    dataset: "Dataset", cutoff: float, energy: str = "energy", max_neighbors: int | None = None
) -> Statistics:
    """Statistics of a data set.

    Args:
        dataset: has ``energy``, or no energies at all; may have forces (eV/Å) and relaxed positions (Å).
        cutoff: Å.
        energy: the energies that are trained on (eV): ``energy`` or ``relaxed_energy``.
        max_neighbors: of the neighbour list.
    """
    elements = tuple(int(z) for z in dataset.elements)
    counts = element_counts(dataset, elements)
    energies = np.zeros(len(dataset))
    if energy in dataset.fields:
        energies = np.asarray(dataset.array(energy), dtype=np.float64)
    references = linear_reference(counts, energies)
    free = ~np.asarray(dataset.array("fixed"))
    forces = displacements = np.ones((1, 3))
    if "forces" in dataset.fields:
        forces = np.asarray(dataset.array("forces"))[free]
    if "relaxed_positions" in dataset.fields:
        displacements = np.concatenate([s.displacements for s in dataset])[free]
    sample = np.random.default_rng(0).permutation(len(dataset))[:NEIGHBOR_SAMPLE]
    edges = sum(neighbor_list(dataset[int(i)], cutoff, max_neighbors)[0].shape[1] for i in sample)
    atoms = int(np.sum(np.asarray(dataset.n_atoms)[sample]))
    return Statistics(
        elements=elements,
        mean_energy=float(energies.mean()),
        linear_reference=tuple(references.tolist()),
        forces_rms=_rms(forces),
        avg_num_neighbors=max(edges / atoms, 1.0),
        energy_residual_rms=_rms(energies - counts @ references),
        displacements_rms=_rms(displacements),
    )


def _rms(values: ndarray) -> float:
    """Root mean square, a scale to divide by: 1 where there is nothing or nothing but zeros."""
    rms = float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0
    return rms if rms > 1e-8 else 1.0


def element_counts(dataset: "Dataset", elements: tuple[int, ...]) -> Float[ndarray, "n_structures n_elements"]:
    """Atoms of each element in each structure."""
    column = np.full(len(chemical_symbols), -1)
    column[list(elements)] = np.arange(len(elements))
    structure = np.repeat(np.arange(len(dataset)), dataset.n_atoms)
    flat = structure * len(elements) + column[np.asarray(dataset.array("numbers"), dtype=np.int64)]
    counts = np.bincount(flat, minlength=len(dataset) * len(elements))
    return counts.reshape(len(dataset), len(elements)).astype(np.float64)


def linear_reference(
    counts: Float[ndarray, "n_structures n_elements"], energies: Float[ndarray, "n_structures"]
) -> Float[ndarray, "n_elements"]:
    """Least-squares energy of each element; the smallest solution where compositions leave it open."""
    return np.linalg.lstsq(counts, energies, rcond=1e-8)[0]


def evenly_spread(n_total: int, n: int) -> Int[ndarray, "n_drawn"]:
    """Numbers, ascending, of ``n`` of ``n_total`` structures at equal distances, the ends among them; all if fewer."""
    return np.unique(np.linspace(0, n_total - 1, n).round().astype(np.int64))
