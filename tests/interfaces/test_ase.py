"""The calculator: only what the model sees counts, and where the atoms are does not."""

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from conftest import labelled

import equicat
from equicat.errors import InputError


@pytest.fixture
def slab(run):
    atoms = labelled(30).to_ase()
    atoms.set_constraint()
    atoms.calc = equicat.Calculator(run)
    return atoms


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("forces", np.nan),
        ("relaxed_positions", np.nan),
        ("initial_positions", "a"),
        ("tags", 0.5),
        ("anything", "text"),
    ],
)
def test_columns_of_atoms_are_not_looked_at(slab, column, value):
    expected = slab.get_potential_energy()
    for width in (2, 3):
        other = slab.copy()
        other.arrays[column] = np.full((len(slab), width), value)
        other.calc = slab.calc
        assert other.get_potential_energy() == expected


@pytest.mark.parametrize(
    "info", [{"fid": "a1"}, {"energy": "none"}, {"stress": 1.2}, {"sid": [1, 2]}, {"relaxed_energy": True}]
)
def test_entries_and_labels_are_not_looked_at(slab, info):
    expected = slab.get_potential_energy()
    other = slab.copy()
    other.info, other.calc = info, slab.calc
    other.set_constraint(FixAtoms([0]))
    assert other.get_potential_energy() == expected
    other.calc = SinglePointCalculator(other, energy=np.nan)
    other.calc = slab.calc
    assert other.get_potential_energy() == expected


@pytest.mark.parametrize("shift", [100, 5000, 100_000])
def test_numbers_do_not_depend_on_the_distance_from_the_origin(slab, shift):
    energy, forces = slab.get_potential_energy(), slab.get_forces()
    slab.positions += shift
    assert slab.get_potential_energy() == pytest.approx(energy, abs=1e-6)
    np.testing.assert_allclose(slab.get_forces(), forces, rtol=0, atol=1e-5)


def test_numbers_do_not_depend_on_lattice_vectors(slab):
    energy, forces = slab.get_potential_energy(), slab.get_forces()
    images = np.random.default_rng(0).integers(-10_000, 10_000, (len(slab), 2))
    slab.positions += images @ slab.cell[:2]
    assert slab.get_potential_energy() == pytest.approx(energy, abs=1e-6)
    np.testing.assert_allclose(slab.get_forces(), forces, rtol=0, atol=1e-5)


def test_a_far_atom_costs_nothing_and_feels_nothing(slab):
    parts = slab[:-1], slab[-1:]
    together = slab.copy()
    together.positions[-1, 2] += 2e6
    energies = []
    for atoms in (*parts, together):
        atoms.calc = slab.calc
        energies.append(atoms.get_potential_energy())
    assert energies[2] == pytest.approx(energies[0] + energies[1], abs=1e-6)
    np.testing.assert_allclose(together.get_forces()[-1], 0, atol=1e-6)


@pytest.mark.parametrize(("position", "what"), [(np.nan, "not finite"), (1e30, "too far to compute with")])
def test_positions_that_are_none(slab, position, what):
    slab.positions[3, 1] = position
    with pytest.raises(InputError, match=rf"atoms: positions is .*{what}.* at atom 3"):
        slab.get_potential_energy()


def test_an_unknown_element_is_named(slab):
    slab.symbols[2] = "Fe"
    with pytest.raises(InputError, match="atoms: element Fe was not in the training data; this model knows O, Cu"):
        slab.get_potential_energy()
