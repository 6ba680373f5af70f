"""`equicat vibrations`: files in and out, flags, and input that has no free energy."""

import csv
import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from conftest import labelled
from emt_minima import gas, on_copper
from places import FIXTURES
from springs import Springs

import equicat
from equicat.cli.main import main
from equicat.data.readers import read, write
from equicat.errors import InputError, OutsideTraining, Remark
from equicat.relaxation.models import CalculatorForces
from equicat.vibrations.config import FreeEnergyConfig
from equicat.vibrations.results import Output

RUN = FIXTURES / "runs_b139b12" / "allegro"
SLABS = list(equicat.read(FIXTURES / "runs_b139b12" / "structures.extxyz"))[:3]
emt = CalculatorForces(EMT)


@pytest.fixture
def slabs(tmp_path):
    """A file with three slabs that the run knows; they are no minima."""
    write(tmp_path / "slabs.extxyz", SLABS)
    return tmp_path / "slabs.extxyz"


def table(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_command_writes_a_table_all_frequencies_and_structures(tmp_path, slabs, capsys):
    out, options = tmp_path / "g.csv", ["--temperature", "300", "500", "--progress", "false"]
    assert main(["vibrations", str(RUN), str(slabs), "--out", str(out), *options]) == 0
    printed = capsys.readouterr()
    rows, about = table(out), json.loads(out.with_suffix(".json").read_text())
    assert [(row["structure"], row["temperature_K"]) for row in rows] == [
        (k, t) for k in "012" for t in ("300.0", "500.0")
    ]
    vibrations = equicat.vibrations_of(SLABS, RUN)
    for row, found in zip(rows[::2], vibrations, strict=True):
        total = float(row["energy_eV"]) + float(row["zero_point_eV"]) + float(row["heat_eV"]) - float(row["TS_eV"])
        assert float(row["G_eV"]) == pytest.approx(total, abs=5e-6)
        assert float(row["G_eV"]) == pytest.approx(float(row["energy_eV"]) + float(row["correction_eV"]), abs=5e-6)
        assert row["kind"] == "surface"
        assert row["energy_reference"] == "adsorption"
        assert "forces" in row["flags"]
        assert float(row["fmax_eV_A"]) == pytest.approx(found.fmax, abs=1e-5)
    for entry, found in zip(about["structures"], vibrations, strict=True):
        assert entry["frequencies_cm-1"] == pytest.approx(found.frequencies.tolist())
        assert entry["atoms"] == found.atoms.tolist()
    assert about["settings"]["low_frequency"] == 50
    for after, before in zip(read(out.with_suffix(".extxyz")), SLABS, strict=True):
        np.testing.assert_allclose(after.positions, before.positions, atol=1e-7)
        assert "forces" in after.info["flags"]
    assert "Energies: adsorption. G = E + ZPE + heat − TS" in printed.out
    (warning,) = printed.err.splitlines()
    assert "warning: 3 of 3 structures are no minima of this model: forces of up to" in warning
    assert f"{tmp_path / 'slabs.extxyz'}" not in warning or "frame" in warning


def test_relaxed_first_the_structures_are_minima(tmp_path, capsys):
    out, slab = tmp_path / "g.csv", tmp_path / "slab.extxyz"
    write(slab, SLABS[:1])
    options = ["--relax", "--fmax", "0.01", "--atoms", "free", "--progress", "false"]
    assert main(["vibrations", str(RUN), str(slab), "--out", str(out), *options]) == 0
    assert "no minima" not in capsys.readouterr().err
    assert all(float(row["fmax_eV_A"]) < 0.01 and "forces" not in row["flags"] for row in table(out))
    assert all(after.forces is not None for after in read(out.with_suffix(".extxyz")))


def test_adsorbates_and_gas_molecules_in_one_call(tmp_path):
    found = equicat.free_energies([on_copper("O"), gas("H2O"), gas("CO")], emt, out=tmp_path / "g.csv", progress=False)
    rows = table(tmp_path / "g.csv")
    assert [row["kind"] for row in rows] == ["surface", "gas", "gas"]
    assert [row["formula"] for row in rows] == ["O", "H2O", "CO"]
    assert [row["n_modes"] for row in rows] == ["3", "3", "1"]
    assert [row["symmetry_number"] for row in rows] == ["", "2", "1"]
    assert [row["pressure_bar"] for row in rows] == ["", "1.0", "1.0"]
    assert all(row["flags"] == "" for row in rows)
    assert "ideal gas at 1 bar" in found.as_text()


def test_modes_are_trajectories(tmp_path):
    output = Output(tmp_path / "g.csv", modes=tmp_path / "modes")
    found = equicat.free_energies([on_copper("O")], emt, out=output, progress=False)
    files = sorted((tmp_path / "modes").iterdir())
    assert [path.name for path in files] == ["000000_00_O_90.extxyz", "000000_01_O_90.extxyz", "000000_02_O_406.extxyz"]
    frames = ase.io.read(files[2], index=":")
    start = on_copper("O").positions
    assert len(frames) == 20
    moves = np.array([frame.positions - start for frame in frames])
    assert np.linalg.norm(moves, axis=2).max() == pytest.approx(0.4, abs=1e-6)
    assert np.abs(moves[:, :12]).max() < 1e-7
    direction = found.results[0].vibrations.modes[2, 12]
    assert abs(moves[5, 12] @ direction) == pytest.approx(0.4 * np.linalg.norm(direction), abs=1e-6)


def test_systems_with_numbers_that_are_not_finite_have_a_flag_and_no_results(tmp_path):
    systems = [Atoms("N2", [[0, 0, 0], [0, 0, 1.1]]), molecule("H2O")]
    found = equicat.free_energies(systems, Springs(broken=3), out=tmp_path / "g.csv", progress=False)
    (good,) = equicat.free_energies(systems[:1], Springs(), progress=False).rows()
    rows = table(tmp_path / "g.csv")
    assert rows[0] == {name: str(value) for name, value in good.items()}
    assert (rows[1]["flags"], rows[1]["G_eV"], rows[1]["fmax_eV_A"]) == ("not_finite", "", "")
    assert json.loads((tmp_path / "g.json").read_text())["structures"][1]["frequencies_cm-1"] == []
    assert len(list(read(tmp_path / "g.extxyz"))) == 2
    assert "not_finite" in found.as_text()


def test_forces_at_a_structure_that_is_no_minimum_are_said():
    stretched = gas("N2")
    stretched.positions[1] *= 1.1
    with pytest.warns(Remark, match=r"1 of 2 structures are no minima .* \(structure 1\), more than fmax 0.05"):
        found = equicat.free_energies([gas("N2"), stretched], emt, progress=False)
    assert [result.flags for result in found.results] == [(), ("forces",)]


# ---- input that has no free energy -----------------------------------------------------------------------------------


def refused(capsys, *arguments: str) -> str:
    """The one line that the command prints; its exit status is 2."""
    assert main(["vibrations", *map(str, arguments), "--progress", "false"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("existing", ["g.csv", "g.json", "g.extxyz", "modes"])
def test_what_is_there_is_not_lost(tmp_path, slabs, capsys, existing):
    arguments = [RUN, slabs, "--out", tmp_path / "g.csv", "--modes", tmp_path / "modes"]
    if existing == "modes":
        (tmp_path / existing).mkdir()
        (tmp_path / existing / "mine").write_text("mine")
    else:
        (tmp_path / existing).write_text("mine")
    assert f"{existing}: exists already; choose another name, or --overwrite" in refused(capsys, *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["slabs.extxyz", existing])
    assert main(["vibrations", *map(str, arguments), "--overwrite", "--progress", "false"]) == 0
    assert len(table(tmp_path / "g.csv")) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "DIR/g.txt"], "g.txt: the table is written as csv; end the name in .csv"),
        (["--out", "DIR/no/g.csv"], "the folder DIR/no does not exist"),
        (["--nfree", "3"], "nfree is 3; it must be 2 or 4"),
        (["--delta", "0"], "delta is 0; it must be a number above 0 and at most 0.5"),
        (["--atoms", "everything"], "it must be one of adsorbate, surface, free or a list of whole numbers"),
        (["--atoms", "[0,99]"], "slabs.extxyz, frame 0: there is no atom 99 among 7"),
        (["--atoms", "0"], "frame 0: every chosen atom is fixed"),
        (["--temperature", "0"], "temperature is 0; it must be a number of at least 1"),
        (["--pressure", "0"], "pressure is 0"),
        (["--spins", "{O2: 1}"], "spins names O2, but no gas molecule is that"),
        (["--spins", "3"], "it must be a mapping of names to numbers"),
        (["--gas", "yes"], "frame 0: cannot be a gas molecule"),
        (["--modes", "DIR/slabs.extxyz", "--overwrite"], "is no directory"),
    ],
)
def test_options_that_make_no_sense(tmp_path, slabs, capsys, options, message):
    given = [option.replace("DIR", str(tmp_path)) for option in ["--out", "DIR/g.csv", *options]]
    assert message.replace("DIR", str(tmp_path)) in refused(capsys, RUN, slabs, *given)
    assert list(tmp_path.iterdir()) == [slabs]


def test_models_and_files_that_cannot_be_used(tmp_path, slabs, capsys):
    out = ["--out", tmp_path / "g.csv"]
    assert "gives no forces" in refused(capsys, FIXTURES / "runs_b139b12" / "is2re_displacements", slabs, *out)
    assert "no such run directory" in refused(capsys, tmp_path / "run", slabs, *out)
    assert "no such file" in refused(capsys, RUN, tmp_path / "nothing.extxyz", *out)
    atoms = SLABS[0].to_ase()
    atoms.numbers[6] = 92
    ase.io.write(tmp_path / "u.traj", atoms)
    assert "element U was not in the training data" in refused(capsys, RUN, tmp_path / "u.traj", *out)
    with pytest.raises(InputError, match="no structures"):
        equicat.free_energies([], emt)


def test_options_are_checked_in_python_too():
    with pytest.raises(InputError, match="nfree is 3; it must be 2 or 4"):
        FreeEnergyConfig(nfree=3)


def test_a_structure_unlike_the_training_data_is_warned_of(run):
    unlike = labelled(40).to_ase()
    unlike.set_cell(0.7 * unlike.cell, scale_atoms=True)
    with pytest.warns(OutsideTraining, match="outside of the training data"):
        equicat.free_energies([unlike], run, FreeEnergyConfig(atoms="free", fmax=100.0), progress=False)


def test_a_relaxation_is_not_lost_when_a_molecule_falls_apart(tmp_path):
    repelled = Atoms("N2", [[0, 0, 0], [0, 0, 1.1]])
    with pytest.raises(InputError, match=r"molecules or pieces.* \(all structures, relaxed, are in .*g.extxyz\)"):
        equicat.free_energies(
            [repelled], Springs(0.1, 6.0), FreeEnergyConfig(relax=True), out=tmp_path / "g.csv", progress=False
        )
    (relaxed,) = read(tmp_path / "g.extxyz")
    assert np.linalg.norm(relaxed.positions[1] - relaxed.positions[0]) > 3
    assert not (tmp_path / "g.csv").exists()
