"""Several data sets as one: every structure so often, energies of one zero, and the attributes of a data set."""

import dataclasses

import numpy as np
import pytest
from conftest import labelled

from equicat.data.datasets import Joined, MemoryDataset, Part, Subset, require_elements
from equicat.data.fitted import fit_statistics
from equicat.data.info import DatasetInfo
from equicat.data.joined import own_zero, repeated, zeros_of
from equicat.data.store import write_store
from equicat.data.training_data import DataConfig, training_data
from equicat.errors import InputError

SHIFTS = np.zeros(120)
SHIFTS[[8, 29]] = -3.0, -20.0
"""eV an atom: the zero of another code."""
LABELS = ("energy", "forces")


def shifted(seed: int):
    structure = labelled(seed)
    return dataclasses.replace(structure, energy=structure.energy + float(SHIFTS[structure.numbers].sum()))


@pytest.fixture(scope="module")
def sets():
    new = MemoryDataset([labelled(seed) for seed in range(6)])
    old = MemoryDataset([shifted(seed) for seed in range(6, 16)])
    return new, old


def test_structures_of_all_come_one_after_the_other(sets):
    new, old = sets
    joined = Joined([Part(new), Part(Subset(old, np.array([1, 3])))])
    assert len(joined) == 8
    assert [s.sid for s in joined] == [*(f"s{k}" for k in range(6)), "s7", "s9"]
    assert joined[-1].sid == "s9"
    np.testing.assert_array_equal(joined.array("n_atoms"), [len(s) for s in joined])
    np.testing.assert_array_equal(joined.array("positions"), np.concatenate([s.positions for s in joined]))
    np.testing.assert_array_equal(joined.array("energy"), [s.energy for s in joined])
    with pytest.raises(IndexError):
        joined[8]
    with pytest.raises(InputError, match="no field 'stress'"):
        joined.array("stress")
    require_elements(joined, (8, 29))
    assert fit_statistics(joined, 4.0).elements == (8, 29)


def test_a_structure_occurs_so_often(sets):
    _, old = sets
    rng = np.random.default_rng(0)
    sids = [s.sid for s in repeated(old, 2.3, rng)]
    counts = [sids.count(s.sid) for s in old]
    assert sorted(counts) == [2] * 7 + [3] * 3
    half = repeated(Subset(old, np.array([0, 2, 4, 6])), 0.5, rng)
    assert len(half) == 2
    assert {s.sid for s in half} <= {"s6", "s8", "s10", "s12"}


def test_energies_of_another_zero_are_shifted_onto_the_main_ones(sets):
    """Energies are not linear in composition, so the two fits differ by the shift and a part of what is left."""
    new, old = sets
    same = MemoryDataset([labelled(seed) for seed in range(6, 16)])
    zero = own_zero(old, new, "energy")
    plain = own_zero(same, new, "energy")
    for z in (8, 29):
        assert zero[z] - plain[z] == pytest.approx(SHIFTS[z], abs=1e-8)
    joined = Joined([Part(old, zeros_of(old, zero))])
    expected = np.array([s.energy for s in same]) - zeros_of(same, plain)
    np.testing.assert_allclose(joined.array("energy"), expected, atol=1e-8)
    np.testing.assert_allclose([s.energy for s in joined], expected, atol=1e-8)


def test_further_data_are_trained_on_and_validated_apart(data, tmp_path):
    write_store(tmp_path / "old" / "s2ef" / "train", [shifted(k) for k in range(40, 50)], DatasetInfo("adsorption"))
    write_store(tmp_path / "old" / "s2ef" / "val_id", [shifted(k) for k in range(50, 53)], DatasetInfo("adsorption"))
    also = {str(tmp_path / "old"): 0.5}
    config = DataConfig((str(data),), (str(data),), also=also, also_zero="own")
    train, val = training_data(config, "s2ef", LABELS)
    alone, val_alone = training_data(dataclasses.replace(config, also={}), "s2ef", LABELS)
    assert len(train) == len(alone) + 5
    assert [s.sid for s in val] == [s.sid for s in val_alone]
    assert list(train.held_out) == ["old"]
    assert [s.sid for s in train.held_out["old"]] == ["s50", "s51", "s52"]
    usual = np.abs([s.energy for s in alone]).max()
    assert np.abs(train.array("energy")).max() < 2 * usual, "not tens of eV an atom"
    assert np.abs(train.held_out["old"].array("energy")).max() < 2 * usual


def test_energies_of_another_kind_are_refused(data, tmp_path):
    write_store(tmp_path / "old", [labelled(1)], DatasetInfo("total"))
    config = DataConfig((str(data),), (str(data),), also={str(tmp_path / "old"): 1.0})
    with pytest.raises(InputError, match=r"old: its energies are 'total', those of data.train 'adsorption'"):
        training_data(config, "s2ef", LABELS)


def test_labels_that_do_not_count_need_not_be_there(data, tmp_path):
    """Bare structures have forces alone; the statistics of energies are those of the main data."""
    bare = [dataclasses.replace(labelled(k), energy=None) for k in range(40, 45)]
    write_store(tmp_path / "bare" / "s2ef" / "train", bare, DatasetInfo("total"))
    path = str(tmp_path / "bare")
    config = DataConfig((str(data),), (str(data),), also={path: 1.0})
    with pytest.raises(InputError, match="no label 'energy'"):
        training_data(config, "s2ef", LABELS)
    weights = {"also_energy_weight": {path: 0.0}, "also_forces_weight": {path: 0.5}}
    train, _ = training_data(dataclasses.replace(config, **weights), "s2ef", LABELS)
    alone, _ = training_data(dataclasses.replace(config, also={}), "s2ef", LABELS)
    energies = train.array("energy")
    assert np.isnan(energies).tolist() == [False] * len(alone) + [True] * 5
    assert train.weights() == (len(alone), len(alone) + 2.5)
    statistics = fit_statistics(train, 4.0)
    assert statistics.linear_reference == fit_statistics(alone, 4.0).linear_reference
    assert statistics.mean_energy == pytest.approx(alone.array("energy").mean())
    np.testing.assert_array_equal(train[-1].forces, bare[-1].forces)
    assert (train[-1].energy, train[-1].energy_weight, train[-1].forces_weight) == (0.0, 0.0, 0.5)
    assert (train[0].energy_weight, train[0].forces_weight) == (1.0, 1.0)


def test_bad_forces_count_nowhere(sets):
    new, old = sets
    joined = Joined([Part(new), Part(old, forces_weight=0.0)])
    n = int(new.n_atoms.sum())
    assert np.isnan(joined.array("forces")[n:]).all()
    np.testing.assert_array_equal(joined.array("forces")[:n], new.array("forces"))
    assert not joined[-1].forces.any()
    assert joined[-1].energy == old[-1].energy
    assert fit_statistics(joined, 4.0).forces_rms == fit_statistics(new, 4.0).forces_rms


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"also_energy_weight": {"data/odl": 0.0}}, r"data/odl is not in data.also \(did you mean 'data/old'\?\)"),
        ({"also_energy_weight": {"data/old": 0.0}, "also_zero": "own"}, "no energies in data.also that count"),
        ({"also_forces_weight": {"data/old": -1.0}}, "also_forces_weight"),
    ],
)
def test_weights_without_an_effect_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        DataConfig(("data/new",), also={"data/old": 1.0}, **options)


def test_data_of_which_nothing_counts_are_refused(data):
    nothing = {"also_energy_weight": {str(data): 0.0}, "also_forces_weight": {str(data): 0.0}}
    config = DataConfig((str(data),), (str(data),), also={str(data): 1.0}, **nothing)
    with pytest.raises(InputError, match=r"no label of .* counts"):
        training_data(config, "s2ef", LABELS)
