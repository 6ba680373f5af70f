"""NVE of a crystal with ASE: total energy and its drift.

python examples/md/ase_nve.py RUN [--steps 1000]
"""

import argparse

import numpy as np
from ase import units
from ase.build import bulk
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet

import equicat

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", help="run directory of a model that knows Cu")
parser.add_argument("--steps", type=int, default=1000)
given = parser.parse_args()

atoms = bulk("Cu", cubic=True) * (2, 2, 2)
atoms.calc = equicat.Calculator(given.run)
MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=np.random.default_rng(0))
Stationary(atoms)

dynamics = VelocityVerlet(atoms, timestep=2 * units.fs)
times, energies = [], []


def record() -> None:
    times.append(dynamics.get_time() / units.fs / 1000)
    energies.append(atoms.get_total_energy() / len(atoms))


dynamics.attach(record, interval=max(1, given.steps // 100))
dynamics.run(given.steps)
drift = np.polyfit(times, energies, 1)[0]
print(f"{len(atoms)} atoms, {times[-1]:g} ps, {atoms.get_temperature():.0f} K: drift {drift:.1e} eV/atom/ps")
