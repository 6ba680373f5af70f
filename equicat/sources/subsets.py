"""Smaller data sets drawn from a large one: nested, by seed and size."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from equicat.data.directory import require_store
from equicat.data.store import SHARD_SIZE, Store
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.options.values import Natural, Workers
from equicat.sources.packing import PackOptions, Piece, pack

NAMED_SIZES = {"10k": 10_000, "100k": 100_000, "200k": 200_000, "2M": 2_000_000}
"""The sizes that OC20's own subsets have."""


def size_of(size: str | int) -> int:
    """A number of structures from ``10k``, ``2M`` or digits.

    Raises:
        InputError: for anything else.
    """
    text = str(size)
    if text in NAMED_SIZES:
        return NAMED_SIZES[text]
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"size {text!r} is neither a number of structures nor one of {', '.join(NAMED_SIZES)}")
    return int(text)


def nested_subset(n_total: int, size: int, seed: int) -> Int[ndarray, "size"]:
    """Numbers, ascending, of ``size`` of ``n_total`` structures; with the same seed, a smaller one is in a larger one.

    Raises:
        InputError: if there are not so many.
    """
    if size > n_total:
        raise InputError(f"a subset of {size:,} structures is asked for, there are {n_total:,}")
    return np.sort(np.random.default_rng(seed).permutation(n_total)[:size])


@dataclass(frozen=True, eq=False)
class StoreRows(Piece):
    """Some structures of a store, as a piece of a conversion."""

    store: Path
    rows: Int[ndarray, "n"]

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def key(self) -> list[Any]:
        """JSON values that a resumed conversion compares."""
        return [self.store.name, self.rows.tolist()]

    def read(self) -> Iterator[Structure | InputError]:
        """The structures, in the order of the rows."""
        store = Store(self.store)
        for row in self.rows:
            yield store[int(row)]


def subset_pieces(path: Path, size: int, seed: int, shard_size: int) -> list[list[StoreRows]]:
    """A nested subset of a store, as pieces for the shards of a new one.

    Raises:
        InputError: if there is no store, or it has not so many structures.
    """
    rows = nested_subset(len(Store(path)), size, seed)
    return [[StoreRows(path, rows[start : start + shard_size])] for start in range(0, size, shard_size)]


def write_subset(
    store: str | Path,
    out: str | Path,
    *,
    size: str | int,
    seed: Natural = 0,
    workers: Workers = 1,
    progress: bool = True,
) -> int:
    """Write some structures of a store as a store of their own, and return their number.

    Args:
        store: Store to draw from.
        out: Store to write.
        size: Number of structures, or 10k, 100k, 200k, 2M.
        seed: Decides the draw; with the same one, a smaller subset is in a larger one.
        workers: Processes.
        progress: Show a progress bar.

    Raises:
        InputError: as :func:`pack`, or if the store has not so many structures.
    """
    source, n = Store(require_store(Path(store))), size_of(size)
    pieces = subset_pieces(source.path, n, seed, SHARD_SIZE)
    drawn = {"subset_of": source.path.name, "n_total": len(source), "seed": seed}
    info = replace(source.info, provenance=source.info.provenance | drawn)
    options = PackOptions(source.precision, tuple(source.columns), workers=workers, progress=progress)
    return pack(out, pieces, info, options).n_structures
