"""Atoms that are held along some directions move along the others only, and only those count."""

import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLength, FixCartesian, FixedLine, FixedPlane, FixScaled, Hookean
from ase.optimize import LBFGS as AseLBFGS
from emt_slabs import rattled_slab

from equicat.data.readers import read, write
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.models import CalculatorForces
from equicat.relaxation.relax import relax

SKEW = np.array([1.0, 2.0, 2.0]) / 3
CONSTRAINTS = {
    "along z only": (lambda: FixCartesian([12], mask=(True, True, False)), np.diag([0.0, 0, 1])),
    "not along z": (lambda: FixCartesian([12], mask=(False, False, True)), np.diag([1.0, 1, 0])),
    "on a line": (lambda: FixedLine([12], [0, 0, 1]), np.diag([0.0, 0, 1])),
    "on a plane": (lambda: FixedPlane([12], [0, 0, 1]), np.diag([1.0, 1, 0])),
    "on a skew line": (lambda: FixedLine([12], SKEW), np.outer(SKEW, SKEW)),
    "on a skew plane": (lambda: FixedPlane([12], SKEW), np.eye(3) - np.outer(SKEW, SKEW)),
    "along a lattice vector": (lambda: FixScaled([12], mask=(True, True, False)), np.diag([0.0, 0, 1])),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_an_atom_moves_along_what_is_free_to_the_minimum_of_ase(name):
    make, free = CONSTRAINTS[name]
    atoms = rattled_slab(0)
    atoms.set_constraint([*atoms.constraints, make()])
    config = RelaxConfig(preset="ase", fmax=0.02, max_steps=100)
    (relaxed,) = relax([atoms], CalculatorForces(EMT), config, progress=False).structures
    assert relaxed.info["converged"]
    move = relaxed.positions[12] - atoms.positions[12]
    np.testing.assert_allclose(free @ move, move, rtol=0, atol=1e-12)
    held = np.abs(free).max(1) == 0
    assert np.array_equal(relaxed.positions[12][held], atoms.positions[12][held])
    assert np.array_equal(relaxed.positions[relaxed.fixed], atoms.positions[relaxed.fixed])
    forces = relaxed.forces.copy()
    forces[relaxed.fixed] = 0.0
    forces[12] = free @ forces[12]
    assert relaxed.info["fmax"] == pytest.approx(np.linalg.norm(forces, axis=1).max())
    if name != "along a lattice vector":  # ASE projects forces along lattice vectors in another way
        atoms.calc = EMT()
        optimizer = AseLBFGS(atoms, logfile=None)
        optimizer.run(fmax=0.02)
        assert optimizer.nsteps == relaxed.info["n_steps"]
        np.testing.assert_allclose(relaxed.positions, atoms.positions, rtol=0, atol=1e-9)


def test_all_that_is_free_may_be_one_coordinate():
    atoms = rattled_slab(0)
    atoms.set_constraint([FixAtoms(range(12)), FixCartesian([12], mask=(True, True, False))])
    (relaxed,) = relax([atoms], CalculatorForces(EMT), progress=False).structures
    assert np.array_equal((relaxed.positions != atoms.positions).nonzero(), [[12], [2]])


def test_the_output_says_what_was_held(tmp_path):
    atoms = rattled_slab(0)
    atoms.set_constraint([*atoms.constraints, FixCartesian([12], mask=(True, True, False))])
    out = tmp_path / "out.extxyz"
    relax([atoms], CalculatorForces(EMT), RelaxConfig(max_steps=1), out=out, progress=False)
    (back,) = read(out)
    assert np.array_equal(back.free_directions, Structure.from_ase(atoms).free_directions)
    assert np.array_equal(back.fixed, Structure.from_ase(atoms).fixed)


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_come_back_from_a_structure(name):
    atoms = rattled_slab(0)
    atoms.set_constraint([*atoms.constraints, CONSTRAINTS[name][0]()])
    structure = Structure.from_ase(atoms)
    back = Structure.from_ase(structure.to_ase())
    assert np.array_equal(back.fixed, structure.fixed)
    np.testing.assert_allclose(back.free_directions, structure.free_directions, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("constraint", "name"), [(FixBondLength(0, 12), "FixBondLengths"), (Hookean(0, 12, 2.0, 5.0), "Hookean")]
)
def test_constraints_that_are_not_followed_are_refused_by_name(tmp_path, constraint, name):
    atoms = rattled_slab(0)
    atoms.set_constraint([*atoms.constraints, constraint])
    with pytest.raises(InputError, match=f"structure 0: cannot relax under {name}; "):
        relax([atoms], CalculatorForces(EMT), progress=False)
    atoms.write(tmp_path / "in.traj")
    with pytest.raises(InputError, match=r"in.traj, frame 0: cannot relax under"):
        relax(tmp_path / "in.traj", CalculatorForces(EMT), progress=False)
    # Everything else that reads structures goes on as before.
    assert write(tmp_path / "copy.extxyz", read(tmp_path / "in.traj")) == 1
