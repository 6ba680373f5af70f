"""Energies of latent charges: known constants, sums done otherwise, derivatives, and what they end."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from conftest import SMALL, SMALL_NEQUIP, configuration, labelled
from torch.special import erf, erfc

from equicat import Structure
from equicat.apply.evaluate import evaluate
from equicat.data.batch import Batch
from equicat.errors import InputError
from equicat.interfaces import compiled, lammps, nequip_allegro_export
from equicat.kernels.edges import Edges
from equicat.models import electrostatics, saved
from equicat.models.electrostatics import COULOMB, LongRange, potential
from equicat.models.gradient import ComputeOptions
from equicat.models.potential import Potential
from equicat.models.repulsion import EnergyTerms, Repulsion
from equicat.networks.catalogue import architecture
from equicat.relaxation.models import EDGES, PotentialForces
from equicat.tasks.tasks import LossConfig, task_of, total_loss
from equicat.testing import example_structures, potentials
from equicat.training.config import from_mapping
from equicat.training.initial_model import check_same_model
from equicat.training.train import train
from equicat.vibrations.differences import is_strictly_local

ELEMENTS = (1, 8, 29)
SCHNET = architecture("schnet").config(cutoff=4.0)
PLANE = torch.tensor([[4.0, 0.3, 0.0], [-1.0, 5.0, 0.4]], dtype=torch.float64)


def float64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def energy(charges, positions, lattice, smearing=1.0, tolerance=1e-12) -> float:
    return float(0.5 * charges @ potential(charges, positions, lattice, smearing, tolerance))


def random_charges(n: int, neutral: bool = False, seed: int = 0):
    """Charges (e) and positions (Å) in a box of 4 Å."""
    random = torch.Generator().manual_seed(seed)
    charges = torch.randn(n, generator=random, dtype=torch.float64)
    return charges - neutral * charges.mean(), 4 * torch.rand(n, 3, generator=random, dtype=torch.float64)


def model(config=SMALL, smearing: float = 1.0, **more) -> Potential:
    """A potential whose charges are of the order of one."""
    torch.manual_seed(0)
    terms = EnergyTerms((0.5, 1.0, 2.0), Repulsion(6, (4.0,)), LongRange(smearing))
    found = Potential(config, ELEMENTS, (8,), terms=terms, **more).double()
    with torch.no_grad():
        found.long_range.head.mlp.weights[-1].mul_(20)
    return found


# ---- the sum ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smearing", [0.4, 0.7])
def test_rock_salt_has_its_madelung_constant(smearing):
    """Gaussians lack erfc(r / (√2 σ)) / r against points, which is short-ranged and added in real space."""
    sites = float64(list(itertools.product((0, 1), repeat=3)))
    charges = 1 - 2 * (sites.sum(1) % 2)
    lattice = 2 * torch.eye(3, dtype=torch.float64)
    images = float64(list(itertools.product(range(-6, 7), repeat=3)))
    r = torch.linalg.vector_norm(images, dim=1)
    r, sign = r[r > 0], (1 - 2 * (images.sum(1) % 2).abs())[r > 0]
    rest = 0.5 * COULOMB * (sign * erfc(r / (math.sqrt(2) * smearing)) / r).sum()
    found = energy(charges, sites, lattice, smearing) / 8 + float(rest)
    assert found == pytest.approx(-1.7475645946 * COULOMB / 2, rel=1e-9)


def test_two_charges_of_a_molecule():
    found = energy(float64([1.5, -0.5]), float64([[0, 0, 0], [3, 0, 4]]), torch.empty(0, 3, dtype=torch.float64), 0.8)
    assert found == pytest.approx(-0.75 * COULOMB * math.erf(5 / (math.sqrt(2) * 0.8)) / 5)


@pytest.mark.parametrize("n_periodic", [0, 2, 3])
def test_the_energy_is_that_of_the_system_not_of_its_cell(n_periodic):
    """Other atoms of the lattice, another cell of the same lattice, two cells, another place and another direction."""
    charges, positions = random_charges(5)
    lattice = torch.cat([PLANE, float64([[0.5, 1.0, 6.0]])])[:n_periodic]
    expected = energy(charges, positions, lattice)
    turn = torch.linalg.qr(random_charges(3)[1])[0]
    assert energy(charges, positions @ turn + 3.0, lattice @ turn) == pytest.approx(expected, rel=1e-9)
    if n_periodic:
        whole = torch.randint(-3, 4, (5, n_periodic), generator=torch.Generator().manual_seed(1)).double()
        assert energy(charges, positions + whole @ lattice, lattice) == pytest.approx(expected, rel=1e-9)
        skewed = torch.cat([lattice[:1], lattice[1:] + 2 * lattice[0]])
        assert energy(charges, positions, skewed) == pytest.approx(expected, rel=1e-9)
        doubled = torch.cat([2 * lattice[:1], lattice[1:]])
        both = torch.cat([positions, positions + lattice[0]])
        assert energy(charges.repeat(2), both, doubled) == pytest.approx(2 * expected, rel=1e-9)


def in_plane_sum(charges, positions, lattice, smearing: float) -> float:
    """The sum over a lattice in the plane z = 0 in two dimensions, pair by pair: Parry (Surf. Sci. 49, 433, 1975)."""
    area = abs(float(torch.linalg.det(lattice[:, :2])))
    rho, z = positions[:, None, :2] - positions[None, :, :2], positions[:, None, 2] - positions[None, :, 2]
    a, found = math.sqrt(2) * smearing, torch.zeros_like(z)
    for n in itertools.product(range(-12, 13), repeat=2):
        wave = 2 * math.pi * torch.linalg.inv(lattice[:, :2]) @ float64(n)
        k = float(torch.linalg.vector_norm(wave))
        if k == 0:
            found -= 2 * (z * erf(z / a) + smearing * math.sqrt(2 / math.pi) * torch.exp(-((z / a) ** 2)))
        elif k < 9 / smearing:
            both = [torch.exp(s * k * z) * erfc(k * smearing / math.sqrt(2) + s * z / a) for s in (1, -1)]
            found += torch.cos(rho @ wave) / k * (both[0] + both[1])
    itself = math.sqrt(2 / math.pi) / smearing * charges.square().sum()
    return float(0.5 * COULOMB * (math.pi / area * charges @ found @ charges - itself))


@pytest.mark.parametrize("neutral", [True, False])
def test_a_slab_is_a_sum_in_the_plane(neutral):
    charges, positions = random_charges(6, neutral)
    plane = PLANE * float64([1, 1, 0])
    expected = in_plane_sum(charges, positions, plane, 0.8)
    assert energy(charges, positions, plane, 0.8) == pytest.approx(expected, rel=1e-9)
    coarse = energy(charges, positions, plane, 0.8, electrostatics.TOLERANCE)
    assert coarse == pytest.approx(expected, abs=3 * electrostatics.TOLERANCE * COULOMB * float(charges.abs().sum()))


def test_a_slab_is_a_sum_over_neighbours():
    """Two layers of a chessboard, whose squares of four have no charge, no dipole: cells up to 60 Å away suffice."""
    sites = float64([[x, y, z] for z in (0, 2.2) for x in (0, 2) for y in (0, 2)])
    charges = float64([1, -1, -1, 1, -0.7, 0.7, 0.7, -0.7])
    found, images = 0.0, itertools.product(range(-15, 16), repeat=2)
    for shift in (4 * float64([*n, 0]) for n in images):
        r = torch.linalg.vector_norm(sites[:, None] - sites + shift, dim=2)
        same = r == 0
        pairs = torch.where(same, 0, erf(r / math.sqrt(2)) / r.masked_fill(same, 1))
        found += float(0.5 * COULOMB * charges @ pairs @ charges)
    assert energy(charges, sites, 4 * torch.eye(3, dtype=torch.float64)[:2]) == pytest.approx(found, rel=1e-5)


# ---- the model -------------------------------------------------------------------------------------------------------


def with_vacuum(structure: Structure, factor: float) -> Structure:
    return dataclasses.replace(structure, cell=structure.cell * np.array([[1], [1], [factor]]))


@pytest.mark.parametrize("config", [SMALL, SCHNET], ids=lambda c: c.name)
def test_physics(config):
    found, structures = model(config, smearing=2.0), example_structures(ELEMENTS)
    assert {int(s.pbc.sum()) for s in structures} == {0, 2, 3}
    potentials.check_rotation(found, structures)
    potentials.check_reflection(found, structures)
    potentials.check_translation(found, structures)
    potentials.check_permutation(found, structures)
    potentials.check_batch_independence(found, structures)
    potentials.check_cross_system_gradient(found, structures)
    potentials.check_finite_difference_forces(found, structures)
    potentials.check_net_force_zero(found, structures)
    potentials.check_smooth_cutoff(found)
    potentials.check_supercell(found, structures, tolerance=1e-5)  # a wider slab has another box: the sum's tolerance
    potentials.check_isolated_atom(found)
    with pytest.raises(AssertionError, match="additivity"):
        potentials.check_additivity(found)


def test_charges_see_what_is_beyond_the_cutoff():
    found = model()
    with pytest.raises(AssertionError, match="strict locality"):
        potentials.check_strict_locality(found)
    batch = Batch.from_structures(example_structures(ELEMENTS), 4.0, dtype=torch.float64)
    far = found(batch, forces=False)
    edges = Edges(batch.edge_vec(), batch.edge_index, found.species(batch))
    near = found.atom_energies(found.network(*edges), edges)
    assert (far.atom_energies - near).abs().max() > 0.05, "the charges of this model matter"


def test_the_vacuum_of_a_slab_does_not_count():
    found = model()
    slab = next(s for s in example_structures(ELEMENTS) if s.pbc.sum() == 2)
    batch = Batch.from_structures([slab, with_vacuum(slab, 3.0)], 4.0, dtype=torch.float64)
    thin, thick = found(batch).energy.tolist()
    assert thin == thick


def test_virial_is_the_derivative_by_strain():
    """One batch has molecules, slabs and crystals; direct dependence on positions and cells is included."""
    found, structures, step = model(), example_structures(ELEMENTS), 1e-5
    batch = Batch.from_structures(structures, 4.0, dtype=torch.float64)
    out = found(batch, virial=True)
    torch.testing.assert_close(found(batch, forces=False, virial=True).virial, out.virial)
    for a, b in itertools.product(range(3), repeat=2):
        energies = []
        for sign in (1, -1):
            strain = torch.eye(3, dtype=torch.float64)
            strain[a, b] += sign * step
            strained = dataclasses.replace(batch, positions=batch.positions @ strain, cell=batch.cell @ strain)
            energies.append(found(strained, forces=False).energy)
        differences = (energies[0] - energies[1]) / (2 * step)
        torch.testing.assert_close(out.virial[:, a, b], differences, rtol=1e-5, atol=1e-5)


def test_training_gradient_agrees_with_finite_differences():
    found = model().train()
    structures = [labelled(0), dataclasses.replace(labelled(1), pbc=np.ones(3, bool))]
    molecule = dataclasses.replace(labelled(2), pbc=np.zeros(3, bool), cell=np.zeros((3, 3)))
    batch = Batch.from_structures([*structures, molecule], 4.0, dtype=torch.float64)
    config = LossConfig(energy="per_atom_mse", forces="mse", energy_weight=1.0)

    def loss() -> torch.Tensor:
        out = found(batch, virial=True)
        terms = task_of(("energy", "forces")).loss_terms(out, batch, found, config)
        return total_loss(terms) + 0.01 * out.virial.square().mean()

    loss().backward()
    for name, p in found.long_range.named_parameters():
        k, step = int(p.grad.abs().argmax()), 1e-6
        values = []
        for change in (step, -2 * step):
            with torch.no_grad():
                p.view(-1)[k] += change
            values.append(loss().item())
        with torch.no_grad():
            p.view(-1)[k] += step
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(p.grad.view(-1)[k].item(), rel=1e-5), name


def test_evaluation_keeps_no_graph_and_no_precision_is_lost():
    double = model().eval()
    batch = Batch.from_structures(example_structures(ELEMENTS), 4.0, dtype=torch.float64)
    with torch.no_grad():
        expected = double(batch, virial=True)
        found = model().float().eval()(dataclasses.replace(batch, dtype=torch.float32), virial=True)
    for name in ("energy", "forces", "virial"):
        ours = getattr(found, name)
        assert not ours.requires_grad
        torch.testing.assert_close(ours.double(), getattr(expected, name), rtol=1e-4, atol=1e-4)


def test_one_periodic_direction_is_refused():
    wire = Structure(np.array([29, 29]), np.array([[0, 0, 0], [2.0, 0, 0]]), 6 * np.eye(3), np.array([1, 0, 0], bool))
    with pytest.raises(InputError, match="periodic in one direction"):
        model()(Batch.from_structures([wire], 4.0, dtype=torch.float64))


# ---- what it ends ----------------------------------------------------------------------------------------------------


def test_what_needs_strict_locality_refuses(tmp_path):
    found = model()
    assert not found.strictly_local
    assert Potential(SMALL, ELEMENTS).strictly_local
    with pytest.raises(InputError, match="ends strict locality"):
        lammps._check_potential(found)
    with pytest.raises(InputError, match="latent charges"):
        compiled.export(found, tmp_path / "model.pt2")
    with pytest.raises(InputError, match="latent charges"):
        nequip_allegro_export.describe(model(SMALL_NEQUIP))
    with pytest.raises(InputError, match="takes a few centres"):
        model(compute=ComputeOptions(recompute=True))
    with pytest.raises(InputError, match="force_head vector"):
        model(force_head="vector")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run": {"recompute": True}}, "takes a few centres"),
        ({"force_head": "vector"}, "force_head vector"),
        ({"task": "is2re"}, "task s2ef"),
        ({"long_range": {"smearing": 0.01}}, "long_range.smearing is 0.01"),
    ],
)
def test_options_that_exclude_each_other(options, message):
    with pytest.raises(InputError, match=message):
        from_mapping({"long_range": {"smearing": 1.0}} | options)


def test_a_run_trains_saves_loads_and_predicts_the_same(data, run, tmp_path):
    """Relaxations and vibrations compute all centres; a run without charges is described as before there were any."""
    s2ef = data / "s2ef" / "train"
    config = from_mapping(configuration(s2ef, tmp_path / "run", long_range={"smearing": 1.2}, run={"max_epochs": 1}))
    result = train(config)
    loaded = saved.load_potential(result.run)
    assert loaded.info.long_range == LongRange(1.2)
    forces = PotentialForces(loaded)
    assert (forces.is_strictly_local, forces.edges, is_strictly_local(forces)) == (False, EDGES[False], False)
    summary = evaluate(result.run, s2ef, out=tmp_path / "evaluation", progress=False, outside_training="ignore")
    (split,) = summary["splits"].values()
    assert split["rows"]
    saved.save(tmp_path / "run", loaded)
    batch = Batch.from_structures([labelled(0), labelled(5)], loaded.cutoff)
    again = saved.load_potential(tmp_path / "run")(batch)
    torch.testing.assert_close(again.forces, loaded(batch).forces, rtol=0, atol=0)
    with pytest.raises(InputError, match="long_range is"):
        check_same_model(dataclasses.replace(config, long_range=LongRange()), loaded.info, "run")
    before = json.loads((run / "model.json").read_text())
    assert before["terms"] == {"factors": None, "repulsion": None}
    assert saved.load_info(run).long_range == LongRange()
