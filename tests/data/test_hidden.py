"""Hidden files are no data: those that a kill left unfinished, and what systems and editors keep beside files."""

import shutil

import pytest
from conftest import labelled

from equicat.data.directory import splits_of
from equicat.data.info import DatasetInfo
from equicat.data.readers import structure_files, write
from equicat.data.store import write_store
from equicat.errors import InputError
from equicat.files import visible
from equicat.report.read import read_run
from equicat.sources.dft.trajectories import find_files
from equicat.sources.oc20.files import pieces_of

APPLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "
"""The start of the files that macOS keeps beside others on foreign disks and in archives."""


def test_visible_paths(tmp_path):
    for name in ("b/c", "a", ".d/e", "b/.f", ".g"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in visible(tmp_path)] == ["a", "b"]
    assert [path.name for path in visible(tmp_path, "**/*")] == ["a", "b", "c"]
    assert [path.name for path in visible(tmp_path / ".d")] == ["e"], "a hidden folder that was asked for"
    assert visible(tmp_path / "missing") == []


@pytest.mark.parametrize("left", [".20-new-train", ".val_id.replaced", ".val_id.partial/store"])
def test_what_a_kill_left_is_no_split(tmp_path, left):
    write_store(tmp_path / "data" / "s2ef" / "val_id", [labelled(0)], DatasetInfo("total"))
    (tmp_path / "data" / "s2ef" / left).parent.mkdir(exist_ok=True)
    shutil.copytree(tmp_path / "data" / "s2ef" / "val_id", tmp_path / "data" / "s2ef" / left)
    assert list(splits_of(tmp_path / "data", "s2ef")) == ["val_id"]
    with pytest.raises(InputError, match=r"found s2ef/val_id$"):
        splits_of(tmp_path / "data", "is2re")


@pytest.mark.parametrize("name", ["._1.extxyz", ".20-1.extxyz", "._POSCAR", ".OUTCAR.swp", "._vasprun.xml"])
def test_no_structures_are_read_from_them(tmp_path, name):
    write(tmp_path / "1.extxyz", [labelled(0)])
    (tmp_path / name).write_bytes(APPLE)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "2.extxyz").write_bytes(APPLE)
    assert structure_files(tmp_path) == find_files([str(tmp_path)]).files == [tmp_path / "1.extxyz"]


def test_nor_systems_of_oc20(tmp_path):
    (tmp_path / "._data.0000.lmdb").write_bytes(APPLE)
    with pytest.raises(InputError, match="no OC20 files"):
        pieces_of(tmp_path, 10)


def test_nor_predictions(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    before = read_run(tmp_path / "run")
    for folder in ("predictions", "evaluations/._other/predictions"):
        (tmp_path / "run" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / folder / ".20-val.npz").write_bytes(b"half")
    (tmp_path / "run" / "evaluations" / "._other" / "metrics.json").write_text("{}")
    after = read_run(tmp_path / "run")
    assert after.problems == before.problems
    assert after.validation.predictions.keys() == before.validation.predictions.keys()
    assert [other.name for other in after.others] == [other.name for other in before.others]
