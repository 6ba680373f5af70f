"""Physics of the potential: the shipped list on several architectures, derivatives, references, virial."""

import dataclasses
import inspect
from typing import Protocol

import numpy as np
import pytest
import torch
from conftest import SMALL, SMALL_NEQUIP, labelled

from equicat import Structure
from equicat.data.batch import Batch
from equicat.errors import InputError
from equicat.models import gradient
from equicat.models.gradient import ComputeOptions, Energies, PairGradients
from equicat.models.potential import Potential
from equicat.models.repulsion import EnergyTerms, Repulsion
from equicat.models.uncertainty import Graded
from equicat.tasks.tasks import LossConfig, task_of, total_loss
from equicat.testing import check_all, example_structures

ELEMENTS = (1, 8, 29)
S2EF = task_of(("energy", "forces"))


def potential(**changes) -> Potential:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, **changes)
    return Potential(config, ELEMENTS, (8,), scale=0.7, reference_energies=(-13.6, -432.0, -1.5))


@pytest.mark.parametrize(
    "variant",
    [{"n_layers": 1}, {"l_max": 1}, {"n_layers": 3, "tensor_channels": 2}, {"l_max": 3, "parity": "restricted"}],
    ids=str,
)
def test_physics_of_the_published_flavour(variant):
    check_all(potential(**variant))


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({}, EnergyTerms()),
        ({"n_layers": 3, "l_max": 3}, EnergyTerms(factors=(0.5, 1.0, 2.0))),
        ({"radial": "spline", "n_radial": 8, "spline_span": 6}, EnergyTerms(repulsion=Repulsion(6, (4.0,)))),
    ],
    ids=["bessel", "deep, own factors", "spline, ZBL"],
)
def test_physics_of_the_other_flavour(changes, terms):
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL_NEQUIP, **changes)
    check_all(Potential(config, ELEMENTS, (), 0.7, (-13.6, -432.0, -1.5), terms))


def test_potentials_are_energies_by_inheritance():
    """From Python 3.12 on a protocol looks for attributes in a way that finds no submodule, such as ``network``."""
    for base in (Energies, Graded):
        assert isinstance(potential(), base)
        assert base in Potential.__mro__
        assert Protocol not in base.__mro__
    with pytest.raises(AttributeError):
        inspect.getattr_static(potential(), "network")


def test_energy_is_pairs_plus_references():
    model = potential().double()
    batch = Batch.from_structures(example_structures(ELEMENTS), SMALL.cutoff, dtype=torch.float64)
    out = model(batch, forces=False)
    references = torch.tensor([-13.6, -432.0, -1.5], dtype=torch.float64)[model.species(batch)]
    for k in range(batch.n_systems):
        mine = batch.system_idx == k
        assert out.energy[k].item() == pytest.approx((out.atom_energies + references)[mine].sum().item(), abs=1e-9)
    assert out.forces is None
    torch.testing.assert_close(model(batch).energy, out.energy)


def test_force_loss_changes_the_weights():
    """The defect of the paper's own S2EF runs: forces that carried no gradient."""
    model = potential()
    batch = Batch.from_structures([labelled(0), labelled(1)], SMALL.cutoff)
    config = LossConfig(energy_weight=0.0, forces_weight=1.0)
    model.train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    first = total_loss(S2EF.loss_terms(model(batch), batch, model, config))
    first.backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(before), "every weight feels the force loss"
    assert total_loss(S2EF.loss_terms(model(batch), batch, model, config)) < first


def test_training_gradient_agrees_with_finite_differences():
    model = potential(l_max=1).double().train()
    model.reference_energies.zero_()  # a large loss would drown the differences in rounding
    batch = Batch.from_structures([labelled(0)], SMALL.cutoff, dtype=torch.float64)
    config = LossConfig(energy="per_atom_mse", forces="mse", energy_weight=1.0)

    def loss() -> torch.Tensor:
        return total_loss(S2EF.loss_terms(model(batch), batch, model, config))

    loss().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        k, step = int(p.grad.abs().argmax()), 1e-6
        with torch.no_grad():
            p.view(-1)[k] += step
        up = loss().item()
        with torch.no_grad():
            p.view(-1)[k] -= 2 * step
        down = loss().item()
        with torch.no_grad():
            p.view(-1)[k] += step
        assert (up - down) / (2 * step) == pytest.approx(p.grad.view(-1)[k].item(), rel=1e-6, abs=1e-8), name


@pytest.mark.parametrize("config", [SMALL, SMALL_NEQUIP], ids=lambda c: c.name)
@pytest.mark.parametrize("edges", [1, 40])
def test_piece_by_piece_the_numbers_are_the_same(monkeypatch, config, edges):
    """Bounded memory: a few centres at a time, down to one, molecules, slabs and bulk and atoms without neighbours."""
    torch.manual_seed(0)
    model = Potential(config, ELEMENTS, (8,), terms=EnergyTerms((0.5, 1.0, 2.0), Repulsion(6, (4.0,)))).double().eval()
    lonely = Structure(np.array([1, 29]), np.array([[0, 0, 0], [9.0, 0, 0]]))
    structures = [lonely, *example_structures(ELEMENTS), lonely]
    batch = Batch.from_structures(structures, config.cutoff, dtype=torch.float64)
    whole = model(batch, virial=True)
    monkeypatch.setitem(gradient.FLOATS_AT_A_TIME, "cpu", edges * model.network.floats_per_edge)
    pieces = gradient.pieces(batch, model.species(batch), model.network.floats_per_edge, 3)
    assert len(pieces) > batch.n_edges / (edges + 60)
    parts = model(batch, virial=True)
    for name in ("energy", "atom_energies", "forces", "virial"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
    assert model(batch, forces=False, virial=True).forces is None


@pytest.mark.parametrize("config", [SMALL, SMALL_NEQUIP], ids=lambda c: c.name)
def test_recomputing_changes_no_gradient(monkeypatch, config):
    torch.manual_seed(0)
    model = Potential(config, ELEMENTS, (8,)).double().train()
    batch = Batch.from_structures([labelled(0), labelled(1)], config.cutoff, dtype=torch.float64)
    gradients = []
    for recompute in (False, True):
        model.pair_gradients = PairGradients(ComputeOptions(recompute=recompute, kernels=False))
        out = model(batch, virial=True)
        (
            out.energy.square().mean() + (out.forces - batch.forces).square().mean() + out.virial.square().sum()
        ).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        model.zero_grad()
        monkeypatch.setitem(gradient.FLOATS_AT_A_TIME, "cpu", 80 * model.network.floats_per_edge)
    for name, expected in gradients[0].items():
        if expected is not None:
            torch.testing.assert_close(gradients[1][name], expected, rtol=1e-10, atol=1e-12, msg=name)
    assert all(g is not None for name, g in gradients[0].items() if "frequencies" not in name)


def test_evaluation_keeps_no_graph():
    model = potential().eval()
    batch = Batch.from_structures([labelled(0)], SMALL.cutoff)
    with torch.no_grad():
        out = model(batch)
    assert not out.energy.requires_grad
    assert not out.forces.requires_grad


def test_virial_is_the_strain_derivative():
    model = potential().double()
    bulk = example_structures(ELEMENTS)[2]
    rng = np.random.default_rng(0)
    strain, step = rng.normal(size=(3, 3)), 1e-6

    def energy(eps: np.ndarray) -> float:
        deform = np.eye(3) + eps
        moved = Structure(bulk.numbers, bulk.positions @ deform, bulk.cell @ deform, bulk.pbc)
        return model(Batch.from_structures([moved], SMALL.cutoff, dtype=torch.float64), forces=False).energy.item()

    batch = Batch.from_structures([bulk], SMALL.cutoff, dtype=torch.float64)
    virial = model(batch, virial=True).virial[0].detach().numpy()
    expected = (energy(step * strain) - energy(-step * strain)) / (2 * step)
    assert np.sum(virial * strain) == pytest.approx(expected, rel=1e-6)


def test_large_reference_energies_keep_their_digits_in_float32():
    config = dataclasses.replace(SMALL)
    torch.manual_seed(0)
    big = Potential(config, ELEMENTS, (8,), reference_energies=(-17660.123456, -40000.0, 0.0))
    one = Structure(np.array([1]), np.zeros((1, 3)))
    assert big(Batch.from_structures([one], 4.0)).energy.item() == pytest.approx(-17660.123456, abs=1e-9)


def test_unknown_element_is_named():
    gold = Structure(np.array([79, 1]), np.array([[0, 0, 0], [2.0, 0, 0]]), sid="random7")
    with pytest.raises(InputError, match=r"structure random7: element Au was not in the training data; .*H, O, Cu"):
        potential()(Batch.from_structures([gold], 4.0))


def test_avg_num_neighbors_must_be_known():
    with pytest.raises(InputError, match="avg_num_neighbors is not set"):
        Potential(dataclasses.replace(SMALL, avg_num_neighbors=None), ELEMENTS)


@pytest.mark.parametrize("energy", ["mae", "per_atom_mae", "per_atom_mse"])
@pytest.mark.parametrize("forces", ["l2", "mae", "mse"])
def test_loss_counts_free_atoms_only(energy, forces):
    model = potential().train()
    batch = Batch.from_structures([labelled(0)], SMALL.cutoff)
    config = LossConfig(energy=energy, forces=forces, energy_weight=2.0, forces_weight=3.0)
    out = model(batch)
    spoiled = dataclasses.replace(batch, forces=batch.forces + 100 * batch.fixed[:, None])
    loss = total_loss(S2EF.loss_terms(out, batch, model, config))
    assert loss == total_loss(S2EF.loss_terms(out, spoiled, model, config))
    error = ((out.forces - batch.forces)[~batch.fixed] / model.scale).detach()
    by_forces = {"l2": error.norm(dim=1).mean(), "mae": error.abs().mean(), "mse": error.square().mean()}[forces]
    e = ((out.energy - batch.energy) / model.scale).abs().item() / (1 if energy == "mae" else len(batch.positions))
    expected = 2 * (e**2 if energy == "per_atom_mse" else e) + 3 * by_forces.item()
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_all_atoms_fixed_is_an_error():
    slab = labelled(0)
    frozen = dataclasses.replace(slab, fixed=np.ones(len(slab), bool))
    model = potential()
    batch = Batch.from_structures([frozen], SMALL.cutoff)
    terms = S2EF.loss_terms(model(batch), batch, model, LossConfig(energy_weight=1.0))
    with pytest.raises(InputError, match="structure s0: every atom is fixed"):
        total_loss(terms, batch.named())
