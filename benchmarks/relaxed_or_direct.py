"""IS2RE and IS2RS by relaxing and by direct models, seeds together: one table a split, from measurements of both.

The relaxations of each seed are an evaluation, the direct models are those of ``direct_tasks.py``::

    equicat data emt emt400 --n_systems 400 --metals '[Cu,Pd,Ag,Au]'
    equicat train small --data emt400 --run.out runs/0 --run.seed 0 --run.max_epochs 60 --run.max_minutes null
    equicat evaluate runs/0 --data emt400 --relax --minus_clean_slab --json relaxed_0.json
    python benchmarks/direct_tasks.py emt400 direct.jsonl --epochs 60 --variants gradient vector energy
    python benchmarks/relaxed_or_direct.py --relaxed relaxed_0.json relaxed_1.json relaxed_2.json --direct direct.jsonl
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from envelope import markdown, table, write

METRICS = {
    "energy_mae": "energy MAE [eV]",
    "energy_within_threshold": "EwT",
    "positions_mae": "free-atom MAE [Å]",
    "positions_average_distance_within_threshold": "ADwT",
    "average_force_below_threshold": "AFbT",
}

Rows = dict[str, list[Mapping[str, float]]]
"""Metrics of each seed, by row."""


def rows_by_split(relaxed: list[Path], direct: list[Path]) -> dict[str, Rows]:
    """Rows of the relaxations and their baselines, then of the direct models and theirs."""
    found: dict[str, Rows] = {}
    for file in relaxed:
        for split, results in json.loads(file.read_text(encoding="utf-8"))["splits"].items():
            for name, metrics in results["rows"].items():
                found.setdefault(split, {}).setdefault(name, []).append(metrics)
    runs = {}
    for file in direct:
        for line in file.read_text(encoding="utf-8").splitlines():
            run = json.loads(line)
            runs[run["variant"], run["seed"]] = run["splits"]
    for (variant, _), splits in sorted(runs.items()):
        for split, rows in splits.items():
            found[split].setdefault(f"direct: {variant}", []).append(rows["allegro"])
            if variant == "energy":
                found[split].setdefault("linear reference of relaxed energies", []).append(rows["linear reference"])
    return found


def cell(seeds: list[Mapping[str, float]], metric: str) -> str:
    """Mean and standard deviation over the seeds; empty if the row has no such metric."""
    values = [metrics[metric] for metrics in seeds if metric in metrics]
    if not values:
        return ""
    spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.4f} ± {spread:.4f}" if spread >= 5e-5 else f"{np.mean(values):.4f}"


def main() -> None:
    """Print the tables, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--relaxed", nargs="+", type=Path, required=True, help="JSON of `equicat evaluate --relax`")
    parser.add_argument("--direct", nargs="*", type=Path, default=[], help="JSON lines of direct_tasks.py")
    parser.add_argument("--notes", nargs="*", default=[], help="sentences below the tables")
    parser.add_argument("--json", type=Path, help="file to write, for tables.py")
    options = parser.parse_args()
    shown: dict[str, Any] = {}
    for split, rows in rows_by_split(options.relaxed, options.direct).items():
        cells = [[name, len(seeds), *(cell(seeds, metric) for metric in METRICS)] for name, seeds in rows.items()]
        shown[split] = table(("", "seeds", *METRICS.values()), cells)
        print(f"{split}\n\n{markdown(shown[split])}\n")
    if options.json:
        commands = [line.strip() for line in (__doc__ or "").splitlines() if line.startswith("    ")]
        write(options.json, "IS2RE and IS2RS: relaxed or direct", shown, command=commands, notes=options.notes)


if __name__ == "__main__":
    main()
