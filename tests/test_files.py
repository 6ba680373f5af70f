"""Files that appear complete or not at all."""

import os
import shutil
import stat
from functools import partial

import kills
import pytest
import torch
from safetensors.torch import save_file

from equicat import InputError
from equicat.files import (
    PLAN,
    planned_folder,
    read_json,
    remove_directory,
    replace_directory,
    replacing_directory,
    replacing_file,
    restore_directory,
)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=lambda umask: f"{umask:03o}")
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_take_the_umask_whoever_writes_them(tmp_path, umask):
    for name in ("new", "old"):
        path = tmp_path / name
        if name == "old":
            path.touch(mode=0o400)
        with replacing_file(path) as temporary:
            save_file({"a": torch.zeros(2)}, temporary)  # makes it readable for its owner alone
        assert mode(path) == 0o666 & ~umask


def test_a_file_that_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write_half():
        with replacing_file(path) as temporary:
            temporary.write_text("half")
            raise InputError("no")

    with pytest.raises(InputError):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_whose_removal_is_killed_is_whole_or_not_under_its_name(tmp_path):
    folder, was_there = tmp_path / "folder", []

    def prepare():
        (folder / "inside").mkdir(parents=True, exist_ok=True)

    for _ in kills.at_every_change(partial(remove_directory, folder), prepare):
        was_there.append(folder.exists())
        assert (folder / "inside").exists() == was_there[-1]
    assert set(was_there) == {True, False}
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_being_replaced_is_there_after_a_kill(tmp_path):
    folder, new, found = tmp_path / "folder", tmp_path / "new", []

    def prepare():
        for path in (folder, new):
            path.mkdir(exist_ok=True)
            (path / "name").write_text(path.name)

    for _ in kills.at_every_change(partial(replace_directory, folder, new), prepare):
        restore_directory(folder)
        found.append((folder / "name").read_text())
        with pytest.raises(InputError, match="exists already"), replacing_directory(folder):
            pass
        with replacing_directory(folder, overwrite=True) as third:
            (third / "name").write_text("third")
        assert (folder / "name").read_text() == "third"
        assert [path.name for path in tmp_path.iterdir() if path != new] == ["folder"]
    assert found == ["folder", "folder", *["new"] * (len(found) - 2)]
    assert len(found) > 2


def test_a_folder_of_work_can_be_begun_again_after_a_kill_at_any_change(tmp_path):
    folder, there = tmp_path / "folder", []
    begin = partial(planned_folder, folder, {"options": 1}, progress=())
    for _ in kills.at_every_change(partial(begin, existing="refuse")):
        there.append(folder.is_dir())
        begin(existing="resume" if (folder / PLAN).is_file() else "refuse")
        assert read_json(folder / PLAN) == {"options": 1}
        shutil.rmtree(folder)
    assert set(there) == {False, True}
    assert len(there) > 3
