"""Files that appear complete or not at all."""

import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from equicat import InputError
from equicat.files import remove_directory, replace_directory, replacing_directory, replacing_file, restore_directory


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


def test_a_directory_whose_removal_is_killed_leaves_no_part_under_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    (folder / "inside").mkdir(parents=True)

    def killed(path, **_):
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_directory(folder)
    assert not folder.exists()
    (folder / "inside").mkdir(parents=True)
    remove_directory(folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("renamings", [1, 2])
def test_a_directory_that_is_being_replaced_is_there_after_a_kill(tmp_path, monkeypatch, renamings):
    folder, new = tmp_path / "folder", tmp_path / "new"
    for path in (folder, new):
        path.mkdir()
        (path / "name").write_text(path.name)
    done, rename = [], Path.rename

    def killed(path, target):
        if len(done) == renamings:
            raise KeyboardInterrupt
        done.append(path)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        patch.setattr(shutil, "rmtree", lambda path, **_: killed(path, path) if path.exists() else None)
        with pytest.raises(KeyboardInterrupt):
            replace_directory(folder, new)
    restore_directory(folder)
    assert (folder / "name").read_text() == ("folder" if renamings == 1 else "new")
    with pytest.raises(InputError, match="exists already"), replacing_directory(folder):
        pass
    with replacing_directory(folder, overwrite=True) as third:
        (third / "name").write_text("third")
    assert (folder / "name").read_text() == "third"
    assert [path.name for path in tmp_path.iterdir() if path != new] == ["folder"]
