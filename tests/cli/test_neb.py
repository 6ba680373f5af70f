"""`equicat neb` as users type it."""

import json

import pytest
from diffusion import RUN, known_to_the_run

from equicat.cli.main import main
from equicat.data.readers import write


@pytest.fixture
def ends(tmp_path):
    """The files of one band that the stored run knows."""
    for structure, name in zip(known_to_the_run(), ("a", "b"), strict=True):
        write(tmp_path / f"{name}.extxyz", [structure])
    return str(tmp_path / "a.extxyz"), str(tmp_path / "b.extxyz")


QUICK = ("--max_steps", "2", "--relax_ends", "false", "--progress", "false", "--device", "cpu")


def test_a_band_from_two_files_and_from_its_own_path(tmp_path, ends, capsys):
    out = tmp_path / "out"
    assert main(["neb", str(RUN), *ends, "--out", str(out), "--images", "3", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "forward" in printed
    assert str(out / "path.extxyz") in printed
    assert len(json.loads((out / "barrier.json").read_text())["bands"]) == 1
    again = ["neb", str(RUN), "--path", str(out / "path.extxyz"), "--out", str(tmp_path / "again"), *QUICK]
    assert main(again) == 0
    assert "not converged" in capsys.readouterr().out
    assert main(again) == 2
    assert main([*again, "--overwrite"]) == 0
    assert main([*again, "--resume"]) == 0


def test_bad_options_are_one_line(tmp_path, ends, capsys):
    out = ["--out", str(tmp_path / "out"), *QUICK]
    for words, said in (
        (["neb", str(RUN), ends[0], *out], "give two structure files"),
        (["neb", str(RUN), *ends, "--path", ends[0], *out], "give two structure files"),
        (["neb", str(RUN), *ends, "--images", "0", *out], "images is 0; it must be a whole number of at least 1"),
        (["neb", str(RUN), *ends, "--k", "-1", *out], "k is -1; it must be a number above 0"),
        (["neb", str(RUN), ends[0], ends[0], *out], "are the same structure"),
        (["neb", str(RUN), ends[0], "nowhere.xyz", *out], "nowhere.xyz: no such file"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
