"""Training on stresses: from a file of bulk crystals to predicted stresses."""

import csv

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write as write_atoms
from conftest import TINY_MODEL

import equicat
from equicat.apply.predict import predict
from equicat.training.config import from_mapping
from equicat.training.train import train


def strained_copper(path, n: int, seed: int) -> None:
    rng, frames = np.random.default_rng(seed), []
    for _ in range(n):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.03 * rng.normal(size=(3, 3))), scale_atoms=True)
        atoms.rattle(0.05, rng=rng)
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    write_atoms(path, frames)


def test_stresses_are_learned_and_predicted(tmp_path):
    strained_copper(tmp_path / "train.extxyz", 24, 0)
    strained_copper(tmp_path / "val.extxyz", 6, 1)
    values = {
        "data": {
            "train": [str(tmp_path / "train.extxyz")],
            "val": [str(tmp_path / "val.extxyz")],
            "energy_reference": "total",
        },
        "model": TINY_MODEL,
        "loss": {"stress_weight": 10.0, "forces_weight": 1.0},
        "optimizer": {"name": "muon", "ema_decay": None},
        "run": {"out": str(tmp_path / "run"), "batch_size": 4, "max_epochs": 12, "progress": False},
    }
    train(from_mapping(values))
    with (tmp_path / "run" / "metrics.csv").open() as file:
        errors = [float(row["val_stress_mae"]) for row in csv.DictReader(file)]
    assert min(errors) < 0.5 * errors[0]
    predict(tmp_path / "run", tmp_path / "val.extxyz", out=tmp_path / "out.extxyz", progress=False)
    found = next(equicat.read(tmp_path / "out.extxyz"))
    atoms = next(equicat.read(tmp_path / "val.extxyz")).to_ase()
    atoms.calc = equicat.Calculator(tmp_path / "run")
    np.testing.assert_allclose(found.stress, atoms.get_stress(voigt=False), atol=1e-5)
