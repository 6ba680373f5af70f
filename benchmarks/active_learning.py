"""Active learning on EMT: error against the number of labels, frames chosen by their grade and frames drawn at random.

    python benchmarks/active_learning.py EMT WORK --seeds 0 1 2 --json benchmarks/results/active_learning.json

The pool is the training split, all frames of all relaxations, without labels. The first frames are drawn at random, but
for some that bring elements. In each round a model is trained on the labels so far, and as many frames again are added:
those that `equicat select` chooses with that model, or others at random. Every training begins with new weights and has
the same number of steps, whatever the number of labels, so that labels are all that differs; the last weights count. A
model that is trained on the whole pool, as long as the others, says what can be reached. One thread; trainings whose
results are in WORK already are not repeated.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from envelope import markdown, mean_and_spread, table, write
from fine_tuning import draw

from equicat.apply.evaluate import evaluate
from equicat.apply.select import select
from equicat.data.datasets import open_dataset
from equicat.data.directory import splits_of
from equicat.data.readers import write as write_structures
from equicat.files import write_json
from equicat.options.text import read_yaml
from equicat.training.config import from_mapping
from equicat.training.presets import find_configuration
from equicat.training.train import train

SIZES = (20, 40, 80, 160)
WAYS = ("grade", "random")
QUANTITIES = {"forces_mae": "Force MAE [eV/Å]", "energy_mae": "Energy MAE [eV]"}
COMMAND = (
    "equicat data emt EMT --n_systems 360 --seed 7",
    "python benchmarks/active_learning.py EMT WORK --seeds 0 1 2 --json benchmarks/results/active_learning.json",
)


class Loop:
    """The loop of one seed.

    Args:
        options: the data, the steps of a training, and a folder for runs and results.
        seed: of the draws and of the first weights.
    """

    def __init__(self, options: argparse.Namespace, seed: int):
        self.options, self.seed = options, seed
        self.pool = list(open_dataset(splits_of(options.emt, "s2ef")["train"]))
        self.numbers = {structure.id: k for k, structure in enumerate(self.pool)}

    def run(self) -> list[dict[str, Any]]:
        """One result for each way and number of labels; the first number is the same for all ways."""
        first = self.trained("drawn first", lambda: draw(self.pool, SIZES[0], self.seed))
        found = [first]
        for way in WAYS:
            last = first
            for n in SIZES[1:]:
                last = self.trained(way, lambda n=n, way=way, last=last: self.more(way, last, n))
                found.append(last)
        return [*found, self.trained("the whole pool", lambda: list(range(len(self.pool))))]

    def trained(self, way: str, choose: Callable[[], list[int]]) -> dict[str, Any]:
        """Choose frames, train on them, and evaluate: the frames, and errors by quantity and split."""
        chosen = choose()
        name = f"{way.replace(' ', '_')}_{len(chosen)}_{self.seed}"
        result = self.options.work / f"{name}.json"
        if result.exists():
            return json.loads(result.read_text())
        labels = self.options.work / f"{name}.extxyz"
        write_structures(labels, (self.pool[k] for k in chosen))
        values = read_yaml(find_configuration("small"))
        run = {"out": str(self.options.work / name), "seed": self.seed, "max_steps": self.options.steps}
        run |= {"max_epochs": 100_000, "max_minutes": None, "val_every": 100_000, "accelerator": "cpu"}
        run |= {"progress": False, "overwrite": True}
        data = {"train": [str(labels)], "val": [self.options.emt], "n_val": 50, "energy_reference": "adsorption"}
        out = train(from_mapping(values | {"data": data, "run": values["run"] | run})).run
        splits = evaluate(out, self.options.emt, progress=False, outside_training="ignore")["splits"]
        rows = {split: next(iter(found["rows"].values())) for split, found in splits.items()}
        errors = {quantity: {split: row[quantity] for split, row in rows.items()} for quantity in QUANTITIES}
        said = {"seed": self.seed, "way": way, "labels": len(chosen), "run": str(out), "errors": errors}
        write_json(result, said | {"systems": len({self.pool[k].sid for k in chosen}), "chosen": chosen})
        print(f"{name}: {errors}", file=sys.stderr, flush=True)
        return self.trained(way, lambda: chosen)

    def more(self, way: str, last: dict[str, Any], n: int) -> list[int]:
        """The frames of the last training and further ones, ``n`` in all."""
        chosen = last["chosen"]
        rest = sorted(set(range(len(self.pool))) - set(chosen))
        if way == "random":
            return chosen + np.random.default_rng([self.seed, n]).choice(rest, n - len(chosen), replace=False).tolist()
        pool, out = (self.options.work / f"{name}_{self.seed}.extxyz" for name in ("pool", "chosen"))
        write_structures(pool, (self.pool[k] for k in rest))
        found = select(last["run"], (str(pool),), out=str(out), n=n - len(chosen))
        return chosen + [self.numbers[id_] for id_, _ in found]


def shown(results: list[dict[str, Any]]) -> dict[str, Any]:
    """A table for each quantity: a row for each number of labels and way, a column for each split."""
    splits = list(results[0]["errors"]["forces_mae"])
    keys = sorted({(r["labels"], r["way"]) for r in results})
    tables = {}
    for quantity, heading in QUANTITIES.items():
        rows = []
        for labels, way in keys:
            same = [r for r in results if (r["labels"], r["way"]) == (labels, way)]
            cells = [mean_and_spread([r["errors"][quantity][split] for r in same], 4) for split in splits]
            systems = f"{np.mean([r['systems'] for r in same]):.0f}"
            rows.append([labels, way, systems, *cells])
        tables[heading] = table(["labels", "chosen by", "systems among them", *(f"`{s}`" for s in splits)], rows)
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emt", help="data set directory of `equicat data emt`")
    parser.add_argument("work", type=Path, help="folder for runs and results")
    parser.add_argument("--steps", type=int, default=400, help="of each training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    tables = shown([result for seed in options.seeds for result in Loop(options, seed).run()])
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
