"""Batched relaxations against ASE's L-BFGS one system after the other, with the same model on the same cores.

Slabs of 37 to 81 atoms (Cu, Pd, Ag, Au with O, OH or CO, two lower layers fixed, all others displaced) are relaxed
with both, to the same ``fmax`` and with the same settings of L-BFGS; a minute of training makes the model::

    equicat data emt data --n_systems 60 --metals '["Cu","Pd","Ag","Au"]'
    equicat train small --data data --run.out run \\
        --run.max_minutes 1.5
    python benchmarks/relaxation_speed.py run --n_systems 32

The table has seconds (of the clock, and of the processor: on a busy machine only those can be compared), steps, how far
apart the relaxed energies are, the share of the batched time that is spent outside the model, and what the ratio would
be if nothing was. ``--edges`` sets the size of batches (several to compare). ``--n_layers 6`` makes all slabs so thick,
with only two layers free, as OC20's are. ``--emt N`` instead relaxes N slabs with EMT itself, both ways. ``--json``
writes the table for tables.py.
"""

import argparse
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc100, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.optimize import LBFGS
from envelope import markdown, table, write

import equicat
from equicat.data.structure import Structure
from equicat.errors import OutsideTraining
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.driver import Driver
from equicat.relaxation.lbfgs import PRESETS
from equicat.relaxation.models import CalculatorForces, ForceModel, PotentialForces, force_model

SHAPES = ((3, 3, 4), (4, 3, 4), (4, 4, 3), (4, 4, 4), (5, 4, 4))


def slab(seed: int, n_layers: int | None = None) -> Atoms:
    """A slab with an adsorbate, drawn from the seed: its two lowest layers fixed, or, of ``n_layers``, all but two."""
    rng = np.random.default_rng(seed)
    build = (fcc111, fcc100)[rng.integers(2)]
    metal, shape = ("Cu", "Pd", "Ag", "Au")[rng.integers(4)], SHAPES[rng.integers(len(SHAPES))]
    atoms = build(metal, shape if n_layers is None else (*shape[:2], n_layers), vacuum=8.0)
    layer = atoms.get_tags()
    add_adsorbate(atoms, molecule(("O", "OH", "CO")[rng.integers(3)]), 1.6, "bridge")
    free_layers = layer.max() - 2 if n_layers is None else 2
    fixed = np.r_[layer > free_layers, np.zeros(len(atoms) - len(layer), bool)]
    atoms.set_constraint(FixAtoms(mask=fixed))
    atoms.positions[~fixed] += rng.normal(scale=0.1, size=((~fixed).sum(), 3))
    return atoms


class Timed(PotentialForces):
    """A trained model that adds up the time that it takes."""

    seconds = 0.0

    def __call__(self, batch):
        started = time.perf_counter()
        result = super().__call__(batch)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - started
        return result


@dataclass(frozen=True)
class Measurement:
    """Outcome of a number of relaxations, and the time that they took."""

    energies: list[float]
    n_steps: list[int]
    converged: list[bool]
    wall: float
    """s."""
    processor: float
    """s, of all threads."""
    in_model: float = 0.0
    """s of the clock; 0 if it was not measured (EMT)."""


def batched(model: ForceModel, slabs: list[Atoms], config: RelaxConfig) -> Measurement:
    """Relax all together."""
    timed = Timed(model.potential) if isinstance(model, PotentialForces) else None
    wall, processor = time.perf_counter(), time.process_time()
    outcomes = list(Driver(timed or model, config).run(enumerate(Structure.from_ase(atoms) for atoms in slabs)))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    outcomes.sort(key=lambda outcome: outcome.number)
    energies, n_steps = [o.last.energy for o in outcomes], [o.n_steps for o in outcomes]
    in_model = 0.0 if timed is None else timed.seconds
    return Measurement(energies, n_steps, [o.how == "converged" for o in outcomes], wall, processor, in_model)


def one_by_one(calculator, slabs: list[Atoms], config: RelaxConfig) -> Measurement:
    """Relax one after the other, with ASE."""
    settings = PRESETS[config.preset]
    energies, n_steps, converged = [], [], []
    wall, processor = time.perf_counter(), time.process_time()
    for atoms in slabs:
        atoms = atoms.copy()
        atoms.calc = calculator
        optimizer = LBFGS(atoms, logfile=None, memory=settings.memory, maxstep=settings.max_step)
        converged.append(bool(optimizer.run(fmax=config.fmax, steps=config.max_steps)))
        energies.append(atoms.get_potential_energy())
        n_steps.append(optimizer.nsteps)
    return Measurement(energies, n_steps, converged, time.perf_counter() - wall, time.process_time() - processor)


COLUMNS = (
    *("", "clock [s]", "processor [s]", "steps", "atoms x steps / s"),
    *(
        "ASE's clock / ours",
        "ASE's processor / ours",
        "outside the model",
        "ASE's clock / ours in the model",
        "energies apart, median [meV] (above 1 meV)",
    ),
)


def row(name: str, found: Measurement, sizes: list[int]) -> list[Any]:
    """Times of one way to relax."""
    atom_steps = ((np.array(found.n_steps) + 1) * sizes).sum()
    steps = f"{np.mean(found.n_steps):.1f}"
    return [name, f"{found.wall:.1f}", f"{found.processor:.1f}", steps, f"{atom_steps / found.wall:,.0f}"]


def compared(ours: Measurement, ase: Measurement) -> list[str]:
    """Ratios of times, share of ours outside of the model, and energies of the systems that converged both ways."""
    both = np.array(ours.converged) & np.array(ase.converged)
    apart = 1000 * np.abs(np.array(ours.energies) - ase.energies)[both]
    energies = f"{np.median(apart):.4f} ({(apart > 1).sum()} of {both.sum()})" if both.any() else "none converged"
    ratios = [f"{ase.wall / ours.wall:.1f}", f"{ase.processor / ours.processor:.1f}"]
    most = f"{ase.wall / ours.in_model:.1f}" if ours.in_model else ""
    return [*ratios, f"{1 - ours.in_model / ours.wall:.0%}", most, energies]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="run directory")
    parser.add_argument("--n_systems", type=int, default=32)
    parser.add_argument("--n_layers", type=int, help="of every slab, the two uppermost free")
    parser.add_argument("--edges", type=int, nargs="+", default=[100_000])
    parser.add_argument("--preset", choices=PRESETS, default="oc20")
    parser.add_argument("--fmax", type=float, default=0.05)
    parser.add_argument("--max_steps", type=int, default=100)
    parser.add_argument("--skin", type=float, default=0.5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--emt", type=int, default=0, metavar="N")
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    options = parser.parse_args()
    how = {name: getattr(options, name) for name in ("preset", "fmax", "max_steps", "skin")}
    if options.emt:
        model, calculator, n = CalculatorForces(EMT), EMT(), options.emt
    else:
        model, calculator = force_model(options.run, options.device), equicat.Calculator(options.run, options.device)
        n = options.n_systems
    warnings.simplefilter("ignore", OutsideTraining)  # only speed is asked
    slabs = [slab(seed, options.n_layers) for seed in range(n)]
    sizes = [len(atoms) for atoms in slabs]
    ase = one_by_one(calculator, slabs, RelaxConfig(**how))
    rows = [[*row("ASE, one by one", ase, sizes), "", "", "", "", ""]]
    for edges in options.edges:
        ours = batched(model, slabs, RelaxConfig(edges=edges, **how))
        rows.append([*row(f"batches of {edges:,} edges", ours, sizes), *compared(ours, ase)])
        print(" ".join(map(str, rows[-1])), flush=True)
    results = table(COLUMNS, rows)
    about = (
        f"{n} slabs of {min(sizes)} to {max(sizes)} atoms, {torch.get_num_threads()} threads; "
        f"{', '.join(f'{name} {value}' for name, value in how.items())}."
    )
    print(f"{about}\n{markdown(results)}")
    if options.json:
        write(options.json, "Batched relaxations beside ASE's L-BFGS", {"": results}, notes=[about])


if __name__ == "__main__":
    main()
