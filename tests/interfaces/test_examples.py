"""The examples of MD run, and keep what they promise."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import pytest
from places import ROOT

EXAMPLES = sorted((ROOT / "examples" / "md").glob("*.py"))
INSTALLED = importlib.util.find_spec("torch_sim") is not None


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::equicat.errors.OutsideTraining")
def test_runs(example: Path, run, tmp_path, monkeypatch, capsys):
    if example.stem.startswith("torchsim") and not INSTALLED:
        pytest.skip("torch-sim-atomistic is not installed (extra [torchsim])")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example), str(run), "--steps", "4"])
    runpy.run_path(str(example))
    printed = capsys.readouterr().out
    assert re.search(r"\d", printed)
    if "slab" in example.stem:
        assert re.search(r"fixed atoms (moved )?0 Å", printed), printed
