"""Kill a conversion ten times at random moments, let it finish, and compare it with an undisturbed one, byte for byte.

python benchmarks/kill_and_resume.py RAW WORK --kills 10 --longest 20
"""

import argparse
import filecmp
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from envelope import table, write


def command(raw: Path, out: Path) -> list[str]:
    how = ["--split", "200k", "--workers", "2", "--progress", "false"]
    return [sys.executable, "-m", "equicat", "data", "oc20", str(out), "--from", str(raw), *how]


def difference(a: Path, b: Path) -> list[str]:
    """Files that are in one only, or differ."""
    names = [{p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()} for root in (a, b)]
    assert names[0], "there is nothing to compare"
    changed = [n for n in names[0] & names[1] if not filecmp.cmp(a / n, b / n, shallow=False)]
    return sorted([*(names[0] ^ names[1]), *changed])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path)
    parser.add_argument("work", type=Path, help="directory to make")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--longest", type=float, default=20.0, help="seconds until a kill, at most")
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    options = parser.parse_args()
    undisturbed, killed = options.work / "undisturbed", options.work / "killed"
    started = time.monotonic()
    subprocess.run(command(options.raw, undisturbed), check=True)
    print(f"undisturbed: {time.monotonic() - started:.1f} s", flush=True)
    rng = random.Random(0)
    kills: list[tuple[int, str, int]] = []
    while len(kills) < options.kills:
        process = subprocess.Popen(command(options.raw, killed), start_new_session=True)
        wait = rng.uniform(5.0, options.longest)
        try:
            process.wait(wait)
            print("finished before it was killed; give --longest a smaller value", flush=True)
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            shards = len(list(killed.glob("s2ef/.train.partial/store/*.safetensors")))
            kills.append((len(kills) + 1, f"{wait:.1f}", shards))
            print(f"kill {len(kills)} after {wait:.1f} s, {shards} shards there", flush=True)
    subprocess.run(command(options.raw, killed), check=True)
    found = difference(undisturbed / "s2ef", killed / "s2ef")
    outcome = "the same bytes" if not found else f"different: {', '.join(found)}"
    print(outcome)
    if options.json:
        results = {"": table(["kill", "after [s]", "shards written"], kills)}
        write(options.json, "A conversion killed at random moments", results, notes=[f"Compared: {outcome}."])
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
