"""Training looks at the labels that its task uses; what is wrong with these is found before anything is written."""

import dataclasses

import numpy as np
import pytest
from conftest import configuration, relaxing

import equicat
from equicat.apply.evaluate import evaluate
from equicat.data.readers import write
from equicat.errors import InputError
from equicat.training.config import from_mapping
from equicat.training.train import train

STRUCTURES = [dataclasses.replace(relaxing(seed), sid="") for seed in range(5)]
VALIDATION = [dataclasses.replace(relaxing(seed), sid="") for seed in (7, 8)]


def config_of(folder, task: str, frames, **options):
    """A run of one epoch, one structure a batch, on a file of these frames; validated on others."""
    write(folder / "a.extxyz", frames)
    write(folder / "val.extxyz", VALIDATION)
    values = configuration(folder / "a.extxyz", folder / "run", run={"max_epochs": 1, "batch_size": 1}, **options)
    values["data"]["val"] = [str(folder / "val.extxyz")]
    values["data"]["energy_reference"] = "adsorption"
    return from_mapping(values | {"task": task})


def spoilt(*labels: str):
    """Two frames lack the labels, two have them, and in one they are nonsense."""
    without = dict.fromkeys(labels)
    nonsense = {name: np.full((len(STRUCTURES[4]), 3), 1e7) if name.endswith("s") else 1e7 for name in labels}
    changes = [without, without, {}, {}, nonsense]
    return [dataclasses.replace(s, **change) for s, change in zip(STRUCTURES, changes, strict=True)]


@pytest.mark.parametrize(
    ("task", "unused"),
    [
        ("s2ef", ("relaxed_energy", "relaxed_positions")),
        ("is2re", ("energy", "forces", "relaxed_positions")),
        ("is2rs", ("energy", "forces", "relaxed_energy")),
    ],
)
def test_labels_that_a_task_does_not_use_change_nothing(tmp_path, task, unused):
    weights, metrics = [], []
    for name, frames in (("clean", STRUCTURES), ("spoilt", spoilt(*unused))):
        (tmp_path / name).mkdir()
        run = train(config_of(tmp_path / name, task, frames)).run
        text = (tmp_path / name / "a.extxyz").read_text()
        if name == "spoilt" and "energy" in unused:
            (tmp_path / name / "a.extxyz").write_text(text.replace(" energy=10000000.0", " energy=none"))
        result = evaluate(run, tmp_path / name / "a.extxyz", energy_reference="adsorption", progress=False)
        weights.append(equicat.load(run).state_dict())
        metrics.append(result["splits"]["a"]["rows"]["allegro"])
    assert metrics[0] == metrics[1]
    for name, tensor in weights[0].items():
        np.testing.assert_array_equal(tensor.numpy(), weights[1][name].numpy(), err_msg=name)


@pytest.mark.parametrize(
    ("task", "label", "options"),
    [
        ("s2ef", "forces", {}),
        ("is2re", "relaxed_energy", {}),
        ("is2re", "relaxed_positions", {"loss": {"displacement_weight": 1.0}}),
        ("is2re", "relaxed_positions", {"noise": {"share": 0.5}}),
        ("is2rs", "relaxed_energy", {"loss": {"energy_weight": 1.0}}),
    ],
)
def test_a_label_that_is_used_must_be_in_every_frame(tmp_path, task, label, options):
    frames = [dataclasses.replace(s, **{label: None}) if k in (2, 3) else s for k, s in enumerate(STRUCTURES)]
    config = config_of(tmp_path, task, frames, **options)
    with pytest.raises(InputError, match=rf"a.extxyz, frame 2: no label '{label}'.*\(2 of 5 structures have none\)"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_forces_and_energy_under_other_names(tmp_path):
    names = {"energy=": "REF_energy=", ":forces:": ":REF_forces:", "relaxed_REF_energy": "relaxed_energy"}
    config = config_of(tmp_path, "s2ef", STRUCTURES)
    expected = equicat.load(train(config).run).state_dict()
    for file in (tmp_path / "a.extxyz", tmp_path / "val.extxyz"):
        text = file.read_text()
        for old, new in names.items():
            text = text.replace(old, new)
        file.write_text(text)
    keys = {"energy_key": "REF_energy", "forces_key": "REF_forces"}
    run = dataclasses.replace(config.run, out=str(tmp_path / "other"))
    found = train(dataclasses.replace(config, run=run, data=dataclasses.replace(config.data, **keys)))
    for name, tensor in equicat.load(found.run).state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name].numpy(), err_msg=name)
    how = keys | {"energy_reference": "adsorption", "progress": False}
    assert evaluate(found.run, tmp_path / "a.extxyz", **how)["splits"]["a"]["n_structures"] == 5


def test_an_element_that_only_validation_has_is_found_before_anything_is_written(tmp_path):
    other = dataclasses.replace(VALIDATION[1], numbers=VALIDATION[1].numbers - 1)
    write(tmp_path / "other.extxyz", [VALIDATION[0], other])
    config = config_of(tmp_path, "s2ef", STRUCTURES)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, val=(str(tmp_path / "other.extxyz"),)))
    with pytest.raises(InputError, match=r"other.extxyz, frame 1: element (N|Ni) was not in the training data"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_explodes_is_named_by_file_and_frame(tmp_path):
    config = config_of(tmp_path, "s2ef", STRUCTURES)
    optimizer = dataclasses.replace(config.optimizer, lr=1e30)
    with pytest.raises(InputError, match=r"batch \d+ \(\S*a.extxyz, frame \d\)"):
        train(
            dataclasses.replace(config, optimizer=optimizer, run=dataclasses.replace(config.run, max_skipped_steps=0))
        )
