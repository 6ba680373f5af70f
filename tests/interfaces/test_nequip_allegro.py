"""Models of nequip-allegro against what that package says of the same structures (tests/fixtures)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read as ase_read
from ase.io import write as ase_write
from places import FIXTURES

import equicat
from equicat import Structure
from equicat.cli.main import main
from equicat.data.batch import Batch
from equicat.errors import InputError
from equicat.interfaces.nequip_allegro import potential, read_arrays, tuning
from equicat.models import saved
from equicat.models.potential import Potential
from equicat.training.config import from_mapping
from equicat.training.train import train

STORED = FIXTURES / "nequip_allegro"
SYSTEMS = {name: Atoms(**system) for name, system in json.loads((STORED / "systems.json").read_text()).items()}
VARIANTS = sorted(path.stem for path in STORED.glob("*.npz"))


def converted(name: str, dtype: str = "float64") -> tuple[Potential, dict[str, np.ndarray]]:
    about, arrays = read_arrays(STORED / f"{name}.npz")
    expected = {k.removeprefix(f"{dtype}/"): v for k, v in arrays.items() if k.startswith(f"{dtype}/")}
    return potential(about | {"dtype": dtype}, arrays), expected


def relative(ours: torch.Tensor, theirs: np.ndarray, size: float) -> float:
    """Largest difference over the size of such values."""
    return float(np.abs(ours.double().numpy() - theirs).max() / size)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_same_energies_forces_and_stress_as_the_package(name, dtype, tolerance):
    model, expected = converted(name, dtype)
    assert model.dtype == getattr(torch, dtype)
    # By symmetry forces in the bulk nearly cancel: the largest of any system says what their rounding is.
    force = max(np.abs(expected[f"{system}/forces"]).max() for system in SYSTEMS)
    for system, atoms in SYSTEMS.items():
        batch = Batch.from_structures([Structure.from_ase(atoms)], model.cutoff, dtype=model.dtype)
        out, energy = model(batch, virial=True), expected[f"{system}/energy"]
        # Energies of atoms and elements of both signs nearly cancel as well: their size says what rounding is.
        parts = out.atom_energies.abs().sum() + (out.energy - out.atom_energies.sum()).abs()
        assert relative(out.energy, energy, float(parts)) < tolerance, system
        assert relative(out.forces, expected[f"{system}/forces"], force) < tolerance, system
        if atoms.pbc.all():
            stress = expected[f"{system}/stress"]
            ours = out.virial[0] / atoms.get_volume()
            assert relative(ours, stress, np.abs(stress).max()) < tolerance, system


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The run of a converted model, in the precision in which it was trained."""
    out = tmp_path_factory.mktemp("converted") / "run"
    out.mkdir()
    saved.save(out, converted("own_scales", "float32")[0])
    return out


def test_is_a_run_like_any_other(run, tmp_path, capsys):
    loaded = equicat.load(run)
    assert loaded.info.element_symbols == ["H", "O", "Cu"]
    assert loaded.dtype == torch.float32
    slab = SYSTEMS["slab"].copy()
    slab.calc = equicat.Calculator(run)
    _, expected = converted("own_scales", "float32")
    assert slab.calc.energy_reference == "total"
    assert slab.get_potential_energy() == pytest.approx(float(expected["slab/energy"]), rel=1e-6)
    np.testing.assert_allclose(slab.get_forces(), expected["slab/forces"], atol=1e-5)
    ase_write(tmp_path / "in.extxyz", [SYSTEMS["slab"], SYSTEMS["bulk"]])
    assert main(["predict", str(run), str(tmp_path / "in.extxyz"), "--out", str(tmp_path / "out.extxyz")]) == 0
    predicted = ase_read(tmp_path / "out.extxyz", index=":")
    assert predicted[1].get_potential_energy() == pytest.approx(float(expected["bulk/energy"]), rel=1e-6)
    command = ["evaluate", str(run), "--data", str(tmp_path / "out.extxyz"), "--json", str(tmp_path / "e.json")]
    assert main(command) == 0, capsys.readouterr().err
    (split,) = json.loads((tmp_path / "e.json").read_text())["splits"].values()
    assert split["rows"]["nequip-allegro"]["energy_mae"] < 1e-3, "it agrees with itself"


def test_tuning_starts_from_the_converted_weights(run, tmp_path):
    """One epoch with a learning rate of nearly nothing leaves the model as it was; a real one lowers the loss."""
    frames = []
    for k in range(9):
        atoms = SYSTEMS["slab"].copy()
        atoms.rattle(0.05, seed=k)
        atoms.calc = SinglePointCalculator(atoms, energy=-460.0 - 0.1 * k, forces=np.zeros((len(atoms), 3)))
        frames.append(atoms)
    ase_write(tmp_path / "train.extxyz", frames[:6])
    ase_write(tmp_path / "val.extxyz", frames[6:])
    values = tuning(equicat.load(run), run)
    values |= {"data": {name: [str(tmp_path / f"{name}.extxyz")] for name in ("train", "val")}}
    values["data"]["energy_reference"] = "total"
    losses = {}
    for lr in (1e-12, 1e-3):
        options = {"out": str(tmp_path / f"run{lr}"), "max_epochs": 3, "accelerator": "cpu", "progress": False}
        values["optimizer"] = {"lr": lr, "schedule": "constant", "ema_decay": None}
        tuned = train(from_mapping(values | {"run": values["run"] | options}))
        losses[lr] = tuned.best_val_loss
        if lr < 1e-6:
            before, after = equicat.load(run).state_dict(), equicat.load(tuned.run).state_dict()
            for name, value in before.items():
                torch.testing.assert_close(after[name], value, msg=name)
    assert losses[1e-3] < 0.9 * losses[1e-12]


def spoiled(name: str = "plain", about: dict | None = None, arrays: dict | None = None) -> Potential:
    described, weights = read_arrays(STORED / f"{name}.npz")
    return potential(described | (about or {}), weights | (arrays or {}))


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"type_names": ["Cu", "Ow", "H"]}, "atom types Ow are not chemical symbols"),
        (
            {"activations": {name: ["Mish"] for name in ("two_body", "latent.0", "latent.1", "readout")}},
            "nonlinearity Mish",
        ),
        ({"weights_by_irrep": False}, "weight_individual_irreps is False"),
        ({"envelope_p": 5.5}, "polynomial_cutoff_p is 5.5; equicat knows integers"),
        (
            {"irreps": [["0e+1o+2e", "0e+1o+2e", "0e+1o"], ["0e+1o", "0e+1o+2e", "0e"]]},
            "a choice that equicat does not",
        ),
        ({"pair_potential": "LennardJones"}, "pair potential LennardJones is unknown to equicat, which has ZBL"),
        ({"pair_potential": "ZBL", "zbl_p": 6.0, "zbl_prefactor": 166.0}, r"not in eV and Å \(units: metal\)"),
    ],
)
def test_what_cannot_be_converted_is_named(about, message):
    with pytest.raises(InputError, match=message):
        spoiled(about=about)


def test_linear_layers_cannot_be_converted():
    described, weights = read_arrays(STORED / "plain.npz")
    described["activations"] |= {"latent.0": [], "latent.1": []}
    with pytest.raises(InputError, match="Allegro layers have linear MLPs; equicat knows those with a hidden layer"):
        potential(described, weights)


def test_command_says_what_is_wrong(tmp_path, capsys):
    def fail(*arguments) -> str:
        assert main(["convert", "nequip-allegro", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    assert "nowhere.ckpt: no such file" in fail(tmp_path / "nowhere.ckpt", tmp_path / "out")
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"nothing")
    assert "could not read it" in fail(broken, tmp_path / "out", "--peer_python", sys.executable)
    assert "give a Python interpreter" in fail(broken, tmp_path / "out", "--peer_python", tmp_path / "python")
    assert not (tmp_path / "out").exists()


PEER = os.environ.get("EQUICAT_PEER_PYTHON")


@pytest.mark.benchmark
@pytest.mark.skipif(PEER is None, reason="EQUICAT_PEER_PYTHON: set it to an interpreter that has nequip-allegro")
def test_checkpoint_and_package_of_a_training_convert_to_the_same_numbers(tmp_path):
    """Train a little with the package, package the checkpoint, and compare both with what the package predicts."""
    script = FIXTURES / "train_nequip_allegro.py"
    subprocess.run([PEER, str(script), str(tmp_path)], check=True, capture_output=True)
    expected = ase_read(tmp_path / "predicted.extxyz", index=":")
    for file in ("trained.ckpt", "trained.nequip.zip"):
        out = tmp_path / f"{file}.run"
        assert main(["convert", "nequip-allegro", str(tmp_path / file), str(out), "--peer_python", str(PEER)]) == 0
        for atoms in expected:
            ours = atoms.copy()
            ours.calc = equicat.Calculator(out)
            assert ours.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), rel=1e-5)
            forces = atoms.get_forces()
            assert np.abs(ours.get_forces() - forces).max() < 1e-5 * np.abs(forces).max()
    assert yaml.safe_load((out / "finetune.yaml").read_text())["run"]["init_from"] == str(out)
