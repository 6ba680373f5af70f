"""Ordered pairs of atoms as networks see them: vectors, whom they join, and elements."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class Edges(NamedTuple):
    """Ordered pairs of atoms. ``network(*edges)`` gives features."""

    edge_vec: Float[Tensor, "n_edges 3"]
    """r_ij = r_j − r_i in Å."""
    edge_index: Int[Tensor, "2 n_edges"]
    """Centre and neighbour of each pair, sorted by centre."""
    species: Int[Tensor, "n_atoms"]
    """Element of each atom, 0 … n_species − 1."""
