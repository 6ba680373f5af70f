"""Relaxed energies straight from initial structures: presets with remedies beside every network, in equal time.

    python benchmarks/remedies.py EMT XU OUT.jsonl --json benchmarks/results/remedies.json

Rows are the preset of each data set (``emt_is2re``, ``xu_kitchin``) for energies alone; every small preset
(``small/…``) trained for the relaxed energy and nothing else; and some of these, ``remedied-…``, with the preset's
remedies but their own network: energies of the adsorbate's atoms alone, and its noise. One thread, one process a run;
the last weights count, so nothing is chosen on the validation data. Runs already in OUT are not repeated.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines_trained import OPTIMIZER, PRESETS
from direct_tasks import per_adsorbate_mae
from envelope import markdown, mean_and_spread, table, with_missing, write

from equicat.apply.evaluate import evaluate
from equicat.data.datasets import open_dataset
from equicat.data.directory import splits_of
from equicat.models import saved
from equicat.options.text import read_yaml
from equicat.training.config import from_mapping
from equicat.training.presets import find_configuration
from equicat.training.train import train

NETWORKS = {name: file for name, (file, _) in PRESETS.items() if name != "gemnet-dt"} | {"gemnet-t": "small/gemnet"}
"""GemNet-T and -dT differ in forces alone."""
PRESET_OF = {"emt": "emt_is2re", "xu": "xu_kitchin"}
TITLE = "Relaxed energies, direct: presets with remedies beside every network"
COMMAND = (
    "equicat data emt EMT --n_systems 120",
    "# xu_kitchin is imported as docs/remedies.md says",
    "python benchmarks/remedies.py EMT XU remedies.jsonl --minutes 1 --seeds 0 1 \\",
    "    --json benchmarks/results/remedies.json",
)
REMEDIED = "remedied-"
"""Rows of networks that have the remedies of the preset begin with this."""
ROWS = ("preset", *NETWORKS, *(f"{REMEDIED}{name}" for name in ("nequip", "gemnet-t", "schnet")))
REMEDIES = ("energy_atoms", "noise")
"""Options of a preset that any network can take."""


def configuration(name: str, data_set: str, data: str, seed: int, out: str, minutes: float) -> dict[str, Any]:
    """The configuration of a row: ``preset``, a network, or a network, also with the remedies of the preset."""
    preset = read_yaml(find_configuration(PRESET_OF[data_set]))
    if name == "preset":
        values = preset | {"task": "is2re"}
    else:
        small = read_yaml(find_configuration(NETWORKS[name.removeprefix(REMEDIED)]))
        values = {
            "task": "is2re",
            "model": small["model"],
            "output_mlp": small["output_mlp"],
            "optimizer": OPTIMIZER,
            "run": {"batch_size": preset["run"]["batch_size"]},
        }
        if name.startswith(REMEDIED):
            values |= {option: preset[option] for option in REMEDIES if option in preset}
    run = {"out": out, "seed": seed, "max_minutes": minutes, "max_epochs": 100_000, "val_every": 100_000}
    return values | {
        "data": {"train": [data], "val": [data]},
        "run": values["run"] | run | {"progress": False, "accelerator": "cpu"},
    }


def run_one(name: str, data_set: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one row on one data set, in a process of its own."""
    torch.set_num_threads(1)
    data = getattr(options, data_set)
    with tempfile.TemporaryDirectory() as folder:
        result = train(from_mapping(configuration(name, data_set, data, seed, f"{folder}/run", options.minutes)))
        model = saved.load(result.run)
        splits = evaluate(result.run, data, progress=False, outside_training="ignore")["splits"]
        rows = {split: found["rows"] for split, found in splits.items()}
        errors = {split: next(iter(found.values()))["energy_mae"] for split, found in rows.items()}
        linear = {split: found["linear reference"]["energy_mae"] for split, found in rows.items()}
        if data_set == "xu":
            val = open_dataset(splits_of(data, "is2re")["val_id"])
            errors["per adsorbate"] = per_adsorbate_mae(model, val)
    return {
        "name": name,
        "data": data_set,
        "seed": seed,
        "minutes": options.minutes,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "errors": errors,
        "linear": linear,
    }


def title(name: str) -> str:
    if name == "preset":
        return "**the preset**"
    network = name.removeprefix(REMEDIED)
    return name if network == name else f"{network}, with the remedies"


def cell(values: list[float], lowest: bool) -> str:
    """Mean ± standard deviation over seeds, the lowest of a column in bold."""
    text = mean_and_spread(values)
    return f"**{text}**" if lowest else text


def shown(results: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """One table: a row for each name that is finished, a column for each split."""
    columns: list[tuple[str, str]] = []
    for data_set in PRESET_OF:
        first = next((r for r in results if r["data"] == data_set), None)
        columns += [(data_set, split) for split in (first["errors"] if first else ())]
    found = {
        (name, column): [r["errors"][column[1]] for r in results if r["name"] == name and r["data"] == column[0]]
        for name in names
        for column in columns
    }
    best = {c: min(np.mean(found[n, c]) for n in names if found[n, c]) for c in columns}
    lines = []
    for name in names:
        seeds = len({r["seed"] for r in results if r["name"] == name})
        cells = [cell(v, np.mean(v) == best[c]) if (v := found[name, c]) else "–" for c in columns]
        lines.append([title(name), str(seeds), *cells])
    linear = {(r["data"], split): value for r in results for split, value in r["linear"].items()}
    lines.append(["linear reference", "", *(f"{linear[c]:.3f}" if c in linear else "" for c in columns)])
    words = {"emt": "EMT", "xu": "xu_kitchin"}
    return {"": table(["MAE [eV]", "seeds", *(f"{words[d]} `{s}`" for d, s in columns)], lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emt", help="data set directory of `equicat data emt`")
    parser.add_argument("xu", help="data set directory of xu_kitchin (docs/remedies.md says how to import it)")
    parser.add_argument("out", type=Path, help="JSON lines")
    parser.add_argument("--minutes", type=float, default=0.75, help="budget of each training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, data_set, seed = options.one
        print(json.dumps(run_one(name, data_set, int(seed), options)))
        return
    names = options.rows
    wanted = [(name, data_set, seed) for seed in options.seeds for name in names for data_set in PRESET_OF]

    def key(result: dict[str, Any]) -> object:
        of_this_budget = result["minutes"] == options.minutes
        return (result["name"], result["data"], result["seed"]) if of_this_budget else None

    tables = shown([r for r in with_missing(options.out, wanted, key) if key(r) in wanted], names)
    print(markdown(tables[""]))
    if options.json:
        notes = [
            f"Each training had {options.minutes:g} minutes of one thread, on cores that other work shared;",
            "the last weights count. EMT as `equicat data emt` makes it; xu_kitchin per system, and per adsorbate.",
        ]
        write(options.json, TITLE, tables, command=COMMAND, notes=notes)


if __name__ == "__main__":
    main()
