"""`equicat bench data`: how fast, and in how much memory, a store is read; beside it fairchem reading its own LMDB."""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from equicat import __version__
from equicat.bench.peers import run_fairchem as bench_fairchem
from equicat.bench.peers.run_fairchem import resident
from equicat.data.batches import BatchSampler, batches
from equicat.data.datasets import Subset
from equicat.data.neighbors import neighbor_list
from equicat.data.readers import write
from equicat.data.store import Store
from equicat.errors import InputError
from equicat.options.values import Checked, Cutoff, Positive

TARGETS = {"2M": 2_000_000, "20M": 20_000_000, "134M": 133_934_018}
"""OC20's training sets, for the extrapolation."""


@dataclass(frozen=True)
class DataBenchConfig(Checked):
    """Options of `equicat bench data`. It measures in one process and one thread, with files in the page cache."""

    peer_python: str | None = None
    """Python of an environment with fairchem-core 1.10, to measure beside us."""
    n_read: Positive = 5000
    """Structures to read in random order."""
    n_batched: Positive = 500
    """Structures of which batches with graphs are made."""
    batch_size: Positive = 16
    """Structures in a batch."""
    cutoff: Cutoff = 6.0
    """Distance (Å) up to which two atoms are neighbours in the graphs."""
    repeats: Positive = 3
    """Times that all measurements take turns; medians count."""
    stream: bool = True
    """Read all of the store once, as an epoch does, and watch the memory."""


def bench_data(store: str | Path, config: DataBenchConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure and compare.

    Args:
        store: with energies and forces.
        config: how.
        say: gets a line on each measurement.

    Returns:
        What ``--json`` writes: rates in structures a second, memory in MB, and what they come to for OC20's sizes.

    Raises:
        InputError: if there is no such store, or the peer fails.
    """
    data = Store(store)
    n = min(config.n_read, len(data))
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(data))[:n]
    order = rng.permutation(n).tolist()
    runs: dict[str, list[dict[str, Any]]] = {}
    written: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "equicat": partial(_in_own_process, _read_store, str(store), chosen[order].tolist(), config)
        }
        if config.peer_python is not None:
            write(Path(folder) / "peer.extxyz", (data[int(i)] for i in chosen))
            for edges in (False, True):
                name = f"fairchem, edges {'stored' if edges else 'made'}"
                lmdb = {"lmdb": f"{folder}/{edges}.lmdb", "edges": edges, "cutoff": config.cutoff}
                written[name] = _peer(config, "write", {**lmdb, "extxyz": f"{folder}/peer.extxyz"})
                say(f"{name}: LMDB written, {written[name]['structures_per_second']:,.0f} structures/s")
                how = {**lmdb, "order": order, "n_batched": config.n_batched, "batch_size": config.batch_size}
                measures[name] = partial(_peer, config, "read", how)
        for _ in range(config.repeats):
            for name, measure in measures.items():
                runs.setdefault(name, []).append(measure())
                last = _rates(runs[name][-1])
                say(f"{name}: read {last['read']:,.0f}/s, read + graph + batch {last['batches']:,.0f}/s")
    rows = {name: _summary(results) for name, results in runs.items()}
    for name, values in written.items():
        rows[name] |= {"written": values}
    result = {"machine": _machine(), "settings": vars(config) | {"peer_python": None}, "store": _of_store(data)}
    result |= {"rows": rows, "extrapolation": _extrapolation(data, rows["equicat"])}
    result["times_faster"] = {
        name: {key: rows["equicat"][key] / row[key] for key in ("read", "batches")}
        for name, row in rows.items()
        if name != "equicat"
    }
    if config.stream:
        result["stream"] = _in_own_process(_stream, str(store))
    return result


def as_text(result: Mapping[str, Any]) -> str:
    """The table that the command prints."""
    head = f"{'':<24}{'read [1/s]':>14}{'+graph+batch [1/s]':>20}{'open [s]':>10}{'own memory [MB]':>17}"
    lines = [head]
    for name, row in result["rows"].items():
        numbers = f"{row['read']:>14,.0f}{row['batches']:>20,.0f}{row['open']:>10.3f}{row['own_memory']:>17,.0f}"
        lines.append(f"{name:<24}{numbers}")
    for name, ratio in result["times_faster"].items():
        lines.append(f"against {name}: read {ratio['read']:.1f} x, read + graph + batch {ratio['batches']:.1f} x")
    if "stream" in result:
        s = result["stream"]
        memory = ", ".join(f"{m['own']:.0f}+{m['files']:.0f}" for m in s["memory"])
        lines.append(f"an epoch: {s['structures_per_second']:,.0f} structures/s; memory (own + mapped, MB): {memory}")
    for name, row in result["extrapolation"].items():
        lines.append(f"{name}: {row['gigabytes']:,.0f} GB, reading it once {row['hours_read']:,.2f} h in one process")
    return "\n".join(lines)


def _read_store(path: str, order: list[int], config: DataBenchConfig) -> dict[str, Any]:
    torch.set_num_threads(1)
    before = resident()
    started = time.perf_counter()
    store = Store(path)
    opened = time.perf_counter()
    for i in order:
        store[i]
    read = time.perf_counter() - opened
    after_reading = resident()
    started_batches = time.perf_counter()
    batched = Subset(store, np.array(order[: config.n_batched]))
    n_edges = sum(batch.n_edges for batch in batches(batched, config.cutoff, config.batch_size))
    return {
        "open": opened - started,
        "read": read,
        "n_read": len(order),
        "batches": time.perf_counter() - started_batches,
        "n_batched": min(config.n_batched, len(order)),
        "n_edges": n_edges,
        "memory": {"before": before, "read": after_reading, "batches": resident()},
    }


def _stream(path: str) -> dict[str, Any]:
    """Read every structure in the order of a shuffled epoch; memory at eleven points."""
    store = Store(path)
    sampler = iter(BatchSampler(len(store), 16, shuffle=True))
    n_batches = -(-len(store) // 16)
    memory, started = [resident()], time.perf_counter()
    for _ in range(10):
        for numbers in islice(sampler, -(-n_batches // 10)):
            for i in numbers:
                store[i]
        memory.append(resident())
    return {"structures_per_second": len(store) / (time.perf_counter() - started), "memory": memory}


def _in_own_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The function's result; a process of its own, so that memory is that of this measurement only."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _peer(config: DataBenchConfig, what: str, options: dict[str, Any]) -> dict[str, Any]:
    # -I: modules of its own environment only, none of ours.
    command = [str(config.peer_python), "-I", bench_fairchem.__file__, what, json.dumps(options)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError) as error:
        stderr = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        last = (stderr or "no output").strip().splitlines()[-1]
        raise InputError(f"{config.peer_python}: cannot {what} ({last}); does it have fairchem-core 1.10?") from error


def _rates(run: dict[str, Any]) -> dict[str, float]:
    return {"read": run["n_read"] / run["read"], "batches": run["n_batched"] / run["batches"], "open": run["open"]}


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    rates = [_rates(run) for run in runs]
    row: dict[str, Any] = {key: median(rate[key] for rate in rates) for key in rates[0]}
    own = [run["memory"]["batches"]["own"] - run["memory"]["before"]["own"] for run in runs]
    return row | {"own_memory": median(own), "n_edges": runs[0]["n_edges"], "runs": runs}


def _of_store(store: Store) -> dict[str, Any]:
    size = sum(shard["bytes"] for shard in store.shards)
    sample = [len(neighbor_list(store[int(i)], 6.0)[0][0]) for i in np.linspace(0, len(store) - 1, 20)]
    return {
        "n_structures": len(store),
        "n_shards": len(store.shards),
        "atoms": float(store.n_atoms.mean()),
        "edges_within_6": float(np.mean(sample)),
        "precision": store.precision,
        "bytes_per_structure": size / len(store),
    }


def _extrapolation(store: Store, row: dict[str, Any]) -> dict[str, Any]:
    size = sum(shard["bytes"] for shard in store.shards) / len(store)
    return {
        name: {
            "gigabytes": n * size / 1e9,
            "hours_read": n / row["read"] / 3600,
            "hours_read_graph_batch": n / row["batches"] / 3600,
        }
        for name, n in TARGETS.items()
    }


def _machine() -> dict[str, Any]:
    return {
        "processors": len(os.sched_getaffinity(0)),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "equicat": __version__,
        "platform": platform.machine(),
        "arguments": sys.argv[1:],
    }
