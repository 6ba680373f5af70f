"""The data set of a study: subsets that know every element, and a digest that knows the data."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import relaxing

from equicat import InputError, Structure
from equicat.data.info import DatasetInfo
from equicat.data.store import write_store
from equicat.data.training_data import DataConfig, training_data
from equicat.studies.study_data import StudyData


def without_oxygen(structure: Structure) -> Structure:
    kept = structure.numbers != 8
    per_atom = ("numbers", "positions", "fixed", "tags", "forces", "relaxed_positions")
    return replace(structure, **{name: getattr(structure, name)[kept] for name in per_atom})


@pytest.fixture
def rare(tmp_path):
    """A data set in which one training system of twelve has an oxygen atom."""
    systems = [relaxing(0), *(without_oxygen(relaxing(k)) for k in range(1, 12))]
    for split in ("train", "val_id"):
        write_store(tmp_path / "is2re" / split, systems, DatasetInfo("adsorption"))
    return StudyData(tmp_path)


def test_tasks_are_those_with_labels(data):
    assert StudyData(data).tasks == ("s2ef", "is2re", "is2rs")


def test_sizes_are_shares_or_what_is_asked_for(data):
    study = StudyData(data)
    assert study.sizes("is2re", (), (0.25, 1.0)) == (4, 16)
    assert study.sizes("is2re", ("all", "3"), (0.25,)) == (3, 16)
    with pytest.raises(InputError, match="trains on 16"):
        study.sizes("is2re", ("10k",), (1.0,))


def test_subsets_hold_every_element(data):
    study = StudyData(data)
    for seed in range(3):
        split_seed = study.split_seed("is2re", 2, seed)
        assert split_seed % 1000 == seed
        for n in (2, 5, 9):
            config = DataConfig((str(data),), (str(data),), n_train=n, split_seed=split_seed)
            train, _ = training_data(config, "is2re", ("relaxed_energy",))
            assert train.elements == study.train_set("is2re").elements


def test_draws_without_a_rare_element_are_passed_over(rare):
    seed = rare.split_seed("is2re", 2, 0)
    assert 0 in np.random.default_rng(seed).permutation(12)[:2]
    assert rare.split_seed("is2re", 12, 5) == 5, "all structures hold everything"


def test_digest_knows_the_data(data, tmp_path):
    for split in ("train", "val_id"):
        write_store(tmp_path / "is2re" / split, [relaxing(1), relaxing(2)], DatasetInfo("adsorption"))
    first = StudyData(tmp_path).digest
    assert first == StudyData(tmp_path).digest
    assert first != StudyData(data).digest
