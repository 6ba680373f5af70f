"""`equicat bench speed`: ours and nequip-allegro with the same weights, each in its own process.

A repetition of one contestant follows one of the other, so that whatever else the machine does slows both.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.data import atomic_numbers
from numpy import ndarray

from equicat.bench.process import Contestant, Failed, Process
from equicat.errors import InputError
from equicat.options.values import Checked, Positive, Workers
from equicat.run_directory import environment
from equicat.terminal.progress import progress_bar

Results = dict[str, Any]

CUTOFF = 6.0
SIZES: dict[str, dict[str, int]] = {
    "small": {"layers": 2, "l_max": 2, "scalars": 64, "tensors": 32, "width": 64},
    "paper": {"layers": 3, "l_max": 2, "scalars": 512, "tensors": 32, "width": 512},
}
"""Models; ``width`` is that of all hidden layers."""
METALS = ("Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au", "Cu")
Mode = Literal["eager", "compile", "aotinductor"]
MODES: tuple[Mode, ...] = ("eager", "compile", "aotinductor")
"""Ways to run the peer."""
AGREEMENT = 1e-4
"""Relative disagreement of energies and forces beyond which two contestants do not compute the same thing."""
TF32_AGREEMENT = 1e-2
"""Relative disagreement that is allowed where matrices are multiplied in TF32 (ten bits of mantissa)."""


@dataclass(frozen=True)
class BenchConfig(Checked):
    """How to measure."""

    peer_python: str | None = None
    """Interpreter of an environment that has nequip-allegro; default: this one (extra [bench])."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to measure."""
    threads: Workers = 2
    """Threads on the processor that each contestant gets."""
    repeats: Positive = 5
    """Interleaved repetitions, of which the median is taken."""
    n_slabs: Positive = 8
    """Slabs of 38 atoms in the batch that is measured."""
    peer: bool = True
    """Measure nequip-allegro as well; otherwise ours alone, with random weights."""
    modes: tuple[Mode, ...] = MODES
    """Ways to run the peer; starting the last one takes minutes."""
    progress: bool = True
    """Show what is being measured."""


def contestants(device: str, peer: bool, modes: Sequence[str] = MODES) -> list[Contestant]:
    """Ours, and the peer as it can be run on that device, in these modes."""
    ours = [
        Contestant("equicat", ours=True),
        Contestant("equicat, operators", ours=True, native=False),
        Contestant("equicat, operators, recomputing", ours=True, recompute=True, native=False),
    ]
    if device != "cpu":
        ours.append(Contestant("equicat, TF32", ours=True, tf32=True))
        ours.append(Contestant("equicat, without CUDA graphs", ours=True, cuda_graphs=False))
    if not peer:
        return ours
    theirs = [
        Contestant("nequip-allegro, eager"),
        Contestant("nequip-allegro, compiled", mode="compile"),
        Contestant("nequip-allegro, AOTInductor", mode="aotinductor"),
    ]
    if device != "cpu":
        cue, triton = "enable_CuEquivarianceContracter", "enable_TritonContracter"
        theirs += [
            Contestant("nequip-allegro, cuEquivariance", modifier=cue),
            Contestant("nequip-allegro, compiled, cuEquivariance", mode="compile", modifier=cue),
            Contestant("nequip-allegro, AOTInductor, Triton", mode="aotinductor", modifier=triton),
        ]
    return ours + [way for way in theirs if way.mode in modes]


def slabs(n: int = 8) -> list[Atoms]:
    """So many slabs of 38 atoms: four layers of a metal, carbon monoxide on top, rattled."""
    out = []
    for k, metal in zip(range(n), cycle(METALS), strict=False):
        atoms = fcc111(metal, (3, 3, 4), vacuum=8.0)
        add_adsorbate(atoms, molecule("CO"), 2.0, "fcc")
        atoms.rattle(0.1, seed=k)
        atoms.pbc = True
        out.append(atoms)
    return out


def hyperparameters(size: Mapping[str, int], elements: Sequence[str]) -> Results:
    """Arguments of the peer's model builder for a size."""
    mlps: Results = {}
    for name in ("scalar_embed", "allegro", "readout"):
        mlps |= {f"{name}_mlp_hidden_layers_depth": 1, f"{name}_mlp_hidden_layers_width": size["width"]}
    return {
        "type_names": list(elements),
        "r_max": CUTOFF,
        "l_max": size["l_max"],
        "num_layers": size["layers"],
        "num_scalar_features": size["scalars"],
        "num_tensor_features": size["tensors"],
        "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 8},
        "avg_num_neighbors": 48.0,
        **mlps,
    }


def our_config(size: Mapping[str, int]) -> Results:
    """Hyperparameters of equicat's model of a size, for measuring without the peer."""
    return {
        "cutoff": CUTOFF,
        "l_max": size["l_max"],
        "n_layers": size["layers"],
        "n_scalars": size["scalars"],
        "tensor_channels": size["tensors"],
        "two_body_hidden": (size["width"],),
        "latent_hidden": (size["width"],),
        "n_features": size["width"],
        "avg_num_neighbors": 48.0,
    }


def write_systems(path: Path, frames: Sequence[Atoms]) -> None:
    """Structures for the contestants (see :mod:`equicat.bench.peers.worker`)."""
    arrays: dict[str, ndarray] = {"n_atoms": np.array([len(a) for a in frames])}
    arrays |= {name: np.concatenate([getattr(a, name) for a in frames]) for name in ("numbers", "positions")}
    arrays |= {"cell": np.stack([a.cell.array for a in frames]), "pbc": np.stack([a.pbc for a in frames])}
    np.savez(path, **arrays)  # type: ignore[arg-type]


# ---- speed -------------------------------------------------------------------------------------------------------


def speed(
    config: BenchConfig, sizes: Sequence[str] = ("small", "paper"), each: Callable[[Results], None] = lambda _: None
) -> Results:
    """Training step, inference, first step and memory of all contestants on a batch of slabs.

    On a processor contestants start one after the other, each twice, for its memory is told apart by process. On a GPU
    they start side by side, each once; those for which the memory does not suffice start again, alone, at the end.

    Args:
        config: how to measure.
        sizes: names of :data:`SIZES`.
        each: called after every size with the results so far, for they take long.

    Raises:
        InputError: for an unknown size, a side that cannot be run, or contestants whose numbers differ.
    """
    for size in sizes:
        if size not in SIZES:
            raise InputError(f"no model size {size!r}; there are {', '.join(SIZES)}")
    frames = slabs(config.n_slabs)
    out: Results = {"environment": environment(), "device": config.device, "threads": config.threads, "sizes": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_systems(folder / "systems.npz", frames)
        for size in sizes:
            out["sizes"][size] = _speed_of(size, config, folder, frames)
            each(out)
    return out


def _speed_of(size: str, config: BenchConfig, folder: Path, frames: Sequence[Atoms]) -> Results:
    elements = sorted({s for atoms in frames for s in atoms.get_chemical_symbols()}, key=lambda s: atomic_numbers[s])
    arrays = folder / f"{size}.npz"
    requests = Requests(config, SIZES[size], elements, arrays if config.peer else None, folder / "systems.npz")
    if config.peer:
        requests.export()
    ways = contestants(config.device, config.peer, config.modes)
    with ExitStack() as stack:
        started = _side_by_side if config.device != "cpu" else _one_by_one
        rows, running = started(ways, requests, folder, stack)
        if "failed" in (ours := rows["equicat"]):
            raise InputError(f"equicat cannot be run on {config.device}: {ours['failed']}")
        rounded = {name: TF32_AGREEMENT for name, process in running.items() if process.contestant.tf32}
        errors = _compare({name: folder / f"{name}.npz" for name in running}, rounded)
        for name, error in errors.items():
            rows[name] |= error
        for what in ("inference", "training"):
            taking_part = {n: p for n, p in running.items() if what == "inference" or p.contestant.trains}
            measured = interleaved if config.device == "cpu" else in_turn
            times = measured(taking_part, what, config, f"{size}: {what}")
            for name, seconds in times.items():
                rows[name][f"{what}_s"], rows[name][f"{what}_all_s"] = statistics.median(seconds), seconds
        limits = running["equicat"].ask("limits", device=config.device)
        for what in ("inference", "training"):
            # Counted for PyTorch's operators, because it cannot see into a kernel.
            flop = running.get("equicat, operators", running["equicat"]).ask("flop", what=what)
            achieved = flop / rows["equicat"][f"{what}_s"] / 1e9
            limits |= {f"{what}_gflop": flop / 1e9, f"{what}_gflops": achieved}
            limits[f"{what}_of_matmul"] = achieved / limits["matmul_gflops"]
        edges = next(row["n_edges"] for row in rows.values() if "n_edges" in row)
    return {
        "model": SIZES[size],
        "n_atoms": sum(map(len, frames)),
        "n_edges": edges,
        "contestants": rows,
        "ratios": ratios(rows),
        "limits": limits,
    }


@dataclass(frozen=True)
class Requests:
    """How contestants are started."""

    config: BenchConfig
    size: Mapping[str, int]
    elements: Sequence[str]
    arrays: Path | None
    systems: Path

    def start(self, contestant: Contestant) -> Results:
        """The first request: which model, which systems."""
        common = {"threads": self.config.threads, "device": self.config.device, "systems": str(self.systems)}
        if not contestant.ours:
            options = {"mode": contestant.mode, "modifier": contestant.modifier}
            return common | options | {"hyperparameters": hyperparameters(self.size, self.elements)}
        elements = [atomic_numbers[s] for s in self.elements]
        model = {"arrays": None if self.arrays is None else str(self.arrays), "config": our_config(self.size)}
        options = {name: getattr(contestant, name) for name in ("recompute", "tf32", "cuda_graphs")}
        return common | model | {"elements": elements} | options

    def export(self) -> None:
        """Let the peer write the weights that ours will use.

        Raises:
            InputError: if it cannot.
        """
        peer = Contestant("nequip-allegro, eager")
        with Process(peer, self.config.threads, self.config.peer_python) as process:
            try:
                process.ask("start", **self.start(peer))
                process.ask("export", path=str(self.arrays))
            except Failed as error:
                raise InputError(
                    f"nequip-allegro cannot be run ({error}); give --peer_python, an interpreter of an environment "
                    "that has it, or --peer false to measure ours alone"
                ) from error


Started = tuple[dict[str, Results], dict[str, Process]]
"""A row of each contestant, and the processes of those that did not fail."""


def _one_by_one(ways: Sequence[Contestant], requests: Requests, folder: Path, stack: ExitStack) -> Started:
    """Start contestants one after the other; the first one's failure ends it."""
    rows: dict[str, Results] = {}
    running: dict[str, Process] = {}
    config = requests.config
    for way in progress_bar(ways, desc="start", disable=not config.progress):
        with Process(way, config.threads, config.peer_python) as alone:  # training brings more memory along
            row = _first_calls(alone, requests, folder, ("inference",))
        process = stack.enter_context(Process(way, config.threads, config.peer_python))
        rows[way.name] = row | _first_calls(process, requests, folder, ("training",))
        if "failed" not in rows[way.name]:
            running[way.name] = process
        elif not running:
            break
    return rows, running


def _side_by_side(ways: Sequence[Contestant], requests: Requests, folder: Path, stack: ExitStack) -> Started:
    """Start contestants all at once, and those that ran out of memory once more, one after the other."""
    config = requests.config

    def start(way: Contestant) -> tuple[Results, Process]:
        process = stack.enter_context(Process(way, config.threads, config.peer_python))
        return _first_calls(process, requests, folder, ("inference", "training")), process

    with ThreadPoolExecutor(len(ways)) as pool:
        found = dict(zip((way.name for way in ways), pool.map(start, ways), strict=True))
    for way in ways:
        if "out of memory" in found[way.name][0].get("failed", ""):
            found[way.name][1].__exit__(None, None, None)
            found[way.name] = start(way)
    running = {name: process for name, (row, process) in found.items() if "failed" not in row}
    return {name: row for name, (row, _) in found.items()}, running


def _first_calls(process: Process, requests: Requests, folder: Path, calls: Sequence[str]) -> Results:
    """Start, and what the first calls of ``inference`` and ``training`` take; energies and forces go to a file."""
    device, way = requests.config.device, process.contestant
    row: Results = {}
    began = time.perf_counter()
    try:
        row |= process.ask("start", **requests.start(way))
        row["ready_s"] = time.perf_counter() - began
        for what in calls:
            if what == "training" and not way.trains:
                continue
            row[f"first_{what}_s"] = process.ask("seconds", what=what)
            if what == "inference":
                process.ask("outputs", path=str(folder / f"{way.name}.npz"))
            row[f"{what}_memory"] = process.ask("peak", what=what, device=device)
        process.ask("release")
    except Failed as error:
        row["failed"] = str(error)
    return row


def _compare(files: Mapping[str, Path], tolerances: Mapping[str, float]) -> dict[str, Results]:
    """Relative differences from the first contestant, which must be small: :data:`AGREEMENT`, unless said otherwise.

    Raises:
        InputError: if one is larger than rounding explains.
    """
    outputs = {name: dict(np.load(path)) for name, path in files.items()}
    reference = next(iter(outputs.values()))
    out = {}
    for name, found in outputs.items():
        differences = {
            f"{key}_difference": float(np.abs(found[key] - reference[key]).max() / np.abs(reference[key]).max())
            for key in ("energy", "forces")
        }
        if max(differences.values()) > tolerances.get(name, AGREEMENT):
            raise InputError(f"{name} does not compute what equicat computes: {differences}; nothing was measured")
        out[name] = differences
    return out


def interleaved(running: Mapping[str, Process], what: str, config: BenchConfig, title: str) -> dict[str, list[float]]:
    """Seconds of ``config.repeats`` calls of ``what`` (inference or training) by each process, in turn."""
    times: dict[str, list[float]] = {name: [] for name in running}
    for process in running.values():
        process.ask("seconds", what=what)  # not counted
    for _ in progress_bar(range(config.repeats), desc=title, disable=not config.progress):
        for name, process in running.items():
            times[name].append(process.ask("seconds", what=what))
    return times


def in_turn(running: Mapping[str, Process], what: str, config: BenchConfig, title: str) -> dict[str, list[float]]:
    """Seconds of ``config.repeats`` calls of ``what`` by one process after the other, each with the GPU for itself."""
    times: dict[str, list[float]] = {}
    for name, process in progress_bar(running.items(), desc=title, disable=not config.progress):
        process.ask("seconds", what=what)  # not counted
        times[name] = [process.ask("seconds", what=what) for _ in range(config.repeats)]
        process.ask("release")
    return times


def ratios(rows: Mapping[str, Results]) -> Results:
    """Times and memory of the fastest (leanest) way to run the peer over ours."""
    out = {}
    for what in ("inference", "training"):
        theirs = [r for name, r in rows.items() if not name.startswith("equicat") and f"{what}_s" in r]
        if theirs:
            out[what] = min(r[f"{what}_s"] for r in theirs) / rows["equicat"][f"{what}_s"]
            memory = f"{what}_memory"
            out[memory] = min(r[memory]["peak_gb"] for r in theirs) / rows["equicat"][memory]["peak_gb"]
    return out
