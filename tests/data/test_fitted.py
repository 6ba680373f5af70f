"""A training set covers compositions of all systems, and distances in a sample that misses no pair of elements."""

import dataclasses

import numpy as np
import pytest
from conftest import labelled

from equicat import Structure
from equicat.data import fitted
from equicat.data.datasets import MemoryDataset
from equicat.data.fitted import Domain, catalyst_name, fit_domain
from equicat.data.identity import system_numbers

CELL = np.diag([8.0, 8.0, 20.0])
SLAB = np.array([[0.0, 0, 0], [2.5, 0, 0], [0, 2.5, 0], [2.5, 2.5, 0]])


def system(sid: str, slab: list[int], adsorbate: list[int], height: float = 2.0) -> Structure:
    """Four atoms in a plane, and an adsorbate above the first one, its atoms 1.2 Å apart."""
    above = np.array([[0.0, 0, height + 1.2 * k] for k in range(len(adsorbate))]).reshape(-1, 3)
    return Structure(
        np.array([*slab, *adsorbate]),
        np.concatenate([SLAB[: len(slab)], above]),
        CELL,
        np.ones(3, bool),
        tags=np.array([1] * len(slab) + [2] * len(adsorbate)),
        sid=sid,
    )


def covered(structures: list[Structure], cutoff: float = 4.0) -> Domain:
    dataset = MemoryDataset(structures)
    return fit_domain(dataset, cutoff, system_numbers(dataset))


CU, CU3PD = [29] * 4, [29, 29, 29, 46]
EXAMPLES = [
    system("a", CU, [8]),
    system("a", CU, [8], 1.8),
    system("b", CU, [6, 8]),
    system("c", CU3PD, [8]),
    system("d", CU, []),
    system("e", [], [1, 1]),
]


def test_systems_are_counted_by_adsorbate_and_catalyst():
    domain = covered(EXAMPLES)
    assert domain.systems == {"": {"Cu": 1}, "CO": {"Cu": 1}, "H2": {"": 1}, "O": {"Cu": 1, "Cu3Pd": 1}}
    assert domain.adsorbates == {"": 1, "CO": 1, "H2": 1, "O": 2}
    assert domain.catalysts == {"Cu": 3, "": 1, "Cu3Pd": 1}
    assert domain.adsorbate_elements == (1, 6, 8)
    assert domain.slab_elements == (29, 46)
    assert (domain.n_structures, domain.n_sampled, domain.largest) == (6, 6, 6)


def test_the_shortest_distance_of_neighbours_of_each_two_elements():
    shortest = covered(EXAMPLES).shortest
    assert shortest["O-Cu"] == 1.8
    assert shortest["C-O"] == 1.2
    assert shortest["C-Cu"] == 2.0
    assert shortest["Cu-Cu"] == 2.5
    assert shortest["H-H"] == 1.2
    assert "C-Pd" not in shortest, "never in one structure"
    assert "O-Pd" not in covered(EXAMPLES, cutoff=3.0).shortest, "in one structure, not neighbours"


def test_distances_see_periodic_images():
    alone = dataclasses.replace(system("a", [29], []), cell=np.diag([3.0, 9.0, 9.0]))
    assert covered([alone]).shortest == {"Cu-Cu": 3.0}


def test_without_tags_there_are_no_adsorbates():
    domain = covered([dataclasses.replace(s, tags=np.zeros(len(s), np.int64)) for s in EXAMPLES])
    assert (domain.systems, domain.adsorbates, domain.catalysts) == ({}, {}, {})
    assert domain.adsorbate_elements == ()
    assert domain.shortest == covered(EXAMPLES).shortest


def test_a_sample_has_every_two_elements_that_occur_together(monkeypatch):
    monkeypatch.setattr(fitted, "DISTANCE_SAMPLE", 3)
    monkeypatch.setattr(fitted, "STRUCTURES_PER_PAIR", 1)
    structures = [system(f"s{k}", CU, [8]) for k in range(50)]
    structures[17] = system("rare", CU3PD, [6])
    domain = covered(structures, cutoff=5.0)
    assert domain.n_sampled < 12
    assert {"C-Pd", "C-Cu", "Cu-Pd", "O-Cu"} <= set(domain.shortest)


def test_too_many_combinations_are_not_listed(monkeypatch):
    monkeypatch.setattr(fitted, "MAX_COMBINATIONS", 2)
    domain = covered(EXAMPLES)
    assert domain.systems == {}
    assert domain.adsorbates["O"] == 2
    merged = domain | domain
    assert merged.systems == {}


def test_two_trainings_cover_what_either_does():
    first, second = covered(EXAMPLES[:2]), covered([system("f", CU, [8], 1.5), *EXAMPLES[3:]])
    both = first | second
    assert both.systems["O"] == {"Cu": 2, "Cu3Pd": 1}
    assert both.shortest["O-Cu"] == 1.5
    assert both.n_structures == 6
    assert both.adsorbate_elements == (1, 8)


@pytest.mark.parametrize(
    ("numbers", "name"), [([29] * 12, "Cu"), ([29] * 9 + [46] * 3, "Cu3Pd"), ([22] * 4 + [8] * 8, "TiO2"), ([], "")]
)
def test_catalysts_are_called_by_their_smallest_formula(numbers, name):
    assert catalyst_name(np.array(numbers, dtype=np.int64)) == name


def test_the_domain_of_real_looking_slabs():
    domain = covered([labelled(k) for k in range(8)])
    assert domain.n_structures == 8
    assert min(domain.shortest.values()) > 0.5
