"""Systems are counted by sid, and structures that a model has seen are recognised whatever a file does to them."""

import dataclasses

import numpy as np
import pytest
from conftest import labelled

from equicat import Structure
from equicat.data.datasets import MemoryDataset, Subset, open_dataset
from equicat.data.identity import (
    TrainedOn,
    has_ids,
    n_systems,
    structure_keys,
    system_keys,
    system_numbers,
)
from equicat.data.info import DatasetInfo
from equicat.data.readers import write
from equicat.data.store import write_store
from equicat.errors import InputError


def changed(structure: Structure, digits: int = 9, seed: int = 0, **fields) -> Structure:
    """A structure as another program may write it: atoms in another order, in other images, rounded."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(structure))
    arrays = {name: getattr(structure, name)[order] for name in ("numbers", "fixed", "tags")}
    images = rng.integers(-1, 2, (len(structure), 3)) * structure.pbc
    positions = np.round(structure.positions[order] + images @ structure.cell, digits)
    return dataclasses.replace(structure, **arrays, positions=positions, forces=None, energy=None, **fields)


def moved(structure: Structure, by: float) -> Structure:
    """The structure with its last atom elsewhere."""
    positions = structure.positions.copy()
    positions[-1] += by
    return dataclasses.replace(structure, positions=positions)


KNOWN = [labelled(k) for k in range(12)]


def seen(structures: list[Structure]) -> int:
    """How many of the structures, without ids, were trained on, by a model that was trained on KNOWN."""
    trained_on = TrainedOn.of(MemoryDataset(KNOWN), MemoryDataset([labelled(99)]))
    anonymous = [dataclasses.replace(s, sid="", source=f"{k}.xyz, frame 0") for k, s in enumerate(structures)]
    return trained_on.overlap(MemoryDataset(anonymous))[0]


@pytest.mark.parametrize("digits", [9, 5, 4])
def test_a_structure_is_recognised_in_another_order_image_and_precision(digits):
    assert seen([changed(s, digits, seed) for seed, s in enumerate(KNOWN)]) == len(KNOWN)


def test_another_structure_is_not_recognised():
    assert seen([labelled(k) for k in range(12, 60)]) == 0
    assert seen([moved(s, 0.1) for s in KNOWN]) == 0
    assert (
        seen([dataclasses.replace(s, numbers=np.r_[s.numbers[1:], 29 if s.numbers[0] == 8 else 8]) for s in KNOWN]) == 0
    )


def test_molecules_without_a_cell_are_recognised_too():
    rng = np.random.default_rng(0)
    molecules = [Structure(np.array([6, 8, 1, 1]), rng.normal(size=(4, 3))) for _ in range(40)]
    trained_on = TrainedOn.of(MemoryDataset(molecules[:20]), MemoryDataset(molecules[20:21]))
    again = [changed(m, 5, source=f"{k}, frame 0") for k, m in enumerate(molecules)]
    assert trained_on.overlap(MemoryDataset(again)) == (20, 1)


def test_a_store_and_a_file_give_the_same_keys(tmp_path):
    write_store(tmp_path / "double", KNOWN, DatasetInfo())
    write_store(tmp_path / "single", KNOWN, DatasetInfo(), precision="float32")
    write(tmp_path / "file.extxyz", KNOWN)
    keys = [structure_keys(open_dataset(tmp_path / name)) for name in ("double", "single", "file.extxyz")]
    assert (keys[0] == keys[1]).all()
    assert (keys[0] == keys[2]).all()
    ids = [system_keys(open_dataset(tmp_path / name)) for name in ("double", "file.extxyz")]
    assert (ids[0] == ids[1]).all()
    subset = Subset(open_dataset(tmp_path / "double"), np.array([7, 2]))
    assert (structure_keys(subset) == keys[0][[2, 7]]).all()


def test_other_frames_of_a_relaxation_are_known_by_its_id():
    trained_on = TrainedOn.of(MemoryDataset(KNOWN), MemoryDataset([labelled(99)]))
    later = MemoryDataset([dataclasses.replace(moved(s, 0.5), fid=7) for s in KNOWN[:3]])
    assert trained_on.overlap(later) == (3, 0)
    strangers = MemoryDataset([dataclasses.replace(labelled(50 + k), sid=s.sid) for k, s in enumerate(KNOWN[:3])])
    assert trained_on.overlap(strangers) == (0, 0), "the same id for other atoms is another system"


def test_systems_are_counted_by_id():
    frames = [dataclasses.replace(labelled(0), sid=sid, fid=k) for k, sid in enumerate("abacb")]
    dataset = MemoryDataset(frames)
    assert has_ids(dataset)
    assert n_systems(dataset) == 3
    assert system_numbers(dataset).tolist() == [0, 1, 0, 2, 1]
    assert n_systems(Subset(dataset, np.array([0, 2]))) == 1


def test_without_ids_frames_of_a_file_with_the_same_atoms_are_one_system():
    def frames(file: str, seed: int) -> list[Structure]:
        start = dataclasses.replace(labelled(seed), sid="")
        return [dataclasses.replace(moved(start, 0.2 * k), source=f"{file}, frame {k}") for k in range(3)]

    one = frames("a/OUTCAR", 0)
    assert n_systems(MemoryDataset(one)) == 1
    assert n_systems(MemoryDataset([*one, *frames("b/OUTCAR", 0)])) == 2, "two files are two relaxations"
    assert n_systems(MemoryDataset([*one, *frames("a/OUTCAR", 1)])) == 2, "other atoms in one file"
    assert len(system_keys(MemoryDataset(one))) == 0


def test_of_a_large_store_evenly_spread_shards_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("equicat.data.store.SHARD_SIZE", 3)
    write_store(tmp_path / "store", KNOWN, DatasetInfo())
    keys = structure_keys(open_dataset(tmp_path / "store"))
    few = structure_keys(open_dataset(tmp_path / "store"), most=6)
    assert few.tolist() == keys[[0, 1, 2, 9, 10, 11]].tolist()


def test_keys_are_kept_in_a_file(tmp_path):
    trained_on = TrainedOn.of(MemoryDataset(KNOWN), MemoryDataset([labelled(99)]))
    trained_on.write(tmp_path / "keys.npz")
    again = TrainedOn.read(tmp_path / "keys.npz")
    assert again is not None
    assert again.overlap(MemoryDataset(KNOWN)) == (12, 0)
    both = again | TrainedOn.of(MemoryDataset([labelled(50)]), MemoryDataset([labelled(51)]))
    assert both.overlap(MemoryDataset([labelled(k) for k in (0, 50, 51, 99, 70)])) == (2, 2)
    assert TrainedOn.read(tmp_path / "nothing.npz") is None
    (tmp_path / "keys.npz").write_text("no archive")
    with pytest.raises(InputError, match=r"keys\.npz: damaged"):
        TrainedOn.read(tmp_path / "keys.npz")
