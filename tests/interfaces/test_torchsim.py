"""TorchSim: its own validation, fixed atoms and periodic directions that arrive, numbers of the calculator."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from ase.constraints import FixAtoms, FixedLine
from conftest import SMALL

import equicat
from equicat.data.fitted import Statistics
from equicat.errors import InputError
from equicat.interfaces.torchsim import structures_of, torch_sim_state
from equicat.models import saved
from equicat.models.model import ModelInfo

INSTALLED = importlib.util.find_spec("torch_sim") is not None
needs_torch_sim = pytest.mark.skipif(not INSTALLED, reason="torch-sim-atomistic is not installed (extra [torchsim])")


@pytest.fixture(scope="module", params=["float32", "float64"])
def wide_run(request, tmp_path_factory):
    """A run with random weights for the elements of TorchSim's validation, and O and Cu."""
    torch.manual_seed(0)
    elements = (1, 6, 8, 12, 14, 26, 29)
    info = ModelInfo("s2ef", SMALL, (8,), request.param, "total", Statistics(elements, 0.0, (0.0,) * 7, 1.0, 10.0))
    folder = tmp_path_factory.mktemp("wide_run")
    saved.save(folder, saved.build(info))
    return folder


def slab(size: tuple[int, int, int] = (2, 2, 3)) -> Atoms:
    atoms = fcc111("Cu", size, vacuum=6.0)
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 3))
    atoms.rattle(0.02, seed=1)
    return atoms


def test_lattice_vectors_are_rows_again_and_periodic_directions_stay():
    systems = [slab(), slab((3, 2, 2))]
    state = SimpleNamespace(
        positions=torch.from_numpy(np.concatenate([a.positions for a in systems])),
        cell=torch.from_numpy(np.stack([a.cell.array.T for a in systems])),
        pbc=torch.tensor([True, True, False]),
        atomic_numbers=torch.from_numpy(np.concatenate([a.numbers for a in systems])),
        system_idx=torch.tensor([0] * 12 + [1] * 12),
    )
    for structure, atoms in zip(structures_of(state), systems, strict=True):
        np.testing.assert_array_equal(structure.positions, atoms.positions)
        np.testing.assert_array_equal(structure.cell, atoms.cell.array)
        np.testing.assert_array_equal(structure.numbers, atoms.numbers)
        assert structure.pbc.tolist() == [True, True, False]


@pytest.mark.skipif(INSTALLED, reason="TorchSim is installed here")
def test_without_torch_sim_the_extra_is_named(wide_run):
    with pytest.raises(InputError, match=r"torch_sim is not installed; run `pip install 'equicat\[torchsim\]'`"):
        equicat.TorchSimModel(wide_run)


@needs_torch_sim
def test_passes_the_validation_of_torch_sim(wide_run):
    from torch_sim.models.interface import ModelInterface, validate_model_outputs

    for dtype in (torch.float64, torch.float32):
        model = equicat.TorchSimModel(wide_run, device="cpu", dtype=dtype)
        assert isinstance(model, ModelInterface)
        validate_model_outputs(model, model.device, dtype)


@needs_torch_sim
def test_gives_the_numbers_of_the_calculator(wide_run):
    model = equicat.TorchSimModel(wide_run, device="cpu", compute_stress=True)
    systems = [slab(), slab((3, 2, 2))]
    found = model(torch_sim_state(systems, model))
    expected = equicat.BatchCalculator(wide_run, device="cpu")(systems, stress=True)
    np.testing.assert_allclose(found["energy"].numpy(), expected.energies, atol=1e-6)
    np.testing.assert_allclose(found["forces"].numpy(), np.concatenate(expected.forces), atol=1e-6)
    np.testing.assert_allclose(found["stress"].numpy(), expected.stresses, atol=1e-8)
    assert found["stress"][:, 2].abs().max() == 0


@needs_torch_sim
def test_grades_are_those_of_the_calculator(run):
    systems = [slab(), slab((3, 2, 2))]
    model = equicat.TorchSimModel(run, device="cpu", compute_grades=True, outside_training="ignore")
    found = model(torch_sim_state(systems, model))["grades"].numpy()
    expected = equicat.BatchCalculator(run, device="cpu", outside_training="ignore")(systems, grades=True).grades
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-6)
    watched = equicat.TorchSimModel(run, device="cpu", max_grade=0.5 * found.max(), outside_training="error")
    with pytest.raises(InputError, match="grade"):
        watched(torch_sim_state(systems, watched))


@needs_torch_sim
def test_grades_of_a_run_without_them_are_refused(wide_run):
    with pytest.raises(InputError, match=r"no grades: .*; leave compute_grades out"):
        equicat.TorchSimModel(wide_run, device="cpu", compute_grades=True)


@needs_torch_sim
def test_fixed_atoms_stay_where_they_are(wide_run):
    import torch_sim as ts

    model, systems = equicat.TorchSimModel(wide_run, device="cpu"), [slab(), slab()]
    state = torch_sim_state(systems, model)
    before = state.positions.clone()
    final = ts.integrate(
        system=state, model=model, integrator=ts.Integrator.nve, n_steps=5, temperature=300, timestep=0.001
    )
    moved = (final.positions - before).norm(dim=1).numpy()
    fixed = np.concatenate([atoms.get_tags() == 3 for atoms in systems])
    assert moved[fixed].max() == 0
    assert moved[~fixed].min() > 0
    assert final.pbc.tolist() == [True, True, False]


@needs_torch_sim
def test_what_torch_sim_would_drop_is_refused(wide_run):
    model = equicat.TorchSimModel(wide_run, device="cpu")
    held, mixed = slab(), bulk("Cu")
    held.set_constraint([FixAtoms([0]), FixedLine([5], [0, 0, 1])])
    with pytest.raises(InputError, match=r"system 1: TorchSim follows FixAtoms, not all of .*FixedLine"):
        torch_sim_state([slab(), held], model)
    with pytest.raises(InputError, match="system 1: periodic along"):
        torch_sim_state([slab(), mixed], model)
