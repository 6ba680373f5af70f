"""Nudged elastic bands in one batch against ASE's NEB with FIRE, band after band and image after image.

Both begin from the same relaxed ends and first paths (IDPP), with the improved tangent and an image that climbs
from the first step. First with EMT itself, then with a trained model, such as that of `equicat demo`::

    python benchmarks/neb.py demo/run

The tables have for each band steps and barriers of both and how far apart the barriers are, then seconds of the clock
and of the processor: on a busy machine only the latter can be compared.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc100, fcc111
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.mep import NEB
from ase.optimize import FIRE
from envelope import markdown, table, write

import equicat
from equicat.barriers.config import NEBConfig
from equicat.barriers.driver import Band, Driver, Progress
from equicat.barriers.ends import ends_of
from equicat.barriers.interpolation import idpp
from equicat.data.structure import Structure
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.models import CalculatorForces, ForceModel, force_model
from equicat.relaxation.relax import relax


@dataclass(frozen=True)
class Result:
    """Barriers (eV) and steps of all bands, and the seconds that they took together."""

    barriers: list[float]
    n_steps: list[int]
    converged: list[bool]
    wall: float
    processor: float


def slab(build, metal: str, adsorbate: str, height: float, site: str) -> Atoms:
    """Four layers of 3 × 3 atoms, the two lower ones fixed, with an atom at a site."""
    atoms = build(metal, (3, 3, 4), vacuum=7.0)
    add_adsorbate(atoms, adsorbate, height, site)
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() > 2))
    atoms.set_tags(np.select([atoms.get_tags() == 0, atoms.get_tags() == 1], [2, 1], 0))
    return atoms


def ends() -> dict[str, tuple[Atoms, Atoms]]:
    """Both ends of some diffusion steps, not relaxed."""
    found = {
        f"O on {metal}(111), fcc to hcp": tuple(slab(fcc111, metal, "O", 1.2, site) for site in ("fcc", "hcp"))
        for metal in ("Cu", "Pd", "Ag", "Au")
    }
    initial = slab(fcc100, "Cu", "Cu", 1.7, "hollow")
    final = initial.copy()
    final.positions[-1] += initial.cell[0] / 3
    return found | {"Cu on Cu(100), hollow to hollow": (initial, final)}


def bands_of(model: ForceModel, config: NEBConfig) -> list[Band]:
    """First paths between the relaxed ends."""
    made = []
    for number, (name, pair) in enumerate(ends().items()):
        both = ends_of(*(Structure.from_ase(atoms, source=name) for atoms in pair), None)
        relaxed = relax(
            [both.initial, both.final], model, RelaxConfig(fmax=config.fmax, max_steps=config.max_steps), progress=False
        ).structures
        made.append(Band(number, *relaxed, idpp(*relaxed, config.images)))
    return made


def in_one_batch(model: ForceModel, config: NEBConfig, bands: list[Band]) -> Result:
    """All bands together."""
    wall, processor = time.perf_counter(), time.process_time()
    found = dict(Driver(model, config).run(bands, [Progress.begin(band.inner) for band in bands]))
    seconds = time.perf_counter() - wall, time.process_time() - processor
    inner = [found[band.number] for band in bands]
    barriers = [float(p.energies.max() - band.initial.energy) for p, band in zip(inner, bands, strict=True)]
    return Result(barriers, [p.n_steps for p in inner], [p.how == "converged" for p in inner], *seconds)


def one_by_one(calculator: Callable[[], Calculator], config: NEBConfig, bands: list[Band]) -> Result:
    """Band after band with ASE; the energies of the ends are known to it, and what EMT knows of an image is kept."""
    wall, processor = time.perf_counter(), time.process_time()
    barriers, n_steps, converged = [], [], []
    for band in bands:
        images = [s.to_ase() for s in (band.initial, *(band.initial for _ in band.inner), band.final)]
        for image, positions in zip(images[1:-1], band.inner, strict=True):
            image.positions, image.calc = positions, calculator()
        for image, end in ((images[0], band.initial), (images[-1], band.final)):
            image.calc = SinglePointCalculator(image, energy=end.energy, forces=end.forces)
        neb = NEB(images, k=config.k, climb=True, method="improvedtangent", allow_shared_calculator=True)
        fire = FIRE(neb, logfile=None)
        converged.append(bool(fire.run(fmax=config.fmax, steps=config.max_steps)))
        n_steps.append(fire.nsteps)
        barriers.append(float(neb.emax - band.initial.energy))
    return Result(barriers, n_steps, converged, time.perf_counter() - wall, time.process_time() - processor)


def compare(model: ForceModel, calculator: Callable[[], Calculator], config: NEBConfig) -> dict[str, dict[str, Any]]:
    """Measure both ways: a table of the bands, and one of the time."""
    bands = bands_of(model, config)
    ours, theirs = in_one_batch(model, config, bands), one_by_one(calculator, config, bands)
    bands_of_both = [
        [
            name,
            f"{ours.barriers[k]:.4f}",
            f"{theirs.barriers[k]:.4f}",
            f"{1000 * (ours.barriers[k] - theirs.barriers[k]):.4f}",
            f"{ours.n_steps[k]}, {theirs.n_steps[k]}",
            f"{ours.converged[k]}, {theirs.converged[k]}",
        ]
        for k, name in enumerate(ends())
    ]
    columns = ("band", "barrier [eV]", "ASE's [eV]", "apart [meV]", "steps: ours, ASE", "converged: ours, ASE")
    seconds = [
        [name, f"{result.wall:.2f}", f"{result.processor:.2f}"]
        for name, result in (("one batch", ours), ("ASE", theirs))
    ]
    return {"bands": table(columns, bands_of_both), "time": table(("", "clock [s]", "processor [s]"), seconds)}


def main() -> None:
    """Compare with EMT, and with the model of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="run directory of a model trained for s2ef on Cu, Pd, Ag, Au and O")
    parser.add_argument("--images", type=int, default=7)
    parser.add_argument("--fmax", type=float, default=0.05)
    parser.add_argument("--max_steps", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="file to write, for tables.py")
    options = parser.parse_args()
    config = NEBConfig(images=options.images, fmax=options.fmax, max_steps=options.max_steps, climb_below=float("inf"))
    warnings.simplefilter("ignore", equicat.OutsideTraining)
    found = {f"EMT, {name}": part for name, part in compare(CalculatorForces(EMT), EMT, config).items()}
    if options.run:
        calculator = equicat.Calculator(options.run, options.device, outside_training="ignore")
        ours = compare(force_model(options.run, options.device), lambda: calculator, config)
        found |= {f"model, {name}": part for name, part in ours.items()}
    about = f"{config.images} images, fmax {config.fmax} eV/Å, {torch.get_num_threads()} threads."
    print("\n\n".join([about, *(f"{name}\n\n{markdown(part)}" for name, part in found.items())]))
    if options.json:
        write(options.json, "Nudged elastic bands beside ASE's", found, notes=[about])


if __name__ == "__main__":
    main()
