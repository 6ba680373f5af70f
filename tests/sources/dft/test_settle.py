"""Whole projects: clean slabs and molecules among the files become references, and clean slabs stay in the data."""

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc100, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from emt_relaxations import clean, relax, system, write_outcar

from equicat.cli.main import main
from equicat.data.directory import splits_of
from equicat.data.store import Store
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.sources.dft.config import ImportConfig
from equicat.sources.dft.make import import_dataset
from equicat.sources.dft.report import Report
from equicat.sources.dft.rules import Rules
from equicat.sources.splits import SplitConfig


def gas(name: str) -> list[Atoms]:
    atoms = molecule(name, vacuum=4.0)
    atoms.pbc = True
    return relax(atoms, fmax=0.01)


@pytest.fixture(scope="session")
def calculations() -> dict[str, list[Atoms]]:
    """O and OH on Cu and Pd, the clean slabs, and H2 and H2O; by the folder that each is in."""
    found = {f"{metal}111/{name}": relax(system(metal, name)) for metal in ("Cu", "Pd") for name in ("O", "OH")}
    found |= {f"{metal}111/clean": relax(clean(metal)) for metal in ("Cu", "Pd")}
    return found | {f"gas/{name}": gas(name) for name in ("H2", "H2O")}


@pytest.fixture
def project(calculations, tmp_path) -> Path:
    """A tree as a group has it: an OUTCAR in a folder for each calculation."""
    for folder, frames in calculations.items():
        (tmp_path / "project" / folder).mkdir(parents=True)
        write_outcar(tmp_path / "project" / folder / "OUTCAR", frames)
    return tmp_path / "project"


def run(project: Path, name: str = "data", **options: object) -> Report:
    return import_dataset(project.parent / name, ImportConfig(files=(str(project),), **options))


def s2ef(project: Path, split: str = "train", name: str = "data") -> list[Structure]:
    return list(Store(splits_of(project.parent / name, "s2ef")[split]))


def energy(calculations: dict[str, list[Atoms]], folder: str) -> float:
    return calculations[folder][-1].calc.results["energy"]


class TestReferencesAmongTheFiles:
    def test_adsorption_energies_without_a_word_about_references(self, project, calculations):
        report = run(project, split=SplitConfig(val_share=0.0))
        n = report.counts()
        assert (n["systems_is2re"], n["clean_slabs"], n["gas_molecules"], n["systems_dropped"]) == (4, 2, 2, 0)
        assert n["systems"] == 8
        h2, h2o = energy(calculations, "gas/H2"), energy(calculations, "gas/H2O")
        expected = {"O": h2o - h2, "OH": h2o - h2 / 2}
        for record in report.records:
            if record.role == "system":
                metal, adsorbate = record.sid.split("/")
                e = energy(calculations, record.sid) - energy(calculations, f"{metal}/clean") - expected[adsorbate]
                assert record.relaxed_energy == pytest.approx(e, abs=1e-6)
        info = Store(splits_of(project.parent / "data", "is2re")["train"]).info
        assert info.energy_reference == "adsorption"
        assert info.reference_energies == pytest.approx({"H2": h2, "H2O": h2o}, abs=1e-6)

    def test_the_report_has_a_row_for_each_adsorption_energy(self, project, calculations):
        report = run(project)
        text = (project.parent / "data" / "import.txt").read_text()
        assert "4 for IS2RE and IS2RS + 0 for S2EF only + 0 dropped + 2 clean slabs + 2 gas molecules" in text
        row = next(line for line in text.splitlines() if line.strip().startswith("Cu111/OH "))
        known = {r.sid: r for r in report.records}["Cu111/OH"]
        assert row.split()[:3] == ["Cu111/OH", "OH", f"{known.relaxed_energy:.4f}"]
        assert f"OH = H2O - ½ H2 = {known.gas_energy:.4f} eV" in row
        assert row.endswith(f"{known.slab_energy:.4f} eV, {project / 'Cu111' / 'clean' / 'OUTCAR'}, frame 0") or (
            f"{project / 'Cu111' / 'clean' / 'OUTCAR'}, frame " in row
        )
        assert "read from VASP: energy(sigma->0), not TOTEN" in text
        saved = json.loads((project.parent / "data" / "import.json").read_text())
        system = next(s for s in saved["systems"] if s["sid"] == "Cu111/OH")
        assert system["relaxed_energy"] == known.relaxed_energy
        assert system["gas_reference"] == "H2O - ½ H2"

    def test_files_named_one_by_one(self, project, calculations, tmp_path):
        config = ImportConfig(
            files=(str(project / "*111" / "O*" / "OUTCAR"),),
            slab_files=(str(project / "*" / "clean"),),
            gas_files=(str(project / "gas"),),
        )
        report = import_dataset(tmp_path / "named", config)
        whole = {r.sid: r.relaxed_energy for r in run(project).records}
        assert {r.sid: r.relaxed_energy for r in report.records if r.role == "system"} == {
            sid: e for sid, e in whole.items() if "O" in sid.split("/")[1] and sid.endswith(("/O", "/OH"))
        }

    def test_total_and_relative_energies_keep_everything(self, project, calculations):
        for kind in ("total", "relative"):
            report = run(project, kind, energy_reference=kind)
            n = report.counts()
            assert n["frames_dropped"] == 0
            assert n["frames_s2ef"] == sum(map(len, calculations.values()))
            assert (n["clean_slabs"], n["gas_molecules"]) == (2, 2)
            assert not any(record.findings for record in report.records)

    def test_a_missing_reference(self, project, calculations, tmp_path):
        (project / "Pd111" / "clean" / "OUTCAR").unlink()
        report = run(project)
        assert report.settled.kind == "total"
        assert "the references among the files do not do for adsorption energies: no clean-slab energy for Pd12" in (
            report.as_text()
        )
        assert all(record.zero == 0.0 for record in report.records)
        with pytest.raises(InputError, match=r"no clean-slab energy for Pd12: .*\(systems Pd111/O, Pd111/OH\)"):
            run(project, "wanted", energy_reference="adsorption")
        report = run(project, "dropped", energy_reference="adsorption", rules=Rules(no_reference="drop"))
        assert report.counts()["systems_is2re"] == 2

    def test_nothing_to_form_them_with(self, project, calculations, tmp_path):
        config = ImportConfig(files=(str(project / "Cu111" / "O"),), energy_reference="adsorption")
        with pytest.raises(InputError, match="adsorption energies need references: clean slabs and gas"):
            import_dataset(tmp_path / "data", config)

    def test_one_problem_a_line(self, project, calculations, tmp_path, capsys):
        (project / "Pd111" / "clean" / "OUTCAR").unlink()
        (project / "gas" / "H2O" / "OUTCAR").unlink()
        arguments = ["--energy_reference", "adsorption", "--progress", "false"]
        assert main(["data", "import", str(tmp_path / "data"), str(project), *arguments]) == 2
        first, *problems, advice = capsys.readouterr().err.splitlines()
        assert first == "equicat: 2 problems in the files"
        assert [p.split(":")[0].strip() for p in problems] == ["no gas reference for O", "no gas reference for OH"]
        assert advice == "  To leave out such systems: --rules.no_reference drop"

    def test_contradictions_with_what_is_given(self, project, calculations, tmp_path):
        (tmp_path / "gas.yaml").write_text("gas: {H2: 1.0}")
        with pytest.raises(InputError, match=r"two energies for the gas molecule H2: 1 eV .*gas.yaml.* and .*OUTCAR"):
            run(project, references=str(tmp_path / "gas.yaml"))
        (tmp_path / "gas.yaml").write_text("slabs: {Cu12: 1.0}")
        with pytest.raises(InputError, match=r"several clean slabs fit Cu12 and differ in energy: 1 eV .*gas.yaml"):
            run(project, references=str(tmp_path / "gas.yaml"))
        (tmp_path / "gas.yaml").write_text(f"gas: {{H2: {energy(calculations, 'gas/H2')}}}")
        assert run(project, references=str(tmp_path / "gas.yaml")).settled.formed

    def test_contradictions_that_nobody_asked_about(self, project, calculations):
        """A tree with two calculations of H2 is imported as it is, unless adsorption energies are wanted."""
        (project / "gas" / "H2 again").mkdir()
        write_outcar(project / "gas" / "H2 again" / "OUTCAR", [shifted(f) for f in calculations["gas/H2"]])
        report = run(project)
        assert report.settled.kind == "total"
        assert "two energies for the gas molecule H2: " in report.as_text()
        with pytest.raises(InputError, match="two energies for the gas molecule H2: "):
            run(project, "wanted", energy_reference="adsorption")

    def test_what_is_not_relaxed_is_no_reference(self, project, calculations):
        write_outcar(project / "Pd111" / "clean" / "OUTCAR", [rattled(frame) for frame in calculations["Pd111/clean"]])
        report = run(project)
        assert report.settled.kind == "total"
        assert "Pd111/clean: unconverged (S2EF only): not taken as a reference energy: largest" in report.as_text()

    def test_energies_that_are_adsorption_energies_already(self, project, calculations, tmp_path):
        for folder in ("Cu111/O", "Cu111/clean"):
            frames = [frame.copy() for frame in calculations[folder]]
            for i, frame in enumerate(frames):
                frame.info["e_ads"] = -1.0 - i
                frame.calc = SinglePointCalculator(frame, forces=calculations[folder][i].calc.results["forces"])
            ase.io.write(tmp_path / f"{folder.replace('/', '-')}.extxyz", frames)
        config = ImportConfig(files=(str(tmp_path / "*.extxyz"),), energy_key="e_ads", energy_reference="adsorption")
        report = import_dataset(tmp_path / "data", config)
        assert not report.settled.formed
        assert report.records[0].relaxed_energy == -float(len(calculations["Cu111/O"]))


def shifted(frame: Atoms) -> Atoms:
    """The frame with another energy."""
    other = frame.copy()
    other.calc = SinglePointCalculator(other, **frame.calc.results | {"energy": frame.calc.results["energy"] + 0.5})
    return other


def rattled(frame: Atoms) -> Atoms:
    moved = frame.copy()
    moved.positions[6] += 0.1
    moved.calc = EMT()
    results = {"energy": moved.get_potential_energy(), "forces": moved.get_forces(apply_constraint=False)}
    moved.calc = SinglePointCalculator(moved, **results)
    return moved


class TestCleanSlabs:
    """In a data set of adsorption energies, a clean slab has none."""

    def test_clean_slabs_are_frames_relaxed_ones_of_zero(self, project, calculations):
        run(project, split=SplitConfig(val_share=0.0))
        slabs = [s for s in s2ef(project) if s.tags.max() < 2]
        assert {s.sid for s in slabs} == {"Cu111/clean", "Pd111/clean"}
        for s in slabs:
            frames = calculations[s.sid]
            e = frames[s.fid].calc.results["energy"] - energy(calculations, s.sid)
            assert s.energy == pytest.approx(e, abs=1e-6)
            assert s.fixed.tolist() == [True] * 4 + [False] * 8
        relaxed = [s for s in slabs if s.fid == len(calculations[s.sid]) - 1]
        assert {s.sid for s in relaxed} == {"Cu111/clean", "Pd111/clean"}
        assert {s.energy for s in relaxed} == {0.0}
        assert all(s.tags.max() == 2 for s in Store(splits_of(project.parent / "data", "is2re")["train"]))

    @pytest.mark.parametrize("share", [0.1, 0.3, 1e-9])
    def test_they_are_a_share_of_the_training_frames(self, project, calculations, share):
        split = SplitConfig(held_out_catalysts=("Pd",), val_share=0.0)
        report = run(project, split=split, clean_slab_share=share)
        for metal, name in (("Cu", "train"), ("Pd", "val_ood_cat")):
            n_slab = sum(s.tags.max() < 2 for s in s2ef(project, name))
            n_own = len(calculations[f"{metal}111/clean"])
            n_others = len(s2ef(project, name)) - n_slab
            wanted = share * n_others / (1 - share) if name == "train" else 0.0
            assert n_slab % n_own == 0
            assert max(wanted, n_own) <= n_slab < max(wanted + n_own, n_own + 1)
            assert report.splits[name]["repeated_frames"] == n_slab - n_own
        with pytest.raises(InputError, match=r"clean_slab_share is 1.0; it must be a number of at least 0"):
            ImportConfig(files=("a",), clean_slab_share=1.0)

    def test_from_slab_files_the_relaxed_frame(self, project, calculations, tmp_path):
        options = {"slab_files": (str(project / "*" / "clean"),), "gas_files": (str(project / "gas"),)}
        config = ImportConfig(files=(str(project / "Cu111" / "O*"),), **options)
        report = import_dataset(tmp_path / "data", config)
        slabs = [s for s in s2ef(project) if s.tags.max() < 2]
        assert {(s.sid, s.energy) for s in slabs} == {("slab-Cu111/clean", 0.0)}, "that of Pd is not used"
        np.testing.assert_allclose(slabs[0].forces, calculations["Cu111/clean"][-1].calc.results["forces"], atol=1e-6)
        assert slabs[0].tags.tolist() == [0] * 4 + [1] * 8
        assert report.counts()["clean_slabs"] == 1

    def test_a_slab_that_nobody_uses_is_left_out(self, project, calculations):
        """Such a slab may be an adsorbed metal atom, for all that its elements tell."""
        for name in ("O", "OH"):
            (project / "Pd111" / name / "OUTCAR").unlink()
        report = run(project, split=SplitConfig(val_share=0.0))
        assert {s.sid for s in s2ef(project)} == {"Cu111/O", "Cu111/OH", "Cu111/clean"}
        assert "Pd111/clean: clean slab (left out): no system is measured against it" in report.as_text()

    def test_their_relaxations_can_be_kept_as_systems(self, project, calculations):
        report = run(project, energy_reference="total", rules=Rules(no_adsorbate="keep"))
        assert {r.sid for r in report.records if r.initial is not None} >= {"Cu111/clean", "Pd111/clean"}

    def test_left_out(self, project, calculations, tmp_path):
        report = run(project, clean_slab_share=0.0, split=SplitConfig(val_share=0.0))
        assert all(s.tags.max() == 2 for s in s2ef(project))
        assert "2 clean slabs not among the S2EF frames" in report.as_text()
        run(project, "total", clean_slab_share=0.0, energy_reference="total", split=SplitConfig(val_share=0.0))
        assert not any("clean" in s.sid for s in s2ef(project, name="total"))

    def test_known_by_their_energy_only(self, project, calculations, tmp_path):
        energies = {f"{m}12": energy(calculations, f"{m}111/clean") for m in ("Cu", "Pd")}
        (tmp_path / "slabs.csv").write_text("".join(f"{name},{e}\n" for name, e in energies.items()))
        files, gas_files = (str(project / "*111" / "O*" / "OUTCAR"),), (str(project / "gas"),)
        config = ImportConfig(files=files, gas_files=gas_files, slab_table=str(tmp_path / "slabs.csv"))
        report = import_dataset(tmp_path / "data", config)
        assert "2 clean slabs not among the S2EF frames (no structure with forces, or left out)" in report.as_text()

    def test_the_slab_of_a_held_out_catalyst_stays_out_of_training(self, project, calculations):
        run(project, split=SplitConfig(held_out_catalysts=("Pd",), val_share=0.0))
        assert {s.sid for s in s2ef(project)} == {"Cu111/O", "Cu111/OH", "Cu111/clean"}
        assert {s.sid for s in s2ef(project, "val_ood_cat")} == {"Pd111/O", "Pd111/OH", "Pd111/clean"}

    def test_splits_that_are_given(self, project, calculations, tmp_path):
        (tmp_path / "splits.csv").write_text("Cu111/O,train\nCu111/OH,train\nPd111/O,val_id\nPd111/OH,train\n")
        run(project, split=SplitConfig(file=str(tmp_path / "splits.csv")))
        assert "Pd111/clean" in {s.sid for s in s2ef(project)}, "training uses it"
        (tmp_path / "splits.csv").write_text("Cu111/O,train\nCu111/O,val_id\n")
        with pytest.raises(InputError, match=r"row 2: system Cu111/O is in val_id, and in train before"):
            run(project, "twice", split=SplitConfig(file=str(tmp_path / "splits.csv")))

    def test_subsets_have_the_slabs_of_their_systems(self, project, calculations):
        run(project, split=SplitConfig(val_share=0.0, subsets=(1,), held_out_adsorbates=("O",)))
        frames = list(Store(project.parent / "data" / "subsets" / "1" / "s2ef" / "train"))
        assert len({s.sid.split("/")[0] for s in frames}) == 1
        assert {s.sid.split("/")[1] for s in frames} == {"OH", "clean"}

    def test_an_oxide_is_a_clean_slab_if_it_is_that_of_another_system(self, tmp_path):
        def oxide(adsorbate: bool, energy: float) -> list[Atoms]:
            atoms = fcc100("Pd", (2, 2, 3), vacuum=7.0)
            atoms.pbc = True
            atoms.symbols[[0, 3, 9]] = "O"
            atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 3))
            atoms.set_tags(0)
            if adsorbate:
                atoms += Atoms("H", [atoms.positions[8] + [0, 0, 1.6]])
            frames = [atoms.copy(), atoms.copy()]
            for frame in frames:
                frame.calc = SinglePointCalculator(frame, energy=energy, forces=np.zeros((len(atoms), 3)))
            return frames

        for name, frames in {"H": oxide(True, -52.0), "clean": oxide(False, -48.0)}.items():
            ase.io.write(tmp_path / f"{name}.traj", frames)
        ase.io.write(tmp_path / "H2.traj", gas("H2"))
        report = import_dataset(tmp_path / "data", ImportConfig(files=(str(tmp_path / "*.traj"),)))
        records = {record.sid: record for record in report.records}
        assert {sid: r.role for sid, r in records.items()} == {
            "H": "system", "clean": "clean slab", "H2": "gas molecule"
        }  # fmt: skip
        assert records["H"].relaxed_energy == pytest.approx(-4.0 - records["H"].gas_energy)
        assert not records["clean"].findings
        (tmp_path / "H.traj").unlink()
        report = import_dataset(tmp_path / "alone", ImportConfig(files=(str(tmp_path / "*.traj"),)))
        assert "clean: no adsorbate (S2EF only): " in report.as_text(), "nobody says that all its atoms are the slab's"


class TestFacets:
    def test_a_facet_is_held_out_by_its_folder(self, project, calculations):
        report = run(project, split=SplitConfig(catalysts="folder", held_out_catalysts=("Pd111",), val_share=0.0))
        assert {r.sid for r in report.records if r.split == "val_ood_cat"} == {"Pd111/O", "Pd111/OH", "Pd111/clean"}
        with pytest.raises(InputError, match=r"no catalyst 'Pd211' to hold out \(did you mean 'Pd111'\?\)"):
            run(project, "b", split=SplitConfig(catalysts="folder", held_out_catalysts=("Pd211",)))

    def test_by_an_info_key(self, project, calculations, tmp_path):
        for folder, facet in {"Cu111/O": "211", "Cu111/OH": "111", "Pd111/O": "111"}.items():
            frames = [frame.copy() for frame in calculations[folder]]
            for frame, known in zip(frames, calculations[folder], strict=True):
                frame.info["facet"] = f"facet {facet}"
                frame.calc = SinglePointCalculator(frame, **known.calc.results)
            ase.io.write(tmp_path / f"{folder.replace('/', '-')}.extxyz", frames)
        split = SplitConfig(catalysts="facet", held_out_catalysts=("facet 211",), val_share=0.0)
        files = (str(tmp_path / "*.extxyz"),)
        report = import_dataset(tmp_path / "data", ImportConfig(files=files, split=split))
        assert {r.sid for r in report.records if r.split == "val_ood_cat"} == {"Cu111-O"}
        with pytest.raises(InputError, match=r"no catalyst under 'facets'; split.catalysts is compos"):
            import_dataset(tmp_path / "b", ImportConfig(files=files, split=SplitConfig(catalysts="facets")))
