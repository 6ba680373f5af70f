"""The measured side of `equicat bench`: one model in one process, which answers requests, a line of JSON each.

It imports PyTorch and NumPy only, so that the environment of another package can run it.
"""

import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch


class Contestant(Protocol):
    """A program to measure. Inference and training return energies [n_systems] (eV) and forces [n_atoms, 3] (eV/Å)."""

    setup_s: dict[str, float]
    """Seconds, by what they were spent on: ``model``, ``neighbors`` (the neighbour list and the batch)."""
    n_edges: int

    def inference(self) -> tuple[torch.Tensor, torch.Tensor]: ...

    def training(self) -> tuple[torch.Tensor, torch.Tensor]: ...

    def neighbors(self) -> None: ...


def systems(path: str) -> Iterator[dict[str, np.ndarray]]:
    """``numbers``, ``positions``, ``cell`` and ``pbc`` of every system in a file that :mod:`equicat.bench` wrote."""
    with np.load(path) as file:
        arrays = dict(file)
    ends = np.cumsum(arrays["n_atoms"])[:-1]
    per_atom = [np.split(arrays[name], ends) for name in ("numbers", "positions")]
    for numbers, positions, cell, pbc in zip(*per_atom, arrays["cell"], arrays["pbc"], strict=True):
        yield {"numbers": numbers, "positions": positions, "cell": cell, "pbc": pbc}


def loss(energy: torch.Tensor, forces: torch.Tensor) -> torch.Tensor:
    """A training loss of energies [n_systems] and forces [n_atoms, 3]; the labels are zeros."""
    return energy.double().square().mean() + forces.double().square().mean()


def serve(make: Callable[[dict[str, Any]], Contestant], extra: dict[str, Callable[..., Any]] | None = None) -> None:
    """Answer requests until the input ends.

    Args:
        make: builds the contestant from the first request, ``start``.
        extra: further requests; each is called with the contestant and the request.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is not an answer
    contestant: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        try:
            if do == "start":
                torch.set_num_threads(request["threads"])
                contestant = make(request)
                answer: Any = {"n_edges": contestant.n_edges, "setup_s": contestant.setup_s}
            elif do == "limits":
                answer = limits(request["device"])
            elif do in (extra or {}):
                answer = (extra or {})[do](contestant, request)
            else:
                answer = REQUESTS[do](contestant, request)
            print(json.dumps({"answer": answer}), file=answers, flush=True)
        except Exception as error:  # the other side decides what a failure means
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            print(json.dumps({"failed": reason[:300]}), file=answers, flush=True)


def _timed(function: Callable[[], Any]) -> float:
    _wait()
    start = time.perf_counter()
    function()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _seconds(contestant: Any, request: dict[str, Any]) -> float:
    """Seconds that one call of the contestant's method takes."""
    return _timed(getattr(contestant, request["what"]))


def _peak(contestant: Any, request: dict[str, Any]) -> dict[str, float]:
    """Largest memory of one call of ``what``, and memory before it, in GB: of the process, or of the GPU."""
    function = getattr(contestant, request["what"])
    gc.collect()
    if torch.cuda.is_available() and request["device"] != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        _wait()
        return {"before_gb": before / 1e9, "peak_gb": torch.cuda.max_memory_allocated() / 1e9}
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the largest size so far
    resident = _resident("VmRSS")
    function()
    return {"before_gb": resident, "peak_gb": _resident("VmHWM")}


def _resident(name: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024 / 1e9


def _outputs(contestant: Any, request: dict[str, Any]) -> None:
    """Energies and forces, to compare, into a file."""
    energy, forces = contestant.inference()
    np.savez(
        request["path"], energy=energy.detach().double().cpu().numpy(), forces=forces.detach().double().cpu().numpy()
    )


def _release(contestant: Any, request: dict[str, Any]) -> None:
    """Give memory of the GPU that is not in use back, for other processes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


REQUESTS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "seconds": _seconds,
    "peak": _peak,
    "outputs": _outputs,
    "release": _release,
}


def limits(device: str) -> dict[str, float]:
    """GFLOP/s of a large matrix product in float32, and GB/s of a large copy, read and written."""
    n, m = (2048, 1 << 26) if device == "cpu" else (8192, 1 << 28)
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    x, y = torch.randn(m, device=device), torch.empty(m, device=device)
    product = statistics.median(_timed(lambda: torch.mm(a, b)) for _ in range(7))
    copy = statistics.median(_timed(lambda: y.copy_(x)) for _ in range(7))
    return {"matmul_gflops": 2 * n**3 / product / 1e9, "copy_gbs": 2 * 4 * m / copy / 1e9}


def seconds_since(start: float) -> float:
    """Rounded to a tenth of a millisecond."""
    return round(time.perf_counter() - start, 4)
