"""Seconds and memory of a training step and of an inference: ours beside fairchem 1.10, on 8 slabs of 38 atoms.

    python benchmarks/baselines_speed.py OUT.json --peer_python FAIRCHEM_ENV/bin/python --ocp OCP

Each side runs in a process and an environment of its own (fairchem's: see fairchem_reference.py), and a repetition of
one follows one of the other, so that whatever else the machine does slows both; two threads need a quiet machine, for
they wait for each other. Published sizes of OC20, cutoff 6 Å.
fairchem's graphs are cut to the 50 nearest neighbours, as OC20's are; so are ours for the networks that can use such a
list, the others get all pairs. The GemNets, which take most time and memory, get two of the slabs. Models that OUT has
are not measured again; without ``--peer_python`` ours are measured alone. ``--json`` writes the table for tables.py.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from envelope import markdown, table, write

from equicat.bench.process import Contestant, Failed, Process
from equicat.bench.speed import BenchConfig, interleaved, slabs, write_systems
from equicat.files import write_json
from equicat.run_directory import environment

WORKER = Path(__file__).with_name("baselines_speed_worker.py")
N_SYSTEMS = {"gemnet-dt": 2, "gemnet-t": 2}
"""Slabs for the networks that get fewer than all eight."""
MODELS = ("schnet-200k", "schnet-2M", "cgcnn-200k", "cgcnn-2M", "dimenet++-200k", "gemnet-dt", "gemnet-t")
WHATS = ("inference", "training")
Row = dict[str, Any]


def measure(name: str, sides: dict[str, str], systems: Path, config: BenchConfig) -> dict[str, Row]:
    """Times in s, memory in GB, edges and parameters of each side (name: interpreter), or why it failed."""
    rows: dict[str, Row] = {}
    with ExitStack() as stack:
        running = {}
        for side, python in sides.items():
            contestant = Contestant(side, command=(python, str(WORKER), side))
            process = stack.enter_context(Process(contestant, config.threads, None))
            try:
                rows[side] = process.ask(
                    "start", name=name, threads=config.threads, systems=str(systems), n_systems=N_SYSTEMS.get(name)
                )
                rows[side] |= process.ask("about")
                for what in WHATS:
                    rows[side][f"{what}_memory"] = process.ask("peak", what=what, device="cpu")
                running[side] = process
            except Failed as error:
                rows[side] = {"failed": str(error)}
        for what in WHATS:
            for side, seconds in interleaved(running, what, config, f"{name}: {what}").items():
                rows[side] |= {f"{what}_s": statistics.median(seconds), f"{what}_all_s": seconds}
    return rows


def shown(results: dict[str, dict[str, Row]]) -> dict[str, Any]:
    """A table: one row a model, ours / fairchem, and fairchem's time over ours; peak memory of the process in GB."""
    columns = ["", "parameters", "edges", "inference [s]", "training step [s]", "inference [GB]", "training [GB]"]
    lines = []
    for name, rows in results.items():
        found = [row for row in rows.values() if "failed" not in row]
        cells = [" / ".join(f"{row['parameters']:,}" for row in found)]
        cells.append(" / ".join(f"{row['n_edges']:,} ({row['edges']})" for row in found))
        for what in WHATS:
            ratio = f" = **{found[1][f'{what}_s'] / found[0][f'{what}_s']:.2f}x**" if len(found) == 2 else ""
            cells.append(" / ".join(f"{row[f'{what}_s']:.3f}" for row in found) + ratio)
        cells += [" / ".join(f"{row[f'{what}_memory']['peak_gb']:.2f}" for row in found) for what in WHATS]
        failed = [f"{side}: {row['failed']}" for side, row in rows.items() if "failed" in row]
        lines.append([" ".join([name, *failed]), *cells])
    return table(columns, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON, written after each model")
    parser.add_argument("--peer_python", help="interpreter of an environment with fairchem 1.10")
    parser.add_argument("--ocp", help="folder that holds the package ocpmodels (for CGCNN)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=5, help="of each, interleaved; the median counts")
    parser.add_argument("--threads", type=int, default=2, help="with 1, processor time is told instead of time")
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    options = parser.parse_args()
    if options.ocp:
        os.environ["PYTHONPATH"] = os.pathsep.join([options.ocp, *filter(None, [os.environ.get("PYTHONPATH")])])
    sides = {"equicat": sys.executable} | ({"fairchem": options.peer_python} if options.peer_python else {})
    config = BenchConfig(threads=options.threads, repeats=options.repeats)
    out = json.loads(options.out.read_text()) if options.out.exists() else {"models": {}}
    out["environment"] = environment()
    with tempfile.TemporaryDirectory() as folder:
        write_systems(Path(folder) / "systems.npz", slabs())
        for name in options.models:
            if name not in out["models"]:
                out["models"][name] = measure(name, sides, Path(folder) / "systems.npz", config)
                write_json(options.out, out)
    results = shown(out["models"])
    print(markdown(results))
    if options.json:
        write(options.json, "Baselines beside fairchem 1.10: speed and memory", {"": results})


if __name__ == "__main__":
    main()
