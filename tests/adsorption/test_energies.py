"""Adsorption energies, from a slab and a model to a table and a page; EMT of ASE stands in for a model."""

import csv
import dataclasses
import json
import re
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLengths
from ase.optimize import BFGS
from places import FIXTURES

import equicat
from equicat import InputError
from equicat.adsorption.adsorbates import together
from equicat.adsorption.builders import SlabConfig
from equicat.adsorption.duplicates import representatives
from equicat.adsorption.energies import AdsorptionConfig
from equicat.adsorption.placements import PlacementConfig, place
from equicat.adsorption.references import energy_reference
from equicat.adsorption.results import rows_of
from equicat.adsorption.sites import find_sites
from equicat.adsorption.slabs import open_slab
from equicat.cli import main as cli
from equicat.data.fitted import Domain
from equicat.data.readers import read
from equicat.relaxation.models import CalculatorForces

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
RUNS = FIXTURES / "runs_b139b12"
SLAB = "Cu(111) 2x2x3"
ONE_SITE = AdsorptionConfig(sites=("fcc",))


class EMTForces(CalculatorForces):
    """EMT, with a constant energy for each copper atom, and with what goes wrong in some systems."""

    def __init__(self, energy_reference="total", per_copper=0.0, wrong=lambda numbers: False, stop_after=None):
        super().__init__(EMT, energy_reference)
        self.per_copper, self.wrong, self.calls_left = per_copper, wrong, stop_after

    def __call__(self, batch):
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise KeyboardInterrupt
        energies, forces = super().__call__(batch)
        numbers = batch.numbers.split(batch.n_atoms.tolist())
        energies = energies + self.per_copper * torch.tensor([float((z == 29).sum()) for z in numbers])
        bad = torch.cat([torch.full((len(z), 1), bool(self.wrong(z.tolist()))) for z in numbers])
        return energies, torch.where(bad, torch.nan, forces)


def energies(adsorbates, model=None, config=ONE_SITE, slab=SLAB, **options):
    return equicat.adsorption_energies(slab, adsorbates, model or EMTForces(), config, progress=False, **options)


def relaxed_energy(atoms: Atoms) -> float:
    atoms.calc = EMT()
    BFGS(atoms, logfile=None).run(fmax=0.01)
    return atoms.get_potential_energy()


# ---- energies --------------------------------------------------------------------------------------------------------


def test_the_energy_is_that_of_relaxations_by_hand():
    def slab() -> Atoms:
        atoms = fcc111("Cu", (2, 2, 3), a=3.61, vacuum=10.0, periodic=True)
        atoms.set_constraint(FixAtoms(mask=atoms.get_tags() > 1))
        return atoms

    with_oxygen = slab()
    fcc = with_oxygen.positions[np.abs(with_oxygen.positions[:, 2] - with_oxygen.positions[0, 2]) < 0.1][0]
    with_oxygen += Atoms("O", [[fcc[0], fcc[1], with_oxygen.positions[:, 2].max() + 1.2]])
    by_hand = relaxed_energy(with_oxygen) - relaxed_energy(slab()) - relaxed_energy(Atoms("O"))
    (row,) = energies(["O"], config=AdsorptionConfig(sites=("fcc",), fmax=0.01)).rows
    assert row.energy == pytest.approx(by_hand, abs=2e-3)
    assert (row.site, row.relaxed_site, row.n_adsorbates) == ("fcc", "fcc", 1)


def test_a_constant_error_of_every_slab_atom_is_taken_off():
    exact, shifted = (energies(["O"], EMTForces("adsorption", per_copper=e)) for e in (0.0, 0.05))
    assert shifted.rows[0].energy == pytest.approx(exact.rows[0].energy, abs=1e-9)
    assert "is taken off" in shifted.reference[0]


def test_gas_energies_of_a_file_are_used_in_the_combination_of_the_adsorbate(tmp_path):
    file = tmp_path / "gas.yaml"
    file.write_text("gas: {H2: -6.0, H2O: -14.0}\n")
    config = AdsorptionConfig(sites=("fcc",), references=str(file))
    by_file, by_model = energies(["O"], config=config), energies(["O"])
    oxygen = EMT()
    alone = Atoms("O", calculator=oxygen).get_potential_energy()
    assert by_file.rows[0].energy - by_model.rows[0].energy == pytest.approx(alone - (-14.0 + 6.0), abs=1e-6)
    assert "O = H2O - H2" in by_file.reference[1].replace("−", "-")
    assert not by_file.warnings
    file.write_text("gas: {H2: -600.0, H2O: -1400.0}\n")
    assert any("not of the same calculations" in text for text in energies(["O"], config=config).warnings)
    assert any("gas molecules" in text for text in by_model.warnings)


def test_a_coverage_gives_the_energy_of_one_adsorbate():
    config = AdsorptionConfig(sites=("fcc",), coverage=0.5)
    (row,) = energies(["O"], config=config).rows
    assert (row.adsorbate, row.n_adsorbates) == ("2 O", 2)
    assert row.energy_per_adsorbate == pytest.approx(row.energy / 2)


def test_placements_that_relax_to_the_same_structure_are_merged():
    config = AdsorptionConfig(sites=("ontop",), rotations=3, heights=(0.0, 0.1))
    rows = energies(["OH"], EMTForces(), config).rows
    assert sum(row.n_placements for row in rows) == 2
    assert len(rows) == 1


def test_placements_that_left_their_site_are_counted():
    """Placements at a bridge, at fcc and at random, all of which end where that at fcc began."""
    slab = open_slab(SLAB, SlabConfig())
    config = PlacementConfig(sites=("bridge", "fcc"), rotations=1, n_random=1, finder="delaunay")
    placed = place(slab, [together("O")], config)
    assert sorted(placement.site for placement in placed.placements) == ["bridge", "fcc", "random"]
    (there,) = (placement.structure.positions for placement in placed.placements if placement.site == "fcc")
    info = {"converged": True, "n_steps": 5, "fmax": 0.01, "flags": ""}
    relaxed = [
        dataclasses.replace(placement.structure, positions=there, energy=-1.0, info=info)
        for placement in placed.placements
    ]
    clean = dataclasses.replace(slab.structure, energy=0.5, info=info)
    (row,) = rows_of(slab, placed, clean, relaxed, energy_reference("adsorption", None), {})
    assert (row.relaxed_site, row.energy, row.n_placements, row.n_migrated) == ("fcc", -1.5, 3, 1)


def test_equivalent_positions_are_the_same_structure_and_other_sites_are_not():
    slab = open_slab(SLAB, SlabConfig())
    sites, _ = find_sites(slab, "delaunay")
    n = len(slab.structure)

    def with_oxygen(position):
        return equicat.Structure(
            np.r_[slab.structure.numbers, 8],
            np.concatenate([slab.structure.positions, [position + np.array([0, 0, 1.2])]]),
            cell=slab.structure.cell,
            pbc=slab.structure.pbc,
        )

    structures = [with_oxygen(position) for site in sites for position in site.positions]
    kinds = [k for k, site in enumerate(sites) for _ in site.positions]
    found = representatives(structures, [0.0] * len(structures), n, ["O"] * len(structures))
    assert found == [kinds.index(k) for k in kinds]
    other_energy = representatives(structures[:2], [0.0, 0.1], n, ["O", "O"])
    assert other_energy == [0, 1]


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_nan_forces_in_one_system_leave_the_others_as_they_are():
    config = AdsorptionConfig(sites=("fcc",))
    fine = energies(["O", "N"], EMTForces("adsorption"), config)
    broken = energies(["O", "N"], EMTForces("adsorption", wrong=lambda z: 7 in z), config)
    (nitrogen,) = (row for row in broken.rows if row.adsorbate == "N")
    assert nitrogen.energy is None
    assert "exploded" in nitrogen.flags
    assert not nitrogen.trusted
    (after,), (before,) = ([row for row in r.rows if row.adsorbate == "O"] for r in (broken, fine))
    assert after.energy == before.energy


def test_a_clean_slab_without_energy_ends_it():
    with pytest.raises(InputError, match="gives the clean slab no finite energy"):
        energies(["O"], EMTForces("adsorption", wrong=lambda z: 8 not in z))


def test_what_did_not_converge_is_marked_and_the_clean_slab_is_warned_of():
    config = AdsorptionConfig(sites=("fcc",), max_steps=1)
    slab = fcc111("Cu", (2, 2, 3), a=3.7, vacuum=8.0, periodic=True)
    slab.set_constraint(FixAtoms(mask=slab.get_tags() > 1))
    slab.rattle(0.1)
    result = energies(["O"], EMTForces("adsorption"), config, slab)
    assert "not converged" in result.rows[0].remarks
    assert any("clean slab did not converge" in text for text in result.warnings)


def test_a_thin_vacuum_is_warned_of():
    slab = fcc111("Cu", (1, 1, 3), vacuum=2.5, periodic=True)
    config = AdsorptionConfig(sites=("fcc",), max_steps=0)
    result = energies(["O"], RUNS / "allegro", config, slab)
    assert any("less than the model's cutoff of 4 Å" in text for text in result.warnings)


@pytest.mark.parametrize(
    ("slab", "adsorbates", "model", "problem"),
    [
        (SLAB, ["O"], EMTForces("relative"), "energies are relative"),
        (SLAB, [], EMTForces("adsorption"), "surface energy, which a model of adsorption energies cannot know"),
        (SLAB, ["O", "*O"], EMTForces(), "named more than once"),
        (SLAB, ["N"], RUNS / "allegro", "adsorbate N: N was not in the training data; this model knows C, O, Cu"),
        ("Ag(111) 2x2x3", ["O"], RUNS / "allegro", "Ag.* was not in the training data"),
        (SLAB, ["O"], RUNS / "is2re_displacements", "no forces"),
        (SLAB, ["O"], RUNS / "nothing", "no such run"),
    ],
)
def test_what_cannot_be_computed_is_refused(slab, adsorbates, model, problem):
    with pytest.raises(InputError, match=problem):
        energies(adsorbates, model, slab=slab)


@pytest.mark.parametrize(
    ("text", "reference", "problem"),
    [
        ("gas: {H2: -6.0, H2O: -14.0}\n", "adsorption", "are adsorption energies already"),
        ("gas: {H2: -6.0}\n", "total", "no gas reference for O"),
        ("slabs: {Cu12: -6.0}\n", "total", "has no section gas"),
    ],
)
def test_references_that_do_not_fit_the_model_are_refused(tmp_path, text, reference, problem):
    (tmp_path / "gas.yaml").write_text(text)
    config = AdsorptionConfig(references=str(tmp_path / "gas.yaml"))
    with pytest.raises(InputError, match=problem):
        energies(["O"], EMTForces(reference), config)


def test_what_training_did_not_hold_is_warned_of(tmp_path):
    model = equicat.load(RUNS / "allegro")
    domain = Domain(9, 9, 20, {"Cu-Cu": 2.2, "C-Cu": 1.6, "C-O": 1.0}, {}, {"CO": 9}, {"Cu": 9}, (6, 8), (29,))
    model.info = dataclasses.replace(model.info, domain=domain)
    config = AdsorptionConfig(sites=("fcc",), max_steps=0)
    result = energies(["CO", "O"], model, config, "Cu(111) 3x3x3", out=tmp_path / "out")
    (found,) = result.warnings
    assert "the adsorbate O was not in training" in found
    assert "O–Cu were never neighbours" in found
    assert "atoms" not in found  # the error that grows with the slab is taken off
    assert "No clean slab was in the training data" in result.reference[0]
    assert "the adsorbate O was not in training" in (tmp_path / "out/page.html").read_text()


def test_a_slab_that_cannot_be_relaxed_leaves_no_directory(tmp_path):
    slab = fcc111("Cu", (2, 2, 3), vacuum=8.0)
    slab.set_constraint(FixBondLengths([(0, 1)]))
    with pytest.raises(InputError, match="slab: cannot relax under FixBondLengths"):
        energies(["O"], slab=slab, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- files -----------------------------------------------------------------------------------------------------------


def test_the_table_and_the_structures_have_the_same_rows(tmp_path):
    result = energies(["O", "OH"], EMTForces("adsorption"), AdsorptionConfig(), out=tmp_path / "out")
    with (tmp_path / "out/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    structures = list(read(tmp_path / "out/structures.extxyz"))
    assert len(rows) == len(structures) == len(result.rows)
    for row, structure in zip(rows, structures, strict=True):
        assert float(row["adsorption_energy_eV"]) == pytest.approx(structure.info["adsorption_energy"], abs=1e-5)
        assert row["sid"] == structure.sid
    assert json.loads((tmp_path / "out/plan.json").read_text())["rotations"] == 3


def test_a_killed_run_goes_on_and_gives_the_same_table(tmp_path):
    config = AdsorptionConfig(edges=1000)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    energies(["O"], EMTForces("adsorption"), config, out=whole)
    with pytest.raises(KeyboardInterrupt):
        energies(["O"], EMTForces("adsorption", stop_after=25), config, out=killed)
    assert not (killed / "table.csv").exists()
    assert sum(path.read_text().count("\n") for path in killed.glob("relaxed*/*.jsonl")) > 0
    with pytest.raises(InputError, match="--resume goes on with it"):
        energies(["O"], EMTForces("adsorption"), config, out=killed)
    energies(["O"], EMTForces("adsorption"), config, out=killed, existing="resume")
    for name in ("table.csv", "page.html", "structures.extxyz"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    again = EMTForces("adsorption", stop_after=0)  # nothing is left to compute
    energies(["O"], again, config, out=killed, existing="resume")
    assert (killed / "table.csv").read_bytes() == (whole / "table.csv").read_bytes()


def test_a_task_of_an_array_of_jobs_does_its_whole_slab(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "8")
    assert len(energies(["O"], EMTForces("adsorption"), out=tmp_path / "out").rows) == 1


def test_a_run_is_not_resumed_with_other_options_and_not_replaced_unasked(tmp_path):
    out = tmp_path / "out"
    energies(["O"], EMTForces("adsorption"), out=out)
    for existing, config in (("refuse", ONE_SITE), ("resume", AdsorptionConfig())):
        with pytest.raises(InputError, match="--overwrite"):
            energies(["O"], EMTForces("adsorption"), config, out=out, existing=existing)
    before = (out / "table.csv").read_text()
    with pytest.raises(InputError, match="no adsorbate"):
        energies(["Xy"], EMTForces("adsorption"), out=out, existing="overwrite")
    assert (out / "table.csv").read_text() == before
    energies(["C"], EMTForces("adsorption"), out=out, existing="overwrite")
    assert (out / "table.csv").read_text() != before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").touch()
    with pytest.raises(InputError, match="holds other files"):
        energies(["O"], EMTForces("adsorption"), out=tmp_path / "other", existing="overwrite")


def test_the_page_is_one_file_and_what_comes_from_outside_is_escaped(tmp_path):
    Atoms("O").write(tmp_path / "<script>alert(1)<s>.xyz")
    energies([tmp_path / "<script>alert(1)<s>.xyz", "O"], EMTForces("adsorption"), out=tmp_path / "out")
    page = (tmp_path / "out/page.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert re.findall(r'(?:src|href)\s*=\s*["\']', page) == []
    assert page.count("<svg") == 2
    assert "is taken off" in page
    assert "Fixed: 8 of 12 atoms" in page


def test_the_command_writes_a_table_for_a_run(tmp_path, capsys):
    arguments = ["adsorb", str(RUNS / "allegro"), "--bulk", "Cu", "--facet", "111", "--size", "1x1x3"]
    arguments += ["--adsorbates", "O,CO", "--out", str(tmp_path / "out"), "--progress", "false", "--max_steps", "2"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cli.main(arguments) == 0
    assert "is taken off" in capsys.readouterr().out
    assert (tmp_path / "out/table.csv").read_text().count("\n") > 2
    assert cli.main(arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli.main([*arguments, "--resume"]) == 0
    assert cli.main([*arguments, "--slab", "Cu(111) 1x1x3", "--overwrite"]) == 2


def test_options_of_the_slab_reach_it():
    config = AdsorptionConfig(fixed_layers=1, lattice_constant=3.7, vacuum=12.0, sites=("fcc",))
    result = energies(["O"], EMTForces("adsorption"), config)
    assert result.slab.structure.fixed.sum() == 4
    assert np.linalg.norm(result.slab.structure.cell[0]) == pytest.approx(2 * 3.7 / np.sqrt(2))
