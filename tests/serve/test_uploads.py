"""Uploads: each bad one is one line, nothing in one is run, and no name becomes a path."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.constraints import FixAtoms
from ase.io.formats import filetype

from equicat import InputError
from equicat.serve import uploads as module
from equicat.serve.reading import structure_in
from equicat.serve.uploads import FORMATS, format_of, shown_name


def slab(size=(2, 2, 3)):
    atoms = fcc111("Cu", size, vacuum=8.0, periodic=True)
    atoms.set_constraint(FixAtoms(range(4)))
    return atoms


def content(folder, atoms, name, **options):
    atoms.write(folder / name, **options)
    return (folder / name).read_bytes()


def read_as(folder, name, text):
    """A file as the page and the process that reads it take it."""
    path = folder / FORMATS[format_of(name, text)]
    path.write_bytes(text)
    return structure_in(path, "slab")


class Touch:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_an_upload_is_kept_under_a_name_of_ours(serving, tmp_path):
    text = content(tmp_path, slab(), "POSCAR", format="vasp")
    upload = serving.uploads.add("slab", "../../../etc/my CONTCAR", text)
    assert upload.label == "my CONTCAR"
    assert [path.name for path in serving.home.uploads.iterdir()] == [f"{upload.token}.extxyz"]
    found = serving.uploads.structure(upload.token, "slab")
    assert found.source == "my CONTCAR"
    assert found.fixed.sum() == 4
    assert np.allclose(found.positions, slab().positions)
    assert serving.uploads.add("slab", "my CONTCAR", text).token == upload.token
    with pytest.raises(InputError, match="the uploaded adsorbate is no longer there"):
        serving.uploads.structure(upload.token, "adsorbate")
    assert not (tmp_path / "etc").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # ASE's plans for the files of FHI-aims
@pytest.mark.parametrize("file_format", FORMATS)
def test_the_name_while_it_is_read_has_the_format(file_format, tmp_path):
    """ASE finds the same format by our name, for those whose content does not say it."""
    try:
        slab().write(tmp_path / FORMATS[file_format], format=file_format)
    except (ValueError, TypeError, KeyError, AttributeError):
        return  # ASE only reads it
    text = (tmp_path / FORMATS[file_format]).read_bytes()
    assert format_of(FORMATS[file_format], text) == filetype(str(tmp_path / FORMATS[file_format])) == file_format
    if file_format not in ("traj", "espresso-in"):
        assert sorted(structure_in(tmp_path / FORMATS[file_format], "slab").numbers) == [29] * 12


@pytest.mark.parametrize("name", ["slab.pkl", "slab.traj", "slab.extxyz", "POSCAR", "slab.cif", "slab.json", "OUTCAR"])
@pytest.mark.parametrize("protocol", [0, 4])
def test_a_pickle_is_never_opened(name, protocol, tmp_path):
    bad = pickle.dumps(Touch(tmp_path / "was-here"), protocol)
    with pytest.raises(InputError):
        read_as(tmp_path, name, bad)
    assert not (tmp_path / "was-here").exists()
    pickle.loads(bad)
    assert (tmp_path / "was-here").exists()  # so that the test could fail


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("slab.extxyz", b"", "slab.extxyz: the file is empty"),
        ("slab.xyz.gz", b"\x1f\x8b", "is compressed; unpack it first"),
        ("slab.py", b"import os", "the format py is not taken; give one of extxyz, vasp"),
        ("slab.pkl", b"\x80\x04K\x01.", "its format is not known"),
        ("slab.db", b"SQLite format 3\0", "the format db is not taken"),
        ("slab.json", b"{}", "the format json is not taken"),
        ("lammps", b"\n\n", "its format is not known"),
        ("", b"x", "its format is not known"),
        ("postgresql://host/x", b"x", "its format is not known"),
    ],
)
def test_only_formats_whose_readers_only_parse_are_taken(name, text, message):
    with pytest.raises(InputError, match=message) as caught:
        format_of(shown_name(name), text)
    assert len(caught.value.lines) == 1


def broken_slabs():
    other = slab()
    add_adsorbate(other, "O", 1.5)
    yield "half.extxyz", lambda f: content(f, slab(), "x.extxyz")[:600], "frame 0: cannot be read as extxyz"
    yield "POSCAR", lambda f: b"Cu\n1.0\nnot a cell", "POSCAR, frame 0: cannot be read as vasp"
    yield "two.xyz", lambda f: content(f, slab(), "a.xyz") + content(f, other, "b.xyz"), "different systems"
    yield "nan.xyz", lambda f: content(f, slab(), "a.xyz").replace(b" 0.00000000", b" nan", 1), "not finite"
    yield "big.xyz", lambda f: content(f, slab((10, 10, 5)), "a.xyz"), "500 atoms; this page takes slabs of at most 400"
    yield "x.traj", lambda f: b"\x00" * 1000, "cannot be read as traj"


@pytest.mark.parametrize(("name", "make", "message"), [pytest.param(*one, id=one[0]) for one in broken_slabs()])
def test_each_broken_file_is_one_line(name, make, message, tmp_path):
    text = make(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_as(tmp_path, name, text)
    assert len(caught.value.lines) == 1


def test_what_is_read_is_looked_at_once_more(tmp_path):
    slab().write(tmp_path / "slab.json")
    with pytest.raises(InputError, match="its content has another format"):
        structure_in(tmp_path / "slab.json", "slab")


def test_a_broken_file_is_called_by_its_own_name(serving):
    with pytest.raises(InputError, match=r"^my slab\.xyz, frame 0: cannot be read as extxyz") as caught:
        serving.uploads.add("slab", "my slab.xyz", b"5\nfive atoms\nCu 0 0 0\n")
    assert str(serving.home.path) not in str(caught.value)
    assert list(serving.home.uploads.iterdir()) == []


def test_a_file_that_is_too_large_or_slow_is_refused(serving, monkeypatch):
    with pytest.raises(InputError, match="is larger than 10 MB"):
        serving.uploads.add("slab", "x.xyz", b"0" * (module.MAX_BYTES + 1))
    monkeypatch.setattr(module, "MAX_SECONDS", 0.01)
    with pytest.raises(InputError, match=r"x.xyz: takes longer than 0.01 s to read"):
        serving.uploads.add("slab", "x.xyz", b"1\n\nCu 0 0 0\n")
    assert list(serving.home.uploads.iterdir()) == []


def test_an_adsorbate_is_one_molecule(tmp_path):
    molecule("CH3OH").write(tmp_path / "upload.extxyz")
    assert len(structure_in(tmp_path / "upload.extxyz", "adsorbate")) == 6
    Atoms("C50", positions=np.arange(150.0).reshape(50, 3)).write(tmp_path / "upload.extxyz")
    with pytest.raises(InputError, match="adsorbates of at most 40"):
        structure_in(tmp_path / "upload.extxyz", "adsorbate")


def test_names_are_shown_without_their_folders():
    assert shown_name("C:\\data\\POSCAR") == "POSCAR"
    assert shown_name("../../a/slab.cif") == "slab.cif"
    assert shown_name("a\x00b\x1b[31m\n.cif") == "ab[31m.cif"
    assert shown_name("..") == ".."  # is shown, and leads nowhere
    assert shown_name("/") == "upload"
    assert len(shown_name("a" * 500 + ".cif")) == 80


def test_old_uploads_go_unless_a_job_is_made_of_them(serving, tmp_path, monkeypatch):
    text = content(tmp_path, slab(), "POSCAR", format="vasp")
    kept, gone = (serving.uploads.add("slab", name, text).token for name in ("POSCAR", "CONTCAR"))
    serving.add(slab="", slab_file=kept)
    (serving.home.uploads / "reading-left").mkdir()
    serving.uploads.sweep()
    assert len(list(serving.home.uploads.iterdir())) == 2
    monkeypatch.setattr(module, "KEPT", -1.0)
    serving.uploads.sweep()
    assert [path.stem for path in serving.home.uploads.iterdir()] == [kept]
    with pytest.raises(InputError, match="upload it again"):
        serving.uploads.get(gone, "slab")
