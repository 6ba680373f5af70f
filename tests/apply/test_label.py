"""Labels by ASE calculators: their numbers, one that fails, processes that die, kills and resumption."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import calculators_to_label
import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.optimize import BFGS
from conftest import configuration
from places import ROOT

from equicat.cli.main import main
from equicat.sources.dft.config import ImportConfig
from equicat.sources.dft.make import import_dataset
from equicat.training.config import from_mapping
from equicat.training.train import train

EMT_NAME = "ase.calculators.emt:EMT"
OTHERS = "calculators_to_label"


def slab(seed: int) -> Atoms:
    atoms = fcc111("Cu", (2, 2, 2), vacuum=6.0)
    add_adsorbate(atoms, "O", 1.3, "fcc")
    atoms.set_constraint(FixAtoms(atoms.get_tags() == 2))
    atoms.set_tags([2 if s == "O" else 0 for s in atoms.symbols])
    atoms.rattle(0.05, seed=seed)
    atoms.info = {"sid": f"s{seed}"}
    return atoms


def cube(a: float) -> Atoms:
    return bulk("Cu", a=a, cubic=True)


@pytest.fixture
def slabs(tmp_path) -> Path:
    ase.io.write(tmp_path / "in.extxyz", [slab(seed) for seed in range(5)])
    return tmp_path / "in.extxyz"


@pytest.fixture
def label(tmp_path, monkeypatch):
    """The command, in the folder of the tests' own calculators; gives the status."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    monkeypatch.chdir(tmp_path)
    return lambda *words: main(["label", *map(str, words), "--progress", "false"])


def test_labels_are_the_calculators_in_the_order_of_the_input(label, slabs, tmp_path):
    assert label(EMT_NAME, slabs, "--out", "out.extxyz", "--workers", "2") == 0
    for seed, found in enumerate(ase.io.read("out.extxyz", ":")):
        expected = slab(seed)
        expected.calc = EMT()
        assert found.info["sid"] == f"s{seed}"
        assert found.get_potential_energy() == pytest.approx(expected.get_potential_energy(), abs=1e-7)
        forces = expected.get_forces(apply_constraint=False)
        np.testing.assert_allclose(found.get_forces(apply_constraint=False), forces, atol=1e-7)
        np.testing.assert_array_equal(found.get_tags(), expected.get_tags())
        assert found.constraints[0].index.tolist() == expected.constraints[0].index.tolist()
        assert found.info["energy_reference"] == "total"
        assert "stress" not in found.calc.results, "a slab has none along its normal"
    notes = json.loads(Path("out.label.json").read_text())
    assert notes["calculator"] == {
        "module": "ase.calculators.emt",
        "factory": "EMT",
        "parameters": [{"asap_cutoff": False}],
    }
    assert {path.name for path in tmp_path.iterdir()} == {"in.extxyz", "out.extxyz", "out.label.json"}


def test_a_calculator_can_have_arguments(label, slabs):
    name = "ase.calculators.emt:EMT(asap_cutoff=True, label='my own')"
    assert label(name, slabs, "--out", "out.extxyz") == 0
    for seed, found in enumerate(ase.io.read("out.extxyz", ":")):
        expected = slab(seed)
        expected.calc = EMT(asap_cutoff=True)
        assert found.get_potential_energy() == pytest.approx(expected.get_potential_energy(), abs=1e-7)
        assert found.info["calculator"] == name
    parameters = json.loads(Path("out.label.json").read_text())["calculator"]["parameters"]
    assert parameters == [{"asap_cutoff": True}]


def test_what_is_labelled_can_be_trained_on_and_imported(label, slabs, tmp_path):
    assert label(EMT_NAME, slabs, "--out", "out.extxyz", "--relax", "true") == 0
    config = configuration(
        tmp_path / "out.extxyz", tmp_path / "run", {"val": [], "n_val": 5}, run={"max_epochs": 1, "batch_size": 16}
    )
    assert (train(from_mapping(config)).run / "model.safetensors").is_file()
    report = import_dataset(tmp_path / "data", ImportConfig(files=(str(tmp_path / "out.extxyz"),)), progress=False)
    assert "5" in report.as_text(100)
    assert (tmp_path / "data" / "is2re").is_dir()


def test_relaxations_are_those_of_ase(label, tmp_path):
    ase.io.write("in.extxyz", slab(1))
    assert label(EMT_NAME, "in.extxyz", "--out", "out.extxyz", "--relax", "true", "--fmax", "0.02") == 0
    found, expected = ase.io.read("out.extxyz", ":"), slab(1)
    expected.calc = EMT()
    with BFGS(expected, logfile=None) as optimizer:
        optimizer.run(fmax=0.02)
    assert len(found) == optimizer.nsteps + 1
    assert [frame.info["fid"] for frame in found] == list(range(len(found)))
    np.testing.assert_allclose(found[-1].positions, expected.positions, atol=1e-6)
    np.testing.assert_allclose(found[0].positions, slab(1).positions, atol=1e-7)


def test_the_stress_of_a_bulk_is_kept(label):
    ase.io.write("in.extxyz", cube(3.5))
    assert label(EMT_NAME, "in.extxyz", "--out", "out.extxyz") == 0
    atoms = cube(3.5)
    atoms.calc = EMT()
    np.testing.assert_allclose(ase.io.read("out.extxyz").get_stress(), atoms.get_stress(), atol=1e-7)


@pytest.mark.parametrize("fresh", ["false", "true"])
def test_one_that_fails_is_named_and_stops_no_other(label, capfd, fresh):
    """A calculator that raises, one whose process dies, and one that gives numbers which are none."""
    others = [Atoms(symbol, cell=[9, 9, 9], pbc=True) for symbol in ("Cu", "Ag", "Au", "Pt")]
    ase.io.write("in.extxyz", [cube(3.5), *others, cube(3.7)])
    words = (f"{OTHERS}:Moody", "in.extxyz", "--out", "out.extxyz", "--workers", "2", "--fresh", fresh)
    assert label(*words) == 0
    said = capfd.readouterr().out
    for line in (
        "in.extxyz, frame 1: RuntimeError: SCF did not converge",
        "in.extxyz, frame 2: the process that computed it ended with status -6",
        "in.extxyz, frame 3: forces is not finite (NaN or infinity)",
        "in.extxyz, frame 4: the calculator's answer: energy is 1.0e+30 eV, more than",
        "2 structures, 2 frames",
    ):
        assert line in said
    assert [round(atoms.cell[0, 0], 3) for atoms in ase.io.read("out.extxyz", ":")] == [3.5, 3.7]
    failed = ase.io.read("out.failed.extxyz", ":")
    assert [str(atoms.symbols) for atoms in failed] == ["Cu", "Ag", "Au", "Pt"]
    assert failed[0].info["error"] == "RuntimeError: SCF did not converge"
    parameters = json.loads(Path("out.label.json").read_text())["calculator"]["parameters"]
    assert parameters == [{"mood": "bad", "cutoff": 4.0}]
    kept = sorted(path.name for path in Path().glob("out.calculations/*"))
    assert kept == (["000001", "000002", "000003", "000004"] if fresh == "true" else [])


def test_none_that_works_is_an_error(label, capsys):
    ase.io.write("in.extxyz", [Atoms("Cu", cell=[9, 9, 9], pbc=True)] * 2)
    assert label(f"{OTHERS}:Moody", "in.extxyz", "--out", "out.extxyz") == 2
    said = "no structure could be labelled; the first of 2: RuntimeError: SCF did not converge"
    assert said in capsys.readouterr().err
    assert not Path("out.extxyz").exists()


def test_a_kill_loses_what_was_being_computed_and_nothing_else(label, tmp_path, monkeypatch, capfd):
    volumes = [a**3 for a in np.linspace(3.4, 3.8, 12)]
    ase.io.write("in.extxyz", [cube(v ** (1 / 3)) for v in volumes])
    monkeypatch.setenv(calculators_to_label.CALLS, str(tmp_path / "calls"))
    words = ["label", f"{OTHERS}:slow", "in.extxyz", "--out", "out.extxyz", "--workers", "2", "--progress", "false"]
    process = subprocess.Popen([sys.executable, "-m", "equicat", *words], start_new_session=True)
    try:
        while sum(path.read_text().count("\n") for path in tmp_path.glob("out.extxyz.*.parts/*.jsonl")) < 4:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    time.sleep(0.3)  # its workers end by themselves
    (file,) = tmp_path.glob("out.extxyz.*.parts/*.jsonl")
    before = file.read_bytes()
    n_before, calls_before = before.count(b"\n"), len((tmp_path / "calls").read_text().split())
    assert 4 <= n_before < 12
    assert calls_before <= n_before + 2
    with file.open("ab") as damaged:
        damaged.write(b'{"number": 11, "fra')
    assert label(*words[1:4], "out.extxyz") == 2
    assert "holds the results of an interrupted labelling; --resume goes on with it" in capfd.readouterr().err
    assert label(*words[1:-2], "--resume", "true") == 0
    calls = (tmp_path / "calls").read_text().split()
    assert len(calls) == calls_before + 12 - n_before
    found = [atoms.get_volume() for atoms in ase.io.read("out.extxyz", ":")]
    np.testing.assert_allclose(found, volumes, rtol=1e-6)
    assert list(tmp_path.glob("*.parts")) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("EMT", "calculator is 'EMT'; it must be module:factory"),
        ("ase.calculators.mte:EMT", "cannot import ase.calculators.mte"),
        ("ase.calculators.emt:MTE", "ase.calculators.emt has no function MTE"),
        ("ase.calculators.emt:EMT(True)", "'EMT(True)' is no factory with plain keyword arguments"),
        ("ase.calculators.emt:EMT(x=y)", "'EMT(x=y)' is no factory with plain keyword arguments"),
        ("ase.calculators.emt:EMT(**{})", "'EMT(**{})' is no factory with plain keyword arguments"),
        ("ase.calculators.emt:EMT(x=1", "'EMT(x=1' is no factory with plain keyword arguments"),
        ("ase.calculators.emt:EMT().new(x=1)", "'EMT().new(x=1)' is no factory with plain keyword arguments"),
    ],
)
def test_a_calculator_that_is_not_there_is_said_at_once(label, slabs, capsys, name, message):
    assert label(name, slabs, "--out", "out.extxyz") == 2
    assert message in capsys.readouterr().err
