"""A measurement as a file of ``results``, which tables.py shows: numbers, and what, how and where was measured.

The scripts of this folder write such files with ``--json FILE``. What a command of equicat wrote gets its envelope by

    python benchmarks/envelope.py results/speed.json --kind speed --title "Speed beside nequip-allegro" \\
        --command "equicat bench speed --peer_python PEER --json speed.json" --numbers speed.json

on the machine that measured it.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equicat.files import replace_json
from equicat.run_directory import environment

KINDS = ("speed", "scaling", "data", "splits", "tables")
"""Forms of the numbers: as `equicat bench` or `equicat evaluate` write them, or ``{heading: {columns, rows}}``."""


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """A table, as tables.py shows it; every row has an entry for each column."""
    assert all(len(row) == len(columns) for row in rows)
    return {"columns": list(columns), "rows": [list(map(str, row)) for row in rows]}


def markdown(shown: Mapping[str, Any]) -> str:
    """A table as Markdown."""
    head = f"| {' | '.join(shown['columns'])} |\n|{'---|' * len(shown['columns'])}"
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in shown["rows"])])


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation; the mean alone of a single value."""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def by_package(checkout: Path, script: str, *words: str) -> Any:
    """The last line, of JSON, that a script prints in one thread with the package of a checkout, as a process."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", script, *words]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def with_missing(
    out: Path, wanted: Iterable[tuple[str | int, ...]], key: Callable[[dict[str, Any]], object]
) -> list[dict[str, Any]]:
    """The results in a file of JSON lines, and those of this script with ``--one KEY`` for each wanted key without one.

    Each key that is missing has a process of its own, whose last line is a result or a list of them in JSON.

    Args:
        out: the file; what is missing is added to it.
        wanted: keys, which are also the words after ``--one``.
        key: of a result; what is no key does not count.
    """
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    for one in wanted:
        if any(key(result) == one for result in done):
            continue
        command = [sys.executable, *sys.argv, "--one", *map(str, one)]
        line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        found = json.loads(line)
        results = found if isinstance(found, list) else [found]
        done += results
        with out.open("a") as file:
            file.write("".join(json.dumps(result) + "\n" for result in results))
    return done


def machine() -> str:
    """Processor, cores, GPUs and versions, in words."""
    about = environment()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else about["machine"]["processor"]
    versions = (f"PyTorch {about['versions']['torch']}", f"equicat at {about['commit']}")
    return ", ".join([f"{os.cpu_count()} cores of {processor}", *about["devices"], *versions])


def this_command() -> list[str]:
    """The command that is running, as one would type it in the repository."""
    return [shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])]


def write(
    path: Path,
    title: str,
    results: Mapping[str, Any],
    *,
    kind: str = "tables",
    command: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> None:
    """Write a measurement with its envelope.

    Args:
        path: the JSON file.
        title: heading in RESULTS.md.
        results: the numbers.
        kind: their form, one of ``KINDS``.
        command: lines that repeat the measurement; the running command if there are none.
        notes: sentences below the numbers.
    """
    assert kind in KINDS, kind
    lines = list(command) or this_command()
    envelope = {"title": title, "kind": kind, "command": lines, "machine": machine(), "notes": list(notes)}
    replace_json(path, envelope | {"results": results})


def main() -> None:
    """Put a file of numbers into an envelope."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file in benchmarks/results")
    parser.add_argument("--numbers", type=Path, required=True, help="JSON that a command of equicat wrote")
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--title", required=True)
    parser.add_argument("--command", nargs="+", required=True, help="lines that repeat the measurement")
    parser.add_argument("--notes", nargs="*", default=[], help="sentences below the numbers")
    options = parser.parse_args()
    results = json.loads(options.numbers.read_text(encoding="utf-8"))
    write(options.out, options.title, results, kind=options.kind, command=options.command, notes=options.notes)


if __name__ == "__main__":
    main()
