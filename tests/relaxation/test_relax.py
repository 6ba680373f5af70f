"""`equicat relax`: files in and out, interruptions, several processes, and input that cannot be relaxed."""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.optimize import LBFGS as AseLBFGS
from emt_slabs import rattled_slab, structures
from places import FIXTURES

import equicat
from equicat.cli.main import main
from equicat.data.readers import read, write
from equicat.errors import InputError
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.driver import Frame
from equicat.relaxation.models import CalculatorForces
from equicat.relaxation.parts import Output, Share
from equicat.relaxation.records import Record
from equicat.relaxation.relax import relax

RUN = FIXTURES / "runs_b139b12" / "allegro"
SLABS = list(equicat.read(FIXTURES / "runs_b139b12" / "structures.extxyz"))


@pytest.fixture
def many(tmp_path) -> Path:
    """A file with 12 structures that the run can relax."""
    rng = np.random.default_rng(0)
    path = tmp_path / "many.extxyz"
    moved = [slab.positions + rng.normal(scale=0.05, size=slab.positions.shape) for slab in SLABS * 3]
    slabs = enumerate(zip(SLABS * 3, moved, strict=True))
    write(path, (dataclasses.replace(slab, positions=r, sid=f"s{k}", fid=None) for k, (slab, r) in slabs))
    return path


def same(a: Path, b: Path) -> None:
    """Everything in two files is the same, but for the seconds."""
    for one, other in zip(read(a), read(b), strict=True):
        for name in ("numbers", "positions", "cell", "pbc", "fixed", "tags", "forces"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
        assert one.energy == other.energy
        assert {**one.info, "seconds": 0} == {**other.info, "seconds": 0}


def test_many_files_are_one_relaxation(many, tmp_path):
    """Patterns and folders stand for their files, in natural order; each structure says where it comes from."""
    (tmp_path / "folder").mkdir()
    slabs = [dataclasses.replace(s, sid="", fid=None) for s in list(read(many))[:3]]
    for name, slab in zip(("folder/a10.xyz", "folder/a9.xyz", "b.extxyz"), slabs, strict=True):
        write(tmp_path / name, [slab])
    words = [RUN, tmp_path / "folder", tmp_path / "b*.extxyz", "--out", tmp_path / "out.extxyz", "--max_steps", 1]
    assert main(["relax", *map(str, words), "--progress", "false"]) == 0
    relaxed = list(read(tmp_path / "out.extxyz"))
    assert [Path(s.info["source"].split(",")[0]).name.split()[0] for s in relaxed] == ["a9.xyz", "a10.xyz", "b.extxyz"]
    one = equicat.relax([slabs[2]], RUN, RelaxConfig(max_steps=1), progress=False).structures[0]
    assert relaxed[2].energy == one.energy


def test_emt_relaxations_reach_the_minima_of_ase():
    slabs = [rattled_slab(seed) for seed in range(3)]
    for optimizer in ("lbfgs", "fire"):
        config = RelaxConfig(optimizer=optimizer, fmax=0.01)
        relaxed = equicat.relax(slabs, CalculatorForces(EMT), config, progress=False)
        for structure, slab in zip(relaxed.structures, slabs, strict=True):
            atoms = slab.copy()
            atoms.calc = EMT()
            AseLBFGS(atoms, logfile=None).run(fmax=0.01)
            assert structure.info["converged"]
            assert structure.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-3)


def test_the_file_says_everything_about_each_system(tmp_path, many, capsys):
    out, folder = tmp_path / "out.extxyz.gz", tmp_path / "trajectories"
    options = ["--out", str(out), "--trajectories", str(folder), "--max_steps", "30", "--progress", "false"]
    assert main(["relax", str(RUN), str(many), *options]) == 0
    printed = capsys.readouterr().out
    relaxed, initial = list(read(out)), list(read(many))
    assert len(relaxed) == 12
    for number, (after, before) in enumerate(zip(relaxed, initial, strict=True)):
        assert after.sid == before.sid
        assert np.array_equal(after.numbers, before.numbers)
        assert np.array_equal(after.fixed, before.fixed)
        assert np.array_equal(after.positions[after.fixed], before.positions[before.fixed])
        assert after.forces.shape == after.positions.shape
        assert after.info["energy_reference"] == equicat.load(RUN).info.energy_reference
        assert after.info["converged"] == (after.info["fmax"] < 0.05)
        assert after.info["fmax"] == pytest.approx(np.linalg.norm(after.forces[~after.fixed], axis=1).max(), abs=1e-7)
        assert after.info["seconds"] > 0
        frames = list(read(folder / f"{number:06d}_{before.sid}.extxyz"))
        assert [frame.fid for frame in frames] == list(range(after.info["n_steps"] + 1))
        assert np.array_equal(frames[0].positions, before.positions)
        assert np.array_equal(frames[-1].positions, after.positions)
        assert frames[-1].energy == after.energy
    n = sum(structure.info["converged"] for structure in relaxed)
    assert f"{n} of 12" in printed
    assert "atoms x steps a second" in printed
    assert list(tmp_path.glob("*.parts")) == []


def test_energies_and_forces_of_the_file_are_those_of_the_model(tmp_path, many):
    out = tmp_path / "out.extxyz"
    relax(many, RUN, RelaxConfig(max_steps=3), out=out, progress=False)
    model = equicat.load(RUN)
    for structure in read(out):
        bare = dataclasses.replace(structure, energy=None, forces=None)
        with torch.no_grad():
            found = model(equicat.Batch.from_structures([bare], model.cutoff, dtype=model.dtype))
        assert structure.energy == pytest.approx(float(found.energy), abs=1e-5)
        np.testing.assert_allclose(structure.forces, found.forces, rtol=0, atol=1e-4)


def test_an_exploded_system_is_in_the_file_without_numbers_that_nobody_computed(tmp_path):
    class Broken(CalculatorForces):
        def __call__(self, batch):
            energy, forces = super().__call__(batch)
            return torch.where(torch.tensor([name == "1" for name in batch.ids]), torch.nan, energy), forces

    out = tmp_path / "out.extxyz"
    systems = structures(2)
    systems[1] = dataclasses.replace(systems[1], energy=1.0, info={"fmax": 0.01, "flags": "old", "name": "kept"})
    relaxed = relax(systems, Broken(EMT), RelaxConfig(max_steps=3), out=out, progress=False)
    assert "1 exploded" in relaxed.summary
    fine, broken = read(out)
    assert fine.energy is not None
    assert (broken.energy, broken.forces) == (None, None)
    assert (broken.info["flags"], broken.info["converged"], broken.info["name"]) == ("exploded", False, "kept")
    assert "fmax" not in broken.info
    np.testing.assert_allclose(broken.positions, systems[1].positions, rtol=0, atol=1e-8)


def test_a_model_is_not_changed_by_relaxing_in_another_precision():
    model = equicat.load(RUN)
    how = {"config": RelaxConfig(max_steps=1), "dtype": torch.float64, "progress": False}
    (loaded,), (named,) = (relax(SLABS[:1], m, **how).structures for m in (model, RUN))
    assert model.dtype == torch.float32
    assert loaded.energy == named.energy


def test_an_atom_without_neighbours_is_relaxed_already():
    alone = equicat.Structure(np.array([8]), np.zeros((1, 3)))
    (relaxed,) = relax([alone], RUN, progress=False).structures
    assert relaxed.info["converged"]
    assert relaxed.info["n_steps"] == 0


def test_a_record_comes_back_from_its_line_bit_by_bit():
    rng = np.random.default_rng(0)
    last = Frame(rng.normal(), rng.normal(size=(3, 3)), rng.normal(size=(3, 3)))
    back = Record.from_line(Record(3, last, True, 7, 1 / 3, 0.25, ()).as_line())
    assert back.last.energy == last.energy
    assert np.array_equal(back.last.positions, last.positions)
    assert np.array_equal(back.last.forces, last.forces)
    assert (back.number, back.converged, back.n_steps, back.fmax, back.flags) == (3, True, 7, 1 / 3, ())
    broken = Record.from_line(Record(4, None, False, 0, float("nan"), 0.25, ("exploded",)).as_line())
    assert broken.last is None
    assert np.isnan(broken.fmax)
    assert broken.flags == ("exploded",)


# ---- interruptions and several processes --------------------------------------------------------------------------


def test_a_killed_relaxation_resumes_to_the_result_of_an_undisturbed_one(tmp_path, many):
    config = RelaxConfig(fmax=1e-3, max_steps=60, edges=2000)
    relax(many, RUN, config, out=tmp_path / "undisturbed.extxyz", progress=False)
    out = tmp_path / "killed.extxyz"
    options = ["--out", str(out), "--fmax", "1e-3", "--max_steps", "60", "--edges", "2000", "--progress", "false"]
    process = subprocess.Popen([sys.executable, "-m", "equicat", "relax", str(RUN), str(many), *options])
    deadline = time.monotonic() + 60
    while not any(file.stat().st_size for file in tmp_path.glob("killed.*.parts/*.jsonl")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    with pytest.raises(InputError, match="--resume goes on with it"):
        relax(many, RUN, config, out=out, progress=False)
    (part,) = tmp_path.glob("killed.*.parts/*.jsonl")
    n_finished = part.read_bytes().count(b"\n")
    assert 0 < n_finished < 12
    with part.open("ab") as file:
        file.write(b'{"number": 11, "last": [0.1, [[')  # cut off within a line
    with pytest.raises(InputError, match="other fmax"):
        relax(many, RUN, dataclasses.replace(config, fmax=0.02), out=Output(out, resume=True), progress=False)
    resumed = relax(many, RUN, dataclasses.replace(config, edges=5000), out=Output(out, resume=True), progress=False)
    assert len(resumed.structures) == 12
    same(out, tmp_path / "undisturbed.extxyz")
    assert list(tmp_path.glob("*.parts")) == []


@pytest.mark.parametrize("launcher", ["torchrun", "slurm"])
def test_any_number_of_processes_gives_the_same_file(tmp_path, many, monkeypatch, launcher):
    config = RelaxConfig(max_steps=10)
    relax(many, RUN, config, out=tmp_path / "one.extxyz", progress=False)
    out = tmp_path / "three.extxyz"
    for rank in (2, 0, 1):
        if launcher == "torchrun":
            variables = {"RANK": rank, "WORLD_SIZE": 3}
        else:
            array = {"SLURM_ARRAY_TASK_MIN": 5, "SLURM_ARRAY_TASK_STEP": 2, "SLURM_ARRAY_TASK_COUNT": 3}
            variables = {"SLURM_ARRAY_TASK_ID": 5 + 2 * rank, **array}
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        finished = relax(many, RUN, config, out=out, progress=False)
        assert (finished is not None) == (rank == 1)
        assert out.exists() == (rank == 1)
    same(out, tmp_path / "one.extxyz")


def test_one_process_finishes_what_several_began(tmp_path, many, monkeypatch):
    config = RelaxConfig(max_steps=10)
    relax(many, RUN, config, out=tmp_path / "one.extxyz", progress=False)
    out = tmp_path / "out.extxyz"
    with monkeypatch.context() as environment:
        environment.setenv("RANK", "1")
        environment.setenv("WORLD_SIZE", "2")
        assert relax(many, RUN, config, out=out, progress=False) is None
    relax(many, RUN, config, out=Output(out, resume=True), progress=False)
    same(out, tmp_path / "one.extxyz")


def test_a_process_without_a_system_has_nothing_to_do(tmp_path, many, monkeypatch):
    monkeypatch.setenv("RANK", "12")
    monkeypatch.setenv("WORLD_SIZE", "13")
    assert relax(many, RUN, out=tmp_path / "out.extxyz", progress=False) is None
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("variables", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}])
def test_an_environment_that_makes_no_sense_is_refused(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="environment"):
        Share.from_environment()


# ---- input that cannot be relaxed ---------------------------------------------------------------------------------


def refused(capsys, *arguments: str) -> str:
    """The one line that the command prints; its exit status is 2."""
    assert main(["relax", *arguments, "--progress", "false"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_is_there_is_not_lost(tmp_path, many, capsys):
    out = tmp_path / "out.extxyz"
    out.write_text("mine")
    assert "exists already" in refused(capsys, str(RUN), str(many), "--out", str(out))
    assert "nothing is left to resume" in refused(capsys, str(RUN), str(many), "--out", str(out), "--resume")
    assert out.read_text() == "mine"
    assert main(["relax", str(RUN), str(many), "--out", str(out), "--max_steps", "1", "--overwrite"]) == 0
    assert len(list(read(out))) == 12


def test_trajectories_are_not_lost(tmp_path, many, capsys):
    options = ["--max_steps", "1", "--trajectories", str(tmp_path / "t")]
    assert main(["relax", str(RUN), str(many), "--out", str(tmp_path / "a.extxyz"), *options]) == 0
    capsys.readouterr()
    assert "exists already" in refused(capsys, str(RUN), str(many), "--out", str(tmp_path / "b.extxyz"), *options)
    assert list(tmp_path.glob("b.*")) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fixed": True}, "frame 1: every atom is fixed"),
        ({"numbers": 92}, "frame 1: element U was not in the training data; this model knows C, O"),
        ({"positions": float("nan")}, "frame 1: positions is not finite"),
        ({"positions": 0.0}, "are 0.0000 Å apart, at the same place"),
    ],
)
def test_a_structure_that_cannot_be_relaxed_is_named_before_anything_starts(tmp_path, capsys, change, message):
    atoms = [slab.to_ase() for slab in SLABS[:2]]
    for name, value in change.items():
        if name == "fixed":
            atoms[1].set_constraint(FixAtoms(range(len(atoms[1]))))
        else:
            atoms[1].arrays[name][:2] = value
    path = tmp_path / "broken.traj"
    ase.io.write(path, atoms)
    assert message in refused(capsys, str(RUN), str(path), "--out", str(tmp_path / "out.extxyz"))
    assert list(tmp_path.glob("out*")) == []


def test_other_input_that_cannot_be_relaxed(tmp_path, many, capsys):
    out = ["--out", str(tmp_path / "out.extxyz")]
    empty = tmp_path / "empty.extxyz"
    empty.write_text("")
    assert "Empty file" in refused(capsys, str(RUN), str(empty), *out)
    assert "no such file" in refused(capsys, str(RUN), str(tmp_path / "nothing.extxyz"), *out)
    direct = FIXTURES / "runs_b139b12" / "is2re_displacements"
    assert "gives no forces" in refused(capsys, str(direct), str(many), *out)
    assert "no such run directory" in refused(capsys, str(tmp_path / "no_run"), str(many), *out)
    assert "extended XYZ" in refused(capsys, str(RUN), str(many), "--out", str(tmp_path / "out.traj"))
    assert "folder" in refused(capsys, str(RUN), str(many), "--out", str(tmp_path / "no" / "out.extxyz"))
    assert "fmax" in refused(capsys, str(RUN), str(many), *out, "--fmax", "-1")
    assert list(tmp_path.glob("out*")) == []


def test_structures_in_memory_may_be_none():
    with pytest.raises(InputError, match="no structures"):
        relax([], CalculatorForces(EMT))


def test_a_desorbed_adsorbate_is_flagged(tmp_path):
    (system,) = structures(1)
    away = system.positions.copy()
    away[-1, 2] += 6.0
    far = dataclasses.replace(system, positions=away)
    (structure,) = relax([far], CalculatorForces(EMT), progress=False).structures
    assert structure.info["flags"] == "desorbed"
