"""Fine-tuning with new elements beside training from scratch: relaxed energies of few real systems.

    python benchmarks/fine_tuning.py EMT XU WORK --seeds 0 1 2 --json benchmarks/results/fine_tuning.json

A model is trained on EMT data, which lack F, S, Br, Rh and Ir: five of the eleven elements of xu_kitchin (DFT). From
its weights, and from new ones, models are trained on 10 to 391 systems of xu_kitchin. Draws hold every element. All
trainings on a number of systems have the same steps, rates and draws; the last weights count. References of energies
are fitted to the new data in all; ``scale fitted`` has the scale of the output fitted as well
(``normalization.scale: fit``). One thread, one process for each seed and number of systems; those in WORK are not
repeated.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from direct_tasks import per_adsorbate_mae
from envelope import markdown, mean_and_spread, table, with_missing, write

from equicat.apply.evaluate import evaluate
from equicat.data.datasets import open_dataset
from equicat.data.directory import splits_of
from equicat.data.store import write_store
from equicat.data.structure import Structure
from equicat.models import saved
from equicat.options.text import read_yaml
from equicat.run_directory import GRADE, has_checkpoint
from equicat.training.config import from_mapping
from equicat.training.presets import find_configuration
from equicat.training.train import train

SIZES = (10, 25, 50, 100, 200, 391)
TUNED: dict[str, Any] = {"references": "linear"}
WAYS: dict[str, dict[str, Any]] = {
    "from scratch": {},
    "fine-tuned": TUNED,
    "fine-tuned, scale fitted": TUNED | {"scale": "fit"},
}
"""Options of the normalisation."""
COMMAND = (
    "equicat data emt EMT --n_systems 360 --seed 7",
    "# xu_kitchin is imported as docs/remedies.md says",
    "python benchmarks/fine_tuning.py EMT XU WORK --seeds 0 1 2 --json benchmarks/results/fine_tuning.json",
)


def trained(data: str, val: str, out: Path, seed: int, steps: int, norm: dict[str, Any], start: Path | None) -> Path:
    """The run directory of a model of relaxed energies; one that is there is not trained again."""
    if (out / GRADE).exists():  # written at the end
        return out
    preset = read_yaml(find_configuration("xu_kitchin"))
    run = preset["run"] | {"out": str(out), "seed": seed, "max_steps": steps, "max_epochs": 100_000}
    run |= {"val_every": 100_000, "progress": False, "accelerator": "cpu", "init_from": start and str(start)}
    run |= {"checkpoint_every": "1 minutes", "resume": has_checkpoint(out)}
    parts = {"task": "is2re", "loss": {}, "data": {"train": [data], "val": [val]}, "normalization": norm, "run": run}
    return train(from_mapping(preset | parts)).run


def draw(dataset: Sequence[Structure], n: int, seed: int) -> list[int]:
    """Numbers of structures, drawn at random but for those that bring the elements, which come first."""
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    first, seen = [], set[int]()
    for k in order:
        elements = set(dataset[k].numbers.tolist())
        if not elements <= seen:
            first.append(k)
            seen |= elements
    return (first + [k for k in order if k not in first])[:n]


def run_one(seed: int, n: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Errors (eV) of the model of every way, as it begins to be trained and at the end."""
    torch.set_num_threads(1)
    start = trained(options.emt, options.emt, options.work / "start", 0, options.start_steps, {}, None)
    systems = open_dataset(splits_of(options.xu, "is2re")["train"])
    val = open_dataset(splits_of(options.xu, "is2re")["val_id"])
    data = options.work / f"data_{seed}_{n}"
    if not data.exists():
        write_store(data / "is2re" / "train", [systems[k] for k in draw(systems, n, seed)], systems.info)
    found = []
    for way, norm in WAYS.items():
        tuned = start if norm else None
        errors = {}
        for when, steps in (("first", 1), ("last", options.steps)):
            name = options.work / f"{way.replace(' ', '_').replace(',', '')}_{seed}_{n}_{when}"
            run = trained(str(data), options.xu, name, seed, steps, norm, tuned)
            rows = evaluate(run, options.xu, progress=False, outside_training="ignore")["splits"]["val_id"]["rows"]
            errors[when] = {
                "system": next(iter(rows.values()))["energy_mae"],
                "adsorbate": per_adsorbate_mae(saved.load(run), val),
                "linear": rows["linear reference"]["energy_mae"],
            }
        found.append({"seed": seed, "n": n, "steps": options.steps, "way": way, "errors": errors})
    return found


def shown(results: list[dict[str, Any]]) -> dict[str, Any]:
    """A row for each number of systems, a column for each way."""
    tables = {}
    for quantity, heading in (("adsorbate", "per adsorbate"), ("system", "per system")):
        rows = []
        for n in sorted({r["n"] for r in results}):
            same = [[r for r in results if (r["n"], r["way"]) == (n, way)] for way in WAYS]
            cells = [mean_and_spread([r["errors"]["last"][quantity] for r in of_way]) for of_way in same]
            linear = [mean_and_spread([r["errors"]["last"]["linear"] for r in same[0]])] if quantity == "system" else []
            rows.append([n, *cells, *linear])
        columns = ["systems", *WAYS, *(["linear reference"] if quantity == "system" else [])]
        tables[f"Energy MAE {heading}, `val_id` [eV]"] = table(columns, rows)
    rows = []
    for n in sorted({r["n"] for r in results}):
        for_ways = [[r["errors"]["first"]["system"] for r in results if (r["n"], r["way"]) == (n, way)] for way in WAYS]
        rows.append([n, *map(mean_and_spread, for_ways)])
    return tables | {"Energy MAE per system after one step [eV]": table(["systems", *WAYS], rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emt", help="data set directory of `equicat data emt`")
    parser.add_argument("xu", help="data set directory of xu_kitchin (docs/remedies.md says how to import it)")
    parser.add_argument("work", type=Path, help="folder for runs and results")
    parser.add_argument("--steps", type=int, default=600, help="of each training on xu_kitchin")
    parser.add_argument("--start_steps", type=int, default=2000, help="of the training on EMT")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(*options.one, options)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    out = options.work / "results.jsonl"
    wanted = [(seed, n) for seed in options.seeds for n in options.sizes]
    done = with_missing(out, wanted, lambda r: (r["seed"], r["n"]) if r["steps"] == options.steps else None)
    chosen = [r for r in done if r["seed"] in options.seeds and r["n"] in options.sizes and r["steps"] == options.steps]
    tables = shown(chosen)
    print(*(f"{heading}\n\n{markdown(t)}\n" for heading, t in tables.items()), sep="\n")
    if options.json:
        notes = [
            f"Each training on xu_kitchin has {options.steps} steps of 8 systems at the rates of the configuration,",
            f"that on EMT {options.start_steps}; the last weights count. Mean and standard deviation of",
            f"{len(options.seeds)} seeds, which draw systems and first weights.",
        ]
        write(options.json, "Fine-tuning with new elements beside training from scratch", tables, command=COMMAND,
              notes=notes)  # fmt: skip


if __name__ == "__main__":
    main()
