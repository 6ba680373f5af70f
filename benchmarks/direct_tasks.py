"""IS2RE and IS2RS: every displacement head, several seeds, side by side; one JSON line a run, a table at the end.

    python benchmarks/direct_tasks.py DATA OUT.jsonl --epochs 15 --variants gradient magnitude-direction vector pair

A variant is a displacement head (IS2RS); ``energy`` (IS2RE alone), ``energy+aux`` (with displacements as an auxiliary
task) or ``energy+aux+noise`` (and noisy nodes). Runs already in OUT are not repeated. With ``--per_adsorbate``, energy
errors are also divided by the number of adsorbate atoms (for atomic adsorbates, where it is the number of adsorbates).
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from envelope import markdown, table, write

from equicat.apply.evaluate import evaluate_split
from equicat.apply.options import ApplyOptions
from equicat.apply.predict import predictions
from equicat.data.datasets import open_dataset
from equicat.data.directory import splits_of
from equicat.models import saved
from equicat.options.text import read_yaml
from equicat.training.config import from_mapping
from equicat.training.presets import find_configuration
from equicat.training.train import train

ENERGY_VARIANTS: dict[str, dict[str, Any]] = {
    "energy": {},
    "energy+aux": {"loss": {"displacement_weight": 0.3}},
    "energy+aux+noise": {"loss": {"displacement_weight": 0.3}, "noise": {"share": 0.5, "sigma": 0.03}},
}
SHOWN = (
    "energy_mae",
    "energy_per_adsorbate_mae",
    "energy_within_threshold",
    "positions_mae",
    "positions_mae_all_atoms",
    "positions_mae_adsorbate",
    "positions_average_distance_within_threshold",
)


def configuration(variant: str, seed: int, data: str, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    values = read_yaml(find_configuration("is2rs_small"))
    values["data"] = {"train": [data], "val": [data]}
    values["model"]["cutoff"] = options.cutoff
    values["run"] |= {
        "out": str(out),
        "seed": seed,
        "max_epochs": options.epochs,
        "val_every": options.epochs,  # the last weights count: nothing is chosen on the validation data
        "batch_size": options.batch_size,
        "progress": False,
    }
    if variant in ENERGY_VARIANTS:
        return values | {"task": "is2re"} | ENERGY_VARIANTS[variant]
    return values | {"displacement_head": variant}


def per_adsorbate_mae(model: Any, dataset: Any) -> float:
    """eV, with the number of tag-2 atoms as the number of adsorbates."""
    errors, options = [], ApplyOptions(batch_size=32, progress=False)
    for batch, prediction in predictions(model, dataset, options, labels=("relaxed_energy",)):
        n = torch.bincount(batch.system_idx[batch.tags == 2], minlength=batch.n_systems)
        errors += ((prediction.relaxed_energy - batch.relaxed_energy).abs() / n).tolist()
    return float(np.mean(errors))


def run_one(variant: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    directory = Path(tempfile.mkdtemp())
    started = time.monotonic()
    try:
        result = train(from_mapping(configuration(variant, seed, options.data, directory / "run", options)))
        seconds = time.monotonic() - started
        model = saved.load(result.run)
        splits = {}
        for name, path in splits_of(options.data, "is2re").items():
            if name != "train":
                dataset = open_dataset(path)
                splits[name] = evaluate_split(model, dataset, ApplyOptions(progress=False)).rows
                if options.per_adsorbate and "relaxed_energy" in model.info.outputs:
                    splits[name]["allegro"]["energy_per_adsorbate_mae"] = per_adsorbate_mae(model, dataset)
        n_parameters = sum(p.numel() for p in model.parameters())
    finally:
        shutil.rmtree(directory)
    return {"variant": variant, "seed": seed, "seconds": seconds, "n_parameters": n_parameters, "splits": splits}


def shown(results: list[dict[str, Any]]) -> dict[str, Any]:
    """A table for each split, mean ± standard deviation over seeds by variant; baselines once."""
    tables = {}
    for split in results[0]["splits"]:
        names = [n for n in SHOWN if any(n in r["splits"][split]["allegro"] for r in results)]
        lines = []
        rows: dict[str, list[tuple[dict[str, float], float]]] = {}
        for r in results:
            rows.setdefault(r["variant"], []).append((r["splits"][split]["allegro"], r["seconds"]))
            for title, row in r["splits"][split].items():
                if title != "allegro":
                    rows[f"({title})"] = [(row, 0.0)]
        for title, found in sorted(rows.items(), key=lambda item: item[0].startswith("(")):
            cells = []
            for name in names:
                seen = [row[name] for row, _ in found if name in row]
                spread = f" ± {np.std(seen, ddof=1):.4f}" if len(seen) > 1 else ""
                cells.append(f"{np.mean(seen):.4f}{spread}" if seen else "–")
            lines.append([title, *cells, f"{np.mean([s for _, s in found]):.0f}"])
        tables[split] = table(["", *names, "s"], lines)
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="data set directory with is2re splits")
    parser.add_argument("out", type=Path, help="JSON lines")
    parser.add_argument("--variants", nargs="+", default=["vector"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--cutoff", type=float, default=5.0)
    parser.add_argument("--per_adsorbate", action="store_true")
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    options = parser.parse_args()
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    for seed in options.seeds:
        for variant in options.variants:
            if not any(r["variant"] == variant and r["seed"] == seed for r in done):
                done.append(run_one(variant, seed, options))
                with options.out.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
    tables = shown([r for r in done if r["variant"] in options.variants])
    print("\n\n".join(f"### {split}\n\n{markdown(found)}" for split, found in tables.items()))
    if options.json:
        write(options.json, "Relaxed energies and structures straight from the initial structure", tables)


if __name__ == "__main__":
    main()
