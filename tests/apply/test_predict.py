"""`equicat predict`: no label is needed, no file is left half-written, and what is written reads back."""

import dataclasses
import re

import ase.io
import numpy as np
import pytest
from conftest import labelled

import equicat
from equicat.apply.predict import as_text, predict
from equicat.data.readers import write
from equicat.errors import InputError, Remark


@pytest.fixture
def structures():
    return [dataclasses.replace(labelled(seed), sid="", fid=None) for seed in range(30, 35)]


def text_of(structures, folder) -> str:
    write(folder / "text.extxyz", structures)
    return (folder / "text.extxyz").read_text()


@pytest.mark.parametrize("spoilt", ["energy=none", "energy=T", "energy=nan", 'energy="1 2"', "relaxed_energy=-1.0", ""])
def test_labels_are_not_looked_at(run, structures, tmp_path, spoilt):
    bare = [dataclasses.replace(s, energy=None, forces=None) for s in structures]
    first = text_of(bare[:1], tmp_path).replace(" pbc=", f" {spoilt} pbc=", 1)
    (tmp_path / "a.extxyz").write_text(first + text_of([*bare[1:], structures[0]], tmp_path))
    assert predict(run, tmp_path / "a.extxyz", out=tmp_path / "out.extxyz", batch_size=3, progress=False) == 6
    found = list(equicat.read(tmp_path / "out.extxyz"))
    calculator = equicat.Calculator(run)
    atoms = structures[0].to_ase()
    atoms.calc = calculator
    for structure in (found[0], found[-1]):
        assert structure.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
        np.testing.assert_allclose(structure.forces, atoms.get_forces(apply_constraint=False), atol=1e-5)
        assert structure.relaxed_energy is None


def test_an_unknown_element_is_found_before_anything_is_computed(run, structures, tmp_path, monkeypatch):
    other = np.where(np.arange(len(structures[3])) == 2, 7, structures[3].numbers)
    structures[3] = dataclasses.replace(structures[3], numbers=other)
    write(tmp_path / "a.extxyz", structures)
    monkeypatch.setattr("equicat.apply.predict.predictions", lambda *_: pytest.fail("computed"))
    for out in ("out.extxyz", "out.npz"):
        with pytest.raises(InputError, match=r"a.extxyz, frame 3: element N was not in the training data"):
            predict(run, tmp_path / "a.extxyz", out=tmp_path / out, batch_size=1, progress=False)
        assert not (tmp_path / out).exists()


def test_entries_of_any_name_come_back(run, structures, tmp_path):
    keys = ("stress", "virial", "Properties", "Lattice", "pbc", "magmom", "dipole", "free_energy", "a b", "a=b")
    atoms = structures[0].to_ase()
    for k, key in enumerate(keys):
        atoms.info[key] = 1.5 + k
    ase.io.write(tmp_path / "a.traj", atoms)
    with pytest.warns(Remark, match="is written as 'info_stress'"):
        predict(run, tmp_path / "a.traj", out=tmp_path / "out.extxyz", progress=False)
    (back,) = equicat.read(tmp_path / "out.extxyz")
    values = {value for name, value in back.info.items() if isinstance(value, float) and name != "grade"}
    assert values == {1.5 + k for k in range(len(keys))}
    np.testing.assert_allclose(back.cell, structures[0].cell)


class TestManyFiles:
    @pytest.fixture
    def folder(self, structures, tmp_path):
        """Three POSCARs, one of them after a note in the alphabet, and a file of two frames."""
        (tmp_path / "poscars").mkdir()
        for name, structure in zip((1, 10, 2), structures[:3], strict=True):
            ase.io.write(tmp_path / "poscars" / f"POSCAR_{name}", structure.to_ase(), format="vasp")
        (tmp_path / "poscars" / "README.md").write_text("notes")
        write(tmp_path / "more.extxyz", structures[3:])
        return tmp_path

    def sources(self, run, paths, folder) -> list[str]:
        n = predict(run, paths, out=folder / "out.extxyz", progress=False)
        found = [str(s.info["source"]).removeprefix(f"{folder}/") for s in equicat.read(folder / "out.extxyz")]
        assert len(found) == n
        return found

    def test_folders_globs_and_files(self, run, folder):
        poscars = [f"poscars/POSCAR_{k}, frame 0" for k in (1, 2, 10)]
        more = ["more.extxyz, frame 0", "more.extxyz, frame 1"]
        assert self.sources(run, [folder / "poscars", folder / "more.extxyz"], folder) == [*poscars, *more]
        assert self.sources(run, f"{folder}/poscars/POSCAR_1*", folder) == [poscars[0], poscars[2]]
        assert self.sources(run, f"{folder}/**/POSCAR_[12]", folder) == poscars[:2]

    def test_one_file_stays_as_it_is(self, run, folder, structures):
        predict(run, folder / "more.extxyz", out=folder / "out.extxyz", progress=False)
        info = next(equicat.read(folder / "out.extxyz")).info
        assert info == {"energy_reference": "adsorption", "grade": info["grade"]}

    def test_what_holds_nothing_is_named(self, run, data, folder):
        (folder / "empty").mkdir()
        for paths, message in (
            ([folder / "empty"], "empty: no structure file in it; found nothing; a pattern such as"),
            ([folder / "none.xyz"], "none.xyz: no such file"),
            ([data, folder / "more.extxyz"], "a data set among several paths"),
            ([data], "holds several splits"),
            ([], "no structures are named"),
        ):
            with pytest.raises(InputError, match=message):
                predict(run, paths, out=folder / "out.extxyz", progress=False)

    def test_table(self, run, folder):
        predict(run, [folder / "poscars", folder / "more.extxyz"], out=folder / "out.extxyz", progress=False)
        lines = as_text(folder / "out.extxyz", 5, limit=3).splitlines()
        assert re.split(r"\s{2,}", lines[0])[-3:] == ["energy [eV]", "largest force [eV/Å]", "largest grade"]
        first = next(equicat.read(folder / "out.extxyz"))
        largest = np.linalg.norm(first.forces[~first.fixed], axis=1).max()
        numbers = [f"{first.energy:.4f}", f"{largest:.4f}", f"{first.info['grade']:.4f}"]
        assert lines[1].split("/")[-1].split() == ["POSCAR_1,", "frame", "0", *numbers]
        about = "Energies: adsorption. Largest of the free atoms. A grade above 1: unlike the training data."
        assert lines[4:] == ["and 2 more", about]
