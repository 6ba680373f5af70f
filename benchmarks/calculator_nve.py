"""Drift of the total energy of a slab in ASE's velocity Verlet with the calculator, in float32 and float64.

``python benchmarks/calculator_nve.py RUN --picoseconds 20 --json FILE``. RUN is a model that knows Cu and O.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import units
from ase.build import add_adsorbate, fcc111
from ase.constraints import FixAtoms
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from envelope import markdown, table, write

import equicat


def drift(run: Path, dtype: str, picoseconds: int) -> list[Any]:
    """Row of the table: slope of a line through the total energy, its spread, and the time of a step of 1 fs."""
    atoms = fcc111("Cu", (3, 3, 4), vacuum=8.0)
    add_adsorbate(atoms, "O", 1.3, "fcc")
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 4))
    atoms.calc = equicat.Calculator(run, device="cpu", outside_training="ignore", dtype=dtype)
    MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
    total, temperatures = [], []

    def record() -> None:
        total.append(atoms.get_total_energy() / len(atoms))
        temperatures.append(atoms.get_temperature())

    dynamics.attach(record, interval=20)
    start = time.perf_counter()
    dynamics.run(1000 * picoseconds)
    ms = (time.perf_counter() - start) / picoseconds
    slope = np.polyfit(0.02 * np.arange(len(total)), total, 1)[0]
    mean = np.mean(temperatures[len(total) // 2 :])
    return [dtype, len(atoms), picoseconds, f"{mean:.0f}", f"{slope:.1e}", f"{np.ptp(total):.1e}", f"{ms:.2f}"]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--picoseconds", type=int, default=20)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    parser.add_argument("--json", type=Path, help="file to write, for tables.py")
    given = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("dtype", "atoms", "ps", "K", "drift [eV/atom/ps]", "spread of the total energy [eV/atom]", "ms a step")
    found = {"": table(columns, [drift(given.run, dtype, given.picoseconds) for dtype in given.dtypes])}
    print(markdown(found[""]))
    if given.json:
        write(given.json, "NVE of a slab with the calculator", found, notes=["The machine was busy with other work."])


if __name__ == "__main__":
    main()
