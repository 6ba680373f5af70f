#!/usr/bin/env python
"""Inferences and training steps with and without CUDA graphs, on a GPU: times, and how far results differ.

    python benchmarks/gpu_graphs.py --json OUT.json [--device cuda] [--repeats 20] [--slabs 1 8 64]

A table goes to standard output. On a processor nothing is recorded, and both columns are the same thing.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from envelope import table, write

from equicat.bench.speed import SIZES, our_config, slabs
from equicat.data.batch import Batch
from equicat.data.readers import write as write_frames
from equicat.data.structure import Structure
from equicat.models.gradient import ComputeOptions, PairGradients
from equicat.models.potential import Potential
from equicat.networks.allegro import NequipAllegroConfig
from equicat.tasks.tables import MetricSums
from equicat.tasks.tasks import LossConfig, resolved, task_of, total_loss
from equicat.training.config import from_mapping
from equicat.training.optimizers import OptimizerConfig, clip_gradient, make_optimizer
from equicat.training.recorded import Objective, RecordedSteps, RecordedUpdate, Step
from equicat.training.train import train

STEPS = 20
"""Training steps after which weights are compared."""
LARGEST = 10.0
"""Norm of the gradient that it is clipped to, as `equicat train` does."""


def molecule(seed: int) -> Structure:
    """27 atoms of an organic molecule's elements and density, rattled."""
    rng = np.random.default_rng(seed)
    grid = 1.7 * np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)
    return labelled(
        Structure(
            np.resize([6, 1, 1, 7, 1, 8, 1], 27),
            grid + 0.1 * rng.normal(size=grid.shape),
            np.zeros((3, 3)),
            np.zeros(3, dtype=bool),
            sid=f"molecule{seed}",
        ),
        seed,
    )


def labelled(structure: Structure, seed: int) -> Structure:
    """A structure with an energy and forces drawn at random."""
    rng, names = np.random.default_rng(seed), ("numbers", "positions", "cell", "pbc", "fixed", "tags", "sid")
    known = {name: getattr(structure, name) for name in names}
    return Structure(**known, energy=float(rng.normal()), forces=rng.normal(size=(len(structure), 3)))


def slab_batch(n: int) -> list[Structure]:
    """So many slabs of 38 atoms, with labels."""
    frames = [Structure.from_ase(atoms) for atoms in slabs()]
    return [labelled(frames[k % len(frames)], k) for k in range(n)]


def potential(structures: list[Structure], device: str) -> Potential:
    """The small model of `equicat bench speed`, with first weights."""
    torch.manual_seed(0)
    elements = tuple(sorted({int(z) for s in structures for z in s.numbers}))
    return Potential(NequipAllegroConfig(**our_config(SIZES["small"])), elements, ()).to(device)


def milliseconds(function: Callable[[], Any], repeats: int, until: str = "done") -> float:
    """Median time until the GPU has finished a call (done), or until the call returns (queued); each begins idle."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        function()
        if until == "done":
            wait()
        times.append(time.perf_counter() - start)
    wait()
    return 1e3 * statistics.median(times)


def back_to_back(function: Callable[[], Any], repeats: int) -> float:
    """Time of a call in a row of calls between which nobody waits."""
    return milliseconds(lambda: [function() for _ in range(repeats)], 3) / repeats


def inference(n_slabs: int, device: str, repeats: int) -> dict[str, Any]:
    """Energies and forces of slabs, with and without a graph."""
    structures = slab_batch(n_slabs)
    model = potential(structures, device).eval().requires_grad_(False)
    batch = Batch.from_structures(structures, model.cutoff).to(device)
    row: dict[str, Any] = {"what": "inference", "n_atoms": len(batch.numbers), "n_edges": batch.n_edges}
    found = {}
    for name, cuda_graphs in (("plain", False), ("graph", True)):
        model.pair_gradients = PairGradients(ComputeOptions(cuda_graphs=cuda_graphs))
        for _ in range(3):
            found[name] = model(batch)
        row[f"{name}_ms"] = milliseconds(lambda: model(batch), repeats)
        row[f"{name}_in_a_row_ms"] = back_to_back(lambda: model(batch), repeats)
    energies, forces = ([getattr(found[name], what) for name in found] for what in ("energy", "forces"))
    row["energy_difference"] = float((energies[0] - energies[1]).abs().max() / energies[0].abs().max())
    row["forces_difference"] = float((forces[0] - forces[1]).abs().max() / forces[0].abs().max())
    return row


class Training:
    """Training steps as `equicat train` makes them: gradient, clipping, optimiser, average of the weights."""

    def __init__(self, structures: list[Structure], device: str, optimizer: str, recorded: bool):
        self.device = torch.device(device)
        model = potential(structures, device).train()
        task = task_of(("energy", "forces"))
        metrics = MetricSums(task.quantities, "log")
        self.objective = Objective(model, task, resolved("s2ef", LossConfig()), metrics)
        self.optimizer = make_optimizer(OptimizerConfig(name=optimizer, lr=1e-3), model)
        self.averages, self.trained = [*copy.deepcopy(model).parameters()], [*model.parameters()]
        self.batch = Batch.from_structures(structures, model.cutoff)
        self.steps, self.moving = None, None
        if device != "cpu":
            self.batch = self.batch.pin_memory()
            self.steps = RecordedSteps(self.objective) if recorded else None
            self.moving = RecordedUpdate(self.optimizer, LARGEST, self.move) if recorded else None

    def gradient(self) -> tuple[float, Step | None]:
        """The loss, and the step if it is recorded; else its gradient is added to that of the weights."""
        objective = self.objective
        if self.steps is not None:
            step = self.steps(self.batch.to(self.device))
            parts = step.rows[: len(objective.weights)].tolist()
            return sum(w * total / n for w, (total, n) in zip(objective.weights, parts, strict=True)), step
        batch = self.batch.to(self.device)
        terms, rows = objective.judged(objective.model(batch, **objective.task.extras), batch)
        loss = total_loss(terms)
        rows.tolist()
        loss.backward()
        return float(loss.detach()), None

    def step(self) -> float:
        """The loss before the step."""
        self.optimizer.zero_grad()
        loss, step = self.gradient()
        self.update(step)
        return loss

    def update(self, step: Step | None) -> None:
        """Clip the gradient, move the weights, and move their average."""
        if step is not None and self.moving is not None:
            self.moving(step)
            return
        clip_gradient(self.optimizer, LARGEST)
        self.optimizer.step()
        self.move()

    def move(self) -> None:
        """Move the average of the weights."""
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.trained, 0.01)

    def parts(self, repeats: int) -> dict[str, float]:
        """Milliseconds of the parts of a step: until each has been queued, and until the GPU has done it.

        The loss is read once the gradient is there, so a whole step is queued no sooner than that is done.
        """
        found = {"step_queued": milliseconds(self.step, repeats, "queued")}
        _, step = self.gradient()
        found["update_queued"] = milliseconds(lambda: self.update(step), repeats, "queued")
        found["update_done"] = milliseconds(lambda: self.update(step), repeats)
        return found

    def weights(self) -> torch.Tensor:
        """All weights as one array."""
        return torch.cat([p.detach().flatten() for p in self.objective.model.parameters()])


def training(structures: list[Structure], device: str, repeats: int, optimizer: str) -> dict[str, Any]:
    """Steps on one batch, plain and recorded."""
    row: dict[str, Any] = {"what": f"training, {optimizer}", "n_atoms": sum(map(len, structures))}
    losses, weights, first = {}, {}, None
    for name, recorded in (("plain", False), ("graph", True)):
        loop = Training(structures, device, optimizer, recorded)
        first = loop.weights() if first is None else first
        losses[name] = [loop.step() for _ in range(STEPS)]
        weights[name] = copy.deepcopy(loop.weights())
        row[f"{name}_ms"] = milliseconds(loop.step, repeats)
        row[f"{name}_gradient_ms"] = milliseconds(loop.gradient, repeats)
        row |= {f"{name}_{part}_ms": value for part, value in loop.parts(repeats).items()}
        row["n_edges"] = loop.batch.n_edges
    pairs = zip(losses["plain"], losses["graph"], strict=True)
    row["loss_difference"] = max(abs(a - b) / abs(a) for a, b in pairs)
    moved = (weights["plain"] - first).norm()
    row["weights_difference"] = float((weights["plain"] - weights["graph"]).norm() / moved)
    return row


def whole_run(optimizer: str, cuda_graphs: bool, device: str, n: int = 150) -> float:
    """Milliseconds a step of `equicat train` on batches of five molecules, after the first epoch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, seeds in (("train", range(n)), ("val", range(n, n + 5))):
            write_frames(folder / f"{split}.extxyz", [molecule(seed) for seed in seeds])
        values = {
            "data": {split: [str(folder / f"{split}.extxyz")] for split in ("train", "val")}
            | {"energy_reference": "total"},
            "model": {"name": "nequip-allegro", "cutoff": 5.0, "tensor_channels": 16},
            "optimizer": {"name": optimizer},
            "run": {"out": str(folder / "run"), "batch_size": 5, "max_epochs": 4, "progress": False}
            | {"accelerator": "cpu" if device == "cpu" else "gpu", "cuda_graphs": cuda_graphs},
        }
        train(from_mapping(values))
        lines = [line.split(",") for line in (folder / "run" / "metrics.csv").read_text(encoding="utf-8").split()]
        time_s = lines[0].index("time_s")
        return 1e3 * (float(lines[-1][time_s]) - float(lines[2][time_s])) / (2 * n / 5)


def attempt(what: str, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row of a measurement, or what went wrong, so that the others are made."""
    try:
        row = function()
    except (RuntimeError, ValueError, AssertionError, OSError) as error:
        row = {"what": what, "failed": str(error).split("\n")[0]}
    print(shown(row), flush=True)
    return row


def shown(row: dict[str, Any]) -> str:
    """A line of the table."""
    if "failed" in row:
        return f"{row['what']}: failed: {row['failed']}"
    numbers = {k: v for k, v in row.items() if isinstance(v, float)}
    texts = [f"{k} {v:.2f}" if k.endswith("_ms") else f"{k} {v:.1e}" for k, v in numbers.items()]
    return f"{row['what']}, {row.get('n_atoms', '')} atoms: {', '.join(texts)}"


def tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A table of inferences and one of training steps, of the rows that did not fail."""
    done = [row for row in rows if "failed" not in row]
    found = {}
    for title, difference in (("inference", "forces_difference"), ("training", "weights_difference")):
        mine = [
            row for row in done if row["what"].startswith(title) or (title == "training" and "train" in row["what"])
        ]
        lines = [
            [
                *(row["what"], row.get("n_atoms", "135"), row.get("n_edges", "")),
                *(f"{row[k]:.2f}" for k in ("plain_ms", "graph_ms")),
                f"{row[difference]:.0e}" if difference in row else "",
            ]
            for row in mine
        ]
        words = difference.replace("_", " ")
        found[title] = table(("", "atoms", "edges", "plain [ms]", "recorded [ms]", f"relative {words}"), lines)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--slabs", type=int, nargs="+", default=[1, 8, 64], help="slabs of 38 atoms in a batch")
    given = parser.parse_args()
    device, repeats = given.device, given.repeats
    molecules = [molecule(seed) for seed in range(5)]

    def whole(optimizer: str) -> dict[str, Any]:
        runs = {"plain_ms": False, "graph_ms": True}
        times = {name: whole_run(optimizer, recorded, device) for name, recorded in runs.items()}
        return {"what": f"equicat train, {optimizer}"} | times

    measurements: dict[str, Callable[[], dict[str, Any]]] = {
        **{f"inference of {n} slabs": partial(inference, n, device, repeats) for n in given.slabs},
        "molecules": partial(training, molecules, device, repeats, "adam"),
        "molecules, Muon": partial(training, molecules, device, repeats, "muon"),
        **{
            f"training on {n} slabs": partial(training, slab_batch(n), device, repeats, "adam") for n in given.slabs[1:]
        },
        **{f"equicat train, {optimizer}": partial(whole, optimizer) for optimizer in ("adam", "muon")},
    }
    rows = []
    for what, function in measurements.items():
        rows.append(attempt(what, function))
        if given.json:  # after each, for a lent machine may be taken back
            write(given.json, "Inferences and training steps as CUDA graphs", tables(rows))


if __name__ == "__main__":
    main()
