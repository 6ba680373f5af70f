"""The neighbour list against ASE's, and against all images in reach, over whatever cells a user may bring."""

import time

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list as ase_neighbor_list
from cells import ALL, SLAB, THREE, random_structure, skewed_structure

from equicat import InputError, Structure
from equicat.data import neighbors as module
from equicat.data.neighbors import neighbor_list


def as_set(edge_index, edge_shift):
    return sorted(map(tuple, np.concatenate([edge_index, edge_shift.T]).T.tolist()))


@pytest.mark.parametrize("seed", range(40))
def test_agrees_with_ase(seed):
    s = random_structure(seed)
    cutoff = 5.0
    i, j, shift = ase_neighbor_list("ijS", s.to_ase(), cutoff)
    edge_index, edge_shift = neighbor_list(s, cutoff)
    assert as_set(edge_index, edge_shift) == as_set(np.stack([i, j]), shift)
    assert (np.diff(edge_index[0]) >= 0).all(), "edges are sorted by centre"
    vec = s.positions[edge_index[1]] + edge_shift @ s.cell - s.positions[edge_index[0]]
    assert (np.linalg.norm(vec, axis=1) < cutoff).all()


def test_isolated_atom_has_no_edges():
    edge_index, edge_shift = neighbor_list(Structure(np.array([1]), np.zeros((1, 3))), 6.0)
    assert edge_index.shape == (2, 0)
    assert edge_shift.shape == (0, 3)


def test_coincident_atoms_are_named():
    s = Structure(np.array([1, 8, 1]), np.array([[0, 0, 0], [3.0, 0, 0], [3.0, 0, 0.001]]), source="a.xyz, frame 4")
    with pytest.raises(InputError, match=r"a.xyz, frame 4: atoms 1 and 2 are 0.0010 Å apart"):
        neighbor_list(s, 5.0)


def test_cap_keeps_the_nearest_and_all_ties():
    # A perfect fcc crystal has shells of 12, 6, 24: a cap of 14 cuts the second shell, so all 18 stay.
    a = 4.0
    cell = a / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0.0]])
    s = Structure(np.array([29]), np.zeros((1, 3)), cell, np.ones(3, bool))
    assert neighbor_list(s, 1.3 * a)[0].shape[1] == 42
    assert neighbor_list(s, 1.3 * a, max_neighbors=12)[0].shape[1] == 12
    assert neighbor_list(s, 1.3 * a, max_neighbors=14)[0].shape[1] == 18
    assert neighbor_list(s, 1.3 * a, max_neighbors=1000)[0].shape[1] == 42


def test_cap_keeps_the_shortest_of_each_centre():
    rng = np.random.default_rng(0)
    s = Structure(np.full(30, 6), rng.uniform(0, 7, (30, 3)))
    full, _ = neighbor_list(s, 6.0)
    capped, _ = neighbor_list(s, 6.0, max_neighbors=5)
    lengths = np.linalg.norm(np.diff(s.positions[full.T], axis=1)[:, 0], axis=1)
    for i in range(30):
        mine = full[0] == i
        nearest = full[1][mine][lengths[mine] <= np.sort(lengths[mine])[4] + 1e-3]
        assert set(capped[1][capped[0] == i]) == set(nearest)


def test_atoms_outside_the_cell_and_ase_round_trip():
    atoms = Atoms(
        "Cu2", positions=[[0, 0, 0], [30.5, -20, 7]], cell=[[2, 0, 0], [1.5, 2, 0], [0.3, 0.2, 2.5]], pbc=True
    )
    assert neighbor_list(Structure.from_ase(atoms), 6.0)[0].shape[1] == len(ase_neighbor_list("i", atoms, 6.0))


# ---- every cell ----------------------------------------------------------------------------------------------------


def brute_force(structure: Structure, cutoff: float) -> list[tuple[int, ...]]:
    """Centre, neighbour and shift of every pair, from all images that the cutoff can reach."""
    lattice, n = structure.cell[structure.pbc], len(structure)
    inverse = np.linalg.pinv(lattice)
    reach = cutoff * np.linalg.norm(inverse, axis=0)
    pairs = []
    for i in range(n):
        for j in range(n):
            vector = structure.positions[j] - structure.positions[i]
            lowest = np.floor(-vector @ inverse - reach).astype(int)
            n_images = np.ceil(-vector @ inverse + reach).astype(int) - lowest + 1
            shifts = lowest + np.indices(n_images).reshape(len(lattice), int(n_images.prod())).T
            near = np.linalg.norm(vector + shifts @ lattice, axis=1) < cutoff
            for shift in shifts[near]:
                if i != j or shift.any():
                    whole = np.zeros(3, int)
                    whole[structure.pbc] = shift
                    pairs.append((i, j, *whole.tolist()))
    return sorted(pairs)


@pytest.mark.parametrize("search", [module._pairs, module._by_tree])
def test_both_searches_find_what_all_images_in_reach_give(search):
    rng = np.random.default_rng(0)
    n_compared = 0
    for _ in range(120):
        structure, cutoff = skewed_structure(rng), rng.uniform(2, 6)
        volume = np.linalg.svd(structure.cell[structure.pbc])[1].prod()
        if volume < 0.05 * cutoff ** structure.pbc.sum():
            continue  # thousands of neighbours
        centers, neighbors, shifts, distances = search(structure, cutoff)
        found = sorted(map(tuple, np.column_stack([centers, neighbors, shifts]).tolist()))
        assert found == brute_force(structure, cutoff)
        vectors = structure.positions[neighbors] + shifts @ structure.cell - structure.positions[centers]
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), distances, atol=1e-8)
        n_compared += 1
    assert n_compared > 80


@pytest.mark.parametrize("pbc", [ALL, SLAB, np.array([False, True, False]), np.zeros(3, bool)])
@pytest.mark.parametrize("distance", [1e3, 1e5, 2e6, 4e7])
def test_a_far_atom_is_alone_and_costs_nothing(distance, pbc):
    """The grid of a box as long as that would take half a minute at 1e5 Å, and crash beyond."""
    positions = THREE + np.array([[0, 0, 0], [0, 0, 0], [0, 0, distance]])
    structure = Structure(np.array([29, 29, 8]), positions, np.diag([8.0, 8, 2 * distance]), pbc)
    neighbor_list(structure, 5.0)  # imports
    started = time.thread_time()
    edge_index, edge_shift = neighbor_list(structure, 5.0)
    assert time.thread_time() - started < 0.1
    assert edge_index.T.tolist() == [[0, 1], [1, 0]]
    assert not edge_shift.any()


@pytest.mark.parametrize("lengths", [(8, 8, 1e6), (1e6, 8, 1e6), (9e7, 9e7, 9e7)])
def test_a_long_cell_is_as_good_as_one_with_some_vacuum(lengths):
    found = [
        neighbor_list(Structure(np.array([29, 29, 8]), THREE, np.diag([*map(float, vectors)]), ALL), 5.0)
        for vectors in (lengths, np.minimum(lengths, 30))
    ]
    assert as_set(*found[0]) == as_set(*found[1])


def test_a_long_thin_structure():
    """More cells of the grid than Vesin keeps, one beside the other: it would divide by zero."""
    n = 103_000
    chain = Structure(np.full(n, 6), np.arange(n)[:, None] * np.array([[4.9, 0, 0]]))
    assert neighbor_list(chain, 5.0)[0].shape[1] == 2 * n - 2


def test_wrapped_or_not_the_pairs_have_the_same_vectors():
    rng = np.random.default_rng(3)
    cell = np.array([[7.0, 0, 0], [3, 6, 0], [0, 1, 9]])
    positions = rng.uniform(0, 6, (8, 3))
    vectors = []
    for images in (np.zeros((8, 3)), rng.integers(-5, 6, (8, 3)), rng.integers(-(10**7), 10**7, (8, 3))):
        s = Structure(np.full(8, 29), positions + images @ cell, cell, ALL)
        (i, j), shift = neighbor_list(s, 5.0)
        order = np.lexsort((j, i))
        r = (s.positions[j] + shift @ cell - s.positions[i])[order]
        vectors.append(np.array(sorted(r.round(5).tolist())))
    np.testing.assert_allclose(vectors[1], vectors[0], atol=2e-5)
    assert len(vectors[2]) == len(vectors[0])


class TestCrowds:
    @pytest.mark.parametrize("n_atoms", [1, 50])
    def test_a_cell_in_another_unit(self, n_atoms):
        positions = np.random.default_rng(0).random((n_atoms, 3)) * 0.1
        s = Structure(np.full(n_atoms, 29), positions, 0.1 * np.eye(3), ALL, source="nm.xyz, frame 2")
        with pytest.raises(InputError, match=r"nm.xyz, frame 2: an atom has some [\d,]+ neighbours .* in Å\?"):
            neighbor_list(s, 6.0)

    def test_positions_in_another_unit(self):
        s = Structure(np.full(20_000, 29), np.random.default_rng(0).random((20_000, 3)))
        with pytest.raises(InputError, match="an atom has some"):
            neighbor_list(s, 5.0)

    def test_many_atoms_are_no_crowd(self):
        positions = 2.5 * np.indices((20, 20, 20)).reshape(3, -1).T
        for pbc in (ALL, np.zeros(3, bool)):
            s = Structure(np.full(8000, 29), positions, 50.0 * np.eye(3), pbc)
            assert neighbor_list(s, 2.6)[0].shape[1] == 6 * 8000 - (0 if pbc.all() else 6 * 400)

    def test_an_atom_on_its_own_image(self):
        cell = np.array([[0.005, 0, 0], [0, 900.0, 0], [0, 0, 900.0]])
        s = Structure(np.array([29]), np.zeros((1, 3)), cell, ALL)
        with pytest.raises(InputError, match=r"atom 0 and its own periodic image are 0.0050 Å apart"):
            neighbor_list(s, 5.0)
