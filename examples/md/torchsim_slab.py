"""Slabs with an adsorbate at constant temperature with TorchSim (Langevin), their lowest layers fixed.

python examples/md/torchsim_slab.py RUN [--steps 1000]
"""

import argparse

import numpy as np
import torch_sim as ts
from ase.build import add_adsorbate, fcc111
from ase.constraints import FixAtoms

import equicat

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", help="run directory of a model that knows Cu and O")
parser.add_argument("--steps", type=int, default=1000)
given = parser.parse_args()

systems = []
for site in ("fcc", "hcp", "ontop"):
    atoms = fcc111("Cu", (3, 3, 4), vacuum=8.0)
    add_adsorbate(atoms, "O", 1.3 if site != "ontop" else 1.8, site)
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 4))
    systems.append(atoms)

model = equicat.TorchSimModel(given.run)
state = equicat.torch_sim_state(systems, model)  # TorchSim's own conversion would drop the fixed atoms
start = state.positions.clone()
final = ts.integrate(
    system=state,
    model=model,
    integrator=ts.Integrator.nvt_langevin,
    n_steps=given.steps,
    temperature=400.0,
    timestep=0.001,
)
moved = (final.positions - start).norm(dim=1).cpu().numpy()
fixed = np.concatenate([atoms.get_tags() == 4 for atoms in systems])
print(f"{len(systems)} slabs: fixed atoms moved {moved[fixed].max():g} Å, others {moved[~fixed].mean():.2f} Å")
