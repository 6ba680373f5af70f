"""A step of many relaxations beside the model in C++ (``relaxation.cpp``): the direction of L-BFGS, and near pairs."""

import ctypes
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equicat.kernels import backend
from equicat.kernels.cpu import build
from equicat.kernels.cpu.call import integers, pointers


class _Direction(ctypes.Structure):
    _fields_ = (
        *integers("n_systems", "n_pairs", "row", "n_threads"),
        *pointers("first", "steps", "changes", "rho", "forces", "direction"),
        ("alpha", ctypes.c_double),
    )


class _Near(ctypes.Structure):
    _fields_ = (
        *integers("n_edges", "n_threads"),
        *pointers("center", "neighbor", "shift", "positions", "shift_vectors"),
        ("cutoff", ctypes.c_double),
        *pointers("near", "kept", "new_center", "new_neighbor", "new_shift", "vectors"),
    )


@dataclass(frozen=True, eq=False)
class Steps:
    """The compiled functions."""

    library: ctypes.CDLL

    def direction(
        self,
        first: Int[Tensor, "n_ends"],
        steps: Float[Tensor, "n_pairs n_atoms 3"],
        changes: Float[Tensor, "n_pairs n_atoms 3"],
        rho: Float[Tensor, "n_pairs n_systems"],
        forces: Float[Tensor, "n_atoms 3"],
        alpha: float,
    ) -> Float[Tensor, "n_atoms 3"]:
        """−H g of every system by the two-loop recursion, g = −forces; all float64.

        Args:
            first: where the coordinates of each system begin, and where the last ones end.
            steps: s, newest first, Å.
            changes: y, eV/Å.
            rho: 1 / (s·y); 0 for a pair that the system does not have.
            forces: eV/Å.
            alpha: the first H is 1/alpha.
        """
        kept = [x.contiguous() for x in (first, steps, changes, rho, forces)]
        direction = torch.empty_like(kept[-1])
        sizes = (rho.shape[1], len(steps), forces.numel(), torch.get_num_threads())
        addresses = (x.data_ptr() for x in (*kept, direction))
        build.call(self.library, "lbfgs_direction", _Direction(*sizes, *addresses, alpha))
        return direction

    def near(
        self,
        edge_index: Int[Tensor, "2 n_edges"],
        edge_shift: Int[Tensor, "n_edges 3"],
        shift_vectors: Float[Tensor, "n_edges 3"],
        positions: Float[Tensor, "n_atoms 3"],
        cutoff: float,
    ) -> tuple[Int[Tensor, "2 n_near"], Int[Tensor, "n_near 3"], Float[Tensor, "n_near 3"]]:
        """The pairs that are nearer than the cutoff, in their order: index, shift, and r_ij (float64, Å).

        Args:
            edge_index: centre and neighbour of each pair.
            edge_shift: int32.
            shift_vectors: shift @ cell, Å.
            positions: float64, Å.
            cutoff: Å.
        """
        n, n_threads = len(edge_shift), torch.get_num_threads()
        given = [x.contiguous() for x in (edge_index, edge_shift, positions, shift_vectors)]
        index, shift, *vectors = (x.data_ptr() for x in given)
        near, kept = torch.empty(n, dtype=torch.bool), torch.empty(n_threads + 1, dtype=torch.int64)
        call = _Near(n, n_threads, index, index + 8 * n, shift, *vectors, cutoff, near.data_ptr(), kept.data_ptr())
        build.call(self.library, "count_near", call)
        n_near = int(kept[-1])
        found = edge_index.new_empty(2, n_near), edge_shift.new_empty(n_near, 3), positions.new_empty(n_near, 3)
        index, call.new_shift, call.vectors = (x.data_ptr() for x in found)
        call.new_center, call.new_neighbor = index, index + 8 * n_near
        build.call(self.library, "take_near", call)
        return found


def native(like: Float[Tensor, "..."]) -> Steps | None:
    """The compiled functions for tensors like this; None where PyTorch's operators have to do."""
    if like.device.type != "cpu" or like.dtype != torch.float64 or not backend.enabled():
        return None
    library = build.load("relaxation", torch.float64, (_Direction, _Near))
    return None if library is None else Steps(library)
