"""Models as compiled libraries: the numbers of the model in Python and in C, pairs of any cell, errors in words."""

import ctypes
import dataclasses
import re
import shutil
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111
from conftest import SMALL, SMALL_NEQUIP
from places import ROOT

from equicat.cli.main import main
from equicat.data.batch import Batch
from equicat.data.fitted import Statistics
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.interfaces.library import export as exporting
from equicat.interfaces.library.equicat_model import Failed, Model
from equicat.kernels.cpu import build
from equicat.models import saved
from equicat.models.gradient import ComputeOptions
from equicat.models.model import ModelInfo
from equicat.models.repulsion import EnergyTerms, Repulsion
from equicat.testing.structures import example_structures

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")
ELEMENTS = (8, 29)
TERMS = EnergyTerms(factors=(0.7, 1.4), repulsion=Repulsion(cutoffs=(4.0, 3.0, 3.0, 4.0)))


def model_of(config, dtype: str = "float64", **more):
    """A model with random weights, which computes by PyTorch's operators."""
    torch.manual_seed(0)
    info = ModelInfo("s2ef", config, (7,), dtype, "total", Statistics(ELEMENTS, 0.0, (-1.0, -2.0), 1.3, 10.0), **more)
    model = saved.build(info, scale=1.3, references=(-1.0, -2.0), compute=ComputeOptions(kernels=False))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def original():
    """One layer, whose kernel is soon compiled; repulsion and a factor for each element."""
    return model_of(dataclasses.replace(SMALL_NEQUIP, n_layers=1, l_max=1), terms=TERMS)


@pytest.fixture(scope="module")
def folder(original, tmp_path_factory):
    """The model as a library with one kernel, compiled in little time to run slowly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "PROCESSORS", {"generic": ()})
        patch.setattr(build, "FLAGS", ("-O0", "-std=c++17", "-fPIC"))
        folder = tmp_path_factory.mktemp("library") / "mine"
        exporting.export(original, folder)
    return folder


def expected(model, structure: Structure):
    return model(Batch.from_structures([structure], model.cutoff, dtype=model.dtype), virial=True)


def slab() -> Atoms:
    atoms = fcc111("Cu", (2, 2, 3), vacuum=6.0)
    atoms.symbols[5] = "O"
    atoms.rattle(0.1, seed=0)
    return atoms


def assert_same(found, model, structure: Structure) -> None:
    theirs = expected(model, structure)
    np.testing.assert_allclose(found.energy, theirs.energy.item(), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.atom_energies.sum(), found.energy, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.forces, theirs.forces, atol=1e-10)
    virial = theirs.virial[0].numpy()
    np.testing.assert_allclose(found.virial, 0.5 * (virial + virial.T), atol=1e-10)


def test_the_numbers_are_those_of_the_model(original, folder):
    model = Model(folder)
    for structure in example_structures(ELEMENTS, 5):
        assert_same(
            model.compute(structure.numbers, structure.positions, structure.cell, structure.pbc), original, structure
        )
    assert model.about["elements"] == ["O", "Cu"]
    assert (model.processor, model.about["cutoff"], model.about["energy_reference"]) == ("generic", 4.0, "total")


@pytest.mark.parametrize("pbc", list(product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("length", [3.0, 9.0, 14.0])
def test_pairs_are_found_in_any_cell(original, folder, pbc, length):
    """Cells thinner than the cutoff and wider than two of it, skewed, with atoms outside; one atom is far away."""
    rng = np.random.default_rng(int(length))
    cell = length * np.array([[1, 0.1, 0], [0.6, 0.9, -0.2], [-0.4, 0.3, 1.1]])
    grid = np.array(list(product(np.arange(3), repeat=3))) / 3
    positions = (grid @ cell if length > 3 else grid[[0, 13]] @ cell) + rng.uniform(-0.2, 0.2, 3)
    positions += rng.integers(-2, 3, (len(positions), 3)) * pbc @ cell
    if not all(pbc):
        positions = np.concatenate([positions, [[0, 0, 1e5]] @ np.linalg.inv(cell) * ~np.array(pbc) @ cell + 1.0])
    structure = Structure(rng.choice(ELEMENTS, len(positions)), positions, cell=cell, pbc=np.array(pbc))
    found = Model(folder).compute(structure.numbers, positions, cell, pbc)
    assert_same(found, original, structure)


def test_threads_change_no_more_than_rounding(folder):
    atoms = slab() * (3, 3, 1)
    one, two = (
        Model(folder, n_threads=n).compute(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc) for n in (1, 2)
    )
    assert one.energy == pytest.approx(two.energy, rel=1e-13)
    np.testing.assert_allclose(one.forces, two.forces, atol=1e-12)


class Pairs(ctypes.Structure):
    """``equicat_pairs`` of the header."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("n_atoms", "n_centers")),
        *((name, ctypes.c_void_p) for name in ("numbers", "first_pair", "neighbor", "vectors")),
    ]


class Results(ctypes.Structure):
    """``equicat_results`` of the header."""

    _fields_ = [
        ("energy", ctypes.c_double),
        ("virial", ctypes.c_double * 9),
        *((name, ctypes.c_void_p) for name in ("atom_energies", "forces")),
    ]


def domain(model: Model, batch: Batch, centers: np.ndarray):
    """Energy, forces on all atoms and virial of some centres, computed from their pairs; other atoms are ghosts."""
    order = np.concatenate([centers, np.setdiff1d(np.arange(len(batch.numbers)), centers)])
    place = np.argsort(order)
    center, neighbor = batch.edge_index.numpy()
    rows = np.concatenate([(center == c).nonzero()[0] for c in centers])
    first = np.cumsum([0, *((center == c).sum() for c in centers)])
    numbers = batch.numbers.numpy()[order].astype(np.int32)
    neighbors, vectors = place[neighbor[rows]].astype(np.int32), batch.edge_vec().numpy()[rows].astype(np.float64)
    forces, message = np.empty((len(order), 3)), ctypes.create_string_buffer(256)
    given = Pairs(len(order), len(centers), *(x.ctypes.data for x in (numbers, first, neighbors, vectors)))
    out = Results(forces=forces.ctypes.data)
    status = model.library.equicat_compute_pairs(model.handle, 1, ctypes.byref(given), ctypes.byref(out), message)
    assert status == 0, message.value
    return out.energy, forces[place], np.array(out.virial).reshape(3, 3)


def test_domains_of_centres_and_ghosts_add_up(original, folder):
    """Pairs longer than the cutoff, which lists with a skin have, add nothing."""
    model, structure = Model(folder), Structure.from_ase(slab(), source="slab")
    longer = Batch.from_structures([structure], original.cutoff + 1, dtype=torch.float64)
    parts = [domain(model, longer, atoms) for atoms in (np.array([7, 2, 3]), np.setdiff1d(np.arange(12), [7, 2, 3]))]
    energy, forces, virial = (sum(values) for values in zip(*parts, strict=True))
    theirs = expected(original, structure)
    assert energy == pytest.approx(theirs.energy.item(), rel=1e-12)
    np.testing.assert_allclose(forces, theirs.forces, atol=1e-10)
    np.testing.assert_allclose(virial, theirs.virial[0], atol=1e-10)


def test_forces_and_stress_are_the_derivative_of_the_energy(folder):
    """In ASE, by its own finite differences."""
    from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

    atoms = bulk("Cu", cubic=True)
    atoms.symbols[1] = "O"
    atoms.rattle(0.1, seed=2)
    atoms.calc = Model(folder).ase_calculator()
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, 1e-4), atol=1e-6)
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, 1e-5), atol=1e-7)
    assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy())


def test_it_runs_without_this_package_and_without_pytorch(folder, tmp_path):
    code = (
        "import sys; sys.path.append(sys.argv[1]); from equicat_model import Model; "
        "print(Model().compute([29, 8], [[0, 0, 0], [1.9, 0, 0]]).energy); "
        "assert not {'torch', 'equicat'} & set(sys.modules)"
    )
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    done = subprocess.run([sys.executable, "-I", "-c", code, str(moved)], capture_output=True, text=True, check=True)
    structure = Structure(np.array([29, 8]), np.array([[0, 0, 0], [1.9, 0, 0]]))
    assert float(done.stdout) == Model(folder).compute(structure.numbers, structure.positions).energy


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("nm") is None, reason="needs nm of binutils")
def test_kernels_share_no_function(folder):
    """Inline functions that two kernels in one process shared would run with the vectors of one of them."""
    for name, shown in (("libequicat_model.so", r"equicat_\w+"), ("kernel-generic.so", "energies_and_gradient")):
        command = ["nm", "-D", "--defined-only", str(folder / name)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        assert lines
        assert all(re.fullmatch(shown, line.split()[-1]) for line in lines), lines


def test_the_example_in_c_runs(folder, tmp_path):
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    program = tmp_path / "energy"
    sources = [str(ROOT / "examples" / "library" / "energy.c"), "-I", str(folder), str(folder / "libequicat_model.so")]
    options = ["-std=c99", "-Wall", "-Wextra", "-Werror", f"-Wl,-rpath,{folder}", "-o", str(program)]
    subprocess.run(["cc", *sources, *options], check=True)
    printed = subprocess.run([str(program), str(folder)], capture_output=True, text=True, check=True).stdout
    a, height = 2.55, np.sqrt(0.75) * 2.55
    places = [
        ((i % 2 + 0.5 * (i // 2 % 2) + 0.5 * (i // 4)) * a, (i // 2 % 2 + i // 4 / 3) * height, i // 4 * 2.08)
        for i in range(12)
    ]
    cell = [[2 * a, 0, 0], [a, 2 * height, 0], [0, 0, 20]]
    found = Model(folder).compute([29] * 12, places, cell, [True, True, False])
    assert float(re.search(r"energy (\S+) eV", printed)[1]) == pytest.approx(found.energy, abs=1e-8)
    forces = np.array(re.findall(r"atom +\d+: +(\S+) +(\S+) +(\S+) eV/A", printed), float)
    np.testing.assert_allclose(forces, found.forces, atol=1e-7)
    done = subprocess.run([str(program), str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, "model.bin: cannot be read" in done.stderr) == (1, True)


# ---- what does not work is said -------------------------------------------------------------------------------------

CELL = 3.6 * np.eye(3)


@pytest.mark.parametrize(
    ("numbers", "positions", "cell", "pbc", "message"),
    [
        ([29, 26], [[0, 0, 0], [2, 0, 0]], None, False, "atom 1 has atomic number 26, which the model does not know"),
        ([29, 8], [[0, 0, 0], [3.6, 0, 0]], CELL, True, "atoms 0 and 1 are at the same place"),
        ([29], [[0, 0, 0]], None, True, "the cell has no volume"),
        ([29], [[0, 0, 0]], [[3, 0, 0], [6, 0, 0], [0, 0, 3]], [True, True, False], "zero or parallel"),
        ([29], [[0, 0, 0]], [[3, 0, 0], [0, 3, 0], [3, 3, 0]], True, "the cell has no volume"),
        ([29], [[0, 0, 0]], [[300, 0, 0], [0, 300, 0], [0, 0, 0.01]], True, "thinner than a hundredth of the cutoff"),
        ([29], [[np.nan, 0, 0]], None, False, "a position is not a number"),
        ([29, 29], [[0, 0, 0]], None, False, r"\(2,\), \(1, 3\) and \(3, 3\)"),
    ],
)
def test_systems_that_are_none(folder, numbers, positions, cell, pbc, message):
    with pytest.raises(Failed, match=message):
        Model(folder).compute(numbers, positions, cell, pbc)


def test_no_atoms_have_no_energy(folder):
    found = Model(folder).compute([], np.zeros((0, 3)))
    assert (found.energy, found.forces.shape) == (0, (0, 3))


def test_folders_that_are_not_complete(folder, tmp_path):
    with pytest.raises(Failed, match=r"about\.json"):
        Model(tmp_path)
    for missing, message in (
        ("libequicat_model.so", "libequicat_model.so"),
        ("model.bin", "model.bin: cannot be read; the folder of the model must stay together"),
        ("kernel-generic.so", "it has no kernel for this processor"),
    ):
        copy = shutil.copytree(folder, tmp_path / missing)
        (copy / missing).unlink()
        with pytest.raises(Failed, match=message):
            Model(copy)
    for name, file, data, message in (
        ("short", "model.bin", (folder / "model.bin").read_bytes()[:-1], "is damaged, or of another version"),
        ("other", "model.bin", bytes(1000), "is damaged, or of another version"),
        ("text", "kernel-generic.so", b"text", r"kernel-generic\.so"),
    ):
        copy = shutil.copytree(folder, tmp_path / name)
        (copy / file).write_bytes(data)
        with pytest.raises(Failed, match=message):
            Model(copy)
    for processor in ("x87", "x86-64-v3"):
        with pytest.raises(Failed, match=f"{processor}: there is no kernel of that name"):
            Model(folder, processor)


@pytest.mark.parametrize(
    ("config", "more", "message"),
    [
        (SMALL, {"force_head": "magnitude-direction"}, "allegro with magnitude-direction forces; Allegro models of"),
        (dataclasses.replace(SMALL, l_max=5, n_layers=1), {}, "model.l_max is 5; the kernel goes to 4"),
    ],
)
def test_models_that_cannot_be_a_library(config, more, message, tmp_path):
    with pytest.raises(InputError, match=message):
        exporting.export(model_of(config, **more), tmp_path / "mine")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_without_a_compiler_or_with_other_numbers(original, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "PROCESSORS", {"generic": ("-O0",)})
    for cxx, message in ((None, r"there is no C\+\+ compiler; install one"), ("false", "false could not compile")):
        monkeypatch.setattr(build, "compiler", lambda cxx=cxx: cxx)
        with pytest.raises(InputError, match=message):
            exporting.export(original, tmp_path / "mine")
    assert not list(tmp_path.iterdir())


def test_a_library_that_gives_other_numbers_is_refused(original, folder):
    other = model_of(original.config)
    with pytest.raises(InputError, match="the exported model gives other numbers"):
        exporting.check(other, folder, ["generic"])
    with pytest.raises(InputError, match=r"the library does not run: .*there is no kernel of that name"):
        exporting.check(original, folder, ["x86-64-v9"])


# ---- all kernels -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "dtype", "more"),
    [
        (SMALL, "float32", {"terms": TERMS}),
        (dataclasses.replace(SMALL, l_max=3, normalize_basis=True), "float64", {}),
        (dataclasses.replace(SMALL_NEQUIP, n_layers=3, l_max=3), "float32", {"terms": TERMS}),
        (dataclasses.replace(SMALL_NEQUIP, coupling="path", neighbors_of_element=(5.0, 12.0)), "float64", {}),
        (
            dataclasses.replace(SMALL_NEQUIP, radial="spline", spline_span=5, pair_cutoffs=(4.0, 3.5, 3.0, 4.0)),
            "float64",
            {},
        ),
    ],
    ids=["allegro", "allegro l=3", "nequip-allegro l=3", "path", "spline"],
)
def test_every_kernel_gives_the_numbers_of_the_model(config, dtype, more, tmp_path):
    """By the command; it compares each kernel that this processor can run with PyTorch's operators."""
    model = model_of(config, dtype, **more)
    saved.save(tmp_path, model)
    assert main(["export", str(tmp_path), str(tmp_path / "mine"), "--format", "library"]) == 0
    structure = Structure.from_ase(slab(), source="slab")
    theirs = expected(model, structure)
    scale = {"float32": 1e-5, "float64": 1e-11}[dtype] * theirs.forces.abs().max().item()
    n_run = 0
    for processor in exporting.PROCESSORS:
        try:
            library = Model(tmp_path / "mine", processor)
        except Failed:
            continue
        found = library.compute(structure.numbers, structure.positions, structure.cell, structure.pbc)
        np.testing.assert_allclose(found.forces, theirs.forces, atol=scale)
        n_run += 1
    assert n_run > 0


@pytest.mark.slow
def test_a_processor_that_cannot_run_a_kernel_gets_another_or_is_told(original, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-D__builtin_cpu_supports(feature)=0"))
    exporting.export(original, tmp_path / "mine")
    assert Model(tmp_path / "mine").processor == "generic"
    for processor in set(exporting.PROCESSORS) - {"generic"}:
        with pytest.raises(Failed, match=f"{processor}: this processor cannot run that kernel"):
            Model(tmp_path / "mine", processor)
    (tmp_path / "mine" / "kernel-generic.so").unlink()
    with pytest.raises(Failed, match="it has no kernel for this processor"):
        Model(tmp_path / "mine")
