"""Several data sets for one model: how often each of their structures occurs, and one zero of energies."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from equicat.data.datasets import AnyDataset, Dataset, Subset
from equicat.data.fitted import element_counts, linear_reference


def repeated(dataset: Dataset | Subset, times: float, rng: np.random.Generator) -> Subset:
    """A data set whose structures occur ``times`` each; of a part of one, as many are drawn at random."""
    n = len(dataset)
    rest = rng.permutation(n)[: round((times - int(times)) * n)]
    chosen = np.concatenate([np.tile(np.arange(n), int(times)), rest])
    if isinstance(dataset, Subset):
        return Subset(dataset.dataset, dataset.indices[chosen])
    return Subset(dataset, chosen)


def own_zero(dataset: AnyDataset, main: AnyDataset, energy: str) -> dict[int, float]:
    """Energies to subtract from a data set's, so that an atom of each element costs what it costs in another one.

    Both are fitted by least squares on the numbers of atoms; elements that only one of them has are left as they are.

    Args:
        dataset: with energies of its own zero.
        main: with the energies that count.
        energy: the name of the energies, eV.
    """
    found = []
    for data in (dataset, main):
        elements = tuple(data.elements)
        references = linear_reference(element_counts(data, elements), np.asarray(data.array(energy), dtype=np.float64))
        found.append(dict(zip(elements, references.tolist(), strict=True)))
    own, others = found
    return {z: own[z] - others[z] for z in own if z in others}


def zeros_of(dataset: AnyDataset, zero: Mapping[int, float]) -> Float[ndarray, "n_structures"]:
    """The energy (eV) that is subtracted from each structure.

    Args:
        dataset: the structures.
        zero: eV for each atom of an element, by atomic number.
    """
    elements = tuple(zero)
    return element_counts(dataset, elements) @ np.array([zero[z] for z in elements])
