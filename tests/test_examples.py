"""The examples from data to energies: each is run on something small, and its table is there."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from emt_relaxations import clean, relax, system, write_outcar
from oc20_samples import oc20_like, with_relaxed, write_lmdb
from places import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture
def printed(monkeypatch, capsys, tmp_path):
    """Runs an example with some words after its name, and gives what it prints."""
    monkeypatch.chdir(tmp_path)

    def printed(name: str, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        runpy.run_path(str(EXAMPLES / name))
        return capsys.readouterr().out

    return printed


@pytest.mark.filterwarnings("ignore::equicat.errors.Remark")
def test_own_data(printed, tmp_path):
    """OUTCARs of clean copper, and of oxygen on it from two starts; trained for two seconds."""
    for name, frames in {
        "clean": relax(clean("Cu")),
        "O_1": relax(system("Cu", "O", 1)),
        "O_2": relax(system("Cu", "O", 2)),
    }.items():
        (tmp_path / "project" / name).mkdir(parents=True)
        write_outcar(tmp_path / "project" / name / "OUTCAR", frames)
    words = ("--minutes", 0.03, "--slab", "Cu(111) 2x2x3", "--adsorbates", "O", "--out", "out")
    out = printed("own_data.py", "project", *words)
    assert "3 files, 3 systems" in out
    assert re.search(r"^ *O .*eV|adsorbate", out, flags=re.MULTILINE)
    assert (tmp_path / "out" / "adsorption" / "table.csv").is_file()


def test_oc20_10k(printed, tmp_path):
    """LMDBs laid out as fairchem arranges OC20's relaxed energies; a network of another size."""
    systems = [with_relaxed(oc20_like(3 * seed)) for seed in range(12)]
    for part, n in {
        "10k/train": 12,
        **{f"all/val_{which}": 5 for which in ("id", "ood_ads", "ood_cat", "ood_both")},
    }.items():
        write_lmdb(tmp_path / "in" / "is2re" / part / "data.lmdb", systems[:n], "old", False)
    model = "model: {cutoff: 4.0, n_layers: 1, l_max: 1, tensor_channels: 4, two_body_mlp: [8, 8], latent_mlp: [8]}"
    (tmp_path / "small.yaml").write_text(f"task: is2re\n{model}\nrun: {{batch_size: 4, accelerator: cpu}}\n")
    out = printed("oc20_10k.py", "--source", "in", "--config", "small.yaml", "--epochs", 1)
    assert "is2re/train: 12 structures" in out
    assert all(f"val_{which}" in out for which in ("id", "ood_ads", "ood_cat", "ood_both"))


def test_fine_tuning(printed, run, data):
    out = printed("fine_tuning.py", run, data, "--epochs", 1)
    assert [line for line in out.splitlines() if line.endswith(":") and " " not in line] == ["tuned:", "from_nothing:"]
    assert out.count("force MAE") >= 2


@pytest.mark.slow  # trains four networks in processes of their own
def test_study(printed, data, tmp_path):
    out = printed("study.py", data, "--sizes", 4, 16, "--epochs", 2, "--seeds", 2)
    assert "allegro-l2" in out
    assert (tmp_path / "study" / "figure.png").is_file()


@pytest.mark.parametrize("example", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.stem)
def test_is_short(example: Path):
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 60
