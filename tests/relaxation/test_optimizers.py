"""L-BFGS and FIRE against ASE's, step by step, and what systems of one batch have to do with each other: nothing."""

import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from ase.optimize import FIRE as AseFIRE
from ase.optimize import LBFGS as AseLBFGS
from emt_slabs import rattled_slab, structures

from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.kernels.cpu.relaxation import native
from equicat.relaxation import lbfgs
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.driver import Driver
from equicat.relaxation.layout import Change, Layout
from equicat.relaxation.lbfgs import LBFGS, lbfgs_init, lbfgs_step
from equicat.relaxation.models import CalculatorForces

OPTIMIZERS = {
    "oc20": (RelaxConfig(), lambda atoms: AseLBFGS(atoms, logfile=None, memory=50, maxstep=0.04)),
    "ase": (RelaxConfig(preset="ase"), lambda atoms: AseLBFGS(atoms, logfile=None)),
    "short memory": (None, lambda atoms: AseLBFGS(atoms, logfile=None, memory=4, damping=0.8, alpha=50.0)),
    "fire": (RelaxConfig(optimizer="fire"), lambda atoms: AseFIRE(atoms, logfile=None)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_system_of_a_batch_takes_the_steps_of_ase(name):
    config, ase_optimizer = OPTIMIZERS[name]
    driver = Driver(CalculatorForces(EMT), config or RelaxConfig(edges=1800), keep_frames=True)
    if config is None:
        driver.optimizer = LBFGS(memory=4, max_step=0.2, damping=0.8, alpha=50.0)
    slabs = [rattled_slab(seed) for seed in range(4)]
    systems = enumerate(Structure.from_ase(slab) for slab in slabs)
    for outcome in driver.run(systems):
        atoms = slabs[outcome.number].copy()
        atoms.calc = EMT()
        positions = [atoms.positions.copy() for _ in ase_optimizer(atoms).irun(fmax=0.05, steps=300)]
        assert outcome.how == "converged"
        assert outcome.n_steps == len(positions) - 1
        # Rounding of the sums: some 1e-14 Å at first, carried along for up to 100 steps.
        np.testing.assert_allclose([f.positions for f in outcome.frames], positions, rtol=0, atol=1e-9)
        assert outcome.fmax == pytest.approx(np.linalg.norm(atoms.get_forces(), axis=1).max(), abs=1e-9)


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_a_system_relaxes_to_the_same_bits_alone_and_beside_others(optimizer):
    config = RelaxConfig(optimizer=optimizer, max_steps=25, edges=2000)
    systems = structures(6)
    together = {o.number: o for o in Driver(CalculatorForces(EMT), config).run(enumerate(systems))}
    for number, structure in enumerate(systems):
        (alone,) = Driver(CalculatorForces(EMT), config).run([(0, structure)])
        assert alone.last.energy == together[number].last.energy
        assert np.array_equal(alone.last.positions, together[number].last.positions)
        assert alone.n_steps == together[number].n_steps


def test_a_step_leaves_the_state_before_it_as_it_was():
    layout = Layout.of(torch.tensor([2, 3]))
    positions, forces = torch.rand(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64)
    state = lbfgs_init(layout, positions)
    for _ in range(3):
        state, positions = lbfgs_step(LBFGS(), state, positions, forces * torch.rand(5, 1), layout)
    kept = [state.steps.clone(), state.changes.clone(), state.rho.clone(), state.positions.clone()]
    first = lbfgs_step(LBFGS(), state, positions, forces, layout)[1]
    assert all(map(torch.equal, kept, [state.steps, state.changes, state.rho, state.positions]))
    assert torch.equal(first, lbfgs_step(LBFGS(), state, positions, forces, layout)[1])


def test_a_step_that_changes_nothing_adds_nothing_to_the_history():
    """ASE divides by zero here."""
    layout = Layout.of(torch.tensor([1]))
    positions, forces = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    state = lbfgs_init(layout, positions)
    for _ in range(3):
        state, positions = lbfgs_step(LBFGS(), state, positions, forces, layout)
    assert positions[0].tolist() == pytest.approx([3 / 70, 0, 0])
    assert (state.rho == 0).all()


@pytest.mark.parametrize("way", ["_direction", "_by_equations"])
def test_kernel_and_equations_give_what_the_recursion_gives(way):
    """A CPU takes the one, a GPU the other; some systems are newer than others, and one has made a step of nothing."""
    if way == "_direction" and native(torch.zeros(1, dtype=torch.float64)) is None:
        pytest.skip("there is no C++ compiler on this machine")
    layout = Layout.of(torch.tensor([2, 7, 1, 4]))
    torch.manual_seed(0)
    positions, curvature = torch.rand(14, 3, dtype=torch.float64), 1 + 9 * torch.rand(14, 3, dtype=torch.float64)
    state, config = lbfgs_init(layout, positions), LBFGS(memory=9, max_step=0.2)
    for step in range(22):
        if step == 5:  # the first two systems are replaced by new ones at the end
            change = Change(torch.arange(9, 14), torch.tensor([2, 3]), 9, 2)
            layout = Layout.of(torch.tensor([1, 4, 2, 7]))
            state, positions = state.changed(change), positions.roll(-9, 0)
        forces = -curvature * positions.sin()
        state = lbfgs._with_newest_pair(config, state, positions, forces, layout)
        direction = lbfgs._by_recursion(config, state, forces, layout)
        found = getattr(lbfgs, way)(config, state, forces, layout)
        torch.testing.assert_close(found, direction, rtol=1e-9, atol=1e-13)
        direction[0] *= step != 18  # the system of one atom stays where it is
        positions = positions + 0.5 * direction
    assert (state.rho == 0).any()
    assert len(state.rho) == 9


def test_no_atom_moves_further_than_the_longest_step():
    layout = Layout.of(torch.tensor([2, 2]))
    positions = torch.zeros(4, 3, dtype=torch.float64)
    forces = torch.tensor([[50.0, 0, 0], [0, 25.0, 0], [0, 0, 0.7], [0, 0, 0]], dtype=torch.float64)
    _, moved = lbfgs_step(LBFGS(max_step=0.2), lbfgs_init(layout, positions), positions, forces, layout)
    assert moved.norm(dim=1).tolist() == pytest.approx([0.2, 0.1, 0.01, 0.0])


@pytest.mark.parametrize("options", [{"fmax": 0.0}, {"skin": -1.0}, {"max_step": float("nan")}, {"max_steps": -1}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        RelaxConfig(**options)
