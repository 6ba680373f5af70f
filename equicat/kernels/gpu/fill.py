"""The Triton kernel that writes edges and atoms into the inputs of a CUDA graph; importing this needs Triton."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Shaped
from torch import Tensor
from triton.language import constexpr

BLOCK = 256
"""Edges, and atoms, that a program writes."""


@triton.jit(do_not_specialize=["n_edges", "n_atoms", "more_edges", "more_atoms"])
@no_type_check
def _fill(inputs, system, n_edges, n_atoms, more_edges, more_atoms, far, block: constexpr):
    """Edges and atoms of the system, then edges of length ``far`` at atoms of their own."""
    vectors, index, kinds = inputs
    edge_vec, edge_index, species = system
    at = tl.program_id(0) * block + tl.arange(0, block)
    all_edges, all_atoms = n_edges + more_edges, n_atoms + more_atoms
    given, exists = at < n_edges, at < all_edges
    for k in tl.static_range(3):
        r = tl.load(edge_vec + 3 * at + k, mask=given, other=0)
        if k == 0:
            r = tl.where(given, r, tl.full((block,), 1, r.dtype) * far)
        tl.store(vectors + 3 * at + k, r, mask=exists)
    own = n_atoms + (at - n_edges) * more_atoms // tl.maximum(more_edges, 1)
    for end in tl.static_range(2):
        atom = tl.load(edge_index + end * n_edges + at, mask=given, other=0)
        tl.store(index + end * all_edges + at, tl.where(given, atom, own), mask=exists)
    tl.store(kinds + at, tl.load(species + at, mask=at < n_atoms, other=0), mask=at < all_atoms)


def fill(inputs: tuple[Shaped[Tensor, "..."], ...], system: tuple[Shaped[Tensor, "..."], ...], far: float) -> None:
    """Write a system into larger arrays and fill these up, in one launch.

    Args:
        inputs: pair vectors [n_edges, 3], edge_index [2, n_edges] and species [n_atoms] to be written, contiguous.
        system: the smaller ones, contiguous.
        far: Å, length of the edges that fill up.
    """
    (vectors, _, kinds), (edge_vec, _, species) = inputs, system
    sizes = len(edge_vec), len(species), len(vectors) - len(edge_vec), len(kinds) - len(species)
    with torch.cuda.device_of(vectors):
        _fill[(triton.cdiv(max(len(vectors), len(kinds)), BLOCK),)](inputs, system, *sizes, far, block=BLOCK)
