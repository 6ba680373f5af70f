"""A step of MD by each export, beside the calculator and PyTorch's operators: processor time, in one process.

``python benchmarks/exports.py --json FILE [--inductor]``. Slabs of 49 and 501 atoms, two models with random weights,
one thread. Atoms move a little from call to call, as in MD. Contestants take turns; the medians are shown. The `.pt2`
programs get their pairs, all others find them.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from calculator_speed import make_runs
from envelope import markdown, table, write

import equicat
from equicat.data.structure import Structure
from equicat.interfaces import compiled
from equicat.interfaces.library import equicat_model
from equicat.interfaces.library.export import export
from equicat.models.gradient import ComputeOptions, PairGradients
from equicat.models.saved import load_potential

SLABS = ((4, 4, 3), (10, 10, 5))
OPERATORS = ComputeOptions(kernels=False)


def contestants(run: Path, folder: Path, inductor: bool) -> dict[str, Callable[[Atoms], object]]:
    """Functions that compute energy and forces of some atoms, by name."""
    calculator, eager = (equicat.Calculator(run, device="cpu", outside_training="ignore") for _ in range(2))
    eager.potential.pair_gradients = PairGradients(OPERATORS)
    potential = load_potential(run)
    export(load_potential(run, compute=OPERATORS), folder / "library")
    compiled.export(potential, folder / "m.pt2")
    exported = torch.export.load(folder / "m.pt2")
    programs = {".pt2": exported.module()}
    if inductor:
        start = time.perf_counter()
        package = torch._inductor.aoti_compile_and_package(exported, package_path=str(folder / "inductor.pt2"))
        print(f"AOTInductor compiled for {time.perf_counter() - start:.0f} s", flush=True)
        programs[".pt2 by AOTInductor"] = torch._inductor.aoti_load_package(package)

    def by_calculator(which: equicat.Calculator) -> Callable[[Atoms], object]:
        def compute(atoms: Atoms) -> object:
            which.calculate(atoms)
            return which.results["forces"]

        return compute

    def by_program(program: Callable[..., object]) -> Callable[[Atoms], object]:
        pairs: dict[int, tuple[torch.Tensor, ...]] = {}

        def compute(atoms: Atoms) -> object:
            if len(atoms) not in pairs:
                pairs[len(atoms)] = compiled.inputs(Structure.from_ase(atoms, source="slab"), potential)[1:]
            return program(torch.from_numpy(atoms.positions), *pairs[len(atoms)])

        return compute

    def by_library(processor: str | None) -> Callable[[Atoms], object]:
        model = equicat_model.Model(folder / "library", processor, n_threads=1)
        return lambda atoms: model.compute(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc).forces

    best = equicat_model.Model(folder / "library").processor
    found = {"Calculator": by_calculator(calculator), "PyTorch's operators": by_calculator(eager)}
    found |= {name: by_program(program) for name, program in programs.items()}
    processors = equicat_model.Model(folder / "library").about["processors"]
    return found | {f"library, {p}": by_library(p) for p in processors[processors.index(best) :]}


def slab(size: tuple[int, int, int]) -> Atoms:
    """Cu(111) with one O."""
    atoms = fcc111("Cu", size, vacuum=8.0)
    add_adsorbate(atoms, "O", 1.3, "fcc")
    atoms.rattle(0.02, seed=1)
    return atoms


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=15)
    parser.add_argument("--model", default="", help="measure only models whose name begins so")
    parser.add_argument("--inductor", action="store_true", help="compile the .pt2 as well, which takes minutes")
    parser.add_argument("--note", default="", help="a sentence below the table")
    parser.add_argument("--json", type=Path, help="file to write, for tables.py")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        runs = {name: run for name, run in make_runs(Path(scratch)).items() if name.startswith(given.model)}
        for k, (name, run) in enumerate(runs.items()):
            folder = Path(scratch) / f"exports{k}"
            folder.mkdir()
            computers = contestants(run, folder, given.inductor)
            for size in SLABS:
                atoms, times = slab(size), {who: list[float]() for who in computers}
                forces = {who: np.array(compute(atoms)) for who, compute in computers.items() if ".pt2" not in who}
                for found in forces.values():
                    assert np.abs(found - forces["Calculator"]).max() < 1e-4
                for turn in range(given.calls):
                    atoms.rattle(0.005, seed=turn)
                    for who, compute in computers.items():
                        start = time.process_time()
                        compute(atoms)
                        times[who].append(time.process_time() - start)
                for who, each in times.items():
                    rows.append([name, len(atoms), who, f"{1000 * statistics.median(each):.2f}"])
                    print(*rows[-1], flush=True)
    found = {"": table(("model", "atoms", "by", "ms a call"), rows)}
    print(markdown(found[""]))
    if given.json:
        write(given.json, "Energy and forces by exports", found, notes=[given.note] if given.note else [])


if __name__ == "__main__":
    main()
