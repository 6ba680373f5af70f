"""Frequencies and modes: against ASE's finite differences, analytic force constants and the physics of molecules."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import add_adsorbate, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLength, FixCartesian, FixedLine
from ase.vibrations import Vibrations as AseVibrations
from emt_minima import gas, on_copper
from places import FIXTURES
from scipy.optimize import root
from springs import Springs

import equicat
from equicat.errors import InputError
from equicat.relaxation.models import CalculatorForces, PotentialForces
from equicat.relaxation.pairs import verlet_lists
from equicat.vibrations import differences
from equicat.vibrations.config import VibrationConfig
from equicat.vibrations.modes import WAVENUMBER
from equicat.vibrations.systems import made_ready

RUN = FIXTURES / "runs_b139b12" / "allegro"
SLABS = list(equicat.read(FIXTURES / "runs_b139b12" / "structures.extxyz"))[:3]
emt = CalculatorForces(EMT)


def frequencies_of_ase(atoms: Atoms, indices: list[int], folder, nfree: int = 2) -> np.ndarray:
    """cm⁻¹, ascending, imaginary ones negative: one displacement after the other."""
    vibrations = AseVibrations(atoms, indices, name=str(folder / "vib"), delta=0.01, nfree=nfree)
    vibrations.run()
    energies = vibrations.get_energies() / units.invcm
    return np.sort(np.where(energies.imag > 0, -energies.imag, energies.real))


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nfree", [2, 4])
@pytest.mark.parametrize("adsorbate", ["CO", "O"])
def test_the_frequencies_of_an_adsorbate_are_those_of_ase(tmp_path, adsorbate, nfree):
    atoms = on_copper(adsorbate)
    (found,) = equicat.vibrations_of([atoms], emt, VibrationConfig(nfree=nfree))
    atoms.calc = EMT()
    expected = frequencies_of_ase(atoms, list(range(12, len(atoms))), tmp_path, nfree)
    assert found.atoms.tolist() == list(range(12, len(atoms)))
    assert not found.is_gas
    np.testing.assert_allclose(found.frequencies, expected, atol=1e-6)  # required: 1 cm⁻¹
    assert found.structure.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)


def test_a_trained_model_gives_what_ase_gives_with_its_calculator(tmp_path):
    (found,) = equicat.vibrations_of([SLABS[0]], RUN, VibrationConfig(atoms="surface"))
    atoms = SLABS[0].to_ase()
    atoms.calc = equicat.Calculator(RUN)
    atoms.calc.potential.double()
    expected = frequencies_of_ase(atoms, found.atoms.tolist(), tmp_path)
    np.testing.assert_allclose(found.frequencies, expected, atol=1e-3)
    assert found.fmax == pytest.approx(np.linalg.norm(atoms.get_forces()[found.atoms], axis=1).max())


@pytest.mark.parametrize("edges", [1, 150, 5000])
def test_batches_change_no_bit(edges):
    config = VibrationConfig(atoms="surface")
    alone = [equicat.vibrations_of([slab], RUN, config)[0] for slab in SLABS]
    together = equicat.vibrations_of(SLABS, RUN, dataclasses.replace(config, edges=edges))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.force_constants, other.force_constants)
        assert one.structure.energy == other.structure.energy


def test_batches_hold_no_more_edges_than_they_should():
    class Counting(PotentialForces):
        def __call__(self, batch):
            sizes.append((batch.edge_index.shape[1], batch.n_systems))
            return super().__call__(batch)

    sizes: list[tuple[int, int]] = []
    model = Counting(equicat.load(RUN))
    equicat.vibrations_of(SLABS, model, VibrationConfig(edges=2000))
    assert sum(n for _, n in sizes) == sum(1 + 6 * int((slab.tags == 2).sum()) for slab in SLABS)
    assert all(n_edges <= 2000 for n_edges, _ in sizes)
    assert sizes[0][1] > 1


def test_centres_that_do_not_feel_a_displacement_are_left_out_without_changing_the_numbers(monkeypatch):
    far = fcc111("Cu", (3, 3, 4), vacuum=8.0)
    add_adsorbate(far, "O", 1.2, "fcc")
    far.set_tags([*[0] * 36, 2])
    config = VibrationConfig()
    (fast,) = equicat.vibrations_of([far], RUN, config)
    (system,) = [made_ready(s, config) for s in [equicat.Structure.from_ase(far)]]
    (pairs,) = verlet_lists([system.structure], [torch.from_numpy(system.structure.positions)], 4.0)
    assert differences._felt(pairs, system).n_edges < 0.6 * pairs.n_edges
    monkeypatch.setattr(differences, "is_strictly_local", lambda model: False)
    (whole,) = equicat.vibrations_of([far], RUN, config)
    np.testing.assert_allclose(fast.force_constants, whole.force_constants, atol=1e-9)


def test_the_spring_of_a_diatomic_gives_its_textbook_frequency():
    for numbers, k, length in (((6, 8), 118.0, 1.1), ((1, 1), 35.0, 0.75)):
        positions = np.outer([0, length], [0.48, 0.6, 0.64])
        (found,) = equicat.vibrations_of([Atoms(numbers, positions)], Springs(k, length))
        mass = 1 / sum(1 / m for m in Atoms(numbers).get_masses())
        expected = np.sqrt(k * units._e / (mass * units._amu)) * 1e10 / (2 * np.pi * units._c * 100)
        assert found.frequencies == pytest.approx([expected], rel=1e-4)


def test_steps_of_fourth_order_are_nearer_to_the_derivative():
    stretched = Atoms("N2", [[0, 0, 0], [0, 0, 1.1]])
    errors = []
    for nfree in (2, 4):
        config = VibrationConfig(delta=0.05, nfree=nfree, gas="no", atoms=(1,))
        constants = equicat.vibrations_of([stretched], emt, config)[0].force_constants
        exact = equicat.vibrations_of([stretched], emt, dataclasses.replace(config, delta=1e-4))[0].force_constants
        errors.append(abs(constants[2, 2] - exact[2, 2]))
    assert errors[1] < 0.1 * errors[0]


# ---- molecules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "geometry", "n_modes"),
    [
        ("O", "monatomic", 0),
        ("N2", "linear", 1),
        ("CO2", "linear", 4),
        ("H2O", "nonlinear", 3),
        ("NH3", "nonlinear", 6),
    ],
)
def test_a_molecule_has_so_many_modes_and_none_of_them_moves_or_turns_it(name, geometry, n_modes):
    (found,) = equicat.vibrations_of([gas(name)], emt)
    assert found.geometry == geometry
    assert found.frequencies.shape == (n_modes,)
    masses, positions = gas(name).get_masses(), found.structure.positions
    momenta = masses[:, None] * found.modes
    np.testing.assert_allclose(momenta.sum(1), 0, atol=1e-9)
    np.testing.assert_allclose(np.cross(positions - masses @ positions / masses.sum(), momenta).sum(1), 0, atol=1e-5)
    np.testing.assert_allclose((masses[:, None] * found.modes**2).sum((1, 2)), 1)


def test_frequencies_of_a_molecule_do_not_depend_on_where_it_is_and_how_it_is_turned():
    (still,) = equicat.vibrations_of([gas("H2O")], emt, VibrationConfig(nfree=4))
    for seed in range(3):
        moved = gas("H2O")
        moved.rotate(50 + 40 * seed, np.random.default_rng(seed).normal(size=3))
        moved.cell, moved.pbc = np.diag([9.0, 10.0, 11.0]), True
        moved.positions += [9.0, 4.0, 0.2]
        moved.wrap()  # cut by faces of the cell
        (found,) = equicat.vibrations_of([moved], emt, VibrationConfig(nfree=4))
        assert found.geometry == "nonlinear"
        np.testing.assert_allclose(found.frequencies, still.frequencies, atol=0.05)
        assert found.structure.energy == pytest.approx(still.structure.energy, abs=1e-6)


# ---- what vibrates ---------------------------------------------------------------------------------------------------


def test_groups_of_atoms():
    atoms = on_copper("O")
    atoms.set_constraint(FixAtoms(range(8)))  # and the first layer, 8 to 11, is free
    for which, expected in {
        "adsorbate": [12],
        "surface": [8, 9, 10, 11, 12],
        "free": [8, 9, 10, 11, 12],
        (3, -1): [12],
        (9, 12): [9, 12],
    }.items():
        (found,) = equicat.vibrations_of([atoms], emt, VibrationConfig(atoms=which))
        assert found.atoms.tolist() == expected
        assert found.frequencies.shape == (3 * len(expected),)
        assert found.modes.shape == (3 * len(expected), 13, 3)
        assert not found.modes[:, [k for k in range(13) if k not in expected]].any()


def test_an_atom_that_is_held_vibrates_along_what_is_free():
    atoms = on_copper("O")
    config = VibrationConfig(nfree=4)
    (free,) = equicat.vibrations_of([atoms], emt, config)
    rows = free.force_constants
    along = np.array([1.0, 1.0, 1.0]) / np.sqrt(3)
    for constraint, basis in (
        (FixCartesian([12], [True, False, False]), np.eye(3)[1:]),
        (FixedLine([12], along), along),
    ):
        atoms.set_constraint([FixAtoms(range(12)), constraint])
        (held,) = equicat.vibrations_of([atoms], emt, config)
        basis = np.atleast_2d(basis)
        expected = np.linalg.eigvalsh(basis @ rows @ basis.T)
        found = (held.frequencies / WAVENUMBER) ** 2 * atoms.get_masses()[12]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert (held.modes[:, 12] @ (np.eye(3) - basis.T @ basis)) == pytest.approx(0, abs=1e-9)


def test_a_saddle_point_has_one_imaginary_mode():
    atoms = on_copper("O")
    top = atoms.positions[8:12]
    atoms.set_constraint(FixAtoms(range(12)))
    atoms.positions[12] = (top[0] + top[1]) / 2 + [0, 0, 1.3]  # a bridge: between an fcc and an hcp site
    atoms.calc = EMT()

    def forces(position):
        atoms.positions[12] = position
        return atoms.get_forces()[12]

    atoms.positions[12] = root(forces, atoms.positions[12], tol=1e-8).x
    (saddle,) = equicat.vibrations_of([atoms], emt)
    (minimum,) = equicat.vibrations_of([on_copper("O")], emt)
    assert saddle.fmax < 1e-5
    assert (saddle.n_imaginary, minimum.n_imaginary) == (1, 0)
    assert abs(saddle.modes[0, 12, 2]) < 0.3 * np.linalg.norm(saddle.modes[0, 12]), "it moves along the surface"


# ---- numbers that are not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("beyond", [-1e9, 0.9255])
def test_nan_forces_of_one_system_leave_the_others_as_they_are(beyond):
    """NaN for the structure itself, or for one of its displaced copies only."""
    molecules = [Atoms("N2", [[0, 0, 0], [0, 0, 1.1]]), molecule("H2O"), Atoms("O2", [[0, 0, 0], [0, 0, 1.1]])]
    molecules[1].positions += [0.92, 0, 0]
    good = equicat.vibrations_of(molecules, Springs())
    found = equicat.vibrations_of(molecules, Springs(broken=3, beyond=beyond))
    assert [v.is_finite for v in found] == [True, False, True]
    assert found[1].frequencies.shape == (0,)
    assert np.isnan(found[1].fmax) == (beyond < 0)
    for k in (0, 2):
        assert np.array_equal(found[k].force_constants, good[k].force_constants)


# ---- input that cannot vibrate ---------------------------------------------------------------------------------------


def changed(**changes) -> Atoms:
    atoms = on_copper("O")
    if "fixed" in changes:
        atoms.set_constraint(FixAtoms(changes["fixed"]))
    if "constraint" in changes:
        atoms.set_constraint(changes["constraint"])
    if "tags" in changes:
        atoms.set_tags(changes["tags"])
    if "number" in changes:
        atoms.numbers[3] = changes["number"]
    if "onto" in changes:
        atoms.positions[12] = atoms.positions[changes["onto"]]
    return atoms


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        ({"fixed": range(13)}, {}, "structure 0: every adsorbate atom is fixed, so there is nothing to displace"),
        ({}, {"atoms": (0, 1)}, "structure 0: every chosen atom is fixed"),
        ({"tags": 0}, {}, "no atom has tag 2, so it is not known which are the adsorbate; .* it has metal atoms"),
        ({"tags": 0}, {"atoms": "surface"}, "no atom has tag 1"),
        ({}, {"atoms": (13,)}, "there is no atom 13 among 13"),
        ({}, {"atoms": ()}, "atoms is an empty list"),
        ({"constraint": FixBondLength(0, 12)}, {}, "cannot vibrate under FixBondLengths"),
        ({"onto": 4}, {}, "are 0.0000 Å apart, at the same place"),
        ({"fixed": []}, {"gas": "yes"}, "cannot be a gas molecule: it is bonded to its own periodic image"),
    ],
)
def test_a_structure_that_cannot_vibrate_is_named(changes, config, message):
    with pytest.raises(InputError, match=message):
        equicat.vibrations_of([changed(**changes)], emt, VibrationConfig(**config))


def test_a_model_that_cannot_do_it(tmp_path):
    with pytest.raises(InputError, match="gives no forces"):
        equicat.vibrations_of(SLABS, FIXTURES / "runs_b139b12" / "is2re_displacements")
    uranium = SLABS[0].to_ase()
    uranium.numbers[0] = 92
    with pytest.raises(InputError, match="structure 0: element U was not in the training data"):
        equicat.vibrations_of([uranium], RUN)


def test_a_loaded_model_stays_as_it_is():
    potential = equicat.load(RUN)
    equicat.vibrations_of(SLABS[:1], potential)
    assert potential.dtype == torch.float32
