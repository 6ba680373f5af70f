"""Which structures each batch of an epoch holds: by number or by edges, shuffled shard by shard, shared among ranks.

The plan of an epoch depends on the data set, the seed and the number of ranks, on nothing else: workers only carry it
out, and an epoch can be taken up in the middle. All ranks get the same number of batches, as data-parallel training
needs, and every structure goes to one rank, once: no padding with repeated structures, in validation neither.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray
from torch.utils.data import DataLoader, Sampler

from equicat.data.batch import Batch
from equicat.data.fitted import evenly_spread
from equicat.data.neighbors import neighbor_list
from equicat.data.structure import Structure
from equicat.errors import InputError

BLOCK = 10_000
"""Neighbouring structures that stay together while shuffling: a shard of a store."""
WINDOW = 8
"""Blocks that are mixed with each other."""
EDGE_SAMPLE = 200
"""Structures from which the edges an atom has are estimated."""


class BatchSampler(Sampler[list[int]]):
    """Lists of structure numbers, one a batch, of this process.

    An epoch lines up all structures and cuts the line at equal distances, measured in structures or in costs, into a
    number of batches that every rank gets the same share of. The number is the same in every epoch.

    Args:
        n: structures of the data set.
        limit: largest number of structures of a batch, or largest sum of their ``costs``.
        costs: of each structure, such as its number of edges; None counts structures.
        shuffle: blocks of :data:`BLOCK` in random order, the structures of :data:`WINDOW` of them mixed; else in order.
        seed: of the order of an epoch.
        rank: number of this process and number of all; None asks ``torch.distributed``.

    Raises:
        InputError: if two of the costliest structures do not fit into the limit, or there are fewer structures than
            ranks. With several ranks that is known only when iterating.
    """

    def __init__(
        self,
        n: int,
        limit: int,
        costs: Int[ndarray, "n"] | None = None,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: tuple[int, int] | None = None,
    ) -> None:
        if limit < 1:
            raise InputError(f"a batch of at most {limit} structures or edges holds nothing; give a positive number")
        self.n, self.limit, self.costs = n, limit, costs
        self.shuffle, self.seed, self.rank = shuffle, seed, rank
        self.epoch, self.start = 0, 0
        self.total = n if costs is None else int(costs.sum(dtype=np.int64))
        self.largest = 1 if costs is None else int(costs.max(initial=0))
        if costs is not None and limit < 2 * self.largest:
            raise InputError(
                f"a batch may hold {limit:,} edges, but one structure has about {self.largest:,}; the edge budget must "
                "be at least twice that"
            )

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next; Lightning calls it."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        """Batches of an epoch of this process."""
        return self.n_batches // self._rank()[1]

    @property
    def n_batches(self) -> int:
        """Batches of an epoch of all ranks: a multiple of their number."""
        _, n_ranks = self._rank()
        if self.n < n_ranks:
            raise InputError(f"{self.n} structures cannot be shared by {n_ranks} processes; use fewer")
        if self.costs is None:
            # With fewer structures than places there are fewer batches, some with one more, instead of empty ones.
            return n_ranks * min(-(-self.n // (self.limit * n_ranks)), self.n // n_ranks)
        # A batch reaches beyond its share of the line by less than one structure, and is never empty.
        n = n_ranks * -(-self.total // ((self.limit - self.largest) * n_ranks))
        if n * self.largest > self.total:
            n = n_ranks * (self.total // (self.largest * n_ranks))
            if n == 0 or self.total / n + self.largest > self.limit:
                raise InputError(
                    f"{self.n} structures with {self.total:,} edges cannot be shared by {n_ranks} processes in batches "
                    f"of at most {self.limit:,}; use fewer processes or a larger edge budget"
                )
        return n

    def __iter__(self) -> Iterator[list[int]]:
        rank, n_ranks = self._rank()
        first, self.start = self.start * n_ranks, 0
        for number, structures in self._all_batches():
            if number >= first and number % n_ranks == rank:
                yield structures

    def _all_batches(self) -> Iterator[tuple[int, list[int]]]:
        """Batches of all ranks with their numbers."""
        n_batches, at = self.n_batches, 0
        held = np.zeros(0, np.int64)
        held_number = 0
        for order in self._windows():
            costs = np.ones(len(order), np.int64) if self.costs is None else self.costs[order].astype(np.int64)
            ends = at + np.cumsum(costs)
            numbers = (ends - costs) * n_batches // self.total
            at = int(ends[-1])
            cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(order)]
            for start, stop in pairwise(cuts):
                if numbers[start] != held_number:
                    yield held_number, held.tolist()
                    held, held_number = order[:0], int(numbers[start])
                held = np.concatenate([held, order[start:stop]])
        yield held_number, held.tolist()

    def _windows(self) -> Iterator[Int[ndarray, "m"]]:
        """All structures in the order of this epoch, some blocks at a time."""
        blocks = np.arange(-(-self.n // BLOCK))
        if self.shuffle:
            blocks = np.random.default_rng([self.seed, self.epoch]).permutation(blocks)
        for k in range(0, len(blocks), WINDOW):
            parts = [np.arange(b * BLOCK, min((b + 1) * BLOCK, self.n)) for b in blocks[k : k + WINDOW].tolist()]
            order = np.concatenate(parts)
            if self.shuffle:
                order = np.random.default_rng([self.seed, self.epoch, k]).permutation(order)
            yield order

    def _rank(self) -> tuple[int, int]:
        if self.rank is not None:
            return self.rank
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1


@dataclass(frozen=True)
class BatchReader:
    """A data set of batches: the structures of a list, with their neighbour lists."""

    structures: Sequence[Structure]
    cutoff: float
    """Å."""
    dtype: torch.dtype = torch.float32
    """Type of pair vectors; see :class:`~equicat.data.batch.Batch`."""
    labels: tuple[str, ...] | None = None
    """Labels that batches hold; None: those that all structures of a batch have."""

    def __len__(self) -> int:
        return len(self.structures)

    def __getitem__(self, numbers: Sequence[int]) -> Batch:
        structures = [self.structures[i] for i in numbers]
        return Batch.from_structures(structures, self.cutoff, dtype=self.dtype, labels=self.labels)


class ResumableLoader(DataLoader):
    """Batches as a sampler plans them; knows how many it has handed out, and can begin an epoch there.

    Lightning saves :meth:`state_dict` in its checkpoints and gives it back when a run is resumed.

    Args:
        reader: makes a batch of the numbers of its structures.
        sampler: plans the batches.
        num_workers: processes that make batches; 0 does it in this one.
        reads_ahead: whether, without such processes, a thread makes the next batch while one is in use, as pays where
            a GPU is waited for. Not for readers that draw random numbers: a checkpoint would have those of the next
            batch.
    """

    sampler: BatchSampler

    def __init__(
        self, reader: BatchReader, sampler: BatchSampler, num_workers: int = 0, reads_ahead: bool = False
    ) -> None:
        super().__init__(
            reader,  # type: ignore[arg-type]  # a Sequence is all it needs
            sampler=sampler,
            batch_size=None,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # One of its own, so that beginning an epoch leaves alone what a checkpoint keeps of PyTorch's.
            generator=torch.Generator(),
        )
        self._n_given = 0
        self._reads_ahead = reads_ahead and not num_workers

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self._n_given = self.sampler.start
        self.generator.manual_seed(self.sampler.seed + 2**32 * self.sampler.epoch)
        batches = super().__iter__()
        for batch in _ahead(batches) if self._reads_ahead else batches:
            self._n_given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch, batches handed out in it, and what the plan depends on."""
        s = self.sampler
        plan = [s.n, s.total, s.n_batches, s.seed, s.shuffle]
        return {"epoch": s.epoch, "n_given": self._n_given, "plan": plan}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken; with another plan (data, seed, number of ranks) the epoch begins anew."""
        self.sampler.set_epoch(state["epoch"])
        same = state["plan"] == self.state_dict()["plan"]
        self.sampler.start = state["n_given"] if same and state["n_given"] < len(self.sampler) else 0


def _ahead(batches: Iterable[Batch]) -> Iterator[Batch]:
    """These batches, of which a thread makes the next one while one is in use."""
    iterator, end = iter(batches), None
    on_gpu = torch.cuda.is_available()  # each thread chooses a device
    begin = partial(torch.cuda.set_device, torch.cuda.current_device()) if on_gpu else None
    with ThreadPoolExecutor(1, "equicat-batches", begin) as thread:
        coming = thread.submit(next, iterator, end)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, iterator, end)
            yield batch


def edge_costs(dataset: Any, cutoff: float) -> Int[ndarray, "n"]:
    """Edges of each structure within ``cutoff`` (Å): counted if the store was made with ``--edges_within``, else
    estimated from its atoms and the neighbours in a sample.

    Args:
        dataset: a store, structures in memory, or a subset of them.
        cutoff: of the model.
    """
    if "n_edges" in dataset.columns and dataset.info.provenance.get("edges_within") == cutoff:
        return np.asarray(dataset.array("n_edges"))
    sample = evenly_spread(len(dataset), EDGE_SAMPLE)
    n_edges = [neighbor_list(dataset[int(i)], cutoff)[0].shape[1] for i in sample]
    per_atom = sum(n_edges) / int(np.asarray(dataset.n_atoms)[sample].sum())
    return np.ceil(np.asarray(dataset.n_atoms) * max(per_atom, 1.0)).astype(np.int64)


def batches(
    dataset: Sequence[Structure],
    cutoff: float,
    batch_size: int,
    *,
    dtype: torch.dtype = torch.float32,
    labels: tuple[str, ...] | None = None,
    shuffle_seed: int | None = None,
    num_workers: int = 0,
    costs: Int[ndarray, "n"] | None = None,
) -> ResumableLoader:
    """Batches of all structures, with neighbour lists within ``cutoff`` (Å).

    A process of a data-parallel training gets all of them, too: only training itself shares structures among ranks.

    Args:
        dataset: the structures.
        cutoff: Å.
        batch_size: largest number of structures of a batch, or with ``costs`` largest sum of them.
        dtype: of pair vectors, forces and displacements.
        labels: what batches hold, by the names that labels have in a structure; None takes along what all structures
            of a batch have.
        shuffle_seed: take the structures in another order each epoch, drawn with this seed; None keeps their order.
        num_workers: processes; the order does not depend on them.
        costs: of each structure (:func:`~equicat.data.batches.edge_costs`).
    """
    shuffle = shuffle_seed is not None
    sampler = BatchSampler(len(dataset), batch_size, costs, shuffle=shuffle, seed=shuffle_seed or 0, rank=(0, 1))
    return ResumableLoader(BatchReader(dataset, cutoff, dtype, labels), sampler, num_workers)
