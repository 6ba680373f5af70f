"""NVT of a crystal with ASE (Bussi's thermostat): temperature and stress.

python examples/md/ase_nvt.py RUN [--steps 1000]
"""

import argparse

import numpy as np
from ase import units
from ase.build import bulk
from ase.md.bussi import Bussi
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary

import equicat

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", help="run directory of a model that knows Cu")
parser.add_argument("--steps", type=int, default=1000)
given = parser.parse_args()

atoms = bulk("Cu", cubic=True) * (2, 2, 2)
atoms.calc = equicat.Calculator(given.run)
rng = np.random.default_rng(0)
MaxwellBoltzmannDistribution(atoms, temperature_K=500, rng=rng)
Stationary(atoms)

dynamics = Bussi(atoms, timestep=2 * units.fs, temperature_K=500, taut=50 * units.fs, rng=rng)
temperatures, pressures = [], []


def record() -> None:
    temperatures.append(atoms.get_temperature())
    pressures.append(-np.trace(atoms.get_stress(voigt=False, include_ideal_gas=True)) / 3 / units.GPa)


dynamics.attach(record, interval=max(1, given.steps // 100))
dynamics.run(given.steps)
print(f"{len(atoms)} atoms: {np.mean(temperatures):.0f} K, {np.mean(pressures):.2f} GPa")
