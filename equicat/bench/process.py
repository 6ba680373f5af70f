"""The two sides of a comparison as processes that are asked, one at a time, to compute."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from equicat.bench import peers
from equicat.errors import InputError

PEER_PROGRAM = Path(peers.__file__).parent / "run_nequip_allegro.py"


@dataclass(frozen=True)
class Contestant:
    """One side of a comparison: equicat or the peer package, and how it is run."""

    name: str
    ours: bool = False
    mode: str = "eager"
    """How the peer runs: eager, compile or aotinductor."""
    modifier: str | None = None
    """Name of the tensor-product kernel that the peer uses; None leaves it as it is."""
    recompute: bool = False
    """Whether equicat computes activations again in training instead of keeping them."""
    native: bool = True
    """Whether equicat uses its kernels; otherwise PyTorch's operators."""
    tf32: bool = False
    """Whether equicat multiplies matrices in TF32, as tensor cores do."""
    cuda_graphs: bool = True
    """Whether equicat records small inferences and training steps as CUDA graphs, on a GPU with Triton."""
    command: tuple[str, ...] = ()
    """Command of a program of its own that answers the same requests; empty for equicat's or the peer's."""

    @property
    def trains(self) -> bool:
        """Whether a training step can be measured."""
        return self.mode != "aotinductor"


class Failed(Exception):
    """A contestant could not do what it was asked for; the message says why."""


class Process:
    """One contestant, running; answers to :meth:`ask`, and ends with the ``with`` block.

    Args:
        contestant: what runs.
        threads: of the processor.
        peer_python: the interpreter of the peer's environment.
    """

    def __init__(self, contestant: Contestant, threads: int, peer_python: str | None):
        self.contestant, self.threads = contestant, threads
        if contestant.command:
            command = list(contestant.command)
        elif contestant.ours:
            command = [sys.executable, "-m", "equicat.bench.worker"]
        else:
            command = [peer_python or sys.executable, str(PEER_PROGRAM)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        if not contestant.native:
            environment["EQUICAT_NATIVE"] = "0"
        try:
            self.process = subprocess.Popen(
                command,
                text=True,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise InputError(f"--peer_python {command[0]}: {error.strerror}; give a Python interpreter") from error

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, do: str, **request: Any) -> Any:
        """The answer to one request.

        Raises:
            Failed: if the contestant could not, or is gone (out of memory, for one).
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self.process.wait()
            raise Failed(f"its process ended with status {status}" + (" (out of memory?)" if status == -9 else ""))
        answer = json.loads(line)
        if "failed" in answer:
            raise Failed(answer["failed"])
        return answer["answer"]
