"""`equicat bench scaling`: time and memory of an inference against the size of the system."""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111

from equicat.bench.process import Contestant, Failed, Process
from equicat.bench.speed import SIZES, BenchConfig, Requests, Results, write_systems
from equicat.errors import InputError
from equicat.models.devices import free_memory
from equicat.run_directory import environment
from equicat.terminal.progress import progress_bar

MARGIN = 1.2
"""Free memory that a size must leave, relative to what it is expected to take."""


def copper(kind: str, n_atoms: int) -> Atoms:
    """Bulk copper, or a slab with vacuum, rattled, of about that many atoms.

    Raises:
        InputError: for another kind.
    """
    if kind == "bulk":
        n = max(round((n_atoms / 4) ** (1 / 3)), 1)
        atoms = bulk("Cu", cubic=True).repeat(n)
    elif kind == "slab":
        n = max(round((n_atoms / 12) ** 0.5), 1)
        atoms = fcc111("Cu", (n, n, 12), vacuum=8.0)
        atoms.pbc = True
    else:
        raise InputError(f"no system {kind!r}; there are bulk and slab")
    atoms.rattle(0.05, seed=0)
    return atoms


def scaling(config: BenchConfig, atoms: Sequence[int], kinds: Sequence[str] = ("bulk", "slab")) -> Results:
    """Inference (energy and forces) of the small model against system size: time, memory, and time for the batch.

    Each size has a process of its own. A contestant stops where the last two sizes say that memory would not do.
    """
    out: Results = {"environment": environment(), "device": config.device, "threads": config.threads, "series": []}
    ways = [Contestant("equicat", ours=True)]
    if config.peer:
        ways += [Contestant("nequip-allegro, eager"), Contestant("nequip-allegro, AOTInductor", mode="aotinductor")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arrays = folder / "model.npz" if config.peer else None
        requests = Requests(config, SIZES["small"], ["Cu"], arrays, folder / "systems.npz")
        for kind in kinds:
            if config.peer:
                write_systems(requests.systems, [copper(kind, 100)])
                requests.export()
            for way in ways:
                points = list(_points(way, kind, atoms, requests))
                out["series"].append({"contestant": way.name, "system": kind, "points": points, **fit(points)})
    return out


def _points(way: Contestant, kind: str, sizes: Sequence[int], requests: Requests) -> Iterator[Results]:
    config, before = requests.config, []  # type: ignore[var-annotated]
    for n in progress_bar(sorted(sizes), desc=f"{way.name}, {kind}", disable=not config.progress):
        frame = copper(kind, n)
        expected = _expected_gb(before, len(frame))
        if expected * MARGIN > available_gb(config.device):
            yield {"n_atoms": len(frame), "failed": f"would take about {expected:.0f} GB"}
            return
        write_systems(requests.systems, [frame])
        point: Results = {"n_atoms": len(frame)}
        try:
            with Process(way, config.threads, config.peer_python) as process:
                point |= process.ask("start", **requests.start(way))
                point |= process.ask("peak", what="inference", device=config.device)
                for what in ("inference", "neighbors"):
                    times = [process.ask("seconds", what=what) for _ in range(config.repeats)]
                    point |= {f"{what}_s": statistics.median(times), f"{what}_all_s": times}
        except Failed as error:
            yield point | {"failed": str(error)}
            return
        before.append(point)
        yield point


def _expected_gb(points: Sequence[Results], n_atoms: int) -> float:
    """Memory (GB) that a system of ``n_atoms`` would take, on the line through the last two measurements."""
    if len(points) < 2:
        return 0.0
    a, b = points[-2:]
    slope = (b["peak_gb"] - a["peak_gb"]) / max(b["n_atoms"] - a["n_atoms"], 1)
    return b["peak_gb"] + max(slope, 0.0) * (n_atoms - b["n_atoms"])


def available_gb(device: str) -> float:
    """Memory that a process can still have: of the computer, or of the GPU."""
    return free_memory(torch.device("cpu" if device == "cpu" else "cuda")) / 1e9


def fit(points: Sequence[Results]) -> Results:
    """Memory of an atom in kB (least squares over a series), and spread of the time an atom from 1,000 atoms on."""
    done = [p for p in points if "failed" not in p]
    out: Results = {}
    if len(done) >= 2:
        n, gb = (np.array([p[name] for p in done]) for name in ("n_atoms", "peak_gb"))
        out["kb_per_atom"] = float(np.polyfit(n, gb, 1)[0] * 1e6)
    cost = [p["inference_s"] / p["n_atoms"] for p in done if p["n_atoms"] >= 900]
    if cost:
        out["time_per_atom_spread"] = max(cost) / min(cost)
    return out
