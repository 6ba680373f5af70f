"""The Triton kernel of pair vectors, for inference; importing this needs Triton."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float64, Int
from torch import Tensor
from triton.language import constexpr

BLOCK = 256
"""Edges of a program."""


@triton.jit
@no_type_check
def _vectors(out, index, shift, atoms, n_edges, neighbors, block: constexpr):
    """r_j + shift @ cell − r_i of some edges, in float64 until it is stored."""
    positions, cell, system = atoms
    e = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    exists = e < n_edges
    i = tl.load(index + e, mask=exists, other=0)
    j = tl.load(index + neighbors + e, mask=exists, other=0)
    lattice = cell + 9 * tl.load(system + i, mask=exists, other=0)
    for k in tl.static_range(3):
        offset = tl.zeros((block,), tl.float64)
        for vector in tl.static_range(3):
            times = tl.load(shift + 3 * e + vector, mask=exists, other=0).to(tl.float64)
            offset += times * tl.load(lattice + 3 * vector + k, mask=exists, other=0)
        r_j = tl.load(positions + 3 * j + k, mask=exists, other=0)
        r_i = tl.load(positions + 3 * i + k, mask=exists, other=0)
        tl.store(out + 3 * e + k, (r_j - r_i) + offset, mask=exists)


def pair_vectors(
    positions: Float64[Tensor, "n_atoms 3"],
    cell: Float64[Tensor, "n_systems 3 3"],
    system_idx: Int[Tensor, "n_atoms"],
    edge_index: Int[Tensor, "2 n_edges"],
    edge_shift: Int[Tensor, "n_edges 3"],
    dtype: torch.dtype,
) -> Float[Tensor, "n_edges 3"]:
    """:meth:`equicat.data.batch.Batch.edge_vec` of these edges in one launch, without derivatives.

    Args:
        positions: Å.
        cell: Å, lattice vectors in rows.
        system_idx: system of each atom.
        edge_index: centre and neighbour; each row without gaps.
        edge_shift: lattice vectors that the neighbour is moved by.
        dtype: of the result.
    """
    n = edge_index.shape[1]
    out = positions.new_empty(n, 3, dtype=dtype)
    if n:
        edge_index = edge_index if edge_index.stride(1) == 1 else edge_index.contiguous()
        atoms = positions.detach().contiguous(), cell.detach().contiguous(), system_idx.contiguous()
        with torch.cuda.device_of(positions):
            _vectors[(triton.cdiv(n, BLOCK),)](
                out, edge_index, edge_shift.contiguous(), atoms, n, edge_index.stride(0), block=BLOCK
            )
    return out
