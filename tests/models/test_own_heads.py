"""Heads of one's own: found by name, known to every command, refused in one line."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import SMALL, configuration, labelled, relaxing
from pages import blocks
from places import ROOT
from shown_as_potential import AsPotential

import equicat
from equicat import InputError, testing
from equicat.apply.evaluate import evaluate
from equicat.apply.info import describe
from equicat.apply.predict import predict
from equicat.cli.main import main
from equicat.data.batch import Batch
from equicat.data.readers import write
from equicat.models.direct import DirectHeads, DirectModel
from equicat.models.model import Prediction
from equicat.networks.baselines.schnet import SchNetConfig
from equicat.report.page import write_report
from equicat.training.config import from_mapping
from equicat.training.train import train

GATED, BOUNDED = "heads_of_mine:Gated", "heads_of_mine:Bounded"
ELEMENTS = (1, 8, 29)
OTHERS = """
from equicat.models.heads import EnergyHead, VectorHead

class NotOne: ...

class Column(EnergyHead):
    def forward(self, features, center, n_atoms):
        return features.scalars[:n_atoms, :1]

class Nothing(VectorHead):
    def forward(self, features, center, unit, n_atoms):
        return None

class Vectors(VectorHead):
    needs_vectors = True
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> Path:
    """The heads of docs/own_network.md, and some that are none, in modules on Python's path."""
    (tmp_path / "path").mkdir()
    (source,) = (b.text for b in blocks(ROOT / "docs" / "own_network.md", "python") if b.file == "my_heads.py")
    (tmp_path / "path" / "heads_of_mine.py").write_text(source)
    (tmp_path / "path" / "other_heads.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(tmp_path / "path")
    yield tmp_path
    for name in ("heads_of_mine", "other_heads"):
        sys.modules.pop(name, None)


def values(data: Path, out: Path) -> dict:
    weights = {"energy_weight": 0.5, "displacement_weight": 1.0}
    given = configuration(data, out, loss=weights, run={"max_epochs": 2})
    return given | {"task": "is2rs", "energy_head": GATED, "displacement_head": BOUNDED}


@pytest.mark.filterwarnings("ignore::equicat.errors.OutsideTraining")
def test_commands_know_them(module, data, monkeypatch, capsys):
    run = train(from_mapping(values(data, module / "run"))).run
    saved = json.loads((run / "model.json").read_text())
    assert (saved["energy_head"], saved["displacement_head"]) == (GATED, BOUNDED)
    rows = evaluate(run, data, progress=False)["splits"]["val_id"]["rows"]
    assert {"energy_mae", "positions_mae"} <= set(next(iter(rows.values())))
    write(module / "in.extxyz", [labelled(30)])
    assert predict(run, module / "in.extxyz", out=module / "out.extxyz", progress=False) == 1
    structure = next(iter(equicat.read(module / "in.extxyz")))
    found = equicat.load(run)(Batch.from_structures([structure], 4.0))
    predicted = next(iter(equicat.read(module / "out.extxyz")))
    moved = predicted.positions - structure.positions
    assert torch.allclose(torch.from_numpy(moved).float(), found.displacements, atol=1e-4)
    assert BOUNDED in write_report(run).read_text(encoding="utf-8")
    assert describe(run)["own code"] == f"heads_of_mine, imported to load the run (heads {GATED}, {BOUNDED})"
    assert train(from_mapping(values(data, run) | {"run": values(data, run)["run"] | {"resume": True}})).run == run
    tuned = values(data, module / "tuned")
    assert train(from_mapping(tuned | {"run": tuned["run"] | {"init_from": str(run)}})).run.is_dir()
    other = tuned | {"run": tuned["run"] | {"init_from": str(run), "overwrite": True}, "energy_head": "mlp"}
    with pytest.raises(InputError, match=f"energy_head is mlp in the configuration but {GATED} in the checkpoint"):
        train(from_mapping(other))
    monkeypatch.delitem(sys.modules, "heads_of_mine")
    monkeypatch.setattr("sys.path", [path for path in sys.path if path != str(module / "path")])
    for command in (
        ["info", str(run)],
        ["evaluate", str(run)],
        ["predict", str(run), str(module / "in.extxyz"), "--out", str(module / "no.extxyz")],
    ):
        assert main(command) == 2
        assert "_head heads_of_mine:Bounded: Python finds no module heads_of_mine; install" in capsys.readouterr().err


class Shown(AsPotential):
    """Shows displacements as forces and relaxed energies as energies, so that the checks of potentials apply."""

    def forward(self, batch: Batch, forces: bool = True) -> Prediction:
        found, species = self.direct(batch), self.direct.species(batch)
        features = self.direct.network(batch.edge_vec(), batch.edge_index, species)
        atoms = self.direct.energy(features, batch.edge_index[0], len(species))
        return Prediction(found.relaxed_energy, atoms * self.direct.scale, found.displacements)


@pytest.mark.parametrize(
    "check",
    [testing.check_rotation, testing.check_permutation, testing.check_batch_independence],
    ids=lambda check: check.__name__,
)
def test_those_of_the_page_obey_physics(module, check):
    torch.manual_seed(0)
    check(Shown(DirectModel(SMALL, ELEMENTS, (8,), DirectHeads(GATED, displacements=BOUNDED))))


def test_those_of_the_page_are_what_they_say(module):
    """Displacements are bounded, and those of free atoms are the same if fixed atoms are computed as well."""
    torch.manual_seed(0)
    batch = Batch.from_structures([relaxing(0)], SMALL.cutoff)
    direct = DirectModel(SMALL, ELEMENTS, (8,), DirectHeads(None, displacements=BOUNDED))
    with torch.no_grad():
        direct.displacement.mlp.weights[-1].mul_(1e4)
    found = direct(batch).displacements
    assert 2.9 < found.norm(dim=1).max() <= 3.0
    free = direct(dataclasses.replace(batch, fixed=torch.zeros_like(batch.fixed))).displacements
    torch.testing.assert_close(found[~batch.fixed], free[~batch.fixed])


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("displacement_head", "not_there:Head", "displacement_head not_there:Head: Python finds no module not_there"),
        ("energy_head", "not_there:Head", "energy_head not_there:Head: Python finds no module not_there; install it"),
        ("energy_head", "heads_of_mine:Gate", r"no class Gate in .*heads_of_mine\.py; there are EnergyHead, Gated"),
        ("energy_head", BOUNDED, r"Bounded must derive from equicat\.models\.heads\.EnergyHead"),
        ("displacement_head", GATED, r"Gated must derive from equicat\.models\.heads\.VectorHead"),
        ("displacement_head", "other_heads:NotOne", r"NotOne must derive from equicat\.models\.heads\.VectorHead"),
        ("displacement_head", "vektor", "it must be one of gradient, .*, sum or a name such as my_heads:Bounded"),
        ("energy_head", "gated", "it must be mlp or a name such as my_heads:Bounded"),
    ],
)
def test_what_is_none_is_one_line(module, option, name, message):
    with pytest.raises(InputError, match=message) as error:
        from_mapping({"task": "is2rs", option: name})
    assert "\n" not in str(error.value)


def test_energies_and_forces_have_our_heads(module):
    with pytest.raises(InputError, match="energy_head is for the tasks is2re and is2rs; leave it out for s2ef"):
        from_mapping({"energy_head": GATED})
    with pytest.raises(InputError, match="force_head is heads_of_mine:Bounded; it must be one of gradient"):
        from_mapping({"force_head": BOUNDED})


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (DirectHeads("other_heads:Column"), r"energy_head other_heads:Column: gives a tensor of shape \[\d+, 1\]; for"),
        (DirectHeads(None, "all", "other_heads:Nothing"), r"other_heads:Nothing: gives a NoneType; for \d+ atoms it"),
    ],
)
def test_rows_of_a_wrong_shape_are_refused(module, heads, message):
    direct = DirectModel(SMALL, ELEMENTS, (8,), heads)
    with pytest.raises(InputError, match=message):
        direct(Batch.from_structures([relaxing(0)], SMALL.cutoff))


@pytest.mark.parametrize("head", [BOUNDED, "other_heads:Vectors"])
def test_a_network_that_cannot_feed_one_is_refused(module, head):
    heads = DirectHeads(None, displacements=head)
    with pytest.raises(InputError, match=f"schnet cannot feed the head '{head}'; it has features of atoms and no vec"):
        DirectModel(SchNetConfig(), ELEMENTS, (8,), heads)
    assert DirectModel(SMALL, ELEMENTS, (8,), heads).displacement is not None


def test_runs_without_read_as_before(module, data, run):
    assert "energy_head" not in json.loads((run / "model.json").read_text())
    assert "own code" not in describe(run)
