"""NVE of several crystals at once with TorchSim: the drift of each total energy.

python examples/md/torchsim_nve.py RUN [--steps 1000]
"""

import argparse

import numpy as np
import torch_sim as ts
from ase.build import bulk

import equicat

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", help="run directory of a model that knows Cu")
parser.add_argument("--steps", type=int, default=1000)
given = parser.parse_args()

model = equicat.TorchSimModel(given.run)
systems = [bulk("Cu", a=a, cubic=True) * (2, 2, 2) for a in (3.55, 3.6, 3.65)]
state = equicat.torch_sim_state(systems, model)
state = ts.nve_init(state, model, kT=600 * ts.units.BaseConstant.k_B / ts.units.BaseConstant.e)
n_atoms = np.bincount(state.system_idx.cpu())
dt = 0.002 * ts.units.MetalUnits.time

times, energies = [], []
for step in range(given.steps + 1):
    if step % max(1, given.steps // 100) == 0:
        kinetic = ts.calc_kinetic_energy(masses=state.masses, momenta=state.momenta, system_idx=state.system_idx)
        times.append(0.002 * step)
        energies.append((state.energy + kinetic).cpu().numpy() / n_atoms)
    state = ts.nve_step(state, model, dt=dt)
for k, drift in enumerate(np.polyfit(times, np.array(energies), 1)[0]):
    print(f"system {k}: {n_atoms[k]} atoms, {times[-1]:g} ps, drift {drift:.1e} eV/atom/ps")
