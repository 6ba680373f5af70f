"""Kill a long command at random moments, let it finish, and compare it with an undisturbed one, bit for bit.

python benchmarks/kill_and_resume.py conversion RAW WORK --kills 10 --longest 5
python benchmarks/kill_and_resume.py training DATA WORK --kills 20 --longest 1.2 --steps 2200

A conversion is compared file by file. A training is shorter than its first epoch, as real epochs take days; compared
are the weights that are saved, the averaged and current weights and the optimiser of the last checkpoint, and the rows
of metrics.csv without the clock.
"""

import argparse
import csv
import filecmp
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from envelope import table, write

from equicat.run_directory import LAST, METRICS, WEIGHTS, digest, has_checkpoint, read_checkpoint


@dataclass(frozen=True)
class Work:
    """A command that can be killed."""

    name: str
    command: Callable[[Path], list[str]]
    """The command line that begins the work in a folder, or goes on with it."""
    progress: Callable[[Path], int | str]
    """How far the work in a folder is."""
    unit: str
    difference: Callable[[Path, Path], list[str]]
    """Names the parts that differ between two folders."""


def conversion(raw: Path) -> Work:
    """A split of OC20 to a store."""

    def command(out: Path) -> list[str]:
        how = ["--split", "200k", "--workers", "2", "--progress", "false"]
        return [sys.executable, "-m", "equicat", "data", "oc20", str(out), "--from", str(raw), *how]

    def difference(a: Path, b: Path) -> list[str]:
        names = [{p.relative_to(root).as_posix() for p in (root / "s2ef").rglob("*") if p.is_file()} for root in (a, b)]
        assert names[0], "there is nothing to compare"
        changed = [n for n in names[0] & names[1] if not filecmp.cmp(a / n, b / n, shallow=False)]
        return sorted([*(names[0] ^ names[1]), *changed])

    def progress(out: Path) -> int:
        return len(list(out.glob("s2ef/.train.partial/store/*.safetensors")))

    return Work("A conversion", command, progress, "shards written", difference)


def training(data: Path, steps: int, every: int) -> Work:
    """So many steps of a small Allegro, fewer than its epoch has, with a checkpoint every few and some validations."""

    def command(out: Path) -> list[str]:
        resumable = has_checkpoint(out)
        if not resumable:
            shutil.rmtree(out, ignore_errors=True)  # killed before its first checkpoint
        options = {
            "data.n_val": 20,
            "optimizer.schedule": "cosine",
            "optimizer.warmup_steps": 10,
            "run.batch_size": 1,
            "run.max_epochs": 1,
            "run.max_steps": steps,
            "run.val_every": f"{3 * every} steps",
            "run.checkpoint_every": f"{every} steps",
            "run.progress": "false",
            "run.accelerator": "cpu",
            "run.resume": str(resumable).lower(),
            "run.out": str(out),
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [sys.executable, "-m", "equicat", "train", "small", "--data", str(data), *words]

    def state(out: Path) -> dict[str, str]:
        last = read_checkpoint(out / LAST)
        parts = ("state_dict", "current_model_state", "optimizer_states", "global_step", "batches")
        with (out / METRICS).open(newline="", encoding="utf-8") as file:
            rows = [{name: cell for name, cell in row.items() if name != "time_s"} for row in csv.DictReader(file)]
        weights = (out / WEIGHTS).read_bytes()
        return {part: digest(last[part]) for part in parts} | {"rows": digest(rows), WEIGHTS: digest(weights)}

    def difference(a: Path, b: Path) -> list[str]:
        first, second = state(a), state(b)
        return [part for part in first if first[part] != second[part]]

    def progress(out: Path) -> int:
        return read_checkpoint(out / LAST)["global_step"] if (out / LAST).is_file() else 0

    return Work("A training", command, progress, "steps saved", difference)


def options_of_command_line() -> argparse.Namespace:
    """The options, with the work to kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("conversion", "training"))
    parser.add_argument("data", type=Path, help="raw files, or a data set directory")
    parser.add_argument("out", type=Path, help="directory to make")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument(
        "--shortest", type=float, default=0.0, help="seconds from the first progress to a kill, at least"
    )
    parser.add_argument("--longest", type=float, default=2.0, help="seconds from the first progress to a kill, at most")
    parser.add_argument("--steps", type=int, default=300, help="of a training")
    parser.add_argument("--every", type=int, default=10, help="steps between two checkpoints of a training")
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    return parser.parse_args()


def main() -> None:
    options = options_of_command_line()
    work = conversion(options.data)
    if options.work == "training":
        work = training(options.data, options.steps, options.every)
    undisturbed, killed = options.out / "undisturbed", options.out / "killed"
    started = time.monotonic()
    subprocess.run(work.command(undisturbed), check=True, stdout=subprocess.DEVNULL)
    print(f"undisturbed: {time.monotonic() - started:.1f} s", flush=True)
    rng = random.Random(0)
    kills: list[tuple[int, str, int | str]] = []
    while len(kills) < options.kills:
        before = work.progress(killed)
        process = subprocess.Popen(work.command(killed), start_new_session=True, stdout=subprocess.DEVNULL)
        wait = rng.uniform(options.shortest, options.longest)
        while process.poll() is None and work.progress(killed) == before:
            time.sleep(0.05)
        try:
            process.wait(wait)
            print("finished before it was killed; give --longest a smaller value", flush=True)
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills.append((len(kills) + 1, f"{wait:.2f}", work.progress(killed)))
            print(f"kill {len(kills)} after {wait:.2f} s of progress, {kills[-1][2]} {work.unit}", flush=True)
    subprocess.run(work.command(killed), check=True, stdout=subprocess.DEVNULL)
    found = work.difference(undisturbed, killed)
    outcome = "the same bits" if not found else f"different: {', '.join(found)}"
    print(outcome)
    if options.json:
        results = {"": table(["kill", "after [s] of progress", work.unit], kills)}
        command = f"python benchmarks/kill_and_resume.py {options.work} DATA WORK --kills {options.kills}"
        command += f" --shortest {options.shortest} --longest {options.longest} --steps {options.steps}"
        notes = [f"Compared with an undisturbed one: {outcome}."]
        write(options.json, f"{work.name} killed at random moments", results, command=[command], notes=notes)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
