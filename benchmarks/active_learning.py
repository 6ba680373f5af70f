"""Active learning on EMT: error against the number of labels, frames chosen by their grade and frames drawn at random.

    python benchmarks/active_learning.py EMT OUT.jsonl --seeds 0 1 2 --json benchmarks/results/active_learning.json

The pool is the training split, all frames of all relaxations, without labels. The first frames are drawn at random. In
each round a model is trained on the labels so far, and as many frames again are added: those that `equicat select`
chooses with that model, or others at random. Every training begins with new weights and has the same number of steps,
whatever the number of labels, so that labels are all that differs; the last weights count. A model that is trained on
the whole pool, as long as the others, says what can be reached. One process and one thread a seed; seeds already in OUT
are not repeated.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from envelope import markdown, table, write

from equicat.apply.evaluate import evaluate
from equicat.apply.select import select
from equicat.data.datasets import open_dataset
from equicat.data.directory import splits_of
from equicat.data.readers import write as write_structures
from equicat.data.structure import Structure
from equicat.options.text import read_yaml
from equicat.training.config import from_mapping
from equicat.training.presets import find_configuration
from equicat.training.train import train

SIZES = (20, 40, 80, 160)
WAYS = ("grade", "random")
QUANTITIES = {"forces_mae": "Force MAE [eV/Å]", "energy_mae": "Energy MAE [eV]"}
COMMAND = (
    "equicat data emt EMT --n_systems 360 --seed 7",
    "python benchmarks/active_learning.py EMT OUT.jsonl --seeds 0 1 2 --json benchmarks/results/active_learning.json",
)


class Loop:
    """The loop of one seed.

    Args:
        options: the data, the steps of a training.
        seed: of the draws and of the first weights.
        folder: for what is written between.
    """

    def __init__(self, options: argparse.Namespace, seed: int, folder: Path):
        self.options, self.seed, self.folder = options, seed, folder
        store = open_dataset(splits_of(options.emt, "s2ef")["train"])
        self.pool: list[Structure] = list(store)
        self.numbers = {structure.id: k for k, structure in enumerate(self.pool)}
        self.rng = np.random.default_rng(seed)

    def train(self, chosen: list[int], name: str) -> dict[str, Any]:
        """Train on frames of the pool, and evaluate: errors by split and quantity."""
        labels = self.folder / f"{name}.extxyz"
        write_structures(labels, (self.pool[k] for k in chosen))
        values = read_yaml(find_configuration("small"))
        run = {"out": str(self.folder / name), "seed": self.seed, "max_steps": self.options.steps, "progress": False}
        run |= {"max_epochs": 100_000, "max_minutes": None, "val_every": 100_000, "accelerator": "cpu"}
        data = {"train": [str(labels)], "val": [self.options.emt], "n_val": 50, "energy_reference": "adsorption"}
        result = train(from_mapping(values | {"data": data, "run": values["run"] | run}))
        splits = evaluate(result.run, self.options.emt, progress=False, outside_training="ignore")["splits"]
        rows = {split: next(iter(found["rows"].values())) for split, found in splits.items()}
        return {quantity: {split: row[quantity] for split, row in rows.items()} for quantity in QUANTITIES}

    def more(self, way: str, chosen: list[int], n: int, name: str) -> list[int]:
        """The numbers of ``n`` further frames of the pool."""
        rest = sorted(set(range(len(self.pool))) - set(chosen))
        if way == "random":
            return self.rng.choice(rest, n, replace=False).tolist()
        pool = self.folder / "pool.extxyz"
        write_structures(pool, (self.pool[k] for k in rest))
        found = select(self.folder / name, (str(pool),), out=str(self.folder / "chosen.extxyz"), n=n)
        return [self.numbers[id_] for id_, _ in found]

    def run(self) -> list[dict[str, Any]]:
        """One result for each way and number of labels; the first number is the same for all ways."""
        first = self.rng.choice(len(self.pool), SIZES[0], replace=False).tolist()
        found = [self._result("both", SIZES[0], first, self.train(first, "first"))]
        for way in WAYS:
            chosen, name = list(first), "first"
            for size in SIZES[1:]:
                chosen += self.more(way, chosen, size - len(chosen), name)
                name = f"{way}_{size}"
                found.append(self._result(way, size, chosen, self.train(chosen, name)))
        everything = list(range(len(self.pool)))
        return [*found, self._result("pool", len(everything), everything, self.train(everything, "pool_"))]

    def _result(self, way: str, n: int, chosen: list[int], errors: dict[str, Any]) -> dict[str, Any]:
        systems = len({self.pool[k].sid for k in chosen})
        said = {"seed": self.seed, "steps": self.options.steps, "way": way, "labels": n, "systems": systems}
        print(json.dumps(said | errors), file=sys.stderr, flush=True)
        return said | {"errors": errors}


def cell(values: list[float]) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")


def shown(results: list[dict[str, Any]]) -> dict[str, Any]:
    """A table for each quantity: a row for each number of labels and way, a column for each split."""
    splits = list(results[0]["errors"]["forces_mae"])
    keys = list(dict.fromkeys((r["labels"], r["way"]) for r in sorted(results, key=lambda r: (r["labels"], r["way"]))))
    tables = {}
    for quantity, heading in QUANTITIES.items():
        rows = []
        for labels, way in keys:
            same = [r for r in results if (r["labels"], r["way"]) == (labels, way)]
            cells = [cell([r["errors"][quantity][split] for r in same]) for split in splits]
            systems = f"{np.mean([r['systems'] for r in same]):.0f}"
            rows.append([labels, {"both": "drawn first", "pool": "the whole pool"}.get(way, way), systems, *cells])
        tables[heading] = table(["labels", "chosen by", "systems among them", *(f"`{s}`" for s in splits)], rows)
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emt", help="data set directory of `equicat data emt`")
    parser.add_argument("out", type=Path, help="JSON lines")
    parser.add_argument("--steps", type=int, default=600, help="of each training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(Loop(options, options.one, Path(folder)).run()))
        return
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    for seed in options.seeds:
        if any((r["seed"], r["steps"]) == (seed, options.steps) for r in done):
            continue
        command = [sys.executable, *sys.argv, "--one", str(seed)]
        line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        done += json.loads(line)
        with options.out.open("a") as file:
            file.write("".join(json.dumps(result) + "\n" for result in json.loads(line)))
    tables = shown([r for r in done if r["steps"] == options.steps and r["seed"] in options.seeds])
    print(*(f"{heading}\n\n{markdown(t)}\n" for heading, t in tables.items()), sep="\n")
    if options.json:
        notes = [
            f"Each training: the configuration `small` with new weights, {options.steps} steps of 4 structures;",
            f"the last weights count. Mean and standard deviation of {len(options.seeds)} seeds, which draw the first",
            "frames and the weights. EMT as `equicat data emt` makes it, 360 systems; the pool is its training split.",
        ]
        write(
            options.json, "Active learning: frames chosen by grade, and at random", tables, command=COMMAND, notes=notes
        )


if __name__ == "__main__":
    main()
