"""Adsorption energies on many slabs: the same as one by one, in folders of their own and one table."""

import csv

import pytest
import torch
from ase.build import fcc111
from ase.calculators.emt import EMT
from places import FIXTURES

import equicat
from equicat import InputError
from equicat.adsorption.energies import AdsorptionConfig
from equicat.adsorption.screening import named, screen
from equicat.cli import main as cli
from equicat.relaxation.models import CalculatorForces

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
CONFIG = AdsorptionConfig(sites=("fcc",), fmax=0.1)
NAMES = ("Cu(111) 2x2x3", "Pd(111) 2x2x3")


def emt():
    return CalculatorForces(EMT, "adsorption")


class NoPalladium(CalculatorForces):
    """EMT that has no numbers for slabs of palladium without an adsorbate."""

    def __call__(self, batch):
        energies, forces = super().__call__(batch)
        numbers = batch.numbers.split(batch.n_atoms.tolist())
        return torch.tensor(
            [float("nan") if set(z.tolist()) == {46} else float(e) for e, z in zip(energies, numbers, strict=True)]
        ), forces


def rows_of(folder):
    with (folder / "table.csv").open() as file:
        return list(csv.DictReader(file))


def test_slabs_together_give_what_each_gives_alone(tmp_path):
    found = screen(NAMES, ["O"], emt(), CONFIG, out=tmp_path / "all", progress=False)
    rows = rows_of(tmp_path / "all")
    assert [row["slab"] for row in rows] == list(found.results) == ["Cu(111)_2x2x3", "Pd(111)_2x2x3"]
    for row, name in zip(rows, NAMES, strict=True):
        equicat.adsorption_energies(name, ["O"], emt(), CONFIG, out=tmp_path / name, progress=False)
        (alone,) = rows_of(tmp_path / name)
        assert {**alone, "slab": row["slab"]} == row
        folder = tmp_path / "all" / row["slab"]
        for file in ("table.csv", "structures.extxyz"):
            assert (folder / file).read_bytes() == (tmp_path / name / file).read_bytes()
        assert (folder / "page.html").exists()


def test_a_slab_without_energy_does_not_hold_up_the_others(tmp_path):
    found = screen(NAMES, ["O"], NoPalladium(EMT, "adsorption"), CONFIG, out=tmp_path / "all", progress=False)
    fine, failed = rows_of(tmp_path / "all")
    assert float(fine["adsorption_energy_eV"]) < 0
    assert (failed["slab"], failed["adsorption_energy_eV"]) == ("Pd(111)_2x2x3", "")
    assert "no finite energy" in failed["flags"]
    assert "Pd(111)_2x2x3: failed: the model gives the clean slab no finite energy" in found.as_text()


def test_an_array_of_jobs_shares_the_placements(tmp_path, monkeypatch):
    screen(NAMES, ["O"], emt(), CONFIG, out=tmp_path / "one", progress=False)
    for rank in (1, 0, 2):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(rank))
        monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
        done = screen(NAMES, ["O"], emt(), CONFIG, out=tmp_path / "all", existing="resume", progress=False)
        assert (done is not None) == (rank == 2)
    assert rows_of(tmp_path / "all") == rows_of(tmp_path / "one")


def test_every_slab_is_checked_before_anything_is_relaxed(tmp_path):
    fcc111("Cu", (2, 2, 3), vacuum=8.0, periodic=True).write(tmp_path / "slab.extxyz")
    full = fcc111("Cu", (2, 2, 3), a=3.6)
    full.center(vacuum=1.0, axis=2)
    full.pbc = True
    full.write(tmp_path / "solid.extxyz")
    with pytest.raises(InputError, match=r"solid.extxyz.*no vacuum"):
        screen([str(tmp_path / "*.extxyz")], ["O"], emt(), CONFIG, out=tmp_path / "all", progress=False)
    assert not (tmp_path / "all").exists()


def test_slabs_are_named_by_their_files(tmp_path):
    slab = fcc111("Cu", (1, 1, 3), vacuum=8.0, periodic=True)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        slab.write(tmp_path / folder / "CONTCAR", format="vasp")
        slab.write(tmp_path / folder / "x.cif")
    found = named([str(tmp_path / "*/CONTCAR"), str(tmp_path / "a/x.cif"), "Cu(1,1,1) 2x2x3"])
    assert list(found) == ["a-CONTCAR", "b-CONTCAR", "x", "Cu(1,1,1)_2x2x3"]
    with pytest.raises(InputError, match="both would be called x"):
        named([str(tmp_path / "*/x.cif")])
    with pytest.raises(InputError, match="no file fits this pattern"):
        named([str(tmp_path / "*.vasp")])


def test_the_command_takes_several_slabs(tmp_path, capsys):
    run = FIXTURES / "runs_b139b12" / "allegro"
    arguments = ["adsorb", str(run), "--slab", "Cu(111) 1x1x3", "Cu(100) 1x1x3", "--adsorbates", "O", "C"]
    arguments += ["--out", str(tmp_path / "out"), "--progress", "false", "--max_steps", "1", "--sites", "[ontop]"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "Cu(111)_1x1x3\n" in printed
    assert "Cu(100)_1x1x3\n" in printed
    assert len({row["slab"] for row in rows_of(tmp_path / "out")}) == 2
    assert {row["adsorbate"] for row in rows_of(tmp_path / "out")} == {"O", "C"}
    assert cli.main(arguments) == 2
    assert "--resume" in capsys.readouterr().err
