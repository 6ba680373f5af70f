"""Training on one process and on two: structures a second, and the share of their time that processes wait.

    python benchmarks/ranks.py 'PATH/oc20_mini/trajectories/*.xz' WORK --json benchmarks/results/ranks.json

Frames of 17 to 185 atoms in batches of so many structures, or filled by edges; one thread a process. A step of two
processes has the same structures, or edges, as one of one process. Each way trains two epochs in turn with the others,
several times; the second epoch is timed, and the best is shown, for the cores may do other work.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from envelope import markdown, table, write

from equicat.run_directory import METRICS

WAYS = {
    "1 process": {"run.devices": 1, "run.batch_size": 12},
    "2 processes": {"run.devices": 2, "run.batch_size": 6},
    "1 process, by edges": {"run.devices": 1, "run.edge_budget": 28_000},
    "2 processes, by edges": {"run.devices": 2, "run.edge_budget": 14_000},
}


def epoch(way: str, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of the second epoch, and the share of them that processes waited."""
    out = options.work / "run"
    shutil.rmtree(out, ignore_errors=True)
    values = WAYS[way] | {
        "data.train": f"['{options.trajectories}']",
        "data.val": f"['{options.trajectories}']",
        "data.n_train": options.n,
        "data.n_val": 4,
        "run.max_epochs": 2,
        "run.max_minutes": "null",
        "run.val_every": 2,
        "run.progress": "false",
        "run.accelerator": "cpu",
        "run.out": out,
    }
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "equicat", "train", "oc20_mini", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    with (out / METRICS).open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    return float(second["time_s"]) - float(first["time_s"]), float(second["idle"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trajectories", help="pattern of the files of oc20_mini")
    parser.add_argument("work", type=Path, help="folder for runs")
    parser.add_argument("--n", type=int, default=192, help="frames of an epoch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way, measured in found.items():
            measured.append(epoch(way, options))
            print(way, measured[-1], file=sys.stderr, flush=True)
    rows, single = [], 0.0
    for way, measured in found.items():
        rate = options.n / min(seconds for seconds, _ in measured)
        single = rate if way.startswith("1") else single
        idle = "" if way.startswith("1") else f"{100 * float(np.median([share for _, share in measured])):.0f}"
        rows.append([way, f"{rate:.1f}", f"{rate / single:.2f}", idle])
    shown = table(["batches", "structures a second", "to 1 process", "waiting [%], median"], rows)
    print(markdown(shown))
    if options.json:
        numbers = f"--n {options.n} --repeats {options.repeats}"
        command = f"python benchmarks/ranks.py 'PATH/oc20_mini/trajectories/*.xz' WORK {numbers}"
        write(options.json, "Training on two processes", {"": shown}, command=[f"{command} --json FILE"])


if __name__ == "__main__":
    main()
