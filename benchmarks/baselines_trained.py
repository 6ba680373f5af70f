"""Every network trained alike, several seeds, side by side; one JSON line a run, tables at the end.

    python benchmarks/baselines_trained.py DATA OUT.jsonl --task s2ef --minutes 2
    python benchmarks/baselines_trained.py DATA OUT.jsonl --task is2re --epochs 15

The small built-in configurations (`small/…`, about 21,000 weights each), one optimiser, batch size and cutoff for all,
one thread. ``is2re`` is trained together with displacements (gradient head, which all can feed). The
budget is one of time, or one of epochs. Each run has a process of its own, so that its memory can be told; runs already
in OUT are not repeated.
"""

import argparse
import json
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from envelope import markdown, table, with_missing, write

from equicat.apply.evaluate import evaluate
from equicat.models import saved
from equicat.options.text import read_yaml
from equicat.run_directory import LAST, read_checkpoint
from equicat.training.config import from_mapping
from equicat.training.presets import find_configuration
from equicat.training.train import train

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "allegro": ("small/allegro", {}),
    "nequip": ("small/nequip", {}),
    "gemnet-t": ("small/gemnet", {}),
    "gemnet-dt": ("small/gemnet", {"force_head": "sum", "displacement_head": "sum"}),
    "dimenet++": ("small/dimenet_plus_plus", {}),
    "dimenet": ("small/dimenet", {}),
    "schnet": ("small/schnet", {}),
    "cgcnn": ("small/cgcnn", {}),
}
OPTIMIZER = {
    "name": "muon", "matrix_lr": 0.01, "lr": 2.0e-3, "schedule": "cosine", "warmup_steps": 20, "ema_decay": 0.99
}  # fmt: skip
LOSSES: dict[str, dict[str, Any]] = {
    "s2ef": {"energy": "mae", "forces": "l2", "energy_weight": 0.1, "forces_weight": 1.0},
    "is2re": {"displacement_weight": 1.0},
}
SHOWN = {"s2ef": ("energy_mae", "forces_mae", "forces_cosine_similarity"), "is2re": ("energy_mae", "positions_mae")}


def configuration(name: str, seed: int, out: str, options: argparse.Namespace) -> dict[str, Any]:
    file, extra = PRESETS[name]
    values = read_yaml(find_configuration(file))
    budget = (
        {"max_minutes": options.minutes, "max_epochs": 100_000} if options.minutes else {"max_epochs": options.epochs}
    )
    return {
        "task": options.task,
        "data": {"train": [options.data], "val": [options.data]},
        "model": values["model"] | {"cutoff": options.cutoff},
        "output_mlp": [32],
        "displacement_head": "gradient",
        "loss": LOSSES[options.task],
        "optimizer": OPTIMIZER,
        "run": budget
        | {"out": out, "seed": seed, "batch_size": options.batch_size, "val_batch_size": 16, "progress": False}
        | {"val_every": options.epochs if options.epochs else 100_000},  # the last weights count
    } | extra


def run_one(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train, evaluate, and tell what it took; in a process of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = train(from_mapping(configuration(name, seed, f"{folder}/run", options)))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        last = read_checkpoint(result.run / LAST)
        model = saved.load(result.run)
        splits = evaluate(result.run, options.data, progress=False)["splits"]
    rows = {split: found["rows"] for split, found in splits.items() if split != "train"}
    return {
        "network": name,
        "seed": seed,
        "budget": f"{options.minutes:g} min" if options.minutes else f"{options.epochs} epochs",
        "seconds": result.seconds,
        "steps": last["global_step"],
        "epochs": last["epoch"] + 1,
        "memory_mb": memory,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "splits": {
            split: {("network" if k == 0 else title): row for k, (title, row) in enumerate(found.items())}
            for split, found in rows.items()
        },
    }


def shown(results: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """A table of mean ± standard deviation over seeds: a row for each network, a column for each split, trivial
    baselines below."""
    splits = list(results[0]["splits"])
    lines = []

    def cell(found: list[float]) -> str:
        return f"{np.mean(found):.4f}" + (f" ± {np.std(found, ddof=1):.4f}" if len(found) > 1 else "")

    for network in [name for name in PRESETS if any(r["network"] == name for r in results)]:
        mine = [r for r in results if r["network"] == network]
        seconds = np.median([r["seconds"] / r["steps"] for r in mine])
        cells = [network, str(len(mine)), f"{mine[0]['n_parameters']:,}", f"{seconds:.3f}"]
        cells += [f"{np.mean([r['epochs'] for r in mine]):.1f}", f"{max(r['memory_mb'] for r in mine):.0f}"]
        cells += [cell([r["splits"][s]["network"][metric] for r in mine]) for s in splits]
        lines.append(cells)
    for title, row in results[0]["splits"][splits[0]].items():
        if title != "network" and metric in row:
            cells = [f"{results[0]['splits'][s][title][metric]:.4f}" for s in splits]
            lines.append([title, *[""] * 5, *cells])
    return table(["", "seeds", "parameters", "s/step", "epochs", "MB", *splits], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="data set directory")
    parser.add_argument("out", type=Path, help="JSON lines")
    parser.add_argument("--task", choices=SHOWN, default="s2ef")
    parser.add_argument("--networks", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, help="budget of time")
    parser.add_argument("--epochs", type=int, help="budget of epochs")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--cutoff", type=float, default=5.0)
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if bool(options.minutes) == bool(options.epochs):
        parser.error("give one of --minutes and --epochs")
    if options.one:
        print(json.dumps(run_one(options.one[0], int(options.one[1]), options)))
        return
    wanted = [(network, seed) for seed in options.seeds for network in options.networks]
    done = with_missing(options.out, wanted, lambda r: (r["network"], r["seed"]))
    chosen = [r for r in done if r["network"] in options.networks]
    tables = {metric: shown(chosen, metric) for metric in SHOWN[options.task]}
    print("\n\n".join(f"{metric}\n\n{markdown(found)}" for metric, found in tables.items()))
    if options.json:
        write(options.json, f"Networks trained alike: {options.task}", tables)


if __name__ == "__main__":
    main()
