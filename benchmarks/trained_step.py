"""Training step and inference with the weights of trained runs, by this checkout and another one.

    python benchmarks/trained_step.py 'PATH/oc20_mini/trajectories/*.xz' RUN [RUN …] --before CHECKOUT
    python benchmarks/trained_step.py PATH/3bpa/train_300K.xyz RUN --structures 5 --rounds 5 --before CHECKOUT

Speed is measured elsewhere with first weights. Trained ones have other numbers, some of them so small that a processor
takes a hundred times longer for a product. The first structures of up to four files are one batch; processor time of
one thread, the median of all repetitions; checkouts in turn, in as many rounds as are asked for, whose median is shown.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from glob import glob
from itertools import islice
from pathlib import Path

import torch
from envelope import by_package, markdown, table, write

import equicat
from equicat import Batch
from equicat.models.potential import Potential

N_FILES = 4


def milliseconds(do: Callable[[], object], repeats: int) -> float:
    """Median processor time, the first two calls left out."""
    times = []
    for _ in range(repeats + 2):
        began = time.process_time()
        do()
        times.append(time.process_time() - began)
    return 1e3 * statistics.median(times[2:])


def measured(run: str, files: list[str], repeats: int, n_structures: int) -> dict[str, float]:
    """Sizes and times of one run in this process."""
    torch.set_num_threads(1)
    model = equicat.load(run)
    assert isinstance(model, Potential)
    structures = [structure for file in files for structure in islice(equicat.read(file), n_structures)]
    batch = Batch.from_structures(structures, model.cutoff, dtype=model.dtype)
    assert batch.forces is not None

    def step() -> None:
        model.zero_grad()
        (model(batch).forces - batch.forces).norm(dim=1).mean().backward()

    found = {"atoms": len(batch.numbers), "edges": batch.edge_index.shape[1]}
    found["parameters"] = sum(p.numel() for p in model.parameters())
    found["inference"] = milliseconds(lambda: model(batch), repeats)
    model.requires_grad_(True).train()
    return found | {"training step": milliseconds(step, repeats)}


def elsewhere(checkout: Path, run: str, options: argparse.Namespace) -> dict[str, float]:
    """The times of a run by the package of another checkout."""
    lengths = ["--repeats", str(options.repeats), "--structures", str(options.structures)]
    return by_package(checkout, __file__, options.pattern, run, *lengths, "--worker")


def main() -> None:
    """One table, a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", help="of files with structures")
    parser.add_argument("runs", nargs="+", help="run directories, as NAME=PATH to show a name")
    parser.add_argument("--before", type=Path, help="checkout of another commit")
    parser.add_argument("--structures", type=int, default=1, help="of each file")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1, help="how often each checkout is measured")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--title", default="Steps with trained weights")
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    options = parser.parse_args()
    if options.worker:
        files = sorted(glob(options.pattern))[:N_FILES]
        print(json.dumps(measured(options.runs[0], files, options.repeats, options.structures)))
        return
    here, rows = Path(__file__).parents[1], []
    for named in options.runs:
        name, _, run = named.rpartition("=")
        checkouts = [here] if options.before is None else [options.before, here]
        rounds = [[elsewhere(checkout, run, options) for checkout in checkouts] for _ in range(options.rounds)]
        found = [
            {what: statistics.median(times[what] for times in of_checkout) for what in of_checkout[0]}
            for of_checkout in zip(*rounds, strict=True)
        ]
        sizes = [f"{found[0][size]:,.0f}" for size in ("atoms", "edges", "parameters")]
        times = [f"{f[what]:.1f}" for what in ("inference", "training step") for f in found]
        rows.append([name or Path(run).name, *sizes, *times])
    names = ["now"] if options.before is None else ["before", "now"]
    columns = [f"{what}, {when} [ms]" for what in ("inference", "training step") for when in names]
    shown = table(["weights", "atoms", "edges", "parameters", *columns], rows)
    print(markdown(shown))
    if options.json:
        notes = ["float32, one thread; times are processor time, medians of all repetitions of a round and of rounds."]
        lengths = f"--structures {options.structures} --rounds {options.rounds}"
        command = f"python benchmarks/trained_step.py 'PATH/{Path(options.pattern).name}' RUN [RUN …] {lengths}"
        command += f" --before CHECKOUT --title '{options.title}' --json FILE"
        write(options.json, options.title, {"": shown}, command=[command], notes=notes)


if __name__ == "__main__":
    main()
