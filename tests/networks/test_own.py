"""Networks outside of the catalogue: found by name, known to every command, refused in one line."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import configuration, labelled
from pages import blocks
from places import ROOT

import equicat
from equicat import InputError
from equicat.apply.evaluate import evaluate
from equicat.apply.info import describe
from equicat.apply.predict import predict
from equicat.cli.main import main
from equicat.data.batch import Batch
from equicat.data.readers import write
from equicat.models import gradient
from equicat.models.potential import Potential
from equicat.networks import own
from equicat.training.config import from_mapping
from equicat.training.train import train

NAME = "networks_of_mine:PairNetwork"
OTHERS = """
from equicat.networks.own import OwnConfig, OwnNetwork

class NotOne: ...

class Silent(OwnNetwork):
    "Does not say how many features it has."

class WithoutOptions(OwnNetwork):
    config_class = dict
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> Path:
    """The network of docs/own_network.md, and some that are none, in modules on Python's path."""
    (tmp_path / "path").mkdir()
    (source,) = (b.text for b in blocks(ROOT / "docs" / "own_network.md", "python") if b.file == "my_networks.py")
    (tmp_path / "path" / "networks_of_mine.py").write_text(source)
    (tmp_path / "path" / "others_of_mine.py").write_text(OTHERS)
    (tmp_path / "path" / "needs_more.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path / "path")
    own.find_network.cache_clear()
    return tmp_path


def values(data: Path, out: Path) -> dict:
    return configuration(data, out, run={"max_epochs": 2}) | {"model": {"name": NAME, "cutoff": 4.0, "width": 8}}


@pytest.mark.filterwarnings("ignore::equicat.errors.OutsideTraining")
def test_commands_know_it(module, data, monkeypatch, capsys):
    run = train(from_mapping(values(data, module / "run"))).run
    assert json.loads((run / "model.json").read_text())["model"]["name"] == NAME
    assert next(iter(evaluate(run, data, progress=False)["splits"]["val_id"]["rows"])) == NAME
    write(module / "in.extxyz", [labelled(30)])
    assert predict(run, module / "in.extxyz", out=module / "out.extxyz", progress=False) == 1
    atoms = labelled(30).to_ase()
    atoms.calc = equicat.Calculator(run)
    predicted = next(iter(equicat.read(module / "out.extxyz")))
    assert predicted.energy == pytest.approx(atoms.get_potential_energy(), rel=1e-5)
    assert NAME in str(describe(run))
    resumed = train(from_mapping(values(data, run) | {"run": values(data, run)["run"] | {"resume": True}}))
    assert resumed.run == run
    tuned = values(data, module / "tuned")
    assert train(from_mapping(tuned | {"run": tuned["run"] | {"init_from": str(run)}})).run.is_dir()
    monkeypatch.delitem(sys.modules, "networks_of_mine")
    monkeypatch.setattr("sys.path", [path for path in sys.path if path != str(module / "path")])
    own.find_network.cache_clear()
    assert main(["info", str(run)]) == 2
    assert "Python finds no module networks_of_mine" in capsys.readouterr().err


def test_it_is_not_looked_for_in_the_run_or_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "networks_beside_the_run.py").write_text("raise AssertionError('this must not run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", str(tmp_path))])
    with pytest.raises(
        InputError, match="Python finds no module networks_beside_the_run; install it, or let PYTHONPATH"
    ):
        own.find_network("networks_beside_the_run:Network")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("not_there:Network", "model.name not_there:Network: Python finds no module not_there; install it, or let"),
        (".here:Network", r"model\.name is \.here:Network; it must be a name such as my_networks:PairNetwork"),
        (":Network", "it must be a name such as"),
        ("networks_of_mine.part:Network", "Python finds no module networks_of_mine"),
        ("needs_more:Network", "needs_more needs the package a_package_that_is_not_there; install it"),
        ("networks_of_mine:Pairs", r"no class Pairs in .*networks_of_mine\.py; there are OwnNetwork, PairNetwork"),
        ("others_of_mine:NotOne", r"NotOne must derive from equicat\.networks\.own\.OwnNetwork"),
        ("others_of_mine:WithoutOptions", r"config_class must be a dataclass that derives from"),
    ],
)
def test_what_is_none_is_one_line(module, name, message):
    with pytest.raises(InputError, match=message) as error:
        from_mapping({"model": {"name": name}})
    assert "\n" not in str(error.value)


def test_options_are_those_of_its_dataclass(module, capsys):
    with pytest.raises(InputError, match=r"unknown key 'model\.l_max'"):
        from_mapping({"model": {"name": NAME, "l_max": 1}})
    with pytest.raises(InputError, match=r"model\.width is 0; it must be a whole number of at least 1"):
        from_mapping({"model": {"name": NAME, "width": 0}})
    assert main(["train", "--model.name", NAME, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--model.width" in text
    assert "Features of a pair." in text
    assert "--model.l_max" not in text


def test_features_are_counted(module):
    config = own.find_network("others_of_mine:Silent").config_class(name="others_of_mine:Silent")
    with pytest.raises(InputError, match=r"others_of_mine:Silent: the constructor must set self\.n_features"):
        own.build(config, (8, 29))


def test_a_strictly_local_one_is_cut_into_pieces(module, monkeypatch):
    """Energies of a few centres at a time are those of all at once."""
    torch.manual_seed(0)
    config = own.find_network(NAME).config_class(name=NAME, cutoff=4.0, avg_num_neighbors=10.0)
    potential = Potential(config, (8, 29)).double().eval()
    batch = Batch.from_structures([labelled(0), labelled(1)], 4.0, dtype=torch.float64)
    whole = potential(batch)
    monkeypatch.setitem(gradient.FLOATS_AT_A_TIME, "cpu", 256 * 50)
    parts = potential(batch)
    assert torch.allclose(parts.energy, whole.energy)
    assert torch.allclose(parts.forces, whole.forces)
