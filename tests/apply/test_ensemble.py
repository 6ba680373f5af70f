"""Ensembles: one command trains them, another one shows their mean and spread."""

import dataclasses
import json

import ase.io
import numpy as np
import pytest
import torch
import yaml
from conftest import configuration, labelled, relaxing

import equicat
from equicat import Batch, InputError
from equicat.apply.ensemble import mean_of
from equicat.apply.evaluate import evaluate
from equicat.apply.predict import as_text, predict
from equicat.cli.main import main
from equicat.data.datasets import open_dataset
from equicat.data.readers import write
from equicat.models.direct import RelaxedPrediction
from equicat.models.ensemble import MeanPotential, mean_prediction
from equicat.models.saved import load
from equicat.relaxation.config import RelaxConfig
from equicat.run_directory import members_of
from equicat.training.config import from_mapping
from equicat.training.train import members


@pytest.fixture(scope="module")
def ensemble(data, tmp_path_factory):
    """Two models of one epoch, trained by the command."""
    root = tmp_path_factory.mktemp("ensemble")
    values = configuration(data, root / "two", run={"members": 2, "max_epochs": 1, "seed": 3})
    (root / "two.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(root / "two.yaml")]) == 0
    return root / "two"


def test_its_members_are_runs_that_differ_by_their_seed(ensemble):
    runs = members_of(ensemble)
    assert [run.name for run in runs] == ["seed_3", "seed_4"]
    assert members_of(runs[0]) == [runs[0]]
    assert [yaml.safe_load((run / "config.yaml").read_text())["run"]["seed"] for run in runs] == [3, 4]


def test_predictions_are_the_mean_with_its_spread(ensemble, tmp_path):
    write(tmp_path / "in.extxyz", [labelled(0), labelled(1)])
    predict(ensemble, tmp_path / "in.extxyz", out=tmp_path / "out.extxyz", progress=False, outside_training="ignore")
    batch = Batch.from_structures([labelled(0), labelled(1)], 4.0)
    found = [equicat.load(run)(batch) for run in members_of(ensemble)]
    energies = np.array([p.energy.numpy() for p in found])
    frames = ase.io.read(tmp_path / "out.extxyz", ":")
    assert [f.get_potential_energy() for f in frames] == pytest.approx(energies.mean(0).tolist(), abs=1e-4)
    assert [f.info["energy_std"] for f in frames] == pytest.approx(energies.std(0).tolist(), abs=1e-4)
    forces = np.array([p.forces.numpy()[: len(frames[0])] for p in found])
    lengths = np.linalg.norm(forces[0] - forces[1], axis=1)[~labelled(0).fixed] / 2
    assert frames[0].info["forces_std"] == pytest.approx(lengths.max(), abs=1e-4)
    assert "± [eV/Å]" in as_text(tmp_path / "out.extxyz", 2)


def test_an_evaluation_judges_the_mean(ensemble, data):
    batch = Batch.from_structures(list(open_dataset(data / "s2ef" / "val_id")), 4.0)
    mean = torch.stack([equicat.load(run)(batch).energy for run in members_of(ensemble)]).mean(0)
    forces = torch.stack([equicat.load(run)(batch).forces for run in members_of(ensemble)]).mean(0)
    wrong = (forces - batch.forces)[~batch.fixed].abs().mean().item()
    for found in (evaluate(ensemble, data / "s2ef" / "val_id", progress=False), evaluate(ensemble, progress=False)):
        (split,) = found["splits"].values()
        row = split["rows"]["allegro"]
        assert row["energy_mae"] == pytest.approx((mean - batch.energy).abs().mean().item(), rel=1e-5)
        assert row["forces_mae"] == pytest.approx(wrong, rel=1e-5)
    alone = json.loads((ensemble / "seed_3" / "evaluation.json").read_text())["splits"]["val"]["rows"]["allegro"]
    assert alone["energy_mae"] != pytest.approx(row["energy_mae"], rel=1e-3)


def test_training_ends_with_the_mean(ensemble):
    assert (ensemble / "evaluation.json").is_file()


def test_relaxed_energies_are_averaged():
    two = [RelaxedPrediction(torch.tensor([1.0, x], dtype=torch.float64)) for x in (2.0, 4.0)]
    mean = mean_prediction(two)
    assert mean.relaxed_energy.tolist() == [1.0, 3.0]
    assert mean.displacements is None


def test_relaxed_positions_have_a_spread():
    one, other = relaxing(0), relaxing(0)
    other.relaxed_positions[-1] += 0.2
    mean = mean_of([one, other])
    assert mean.info["positions_std"] == pytest.approx(0.1 * np.sqrt(3))
    np.testing.assert_allclose(mean.relaxed_positions[-1], one.relaxed_positions[-1] + 0.1)


def test_the_leaderboard_gets_the_mean(ensemble, data, tmp_path):
    for run in (ensemble, *members_of(ensemble)):
        predict(run, data / "s2ef" / "val_id", out=tmp_path / f"{run.name}.npz", progress=False)
    mean, one, other = (np.load(tmp_path / f"{run.name}.npz") for run in (ensemble, *members_of(ensemble)))
    np.testing.assert_allclose(mean["energy"], (one["energy"] + other["energy"]) / 2, atol=8e-3)  # float16
    np.testing.assert_allclose(mean["forces"], (one["forces"] + other["forces"]) / 2, atol=8e-3)


def test_a_calculator_gives_the_mean_and_its_derivative(ensemble):
    atoms = labelled(0).to_ase()
    atoms.calc = equicat.Calculator(ensemble, device="cpu", dtype="float64", outside_training="ignore")
    energies, forces = [], []
    for run in members_of(ensemble):
        alone = atoms.copy()
        alone.calc = equicat.Calculator(run, device="cpu", dtype="float64", outside_training="ignore")
        energies.append(alone.get_potential_energy())
        forces.append(alone.get_forces(apply_constraint=False))
    assert energies[0] != pytest.approx(energies[1], abs=1e-3)
    assert atoms.get_potential_energy() == pytest.approx(np.mean(energies), abs=1e-9)
    assert atoms.get_potential_energies().sum() == pytest.approx(np.mean(energies), abs=1e-6)
    np.testing.assert_allclose(atoms.get_forces(apply_constraint=False), np.mean(forces, 0), atol=1e-9)
    up, down = atoms.copy(), atoms.copy()
    up.positions[-1, 2] += 1e-4
    down.positions[-1, 2] -= 1e-4
    slope = (atoms.calc.get_potential_energy(up) - atoms.calc.get_potential_energy(down)) / 2e-4
    assert atoms.get_forces(apply_constraint=False)[-1, 2] == pytest.approx(-slope, abs=1e-5)


def test_relaxations_follow_the_mean(ensemble):
    config = RelaxConfig(max_steps=3)
    (relaxed,) = equicat.relax([relaxing(0)], ensemble, config, progress=False).structures
    (by_loaded,) = equicat.relax([relaxing(0)], load(ensemble), config, progress=False).structures
    (alone,) = equicat.relax([relaxing(0)], members_of(ensemble)[0], config, progress=False).structures
    np.testing.assert_array_equal(relaxed.positions, by_loaded.positions)
    assert np.abs(relaxed.positions - alone.positions).max() > 1e-4


def test_its_description_is_that_of_the_first(ensemble):
    mean, first = load(ensemble), load(members_of(ensemble)[0])
    assert isinstance(mean, MeanPotential)
    assert (mean.cutoff, mean.elements, mean.info) == (first.cutoff, first.elements, first.info)
    assert mean.double().dtype == torch.float64
    assert main(["info", str(ensemble)]) == 0


def test_what_takes_one_model_says_so(ensemble, data, tmp_path, capsys):
    file = tmp_path / "tuned.yaml"
    file.write_text(yaml.safe_dump(configuration(data, tmp_path / "tuned", run={"init_from": str(ensemble)})))
    for command in (
        ["export", str(ensemble), str(tmp_path / "x.pt2"), "--format", "compiled"],
        ["train", str(file)],
    ):
        assert main(command) != 0
        assert "the folder of an ensemble" in capsys.readouterr().err


def test_models_that_do_not_go_together_are_refused(ensemble):
    one, other = (load(run) for run in members_of(ensemble))
    other.info = dataclasses.replace(other.info, energy_reference="total")
    with pytest.raises(InputError, match="other cutoffs, elements or energies"):
        MeanPotential([one, other])


def test_an_ensemble_that_was_killed_begins_the_members_that_are_missing(ensemble, data):
    values = configuration(data, ensemble, run={"members": 3, "max_epochs": 1, "seed": 3, "resume": True})
    assert [c.run.resume for c in members(from_mapping(values))] == [True, True, False]
