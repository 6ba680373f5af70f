"""Structure files in and out: labels exactly as written, streaming, and messages that name the frame."""

import gzip
import lzma

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from places import DFT_DATA, needs_dft_data

from equicat.data.readers import read, write
from equicat.data.structure import Structure
from equicat.errors import InputError


def labelled_slab(seed: int = 0) -> Atoms:
    """Cu(111) with a fixed layer, tags, an energy and forces that are not zero on the fixed atoms."""
    rng = np.random.default_rng(seed)
    atoms = fcc111("Cu", (2, 1, 3), vacuum=5.0)
    atoms.pbc = (True, True, False)
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 3))
    atoms.calc = SinglePointCalculator(atoms, energy=-1.5 - seed, forces=rng.normal(size=(len(atoms), 3)))
    atoms.info = {"sid": "random7", "fid": seed}
    return atoms


def full_structure(**changes: object) -> Structure:
    """Every field a file can carry."""
    base = Structure.from_ase(labelled_slab())
    values = {name: getattr(base, name) for name in Structure.__dataclass_fields__}
    values |= {
        "relaxed_energy": -2.25,
        "relaxed_positions": base.positions + 0.125,
        "info": {"adsorbate": "*NO", "flag": True, "u": 3.5},
    }
    return Structure(**(values | changes))


def assert_same(a: Structure, b: Structure) -> None:
    for name in ("numbers", "pbc", "fixed", "tags"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for name in ("positions", "cell", "forces", "relaxed_positions"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=0, atol=1e-8, err_msg=name)
    for name in ("energy", "relaxed_energy", "sid", "fid", "info"):
        assert getattr(a, name) == getattr(b, name), name


@pytest.mark.parametrize("name", ["a.extxyz", "a.xyz", "a.extxyz.gz", "a.extxyz.xz"])
def test_write_then_read_gives_the_structure_back(tmp_path, name):
    structures = [full_structure(fid=i, energy=0.1 * i) for i in range(3)]
    assert write(tmp_path / name, structures) == 3
    back = list(read(tmp_path / name))
    assert len(back) == 3
    for a, b in zip(structures, back, strict=True):
        assert_same(a, b)
    assert [p.name for p in tmp_path.iterdir()] == [name]  # nothing temporary stays


@pytest.mark.parametrize(
    "text", ["F", "T", "007", "1e5", "1 2 3", "", "a b", 'say "F"', "two\nlines", "C:\\new", "*CO", "_JSON"]
)
def test_text_in_info_reads_back_as_the_same_text(tmp_path, text):
    write(tmp_path / "a.extxyz", [full_structure(sid=text or "x", info={"note": text})])
    back = next(read(tmp_path / "a.extxyz"))
    assert back.info == {"note": text}
    assert back.sid == (text or "x")


@pytest.mark.parametrize("name", ["a.extxyz", "a.extxyz.gz", "a.traj", "a.db"])
def test_forces_of_fixed_atoms_are_as_written(tmp_path, name):
    atoms = labelled_slab()
    if name.endswith(".db"):
        with ase.db.connect(tmp_path / name) as database:
            database.write(atoms, key_value_pairs={"sid": "random7"}, data={"fid": 0})
    else:
        ase.io.write(tmp_path / name, [atoms])
    structure = next(read(tmp_path / name))
    np.testing.assert_allclose(structure.forces, atoms.calc.results["forces"], atol=1e-8)
    assert np.abs(structure.forces[structure.fixed]).min() > 0
    assert structure.fixed.sum() == 2
    assert structure.pbc.tolist() == [True, True, False]
    assert structure.id == "random7_0"


def test_database_pages_keep_every_row_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("equicat.data.readers.DATABASE_PAGE", 2)
    with ase.db.connect(tmp_path / "a.db") as database:
        for i in range(5):
            database.write(labelled_slab(i), key_value_pairs={"sid": "s"}, data={"fid": i})
    with ase.db.connect(tmp_path / "a.db") as database:
        database.delete([2])
    assert [s.fid for s in read(tmp_path / "a.db")] == [0, 2, 3, 4]


def test_frames_are_read_one_at_a_time(tmp_path):
    """The broken second frame is met only when it is asked for, also in a compressed file."""
    write(tmp_path / "good.extxyz", [full_structure()])
    text = (tmp_path / "good.extxyz").read_text()
    with lzma.open(tmp_path / "bad.extxyz.xz", "wt") as file:
        file.write(text + "not a number\n")
    frames = read(tmp_path / "bad.extxyz.xz")
    assert next(frames).energy == full_structure().energy
    with pytest.raises(InputError, match="frame 1"):
        next(frames)


def test_blank_lines_between_frames_do_not_end_the_file(tmp_path):
    write(tmp_path / "a.extxyz", [full_structure()])
    text = (tmp_path / "a.extxyz").read_text()
    (tmp_path / "b.xyz").write_text(text + "\n\n" + text + "\n")
    assert len(list(read(tmp_path / "b.xyz"))) == 2


def test_energy_key(tmp_path):
    write(tmp_path / "a.extxyz", [full_structure(info={"energy_rel": 0.75, "who": "me"})])
    assert next(read(tmp_path / "a.extxyz", energy_key="energy_rel")).energy == 0.75
    with pytest.raises(InputError, match=r"frame 0.*'energy_abs'.*energy_rel"):
        next(read(tmp_path / "a.extxyz", energy_key="energy_abs"))
    with pytest.raises(InputError, match=r"who is 'me', expected a number"):
        next(read(tmp_path / "a.extxyz", energy_key="who"))


@pytest.mark.parametrize(
    ("index", "fids"), [(None, [0, 1, 2, 3]), (0, [0]), (2, [2]), (-1, [3]), (-4, [0]), (slice(1, None, 2), [1, 3])]
)
def test_index(tmp_path, index, fids):
    write(tmp_path / "a.extxyz", [full_structure(fid=i) for i in range(4)])
    assert [s.fid for s in read(tmp_path / "a.extxyz", index=index)] == fids


@pytest.mark.parametrize("index", [4, -5, slice(9, None)])
def test_index_beyond_the_file(tmp_path, index):
    write(tmp_path / "a.extxyz", [full_structure(fid=i) for i in range(4)])
    with pytest.raises(InputError, match="fewer frames"):
        list(read(tmp_path / "a.extxyz", index=index))


def test_atoms_held_in_all_directions_are_fixed(tmp_path):
    atoms = labelled_slab()
    atoms.set_constraint([FixCartesian(0, (True, True, True)), FixCartesian(1, (False, False, True))])
    ase.io.write(tmp_path / "a.extxyz", atoms)
    assert next(read(tmp_path / "a.extxyz")).fixed.tolist() == [True] + [False] * 5


def test_at_sign_in_a_file_name(tmp_path):
    ase.io.write(tmp_path / "a.traj", [labelled_slab(0), labelled_slab(1)])
    (tmp_path / "a.traj").rename(tmp_path / "pt@cu.traj")
    assert len(list(read(tmp_path / "pt@cu.traj"))) == 2


class TestBadInput:
    def test_missing_file_lists_its_neighbours(self, tmp_path):
        (tmp_path / "train.xyz").write_text("")
        with pytest.raises(InputError, match=r"trian.xyz: no such file.*train.xyz"):
            read(tmp_path / "trian.xyz")

    def test_directory(self, tmp_path):
        with pytest.raises(InputError, match="is a directory"):
            read(tmp_path)

    def test_empty_and_unknown_format(self, tmp_path):
        (tmp_path / "a.extxyz").write_text("")
        (tmp_path / "a.pdf").write_bytes(b"%PDF")
        (tmp_path / "a.extxyz.gz").write_bytes(b"not gzip")
        for name in ("a.extxyz", "a.pdf", "a.extxyz.gz"):
            with pytest.raises(InputError, match=name):
                list(read(tmp_path / name))

    def test_no_frames(self, tmp_path):
        (tmp_path / "a.extxyz").write_text("\n\n")
        with pytest.raises(InputError, match="no frames"):
            list(read(tmp_path / "a.extxyz"))

    def test_truncated_text_names_the_frame(self, tmp_path):
        write(tmp_path / "a.extxyz", [full_structure(fid=i) for i in range(2)])
        lines = (tmp_path / "a.extxyz").read_text().splitlines(keepends=True)
        (tmp_path / "b.extxyz").write_text("".join(lines[:-2]))
        with pytest.raises(InputError, match=r"b.extxyz, frame 1: .*4 of 6 atoms"):
            list(read(tmp_path / "b.extxyz"))

    def test_truncated_compression_names_the_frame(self, tmp_path):
        rng = np.random.default_rng(0)
        write(tmp_path / "a.extxyz", [full_structure(forces=rng.normal(size=(6, 3))) for _ in range(300)])
        data = gzip.compress((tmp_path / "a.extxyz").read_bytes())
        (tmp_path / "b.extxyz.gz").write_bytes(data[: len(data) // 2])
        with pytest.raises(InputError, match=r"frame \d\d+: cannot be read"):
            list(read(tmp_path / "b.extxyz.gz"))

    def test_truncated_trajectory_names_the_frame(self, tmp_path):
        ase.io.write(tmp_path / "a.traj", [labelled_slab(i) for i in range(3)])
        data = (tmp_path / "a.traj").read_bytes()
        (tmp_path / "b.traj").write_bytes(data[:-900])
        with pytest.raises(InputError, match=r"b.traj, frame \d"):
            list(read(tmp_path / "b.traj"))

    def test_invalid_structure_names_the_frame(self, tmp_path):
        (tmp_path / "a.xyz").write_text("1\n\nH 0 0 0\n1\n\nH 0 0 nan\n")
        with pytest.raises(InputError, match="frame 1: positions is not finite"):
            list(read(tmp_path / "a.xyz"))


class TestWriteRefuses:
    def test_other_formats(self, tmp_path):
        with pytest.raises(InputError, match="extended XYZ"):
            write(tmp_path / "a.traj", [full_structure()])

    def test_no_structures_and_leaves_no_file(self, tmp_path):
        with pytest.raises(InputError, match="no structures"):
            write(tmp_path / "a.extxyz", [])
        assert list(tmp_path.iterdir()) == []

    def test_missing_folder(self, tmp_path):
        with pytest.raises(InputError, match="does not exist"):
            write(tmp_path / "no" / "a.extxyz", [full_structure()])

    def test_an_existing_file_survives_a_failure(self, tmp_path):
        write(tmp_path / "a.extxyz", [full_structure()])
        before = (tmp_path / "a.extxyz").read_bytes()

        def broken():
            yield full_structure(fid=9)
            raise RuntimeError("out of disk")

        with pytest.raises(RuntimeError, match="out of disk"):
            write(tmp_path / "a.extxyz", broken())
        assert (tmp_path / "a.extxyz").read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["a.extxyz"]


VASPRUN = """<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <kpoints>
  <varray name="kpointlist"><v>0 0 0</v></varray>
  <varray name="weights"><v>1</v></varray>
 </kpoints>
 <atominfo><atoms>2</atoms><types>1</types>
  <array name="atoms"><set><rc><c>Cu</c><c>1</c></rc><rc><c>Cu</c><c>1</c></rc></set></array>
 </atominfo>
 <structure name="initialpos">
  <crystal><varray name="basis"><v>3 0 0</v><v>0 3 0</v><v>0 0 12</v></varray></crystal>
  <varray name="positions"><v>0 0 0</v><v>0.5 0.5 0.125</v></varray>
  <varray name="selective"><v type="logical">F F F</v><v type="logical">T T T</v></varray>
 </structure>
 <calculation>
  <scstep>
   <energy><i name="e_fr_energy">-3.5</i><i name="e_wo_entrp">-3.4</i><i name="e_0_energy">-3.25</i></energy>
  </scstep>
  <structure>
   <crystal><varray name="basis"><v>3 0 0</v><v>0 3 0</v><v>0 0 12</v></varray></crystal>
   <varray name="positions"><v>0 0 0</v><v>0.5 0.5 0.125</v></varray>
  </structure>
  <varray name="forces"><v>0 0 -0.5</v><v>0 0 0.5</v></varray>
  <energy><i name="e_fr_energy">-3.5</i><i name="e_wo_entrp">-3.4</i><i name="e_0_energy">-3.25</i></energy>
 </calculation>
</modeling>
"""


def test_vasprun_xml(tmp_path):
    (tmp_path / "vasprun.xml").write_text(VASPRUN)
    (structure,) = read(tmp_path / "vasprun.xml")
    assert structure.energy == -3.25
    assert structure.fixed.tolist() == [True, False]
    assert structure.forces[:, 2].tolist() == [-0.5, 0.5]


@needs_dft_data
class TestRealData:
    def test_oc20_trajectory_keeps_forces_of_fixed_atoms(self):
        path = DFT_DATA / "oc20_mini" / "trajectories" / "random1447590.extxyz.xz"
        frames = list(read(path, energy_key="energy_rel"))
        assert len(frames) == frames[0].info["n_frames"]
        assert [s.fid for s in frames] == list(range(len(frames)))
        first = frames[0]
        assert first.fixed.any()
        assert np.abs(first.forces[first.fixed]).max() > 0
        assert frames[-1].energy == 0.0
        assert first.energy == first.info["energy_rel"]

    def test_adsorbate_fluorine_reads_as_text(self):
        names = {s.info["adsorbate"] for s in read(DFT_DATA / "xu_kitchin" / "train" / "initial.extxyz")}
        assert all(isinstance(name, str) for name in names)
