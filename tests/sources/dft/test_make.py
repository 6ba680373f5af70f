"""`equicat data import`: relaxations made with EMT, in every format, become a data set in which nothing is lost."""

import gzip
import json
import lzma
import shlex
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import configuration
from emt_relaxations import clean, relax, system, write_outcar, write_vasprun
from places import DFT_DATA, ROOT, needs_dft_data

from equicat.cli import main as cli
from equicat.cli.main import main
from equicat.data.datasets import require_labels
from equicat.data.directory import splits_of
from equicat.data.labels import LabelKeys
from equicat.data.readers import read, write
from equicat.data.store import Store
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.sources.dft.config import ImportConfig
from equicat.sources.dft.make import import_dataset
from equicat.sources.dft.report import Report
from equicat.sources.dft.rules import Rules
from equicat.sources.dft.trajectories import file_sids, find_files, trajectories
from equicat.sources.splits import SplitConfig
from equicat.training.config import from_mapping
from equicat.training.train import train

GAS = {"H2": 1.0, "H2O": -3.0}
"""Energies of nothing in particular."""


@pytest.fixture(scope="session")
def relaxations() -> dict[str, list[Atoms]]:
    """Relaxations by name: two metals, each with O and OH; six frames of each, the first and the last among them."""
    found = {}
    for seed, (metal, adsorbate) in enumerate(product(("Cu", "Pd"), ("O", "OH"))):
        frames = relax(system(metal, adsorbate, seed))
        found[f"{metal}-{adsorbate}"] = [frames[i] for i in np.linspace(0, len(frames) - 1, 6).round().astype(int)]
    return found


@pytest.fixture
def folder(relaxations, tmp_path) -> Path:
    """One trajectory a system."""
    (tmp_path / "runs").mkdir()
    for name, frames in relaxations.items():
        ase.io.write(tmp_path / "runs" / f"{name}.traj", frames)
    return tmp_path / "runs"


def shifted(frame: Atoms) -> Atoms:
    """Moved so that free atoms of the slab are outside the cell, by less than what they move."""
    moved = frame.copy()
    moved.positions[:, 0] -= 0.01
    moved.calc = SinglePointCalculator(moved, **frame.calc.results)
    return moved


def wrap(frame: Atoms) -> Atoms:
    """Every atom in the cell."""
    wrapped = frame.copy()
    wrapped.wrap()
    wrapped.calc = SinglePointCalculator(wrapped, **frame.calc.results)
    return wrapped


def load(out: Path, task: str) -> list[Structure]:
    return [s for path in splits_of(out, task).values() for s in Store(path)]


def check_counts(report: Report, n_frames: int) -> dict[str, int]:
    n = report.counts()
    assert n["frames"] == n_frames == n["frames_kept"] + n["frames_dropped"]
    assert n["frames_kept"] == n["frames_s2ef"] + n["frames_is2re_only"]
    assert n["systems"] == n["systems_is2re"] + n["systems_s2ef_only"] + n["systems_dropped"]
    assert sum(rule["frames_dropped"] for rule in report.by_rule().values()) == n["frames_dropped"]
    return n


class TestWhatIsWritten:
    def test_all_three_tasks(self, folder, relaxations, tmp_path):
        report = import_dataset(tmp_path / "data", ImportConfig(files=(str(folder),)))
        n = check_counts(report, sum(map(len, relaxations.values())))
        assert (n["systems_is2re"], n["frames_dropped"], n["frames_is2re_only"]) == (4, 0, 0)
        frames, systems = load(tmp_path / "data", "s2ef"), load(tmp_path / "data", "is2rs")
        assert len(frames) == n["frames"]
        require_labels(Store(splits_of(tmp_path / "data", "is2re")["train"]), ["relaxed_energy", "relaxed_positions"])
        for s in systems:
            first, last = relaxations[s.sid][0], relaxations[s.sid][-1]
            np.testing.assert_array_equal(s.positions, first.positions)
            np.testing.assert_array_equal(s.relaxed_positions, last.positions)
            assert s.relaxed_energy == last.calc.results["energy"]
            assert s.fixed.tolist() == [True] * 4 + [False] * (len(s) - 4)
            assert s.tags.tolist() == [0] * 4 + [1] * 8 + [2] * (len(s) - 12)
            own = sorted((f for f in frames if f.sid == s.sid), key=lambda f: f.fid)
            assert [f.fid for f in own] == list(range(len(relaxations[s.sid])))
            for f, atoms in zip(own, relaxations[s.sid], strict=True):
                np.testing.assert_array_equal(f.forces, atoms.calc.results["forces"])
                assert np.abs(f.forces[f.fixed]).max() > 1e-3, "as written, not zeroed"
        assert Store(splits_of(tmp_path / "data", "s2ef")["train"]).info.energy_reference == "total"
        assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [
            "dataset.json", "import.json", "import.txt", "is2re", "s2ef"
        ]  # fmt: skip

    def test_every_format_gives_the_same(self, relaxations, tmp_path):
        """Files may be compressed, and VASP may have wrapped positions into the cell."""
        frames = [shifted(frame) for frame in relaxations["Pd-OH"]]
        files: dict[str, Callable[[Path], None]] = {
            "a/x.traj": lambda path: ase.io.write(path, frames),
            "b/x.extxyz": lambda path: write(path, map(Structure.from_ase, frames)),
            "c/x.extxyz.xz": lambda path: write(path, map(Structure.from_ase, frames)),
            "d/OUTCAR": lambda path: write_outcar(path, frames),
            "e/vasprun.xml": lambda path: write_vasprun(path, frames),
        }
        for name, writer in files.items():
            (tmp_path / "in" / name).parent.mkdir(parents=True)
            writer(tmp_path / "in" / name)
        for name, compress in (("d/OUTCAR", lzma), ("e/vasprun.xml", gzip)):
            source = tmp_path / "in" / name
            target = tmp_path / "in" / f"{name[0]}2" / f"{source.name}.{'xz' if compress is lzma else 'gz'}"
            target.parent.mkdir()
            target.write_bytes(compress.compress(source.read_bytes()))
            if name.startswith("d"):
                (target.parent / "POSCAR").write_text((source.parent / "POSCAR").read_text())
        report = import_dataset(tmp_path / "data", ImportConfig(files=(str(tmp_path / "in"),)))
        assert check_counts(report, 7 * len(frames))["systems_is2re"] == 7, report.as_text()
        for s in load(tmp_path / "data", "is2re"):
            moved = s.relaxed_positions - s.positions
            np.testing.assert_allclose(moved, frames[-1].positions - frames[0].positions, atol=1e-6, err_msg=s.sid)
            assert s.fixed.tolist() == [True] * 4 + [False] * 10, s.sid
            assert s.relaxed_energy == pytest.approx(frames[-1].calc.results["energy"], abs=1e-6)
        assert {r.sid for r in report.records} == {"a/x", "b/x", "c/x", "d", "d2", "e", "e2"}

    def test_jumps_are_undone_and_the_largest_displacement_is_printed(self, relaxations, tmp_path, capsys):
        frames = [shifted(frame) for frame in relaxations["Cu-O"]]
        wrapped = [frames[0], *(wrap(frame) for frame in frames[1:])]
        ase.io.write(tmp_path / "a.traj", wrapped)
        assert main(["data", "import", str(tmp_path / "d"), str(tmp_path / "a.traj"), "--progress", "false"]) == 0
        before, after = (
            max(np.linalg.norm(f.positions - frames[0].positions, axis=1).max() for f in trajectory)
            for trajectory in (wrapped, frames)
        )
        assert before > 5 > 1 > after
        out = capsys.readouterr().out
        assert "undone in 1 system;" in out
        assert f"largest displacement {before:.2f} Å before (a), {after:.2f} Å after (a)" in out
        (structure,) = load(tmp_path / "d", "is2rs")
        moved = structure.relaxed_positions - structure.positions
        np.testing.assert_allclose(moved, frames[-1].positions - frames[0].positions, atol=1e-9)

    def test_a_model_trains_on_it(self, folder, tmp_path):
        config = ImportConfig(files=(str(folder),), energy_reference="relative", split=SplitConfig(val_share=0.25))
        import_dataset(tmp_path / "data", config)
        values = configuration(tmp_path / "data", tmp_path / "run", run={"max_epochs": 1})
        result = train(from_mapping(values))
        assert np.isfinite(result.best_val_loss)
        assert json.loads((tmp_path / "run" / "model.json").read_text())["energy_reference"] == "relative"

    def test_subsets_lie_in_each_other(self, folder, tmp_path):
        config = ImportConfig(files=(str(folder),), split=SplitConfig(subsets=(1, 2), val_share=0.0))
        import_dataset(tmp_path / "data", config)
        sids = {}
        for n, path in ((1, "subsets/1"), (2, "subsets/2"), (4, "")):
            for task in ("s2ef", "is2re"):
                sids[n, task] = set(Store(splits_of(tmp_path / "data" / path, task)["train"]).array("sid").tolist())
                assert len(sids[n, task]) == n
            assert sids[n, "s2ef"] == sids[n, "is2re"]
        assert sids[1, "s2ef"] < sids[2, "s2ef"] < sids[4, "s2ef"]

    def test_an_existing_data_set_is_replaced_only_if_asked(self, folder, tmp_path):
        config = ImportConfig(files=(str(folder),))
        import_dataset(tmp_path / "data", config)
        with pytest.raises(InputError, match="exists already"):
            import_dataset(tmp_path / "data", config)
        import_dataset(tmp_path / "data", config, overwrite=True)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "runs"]


class TestEnergies:
    @pytest.fixture
    def references(self, tmp_path) -> dict[str, float]:
        """Relaxed clean slabs in files, gas energies in a YAML file; the energies of the slabs."""
        energies = {}
        (tmp_path / "slabs").mkdir()
        for metal in ("Cu", "Pd"):
            frames = relax(clean(metal))
            ase.io.write(tmp_path / "slabs" / f"{metal}.traj", frames)
            energies[metal] = frames[-1].calc.results["energy"]
        (tmp_path / "gas.yaml").write_text("gas: {H2: 1.0, H2O: -3.0}\n")
        return energies

    def test_adsorption_energies_are_formed(self, folder, references, relaxations, tmp_path):
        config = ImportConfig(
            files=(str(folder),),
            references=str(tmp_path / "gas.yaml"),
            slab_files=(str(tmp_path / "slabs" / "*.traj"),),
        )
        report = import_dataset(tmp_path / "data", config)
        gas = {"O": -3.0 - 1.0, "OH": -3.0 - 0.5}
        for s in load(tmp_path / "data", "is2re"):
            metal, adsorbate = s.sid.split("-")
            total = relaxations[s.sid][-1].calc.results["energy"]
            assert s.relaxed_energy == pytest.approx(total - references[metal] - gas[adsorbate], abs=1e-9)
        for s in load(tmp_path / "data", "s2ef"):
            if s.sid.startswith("slab-"):
                continue  # see TestCleanSlabs
            metal, adsorbate = s.sid.split("-")
            total = relaxations[s.sid][s.fid].calc.results["energy"]
            assert s.energy == pytest.approx(total - references[metal] - gas[adsorbate], abs=1e-9)
        info = Store(splits_of(tmp_path / "data", "s2ef")["train"]).info
        assert (info.energy_reference, info.reference_energies) == ("adsorption", GAS)
        assert sorted(info.provenance["slab_energies"].values()) == pytest.approx(sorted(references.values()))
        assert "E(slab with adsorbate) - E(clean slab) - gas references" in report.as_text()

    def test_missing_references_name_the_composition_and_the_systems(self, folder, references, tmp_path):
        (tmp_path / "gas.yaml").write_text("gas: {H2: 1.0}\nslabs: {Cu12: -1.0}\n")
        config = ImportConfig(files=(str(folder),), references=str(tmp_path / "gas.yaml"))
        with pytest.raises(InputError, match=r"no gas reference for O: .*H2; .* \(systems Cu-O, Pd-O\)") as error:
            import_dataset(tmp_path / "data", config)
        assert "no gas reference for OH: " in str(error.value)
        assert "To leave out such systems: --rules.no_reference drop" in str(error.value)
        (tmp_path / "gas.yaml").write_text("gas: {H2: 1.0, H2O: -3}\nslabs: {Cu12: -1.0}\n")
        with pytest.raises(InputError, match=r"no clean-slab energy for Pd12: .* \(systems Pd-O, Pd-OH\)"):
            import_dataset(tmp_path / "data", config)
        assert not (tmp_path / "data").exists()
        report = import_dataset(tmp_path / "data", replace(config, rules=Rules(no_reference="drop")))
        assert report.counts()["systems_dropped"] == 2
        assert "Pd-O: no reference (dropped): no clean-slab energy for Pd12" in report.as_text()

    def test_total_and_relative(self, folder, relaxations, tmp_path):
        for kind in ("total", "relative"):
            config = ImportConfig(files=(str(folder),), energy_reference=kind)
            import_dataset(tmp_path / kind, config)
            assert json.loads((tmp_path / kind / "dataset.json").read_text())["energy_reference"] == kind
            for s in load(tmp_path / kind, "s2ef"):
                zero = relaxations[s.sid][0].calc.results["energy"] if kind == "relative" else 0.0
                assert s.energy == relaxations[s.sid][s.fid].calc.results["energy"] - zero
            for s in load(tmp_path / kind, "is2re"):
                zero = relaxations[s.sid][0].calc.results["energy"] if kind == "relative" else 0.0
                assert s.relaxed_energy == relaxations[s.sid][-1].calc.results["energy"] - zero

    def test_adsorption_energies_that_the_files_hold(self, relaxations, tmp_path):
        frames = [replace(Structure.from_ase(a), info={"e_ads": -1.0 - i}) for i, a in enumerate(relaxations["Cu-O"])]
        write(tmp_path / "a.extxyz", frames)
        config = ImportConfig(files=(str(tmp_path / "a.extxyz"),), energy_key="e_ads", energy_reference="adsorption")
        import_dataset(tmp_path / "data", config)
        assert load(tmp_path / "data", "is2re")[0].relaxed_energy == -float(len(frames))

    def test_contradicting_wishes(self, folder, tmp_path):
        config = ImportConfig(files=(str(folder),), energy_reference="adsorption")
        with pytest.raises(InputError, match=r"adsorption energies need references: .*choose total or relative"):
            import_dataset(tmp_path / "data", config)
        (tmp_path / "gas.yaml").write_text("gas: {H2: 1.0}")
        config = ImportConfig(files=(str(folder),), energy_reference="total", references=str(tmp_path / "gas.yaml"))
        with pytest.raises(InputError, match="references are given, but energy_reference is total"):
            import_dataset(tmp_path / "data", config)

    def test_no_adsorption_energy_of_an_unknown_adsorbate(self, folder, references, relaxations, tmp_path):
        frames = [frame.copy() for frame in relaxations["Cu-OH"]]
        for frame, known in zip(frames, relaxations["Cu-OH"], strict=True):
            frame.symbols[0] = "O"  # an oxygen atom at the bottom, so that O may be of the slab
            frame.calc = SinglePointCalculator(frame, **known.calc.results)
        ase.io.write(folder / "oxide.traj", frames)
        config = ImportConfig(
            files=(str(folder),),
            references=str(tmp_path / "gas.yaml"),
            slab_files=(str(tmp_path / "slabs" / "*.traj"),),
        )
        with pytest.raises(InputError, match="no adsorption energy without knowing which atoms are the adsorbate"):
            import_dataset(tmp_path / "data", config)


class TestRulesAreApplied:
    """One system spoilt, three good ones beside it."""

    def spoilt(
        self, relaxations: dict[str, list[Atoms]], folder: Path, spoil: Callable[[list[Structure]], list]
    ) -> None:
        write(folder / "bad.extxyz", spoil([replace(Structure.from_ase(a), fid=None) for a in relaxations["Cu-O"]]))
        (folder / "Cu-O.traj").unlink()

    def outcome(self, folder: Path, out: Path, **rules: object):
        report = import_dataset(out, ImportConfig(files=(str(folder),), rules=Rules(**rules)))
        check_counts(report, sum(record.n_frames for record in report.records))
        (record,) = (record for record in report.records if record.sid == "bad")
        return report, record

    def test_one_frame(self, relaxations, folder, tmp_path):
        self.spoilt(relaxations, folder, lambda frames: frames[-1:])
        report, record = self.outcome(folder, tmp_path / "data")
        assert (record.n_s2ef, record.initial) == (1, None)
        assert "bad: single frame (S2EF only): one frame only, so there is no relaxation" in report.as_text()
        with pytest.raises(InputError, match=r"one frame only.*\(system bad\). .*--rules.single_frame drop"):
            self.outcome(folder, tmp_path / "error", single_frame="error")
        assert self.outcome(folder, tmp_path / "drop", single_frame="drop")[1].fates == ["single_frame"]

    def test_the_adsorbate_left_the_surface(self, relaxations, folder, tmp_path):
        def lifted(frames: list[Structure]) -> list[Structure]:
            up = np.linspace(0, 3.0, len(frames))[:, None, None] * np.array([0, 0, 1.0])
            up = up * (frames[0].numbers == 8)[:, None]
            return [replace(f, positions=f.positions + u) for f, u in zip(frames, up, strict=True)]

        self.spoilt(relaxations, folder, lifted)
        report, record = self.outcome(folder, tmp_path / "data")
        assert record.initial is None
        assert record.n_s2ef == record.n_frames, "energies and forces are right all the same"
        assert "bad: desorbed (S2EF only): O is 2." in report.as_text()
        assert "sums of covalent radii from the slab" in report.as_text()
        kept = self.outcome(folder, tmp_path / "keep", desorbed="keep")[1]
        assert kept.initial is not None
        assert [f.action for f in kept.findings] == ["keep"]
        with pytest.raises(InputError, match=r"O is 2.\d+ sums of covalent radii from the slab \(system bad\)"):
            self.outcome(folder, tmp_path / "error", desorbed="error")

    def test_exploded_frame_in_the_middle(self, relaxations, folder, tmp_path):
        self.spoilt(relaxations, folder, lambda f: [f[0], replace(f[1], forces=f[1].forces * 1e4), *f[2:]])
        report, record = self.outcome(folder, tmp_path / "data")
        assert record.dropped == {"exploded": 1}
        assert record.initial is not None
        assert 1 not in {s.fid for s in load(tmp_path / "data", "s2ef") if s.sid == "bad"}
        (entry,) = (s for s in report.as_json()["systems"] if s["sid"] == "bad")
        assert entry["frames_dropped"] == {"exploded": [1]}

    def test_exploded_first_frame_is_still_an_initial_structure(self, relaxations, folder, tmp_path):
        self.spoilt(relaxations, folder, lambda f: [replace(f[0], forces=f[0].forces * 1e4), *f[1:]])
        report, record = self.outcome(folder, tmp_path / "data")
        assert record.fates[0] == "is2re only"
        assert report.counts()["frames_dropped"] == 0

    def test_unconverged(self, relaxations, folder, tmp_path):
        self.spoilt(relaxations, folder, lambda f: f[:3])
        report, record = self.outcome(folder, tmp_path / "data", fmax=0.04)
        assert [f.rule for f in record.findings] == ["unconverged"]
        assert record.n_s2ef == 3
        assert report.by_rule()["unconverged"]["systems_s2ef_only"] == 1

    def test_last_frame_dropped(self, relaxations, folder, tmp_path):
        self.spoilt(relaxations, folder, lambda f: [*f[:-1], replace(f[-1], energy=f[-1].energy + 9.0)])
        _, record = self.outcome(folder, tmp_path / "data")
        assert [(f.rule, f.text) for f in record.findings] == [
            ("energy_jump", "the last frame is dropped (energy jump)")
        ]
        assert record.initial is None
        assert record.dropped == {"energy_jump": 1}

    def test_tags_against_the_constraint(self, relaxations, folder, tmp_path):
        tags = np.array([2, 0, 0, 0, *[1] * 8, 2])
        self.spoilt(relaxations, folder, lambda frames: [replace(f, tags=tags) for f in frames])
        with pytest.raises(
            InputError, match=r"bad.extxyz, frame 0: adsorbate atom 0 \(Cu\) is fixed; correct the tags"
        ) as error:
            self.outcome(folder, tmp_path / "data")
        assert "(system bad). To leave out such systems: --rules.contradiction drop" in str(error.value)
        report, record = self.outcome(folder, tmp_path / "data", contradiction="drop")
        assert set(record.fates) == {"contradiction"}
        assert report.counts()["systems_dropped"] == 1

    def test_a_fixed_atom_that_moves(self, relaxations, folder, tmp_path):
        def dragged(frames: list[Structure]) -> list[Structure]:
            return [frames[0], *(replace(f, positions=f.positions + 0.1) for f in frames[1:])]

        self.spoilt(relaxations, folder, dragged)
        with pytest.raises(
            InputError, match=r"atom [0-3] is fixed but moves 0.17 Å along the trajectory; correct the constraint"
        ):
            self.outcome(folder, tmp_path / "data")

    def test_constraints_that_differ(self, relaxations, folder, tmp_path):
        other = np.array([True] * 5 + [False] * 8)
        self.spoilt(relaxations, folder, lambda f: [f[0], replace(f[1], fixed=other), *f[2:]])
        with pytest.raises(InputError, match=r"bad.extxyz, frame 1: another constraint than in .*bad.extxyz, frame 0"):
            self.outcome(folder, tmp_path / "data")

    def test_a_constraint_that_one_frame_has_holds_for_all(self, relaxations, folder, tmp_path):
        none = np.zeros(13, bool)
        self.spoilt(relaxations, folder, lambda f: [replace(f[0], fixed=none), *f[1:]])
        assert self.outcome(folder, tmp_path / "data")[1].initial.fixed.sum() == 4

    def test_atoms_that_change(self, relaxations, folder, tmp_path):
        numbers = np.array([29] * 12 + [7])
        self.spoilt(relaxations, folder, lambda f: [*f[:-1], replace(f[-1], numbers=numbers)])
        with pytest.raises(InputError, match=r"has Cu12N, .*bad.extxyz, frame 0 has Cu12O; frames of one system must"):
            self.outcome(folder, tmp_path / "data")
        report, record = self.outcome(folder, tmp_path / "d", different_atoms="drop")
        assert set(record.fates) == {"different_atoms"}
        assert report.as_text().count("bad: ") == 1, "said once, not for its frames again"

    def test_an_invalid_frame_is_listed_and_reading_goes_on(self, relaxations, folder, tmp_path):
        self.spoilt(relaxations, folder, lambda frames: frames)
        text = (folder / "bad.extxyz").read_text()
        energies = [f"energy={Structure.from_ase(a).energy!r}" for a in relaxations["Cu-O"]]
        assert energies[2] in text
        (folder / "bad.extxyz").write_text(text.replace(energies[2], "energy=nan"))
        report, record = self.outcome(folder, tmp_path / "data")
        assert record.n_frames == len(relaxations["Cu-O"])
        assert record.dropped == {"unreadable": 1}
        assert "bad.extxyz, frame 2: energy is not finite" in report.as_text()
        with pytest.raises(InputError, match="frame 2: energy is not finite"):
            self.outcome(folder, tmp_path / "error", unreadable="error")

    def test_a_file_that_breaks_off(self, relaxations, folder, tmp_path):
        self.spoilt(relaxations, folder, lambda frames: frames)
        lines = (folder / "bad.extxyz").read_text().splitlines(keepends=True)
        (folder / "bad.extxyz").write_text("".join(lines[:-4]))
        report, record = self.outcome(folder, tmp_path / "data")
        assert record.dropped == {"unreadable": 1}
        assert record.n_frames == len(relaxations["Cu-O"])
        assert "cannot be read as extxyz" in report.as_text()

    def test_a_file_of_nothing(self, relaxations, folder, tmp_path):
        self.spoilt(relaxations, folder, lambda frames: frames)
        (folder / "bad.extxyz").write_text("")
        report, record = self.outcome(folder, tmp_path / "data")
        assert record.n_frames == 1
        assert report.counts()["systems_dropped"] == 1

    def test_a_step_of_half_a_lattice_vector(self, relaxations, folder, tmp_path):
        def leapt(frames: list[Structure]) -> list[Structure]:
            step = 0.47 * frames[0].cell[0] * (frames[0].numbers == 8)[:, None]
            return [frames[0], *(replace(f, positions=f.positions + step) for f in frames[1:])]

        self.spoilt(relaxations, folder, leapt)
        report, record = self.outcome(folder, tmp_path / "data")
        assert record.findings[0].rule == "ambiguous_step"
        assert (
            "bad: ambiguous step (S2EF only): atom 12 moves by about half a lattice vector on the way to"
            in report.as_text()
        )

    def test_nothing_left(self, relaxations, folder, tmp_path):
        for file in folder.iterdir():
            file.unlink()
        write(folder / "a.extxyz", [replace(Structure.from_ase(a), forces=None) for a in relaxations["Cu-O"][:1]])
        with pytest.raises(
            InputError, match="nothing is left of 1 systems: frames dropped: 1 single_frame; one frame only"
        ):
            import_dataset(tmp_path / "data", ImportConfig(files=(str(folder),)))
        assert not (tmp_path / "data").exists()


class TestPairs:
    @pytest.fixture
    def structures(self, relaxations) -> tuple[list[Structure], list[Structure]]:
        """Initial and relaxed, without forces."""
        ends = [
            [
                replace(Structure.from_ase(a), sid=sid, fid=None, forces=None, info={"e_ads": -0.5})
                for a in (f[0], f[-1])
            ]
            for sid, f in relaxations.items()
        ]
        return [first for first, _ in ends], [last for _, last in ends]

    def config(self, folder: Path, first: list[Structure], last: list[Structure], **options: object) -> ImportConfig:
        write(folder / "initial.extxyz", first)
        write(folder / "relaxed.extxyz", last)
        names = {n: (str(folder / f"{n}.extxyz"),) for n in ("initial", "relaxed")}
        return ImportConfig(**names, **options)

    def test_systems_without_frames_for_s2ef(self, structures, relaxations, tmp_path):
        config = self.config(tmp_path, *structures, energy_key="e_ads", energy_reference="adsorption")
        report = import_dataset(tmp_path / "data", config)
        n = check_counts(report, 8)
        assert (n["systems_is2re"], n["frames_is2re_only"], n["frames_s2ef"]) == (4, 8, 0)
        assert "no S2EF data: no frame has both an energy and forces" in report.as_text()
        assert "not checked for convergence, without forces: 4 systems" in report.as_text()
        for s in load(tmp_path / "data", "is2re"):
            assert s.relaxed_energy == -0.5
            np.testing.assert_allclose(s.relaxed_positions, relaxations[s.sid][-1].positions, atol=1e-7)
        with pytest.raises(InputError, match="no splits for task 's2ef'"):
            splits_of(tmp_path / "data", "s2ef")

    def test_positions_alone_serve_is2rs(self, structures, tmp_path):
        first, last = ([replace(s, energy=None) for s in side] for side in structures)
        report = import_dataset(tmp_path / "data", self.config(tmp_path, first, last))
        assert "no relaxed energies, so the is2re directory serves IS2RS only" in report.as_text()
        assert "relaxed_energy" not in Store(splits_of(tmp_path / "data", "is2rs")["train"]).fields

    def test_one_energy_missing(self, structures, tmp_path):
        first, last = structures
        last = [replace(last[0], energy=None), *last[1:]]
        first = [replace(first[0], energy=None), *first[1:]]
        report = import_dataset(tmp_path / "data", self.config(tmp_path, first, last))
        n = check_counts(report, 8)
        assert (n["systems_is2re"], n["systems_dropped"], n["frames_dropped"]) == (3, 1, 2)
        assert "Cu-O: no energy (dropped): no relaxed energy, which other systems have" in report.as_text()

    def test_wrapped_on_their_own(self, structures, tmp_path):
        """fairchem writes OC20 so: both structures in the cell, a lattice vector apart."""
        first, last = structures
        far = [replace(s, positions=s.positions + s.cell[0] - s.cell[1]) for s in last]
        report = import_dataset(tmp_path / "data", self.config(tmp_path, first, far))
        assert report.jumps()["undone"] == sum(len(s) for s in last)
        assert report.jumps()["largest_displacement_after"] < 1.0 < 4.0 < report.jumps()["largest_displacement_before"]

    def test_another_order(self, structures, tmp_path):
        first, last = structures
        order = [12, *range(12)]
        arrays = {n: getattr(last[0], n)[order] for n in ("numbers", "positions", "fixed")}
        last[0] = replace(last[0], **arrays)
        config = self.config(tmp_path, first, last)
        match = r"relaxed.extxyz, frame 0 has the atoms of .*initial.extxyz, frame 0 in another order, from atom 0; "
        with pytest.raises(InputError, match=match + r"reordered as \[1 2 3 .* 12 0\] .*\(system Cu-O\)"):
            import_dataset(tmp_path / "data", config)
        report = import_dataset(tmp_path / "data", replace(config, reorder=True))
        assert "Cu-O: different atoms (reordered): " in report.as_text()
        assert not report.records[0].dropped
        for s in load(tmp_path / "data", "is2rs"):
            assert np.linalg.norm(s.relaxed_positions - s.positions, axis=1).max() < 1.0, s.sid

    def test_other_atoms(self, structures, tmp_path):
        first, last = structures
        config = self.config(tmp_path, first, [*last[:3], last[0]])
        with pytest.raises(InputError, match=r"structure 3: .* has system 'Pd-OH', .* has 'Cu-O'"):
            import_dataset(tmp_path / "data", config)
        config = self.config(tmp_path, first, [*last[:3], replace(last[0], sid="Pd-OH")])
        match = r"relaxed.extxyz, frame 3 has Cu12O, .*initial.extxyz, frame 3 has Pd12OH"
        for reorder in (False, True):
            with pytest.raises(InputError, match=match):
                import_dataset(tmp_path / "data", replace(config, reorder=reorder))

    def test_not_as_many(self, structures, tmp_path):
        first, last = structures
        with pytest.raises(InputError, match=r"relaxed.extxyz ends after 3 structures, .*initial.extxyz has more"):
            import_dataset(tmp_path / "data", self.config(tmp_path, first, last[:3]))
        with pytest.raises(InputError, match="2 files of initial structures but 1 of relaxed ones"):
            import_dataset(tmp_path / "data", ImportConfig(initial=("a", "b"), relaxed=("c",)))

    def test_beside_trajectories(self, structures, folder, tmp_path):
        first, last = ([replace(s, sid=f"pair-{s.sid}") for s in side] for side in structures)
        config = replace(self.config(tmp_path, first, last), files=(str(folder),))
        report = import_dataset(tmp_path / "data", config)
        assert report.counts()["systems_is2re"] == 8


class TestFiles:
    def test_directories_are_searched_and_what_is_left_is_listed(self, relaxations, tmp_path):
        run = tmp_path / "in" / "deep" / "run10"
        run.mkdir(parents=True)
        write_outcar(run / "OUTCAR", relaxations["Cu-O"])
        write_vasprun(run / "vasprun.xml", relaxations["Cu-O"])
        (run / "INCAR").write_text("IBRION = 2")
        ase.io.write(tmp_path / "in" / "run9.traj", relaxations["Cu-OH"])
        found = find_files([str(tmp_path / "in")])
        assert [f.name for f in found.files] == ["vasprun.xml", "run9.traj"]
        assert list(found.skipped) == [str(run / "OUTCAR")]
        assert found.notes == []
        report = import_dataset(tmp_path / "data", ImportConfig(files=(str(tmp_path / "in"),)))
        assert [record.sid for record in report.records] == ["run10", "run9"]
        assert "OUTCAR: not read, the vasprun.xml beside it holds the same calculation" in report.as_text()

    def test_names(self, tmp_path):
        paths = ["a/OUTCAR", "b/OUTCAR.gz", "c/x.traj", "c/y.extxyz.xz"]
        assert list(file_sids([tmp_path / p for p in paths]).values()) == ["a", "b", "x", "y"]
        assert list(file_sids([tmp_path / "a/x.traj", tmp_path / "b/x.traj"]).values()) == ["a/x", "b/x"]
        assert file_sids([]) == {}

    def test_ten_comes_after_nine(self, relaxations, tmp_path):
        for i in (10, 9, 1):
            ase.io.write(tmp_path / f"run{i}.traj", relaxations["Cu-O"][:1])
        assert [f.stem for f in find_files([str(tmp_path)]).files] == ["run1", "run9", "run10"]

    def test_a_restarted_calculation(self, relaxations, tmp_path):
        frames = relaxations["Pd-O"]
        (tmp_path / "run").mkdir()
        write_outcar(tmp_path / "run" / "OUTCAR.1", frames[:3])
        write_outcar(tmp_path / "run" / "OUTCAR.2", frames[3:])
        config = ImportConfig(files=(str(tmp_path / "run"),))
        with pytest.raises(InputError, match=r"system 'run' is in .*OUTCAR.1 and again in .*OUTCAR.2: .*--join true"):
            import_dataset(tmp_path / "data", config)
        report = import_dataset(tmp_path / "data", replace(config, join=True))
        assert check_counts(report, len(frames))["systems_is2re"] == 1
        assert [s.fid for s in load(tmp_path / "data", "s2ef")] == list(range(len(frames)))

    def test_many_systems_in_a_file(self, relaxations, tmp_path):
        frames = [
            replace(Structure.from_ase(a), fid=None, info={"name": sid})
            for sid in relaxations
            for a in relaxations[sid]
        ]
        write(tmp_path / "all.extxyz", frames)
        config = ImportConfig(files=(str(tmp_path / "all.extxyz"),), sid_key="name")
        report = import_dataset(tmp_path / "data", config)
        assert [record.sid for record in report.records] == list(relaxations)
        assert report.as_json()["files"][str(tmp_path / "all.extxyz")]["systems"] == 4
        write(tmp_path / "mixed.extxyz", [*frames[::2], *frames[1::2]])
        with pytest.raises(InputError, match=r"system 'Cu-O' is in .*mixed.extxyz and again in .*mixed.extxyz"):
            import_dataset(tmp_path / "mixed", replace(config, files=(str(tmp_path / "mixed.extxyz"),)))

    def test_frames_are_put_in_the_order_of_their_numbers(self, relaxations, tmp_path):
        frames = [replace(Structure.from_ase(a), sid="x", fid=10 * i) for i, a in enumerate(relaxations["Cu-O"])]
        write(tmp_path / "a.extxyz", frames[::-1])
        import_dataset(tmp_path / "data", ImportConfig(files=(str(tmp_path / "a.extxyz"),)))
        (s,) = load(tmp_path / "data", "is2re")
        assert s.relaxed_energy == frames[-1].energy
        assert [f.fid for f in load(tmp_path / "data", "s2ef")] == [f.fid for f in frames]

    def test_one_trajectory_at_a_time(self, folder):
        """The second file is not opened before the second trajectory is asked for."""
        found = trajectories([folder / "Cu-O.traj", folder / "gone.traj"], LabelKeys())
        assert len(next(found).frames) == 6
        assert next(found).unreadable[0].startswith(f"{folder / 'gone.traj'}: no such file")

    def test_bad_paths(self, tmp_path):
        with pytest.raises(InputError, match="nowhere: no such file or directory"):
            import_dataset(tmp_path / "data", ImportConfig(files=(str(tmp_path / "nowhere"),)))
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match=r"empty: no .traj, .extxyz, .xyz, vasprun.xml or OUTCAR file in it"):
            import_dataset(tmp_path / "data", ImportConfig(files=(str(tmp_path / "empty"),)))
        with pytest.raises(InputError, match="nothing to import"):
            ImportConfig()


class TestSplitsAreKept:
    def test_by_key(self, relaxations, tmp_path):
        for sid, frames in relaxations.items():
            split = "train" if sid.startswith("Cu") else "val_id"
            write(tmp_path / f"{sid}.extxyz", [replace(Structure.from_ase(a), info={"part": split}) for a in frames])
        config = ImportConfig(files=(str(tmp_path),), split=SplitConfig(key="part"))
        import_dataset(tmp_path / "data", config)
        for task in ("s2ef", "is2re"):
            assert set(Store(splits_of(tmp_path / "data", task)["val_id"]).array("sid").tolist()) == {b"Pd-O", b"Pd-OH"}

    def test_frames_of_a_system_in_two_splits(self, relaxations, tmp_path):
        frames = [
            replace(Structure.from_ase(a), info={"split": "ab"[i % 2]}) for i, a in enumerate(relaxations["Cu-O"])
        ]
        write(tmp_path / "a.extxyz", frames)
        config = ImportConfig(files=(str(tmp_path / "a.extxyz"),), split=SplitConfig(key="split"))
        with pytest.raises(
            InputError, match=r"frames of this system are in several splits \(a, b\); a system belongs to one"
        ):
            import_dataset(tmp_path / "data", config)
        with pytest.raises(InputError, match="no split under 'part'; found split"):
            import_dataset(tmp_path / "data", replace(config, split=SplitConfig(key="part")))

    def test_by_file_and_by_name(self, folder, tmp_path):
        (tmp_path / "splits.csv").write_text("Cu-O,train\nCu-OH,train\nPd-O,test-1\n")
        config = ImportConfig(files=(str(folder),), split=SplitConfig(file=str(tmp_path / "splits.csv")))
        with pytest.raises(InputError, match=r"splits.csv: no split for system Pd-OH \(1 of 4\)"):
            import_dataset(tmp_path / "data", config)
        (tmp_path / "splits.csv").write_text("Cu-O,train\nCu-OH,train\nPd-O,test-1\nPd-OH,../up\n")
        with pytest.raises(InputError, match=r"system Pd-OH: '../up' cannot be a split"):
            import_dataset(tmp_path / "data", config)
        (tmp_path / "splits.csv").write_text("Cu-O,train\nCu-OH,train\nPd-O,test-1\nPd-OH,test-1\n")
        report = import_dataset(tmp_path / "data", config)
        assert {name: n["systems"] for name, n in report.splits.items()} == {"train": 2, "test-1": 2}
        assert "test-1 has elements that no training system has (Pd)" in report.as_text()
        report = import_dataset(tmp_path / "one", replace(config, split=SplitConfig(name="mine")))
        assert list(report.splits) == ["mine"]

    @pytest.mark.parametrize(("what", "held_out"), [("composition", "Pd"), ("elements", "Pd")])
    def test_held_out(self, folder, tmp_path, what, held_out):
        split = SplitConfig(held_out_adsorbates=("HO",), held_out_catalysts=(held_out,), catalysts=what, val_share=0.0)
        report = import_dataset(tmp_path / "data", ImportConfig(files=(str(folder),), split=split))
        assert {name: n["systems"] for name, n in report.splits.items()} == {
            "train": 1, "val_ood_ads": 1, "val_ood_cat": 1, "val_ood_both": 1
        }  # fmt: skip
        assert {r.sid: r.split for r in report.records}["Pd-O"] == "val_ood_cat"


def commands_of_the_documents() -> list[str]:
    text = (ROOT / "docs" / "import.md").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.startswith("equicat data import")]


class TestCommand:
    @pytest.mark.parametrize("command", commands_of_the_documents())
    def test_commands_of_the_documents_parse(self, command, monkeypatch):
        runs = []
        monkeypatch.setattr(cli, "chosen", lambda parser, options: (lambda: runs.append(options), {}))
        assert main(shlex.split(command, comments=True)[1:]) == 0
        assert len(runs) == 1

    def test_report_on_screen_and_in_files(self, folder, tmp_path, capsys):
        arguments = ["--energy_reference", "total", "--rules.fmax", "1e-9", "--progress", "false"]
        assert main(["data", "import", str(tmp_path / "data"), str(folder), *arguments]) == 0
        out = capsys.readouterr().out
        assert "systems: 4 in = 0 for IS2RE and IS2RS + 4 for S2EF only + 0 dropped" in out
        assert "no IS2RE and IS2RS data" in out
        assert "energies: total" in out
        assert "fixed atoms from: constraint (4)" in out
        assert "tags from: elements that the slab does not have; surface: free slab atoms (4)" in out
        text = (tmp_path / "data" / "import.txt").read_text()
        assert f"{folder / 'Cu-O.traj'}: 1 system, " in text
        saved = json.loads((tmp_path / "data" / "import.json").read_text())
        assert saved["rules"]["unconverged"]["systems_found"] == 4
        assert len(saved["systems"]) == len(saved["files"]) == 4

    def test_one_clear_line_and_nothing_left_behind(self, folder, tmp_path, capsys):
        arguments = ["--rules.unconverged", "error", "--rules.fmax", "1e-9", "--progress", "false"]
        assert main(["data", "import", str(tmp_path / "data"), str(folder), *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "--rules.unconverged drop" in error
        assert [p.name for p in tmp_path.iterdir()] == ["runs"]

    def test_pairs_and_lists(self, relaxations, tmp_path, capsys):
        for name, i in (("initial", 0), ("relaxed", -1)):
            for sid, frames in relaxations.items():
                write(tmp_path / f"{sid}-{name}.extxyz", [Structure.from_ase(frames[i])])
        arguments = [
            *("--initial", *(str(tmp_path / f"{sid}-initial.extxyz") for sid in relaxations)),
            *("--relaxed", *(str(tmp_path / f"{sid}-relaxed.extxyz") for sid in relaxations)),
            *("--split.held_out_adsorbates", "[HO]", "--split.subsets", "[1]", "--progress", "false"),
        ]
        assert main(["data", "import", str(tmp_path / "data"), *arguments]) == 0
        out = capsys.readouterr().out
        assert "systems: 4 in = 4 for IS2RE and IS2RS" in out
        assert "val_ood_ads" in out
        assert (tmp_path / "data" / "subsets" / "1" / "s2ef" / "train").is_dir()


def test_a_report_that_does_not_add_up_is_a_defect(folder, tmp_path):
    report = import_dataset(tmp_path / "data", ImportConfig(files=(str(folder),)))
    report.records[0].fates.pop()
    with pytest.raises(AssertionError):
        Report(report.records, report.settled, report.splits)
    report.records[0].fates.append("s2ef")
    Report(report.records, report.settled, report.splits)
    report.splits["train"]["frames"] -= 1
    with pytest.raises(AssertionError):
        Report(report.records, report.settled, report.splits)


@needs_dft_data
class TestRealData:
    def test_relaxations_of_oc20_wrapped_into_their_cells(self, tmp_path):
        """Tags, fixed atoms and forces as they are; jumps put in here are taken out again."""
        names = ("random1447590", "random1000163", "random1000156")
        for name in names:
            frames = list(read(DFT_DATA / "oc20_mini" / "trajectories" / f"{name}.extxyz.xz"))
            wrapped = (Structure.from_ase(wrap(f.to_ase()), source=f.source) for f in frames[1:])
            write(tmp_path / f"{name}.extxyz", [frames[0], *wrapped])
        report = import_dataset(tmp_path / "data", ImportConfig(files=(str(tmp_path),)))
        assert check_counts(report, 47 + 27 + 36)["systems_is2re"] == 3
        assert report.jumps()["undone"] > 0
        relaxed = {s.sid: s for s in read(DFT_DATA / "oc20_mini" / "relaxed.extxyz") if s.sid in names}
        for s in load(tmp_path / "data", "is2rs"):
            np.testing.assert_allclose(s.relaxed_positions, relaxed[s.sid].positions, atol=1e-6)
            np.testing.assert_array_equal(s.tags, relaxed[s.sid].tags)

    @pytest.mark.parametrize(
        ("every", "systems"),
        [
            pytest.param(1, {"train": 391, "val_id": 83}, marks=pytest.mark.benchmark),
            (5, {"train": 79, "val_id": 17}),
        ],
    )
    def test_published_pairs_with_their_published_division(self, tmp_path, every, systems):
        pairs: dict[str, tuple[str, ...]] = {"initial": (), "relaxed": ()}
        for part, name in product(("train", "val_id"), pairs):
            (tmp_path / part).mkdir(exist_ok=True)
            file = tmp_path / part / f"{name}.extxyz"
            ase.io.write(file, ase.io.read(DFT_DATA / "xu_kitchin" / part / file.name, f"::{every}"))
            pairs[name] += (str(file),)
        config = ImportConfig(
            **pairs,
            energy_key="energy_ads",
            energy_reference="adsorption",
            adsorbate_key="adsorbate",
            rules=Rules(desorbed="keep"),
            split=SplitConfig(key="split"),
        )
        report = import_dataset(tmp_path / "data", config)
        assert {name: n["systems"] for name, n in report.splits.items()} == systems
        by_sid = {s.sid: s for s in read(pairs["relaxed"][0])}
        for s in Store(splits_of(tmp_path / "data", "is2re")["train"]):
            assert s.relaxed_energy == by_sid[s.sid].info["energy_ads"]

    @pytest.mark.benchmark
    def test_all_relaxations_of_oc20_mini(self, tmp_path):
        """The rules call exploded just those frames that the data set calls trial steps, and find the given tags."""
        folder = DFT_DATA / "oc20_mini" / "trajectories"
        report = import_dataset(tmp_path / "data", ImportConfig(files=(str(folder),), energy_reference="total"))
        n = check_counts(report, 4422)
        assert (n["systems"], n["frames_dropped"]) == (25, 8)
        exploded = {
            (s["sid"], fid) for s in report.as_json()["systems"] for fid in s["frames_dropped"].get("exploded", [])
        }
        excluded = {(s.sid, s.fid) for f in sorted(folder.iterdir()) for s in read(f) if s.info["split"] == "excluded"}
        assert exploded <= excluded
        assert report.by_rule()["unconverged"]["systems_found"] == 4
        config = ImportConfig(files=(str(folder),), trust_tags=False, adsorbate_key="adsorbate")
        found = import_dataset(tmp_path / "found", config)
        given = {s.sid: s.tags for s in load(tmp_path / "data", "s2ef")}
        for s in load(tmp_path / "found", "s2ef"):
            np.testing.assert_array_equal(s.tags, given[s.sid])
        assert found.counts() == n
