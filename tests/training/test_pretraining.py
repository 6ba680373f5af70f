"""Pretraining: labels of a cheap calculator first, then the data."""

import os
import shutil
from dataclasses import replace
from itertools import count

import kills
import numpy as np
import pytest
import torch
import yaml
from ase.build import add_adsorbate, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from conftest import TINY_MODEL

import equicat
from equicat import Structure
from equicat.data.datasets import MemoryDataset
from equicat.data.info import DatasetInfo
from equicat.data.readers import read, write
from equicat.data.training_data import training_data
from equicat.errors import InputError
from equicat.options.text import read_yaml
from equicat.run_directory import LAST, has_checkpoint, holds_run, members_of
from equicat.sources.labelling import Label, LabelledFrame, factory_of
from equicat.training import pretraining
from equicat.training.config import PretrainingConfig, from_mapping
from equicat.training.module import TrainingModule
from equicat.training.presets import find_configuration
from equicat.training.pretraining import displaced, first_training, pretraining_run, structures_file
from equicat.training.train import members, train

EMT_NAME = "ase.calculators.emt:EMT"
N = 6
"""Structures of the data."""
FACTOR = 0.7
"""The data are EMT's energies and forces, divided by this."""


def slabs() -> list[Structure]:
    """Small slabs of copper with an oxygen, shaken, with EMT's energies and forces over FACTOR, and 3 eV an atom."""
    found = []
    for k in range(N):
        atoms = fcc111("Cu", (2, 1, 2), vacuum=6.0)
        add_adsorbate(atoms, "O", 1.4 + 0.05 * k, "fcc")
        atoms.rattle(0.05, seed=k)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
        atoms.set_constraint(FixAtoms([0, 1]))
        atoms.info["sid"] = f"slab{k}"
        bare = Structure.from_ase(atoms)
        found.append(replace(bare, energy=energy / FACTOR + 3.0 * len(atoms), forces=forces / FACTOR))
    return found


@pytest.fixture
def here(monkeypatch):
    """Labels of EMT by this process, which takes no time to start."""

    def labels(structures, calculator):
        assert calculator == EMT_NAME
        found = []
        for number, structure in enumerate(structures):
            atoms = structure.to_ase()
            atoms.calc = EMT()
            found.append(Label(number, (LabelledFrame.of(atoms),)))
        return found

    monkeypatch.setattr(pretraining, "_labels", labels)


@pytest.fixture
def data(tmp_path):
    """A file with the slabs."""
    write(tmp_path / "slabs.extxyz", slabs())
    return tmp_path / "slabs.extxyz"


def configuration(data, out, **parts):
    """Options of a training that pretrains for 6 steps and trains for 3."""
    return {
        "task": "s2ef",
        "data": {"train": [str(data)], "n_val": 1},
        "model": TINY_MODEL,
        "output_mlp": [8],
        "pretraining": {"calculator": EMT_NAME, "n_structures": 15, "max_steps": 6, "rate_factor": 2.0},
        "optimizer": {"name": "muon", "lr": 1e-3, "matrix_lr": 5e-3},
        "run": {"out": str(out), "batch_size": 2, "max_steps": 3, "accelerator": "cpu", "progress": False}
        | parts.pop("run", {}),
        **parts,
    }


def dataset(structures):
    return MemoryDataset(structures, DatasetInfo("total"), "slabs")


def test_copies_move_free_atoms_only_and_each_by_its_own_amount():
    data = dataset(slabs())
    found = displaced(data, PretrainingConfig(n_structures=200, displacement=0.1), seed=1)
    assert len(found) == 200
    assert all(s.energy is None and s.forces is None for s in found)
    assert len({s.id for s in found}) == 200
    moves = np.array([s.positions - data[k % N].positions for k, s in enumerate(found)])
    assert not moves[:N].any()
    assert not moves[:, :2].any()  # fixed
    amounts = moves[N:, 2:].std(axis=(1, 2))
    assert amounts.max() < 0.2
    assert 0.04 < amounts.mean() < 0.06  # a mean of 0 to 0.1
    again = displaced(data, PretrainingConfig(n_structures=200, displacement=0.1), seed=2)
    assert not np.allclose(again[-1].positions, found[-1].positions)


def test_of_more_structures_than_asked_for_some_are_taken_evenly(here, data, tmp_path):
    values = configuration(data, tmp_path / "run")
    values["pretraining"]["n_structures"] = 3
    values["data"] |= {"val": [str(data)]}
    first_training(from_mapping(values))
    found = list(read(structures_file(tmp_path / "run")))
    expected = [slabs()[k].positions for k in (0, 2, 5)]
    np.testing.assert_allclose([s.positions for s in found], expected, atol=1e-7)


def test_what_the_calculator_cannot_do_is_left_out_of_both_parts(data, tmp_path, monkeypatch):
    def labels_of_some(structures, calculator):
        given = [Label(k, (LabelledFrame(s.positions, 1.0, s.forces, None),)) for k, s in enumerate(slabs()[:3])]
        return given + [Label(k, error="no convergence") for k in range(3, len(structures))]

    monkeypatch.setattr(pretraining, "_labels", labels_of_some)
    values = configuration(data, tmp_path / "run")
    values["pretraining"]["n_structures"] = 100
    first = first_training(from_mapping(values))
    assert [len(part) for part in training_data(first.data, "s2ef", ("energy", "forces"))] == [2, 1]


def test_held_directions_stay():
    line = np.zeros((5, 3, 3))
    line[:, 2, 2] = 1.0  # along z only
    slab = replace(slabs()[0], free_directions=line)
    moved = displaced(dataset([slab]), PretrainingConfig(n_structures=2), seed=0)[1].positions - slab.positions
    assert not moved[:, :2].any()
    assert moved[2:, 2].all()


def test_labels_are_scaled_to_the_forces_of_the_data(data, tmp_path, capsys):
    config = from_mapping(configuration(data, tmp_path / "run"))
    first = first_training(config)
    assert f"times {1 / FACTOR:.3g}, correlate by 1.000" in capsys.readouterr().out
    found = list(read(structures_file(tmp_path / "run")))
    assert len(found) == 15
    for structure in found:
        atoms = structure.to_ase()
        atoms.calc = EMT()
        np.testing.assert_allclose(structure.forces, atoms.get_forces(apply_constraint=False) / FACTOR, atol=1e-6)
        assert structure.energy == pytest.approx(atoms.get_potential_energy() / FACTOR, abs=1e-6)
        assert structure.fixed.tolist() == [True, True, False, False, False]
    assert (first.optimizer.lr, first.optimizer.matrix_lr) == (2e-3, 1e-2)
    assert (first.run.max_steps, first.run.max_minutes, first.pretraining.calculator) == (6, None, None)
    assert first.data.energy_reference == "total"


def test_a_training_starts_from_its_pretraining(here, data, tmp_path):
    out = tmp_path / "run"
    train(from_mapping(configuration(data, out)))
    first, second = (yaml.safe_load((p / "config.yaml").read_text()) for p in (pretraining_run(out), out))
    assert first["run"]["init_from"] is None
    assert second["run"]["init_from"] == str(pretraining_run(out))
    assert second["pretraining"]["calculator"] == EMT_NAME
    assert (first["run"]["max_steps"], second["run"]["max_steps"]) == (6, 3)
    before, after = equicat.load(pretraining_run(out)), equicat.load(out)
    assert before.scale == after.scale
    # Data and labels differ by 3 eV an atom, and in the zero of EMT's energies not at all.
    shift = (after.reference_energies - before.reference_energies).mean()
    assert shift == pytest.approx(3.0, abs=1.0)
    largest = max(float((a - b).abs().max()) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert 0 < largest < 0.05  # three steps


def test_what_was_killed_while_it_pretrained_goes_on(here, data, tmp_path, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(from_mapping(configuration(data, whole)))
    values = configuration(data, broken)
    train(first_training(from_mapping(values)))  # and then killed
    written = structures_file(broken).stat().st_mtime_ns
    values["run"]["resume"] = True
    train(from_mapping(values))
    assert structures_file(broken).stat().st_mtime_ns == written
    assert "nothing to do" in capsys.readouterr().out
    ours, theirs = equicat.load(broken).state_dict(), equicat.load(whole).state_dict()
    for name, weights in ours.items():
        torch.testing.assert_close(weights, theirs[name], rtol=1e-5, atol=1e-6)
    train(from_mapping(values))  # finished, and says so
    assert f"{broken}: nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("step", [2, 8], ids=["pretraining", "training"])
def test_a_kill_before_the_first_checkpoint_loses_that_training_alone(here, data, tmp_path, monkeypatch, step):
    whole, broken, calls = tmp_path / "whole", tmp_path / "broken", count(1)
    train(from_mapping(configuration(data, whole)))
    values = configuration(data, broken)
    made = TrainingModule.training_step

    def killed(module, *arguments):
        if next(calls) == step:
            os._exit(kills.KILLED)
        return made(module, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", killed)
        assert kills.run(lambda: train(from_mapping(values))) == kills.KILLED
    left = pretraining_run(broken) if step == 2 else broken
    assert holds_run(left)
    assert not has_checkpoint(left)
    labelled = structures_file(broken).stat().st_mtime_ns
    values["run"]["resume"] = True
    train(from_mapping(values))
    assert structures_file(broken).stat().st_mtime_ns == labelled
    ours, theirs = equicat.load(broken).state_dict(), equicat.load(whole).state_dict()
    for name, weights in ours.items():
        torch.testing.assert_close(weights, theirs[name], rtol=1e-5, atol=1e-6)


def test_an_ensemble_pretrains_each_model(here, data, tmp_path):
    values = configuration(data, tmp_path / "two", run={"members": 2})
    for member in members(from_mapping(values)):
        train(member)
    runs = members_of(tmp_path / "two")
    assert [run.name for run in runs] == ["seed_0", "seed_1"]
    texts = [structures_file(run).read_text() for run in runs]
    assert texts[0] != texts[1]
    shutil.rmtree(runs[1])  # killed before it began with the data
    values["run"]["resume"] = True
    for member in members(from_mapping(values)):
        train(member)
    assert (runs[1] / LAST).is_file()
    assert structures_file(runs[1]).read_text() == texts[1]


def test_nothing_is_replaced_unasked(here, data, tmp_path):
    values = configuration(data, tmp_path / "run")
    structures_file(tmp_path / "run").write_text("mine")
    with pytest.raises(InputError, match=r"pretraining_run\.extxyz: exists, where the pretraining would be"):
        train(from_mapping(values))
    assert structures_file(tmp_path / "run").read_text() == "mine"
    values["run"]["overwrite"] = True
    train(from_mapping(values))
    assert (tmp_path / "run" / "model.json").is_file()


def test_a_calculator_whose_forces_point_elsewhere_is_refused(here, data, tmp_path):
    write(data, [replace(s, forces=-s.forces) for s in slabs()])
    with pytest.raises(InputError, match=r"do not point where those of the data do \(correlation -1\.00\)"):
        train(from_mapping(configuration(data, tmp_path / "run")))
    assert not structures_file(tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"pretraining": {"calculator": EMT_NAME}}, "say how long"),
        ({"task": "is2re", "optimizer": {}}, "pretraining is for the task s2ef"),
        ({"pretraining": {"calculator": "ase.nowhere:EMT", "max_steps": 1}}, "cannot import ase.nowhere"),
        (
            {"pretraining": {"calculator": "builtins:dict", "n_structures": 7, "max_steps": 1}},
            "builtins:dict labels no structure of the data: AttributeError",
        ),
        ({"run": {"devices": 2}}, r"done by one process, but 2 would train"),
    ],
)
def test_what_cannot_be_pretrained(data, tmp_path, parts, message):
    with pytest.raises(InputError, match=message):
        train(from_mapping(configuration(data, tmp_path / "run", **parts)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["slabs.extxyz"]


def test_a_run_to_start_from_comes_first(here, data, tmp_path):
    train(from_mapping(configuration(data, tmp_path / "one")))
    values = configuration(data, tmp_path / "two", run={"init_from": str(tmp_path / "one")})
    train(from_mapping(values))
    assert not pretraining_run(tmp_path / "two").exists()


def test_the_calculator_of_a_built_in_configuration_works():
    pytest.importorskip("tblite", reason="GFN-xTB needs tblite (extra: xtb)")
    name = read_yaml(find_configuration("3bpa"))["pretraining"]["calculator"]
    atoms = molecule("H2O")
    atoms.calc = factory_of(name)()
    forces, step = atoms.get_forces(), 1e-3
    atoms.positions[1, 2] += step
    above = atoms.get_potential_energy()
    atoms.positions[1, 2] -= 2 * step
    assert forces[1, 2] == pytest.approx((atoms.get_potential_energy() - above) / (2 * step), abs=1e-3)
