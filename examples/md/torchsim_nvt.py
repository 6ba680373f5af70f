"""NVT of several crystals at once with TorchSim (velocity rescaling), one temperature each.

python examples/md/torchsim_nvt.py RUN [--steps 1000]
"""

import argparse

import torch_sim as ts
from ase.build import bulk

import equicat

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", help="run directory of a model that knows Cu")
parser.add_argument("--steps", type=int, default=1000)
given = parser.parse_args()

model = equicat.TorchSimModel(given.run)
temperatures = [300.0, 500.0, 700.0]
state = equicat.torch_sim_state([bulk("Cu", cubic=True) * (2, 2, 2) for _ in temperatures], model)
final = ts.integrate(
    system=state,
    model=model,
    integrator=ts.Integrator.nvt_vrescale,
    n_steps=given.steps,
    temperature=temperatures,
    timestep=0.002,
)
found = ts.calc_temperature(masses=final.masses, momenta=final.momenta, system_idx=final.system_idx)
for wanted, temperature, energy in zip(temperatures, found.tolist(), final.energy.tolist(), strict=True):
    print(f"{wanted:g} K: {temperature:.0f} K at the end, {energy:.3f} eV")
