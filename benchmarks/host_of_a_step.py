"""Time that the host takes for a recorded training step of `equicat train`, by this checkout and another one.

    python benchmarks/host_of_a_step.py PATH/3bpa/train_300K.xyz --before CHECKOUT --json FILE

A GPU that computes a step of a small batch in a few milliseconds waits for what the host does between two: making the
batch, Lightning's loop, the optimiser. Here, where there is no GPU, replays of CUDA graphs do nothing, and what is left
is that. Nothing is learned, and waits for a GPU and copies to it are not in these times.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from envelope import by_package, markdown, table, write

from equicat.data import batches
from equicat.kernels.gpu import graphs
from equicat.training import module, recorded
from equicat.training.config import from_mapping
from equicat.training.train import train

EPOCHS, FIRST = 6, 100
"""Epochs of a training, and steps at its beginning that do not count: kernels are compiled there."""
COMMAND = ["python benchmarks/host_of_a_step.py PATH/3bpa/train_300K.xyz --before CHECKOUT --json FILE"]


def recorded_as_nothing(function: Any, inputs: Any, room: Any) -> tuple[Any, Any]:
    """A graph that does nothing, and outputs that stay what they are."""
    is_update = not hasattr(inputs, "numbers")
    return (lambda: None), () if is_update else function(inputs)


def measured(data: str, optimizer: str) -> dict[str, float]:
    """Milliseconds of a step, and those of them that make the batch."""
    torch.set_num_threads(1)
    graphs.record = recorded_as_nothing
    graphs.warmed_up = lambda function, inputs, room: function(inputs)
    recorded.RecordedSteps.takes = lambda self, batch: True  # type: ignore[method-assign]
    recorded.padded_sizes = lambda n_atoms, n_edges: (200, 4096)  # one size, so that nearly all steps are replays
    make, begin, making = batches.BatchReader.__getitem__, module.TrainingModule.on_train_batch_start, [0.0]
    times: list[tuple[float, float]] = []

    def timed(self: Any, numbers: Any) -> Any:
        start = time.perf_counter()
        batch = make(self, numbers)
        making[0] += time.perf_counter() - start
        return batch

    def noted(self: Any, *arguments: Any) -> None:
        times.append((time.perf_counter(), making[0]))
        begin(self, *arguments)

    batches.BatchReader.__getitem__ = timed  # type: ignore[method-assign]
    module.TrainingModule.on_train_batch_start = noted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "data": {"train": [data], "n_train": 450, "n_val": 5, "energy_reference": "total"},
            "model": {"name": "nequip-allegro", "cutoff": 5.0, "tensor_channels": 16},
            "optimizer": {"name": optimizer},
            "run": {"out": f"{folder}/run", "batch_size": 5, "max_epochs": EPOCHS}
            | {"progress": False, "accelerator": "cpu"},
        }
        train(from_mapping(values))
    pairs = list(zip(times[FIRST:], times[FIRST + 1 :], strict=False))
    step = statistics.median(after[0] - before[0] for before, after in pairs)
    batch = statistics.median(after[1] - before[1] for before, after in pairs)
    return {"step": 1e3 * step, "batch": 1e3 * batch}


def main() -> None:
    """One table, a row for each optimiser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="3BPA's training frames")
    parser.add_argument("--before", type=Path, help="checkout of another commit")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measured(options.data, options.worker)))
        return
    here, rows = Path(__file__).parents[1], []
    for optimizer in ("adam", "muon"):
        row = [optimizer]
        for checkout in [options.before, here] if options.before else [here]:
            found = by_package(checkout, __file__, options.data, "--worker", optimizer)
            row += [f"{found['step']:.1f}", f"{found['batch']:.1f}", f"{found['step'] - found['batch']:.1f}"]
        rows.append(row)
    names = ["step [ms]", "its batch [ms]", "the rest [ms]"]
    columns = [*(f"before: {name}" for name in names), *names] if options.before else names
    tables = {"": table(["optimiser", *columns], rows)}
    print(markdown(tables[""]))
    if options.json:
        notes = ["Steps of five molecules of 27 atoms (3BPA), a small nequip-allegro network; graphs that do nothing."]
        write(options.json, "Host time of a recorded training step", tables, command=COMMAND, notes=notes)


if __name__ == "__main__":
    main()
