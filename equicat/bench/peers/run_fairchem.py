"""The peer's side of `equicat bench data`: fairchem 1.10 writes its own LMDB and reads it with its own classes.

Runs in an environment of its own, by the interpreter that has fairchem; imports nothing of equicat. Two commands,
``write`` and ``read``, each with one JSON object, each printing one.
"""

import json
import pickle
import resource
import sys
import time
from pathlib import Path
from typing import Any


def resident() -> dict[str, float]:
    """Memory of this process in MB: its own, of mapped files, and the largest so far."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, files = (int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
    return {"own": own, "files": files, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def write(options: dict[str, Any]) -> dict[str, Any]:
    """From extended XYZ to an LMDB as fairchem's ``preprocess_ef.py`` makes it, with or without edges."""
    import ase.io
    import lmdb
    import torch
    from fairchem.core.preprocessing import AtomsToGraphs

    torch.set_num_threads(1)
    convert = AtomsToGraphs(
        max_neigh=50,
        radius=options["cutoff"],
        r_energy=True,
        r_forces=True,
        r_fixed=True,
        r_distances=False,
        r_edges=options["edges"],
    )
    Path(options["lmdb"]).unlink(missing_ok=True)
    environment = lmdb.open(options["lmdb"], map_size=1 << 40, subdir=False, meminit=False, map_async=True)
    started, n = time.perf_counter(), 0
    for atoms in ase.io.iread(options["extxyz"], ":"):
        data = convert.convert(atoms)
        data.tags = torch.LongTensor(atoms.get_tags())
        data.sid, data.fid = n, 0
        with environment.begin(write=True) as transaction:
            transaction.put(f"{n}".encode(), pickle.dumps(data, protocol=-1))
        n += 1
    with environment.begin(write=True) as transaction:
        transaction.put(b"length", pickle.dumps(n, protocol=-1))
    environment.sync()
    seconds = time.perf_counter() - started
    environment.close()
    size = Path(options["lmdb"]).stat().st_blocks * 512
    return {"structures_per_second": n / seconds, "bytes_per_structure": size / n}


def read(options: dict[str, Any]) -> dict[str, Any]:
    """Seconds to open, and to read structures in a given order: alone, and as batches with graphs."""
    import torch
    from fairchem.core.common.utils import radius_graph_pbc
    from fairchem.core.datasets.lmdb_dataset import LmdbDataset, data_list_collater

    torch.set_num_threads(1)
    order, size = options["order"], options["batch_size"]
    before = resident()
    started = time.perf_counter()
    dataset = LmdbDataset({"src": options["lmdb"]})
    opened = time.perf_counter()
    for i in order:
        dataset[i]
    done = time.perf_counter()
    reading = {"open": opened - started, "read": done - opened, "n_read": len(order)}
    after_reading = resident()
    batched = order[: options["n_batched"]]
    started = time.perf_counter()
    n_edges = 0
    for start in range(0, len(batched), size):
        batch = data_list_collater([dataset[i] for i in batched[start : start + size]], not options["edges"])
        if options["edges"]:
            n_edges += int(batch.neighbors.sum())
        else:
            n_edges += radius_graph_pbc(batch, options["cutoff"], 50, True)[0].shape[1]
    seconds = {**reading, "batches": time.perf_counter() - started, "n_batched": len(batched), "n_edges": n_edges}
    return seconds | {"memory": {"before": before, "read": after_reading, "batches": resident()}}


if __name__ == "__main__":
    print(json.dumps({"write": write, "read": read}[sys.argv[1]](json.loads(sys.argv[2]))))
