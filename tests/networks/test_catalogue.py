"""Every network trains, evaluates and loads through the same door."""

import csv
import dataclasses

import numpy as np
import pytest
import torch
from conftest import configuration, labelled, relaxing

import equicat
from equicat import InputError, testing
from equicat.apply.evaluate import evaluate
from equicat.cli import main as cli
from equicat.data.batch import Batch
from equicat.models.potential import Potential
from equicat.networks.baselines.gemnet_layers import Scale
from equicat.networks.catalogue import NETWORKS
from equicat.training.config import from_mapping
from equicat.training.train import train

SMALL = {
    "allegro": {"n_layers": 1, "l_max": 1, "tensor_channels": 4, "two_body_mlp": [8, 16], "latent_mlp": [16]},
    "schnet": {"hidden_channels": 16, "n_filters": 8, "n_interactions": 1, "n_gaussians": 10},
    "cgcnn": {
        "atom_embedding_size": 16,
        "fc_feat_size": 16,
        "n_fc_layers": 1,
        "n_graph_conv_layers": 1,
        "n_gaussians": 10,
    },
    "nequip": {"n_layers": 1, "l_max": 1, "n_channels": 4},
    "gemnet": {
        "n_blocks": 1,
        "atom_features": 16,
        "edge_features": 16,
        "triplet_features": 8,
        "bilinear_features": 8,
        "n_radial": 16,
    },
}
"""The others have tests of their own."""


def values_of(name: str, data, out, **parts):
    return configuration(data, out, **parts) | {"model": {"name": name, "cutoff": 4.0} | SMALL[name]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["allegro", "nequip-allegro", "nequip"])
def test_constants_keep_their_dtype_when_only_the_device_changes(name, dtype):
    """Lightning moves a model so: ``.to(device)``, without a dtype."""
    if name == "nequip":
        pytest.importorskip("nequip", reason="NequIP needs the extra [nequip]")
    config = NETWORKS[name].config(cutoff=4.0, n_layers=2, avg_num_neighbors=10.0)
    potential = Potential(config, (1, 6, 8, 29)).to(dtype)
    batch = Batch.from_structures([labelled(0)], 4.0, dtype=dtype)
    before = potential(batch).forces
    after = potential.to("cpu")(batch).forces
    assert after.dtype == dtype
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", SMALL)
def test_every_network_trains_for_energies_and_forces(name, data, tmp_path):
    if name == "nequip":
        pytest.importorskip("nequip", reason="NequIP needs the extra [nequip]")
    if name in ("schnet", "cgcnn"):
        pytest.importorskip("torch_geometric", reason="baselines need the extra [baselines]")
    run = train(from_mapping(values_of(name, data, tmp_path / "run", run={"max_epochs": 4}))).run
    with (run / "metrics.csv").open() as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0]
    model = equicat.load(run)
    assert type(model.config) is NETWORKS[name].config
    rows = evaluate(run, data, progress=False)["splits"]["val_id"]["rows"]
    assert next(iter(rows)) == name
    assert torch.isfinite(torch.tensor(list(rows[name].values()))).all()


@pytest.mark.parametrize(("name", "head"), [("gemnet", "sum"), ("allegro", "vector"), ("allegro", "pair")])
def test_direct_forces(name, head, data, tmp_path):
    values = values_of(name, data, tmp_path / "run", run={"max_epochs": 4}) | {"force_head": head}
    run = train(from_mapping(values)).run
    with (run / "metrics.csv").open() as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0]
    model = equicat.load(run).double()
    assert model.info.force_head == head
    testing.check_rotation(model)
    testing.check_translation(model)
    testing.check_permutation(model)
    with pytest.raises(AssertionError, match=r"^finite-difference forces"):
        testing.check_finite_difference_forces(model)
    batch = Batch.from_structures([relaxing(0)], model.cutoff, dtype=model.dtype)
    assert not model(batch).forces.requires_grad
    with pytest.raises(InputError, match="a model with direct forces has no virial"):
        model(batch, virial=True)
    atoms = relaxing(0).to_ase()
    atoms.calc = equicat.Calculator(run)
    assert np.isfinite(atoms.get_forces()).all()
    changed = from_mapping(values | {"force_head": "gradient", "run": values["run"] | {"resume": True}})
    with pytest.raises(InputError, match=f"force_head is gradient in the configuration but {head} in the checkpoint"):
        train(changed)


def test_training_fits_the_scale_factors_of_gemnet(data, tmp_path):
    run = train(from_mapping(values_of("gemnet", data, tmp_path / "run", run={"max_epochs": 1}))).run
    network = equicat.load(run).network
    assert network.scales_fitted
    factors = [float(m.factor) for m in network.modules() if isinstance(m, Scale)]
    assert factors
    assert all(f != 1.0 for f in factors)


def test_networks_of_atoms_move_atoms_by_a_gradient(data, tmp_path):
    pytest.importorskip("torch_geometric", reason="SchNet needs the extra [baselines]")
    values = values_of("schnet", data, tmp_path / "run", run={"max_epochs": 1}) | {"task": "is2rs"}
    with pytest.raises(InputError, match="schnet cannot feed the head 'vector'; it can feed gradient"):
        train(from_mapping(values))
    run = train(from_mapping(values | {"displacement_head": "gradient"})).run
    model = equicat.load(run)
    assert model(Batch.from_structures([relaxing(0)], 4.0)).displacements.abs().max() > 0


def test_options_are_those_of_the_network(capsys, data, tmp_path):
    assert from_mapping({"model": {"name": "schnet"}}).model.hidden_channels == 1024
    assert from_mapping({"model": {"l_max": 1}}).model.l_max == 1
    with pytest.raises(InputError, match=r"unknown key 'model\.l_max'"):
        from_mapping({"model": {"name": "schnet", "l_max": 1}})
    with pytest.raises(InputError, match=r"model\.name is shcnet \(did you mean 'schnet'\?\); it must be one of"):
        from_mapping({"model": {"name": "shcnet"}})
    assert cli.main(["train", "--model.name", "schnet", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--model.n_gaussians" in text
    assert "--model.tensor_channels" not in text


@pytest.mark.parametrize("name", NETWORKS)
def test_defaults_have_help_and_a_name(name):
    config = NETWORKS[name].config
    names = [f.name for f in dataclasses.fields(config)]
    assert names[:2] == ["name", "cutoff"]
    assert config().name == name
