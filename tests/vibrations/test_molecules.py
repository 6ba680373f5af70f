"""Molecules of a gas: found, put together, and their shape, symmetry number and spin."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111, graphene, molecule
from ase.constraints import FixAtoms

from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.vibrations.molecules import (
    as_molecule,
    external_motions,
    geometry_of,
    n_rotations,
    spin_of,
    symmetry_number,
    why_no_gas,
)


def structure(atoms: Atoms) -> Structure:
    return Structure.from_ase(atoms, source="a.traj, frame 0")


def in_a_box(name: str, at: float = 0.0) -> Atoms:
    """The molecule in a periodic cube of 10 Å, its centre at a corner of it by default, so that it is cut."""
    atoms = molecule(name)
    atoms.cell, atoms.pbc = np.eye(3) * 10, True
    atoms.positions += at - atoms.positions.mean(0)
    atoms.wrap()
    return atoms


@pytest.mark.parametrize("name", ["CO", "H2O", "C2H6", "CH3CH2OH"])
def test_a_molecule_cut_by_its_cell_is_put_together(name):
    free = molecule(name)
    whole = as_molecule(structure(in_a_box(name)))
    assert not whole.pbc.any()
    distances = Atoms(whole.numbers, whole.positions).get_all_distances()
    np.testing.assert_allclose(distances, free.get_all_distances(), atol=1e-9)


def slab() -> Atoms:
    return fcc111("Cu", (2, 2, 2), vacuum=6.0)


def tagged() -> Atoms:
    atoms = in_a_box("CO", 5.0)
    atoms.set_tags([0, 2])
    return atoms


def held() -> Atoms:
    atoms = in_a_box("CO", 5.0)
    atoms.set_constraint(FixAtoms([0]))
    return atoms


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: in_a_box("CO", 5.0), ""),
        (slab, "it has metal atoms"),
        (tagged, "its tags differ"),
        (held, "some atoms are held"),
        (lambda: graphene("C2", vacuum=6.0), "it is bonded to its own periodic image"),
        (lambda: Atoms("CO", [[0, 0, 0], [0, 0, 3.0]]), "its atoms are 2 molecules or pieces"),
    ],
)
def test_what_is_taken_for_a_gas_molecule(make, reason):
    assert why_no_gas(structure(make())) == reason


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (slab, "frame 0: cannot be a gas molecule: it is bonded to its own periodic image"),
        (held, "some of its atoms are held; take the constraints away"),
        (lambda: Atoms("CO", [[0, 0, 0], [0, 0, 3.0]]), "its atoms are 2 molecules or pieces"),
    ],
)
def test_what_cannot_be_a_gas_molecule_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        as_molecule(structure(make()))


@pytest.mark.parametrize(
    ("name", "geometry", "number", "spin"),
    [
        ("H", "monatomic", 1, 0.5),
        ("H2", "linear", 2, 0),
        ("CO", "linear", 1, 0),
        ("CO2", "linear", 2, 0),
        ("N2O", "linear", 1, 0),
        ("C2H2", "linear", 2, 0),
        ("O2", "linear", 2, 1),
        ("NO", "linear", 1, 0.5),
        ("H2O", "nonlinear", 2, 0),
        ("H2CO", "nonlinear", 2, 0),
        ("NH3", "nonlinear", 3, 0),
        ("CH4", "nonlinear", 12, 0),
        ("CH3", "nonlinear", 6, 0.5),
        ("CH3OH", "nonlinear", 1, 0),
        ("HCOOH", "nonlinear", 1, 0),
        ("C2H4", "nonlinear", 4, 0),
        ("C2H6", "nonlinear", 6, 0),
        ("CH3CH2OH", "nonlinear", 1, 0),
        ("C6H6", "nonlinear", 12, 0),
        ("CH3Cl", "nonlinear", 3, 0),
        ("SO2", "nonlinear", 2, 0),
        ("cyclobutane", "nonlinear", 4, 0),
    ],
)
def test_shape_symmetry_number_and_spin(name, geometry, number, spin):
    """Symmetry numbers are those of the point groups (Atkins; Cramer, Essentials, appendix B)."""
    atoms = molecule(name)
    atoms.rotate(37, (1, 2, 3))
    atoms.rattle(0.005, seed=1)  # as near as a relaxation brings it
    one = structure(atoms)
    assert geometry_of(one) == geometry
    assert symmetry_number(one, geometry) == number
    assert spin_of(one) == spin


def test_a_molecule_with_24_rotations():
    ends = np.concatenate([np.eye(3), -np.eye(3)]) * 1.56
    sf6 = structure(Atoms("SF6", [[0, 0, 0], *ends]))
    assert n_rotations(sf6.numbers, sf6.positions, "nonlinear", 0.05) == 24


def test_what_is_not_clear_is_refused():
    bent = molecule("CO2")
    bent.positions[0] += [0.12, 0, 0]
    with pytest.raises(InputError, match=r"cannot tell whether CO2 is linear, an atom is 0.08 Å off its axis"):
        geometry_of(structure(bent))
    assert geometry_of(structure(bent), "linear") == "linear"
    skewed = molecule("CH4")
    skewed.positions[1] *= 1.15
    with pytest.raises(InputError, match=r"symmetry number of CH4 is not clear, 3 rotations .* and 12 within"):
        symmetry_number(structure(skewed), "nonlinear")
    with pytest.raises(InputError, match=r"the spin of Cu2 is not known; say --spins '\{Cu2: 0\}'"):
        spin_of(structure(Atoms("Cu2", [[0, 0, 0], [0, 0, 2.2]])))


@pytest.mark.parametrize(("name", "n"), [("H", 3), ("CO2", 5), ("H2O", 6)])
def test_external_motions_are_orthonormal(name, n):
    one = structure(molecule(name))
    motions = external_motions(molecule(name).get_masses(), one.positions, geometry_of(one))
    np.testing.assert_allclose(motions @ motions.T, np.eye(n), atol=1e-9)
