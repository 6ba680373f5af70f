"""Numbers fitted to the training data before training (references, scales, neighbours), and what these data cover."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from equicat.data.contacts import formula_of
from equicat.data.datasets import AnyDataset, pieces
from equicat.data.neighbors import neighbor_list

NEIGHBOR_SAMPLE = 500
"""Structures from which the average number of neighbours is taken."""
DISTANCE_SAMPLE = 2000
"""Structures, evenly spread, in which the shortest distances between elements are looked for."""
STRUCTURES_PER_PAIR = 5
"""Structures looked at beside these for every two elements that occur together, so that no rare pair is missed."""
MAX_COMBINATIONS = 1000
"""Combinations of adsorbate and catalyst that are listed; if there are more, only adsorbates and catalysts are."""


@dataclass(frozen=True)
class Statistics:
    """Numbers of a training set; kept with the model, because the trivial baselines are made of them."""

    elements: tuple[int, ...]
    """Atomic numbers that occur, ascending."""
    mean_energy: float
    """eV per system."""
    linear_reference: tuple[float, ...]
    """eV per atom of each element: least squares of the energies on the numbers of atoms of each element."""
    forces_rms: float
    """eV/Å, components on free atoms; 1 if there are no forces."""
    avg_num_neighbors: float
    """Neighbours of an atom within the model's cutoff, averaged over atoms."""
    energy_residual_rms: float = 1.0
    """eV per system, root mean square of what the linear reference leaves; 1 if it leaves nothing."""
    displacements_rms: float = 1.0
    """Å, components on free atoms; 1 if there are no relaxed positions."""


@dataclass(frozen=True)
class Domain:
    """The chemistry and the distances that a training set covers.

    A prediction outside of it is a guess; :mod:`equicat.models.domain` says so.
    """

    n_structures: int
    n_sampled: int
    """Structures whose distances were looked at."""
    largest: int
    """Atoms of the largest structure."""
    shortest: dict[str, float]
    """For each two elements that were neighbours within the cutoff, the shortest distance in Å: ``{"C-Cu": 1.84}``."""
    systems: dict[str, dict[str, int]]
    """Number of systems by adsorbate (tag 2) and catalyst (all other atoms, the smallest formula). The adsorbate ""
    is a clean slab, the catalyst "" a molecule without a slab. Empty if no atom has tag 2, or there are more than
    :data:`MAX_COMBINATIONS`."""
    adsorbates: dict[str, int]
    """Number of systems by adsorbate; empty if no atom has tag 2."""
    catalysts: dict[str, int]
    """Number of systems by catalyst; empty if no atom has tag 2."""
    adsorbate_elements: tuple[int, ...]
    """Atomic numbers of atoms with tag 2, ascending."""
    slab_elements: tuple[int, ...]
    """Atomic numbers of the other atoms, ascending."""

    def __or__(self, other: "Domain") -> "Domain":
        """The domain of both together, for a model that was trained on the one and then on the other."""
        shortest = dict(self.shortest)
        for pair, distance in other.shortest.items():
            shortest[pair] = min(distance, shortest.get(pair, distance))
        pairs = Counter[tuple[str, str]]()
        for domain in (self, other):
            pairs.update({(a, c): n for a, row in domain.systems.items() for c, n in row.items()})
        complete = all(d.systems or not d.adsorbates for d in (self, other))
        return Domain(
            n_structures=self.n_structures + other.n_structures,
            n_sampled=self.n_sampled + other.n_sampled,
            largest=max(self.largest, other.largest),
            shortest=shortest,
            systems=_nested(pairs) if complete else {},
            adsorbates=dict(Counter(self.adsorbates) + Counter(other.adsorbates)),
            catalysts=dict(Counter(self.catalysts) + Counter(other.catalysts)),
            adsorbate_elements=tuple(sorted({*self.adsorbate_elements, *other.adsorbate_elements})),
            slab_elements=tuple(sorted({*self.slab_elements, *other.slab_elements})),
        )


def pair_name(first: int, second: int) -> str:
    """Two elements by their atomic numbers, the lighter one first: ``C-Cu``."""
    low, high = sorted((first, second))
    return f"{chemical_symbols[low]}-{chemical_symbols[high]}"


def catalyst_name(numbers: Int[ndarray, "n_atoms"]) -> str:
    """The smallest formula with the elements of these atoms in their ratio: ``Cu3Pd``; of no atoms an empty text."""
    elements, counts = np.unique(numbers, return_counts=True)
    divisor = np.gcd.reduce(counts) if len(counts) else 1
    return formula_of(np.repeat(elements, counts // divisor).tolist())


def fit_statistics(dataset: AnyDataset, cutoff: float, energy: str = "energy") -> Statistics:
    """Statistics of a data set. Labels that are not finite are left out; training skips them and says so.

    Args:
        dataset: has the energies named, or no energies at all; may have forces (eV/Å) and relaxed positions (Å).
        cutoff: Å.
        energy: the energies that are trained on (eV): ``energy`` or ``relaxed_energy``.
    """
    elements = tuple(int(z) for z in dataset.elements)
    energies = _energies(dataset, energy)
    references, residual = reference_energies(dataset, elements, energy)
    free = ~np.asarray(dataset.array("fixed"))
    forces = displacements = np.ones((1, 3))
    if "forces" in dataset.fields:
        forces = np.asarray(dataset.array("forces"))[free]
    if "relaxed_positions" in dataset.fields:
        displacements = np.concatenate([s.displacements for s in dataset])[free]
    sample = np.random.default_rng(0).permutation(len(dataset))[:NEIGHBOR_SAMPLE]
    edges = sum(neighbor_list(dataset[int(i)], cutoff)[0].shape[1] for i in sample)
    atoms = int(np.sum(np.asarray(dataset.n_atoms)[sample]))
    return Statistics(
        elements=elements,
        mean_energy=float(energies[np.isfinite(energies)].mean()),
        linear_reference=references,
        forces_rms=_rms(forces),
        avg_num_neighbors=max(edges / atoms, 1.0),
        energy_residual_rms=residual,
        displacements_rms=_rms(displacements),
    )


def fit_domain(dataset: AnyDataset, cutoff: float, systems: Int[ndarray, "n_structures"]) -> Domain:
    """The domain of a data set.

    Compositions are those of all systems; distances are looked at in :data:`DISTANCE_SAMPLE` structures and some more
    for rare pairs of elements, about a millisecond each: seconds in all, however large the data set.

    Args:
        dataset: what is trained on.
        cutoff: of the model, Å.
        systems: the system of each structure (:func:`equicat.data.identity.system_numbers`).
    """
    elements = tuple(int(z) for z in dataset.elements)
    first = np.zeros(len(dataset), bool)
    first[np.unique(systems, return_index=True)[1]] = True
    present, combinations, begin = [], Counter[tuple[bytes, bytes]](), 0
    for numbers, tags, n_atoms in pieces(dataset, "numbers", "tags", "n_atoms"):
        adsorbate = np.asarray(tags) == 2
        on, under = (_counts(numbers, chosen, n_atoms, elements) for chosen in (adsorbate, ~adsorbate))
        present.append(on + under > 0)
        chosen = first[begin : begin + len(n_atoms)]
        combinations.update((a.tobytes(), c.tobytes()) for a, c in zip(on[chosen], under[chosen], strict=True))
        begin += len(n_atoms)
    named = Counter[tuple[str, str]]()
    on_total, under_total = np.zeros(len(elements), int), np.zeros(len(elements), int)
    for (a, c), n in combinations.items():
        on_counts, under_counts = (np.frombuffer(b, dtype=np.int64) for b in (a, c))
        on_total, under_total = on_total + on_counts, under_total + under_counts
        named[
            formula_of(np.repeat(elements, on_counts).tolist()), catalyst_name(np.repeat(elements, under_counts))
        ] += n
    tagged = bool(on_total.any())
    sample = _distance_sample(np.concatenate(present))
    return Domain(
        n_structures=len(dataset),
        n_sampled=len(sample),
        largest=int(np.max(dataset.n_atoms)),
        shortest=_shortest_distances(dataset, sample, cutoff, elements),
        systems=_nested(named) if tagged and len(named) <= MAX_COMBINATIONS else {},
        adsorbates=_totals(named, 0) if tagged else {},
        catalysts=_totals(named, 1) if tagged else {},
        adsorbate_elements=tuple(z for z, n in zip(elements, on_total, strict=True) if n),
        slab_elements=tuple(z for z, n in zip(elements, under_total, strict=True) if n),
    )


def _counts(
    numbers: ndarray, chosen: Bool[ndarray, "n_atoms"], n_atoms: Int[ndarray, "n"], elements: tuple[int, ...]
) -> Int[ndarray, "n n_elements"]:
    """Chosen atoms of each element in each structure."""
    column = np.full(len(chemical_symbols), -1)
    column[list(elements)] = np.arange(len(elements))
    flat = np.repeat(np.arange(len(n_atoms)), n_atoms) * len(elements) + column[np.asarray(numbers, dtype=np.int64)]
    counts = np.bincount(flat[chosen], minlength=len(n_atoms) * len(elements))
    return counts.reshape(len(n_atoms), len(elements))


def _nested(pairs: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for (adsorbate, catalyst), n in sorted(pairs.items()):
        table.setdefault(adsorbate, {})[catalyst] = n
    return table


def _totals(pairs: Mapping[tuple[str, str], int], which: int) -> dict[str, int]:
    totals = Counter[str]()
    for names, n in sorted(pairs.items()):
        totals[names[which]] += n
    return dict(totals)


def _distance_sample(present: Bool[ndarray, "n_structures n_elements"]) -> Int[ndarray, "n"]:
    """Structures to look at: evenly spread ones, and some for each two elements that occur together."""
    columns = np.asfortranarray(present)
    chosen = [evenly_spread(len(present), DISTANCE_SAMPLE)]
    if len(present) > DISTANCE_SAMPLE:
        for a in range(columns.shape[1]):
            for b in range(a, columns.shape[1]):
                rows = np.flatnonzero(columns[:, a] & columns[:, b])
                if len(rows):
                    chosen.append(rows[evenly_spread(len(rows), STRUCTURES_PER_PAIR)])
    return np.unique(np.concatenate(chosen))


def _shortest_distances(
    dataset: AnyDataset, sample: Int[ndarray, "n"], cutoff: float, elements: tuple[int, ...]
) -> dict[str, float]:
    n = len(elements)
    column = np.zeros(len(chemical_symbols), dtype=np.int64)
    column[list(elements)] = np.arange(n)
    shortest = np.full((n, n), np.inf)
    for i in sample:
        structure = dataset[int(i)]
        (center, neighbor), shift = neighbor_list(structure, cutoff)
        vectors = structure.positions[neighbor] + shift @ structure.cell - structure.positions[center]
        species = column[structure.numbers]
        np.minimum.at(shortest, (species[center], species[neighbor]), np.linalg.norm(vectors, axis=1))
    shortest = np.minimum(shortest, shortest.T)
    return {
        pair_name(elements[a], elements[b]): round(float(shortest[a, b]), 4)
        for a in range(n)
        for b in range(a, n)
        if np.isfinite(shortest[a, b])
    }


def _rms(values: ndarray) -> float:
    """Root mean square, a scale to divide by: 1 where there is nothing or nothing but zeros."""
    values = values[np.isfinite(values)]
    rms = float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0
    return rms if rms > 1e-8 else 1.0


def element_counts(
    dataset: AnyDataset, elements: tuple[int, ...], tag: int | None = None
) -> Float[ndarray, "n_structures n_elements"]:
    """Atoms of each element in each structure, or those with one tag."""
    numbers = np.asarray(dataset.array("numbers"))
    chosen = np.ones(len(numbers), bool) if tag is None else np.asarray(dataset.array("tags")) == tag
    return _counts(numbers, chosen, np.asarray(dataset.n_atoms), elements).astype(np.float64)


def reference_energies(
    dataset: AnyDataset, elements: tuple[int, ...], energy: str, tag: int | None = None
) -> tuple[tuple[float, ...], float]:
    """Least squares of the energies on the numbers of atoms of each element: eV per atom, and what it leaves.

    Args:
        dataset: has the energies named; without them all are taken to be 0.
        elements: atomic numbers.
        energy: the name of the energies, eV.
        tag: count atoms with this tag only.

    Returns:
        The energy of each element, and the root mean square per system of the rest in eV (1 if there is none).
    """
    counts, energies = element_counts(dataset, elements, tag), _energies(dataset, energy)
    known = np.isfinite(energies)
    counts, energies = counts[known], energies[known]
    references = linear_reference(counts, energies)
    return tuple(references.tolist()), _rms(energies - counts @ references)


def _energies(dataset: AnyDataset, name: str) -> Float[ndarray, "n_structures"]:
    """The energies of that name, zeros where a data set has none."""
    if name not in dataset.fields:
        return np.zeros(len(dataset))
    return np.asarray(dataset.array(name), dtype=np.float64)


def linear_reference(
    counts: Float[ndarray, "n_structures n_elements"], energies: Float[ndarray, "n_structures"]
) -> Float[ndarray, "n_elements"]:
    """Least-squares energy of each element; the smallest solution where compositions leave it open."""
    return np.linalg.lstsq(counts, energies, rcond=1e-8)[0]


def evenly_spread(n_total: int, n: int) -> Int[ndarray, "n_drawn"]:
    """Numbers, ascending, of ``n`` of ``n_total`` structures at equal distances, the ends among them; all if fewer."""
    return np.unique(np.linspace(0, n_total - 1, n).round().astype(np.int64))
