"""How the gradient of an energy is computed: in pieces, or again instead of kept."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from equicat.data.batch import Batch
from equicat.kernels.edges import consecutive

FLOATS_AT_A_TIME = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Edges whose derivatives are alive at once, times the largest intermediate of each: bounds memory, not speed."""


KERNEL_FLOATS_PER_EDGE = 8
"""Of a kernel, which has everything else in the cache: pair vectors and their derivatives."""


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some consecutive centres with all their edges, as a system of its own."""

    edges: slice
    own: slice
    """The atoms, of those that ``species`` describes, whose energies are complete."""
    edge_index: Int[Tensor, "2 n_edges"]
    species: Int[Tensor, "n_atoms"]


def _pieces(batch: Batch, species: Int[Tensor, "n_atoms"], floats_per_edge: int, n_species: int) -> list[_Piece]:
    """Cut a batch between centres, so that few edges are worked on at a time.

    Of a neighbour a strictly local network sees the species alone, so in a piece one atom stands for all of a species
    that are not themselves centres there.
    """
    center, neighbor = batch.edge_index
    budget = FLOATS_AT_A_TIME.get(center.device.type, FLOATS_AT_A_TIME["cuda"]) // floats_per_edge
    if len(center) <= budget:
        return [_Piece(slice(None), slice(None), batch.edge_index, species)]
    ends = torch.bincount(center, minlength=len(species)).cumsum(0)
    pieces = []
    for atoms, edges in consecutive(ends, budget):
        own, there = atoms.stop - atoms.start, neighbor[edges]
        inside = (there >= atoms.start) & (there < atoms.stop)
        index = torch.stack([center[edges], torch.where(inside, there, atoms.stop + species[there])]) - atoms.start
        kinds = torch.cat([species[atoms], torch.arange(n_species, device=species.device)])
        pieces.append(_Piece(edges, slice(own), index, kinds))
    return pieces


class _Recomputed(torch.autograd.Function):
    """Energies and gradient of a piece that keep nothing but their inputs; the weights' gradients make them anew."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., tuple[Tensor, Tensor]], edge_vec: Tensor, piece: _Piece, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.function, ctx.piece = function, piece
        ctx.save_for_backward(edge_vec, *parameters)
        return function(edge_vec, piece, create_graph=False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_energy: Tensor, to_gradient: Tensor) -> tuple[Tensor | None, ...]:
        edge_vec, *parameters = ctx.saved_tensors
        with torch.enable_grad():
            found = ctx.function(edge_vec, ctx.piece, create_graph=True)
        return None, None, None, *torch.autograd.grad(found, parameters, (to_energy, to_gradient), allow_unused=True)
