"""Periodic neighbour lists, every pair in both directions, sorted by centre."""

import numpy as np
from ase.geometry import complete_cell
from jaxtyping import Float, Int
from numpy import ndarray
from scipy import sparse
from vesin import NeighborList

from equicat.data.structure import Structure
from equicat.errors import InputError

MIN_DISTANCE = 0.01
"""Å; two atoms nearer than this are the same atom twice (OC20's graphs drop such pairs, we refuse them)."""

TIE_TOLERANCE = 1e-3
"""Å; with ``max_neighbors``, pairs this much longer than the last one kept are kept too."""


def neighbor_list(
    structure: Structure, cutoff: float, max_neighbors: int | None = None
) -> tuple[Int[ndarray, "2 n_edges"], Int[ndarray, "n_edges 3"]]:
    """All pairs nearer than ``cutoff`` (Å), periodic images and images of the atom itself included.

    Any mix of periodic directions, cells smaller than the cutoff, skewed cells and atoms outside the cell are fine.

    Args:
        structure: the system.
        cutoff: Å.
        max_neighbors: keep only the nearest so many of each centre, and all that tie with the last. This is how OC20's
            baselines limit their graphs. It makes the energy jump when neighbours change rank, so forces are no longer
            its derivative there, and the pair i → j can be present without j → i. Off by default.

    Returns:
        ``edge_index`` (row 0 the centre i, in ascending order; row 1 the neighbour j) and ``edge_shift``, with
        ``edge_vec = r_j + edge_shift @ cell - r_i``.

    Raises:
        InputError: if two atoms are nearer than ``MIN_DISTANCE``; both are named.
    """
    # Directions without periodicity may have no vector at all; the search needs three independent ones.
    cell = complete_cell(np.where(structure.pbc[:, None], structure.cell, 0.0))
    search = NeighborList(cutoff=cutoff, full_list=True, sorted=False)
    centers, neighbors, shifts, distances = search.compute(
        structure.positions, cell, periodic=structure.pbc, quantities="ijSd"
    )
    centers, neighbors = centers.view(np.int64), neighbors.view(np.int64)
    if len(distances) and distances.min() < MIN_DISTANCE:
        k = int(distances.argmin())
        raise InputError(
            f"{structure.where}: atoms {centers[k]} and {neighbors[k]} are {distances[k]:.4f} Å apart, at the same "
            "place; remove one of them or check the cell"
        )
    order = _by_center(centers, len(structure.positions))
    if max_neighbors is not None:
        order = order[_nearest(centers[order], distances[order], max_neighbors)]
    edge_index = np.empty((2, len(order)), dtype=np.int64)
    for row, array in zip(edge_index, (centers, neighbors), strict=True):
        np.take(array, order, out=row, mode="clip")
    return edge_index, np.take(shifts, order, axis=0)


def _by_center(centers: Int[ndarray, "n_edges"], n_atoms: int) -> Int[ndarray, "n_edges"]:
    """What sorts edges by centre, otherwise as they are: a sparse matrix lists its entries row by row.

    Vesin's own sorting takes longer than its search.
    """
    n_edges = len(centers)
    entries = (np.ones(n_edges, dtype=bool), (centers, np.arange(n_edges, dtype=np.int32)))
    return sparse.coo_array(entries, shape=(n_atoms, n_edges)).tocsr().indices


def _nearest(
    centers: Int[ndarray, "n_edges"], distances: Float[ndarray, "n_edges"], max_neighbors: int
) -> Int[ndarray, "n_kept"]:
    """Positions, ascending, of each centre's nearest edges up to the cap, ties with the last one included."""
    order = np.lexsort((distances, centers))
    ranked_centers, ranked_distances = centers[order], distances[order]
    first = np.searchsorted(ranked_centers, ranked_centers)
    last = np.minimum(first + max_neighbors, np.searchsorted(ranked_centers, ranked_centers, side="right")) - 1
    return np.sort(order[ranked_distances <= ranked_distances[last] + TIE_TOLERANCE])
