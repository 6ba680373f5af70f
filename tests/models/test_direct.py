"""Direct IS2RE and IS2RS: the physics of every displacement head, and both tasks from end to end."""

import csv
import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from conftest import SMALL, TINY_MODEL, configuration, relaxing
from shown_as_potential import AsPotential
from torch import nn

import equicat
from equicat import InputError, Structure, testing
from equicat.apply.predict import as_text
from equicat.cli import main as cli
from equicat.data.batch import Batch
from equicat.data.images import minimum_image
from equicat.data.noise import NoiseConfig, corrupted
from equicat.models.direct import DirectHeads, DirectModel
from equicat.models.heads import VECTOR_HEADS, MagnitudeDirection, vector_head
from equicat.models.model import Prediction
from equicat.networks.features import Features
from equicat.tasks.tables import MetricSums
from equicat.tasks.tasks import LossConfig, outputs_of, resolved, task_of, total_loss, values_of
from equicat.training.config import from_mapping
from equicat.training.train import train

HEADS = ["gradient", *VECTOR_HEADS]
ELEMENTS = (1, 8, 29)
each_head = pytest.mark.parametrize("head", HEADS)

PHYSICS = [
    testing.check_rotation,
    testing.check_reflection,
    testing.check_translation,
    testing.check_permutation,
    testing.check_batch_independence,
    testing.check_smooth_cutoff,
    testing.check_additivity,
    testing.check_supercell,
    testing.check_isolated_atom,
]
"""A displacement is a polar vector of an atom, as a force is; only forces are derivatives of the energy."""


def model(head: str | None, energy: bool = True, n_layers: int = 2, **changes) -> DirectModel:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, n_layers=n_layers, **changes)
    heads = DirectHeads("mlp" if energy else None, displacements=head)
    return DirectModel(config, ELEMENTS, (8,), heads, scale=0.7, displacement_scale=0.3)


class DisplacementsAsPotential(AsPotential):
    """Shows displacements as forces, so that the checks of potentials apply."""

    def forward(self, batch: Batch, forces: bool = True) -> Prediction:
        found = self.direct(batch)
        atoms = self.direct.energy(
            self.direct.network(batch.edge_vec(), batch.edge_index, self.direct.species(batch)),
            batch.edge_index[0],
            len(batch.positions),
        )
        return Prediction(found.relaxed_energy, atoms * self.direct.scale, found.displacements)


@pytest.mark.parametrize("check", PHYSICS, ids=lambda check: check.__name__)
@each_head
def test_physics(head, check):
    check(DisplacementsAsPotential(model(head)))


@each_head
def test_displacements_are_not_trivial_and_fixed_atoms_stay(head):
    structures = testing.example_structures(ELEMENTS)
    batch = Batch.from_structures(structures, SMALL.cutoff)
    displacements = model(head)(batch).displacements
    assert displacements[batch.fixed].abs().max() == 0
    assert displacements[~batch.fixed].abs().max(1).values.min() > 1e-7
    assert displacements.abs().max() > 1e-3


def test_the_gradient_head_is_minus_the_gradient_of_a_sum():
    direct = model("gradient").double()
    cluster = dataclasses.replace(testing.example_structures(ELEMENTS)[0], fixed=None)

    def summed(positions: np.ndarray) -> float:
        batch = Batch.from_structures([dataclasses.replace(cluster, positions=positions)], 4.0, dtype=torch.float64)
        features = direct.network(batch.edge_vec(), batch.edge_index, direct.species(batch))
        total = direct.potential(features, batch.edge_index[0], len(positions)).sum().detach()
        return float(total * direct.displacement_scale)

    found = direct(Batch.from_structures([cluster], 4.0, dtype=torch.float64)).displacements
    for i, x in itertools.product(range(3), range(3)):
        step = np.zeros_like(cluster.positions)
        step[i, x] = 1e-5
        difference = (summed(cluster.positions - step) - summed(cluster.positions + step)) / 2e-5
        assert found[i, x].item() == pytest.approx(difference, rel=1e-6, abs=1e-9)


@each_head
def test_symmetric_sites_do_not_move_and_gradients_stay_finite(head):
    """In an fcc crystal and for a lone atom the vectors cancel: no direction, no displacement, no NaN in training."""
    cell = 1.8 * np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]])
    bulk = Structure(np.array([29]), np.zeros((1, 3)), cell, np.ones(3, bool), relaxed_positions=np.zeros((1, 3)))
    alone = Structure(np.array([8]), np.zeros((1, 3)), relaxed_positions=np.full((1, 3), 0.2))
    batch = Batch.from_structures([bulk, alone], SMALL.cutoff)
    direct = model(head, energy=False).train()
    out = direct(batch)
    assert out.displacements.abs().max() < 1e-5
    loss = total_loss(task_of(("displacements",)).loss_terms(out, batch, direct, resolved("is2rs", LossConfig())))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in direct.parameters() if p.grad is not None)


def test_magnitudes_are_lengths_and_never_negative():
    head = MagnitudeDirection(3, 2, (4,), 4.0)
    with torch.no_grad():  # strongly positive and strongly negative outputs
        head.length.mlp.weights[1].copy_(torch.tensor([[30.0], [30.0], [-30.0], [-30.0]]))
    features = Features(torch.randn(200, 3), "atom", 100 * torch.randn(200, 3, 2))
    center, unit = torch.zeros(0, dtype=torch.long), torch.zeros(0, 3)
    d = head(features, center, unit, 200)
    length = nn.functional.softplus(head.length(features, center, 200) + head.bias)
    assert length.min() >= 0
    assert length.max() > 10
    along = features.vectors.sum(2)
    assert ((d * along).sum(1) >= 0).all(), "never against its direction"
    torch.testing.assert_close(d.norm(dim=1), length, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("energy", [True, False], ids=["joint", "displacements"])
@each_head
def test_training_reaches_every_weight_and_lowers_the_loss(head, energy):
    direct = model(head, energy).train()
    batch = Batch.from_structures([relaxing(0), relaxing(1)], SMALL.cutoff)
    options = LossConfig(energy_weight=float(energy), displacement_weight=1.0)
    task = task_of(("relaxed_energy", "displacements") if energy else ("displacements",))
    optimizer = torch.optim.Adam(direct.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = total_loss(task.loss_terms(direct(batch), batch, direct, options))
        loss.backward()
        if head != "sum" or energy:  # the sum reads vectors alone, so the last scalars go nowhere
            assert all(p.grad is not None and p.grad.abs().max() > 0 for p in direct.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_loss_and_metrics_count_free_atoms_only():
    batch = Batch.from_structures([relaxing(0)], SMALL.cutoff)
    direct = model("vector")
    out = direct(batch)
    spoiled = dataclasses.replace(batch, displacements=batch.displacements + 100 * batch.fixed[:, None])
    options = LossConfig(energy_weight=0.5, displacement_weight=2.0)
    task = task_of(("relaxed_energy", "displacements"))
    loss = total_loss(task.loss_terms(out, batch, direct, options))
    assert loss == total_loss(task.loss_terms(out, spoiled, direct, options))
    error = (out.displacements - batch.displacements)[~batch.fixed] / 0.3
    energy = (out.relaxed_energy - batch.relaxed_energy).abs().item() / 0.7
    assert loss.item() == pytest.approx(0.5 * energy + 2 * error.norm(dim=1).mean().item(), rel=1e-4)
    sums = MetricSums(task.quantities)
    sums.add(values_of(out, batch), task.target(batch), batch)
    metrics = sums.compute()
    absolute = (out.displacements - batch.displacements).abs()
    assert metrics["positions_mae"] == pytest.approx(absolute[~batch.fixed].mean().item(), rel=1e-5)
    assert metrics["positions_mae_all_atoms"] == pytest.approx(absolute.mean().item(), rel=1e-5)
    assert metrics["positions_mae_adsorbate"] == pytest.approx(absolute[batch.tags == 2].mean().item(), rel=1e-5)


def test_weights_say_what_is_predicted():
    assert outputs_of("is2re", resolved("is2re", LossConfig())) == ("relaxed_energy",)
    assert outputs_of("is2rs", resolved("is2rs", LossConfig())) == ("displacements",)
    joint = resolved("is2re", LossConfig(displacement_weight=0.5))
    assert outputs_of("is2re", joint) == ("relaxed_energy", "displacements")
    assert task_of(("displacements",)).labels == ("relaxed_positions",)
    with pytest.raises(InputError, match=r"loss\.displacement_weight is 0, but it is what is2rs trains on"):
        resolved("is2rs", LossConfig(displacement_weight=0.0))


def test_heads_that_cannot_be_fed():
    with pytest.raises(InputError, match=r"model\.l_max is 0"):
        model("vector", l_max=0)

    class PerAtom(nn.Module):
        n_features, n_vectors, per = 8, 0, "atom"

    with pytest.raises(InputError, match=r"schnet cannot feed the head 'pair'; it can feed gradient$"):
        vector_head("schnet", "pair", PerAtom(), (), 1.0)


# ---- displacements of data ---------------------------------------------------------------------------------------


def test_displacements_take_the_shortest_image():
    """Against all images, in a strongly skewed cell, where folding fractional coordinates is not enough."""
    rng = np.random.default_rng(0)
    cell = np.array([[4.0, 0, 0], [3.4, 2.2, 0], [0.3, 0.2, 15.0]])
    for pbc in ([True, True, False], [True, True, True], [False, True, False]):
        pbc = np.array(pbc)
        vectors = rng.normal(size=(200, 3)) * 3
        images = np.array(list(itertools.product(*[range(-6, 7) if p else [0] for p in pbc]))) @ cell
        every = vectors[:, None] + images[None]
        shortest = np.linalg.norm(every, axis=2).min(1)
        found = minimum_image(vectors, cell, pbc)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), shortest, atol=1e-9)
        shift = np.linalg.lstsq(cell.T, (found - vectors).T, rcond=None)[0].T
        np.testing.assert_allclose(shift, np.round(shift) * pbc, atol=1e-9)


def test_a_wrapped_relaxed_structure_has_the_same_displacements():
    start = relaxing(3)
    unwrapped = np.where(start.fixed[:, None], 0.0, 0.1 * np.clip(start.forces, -5, 5))
    assert np.abs(start.relaxed_positions - start.positions).max() > 4
    np.testing.assert_allclose(start.displacements, unwrapped, atol=1e-12)
    batch = Batch.from_structures([start], 4.0, dtype=torch.float64)
    np.testing.assert_allclose(batch.displacements.numpy(), unwrapped, atol=1e-12)
    with pytest.raises(InputError, match="no relaxed positions"):
        _ = dataclasses.replace(start, relaxed_positions=None).displacements


def test_noisy_nodes_keep_fixed_atoms_and_the_relaxed_structure():
    start, rng = relaxing(0), np.random.default_rng(0)
    goal = start.positions + start.displacements
    for sigma, interpolate in ((0.1, True), (0.0, True), (0.1, False)):
        noisy = corrupted(start, NoiseConfig(1.0, interpolate, sigma), rng)
        np.testing.assert_array_equal(noisy.positions[noisy.fixed], start.positions[start.fixed])
        assert np.abs(noisy.positions - start.positions).max() > 0.01
        np.testing.assert_allclose(noisy.positions + noisy.displacements, goal, atol=1e-12)
        assert noisy.relaxed_energy == start.relaxed_energy
    between = corrupted(start, NoiseConfig(1.0, True, 0.0), rng)
    share = (between.positions - start.positions)[~start.fixed] / start.displacements[~start.fixed]
    np.testing.assert_allclose(share, share[0, 0], rtol=1e-6)
    assert corrupted(start, NoiseConfig(0.0), rng) is start
    with pytest.raises(InputError, match=r"noise.share is 2\.0"):
        NoiseConfig(2.0)


# ---- from end to end ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def joint_run(data, tmp_path_factory):
    """IS2RE with displacements and noisy nodes; treat as read-only."""
    out = tmp_path_factory.mktemp("runs") / "joint"
    values = configuration(data, out, run={"max_epochs": 20}, optimizer={"name": "muon", "schedule": "cosine"})
    values |= {"task": "is2re", "loss": {"displacement_weight": 1.0}, "noise": {"share": 0.5, "sigma": 0.02}}
    return train(from_mapping(values)).run


def test_a_joint_run_learns_both(joint_run):
    with (joint_run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert "val_forces_mae" not in rows[0]
    for name in ("train_energy_mae", "val_positions_mae"):
        assert float(rows[-1][name]) < float(rows[0][name])
    info = equicat.load(joint_run).info
    assert info.outputs == ("relaxed_energy", "displacements")
    assert info.displacement_head == "vector"
    assert info.statistics.displacements_rms < 1
    assert json.loads((joint_run / "model.json").read_text())["task"] == "is2re"


def test_evaluate_shows_both_with_their_baselines(joint_run, data, capsys):
    assert cli.main(["evaluate", str(joint_run), "--data", str(data), "--progress", "false"]) == 0
    text = capsys.readouterr().out
    for word in ("val_ood_ads", "linear reference, no displacement", "free-atom MAE [Å]", "ADwT [%]", "EwT [%]"):
        assert word in text
    rows = json.loads((joint_run / "evaluations" / data.name / "metrics.json").read_text())["splits"]["val_id"]["rows"]
    still = rows["mean energy, no displacement"]
    displacements = np.concatenate([relaxing(s).displacements[~relaxing(s).fixed] for s in range(16, 22)])
    assert still["positions_mae"] == pytest.approx(np.abs(displacements).mean(), rel=1e-5)
    assert rows["allegro"]["positions_mae"] < still["positions_mae"]


def test_predict_writes_relaxed_structures(joint_run, data, tmp_path):
    out = tmp_path / "relaxed.extxyz"
    assert cli.main(["predict", str(joint_run), str(data / "is2re" / "val_id"), "--out", str(out)]) == 0
    written = list(equicat.read(out))
    direct = equicat.load(joint_run)
    for seed, structure in zip(range(16, 22), written, strict=True):
        prediction = direct(Batch.from_structures([relaxing(seed)], direct.cutoff))
        assert structure.relaxed_energy == pytest.approx(prediction.relaxed_energy.item(), abs=1e-6)
        moved = structure.positions - structure.initial_positions
        np.testing.assert_allclose(structure.initial_positions, relaxing(seed).positions, atol=1e-7)
        np.testing.assert_allclose(moved, prediction.displacements.numpy(), atol=1e-5)
        np.testing.assert_allclose(moved[structure.fixed], 0, atol=1e-7)
        assert structure.relaxed_positions is None
        assert structure.energy is None
        assert structure.info["energy_reference"] == "adsorption"
    header, first = as_text(out, 6).splitlines()[:2]
    assert [title.strip() for title in header.split("  ") if title.strip()][-3:] == [
        *("relaxed energy [eV]", "largest grade", "largest move [Å]")
    ]
    assert first.startswith("s16 ")


def test_leaderboard_files_of_relaxed_energies_and_structures(joint_run, data, tmp_path):
    out = tmp_path / "relaxed.npz"
    assert cli.main(["predict", str(joint_run), str(data / "is2re" / "val_id"), "--out", str(out)]) == 0
    arrays = np.load(out)
    assert arrays["ids"].tolist() == sorted(f"s{seed}" for seed in range(16, 22))
    assert arrays["energy"].shape == (6, 1)
    assert arrays["energy"].dtype == np.float16
    sizes = [len(relaxing(int(name[1:]))) for name in arrays["ids"]]
    assert arrays["pos"].shape == (sum(sizes), 3)
    assert arrays["pos"].dtype == np.float64
    np.testing.assert_array_equal(arrays["chunk_idx"], np.cumsum(sizes)[:-1])


def test_structure_alone_needs_no_energies(data, tmp_path):
    values = configuration(data, tmp_path / "run", run={"max_epochs": 1})
    run = train(from_mapping(values | {"task": "is2rs", "displacement_head": "magnitude-direction"})).run
    prediction = equicat.load(run)(Batch.from_structures([relaxing(0)], TINY_MODEL["cutoff"]))
    assert prediction.relaxed_energy is None
    assert prediction.displacements.shape == (len(relaxing(0)), 3)


def test_a_relaxation_needs_forces(joint_run):
    with pytest.raises(InputError, match="trained for is2re, which gives no forces; use a model trained for s2ef"):
        equicat.Calculator(joint_run)


def test_frames_are_no_relaxations(data, tmp_path):
    values = configuration(data / "s2ef" / "train", tmp_path / "run", data_options={"val": []}) | {"task": "is2re"}
    with pytest.raises(InputError, match=r"no label 'relaxed_energy'; found energy, forces"):
        train(from_mapping(values))


def test_fine_tuning_with_another_head_is_refused(joint_run, data, tmp_path):
    values = configuration(data, tmp_path / "run", run={"init_from": str(joint_run)}) | {"task": "is2re"}
    with pytest.raises(InputError, match=r"outputs is \('relaxed_energy',\) in the configuration but \('relaxed_en"):
        train(from_mapping(values))
    values |= {"loss": {"displacement_weight": 1.0}, "displacement_head": "pair"}
    with pytest.raises(InputError, match="displacement_head is pair in the configuration but vector in the checkpoint"):
        train(from_mapping(values))
