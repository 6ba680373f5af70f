"""The neighbour list against ASE's, over whatever cells a user may bring."""

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list as ase_neighbor_list

from equicat import InputError, Structure
from equicat.data.neighbors import neighbor_list


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
