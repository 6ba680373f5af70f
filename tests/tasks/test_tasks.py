"""Tests of what a task compares, what its loss adds up, and what one would guess without a model."""

import dataclasses

import pytest
import torch
from conftest import SMALL, labelled, relaxing

from equicat.data.batch import Batch
from equicat.data.fitted import Statistics
from equicat.models.direct import RelaxedPrediction
from equicat.models.model import Prediction
from equicat.models.potential import Potential
from equicat.tasks.metrics import Values
from equicat.tasks.tasks import LossConfig, outputs_of, resolved, task_of, total_loss, values_of

STATISTICS = Statistics((8, 29), -3.0, (-1.5, 0.25), 1.0, 10.0)


def test_labels_and_quantities_are_those_of_the_outputs():
    s2ef = task_of(("energy", "forces", "stress"))
    assert (s2ef.energy, s2ef.labels) == ("energy", ("energy", "forces", "stress"))
    joint = task_of(("relaxed_energy", "displacements"))
    assert (joint.energy, joint.labels) == ("relaxed_energy", ("relaxed_energy", "relaxed_positions"))
    assert joint.quantities == ("energy", "displacements")
    assert task_of(("displacements",)).energy == "relaxed_energy"


def test_stress_is_trained_on_if_its_loss_has_a_weight():
    assert outputs_of("s2ef", resolved("s2ef", LossConfig())) == ("energy", "forces")
    assert outputs_of("s2ef", resolved("s2ef", LossConfig(stress_weight=0.1))) == ("energy", "forces", "stress")


def test_a_batch_has_the_labels_under_the_names_of_predictions():
    frames, initial = (Batch.from_structures([make(0), make(1)], 4.0) for make in (labelled, relaxing))
    target = task_of(("energy", "forces")).target(frames)
    assert target.energy is frames.energy
    assert target.forces is frames.forces
    target = task_of(("displacements",)).target(initial)
    assert target.energy is None
    assert target.displacements is initial.displacements


def test_predictions_have_the_names_of_labels():
    batch = Batch.from_structures([labelled(0)], 4.0)
    forces, virial = torch.ones_like(batch.positions), 3.0 * torch.eye(3)[None]
    found = values_of(Prediction(torch.zeros(1), torch.zeros(len(forces)), forces, virial), batch)
    assert found.forces is forces
    volume = torch.linalg.det(batch.cell).abs().item()
    torch.testing.assert_close(found.stress, virial.double() / volume)
    assert values_of(RelaxedPrediction(torch.ones(1)), batch).energy.item() == 1.0


def test_guesses_are_the_mean_or_the_linear_reference_and_nothing_else():
    batch = Batch.from_structures([labelled(0), labelled(1)], 4.0)
    guesses = task_of(("energy", "forces")).baselines(batch, STATISTICS)
    assert list(guesses) == ["mean energy, F = 0", "linear reference, F = 0"]
    assert guesses["mean energy, F = 0"].energy.tolist() == [-3.0, -3.0]
    n_oxygen = [(labelled(k).numbers == 8).sum() for k in (0, 1)]
    expected = [-1.5 * n + 0.25 * (len(labelled(k)) - n) for k, n in enumerate(n_oxygen)]
    assert guesses["linear reference, F = 0"].energy.tolist() == pytest.approx(expected)
    assert guesses["mean energy, F = 0"].forces.abs().max() == 0
    assert list(task_of(("relaxed_energy",)).baselines(batch, STATISTICS)) == ["mean energy", "linear reference"]
    assert list(task_of(("displacements",)).baselines(batch, STATISTICS)) == ["no displacement"]
    joint = task_of(("relaxed_energy", "displacements")).baselines(batch, STATISTICS)
    assert list(joint) == ["mean energy, no displacement", "linear reference, no displacement"]
    with_stress = task_of(("energy", "forces", "stress")).baselines(batch, STATISTICS)["mean energy, F = 0"]
    assert with_stress.stress.shape == (2, 3, 3)


@pytest.mark.parametrize("energy", ["mae", "per_atom_mae", "per_atom_mse"])
@pytest.mark.parametrize("forces", ["l2", "mae", "mse"])
def test_the_loss_of_each_system_is_multiplied_by_its_factors(energy, forces):
    """The loss in plain loops: λ_E Σ_s f_s e_s / n + λ_F Σ_a f_a l_a / n_free, with the factors of three systems."""
    torch.manual_seed(0)
    model = Potential(dataclasses.replace(SMALL, l_max=1), (8, 29), (8,), scale=0.5)
    task, factors = task_of(("energy", "forces")), [(1.0, 1.0), (0.25, 0.0), (0.0, 3.0)]
    systems = [
        dataclasses.replace(labelled(k), energy_weight=of_energy, forces_weight=of_forces)
        for k, (of_energy, of_forces) in enumerate(factors)
    ]
    batch = Batch.from_structures(systems, 4.0)
    off, pull = torch.tensor([0.3, -2.0, 70.0], dtype=torch.float64), torch.randn(len(batch.positions), 3)
    prediction = Prediction(batch.energy + off, torch.zeros(len(pull)), batch.forces + pull)
    config = LossConfig(energy=energy, forces=forces, energy_weight=2.0, forces_weight=5.0)
    of_energies = of_forces = 0.0
    n_free = 0
    for k, system in enumerate(systems):
        error = float(off[k]) / 0.5 / (1 if energy == "mae" else len(system))
        of_energies += factors[k][0] * (error**2 if energy == "per_atom_mse" else abs(error)) / 3
        vectors = pull[batch.system_idx == k][~torch.from_numpy(system.fixed)].double() / 0.5
        n_free += len(vectors)
        each = {"l2": vectors.norm(dim=1), "mae": vectors.abs().mean(1), "mse": vectors.square().mean(1)}[forces]
        of_forces += factors[k][1] * float(each.sum())
    loss = total_loss(task.loss_terms(prediction, batch, model, config))
    assert loss.item() == pytest.approx(2.0 * of_energies + 5.0 * of_forces / n_free, rel=1e-5)


@pytest.mark.parametrize("kind", ["mae", "mse"])
def test_the_stress_loss_is_of_virials_per_atom(kind, monkeypatch):
    """A slab with twice the vacuum has half the stress; its loss stays."""
    torch.manual_seed(0)
    model = Potential(dataclasses.replace(SMALL, l_max=1), (8, 29), (8,), scale=0.5)
    task = task_of(("energy", "forces", "stress"))
    losses = []
    for height in (19.0, 38.0):
        slab = labelled(0)
        cell = slab.cell.copy()
        cell[2] = [0.0, 0.0, height]
        batch = Batch.from_structures([dataclasses.replace(slab, cell=cell)], 4.0)
        virial = torch.full((1, 3, 3), 0.6)
        prediction = Prediction(batch.energy, torch.zeros(len(batch.positions)), batch.forces, virial)
        target = Values(batch.energy, batch.forces, torch.zeros(1, 3, 3))
        monkeypatch.setattr(type(task), "target", lambda self, batch, target=target: target)
        config = LossConfig(energy_weight=0.0, forces_weight=0.0, stress_weight=2.0, stress=kind)
        losses.append(total_loss(task.loss_terms(prediction, batch, model, config)).item())
    per_atom = 0.6 / len(labelled(0)) / 0.5
    assert losses[0] == pytest.approx(2.0 * (per_atom if kind == "mae" else per_atom**2), rel=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
