"""Fine-tuning: every option is used or refused, and config.yaml says what was used."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
import yaml
from conftest import configuration, labelled, relaxing
from safetensors.torch import load_file

import equicat
from equicat import InputError
from equicat.data.info import DatasetInfo
from equicat.data.store import write_store
from equicat.training.config import from_mapping
from equicat.training.train import train

SHIFTS = np.zeros(120)
SHIFTS[[8, 29]] = -1000.0, -2000.0
"""eV an atom: the zero of another code."""


def tuned(start, data, out, data_options=None, dtype="float32", **parts):
    """The model of a run, fine-tuned without learning anything."""
    options = {"max_epochs": 1, "init_from": str(start), "dtype": dtype}
    optimizer = {"lr": 1e-30, "ema_decay": None}
    return train(from_mapping(configuration(data, out, data_options, optimizer=optimizer, run=options, **parts))).run


def normalization(run) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())["normalization"]


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    """The data of another code: other energies of the elements."""
    root = tmp_path_factory.mktemp("shifted")
    for split, seeds in {"train": range(16), "val_id": range(16, 22)}.items():
        structures = [labelled(seed) for seed in seeds]
        moved = [dataclasses.replace(s, energy=s.energy + float(SHIFTS[s.numbers].sum())) for s in structures]
        write_store(root / "s2ef" / split, moved, DatasetInfo("adsorption"))
    return root


def test_by_default_everything_is_the_runs_own(run, data, tmp_path, capsys):
    out = tuned(run, data, tmp_path / "out")
    before, after = (load_file(r / "model.safetensors") for r in (run, out))
    assert all(torch.equal(before[name], after[name]) for name in before)
    energies = dict(zip(("O", "Cu"), before["reference_energies"].tolist(), strict=True))
    scale = before["scale"].item()
    assert normalization(out) == {"references": energies, "scale": scale, "displacement_scale": None}
    assert "warning" not in capsys.readouterr().err


def test_a_float32_run_goes_on_in_float64(run, data, tmp_path):
    out = tuned(run, data, tmp_path / "out", dtype="float64")
    first, second = equicat.load(run), equicat.load(out)
    assert second.dtype == torch.float64
    assert json.loads((out / "model.json").read_text())["dtype"] == "float64"
    batch = equicat.Batch.from_structures([labelled(3)], first.cutoff, dtype=torch.float64)
    assert second(batch).energy.item() == pytest.approx(first.double()(batch).energy.item(), abs=1e-9)
    assert tuned(out, data, tmp_path / "back", dtype="float32")


def test_references_that_do_not_fit_are_worth_a_warning(run, shifted, tmp_path, capsys):
    tuned(run, shifted, tmp_path / "out")
    said = capsys.readouterr().err
    assert "eV an atom away from those of" in said
    assert "--normalization.references linear" in said


def test_references_are_shifted_to_the_new_energies_when_asked_for(run, shifted, tmp_path, capsys):
    out = tuned(run, shifted, tmp_path / "out", normalization={"references": "linear"})
    before, after = equicat.load(run), equicat.load(out)
    shift = (after.reference_energies - before.reference_energies).tolist()
    assert shift == pytest.approx([-1000, -2000], abs=1.0)
    batch = equicat.Batch.from_structures([labelled(seed) for seed in range(16)], before.cutoff)
    error = before(batch).energy - batch.energy
    counts = torch.stack([torch.bincount(batch.system_idx[batch.numbers == z], minlength=16) for z in (8, 29)], 1)
    exact = counts.double() @ torch.tensor([-1000.0, -2000.0], dtype=torch.float64)
    assert (after(batch).energy - exact - batch.energy).square().mean() <= error.square().mean() + 1e-6
    assert normalization(out)["references"] == "linear"
    assert "warning" not in capsys.readouterr().err
    # The trivial baselines that are shown beside the model are those of the new data.
    known = json.loads((out / "model.json").read_text())["statistics"]["linear_reference"]
    assert known == pytest.approx([-1000, -2000], abs=5.0)


def test_given_references_are_used(run, data, tmp_path):
    out = tuned(run, data, tmp_path / "out", normalization={"references": {"O": 3.0, "Cu": -500.0}})
    assert equicat.load(out).reference_energies.tolist() == [3.0, -500.0]
    assert normalization(out)["references"] == {"O": 3.0, "Cu": -500.0}
    with pytest.raises(InputError, match=r"no energy for the elements with numbers \[29\]"):
        tuned(run, data, tmp_path / "other", normalization={"references": {"O": 3.0}})
    assert equicat.load(tuned(run, data, tmp_path / "none", normalization={"references": "none"})).scale > 0


def test_another_scale_is_refused(run, data, tmp_path):
    with pytest.raises(InputError, match=r"normalization.scale is 7.0, but the weights of .* were trained with"):
        tuned(run, data, tmp_path / "out", normalization={"scale": 7.0})
    assert not (tmp_path / "out").exists()
    own = equicat.load(run).scale.item()
    tuned(run, data, tmp_path / "out", normalization={"scale": own})


def test_a_scale_that_fits_the_new_forces(run, data, tmp_path, capsys):
    """Data whose labels are 2.5 times what the model predicts: the scale becomes 2.5 times as large, references fit."""
    model = equicat.load(run)
    for split, seeds in {"train": range(16), "val_id": range(16, 22)}.items():
        found = []
        for seed in seeds:
            prediction = model(equicat.Batch.from_structures([labelled(seed)], model.cutoff))
            energy, forces = prediction.energy.item(), prediction.forces.detach().double().numpy()
            found.append(dataclasses.replace(labelled(seed), energy=2.5 * energy, forces=2.5 * forces))
        write_store(tmp_path / "d" / "s2ef" / split, found, DatasetInfo("adsorption"))
    fit = {"scale": "fit", "references": "linear"}
    out = tuned(run, tmp_path / "d", tmp_path / "out", normalization=fit)
    before, after = equicat.load(run), equicat.load(out)
    assert after.scale.item() == pytest.approx(2.5 * before.scale.item(), rel=1e-5)
    expected = 2.5 * before.reference_energies
    torch.testing.assert_close(after.reference_energies, expected, rtol=0, atol=1e-4)
    assert normalization(out)["scale"] == "fit"
    resumed = configuration(tmp_path / "d", out, normalization=fit, run={"max_epochs": 2, "init_from": str(run)})
    train(from_mapping(resumed | {"optimizer": {"lr": 1e-30}, "run": resumed["run"] | {"resume": True}}))
    assert equicat.load(out).scale.item() == after.scale.item()


@pytest.mark.parametrize("task", ["is2re", "is2rs"])
def test_scales_of_direct_models_are_fitted(data, tmp_path, task):
    """Energies are fitted with the references, displacements alone."""
    weights = {"energy_weight": float(task == "is2re"), "displacement_weight": 1.0}
    first = train(from_mapping(configuration(data, tmp_path / "first", loss=weights) | {"task": task})).run
    model = equicat.load(first)
    structures = []
    for seed in range(16):
        start = relaxing(seed)
        found = model(equicat.Batch.from_structures([start], model.cutoff))
        moved = start.positions + 3.0 * found.displacements.detach().double().numpy()
        changed = {"relaxed_positions": moved}
        if task == "is2re":
            shift = 4.0 * float((start.numbers == 8).sum())
            changed["relaxed_energy"] = 0.5 * found.relaxed_energy.item() + shift
        structures.append(dataclasses.replace(start, **changed))
    write_store(tmp_path / "d" / "is2re" / "train", structures, DatasetInfo("adsorption"))
    fit = {"displacement_scale": "fit"} | ({"scale": "fit", "references": "linear"} if task == "is2re" else {})
    options = {"max_epochs": 1, "init_from": str(first)}
    values = configuration(tmp_path / "d", tmp_path / "out", {"val": []}, loss=weights, normalization=fit, run=options)
    after = equicat.load(train(from_mapping(values | {"task": task, "optimizer": {"lr": 1e-30}})).run)
    assert after.displacement_scale.item() == pytest.approx(3.0 * model.displacement_scale.item(), rel=1e-4)
    values["run"]["out"] = str(tmp_path / "other")
    if task == "is2re":
        assert after.scale.item() == pytest.approx(0.5 * model.scale.item(), rel=1e-4)
    else:
        with pytest.raises(InputError, match=r"normalization.scale is fit, but .* predicts no energies"):
            train(from_mapping(values | {"task": task, "normalization": {"scale": "fit"}}))


def test_a_scale_without_anything_in_common_stays(run, data, tmp_path, capsys):
    """Forces of the opposite sign have a negative factor."""
    opposite = [dataclasses.replace(labelled(k), forces=-labelled(k).forces) for k in range(16)]
    write_store(tmp_path / "d" / "s2ef" / "train", opposite, DatasetInfo("adsorption"))
    out = tuned(run, tmp_path / "d", tmp_path / "out", {"val": []}, normalization={"scale": "fit"})
    assert equicat.load(out).scale.item() == equicat.load(run).scale.item()
    assert "warning: normalization.scale stays as it is" in capsys.readouterr().err


def test_fit_is_for_models_that_are_tuned(data, tmp_path):
    with pytest.raises(InputError, match=r"normalization.scale is fit, which is for .* fine-tuned; give run.init_from"):
        from_mapping(configuration(data, tmp_path / "out", normalization={"scale": "fit"}))


def test_an_element_that_the_new_data_lack_keeps_its_energy(run, tmp_path):
    copper = [dataclasses.replace(labelled(s), numbers=np.full(len(labelled(s)), 29)) for s in range(4)]
    copper = [dataclasses.replace(s, energy=s.energy - 1000.0 * len(s)) for s in copper]
    write_store(tmp_path / "d" / "s2ef" / "train", copper, DatasetInfo("adsorption"))
    out = tuned(run, tmp_path / "d", tmp_path / "out", {"val": []}, normalization={"references": "linear"})
    before, after = (equicat.load(r).reference_energies for r in (run, out))
    assert after[0] == before[0]
    assert after[1] - before[1] == pytest.approx(-1000, abs=1.0)
    assert equicat.load(out).info.statistics.elements == (8, 29)


@pytest.mark.parametrize("task", ["is2re", "is2rs"])
def test_direct_models_are_tuned_alike(data, tmp_path, task):
    """A run of one direct task may become one of the other, as long as it predicts the same."""
    both = {"energy_weight": 1.0, "displacement_weight": 1.0}
    values = configuration(data, tmp_path / "first", run={"max_epochs": 1}, loss=both)
    first = train(from_mapping(values | {"task": "is2re"})).run
    root = tmp_path / "d"
    for split, seeds in {"train": range(16), "val_id": range(16, 22)}.items():
        structures = [relaxing(seed) for seed in seeds]
        moved = [dataclasses.replace(s, relaxed_energy=s.relaxed_energy - 1000.0 * len(s)) for s in structures]
        write_store(root / "is2re" / split, moved, DatasetInfo("adsorption"))
    options = {"max_epochs": 1, "init_from": str(first), "dtype": "float64"}
    values = configuration(
        root,
        tmp_path / "out",
        loss=both,
        run=options,
        normalization={"references": "linear"},
        optimizer={"lr": 1e-30},
    )
    out = train(from_mapping(values | {"task": task})).run
    assert equicat.load(out).info.task == task
    before, after = (equicat.load(r).reference_energies for r in (first, out))
    assert (after - before).tolist() == pytest.approx([-1000, -1000], abs=2.0)


def test_a_tuned_run_goes_on(run, data, tmp_path):
    """A tuned run does not need the run that it came from, which may be gone."""
    out = tuned(run, data, tmp_path / "out", dtype="float64")
    values = configuration(data, out, run={"max_epochs": 2, "resume": True, "dtype": "float64"})
    before = equicat.load(out).reference_energies
    train(from_mapping(values))
    assert torch.equal(equicat.load(out).reference_energies, before)
    assert yaml.safe_load((out / "config.yaml").read_text())["run"]["init_from"] == str(run)


def test_old_data_are_replayed_and_validated_apart(run, data, shifted, tmp_path):
    """The columns of the old data are those of a run that validates on them alone, and do not choose the model."""
    options = {"also": {str(shifted): 0.25}, "also_zero": "own"}
    out = tuned(run, data, tmp_path / "out", options)
    with (out / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    name = f"val_{shifted.name}_forces_mae"
    assert float(row[name]) == pytest.approx(float(row["val_forces_mae"])), "the same structures, with other energies"
    assert float(row[f"val_{shifted.name}_energy_mae"]) == pytest.approx(float(row["val_energy_mae"]), abs=1e-3)
    resumed = configuration(data, out, options, run={"init_from": str(run), "max_epochs": 2, "resume": True})
    with pytest.raises(InputError, match="optimizer"):
        train(from_mapping(resumed | {"optimizer": {"name": "muon"}}))
    train(from_mapping(resumed | {"optimizer": {"lr": 1e-30, "ema_decay": None}}))
    with (out / "metrics.csv").open() as file:
        assert [float(r[name]) for r in csv.DictReader(file)] == pytest.approx([float(row[name])] * 2)
