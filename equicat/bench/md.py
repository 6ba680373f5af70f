"""`equicat bench md`: what a step of ASE's molecular dynamics takes with the calculator, and what takes it."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from ase import Atoms, units
from ase.build import add_adsorbate, bulk, fcc111
from ase.md.verlet import VelocityVerlet

from equicat.bench.speed import SIZES, our_config
from equicat.data.fitted import Statistics
from equicat.interfaces.ase import Calculator
from equicat.models import saved
from equicat.models.model import ModelInfo
from equicat.models.potential import Potential
from equicat.networks.allegro import NequipAllegroConfig
from equicat.options.values import Checked, Length, Positive, Range, Workers
from equicat.run_directory import environment
from equicat.tasks.tables import aligned

Results = dict[str, Any]
WARM_UP = 5
"""Steps before those that are measured: kernels are compiled, graphs recorded, lists made."""


@dataclass(frozen=True)
class MDConfig(Checked):
    """How to measure molecular dynamics."""

    atoms: Annotated[tuple[Annotated[int, Range(at_least=4, at_most=10**6)], ...], Length(1)] = (50, 100, 150, 1000)
    """Sizes, about: slabs of copper with an oxygen atom up to 300 atoms, bulk copper above."""
    steps: Positive = 50
    """Measured steps of half a femtosecond at 600 K."""
    size: Literal["small", "paper"] = "small"
    """Which model of `bench speed`, with random weights."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model computes."""
    threads: Workers = 2
    """Threads on the processor."""


def md(config: MDConfig) -> Results:
    """Milliseconds a step, by size: all of it, the network, the calculator around it, and ASE around that."""
    torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory() as name:
        run = _run(Path(name) / "run", config.size)
        rows = [_measured(_copper(n_atoms), run, config) for n_atoms in config.atoms]
    return {"environment": environment(), "device": config.device, "size": config.size, "rows": rows}


def _run(folder: Path, size: str) -> Path:
    """A run whose model has random weights."""
    torch.manual_seed(0)
    network = NequipAllegroConfig(**our_config(SIZES[size]))
    assert network.avg_num_neighbors is not None
    fitted = Statistics((8, 29), math.nan, (0.0, 0.0), 1.0, network.avg_num_neighbors)
    folder.mkdir()
    saved.save(folder, saved.build(ModelInfo("s2ef", network, (64,), "float32", "total", fitted)))
    return folder


def _copper(n_atoms: int) -> Atoms:
    """A slab of four layers with an oxygen atom, or bulk, of about that many atoms."""
    if n_atoms > 300:
        atoms = bulk("Cu", cubic=True).repeat(max(round((n_atoms / 4) ** (1 / 3)), 1))
    else:
        n = max(round((n_atoms / 4) ** 0.5), 1)
        atoms = fcc111("Cu", (n, max(round(n_atoms / 4 / n), 1), 4), vacuum=8.0)
        add_adsorbate(atoms, "O", 1.3, "ontop")
    atoms.rattle(0.02, seed=1)
    return atoms


def _measured(atoms: Atoms, run: Path, config: MDConfig) -> Results:
    """Medians over the steps of one system."""
    atoms.calc = Calculator(run, config.device, outside_training="ignore")
    spread = np.sqrt(atoms.get_masses() * 600 * units.kB)[:, None]
    atoms.set_momenta(spread * np.random.default_rng(0).normal(size=(len(atoms), 3)))
    dynamics, step = VelocityVerlet(atoms, 0.5 * units.fs), list[float]()
    dynamics.run(WARM_UP)
    with _timed(Potential, "forward") as network, _timed(Calculator, "calculate") as calculator:
        for _ in range(config.steps):
            started = time.perf_counter()
            dynamics.step()
            step.append(time.perf_counter() - started)
    whole, inside, innermost = (1000 * statistics.median(times) for times in (step, calculator, network))
    return {
        "n_atoms": len(atoms),
        "step_ms": whole,
        "us_an_atom": 1000 * whole / len(atoms),
        "network_ms": innermost,
        "lists_and_transfers_ms": inside - innermost,
        "ase_ms": whole - inside,
    }


@contextmanager
def _timed(owner: type, name: str) -> Iterator[list[float]]:
    """Within the block, the seconds of every call of a method, the work that it leaves to a GPU included."""
    method: Callable[..., Any] = getattr(owner, name)
    spent: list[float] = []

    def call(*args: Any, **more: Any) -> Any:
        started = time.perf_counter()
        result = method(*args, **more)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - started)
        return result

    setattr(owner, name, call)
    try:
        yield spent
    finally:
        setattr(owner, name, method)


def md_text(results: Results) -> str:
    """A table, and what takes most of a step."""
    titles = ["atoms", "step [ms]", "µs an atom", "network [ms]", "lists, transfers [ms]", "ASE [ms]", "most of it"]
    rows = [titles] + [[str(r["n_atoms"]), *(f"{r[k]:.2f}" for k in list(r)[1:]), _largest(r)] for r in results["rows"]]
    return "\n".join([f"{results['size']} model, {results['device']}", *aligned(rows)])


def _largest(row: Results) -> str:
    parts = {"network": "network_ms", "lists and transfers": "lists_and_transfers_ms", "ASE": "ase_ms"}
    return max(parts, key=lambda name: row[parts[name]])
