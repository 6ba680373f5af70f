"""Batched relaxations against ASE's L-BFGS one system after the other, with the same model on the same cores.

Slabs of 37 to 81 atoms (Cu, Pd, Ag, Au with O, OH or CO, two lower layers fixed, all others displaced) are relaxed
with both, to the same ``fmax`` and with the same settings of L-BFGS; a minute of training makes the model::

    equicat data emt data --n_systems 60 --metals '["Cu","Pd","Ag","Au"]'
    equicat train equicat/studies/demo.yaml --data.train '[data]' --data.val '[data]' --run.out run --run.max_minutes 1.5
    python benchmarks/relaxation_speed.py run --n_systems 32

It prints seconds, steps, the largest difference of relaxed energies, and the share of the batched time that is spent
outside the model. ``--edges`` sets the size of batches (several to compare). ``--emt N`` instead relaxes N slabs with
EMT itself, both ways, and says how far apart the minima are.
"""

import argparse
import time

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc100, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.optimize import LBFGS

import equicat
from equicat.data.structure import Structure
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.driver import Driver, Outcome
from equicat.relaxation.lbfgs import PRESETS
from equicat.relaxation.models import CalculatorForces, ForceModel, force_model

SHAPES = ((3, 3, 4), (4, 3, 4), (4, 4, 3), (4, 4, 4), (5, 4, 4))


def slab(seed: int) -> Atoms:
    """A slab with an adsorbate, drawn from the seed."""
    rng = np.random.default_rng(seed)
    build = (fcc111, fcc100)[rng.integers(2)]
    atoms = build(("Cu", "Pd", "Ag", "Au")[rng.integers(4)], SHAPES[rng.integers(len(SHAPES))], vacuum=8.0)
    layer = atoms.get_tags()
    add_adsorbate(atoms, molecule(("O", "OH", "CO")[rng.integers(3)]), 1.6, "bridge")
    fixed = np.r_[layer > layer.max() - 2, np.zeros(len(atoms) - len(layer), bool)]
    atoms.set_constraint(FixAtoms(mask=fixed))
    atoms.positions[~fixed] += rng.normal(scale=0.1, size=((~fixed).sum(), 3))
    return atoms


class Timed:
    """A model that adds up the time that it takes."""

    def __init__(self, model: ForceModel):
        self.model, self.seconds = model, 0.0
        self.cutoff, self.elements, self.device = model.cutoff, model.elements, model.device
        self.energy_reference = model.energy_reference

    def __call__(self, batch):
        started = time.perf_counter()
        result = self.model(batch)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - started
        return result


def batched(model: ForceModel, slabs: list[Atoms], config: RelaxConfig) -> tuple[list[Outcome], float, float, int]:
    """Outcomes in order, seconds, seconds in the model, and atoms times evaluations."""
    timed = Timed(model)
    driver = Driver(timed, config)
    started = time.perf_counter()
    outcomes = list(driver.run(enumerate(Structure.from_ase(atoms) for atoms in slabs)))
    seconds = time.perf_counter() - started
    return sorted(outcomes, key=lambda o: o.number), seconds, timed.seconds, driver.n_atom_steps


def one_by_one(calculator, slabs: list[Atoms], config: RelaxConfig) -> tuple[list[tuple[float, int]], float]:
    """Energy and steps of each slab, and seconds, with ASE."""
    settings = PRESETS[config.preset]
    started, found = time.perf_counter(), []
    for atoms in slabs:
        atoms = atoms.copy()
        atoms.calc = calculator
        optimizer = LBFGS(atoms, logfile=None, memory=settings.memory, maxstep=settings.max_step)
        optimizer.run(fmax=config.fmax, steps=config.max_steps)
        found.append((atoms.get_potential_energy(), optimizer.nsteps))
    return found, time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="run directory")
    parser.add_argument("--n_systems", type=int, default=32)
    parser.add_argument("--edges", type=int, nargs="+", default=[50_000])
    parser.add_argument("--preset", choices=PRESETS, default="oc20")
    parser.add_argument("--fmax", type=float, default=0.05)
    parser.add_argument("--max_steps", type=int, default=100)
    parser.add_argument("--skin", type=float, default=0.5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--emt", type=int, default=0, metavar="N")
    options = parser.parse_args()
    how = {name: getattr(options, name) for name in ("preset", "fmax", "max_steps", "skin")}
    if options.emt:
        model, calculator, n = CalculatorForces(EMT), EMT(), options.emt
    else:
        model, calculator = force_model(options.run, options.device), equicat.Calculator(options.run, options.device)
        n = options.n_systems
    slabs = [slab(seed) for seed in range(n)]
    sizes = [len(atoms) for atoms in slabs]
    print(f"{n} slabs of {min(sizes)} to {max(sizes)} atoms, {torch.get_num_threads()} threads, {options}")
    found, ase_seconds = one_by_one(calculator, slabs, RelaxConfig(**how))
    steps = np.array([s for _, s in found])
    ase_rate = ((steps + 1) * sizes).sum() / ase_seconds
    print(f"ASE one by one      {ase_seconds:7.1f} s  {steps.mean():5.1f} steps  {ase_rate:9,.0f} atoms x steps / s")
    for edges in options.edges:
        outcomes, seconds, in_model, n_atom_steps = batched(model, slabs, RelaxConfig(edges=edges, **how))
        rate = n_atom_steps / seconds
        both = [k for k, o in enumerate(outcomes) if o.how == "converged" and steps[k] < options.max_steps]
        apart = max(abs(outcomes[k].last.energy - found[k][0]) for k in both)
        print(
            f"batches of {edges:>8,} {seconds:7.1f} s  {np.mean([o.n_steps for o in outcomes]):5.1f} steps  "
            f"{rate:9,.0f} atoms x steps / s  {rate / ase_rate:4.1f} times ASE, {ase_seconds / seconds:4.1f} times as "
            f"fast in all; {1 - in_model / seconds:.0%} outside the model; {len(both)} converged both ways, energies at "
            f"most {1000 * apart:.3f} meV apart"
        )


if __name__ == "__main__":
    main()
