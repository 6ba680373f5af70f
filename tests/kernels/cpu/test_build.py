"""Kernels are compiled once, kept where nobody else can write, and missed only for their speed."""

import contextlib
import ctypes
import io
import os
import shutil
import stat

import pytest
import torch
from conftest import SMALL_NEQUIP

from equicat.data.batch import Batch
from equicat.kernels.cpu import build
from equicat.models.potential import Potential
from equicat.testing import example_structures

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="there is no C++ compiler on this machine")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A cache that holds the forms in double precision, and what was said on stderr while they were compiled."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        build.load.cache_clear()
        assert build.load("forms", torch.float64) is not None
        return build.cache_directory(), said.getvalue()


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """A cache of its own, and nothing remembered from other tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build.load.cache_clear()
    yield tmp_path / "cache" / "equicat"
    build.load.cache_clear()


def fake_compiler(monkeypatch, path, line: str) -> None:
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{line}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(path))


def without_compiler(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    build.load.cache_clear()


def test_a_failing_compiler_costs_speed_only(monkeypatch, tmp_path, folder):
    torch.manual_seed(0)
    model = Potential(SMALL_NEQUIP, (1, 8, 29), (8,)).double()
    batch = Batch.from_structures(example_structures((1, 8, 29), 0), model.cutoff, dtype=torch.float64)
    fake_compiler(monkeypatch, tmp_path / "cxx", "echo unknown flag >&2; exit 1")
    with pytest.warns(UserWarning, match="could not be .*PyTorch's slower operators are used: unknown flag"):
        energies = model(batch).atom_energies
    assert list(folder.iterdir()) == [], "nothing is left behind"
    monkeypatch.setenv("EQUICAT_NATIVE", "0")
    assert torch.equal(model(batch).atom_energies, energies)


def test_turned_off(monkeypatch, folder):
    monkeypatch.setenv("EQUICAT_NATIVE", "0")
    model = Potential(SMALL_NEQUIP, (1, 8, 29), (8,)).double()
    model(Batch.from_structures(example_structures((1, 8, 29), 0), model.cutoff, dtype=torch.float64))
    assert not folder.exists()


def test_no_compiler_and_nothing_compiled_before(monkeypatch, tmp_path, folder):
    without_compiler(monkeypatch, tmp_path)
    assert build.load("forms", torch.float32) is None
    assert not folder.exists()


def test_no_kernel_for_other_types():
    assert build.load("forms", torch.bfloat16) is None


@needs_compiler
def test_compiled_once_with_a_word_and_used_when_the_compiler_is_gone(monkeypatch, tmp_path, folder, compiled):
    assert compiled[1] == "equicat: compiling the kernel forms for this processor (some seconds, once) …\n"
    shutil.copytree(compiled[0], folder)
    (library,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(library.stat().st_mode) == 0o700
    modified = library.stat().st_mtime_ns
    build.load.cache_clear()
    assert build.load("forms", torch.float64) is not None
    fake_compiler(monkeypatch, tmp_path / "cxx", "exit 1")  # another compiler, another library
    build.load.cache_clear()
    with pytest.warns(UserWarning, match="could not be compiled"):
        assert build.load("forms", torch.float64) is None
    without_compiler(monkeypatch, tmp_path)
    assert build.load("forms", torch.float64) is not None
    assert build.load("forms", torch.float32) is None, "which was never compiled"
    assert library.stat().st_mtime_ns == modified


@needs_compiler
@pytest.mark.parametrize("what", ["folder", "library", "link"])
def test_what_others_could_have_written_is_not_loaded(tmp_path, folder, compiled, what):
    shutil.copytree(compiled[0], folder)
    (library,) = folder.iterdir()
    if what == "link":
        library.rename(tmp_path / "elsewhere.so")
        library.symlink_to(tmp_path / "elsewhere.so")
    else:
        (folder if what == "folder" else library).chmod(0o722)
    with pytest.warns(UserWarning, match="others may write to .*; run: chmod go-w|does not belong to this user"):
        assert build.load("forms", torch.float64) is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_what_belongs_to_somebody_else_is_not_loaded(folder):
    folder.mkdir(parents=True)
    os.chown(folder, 12345, 12345)
    with pytest.warns(UserWarning, match="does not belong to this user"):
        assert build.load("forms", torch.float64) is None


@needs_compiler
def test_structures_of_another_size_are_refused(folder, compiled):
    shutil.copytree(compiled[0], folder)

    class Other(ctypes.Structure):
        _fields_ = (("x", ctypes.c_int64),)

    with pytest.raises(RuntimeError, match=r"forms.cpp and its Python disagree about Other: \d+ and 8 bytes"):
        build.load("forms", torch.float64, (Other,))
