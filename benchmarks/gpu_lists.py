"""Neighbour lists, and relaxations with all that belongs to them, on a GPU: what an atom costs.

Bulk copper of growing size and many slabs at once, cutoff 6 Å, their lists made on the device and, up to 100,000 atoms,
beside Vesin's on the processor, which must have the same pairs. Then many slabs are relaxed in one batch for a fixed
number of steps with the small model of `equicat bench` (random weights)::

    python benchmarks/gpu_lists.py --json gpu_lists.json

The relaxation is run twice: once as it is, for the time of all, and once with a wait for the device before and after
each part, for the shares of the parts.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from envelope import markdown, table, write
from relaxation_speed import slab

from equicat.bench.scaling import copper
from equicat.bench.speed import CUTOFF, SIZES, our_config
from equicat.data.batch import Batch
from equicat.data.device_neighbors import neighbor_lists
from equicat.data.fitted import Statistics
from equicat.data.structure import Structure
from equicat.models.model import ModelInfo
from equicat.models.potential import Potential
from equicat.networks.allegro import NequipAllegroConfig
from equicat.relaxation import driver as loop
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.lbfgs import LBFGS
from equicat.relaxation.models import PotentialForces
from equicat.relaxation.pairs import Pairs

COMPARED = 100_000
"""Atoms up to which Vesin makes the list as well."""
COLUMNS = (
    *("system", "atoms", "pairs", "ms", "µs an atom", "peak [GB]"),
    *("Vesin, processor [µs an atom]", "same pairs"),
)
Done = dict[str, Any]


class Clock:
    """Seconds of calls by name, each with a wait for the device before and after."""

    def __init__(self, device: str):
        self.device, self.seconds = device, dict[str, float]()

    def now(self) -> float:
        """Seconds, once the device has done all it was asked for."""
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time is added to that name."""

        def call(*arguments: Any, **options: Any) -> Any:
            started = self.now()
            result = function(*arguments, **options)
            self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - started
            return result

        return call


def pair_keys(index: torch.Tensor, shift: torch.Tensor, n_atoms: int) -> torch.Tensor:
    """One integer for each pair, sorted: equal for lists that have the same pairs."""
    code = torch.zeros_like(index[0])
    for k in range(3):
        code = code * 64 + shift[:, k] + 32
    return ((index[0] * n_atoms + index[1]) * 64**3 + code).sort().values


def lists(name: str, structures: Sequence[Structure], device: str, repeats: int) -> list[Any]:
    """One row: time and memory of the lists of some systems in one call, and Vesin's beside them."""
    clock, times = Clock(device), []
    positions = torch.from_numpy(np.concatenate([s.positions for s in structures])).to(device)
    for _ in range(repeats + 1):
        index = shift = None
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        started = clock.now()
        index, shift = neighbor_lists(structures, positions, CUTOFF)
        times.append(clock.now() - started)
    memory = f"{torch.cuda.max_memory_allocated() / 1e9:.2f}" if device != "cpu" else ""
    seconds, n = median(times[1:]), len(positions)
    row = [name, n, len(shift), f"{1e3 * seconds:.2f}", f"{1e6 * seconds / n:.3f}", memory, "", ""]
    if n <= COMPARED:
        started = clock.now()
        other = Batch.from_structures(structures, CUTOFF)
        row[6] = f"{1e6 * (clock.now() - started) / n:.2f}"
        ours = pair_keys(index, shift, n)
        theirs = pair_keys(other.edge_index.to(device), other.edge_shift.to(device), n)
        same, is_sorted = torch.equal(ours, theirs), bool((index[0].diff() >= 0).all())
        row[7] = "yes" if same and is_sorted else "NO"
    print(*row, flush=True)
    return row


def relaxed(structures: Sequence[Structure], model: PotentialForces, steps: int) -> Done:
    """Relax all in one batch for so many steps."""
    driver = loop.Driver(model, RelaxConfig(max_steps=steps, fmax=1e-9, edges=10_000_000))
    watch = Clock(model.device.type)
    started = watch.now()
    outcomes = list(driver.run(enumerate(structures)))
    seconds = watch.now() - started
    return {"seconds": seconds, "atom_steps": driver.n_atom_steps, "how": sorted({o.how for o in outcomes})}


def relaxation(n_slabs: int, steps: int, device: str) -> tuple[list[str], list[list[Any]]]:
    """Columns, and rows with the parts of a relaxation, in µs an atom and step."""
    structures = [Structure.from_ase(slab(seed)) for seed in range(n_slabs)]
    torch.manual_seed(0)
    elements = tuple(sorted({int(z) for s in structures for z in s.numbers}))
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in our_config(SIZES["small"]).items()}
    config = NequipAllegroConfig(**options)
    potential = Potential(config, elements, ())
    statistics = Statistics(elements, 0.0, (0.0,) * len(elements), 1.0, config.avg_num_neighbors or 1.0)
    potential.info = ModelInfo("s2ef", config, (), "float32", "total", statistics)
    model = PotentialForces(potential.to(device).eval().requires_grad_(False))
    relaxed(structures, model, 3)
    whole = relaxed(structures, model, steps)
    rows = [["all, as it is", whole["seconds"], whole["atom_steps"]]]
    clock, originals = Clock(device), {}
    for owner, name, part in (
        (loop, "verlet_lists", "lists made"),
        (loop, "verlet_lists_or_none", "lists made"),
        (Pairs, "with_lists", "lists put together"),
        (Pairs, "batch", "pairs within the cutoff"),
        (PotentialForces, "__call__", "network"),
        (LBFGS, "step", "optimiser"),
    ):
        originals[owner, name] = getattr(owner, name)
        setattr(owner, name, clock.timed(part, originals[owner, name]))
    parts = relaxed(structures, model, steps)
    for (owner, name), function in originals.items():
        setattr(owner, name, function)
    rows += [[name, seconds, parts["atom_steps"]] for name, seconds in clock.seconds.items()]
    rest = parts["seconds"] - sum(clock.seconds.values())
    rows += [["rest", rest, parts["atom_steps"]], ["all, with waits", parts["seconds"], parts["atom_steps"]]]
    about = f"{n_slabs} slabs, {sum(map(len, structures))} atoms, {steps} steps; {', '.join(whole['how'])}"
    shown = [
        [name, f"{1e3 * s / (steps + 1):.2f}", f"{1e6 * s / n:.3f}", f"{s / parts['seconds']:.0%}"]
        for name, s, n in rows
    ]
    return [about, "ms a step", "µs / atom / step", "of all with waits"], shown


def profiled(title: str, work: Callable[[], Any]) -> None:
    """Print what takes the device's time, and how often it is launched."""
    with torch.profiler.profile() as found:
        work()
    print(f"== {title}")
    print(found.key_averages().table(sort_by="self_device_time_total", row_limit=25, max_name_column_width=50))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--atoms", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--n_slabs", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    parser.add_argument("--profile", action="store_true", help="also print where the time of lists goes")
    options = parser.parse_args()
    rows = [
        lists("copper", [Structure.from_ase(copper("bulk", n))], options.device, options.repeats) for n in options.atoms
    ]
    slabs = [Structure.from_ase(slab(seed)) for seed in range(options.n_slabs)]
    rows.append(lists(f"{len(slabs)} slabs", slabs, options.device, options.repeats))
    columns = (
        "system",
        "atoms",
        "pairs",
        "ms",
        "µs an atom",
        "peak [GB]",
        "Vesin, processor [µs an atom]",
        "same pairs",
    )
    shown = {"Lists": table(columns, rows)}
    print(markdown(shown["Lists"]), flush=True)
    parts = relaxation(options.n_slabs, options.steps, options.device)
    shown["Relaxation"] = table(*parts)
    print(markdown(shown["Relaxation"]))
    if options.profile:
        for systems in ([Structure.from_ase(copper("bulk", max(options.atoms)))], slabs):
            positions = torch.from_numpy(np.concatenate([s.positions for s in systems])).to(options.device)
            title = f"lists of {len(positions)} atoms, {len(systems)} systems"
            profiled(title, partial(neighbor_lists, systems, positions, CUTOFF))
    if options.json:
        write(options.json, "Neighbour lists and relaxations on a GPU", shown)


if __name__ == "__main__":
    main()
