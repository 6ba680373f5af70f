"""The toy data set: its physics recomputed, its splits, and the same bytes from the same seed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.data import chemical_symbols, covalent_radii
from ase.geometry import get_distances
from ase.optimize import BFGS

from equicat.data.datasets import require_labels
from equicat.data.directory import splits_of
from equicat.data.store import Store
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.sources.describe import describe
from equicat.sources.emt.chemistry import (
    ADSORBATES,
    CONTACT,
    FACETS,
    HELD_OUT_ADSORBATES,
    METALS,
    Catalyst,
    add_adsorbate,
    catalysts,
    conventional_cell,
    cut_slab,
    gas_references,
    is_held_out,
    lattice,
)
from equicat.sources.emt.make import (
    SPLITS,
    EMTConfig,
    make_emt_dataset,
    spaced_frames,
    summary_text,
    why_dropped,
)

TINY = EMTConfig(n_systems=10, seed=1, fmax=0.1, metals=("Cu", "Pd"), adsorbates=("H", "O", "O2"), workers=1)
TRAIN_ADSORBATES = set(TINY.adsorbates) - set(HELD_OUT_ADSORBATES)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("emt") / "data"
    make_emt_dataset(out, TINY)
    return out


def adsorbate_of(structure: Structure) -> str:
    return "".join(chemical_symbols[z] for z in structure.numbers[structure.tags == 2])


def metals_of(structure: Structure) -> frozenset[str]:
    return frozenset(chemical_symbols[z] for z in structure.numbers[structure.tags < 2])


def emt_atoms(structure: Structure) -> Atoms:
    atoms = structure.to_ase()
    atoms.calc = EMT()
    return atoms


class TestDataset:
    def test_same_seed_same_bytes_with_two_workers(self, data, tmp_path):
        make_emt_dataset(tmp_path / "again", replace(TINY, workers=2))
        files = sorted(p.relative_to(data) for p in data.rglob("*") if p.is_file())
        assert files == sorted(
            p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file()
        )
        for file in files:
            assert (data / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file

    def test_counts(self, data):
        summary = json.loads((data / "dataset.json").read_text())
        assert {split: c["systems"] for split, c in summary["splits"].items()} == dict.fromkeys(SPLITS, 1) | {
            "train": 6
        }
        for task in ("s2ef", "is2re"):
            assert set(splits_of(data, task)) == set(SPLITS)
        for split, counts in summary["splits"].items():
            assert len(Store(data / "s2ef" / split)) == counts["frames"]
            assert sum(s.tags.max() < 2 for s in Store(data / "s2ef" / split)) == counts["clean_slabs"]
            assert len(Store(data / "is2re" / split)) == counts["systems"]
        assert summary["provenance"]["config"]["seed"] == 1
        assert "val_ood_both" in summary_text(summary)
        assert "adsorption" in describe(data)

    def test_labels(self, data):
        for split in SPLITS:
            require_labels(Store(data / "s2ef" / split), ["energy", "forces", "sid", "fid"])
            require_labels(Store(data / "is2re" / split), ["relaxed_energy", "relaxed_positions", "sid"])

    def test_splits_hold_out_what_they_say(self, data):
        seen = [(adsorbate_of(s), metals_of(s)) for s in Store(data / "is2re" / "train")]
        seen_elements = {chemical_symbols[z] for z in Store(data / "is2re" / "train").elements}
        for split in SPLITS:
            for s in Store(data / "is2re" / split):
                assert seen_elements.issuperset(chemical_symbols[z] for z in s.numbers)
                assert (adsorbate_of(s) in TRAIN_ADSORBATES) == (split not in ("val_ood_ads", "val_ood_both")), split
                assert (metals_of(s) == {"Cu", "Pd"}) == (split in ("val_ood_cat", "val_ood_both")), split
                if split in ("val_ood_ads", "val_ood_both"):
                    assert adsorbate_of(s) not in {adsorbate for adsorbate, _ in seen}
                if split in ("val_ood_cat", "val_ood_both"):
                    assert metals_of(s) not in {metals for _, metals in seen}

    def test_systems_belong_to_one_split(self, data):
        ids = [{s.sid.encode() for s in Store(data / "s2ef" / split) if s.tags.max() == 2} for split in SPLITS]
        assert sum(map(len, ids)) == len(set.union(*ids)) == TINY.n_systems
        for split, sids in zip(SPLITS, ids, strict=True):
            assert sids == set(Store(data / "is2re" / split).array("sid").tolist())

    def test_tags_and_fixed_atoms(self, data):
        for s in Store(data / "is2re" / "train"):
            np.testing.assert_array_equal(s.fixed, s.tags == 0)
            n_slab = int((s.tags < 2).sum())
            assert s.tags[n_slab:].tolist() == [2] * len(ADSORBATES[adsorbate_of(s)])
            assert 0.3 < s.fixed.sum() / n_slab < 0.7
            height = s.positions[:, 2]
            assert height[s.tags == 0].max() < height[s.tags == 1].min() + 0.5
            np.testing.assert_array_equal(s.positions[s.fixed], s.relaxed_positions[s.fixed])

    def test_vacuum_and_periodicity(self, data):
        for split in SPLITS:
            for s in Store(data / "s2ef" / split):
                assert s.pbc.all()
                assert s.cell[2, 2] - np.ptp(s.positions[:, 2]) > 10.0

    def test_forces_are_those_of_emt_fixed_atoms_included(self, data):
        s = Store(data / "s2ef" / "val_id")[1]
        forces = emt_atoms(s).get_forces(apply_constraint=False)
        np.testing.assert_allclose(s.forces, forces, atol=1e-9)
        assert np.abs(s.forces[s.fixed]).max() > 1e-3

    def test_energy_is_the_adsorption_energy(self, data):
        """Recomputed with another optimiser, from the relaxed frame without its adsorbate."""
        s = [s for s in Store(data / "s2ef" / "val_ood_both") if s.tags.max() == 2][-1]
        clean = emt_atoms(s)[s.tags < 2]
        clean.calc = EMT()
        BFGS(clean, logfile=None).run(fmax=0.01, steps=200)
        references = json.loads((data / "dataset.json").read_text())["reference_energies"]
        assert adsorbate_of(s) == "OO"
        expected = emt_atoms(s).get_potential_energy() - clean.get_potential_energy() - 2 * references["O"]
        assert s.energy == pytest.approx(expected, abs=0.02)  # both slabs are relaxed to fmax only
        assert clean.get_potential_energy() > 1.0  # so the test would see it missing

    def test_is2re_is_the_ends_of_s2ef(self, data):
        frames = [s for s in Store(data / "s2ef" / "val_id") if s.tags.max() == 2]
        (system,) = Store(data / "is2re" / "val_id")
        assert frames[0].fid == 0
        np.testing.assert_array_equal(system.positions, frames[0].positions)
        np.testing.assert_array_equal(system.relaxed_positions, frames[-1].positions)
        assert system.relaxed_energy == frames[-1].energy
        assert np.linalg.norm(frames[-1].forces[~system.fixed], axis=1).max() < TINY.fmax
        assert np.linalg.norm(frames[0].forces[~system.fixed], axis=1).max() > TINY.fmax

    def test_existing_directory(self, data):
        with pytest.raises(InputError, match="exists already"):
            make_emt_dataset(data, TINY)


class TestConfig:
    def test_unknown_names(self):
        with pytest.raises(InputError, match="unknown metal 'Fe'"):
            EMTConfig(metals=("Cu", "Fe"))
        with pytest.raises(InputError, match="unknown adsorbate 'CH4'"):
            EMTConfig(adsorbates=("CH4",))
        with pytest.raises(InputError, match="at least 10"):
            EMTConfig(n_systems=9)

    def test_no_held_out_catalyst_leaves_nothing_behind(self, tmp_path):
        with pytest.raises(InputError, match="no catalysts for the split val_ood_cat"):
            make_emt_dataset(tmp_path / "data", replace(TINY, metals=("Cu", "Ag")))
        with pytest.raises(InputError, match="no adsorbates for the split val_ood_ads"):
            make_emt_dataset(tmp_path / "data", replace(TINY, adsorbates=("H", "O")))
        assert list(tmp_path.iterdir()) == []


class TestWhyDropped:
    """The judge of relaxations has its own tests; here, that the toy data ask it."""

    @pytest.fixture
    def slab(self) -> Atoms:
        slab = fcc111("Cu", (2, 2, 3), a=3.6, vacuum=7.5)
        slab.pbc = True
        slab.set_tags((slab.positions[:, 2] > slab.positions[:, 2].mean() - 0.1).astype(int))
        return slab

    @staticmethod
    def verdict(slab: Atoms, heights: list[float], force: float = 0.0, moved: float = 0.0) -> str:
        """Why a relaxation is dropped that ends with O atoms at these heights (Å) above an atom of the slab."""
        top = slab.positions[-1]
        ends = []
        for places in ([1.8, 3.0, 4.2][: len(heights)], heights):
            atoms = slab + Atoms("O" * len(heights), [top + h * np.array([0.0, 0.0, 1.0]) for h in places], tags=2)
            tags = atoms.get_tags().astype(np.int64)
            forces = np.where(tags[:, None] == 0, 1e3, 0.0) * np.ones(3)  # on fixed atoms, where it does not matter
            ends.append(
                Structure(
                    atoms.numbers,
                    atoms.positions,
                    np.array(atoms.cell),
                    np.array(atoms.pbc),
                    tags == 0,
                    tags,
                    0.0,
                    forces,
                )
            )
        ends[0].forces[len(slab) - 1, 1] = force
        ends[0].positions[len(slab) - 1, 0] += moved
        return why_dropped([ends[0], ends[1]], 0.05)

    def test_reasons(self, slab):
        assert self.verdict(slab, [1.8]) == ""
        assert self.verdict(slab, [1.8, 3.0]) == ""
        assert self.verdict(slab, [4.0]) == "desorbed"
        assert self.verdict(slab, [1.8, 4.5]) == "desorbed"
        assert self.verdict(slab, [1.8], moved=1.6) == "reconstructed"
        assert self.verdict(slab, [1.8], force=31.0) == "exploded"

    def test_the_last_forces_tell_whether_it_converged(self, data):
        frames = list(Store(data / "s2ef" / "val_id"))
        frames = [frame for frame in frames if frame.sid == frames[0].sid]
        assert why_dropped(frames, TINY.fmax) == ""
        assert why_dropped(frames, 1e-6) == "unconverged"
        assert why_dropped(frames[:1], TINY.fmax) == "unconverged"

    def test_a_chain_is_one_adsorbate(self, slab):
        assert self.verdict(slab, [1.8, 3.1, 4.4]) == ""


class TestCleanSlabs:
    """Frames of clean slabs, which tell a model that a slab with nothing on it has no adsorption energy."""

    def test_each_once_without_adsorbate_and_without_energy(self, data):
        everywhere = [s for split in SPLITS for s in Store(data / "s2ef" / split)]
        slabs = [s for s in everywhere if s.tags.max() < 2]
        assert len({s.sid for s in slabs}) == len(slabs) > 3
        assert all(s.sid.startswith("emt-slab-") for s in slabs)
        assert {s.sid for s in slabs}.isdisjoint(s.sid for s in everywhere if s.tags.max() == 2)
        for s in slabs:
            assert s.energy == 0.0
            np.testing.assert_array_equal(s.fixed, s.tags == 0)
            assert np.linalg.norm(s.forces[~s.fixed], axis=1).max() <= TINY.fmax
            np.testing.assert_allclose(s.forces, emt_atoms(s).get_forces(apply_constraint=False), atol=1e-9)

    def test_every_system_has_its_own(self, data):
        slabs = {s.numbers.tobytes() for split in SPLITS for s in Store(data / "s2ef" / split) if s.tags.max() < 2}
        for split in SPLITS:
            for s in Store(data / "is2re" / split):
                assert s.tags.max() == 2, "IS2RE and IS2RS data have no clean slabs"
                assert s.numbers[s.tags < 2].tobytes() in slabs

    def test_those_of_held_out_catalysts_are_not_in_training(self, data):
        for s in Store(data / "s2ef" / "train"):
            assert metals_of(s) != {"Cu", "Pd"}

    def test_they_can_be_left_out(self, data, tmp_path):
        make_emt_dataset(tmp_path / "data", replace(TINY, clean_slabs=False))
        for split in SPLITS:
            with_slabs, without = (list(Store(path / "s2ef" / split)) for path in (data, tmp_path / "data"))
            assert [s.id for s in without] == [s.id for s in with_slabs if s.tags.max() == 2]
            assert without[0].energy == with_slabs[0].energy


class TestSpacedFrames:
    @pytest.fixture
    def positions(self) -> np.ndarray:
        positions = np.zeros((6, 2, 3))
        positions[:, 1, 2] = [0.0, 0.3, 0.4, 0.7, 0.71, 0.72]
        return positions

    def test_drops_frames_that_hardly_differ(self, positions):
        assert spaced_frames(positions, 0.25, 10) == [0, 1, 3, 5]

    def test_limit_keeps_both_ends(self, positions):
        assert spaced_frames(positions, 0.0, 3)[::2] == [0, 5]
        assert spaced_frames(positions, 0.0, 6) == [0, 1, 2, 3, 4, 5]

    def test_single_frame(self, positions):
        assert spaced_frames(positions[:1], 0.1, 5) == [0]


class TestChemistry:
    @pytest.mark.parametrize(
        "catalyst", [Catalyst(("Cu",)), Catalyst(("Cu", "Pd"), "L1_0"), Catalyst(("Pt", "Al"), "L1_2")]
    )
    def test_lattice_is_at_the_minimum(self, catalyst):
        def energy(a: float, c: float) -> float:
            atoms = conventional_cell(catalyst, a, c)
            atoms.calc = EMT()
            return atoms.get_potential_energy()

        a, c = lattice(catalyst)
        assert (a == pytest.approx(c, abs=1e-6)) == (catalyst.prototype != "L1_0")
        for strain in (-0.003, 0.003):
            assert energy(a * (1 + strain), c) > energy(a, c)
            assert energy(a, c * (1 + strain)) > energy(a, c)

    def test_catalysts(self):
        names = [c.formula for c in catalysts(METALS)]
        assert len(names) == len(set(names)) == 7 + 3 * 21
        assert conventional_cell(Catalyst(("Cu", "Pd"), "L1_2"), 3.7, 3.7).get_chemical_formula() == "Cu3Pd"
        assert conventional_cell(Catalyst(("Cu", "Pd"), "L1_0"), 3.7, 3.6).get_chemical_formula() == "Cu2Pd2"
        assert is_held_out(Catalyst(("Pd", "Cu"), "L1_2"))
        assert not any(is_held_out(Catalyst((metal,))) for metal in METALS)

    @pytest.mark.parametrize("facet", FACETS, ids=lambda f: "".join(map(str, f.miller)))
    def test_slabs(self, facet):
        for shape in facet.shapes:
            slab = cut_slab(Catalyst(("Cu",)), facet, shape)
            assert 16 <= len(slab) <= 40
            assert slab.cell.lengths()[:2].min() > 3.5
            shortest = slab.get_all_distances(mic=True) + 10 * np.eye(len(slab))
            assert shortest.min() == pytest.approx(lattice(Catalyst(("Cu",)))[0] / 2**0.5, abs=1e-3)

    @pytest.mark.parametrize("name", list(ADSORBATES))
    def test_adsorbates_touch_the_surface(self, name):
        slab = cut_slab(Catalyst(("Pd",)), FACETS[0], (2, 1, 3))
        for seed in range(3):
            atoms = add_adsorbate(slab, name, np.random.default_rng(seed), 30.0)
            new = atoms.get_tags() == 2
            assert "".join(atoms.symbols[new]) == "".join(symbol for symbol, *_ in ADSORBATES[name])
            _, distance = get_distances(atoms.positions[new], slab.positions, cell=slab.cell, pbc=slab.pbc)
            ratio = distance / (covalent_radii[atoms.numbers[new]][:, None] + covalent_radii[slab.numbers])
            assert ratio.min() == pytest.approx(CONTACT, abs=1e-6)

    def test_gas_references_add_up_to_molecules(self):
        references = gas_references()
        hydrogen = Atoms("H2", [(0, 0, 0), (0, 0, 0.8)], calculator=EMT())
        BFGS(hydrogen, logfile=None).run(fmax=0.001, steps=50)
        assert 2 * references["H"] == pytest.approx(hydrogen.get_potential_energy(), abs=1e-3)
        monoxide = Atoms("CO", [(0, 0, 0), (0, 0, 1.1)], calculator=EMT())
        BFGS(monoxide, logfile=None).run(fmax=0.001, steps=50)
        assert references["C"] + references["O"] == pytest.approx(monoxide.get_potential_energy(), abs=1e-3)
