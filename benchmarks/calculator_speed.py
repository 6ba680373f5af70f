"""A step of ASE's MD with the calculator: how much of it is the network, now and with an earlier commit.

``python benchmarks/calculator_speed.py --before COMMIT --json FILE``. Slabs of 37 to 145 atoms, two models with random
weights, one thread. Both versions run in turns, each time in a process of its own; the medians are shown.
"""

import argparse
import json
import math
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SLABS = ((3, 3, 4), (4, 4, 5), (6, 6, 4))
ELEMENTS = (8, 29)


def make_runs(folder: Path) -> dict[str, Path]:
    """Two runs with random weights: nequip-allegro's architecture at its usual size, and a small published one."""
    import torch

    from equicat.data.fitted import Domain, Statistics
    from equicat.models import saved
    from equicat.models.model import ModelInfo
    from equicat.networks.allegro import AllegroConfig, NequipAllegroConfig

    torch.manual_seed(0)
    small = {"n_layers": 2, "l_max": 2, "tensor_channels": 16, "two_body_mlp": (32, 64), "latent_mlp": (64,)}
    configs = {
        "nequip-allegro, 6 Å, 2 layers, 32 channels, 64 scalars": NequipAllegroConfig(avg_num_neighbors=48.0),
        "allegro, 5 Å, 2 layers, 16 channels, MLPs 32-64": AllegroConfig(cutoff=5.0, avg_num_neighbors=40.0, **small),
    }
    shortest = {"Cu-Cu": 1.5, "Cu-O": 1.0, "O-O": 1.0}
    domain = Domain(n_structures=1, n_sampled=1, largest=300, shortest=shortest, systems={}, **lists_of_kinds())
    found = {}
    for k, (name, config) in enumerate(configs.items()):
        statistics_of = Statistics(ELEMENTS, math.nan, (0.0, 0.0), 1.0, config.avg_num_neighbors)
        info = ModelInfo("s2ef", config, (64,), "float32", "total", statistics_of, domain=domain)
        found[name] = folder / f"run{k}"
        found[name].mkdir()
        saved.save(found[name], saved.build(info))
    return found


def lists_of_kinds() -> dict[str, Any]:
    """Fields of the training domain that say O was on Cu."""
    return {"adsorbates": {"O": 1}, "catalysts": {"Cu": 1}, "adsorbate_elements": (8,), "slab_elements": (29,)}


def worker(run: str, steps: int) -> None:
    """Print, for each slab, the atoms and the medians of a step, of the network within it, and of the C++ in that."""
    import numpy as np
    import torch
    from ase import units
    from ase.build import add_adsorbate, fcc111
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from ase.md.verlet import VelocityVerlet

    import equicat
    from equicat.kernels.cpu import build
    from equicat.models.potential import Potential

    torch.set_num_threads(1)
    spent: dict[str, list[float]] = {"network": [], "kernel": []}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **more)
            spent[name].append(time.perf_counter() - start)
            return result

        return call

    Potential.forward = timed("network", Potential.forward)  # type: ignore[method-assign]
    build.call = timed("kernel", build.call)
    found = []
    for size in SLABS:
        atoms = fcc111("Cu", size, vacuum=8.0)
        add_adsorbate(atoms, "O", 1.3, "fcc")
        atoms.rattle(0.02, seed=1)
        atoms.calc = equicat.Calculator(run, device="cpu", outside_training="warn")
        MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=np.random.default_rng(0))
        dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
        dynamics.run(5)
        for times in spent.values():
            times.clear()
        total = []
        for _ in range(steps):
            start = time.perf_counter()
            dynamics.step()
            total.append(time.perf_counter() - start)
        medians = [1000 * statistics.median(times) for times in (total, spent["network"], spent["kernel"])]
        found.append([len(atoms), *medians])
    print(json.dumps(found))


def measured(package: Path, run: Path, steps: int) -> list[list[float]]:
    """The numbers that :func:`worker` prints with the package in that folder."""
    return by_package(package, __file__, "--worker", str(run), "--steps", str(steps))


def main() -> None:
    """Measure both versions in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="HEAD~1", help="commit to compare with")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--note", default="", help="a sentence below the table")
    parser.add_argument("--json", type=Path, help="file to write, for tables.py")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker, given.steps)
        return
    from envelope import markdown, table, write

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", given.before], check=True, capture_output=True)
        before = Path(scratch) / "before"
        before.mkdir()
        subprocess.run(["tar", "-x", "-C", str(before)], input=archive.stdout, check=True)
        for name, run in make_runs(Path(scratch)).items():
            turns = [[measured(folder, run, given.steps) for folder in (before, ROOT)] for _ in range(given.repeats)]
            for k in range(len(SLABS)):
                for version, j in (("before", 0), ("now", 1)):
                    atoms, *times = (statistics.median(turn[j][k][c] for turn in turns) for c in range(4))
                    step, network, kernel = times
                    shares = [f"{100 * (1 - part / step):.0f}%" for part in (network, kernel)]
                    rows.append([name, int(atoms), version, *(f"{t:.2f}" for t in times), *shares])
                    print(*rows[-1], flush=True)
    columns = ("model", "atoms", "", "step [ms]", "network [ms]", "its C++ [ms]", "outside the network", "outside C++")
    found = {"": table(columns, rows)}
    print(markdown(found[""]))
    if given.json:
        write(given.json, "A step of MD with the calculator", found, notes=[given.note] if given.note else [])


if __name__ == "__main__":
    main()
