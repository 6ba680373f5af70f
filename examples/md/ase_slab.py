"""A slab with an adsorbate at constant temperature with ASE (Langevin), its lowest layer fixed; writes a trajectory.

python examples/md/ase_slab.py RUN [--steps 1000] [--out slab.traj]
"""

import argparse

import numpy as np
from ase import units
from ase.build import add_adsorbate, fcc111
from ase.constraints import FixAtoms
from ase.io.trajectory import Trajectory
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

import equicat

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", help="run directory of a model that knows Cu and O")
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--out", default="slab.traj")
given = parser.parse_args()

atoms = fcc111("Cu", (3, 3, 4), vacuum=8.0)
add_adsorbate(atoms, "O", 1.3, "fcc")
atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 4))
atoms.calc = equicat.Calculator(given.run, outside_training="warn")
rng = np.random.default_rng(0)
MaxwellBoltzmannDistribution(atoms, temperature_K=400, rng=rng)
start = atoms.positions.copy()

dynamics = Langevin(atoms, timestep=1 * units.fs, temperature_K=400, friction=0.01 / units.fs, rng=rng)
with Trajectory(given.out, "w", atoms) as trajectory:
    dynamics.attach(trajectory, interval=max(1, given.steps // 100))
    dynamics.run(given.steps)
moved = np.linalg.norm(atoms.positions - start, axis=1)
print(
    f"{len(atoms)} atoms, {atoms.get_temperature():.0f} K; O moved {moved[-1]:.2f} Å, fixed atoms {moved[:9].max():g} Å"
)
