"""Trainings side by side: processes that share the cores and the GPUs of one machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO

import torch

from equicat.errors import InputError
from equicat.training.config import TrainConfig, as_yaml
from equicat.training.trainer import started_processes

INTERRUPTED = 130
"""Status of a command that an interrupt, or SIGTERM in a training, ended."""
LAUNCHERS = ("SLURM_", "TORCHELASTIC_", "PMI_", "OMPI_")
RANKS = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "ROLE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""Variables by which training would find other processes to train one model with."""


def environment_of(k: int, n: int, n_gpus: int, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of process ``k`` of ``n``: alone in its training, with its share of the cores and one GPU.

    Args:
        k: number of the process.
        n: processes on this machine.
        n_gpus: GPUs of this machine.
        environment: of this process.
    """
    own = {name: v for name, v in environment.items() if name not in RANKS and not name.startswith(LAUNCHERS)}
    n_cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    own.setdefault("OMP_NUM_THREADS", str(max(1, n_cores // n)))
    if n > 1 and n_gpus > 1:
        visible = environment.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(n_gpus)))).split(",")
        own["CUDA_VISIBLE_DEVICES"] = visible[k % len(visible)]
    return own


def train_side_by_side(members: Sequence[TrainConfig], at_once: int) -> None:
    """Train the models of an ensemble, several at a time, each by `equicat train` in a process of its own.

    Prints the output of each when all of its group have ended. An interrupt from the keyboard reaches the processes,
    too, and SIGTERM is passed on to them; both end this function when each process has kept what it has.

    Args:
        members: configurations of one model each.
        at_once: so many are trained at the same time.

    Raises:
        InputError: if one ended early; what is finished is kept, and no other one begins. Or if torchrun or SLURM
            started several processes, which train one model together.
        KeyboardInterrupt: if one was interrupted.
    """
    here, n_nodes = started_processes() or (1, 1)
    if here * n_nodes > 1:
        raise InputError(
            f"run.members_at_once is {at_once}, but {here * n_nodes} processes were started (torchrun, SLURM), which "
            "train one model together; leave it out, or start one process"
        )
    for first in range(0, len(members), at_once):
        _train_group(members[first : first + at_once])


def _train_group(members: Sequence[TrainConfig]) -> None:
    runs = [member.run.out for member in members]
    print(f"training at the same time: {', '.join(runs)}; how far each is, its metrics.csv says", flush=True)
    with TemporaryDirectory() as folder, ExitStack() as files:
        configs = [Path(folder) / f"{k}.yaml" for k in range(len(members))]
        for config, member in zip(configs, members, strict=True):
            config.write_text(as_yaml(replace(member, run=replace(member.run, progress=False))))
        outputs = [files.enter_context(TemporaryFile("w+")) for _ in members]
        found = statuses([["equicat", "train", str(config)] for config in configs], outputs)
        for output in outputs:
            output.seek(0)
            print(f"\n{output.read()}", end="", flush=True)
    if INTERRUPTED in found:
        raise KeyboardInterrupt
    failed = {run: status for run, status in zip(runs, found, strict=True) if status}
    if failed:
        raise InputError(
            f"{', '.join(failed)}: training ended with status {next(iter(failed.values()))}, as said above; what is "
            "finished is kept, and the same command with `--run.resume true` goes on"
        )


def statuses(programs: Sequence[Sequence[str]], outputs: Sequence[IO[str] | None]) -> list[int]:
    """Run programs at the same time, each with its share of this machine; how each ended.

    SIGTERM is passed on to them, and no exception leaves one behind.

    Args:
        programs: a module of Python and its arguments, each.
        outputs: where each prints; None is where this process does.
    """
    n_gpus, processes = torch.cuda.device_count(), list[subprocess.Popen[bytes]]()

    def pass_on(number: int, _: object) -> None:
        for process in processes:
            process.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        for k, (program, output) in enumerate(zip(programs, outputs, strict=True)):
            environment = environment_of(k, len(programs), n_gpus, os.environ)
            processes.append(subprocess.Popen([sys.executable, "-m", *program], env=environment, stdout=output))
    finally:
        ended = [process.wait() for process in processes]
        signal.signal(signal.SIGTERM, before)
    return ended
