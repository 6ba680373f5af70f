"""Lists made in PyTorch for many systems at once, against the search in NumPy arrays; here the device is a CPU."""

import dataclasses

import numpy as np
import pytest
import torch
from cells import ALL, SLAB, THREE, random_structure, skewed_structure

from equicat import InputError, Structure
from equicat.data import device_neighbors as module
from equicat.data.batch import Batch
from equicat.data.device_neighbors import neighbor_lists
from equicat.data.neighbors import neighbor_list


def joined(structures):
    return torch.from_numpy(np.concatenate([s.positions for s in structures]))


def from_host(*_):
    raise AssertionError("the search in NumPy arrays was asked")


def check(structures, cutoff, monkeypatch):
    """Same pairs as one list after the other, found in PyTorch, sorted by centre, and shorter than the cutoff."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "_on_host", from_host)
        index, shift = neighbor_lists(structures, joined(structures), cutoff)
    assert (index[0].diff() >= 0).all()
    first, expected = 0, []
    for s in structures:
        other, other_shift = neighbor_list(s, cutoff)
        expected.append(np.concatenate([other + first, other_shift.T]).T)
        first += len(s)
    found = torch.cat([index, shift.t()]).t().numpy()
    assert sorted(found.tolist()) == sorted(np.concatenate(expected).tolist())
    return len(found)


def test_many_systems_of_any_kind_at_once(monkeypatch):
    assert check([random_structure(seed) for seed in range(40)], 5.0, monkeypatch) > 1_000


def test_skewed_cells_and_far_atoms_at_once(monkeypatch):
    rng = np.random.default_rng(1)
    structures = [skewed_structure(rng) for _ in range(120)]
    volume = [np.linalg.svd(s.cell[s.pbc])[1].prod() for s in structures]
    kept = [s for s, v in zip(structures, volume, strict=True) if v > 0.05 * 5.0 ** s.pbc.sum()]
    assert len(kept) > 80
    check(kept, 5.0, monkeypatch)


@pytest.mark.parametrize("pbc", [ALL, SLAB, np.array([False, True, False]), np.zeros(3, bool)])
@pytest.mark.parametrize("distance", [1e3, 1e5, 4e7])
def test_a_far_atom_costs_nothing(distance, pbc, monkeypatch):
    positions = THREE + np.array([[0, 0, 0], [0, 0, 0], [0, 0, distance]])
    far = Structure(np.array([29, 29, 8]), positions, np.diag([8.0, 8, 2 * distance]), pbc)
    assert check([far, random_structure(3)], 5.0, monkeypatch) > 2


def crystal(n: int, cutoff: float = 5.0) -> Structure:
    """Rattled fcc copper of 4 n³ atoms."""
    rng = np.random.default_rng(0)
    cubic = 3.61 * np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    steps = 3.61 * np.indices((n, n, n)).reshape(3, -1).T
    positions = (steps[:, None] + cubic).reshape(-1, 3) + rng.normal(scale=0.05, size=(4 * n**3, 3))
    return Structure(np.full(4 * n**3, 29), positions, 3.61 * n * np.eye(3), ALL)


@pytest.mark.parametrize("candidates", [10, 20_000, 10**9])
def test_a_crystal_in_parts_of_any_size(candidates, monkeypatch):
    monkeypatch.setattr(module, "CANDIDATES", candidates)
    monkeypatch.setattr(module, "FIRST_CENTERS", 100)
    check([crystal(4), crystal(1)], 5.0, monkeypatch)


def test_little_is_looked_at_in_vain():
    structures = [crystal(6)]
    home = module._Home.of(joined(structures), module._Lattices.of(structures, 6.0), np.array([864]))
    columns = module._Columns.of(home, int(home.n_images.sum()), 6.0)
    candidates = sum(n for *_, n in columns.stretches(home))
    assert candidates < 2.2 * neighbor_list(structures[0], 6.0)[0].shape[1]


@pytest.mark.parametrize("limit", ["MAX_IMAGES", "MAX_INTEGER", "MAX_NEIGHBORS"])
def test_more_than_can_be_served_goes_to_the_other_search(limit, monkeypatch):
    structures = [dataclasses.replace(crystal(2), positions=crystal(2).positions + 30), random_structure(7)]
    expected = neighbor_lists(structures, joined(structures), 9.0)
    monkeypatch.setattr(module, limit, 5)
    found = neighbor_lists(structures, joined(structures), 9.0)
    for lists in (expected, found):
        assert (lists[0][0].diff() >= 0).all()
    rows = [sorted(torch.cat([i, s.t()]).t().tolist()) for i, s in (expected, found)]
    assert rows[0] == rows[1]


def test_atoms_at_the_same_place_are_named_in_their_system():
    positions = np.array([[0, 0, 0], [3.0, 0, 0], [3.0, 0, 0.001]])
    broken = Structure(np.array([1, 8, 1]), positions, source="a.xyz, frame 4")
    with pytest.raises(InputError, match=r"a.xyz, frame 4: atoms 1 and 2 are 0.0010 Å apart"):
        neighbor_lists([crystal(1), broken], joined([crystal(1), broken]), 5.0)
    twice = Structure(np.array([1, 8]), np.ones((2, 3)), source="b.xyz")
    with pytest.raises(InputError, match=r"b.xyz: atoms 0 and 1 are 0.0000 Å apart"):
        neighbor_lists([twice, crystal(1)], joined([twice, crystal(1)]), 5.0)


def test_a_crowd_is_refused():
    crowd = Structure(np.full(6_000, 29), np.random.default_rng(0).random((6_000, 3)), source="nm.xyz")
    with pytest.raises(InputError, match=r"nm.xyz: an atom has some"):
        neighbor_lists([crowd], joined([crowd]), 5.0)


def test_nothing_has_no_edges():
    single = Structure(np.array([1]), np.zeros((1, 3)))
    index, shift = neighbor_lists([single, single], joined([single, single]), 5.0)
    assert (index.shape, shift.shape) == ((2, 0), (0, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_batch_on_a_gpu_is_that_of_the_processor():
    structures = [crystal(4), *(random_structure(seed) for seed in range(20))]
    there, here = (Batch.from_structures(structures, 5.0, device=device) for device in ("cuda", "cpu"))
    assert {t.device.type for t in vars(there).values() if isinstance(t, torch.Tensor)} == {"cuda"}
    rows = [torch.cat([b.edge_index, b.edge_shift.t()]).t().tolist() for b in (there, here)]
    assert sorted(rows[0]) == sorted(rows[1])
    assert (there.edge_index[0].diff() >= 0).all()
    assert torch.equal(there.positions.cpu(), here.positions)
