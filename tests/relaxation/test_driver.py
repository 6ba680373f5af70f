"""The loop: what comes and goes, what is seen by the model, and what one broken system does to others (nothing)."""

import dataclasses

import numpy as np
import pytest
import torch
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT
from ase.optimize import LBFGS as AseLBFGS
from emt_slabs import structures
from places import FIXTURES
from torch.utils._python_dispatch import TorchDispatchMode

import equicat
from equicat.data.device_neighbors import neighbor_lists
from equicat.data.neighbors import neighbor_list
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.relaxation import lbfgs, pairs
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.driver import Driver
from equicat.relaxation.models import CalculatorForces, PotentialForces, force_model

RUNS = FIXTURES / "runs_b139b12"
WAITS = {
    *(torch.ops.aten.nonzero, torch.ops.aten._local_scalar_dense, torch.ops.aten.masked_select),
    *(torch.ops.aten.equal, torch.ops.aten.unique_dim, torch.ops.aten._unique2),
}
"""Operators that wait for a GPU."""
SLABS = list(equicat.read(RUNS / "structures.extxyz"))


class Watched:
    """A model that shows each batch to a function, and lets another change its results."""

    def __init__(self, model, see=lambda batch: None, change=lambda batch, energy, forces: None):
        self.model, self.see, self.change = model, see, change
        self.cutoff, self.elements, self.device = model.cutoff, model.elements, model.device
        self.energy_reference, self.edges = model.energy_reference, model.edges

    def __call__(self, batch):
        self.see(batch)
        energy, forces = self.model(batch)
        self.change(batch, energy, forces)
        return energy, forces


def outcomes(model, systems, **options):
    driver = Driver(model, RelaxConfig(**options), keep_frames=True)
    return {o.number: o for o in driver.run(enumerate(systems))}


@pytest.mark.parametrize("run", ["allegro", "nequip_allegro", "nequip", "schnet"])
def test_a_model_sees_the_edges_of_a_new_neighbour_list_at_every_step(run):
    if run == "schnet":
        pytest.importorskip("torch_geometric", reason="baselines need the extra [baselines]")
    model = force_model(RUNS / run)
    n_batches = 0

    def see(batch):
        nonlocal n_batches
        n_batches += 1
        n_atoms = batch.n_atoms.tolist()
        first = np.cumsum([0, *n_atoms])
        for k in range(batch.n_systems):
            here = slice(first[k], first[k + 1])
            system = Structure(
                *(getattr(batch, name)[here].numpy() for name in ("numbers", "positions")),
                cell=batch.cell[k].numpy(),
                pbc=batch.pbc[k].numpy(),
            )
            index, shift = neighbor_list(system, model.cutoff)
            own = batch.system_idx[batch.edge_index[0]] == k
            found = torch.cat([batch.edge_index[:, own] - first[k], batch.edge_shift[own].t()]).t().tolist()
            assert sorted(found) == sorted(np.concatenate([index, shift.T]).T.tolist())
            assert torch.equal(batch.edge_index[0].sort().values, batch.edge_index[0])
        exact = equicat.Batch.edge_vec(batch)
        torch.testing.assert_close(batch.edge_vec(), exact, rtol=0, atol=1e-12)

    systems = [dataclasses.replace(s, energy=None, forces=None) for s in SLABS[:2]]
    done = outcomes(Watched(model, see), systems, max_steps=12, skin=0.1, fmax=1e-4)
    assert n_batches == 13
    assert len(done) == len(systems)


def test_a_float64_model_relaxes_as_with_its_ase_calculator():
    run = RUNS / "converted_nequip_allegro"
    known = equicat.load(run).elements
    (structure,) = [s for s in SLABS if set(s.numbers) <= set(known)][:1]
    (outcome,) = outcomes(force_model(run), [structure], max_steps=15).values()
    atoms = structure.to_ase()
    atoms.calc = equicat.Calculator(run)
    for _ in AseLBFGS(atoms, logfile=None, memory=50, maxstep=0.04).irun(fmax=0.05, steps=15):
        pass
    assert outcome.last.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(outcome.last.positions, atoms.positions, rtol=0, atol=1e-9)


def test_the_skin_changes_no_result():
    model = force_model(RUNS / "allegro", dtype=torch.float64)
    thin, thick = (outcomes(model, SLABS[:3], skin=skin, max_steps=20) for skin in (0.05, 1.5))
    for number, outcome in thin.items():
        np.testing.assert_allclose(outcome.last.positions, thick[number].last.positions, rtol=0, atol=1e-9)


def test_lists_made_in_one_call_change_no_result(monkeypatch):
    """A GPU makes them so; here it is done on the CPU."""
    systems = [thick_slab(4), *SLABS[:3], thick_slab(5)]
    config, calls = RelaxConfig(skin=0.1, max_steps=12, fmax=1e-3, edges=4_000), []
    done = []
    for in_one_call in (False, True):
        monkeypatch.setattr(pairs, "_in_one_call", lambda device, chosen=in_one_call: chosen)
        driver = Driver(force_model(RUNS / "allegro", dtype=torch.float64), config)
        assert driver.active_only
        done.append({o.number: o for o in driver.run(enumerate(systems))})
        monkeypatch.setattr(pairs, "neighbor_lists", lambda *a: calls.append(len(a[0])) or neighbor_lists(*a))
    for number, whole in done[0].items():
        found = done[1][number]
        assert (found.how, found.n_steps) == (whole.how, whole.n_steps)
        np.testing.assert_allclose(found.last.positions, whole.last.positions, rtol=0, atol=1e-10)
        np.testing.assert_allclose(found.last.forces, whole.last.forces, rtol=0, atol=1e-8)
        assert found.last.energy == pytest.approx(whole.last.energy, abs=1e-9)
    assert max(calls) > 1
    assert len(calls) > 3


@pytest.mark.parametrize("in_one_call", [False, True])
def test_a_system_whose_atoms_meet_has_no_list_and_the_others_have_theirs(in_one_call, monkeypatch):
    monkeypatch.setattr(pairs, "_in_one_call", lambda device: in_one_call)
    positions = [torch.from_numpy(s.positions) for s in SLABS[:3]]
    positions[1] = positions[1].clone()
    positions[1][0] = positions[1][1]
    first, lost, last = pairs.verlet_lists_or_none(SLABS[:3], positions, 4.0)
    assert lost is None
    for found, structure in ((first, SLABS[0]), (last, SLABS[2])):
        assert found.n_edges == neighbor_list(structure, 4.0)[0].shape[1]
        vectors = found.positions[found.edge_index[1]] + found.shift_vectors - found.positions[found.edge_index[0]]
        assert float(vectors.norm(dim=1).max()) < 4.0


class Pull:
    """Forces that a few operators give, with a model's cutoff."""

    cutoff, elements, energy_reference, edges, device = 4.0, None, "total", 10_000, torch.device("cpu")

    def __call__(self, batch):
        return batch.positions.new_zeros(batch.n_systems), -0.1 * batch.positions


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_a_step_asks_the_device_twice(optimizer, monkeypatch):
    """Once for the pairs within the cutoff, and once for all that the loop has to know: each is a wait on a GPU."""
    asked, steps = [], []

    class Asking(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func._overloadpacket in WAITS:
                asked.append(str(func))
            return func(*args, **(kwargs or {}))

    report = Driver._report

    def reported(driver):
        found = report(driver)
        steps.append(asked.copy())
        asked.clear()
        return found

    monkeypatch.setattr(Driver, "_report", reported)
    monkeypatch.setenv("EQUICAT_NATIVE", "0")  # operators, as on a GPU
    monkeypatch.setattr(lbfgs, "_by_recursion", lbfgs._by_equations)
    driver = Driver(Pull(), RelaxConfig(optimizer=optimizer, max_steps=6, fmax=1e-6, skin=5.0))
    with Asking():
        list(driver.run(enumerate(SLABS[:3])))
    assert steps[2:] == [["aten.nonzero.default"]] * 5  # beside the report itself


class Counting(PotentialForces):
    """A model that counts the edges that it sees, and may give wrong energies when it sees all of a thick slab."""

    n_edges, spoilt = 0, float("inf")

    def __call__(self, batch):
        self.n_edges += batch.edge_index.shape[1]
        energy, forces = super().__call__(batch)
        return (energy * torch.nan if batch.edge_index.shape[1] >= self.spoilt else energy), forces


def thick_slab(n_fixed: int) -> Structure:
    """Six layers of copper with an oxygen atom; the lowest layers are fixed, all others displaced."""
    atoms = fcc111("Cu", (2, 2, 6), vacuum=8.0, periodic=True)
    layer = atoms.get_tags()
    add_adsorbate(atoms, "O", 1.3, "fcc")
    fixed = np.r_[layer > 6 - n_fixed, False]
    atoms.positions[~fixed] += np.random.default_rng(0).normal(scale=0.05, size=((~fixed).sum(), 3))
    return dataclasses.replace(Structure.from_ase(atoms), fixed=fixed)


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_centres_whose_energy_is_constant_are_left_out_and_change_no_bit(optimizer):
    config, systems = (
        RelaxConfig(optimizer=optimizer, max_steps=12, fmax=1e-4),
        [thick_slab(4), thick_slab(5), SLABS[0]],
    )
    potential = equicat.load(RUNS / "allegro")
    n_edges, done = [], []
    for active_only in (True, False):
        model = Counting(potential)
        driver = Driver(model, config)
        assert driver.active_only
        driver.active_only = active_only
        done.append({o.number: o for o in driver.run(enumerate(systems))})
        n_edges.append(model.n_edges)
    assert n_edges[0] < 0.75 * n_edges[1]
    for number, whole in done[1].items():
        found = done[0][number]
        assert (found.how, found.n_steps, found.fmax) == (whole.how, whole.n_steps, whole.fmax)
        assert found.last.energy == whole.last.energy
        assert np.array_equal(found.last.positions, whole.last.positions)
        assert np.array_equal(found.last.forces, whole.last.forces)


def test_a_slab_whose_constant_part_is_not_finite_is_flagged_at_the_end():
    model = Counting(equicat.load(RUNS / "allegro"))
    slab = thick_slab(5)
    model.spoilt = neighbor_list(slab, model.cutoff)[0].shape[1] * 0.9
    (outcome,) = Driver(model, RelaxConfig(max_steps=3, fmax=1e-6)).run([(0, slab)])
    assert (outcome.how, outcome.last, outcome.n_steps) == ("exploded", None, 3)
    assert np.isnan(outcome.fmax)


def test_trajectories_and_other_networks_see_all_centres():
    assert not Driver(force_model(RUNS / "allegro"), RelaxConfig(), keep_frames=True).active_only
    assert not Driver(force_model(RUNS / "nequip"), RelaxConfig()).active_only
    assert not Driver(CalculatorForces(EMT), RelaxConfig()).active_only


def test_fixed_atoms_keep_every_bit_and_all_others_move():
    for outcome in outcomes(force_model(RUNS / "allegro"), SLABS, max_steps=5).values():
        initial = SLABS[outcome.number]
        same = outcome.last.positions == initial.positions
        assert same[initial.fixed].all()
        assert not same[~initial.fixed].all(1).any()


def test_a_system_is_replaced_when_it_has_converged():
    sizes, seen = [], []

    def see(batch):
        sizes.append(batch.n_systems)
        seen.extend(batch.ids)

    systems = structures(5)
    done = outcomes(Watched(CalculatorForces(EMT), see), systems, edges=2 * 13 * 50)
    assert sorted(done) == list(range(5))
    assert set(sizes[:-1]) <= {1, 2}
    assert sizes.count(2) > sizes.count(1)
    # One evaluation of the initial structure, and one after each step.
    assert all(seen.count(str(number)) == outcome.n_steps + 1 for number, outcome in done.items())


def test_a_system_larger_than_the_budget_is_relaxed_alone():
    model = Watched(force_model(RUNS / "allegro"), lambda batch: sizes.append(batch.n_systems))
    sizes = []
    done = outcomes(model, SLABS, edges=1, max_steps=2)
    assert len(done) == len(SLABS)
    assert set(sizes) == {1}


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_a_broken_system_leaves_and_changes_no_bit_of_its_neighbours(after, value):
    model = force_model(RUNS / "allegro")
    n_calls = 0

    def change(batch, energy, forces):
        nonlocal n_calls
        n_calls += 1
        if n_calls > after and "1" in batch.ids:
            forces[batch.system_idx == batch.ids.index("1")] = value

    systems = SLABS[:3]
    broken = outcomes(Watched(model, change=change), systems, max_steps=10)
    fine = outcomes(model, [systems[0], systems[2]], max_steps=10)
    assert broken[1].how == "exploded"
    assert len(broken[1].frames) == broken[1].n_steps == after
    if after:
        assert np.isfinite(broken[1].last.forces).all()
    else:
        assert broken[1].last is None
    for here, there in ((0, 0), (2, 1)):
        assert np.array_equal(broken[here].last.positions, fine[there].last.positions)
        assert broken[here].last.energy == fine[there].last.energy
        assert broken[here].n_steps == fine[there].n_steps


def test_atoms_that_meet_end_a_relaxation_at_the_last_frame_before():
    """A model that pulls two atoms together until a neighbour list refuses them."""

    def change(batch, energy, forces):
        forces[:] = 0.0
        forces[0] = 100 * (batch.positions[1] - batch.positions[0])

    pair = Structure(SLABS[0].numbers[-2:], np.array([[0.0, 0, 0], [0.0, 0, 0.2]]), fixed=np.array([False, True]))
    model = Watched(force_model(RUNS / "allegro"), change=change)
    outcome = outcomes(model, [pair], skin=0.01, max_step=0.0395)[0]
    assert outcome.how == "exploded"
    assert 0.01 < np.linalg.norm(outcome.last.positions[1] - outcome.last.positions[0]) < 0.05


def test_a_relaxed_system_needs_no_step_and_a_slow_one_is_stopped():
    model = CalculatorForces(EMT)
    (system,) = structures(1)
    relaxed = outcomes(model, [system])[0]
    again = dataclasses.replace(system, positions=relaxed.last.positions)
    assert outcomes(model, [again])[0].n_steps == 0
    stopped = outcomes(model, [system], max_steps=2)[0]
    assert (stopped.how, stopped.n_steps, len(stopped.frames)) == ("stopped", 2, 3)


def test_an_initial_structure_with_two_atoms_at_one_place_is_named():
    broken = dataclasses.replace(SLABS[0], positions=np.r_[SLABS[0].positions[:-1], SLABS[0].positions[:1]], source="x")
    with pytest.raises(InputError, match=r"x: atoms .* are .* apart"):
        outcomes(force_model(RUNS / "allegro"), [broken])
