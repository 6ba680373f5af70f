"""MPI in :mod:`equicat.interfaces.lammps`: forces on ghosts go to their owners, and an error stops all ranks."""

import os
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from equicat.errors import InputError

SECONDS_TO_BE_READ = 1.0
"""Time that mpirun gets to pass on a message, before MPI_Abort ends it together with all ranks."""


@dataclass(frozen=True, eq=False)
class Halo:
    """The way of forces on ghosts back to the ranks that own the atoms."""

    comm: Any
    n_local: int
    ghosts: Int[ndarray, "n_ghosts"]
    """Rows of this rank's ghosts, in the order of the ranks that own them."""
    n_sent: Int[ndarray, "n_ranks"]
    n_received: Int[ndarray, "n_ranks"]
    owned: Int[ndarray, "n_received"]
    """Rows of the local atoms that other ranks (or this one) have as ghosts, in the order in which they arrive."""

    @classmethod
    def of(cls, comm: Any, ids: Int[ndarray, "n_atoms"], n_local: int) -> "Halo":
        """Find the owners of ghosts; all ranks call it together.

        A rank that anyone can name (the id modulo the number of ranks) keeps who owns an id, so no rank ever lists all
        atoms.

        Args:
            comm: of the ranks of LAMMPS.
            ids: atom ids of local atoms, then of ghosts.
            n_local: number of local atoms.

        Raises:
            InputError: if atoms have no ids.
        """
        if (ids <= 0).any():
            raise InputError("atoms have no ids; leave out `atom_modify id no`")
        ranks, (local, ghosts) = range(comm.size), np.split(ids, [n_local])
        kept = comm.alltoall([local[local % comm.size == rank] for rank in ranks])
        known = np.concatenate(kept)
        owner_of_known = np.repeat(ranks, [len(part) for part in kept])
        asked = [(ghosts % comm.size == rank).nonzero()[0] for rank in ranks]
        questions = comm.alltoall([ghosts[rows] for rows in asked])
        answers = comm.alltoall([owner_of_known[_places(known, wanted)] for wanted in questions])
        owner = np.empty(len(ghosts), np.int64)
        owner[np.concatenate(asked)] = np.concatenate(answers)
        rows = [(owner == rank).nonzero()[0] for rank in ranks]
        arriving = comm.alltoall([ghosts[part] for part in rows])
        return cls(
            comm,
            n_local,
            n_local + np.concatenate(rows),
            np.array([len(part) for part in rows]),
            np.array([len(part) for part in arriving]),
            _places(local, np.concatenate(arriving)),
        )

    def collect(self, forces: Float[ndarray, "n_atoms 3"]) -> Float[ndarray, "n_local 3"]:
        """Forces on local atoms, those on their ghosts on all ranks added; all ranks call it together."""
        sent, received = forces[self.ghosts], np.empty((len(self.owned), 3))
        if self.comm.size > 1:
            self.comm.Alltoallv([sent, 3 * self.n_sent], [received, 3 * self.n_received])
        else:
            received = sent
        total = torch.from_numpy(forces[: self.n_local])
        return total.index_add(0, torch.from_numpy(self.owned), torch.from_numpy(received)).numpy()


def abort(comm: Any, where: str, error: BaseException) -> None:
    """Print what happened and end all ranks: status 2 for bad input, 1 for a defect."""
    bad_input = isinstance(error, InputError)
    text = " ".join(str(error).split()) or type(error).__name__
    report = "" if bad_input else "".join(traceback.format_exception(error))
    print(f"{report}equicat: rank {comm.rank}: {where}: {text}", file=sys.stderr, flush=True)
    time.sleep(SECONDS_TO_BE_READ)
    comm.Abort(2 if bad_input else 1)


def share_cores(comm: Any) -> None:
    """Let the ranks of one machine have a part of its cores each, unless the user has said how many threads."""
    if comm.size > 1 and "OMP_NUM_THREADS" not in os.environ:
        from mpi4py import MPI

        here = comm.Split_type(MPI.COMM_TYPE_SHARED)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // here.size))
        here.Free()


def _places(known: Int[ndarray, "n_known"], wanted: Int[ndarray, "n_wanted"]) -> Int[ndarray, "n_wanted"]:
    """Where each wanted number stands among the known ones."""
    order = np.argsort(known)
    places = order[np.searchsorted(known, wanted, sorter=order)] if len(wanted) else wanted
    assert (known[places] == wanted).all(), "LAMMPS has a ghost of an atom that no rank owns"
    return places
