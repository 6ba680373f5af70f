"""Neighbour lists that are kept between calls change no number; stress is where it is defined; many systems at once."""

import dataclasses
import re
import warnings

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.calculator import PropertyNotImplementedError
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from conftest import SMALL, SMALL_NEQUIP, labelled

import equicat
from equicat.data.batch import Batch
from equicat.data.fitted import Statistics
from equicat.errors import InputError, OutsideTraining
from equicat.interfaces import evaluator
from equicat.kernels.cpu import call
from equicat.models import saved, uncertainty
from equicat.models.model import ModelInfo


@pytest.fixture(scope="module", params=[SMALL, SMALL_NEQUIP], ids=lambda config: config.name)
def run64(request, tmp_path_factory):
    """A run in float64 with random weights, for O and Cu."""
    torch.manual_seed(0)
    statistics = Statistics((8, 29), 0.0, (-1.0, -2.0), 1.0, 10.0)
    info = ModelInfo("s2ef", request.param, (8,), "float64", "total", statistics)
    folder = tmp_path_factory.mktemp("run64")
    saved.save(folder, saved.build(info, references=(-1.0, -2.0)))
    return folder


def slab(size: tuple[int, int, int] = (2, 2, 2)) -> Atoms:
    atoms = fcc111("Cu", size, vacuum=6.0)
    atoms.symbols[-1] = "O"
    atoms.rattle(0.05, seed=3)
    return atoms


def solid() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.symbols[0] = "O"
    atoms.rattle(0.05, seed=3)
    return atoms


def fresh(run, atoms: Atoms, virial: bool = True):
    """A prediction with lists made for these positions."""
    model = equicat.load(run)
    return model(batch_of(model, atoms), virial=virial)


def batch_of(model, atoms: Atoms) -> Batch:
    return Batch.from_structures([equicat.Structure.from_ase(atoms)], model.cutoff, dtype=model.dtype)


def count_lists(monkeypatch) -> list:
    made = []
    make = evaluator.verlet_lists
    monkeypatch.setattr(evaluator, "verlet_lists", lambda *given: made.append(given) or make(*given))
    return made


@pytest.mark.parametrize("system", [slab, solid])
def test_kept_lists_give_the_numbers_of_new_ones(run64, system, monkeypatch):
    made, atoms, random = count_lists(monkeypatch), system(), np.random.default_rng(0)
    atoms.calc = equicat.Calculator(run64)
    for _ in range(12):
        atoms.positions += random.normal(0, 0.09, atoms.positions.shape)
        expected = fresh(run64, atoms)
        assert atoms.get_potential_energy() == pytest.approx(float(expected.energy), abs=1e-10)
        np.testing.assert_allclose(atoms.get_forces(), expected.forces.numpy(), rtol=0, atol=1e-10)
    assert 1 < len(made) < 12, "some lists were made anew, some kept"


def test_a_cell_that_deforms_keeps_its_list_while_it_holds(run64, monkeypatch):
    made, atoms = count_lists(monkeypatch), solid()
    atoms.calc = equicat.Calculator(run64)
    strain = np.array([[0.004, 0.003, 0.0], [0.0, -0.008, 0.002], [0.0, 0.0, 0.004]])
    for _ in range(40):
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        expected = fresh(run64, atoms)
        assert atoms.get_potential_energy() == pytest.approx(float(expected.energy), abs=1e-10)
        stress = expected.virial[0].numpy() / atoms.get_volume()
        np.testing.assert_allclose(atoms.get_stress(voigt=False), 0.5 * (stress + stress.T), atol=1e-11)
    assert 1 < len(made) < 12


def test_another_system_is_another_list(run64):
    calculator = equicat.Calculator(run64)
    for atoms in (slab(), solid(), slab((3, 2, 2)), Atoms("O2", [[0, 0, 0], [0, 0, 1.2]]), slab()):
        expected = fresh(run64, atoms, virial=False)
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(float(expected.energy), abs=1e-10)


def test_periodic_directions_that_change_in_place_are_seen(run64):
    atoms, calculator = slab(), equicat.BatchCalculator(run64)
    atoms.cell[2, 2] = 6.0
    calculator([atoms])
    atoms.pbc[2] = True
    assert calculator([atoms]).energies[0] == pytest.approx(float(fresh(run64, atoms).energy), abs=1e-10)


def test_atoms_that_meet_between_two_lists_are_named(run64):
    atoms = Atoms("O2", [[0, 0, 0], [0, 0, 0.3]])
    atoms.calc = equicat.Calculator(run64)
    atoms.get_potential_energy()
    atoms.positions[1, 2] = 0.001
    with pytest.raises(InputError, match=r"atoms: atoms 0 and 1 are 0\.0010 Å apart"):
        atoms.get_potential_energy()


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (True, False, False)])
def test_stress_is_the_derivative_along_periodic_directions(run64, pbc):
    atoms = slab()
    atoms.pbc = pbc
    atoms.calc = equicat.Calculator(run64)
    stress = atoms.get_stress(voigt=False)
    h, found = 1e-5, np.zeros((3, 3))
    lattice = atoms.cell.array[list(pbc)]
    projector = np.linalg.pinv(lattice) @ lattice
    for a, b in np.ndindex(3, 3):
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] = sign * h
            other = atoms.copy()
            other.set_cell(atoms.cell.array @ (np.eye(3) + projector @ strain @ projector), scale_atoms=False)
            other.positions = atoms.positions @ (np.eye(3) + projector @ strain @ projector)
            other.calc = equicat.Calculator(run64)
            energies.append(other.get_potential_energy())
        found[a, b] = (energies[0] - energies[1]) / (2 * h * atoms.get_volume())
    np.testing.assert_allclose(stress, 0.5 * (found + found.T), atol=1e-8)


@pytest.mark.parametrize(
    ("pbc", "height", "message"),
    [((False, False, False), 20.0, "no direction is periodic"), ((True, True, False), 0.0, "the cell has no volume")],
)
def test_no_stress_where_there_is_none(run64, pbc, height, message):
    atoms = slab()
    atoms.cell[2, 2] = height
    atoms.pbc = pbc
    atoms.calc = equicat.Calculator(run64)
    with pytest.raises(PropertyNotImplementedError, match=message):
        atoms.get_stress()
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(InputError, match=f"system 0: no stress: {message}"):
        equicat.BatchCalculator(run64)([atoms], stress=True)


def test_stress_is_computed_only_once_somebody_asks(run64, monkeypatch):
    asked, atoms = [], solid()
    atoms.calc = equicat.Calculator(run64)
    potential = atoms.calc.potential
    forward = type(potential).forward
    monkeypatch.setattr(
        type(potential),
        "forward",
        lambda self, batch, **more: asked.append(more["virial"]) or forward(self, batch, **more),
    )
    atoms.get_forces()
    atoms.get_stress()
    atoms.rattle(0.01)
    atoms.get_forces()
    atoms.get_stress()
    assert asked == [False, True, True], "the last evaluation gave both"


def test_ase_relaxes_the_cell_of_a_slab_in_its_plane(run64):
    atoms = slab()
    height = atoms.cell.array[2].copy()
    atoms.calc = equicat.Calculator(run64)
    BFGS(FrechetCellFilter(atoms, mask=[1, 1, 0, 0, 0, 1]), logfile=None).run(fmax=0.01, steps=3)
    np.testing.assert_allclose(atoms.cell.array[2], height, atol=1e-12)


def test_charges_and_moments_do_not_make_it_compute_again(run64, monkeypatch):
    atoms = slab()
    atoms.calc = equicat.Calculator(run64)
    atoms.get_forces()
    monkeypatch.setattr(atoms.calc, "evaluator", None)
    atoms.set_initial_charges(np.ones(len(atoms)))
    assert np.isfinite(atoms.get_forces()).all()
    assert atoms.calc.calculation_required(atoms, ["stress"])


@pytest.mark.parametrize("edges", [None, 300])
def test_many_systems_give_what_each_gives_alone(run64, edges):
    calculator, random = equicat.BatchCalculator(run64), np.random.default_rng(1)
    calculator.evaluator.edges = edges or calculator.evaluator.edges
    systems = [slab(), solid(), slab((3, 2, 2)), solid()]
    for step in range(4):
        found = calculator(systems[: 3 + step % 2], stress=True)
        assert len(calculator.evaluator.groups) > 1 or edges is None
        for k, (atoms, energy, forces) in enumerate(zip(systems, found.energies, found.forces, strict=False)):
            alone = atoms.copy()
            alone.calc = equicat.Calculator(run64)
            assert energy == pytest.approx(alone.get_potential_energy(), abs=1e-10)
            np.testing.assert_allclose(forces, alone.get_forces(), rtol=0, atol=1e-10)
            np.testing.assert_allclose(found.stresses[k], alone.get_stress(voigt=False), rtol=0, atol=1e-12)
        for atoms in systems:
            atoms.positions += random.normal(0, 0.1, atoms.positions.shape)
    assert calculator(systems).stresses is None


def test_systems_that_cannot_be_computed_are_named_by_number(run64):
    calculator, wrong = equicat.BatchCalculator(run64), slab()
    with pytest.raises(InputError, match="no systems"):
        calculator([])
    wrong.symbols[0] = "Fe"
    with pytest.raises(InputError, match="system 1: element Fe was not in the training data"):
        calculator([slab(), wrong])
    assert len(calculator([slab(), slab()]).forces) == 2, "the next call is fine"
    with pytest.raises(InputError, match=r"skin is -1\.0; it is a distance in Å"):
        equicat.BatchCalculator(run64, skin=-1.0)


# ---- outside of the training data ----------------------------------------------------------------------------------


def test_what_comes_near_later_is_warned_of_once(run):
    atoms = labelled(30).to_ase()
    atoms.set_constraint()
    atoms.calc = equicat.Calculator(run)
    with warnings.catch_warnings():
        warnings.simplefilter("error", OutsideTraining)
        atoms.get_potential_energy()
    domain = atoms.calc.potential.info.domain
    copper = np.flatnonzero(atoms.numbers == 29)
    distances = atoms.get_all_distances(mic=True)[np.ix_(copper, copper)] + 99 * np.eye(len(copper))
    i, j = (copper[k] for k in np.unravel_index(distances.argmin(), distances.shape))
    atoms.set_distance(i, j, 0.85 * domain.shortest["Cu-Cu"], fix=0, mic=True)
    with pytest.warns(OutsideTraining, match=r"Cu–Cu at .* Å, shortest in training"):
        atoms.get_potential_energy()
    with warnings.catch_warnings():
        warnings.simplefilter("error", OutsideTraining)
        atoms.rattle(1e-3)
        atoms.get_potential_energy()


# ---- weights prepared once -----------------------------------------------------------------------------------------


def test_weights_are_prepared_once_and_again_when_they_change(run64, monkeypatch):
    model, atoms = equicat.load(run64), slab()
    batch = batch_of(model, atoms)
    prepared = []
    listed = call.Weights.listed
    monkeypatch.setattr(call.Weights, "listed", lambda *given: prepared.append(given) or listed(*given))
    first = model(batch).energy
    assert torch.equal(model(batch).energy, first)
    assert len(prepared) == 1
    with torch.no_grad():
        next(iter(model.head.parameters())).mul_(1.5)
    changed = model(batch).energy
    assert len(prepared) == 2
    assert not torch.equal(changed, first)
    model.load_state_dict(equicat.load(run64).state_dict())
    assert torch.equal(model(batch).energy, first)
    single = dataclasses.replace(batch, dtype=torch.float32)
    assert float(model.float()(single).energy) == pytest.approx(float(first), abs=1e-4)
    model.requires_grad_(True)
    model(single)
    model(single)
    assert len(prepared) == 6, "weights that are trained are never kept"


# ---- grades ----------------------------------------------------------------------------------------------------------


def count_grades(monkeypatch) -> list:
    made, compute = [], uncertainty.atom_features
    monkeypatch.setattr(uncertainty, "atom_features", lambda *given: made.append(given) or compute(*given))
    return made


def test_the_calculator_grades_atoms_when_asked_and_no_more(run, monkeypatch):
    graded, atoms = count_grades(monkeypatch), labelled(3).to_ase()
    atoms.calc = equicat.Calculator(run)
    atoms.get_forces()
    assert "grades" not in atoms.calc.results
    assert graded == []
    found = atoms.calc.get_property("grades", atoms)
    potential = equicat.load(run)
    (expected,) = uncertainty.graded(potential, [labelled(3)])
    np.testing.assert_allclose(found, expected.grades, rtol=1e-4)
    assert set(atoms.calc.results) == {"energy", "free_energy", "energies", "forces", "grades"}
    atoms.calc.get_property("grades", atoms)
    assert len(graded) == 2, "one by the calculator, one by this test"
    atoms.positions[-1, 2] += 0.1
    atoms.get_potential_energy()
    assert "grades" not in atoms.calc.results, "those of other positions"
    assert len(graded) == 2


def test_grades_alone_compute_no_forces(run, monkeypatch):
    atoms = labelled(3).to_ase()
    atoms.calc = equicat.Calculator(run)
    monkeypatch.setattr(type(atoms.calc.potential), "forward", None)
    assert (atoms.calc.get_property("grades", atoms) > 0).all()
    assert set(atoms.calc.results) == {"grades"}


def test_structures_with_grades_can_be_written(run, tmp_path):
    atoms = labelled(3).to_ase()
    atoms.calc = equicat.Calculator(run)
    energy = atoms.get_potential_energy()
    atoms.calc.get_property("grades", atoms)
    for name in ("a.traj", "a.extxyz"):
        atoms.write(tmp_path / name)
        assert ase.io.read(tmp_path / name).get_potential_energy() == pytest.approx(energy)


def test_a_grade_above_the_limit_is_said_once(run, recwarn):
    warnings.simplefilter("always")
    atoms = labelled(3).to_ase()
    atoms.calc = equicat.Calculator(run, max_grade=0.05)
    for _ in range(3):
        atoms.positions[-1] += 0.01
        atoms.get_forces()
        assert "grades" in atoms.calc.results
    (said,) = [str(w.message) for w in recwarn if issubclass(w.category, OutsideTraining)]
    assert re.fullmatch(r"outside of the training data: atom \d+ \((Cu|O)\) has the grade \d.\d\d, above 0.05", said)


def test_a_grade_above_the_limit_can_be_an_error(run):
    calculator = equicat.BatchCalculator(run, max_grade=0.05, outside_training="error")
    with pytest.raises(InputError, match=r"structure 0: outside of the training data: atom \d+ \(\w+\) has the grade"):
        calculator([labelled(3).to_ase(), labelled(4).to_ase()])


def test_many_systems_have_the_grades_of_each(run):
    systems = [labelled(3).to_ase(), labelled(4).to_ase()[:-1]]
    calculator = equicat.BatchCalculator(run)
    assert calculator(systems).grades is None
    found = calculator(systems, grades=True).grades
    for atoms, own in zip(systems, found, strict=True):
        np.testing.assert_allclose(own, equicat.Calculator(run).get_property("grades", atoms), rtol=1e-3)


def test_a_run_without_grades_says_so(run64):
    with pytest.raises(PropertyNotImplementedError, match=r"no grades: the run has no grade.safetensors"):
        equicat.Calculator(run64).get_property("grades", slab())
    with pytest.raises(InputError, match="no grades: the run has no"):
        equicat.BatchCalculator(run64)([slab()], grades=True)
    with pytest.raises(InputError, match="no grades: the run has no"):
        equicat.Calculator(run64, max_grade=2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_grade": 0.0}, "max_grade is 0.0; it must be above 0"),
        ({"max_grade": 2.0, "outside_training": "ignore"}, "max_grade is 2, but what is outside .* is ignored"),
    ],
)
def test_a_limit_that_nothing_would_look_at_is_refused(run, options, message):
    with pytest.raises(InputError, match=message):
        equicat.Calculator(run, **options)
