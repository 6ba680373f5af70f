"""What is fitted to the training data before training: references, scale, number of neighbours."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Float
from numpy import ndarray

from equicat.neighbors import neighbor_list

if TYPE_CHECKING:
    from equicat.datasets import Dataset

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
    """eV per atom of each element: least squares of the energies on the composition."""
    forces_rms: float
    """eV/Å, components on free atoms; 1 if there are no forces."""
    avg_num_neighbors: float
    """Within the model's cutoff."""


def fit(dataset: "Dataset", cutoff: float, max_neighbors: int | None = None) -> Statistics:
    """Statistics of a data set that has energies (eV) and may have forces (eV/Å)."""
    elements = tuple(int(z) for z in dataset.elements)
    energies = np.asarray(dataset.array("energy"), dtype=np.float64)
    rms = 1.0
    if "forces" in dataset.fields:
        free = ~np.asarray(dataset.array("fixed"))
        rms = float(np.sqrt(np.mean(np.square(np.asarray(dataset.array("forces"))[free], dtype=np.float64))))
    sample = np.random.default_rng(0).permutation(len(dataset))[:NEIGHBOR_SAMPLE]
    edges = sum(neighbor_list(dataset[int(i)], cutoff, max_neighbors)[0].shape[1] for i in sample)
    atoms = int(np.sum(np.asarray(dataset.n_atoms)[sample]))
    return Statistics(
        elements=elements,
        mean_energy=float(energies.mean()),
        linear_reference=tuple(linear_reference(composition(dataset, elements), energies).tolist()),
        forces_rms=rms if rms > 0 else 1.0,
        avg_num_neighbors=max(edges / atoms, 1.0),
    )


def composition(dataset: "Dataset", elements: tuple[int, ...]) -> Float[ndarray, "n_structures n_elements"]:
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
