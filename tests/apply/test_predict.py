"""`equicat predict`: no label is needed, no file is left half-written, and what is written reads back."""

import dataclasses

import numpy as np
import pytest
from conftest import labelled

import equicat
from equicat.apply.predict import predict
from equicat.data.readers import write
from equicat.errors import InputError


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
    from ase.io import write as write_ase

    write_ase(tmp_path / "a.traj", atoms)
    with pytest.warns(UserWarning, match="is written as 'info_stress'"):
        predict(run, tmp_path / "a.traj", out=tmp_path / "out.extxyz", progress=False)
    (back,) = equicat.read(tmp_path / "out.extxyz")
    values = {value for value in back.info.values() if isinstance(value, float)}
    assert values == {1.5 + k for k in range(len(keys))}
    np.testing.assert_allclose(back.cell, structures[0].cell)
