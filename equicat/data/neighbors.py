"""Periodic neighbour lists, every pair in both directions, sorted by centre.

Two searches give the same pairs. Vesin's grid of cells is the fast one for atoms that fill their box. A k-d tree over
the atoms and the images in reach serves what a grid cannot: boxes that are nearly empty because an atom is far away or
a lattice vector is very long, and cells so skewed that the grid would look through countless images.
"""

from math import ceil, hypot, prod

import numpy as np
from ase.geometry import complete_cell
from jaxtyping import Float, Int
from numpy import ndarray
from scipy import sparse

from equicat.data.images import reduced_basis
from equicat.data.structure import Structure
from equicat.errors import InputError

MIN_DISTANCE = 0.01
"""Å; two atoms nearer than this are the same atom twice (OC20's graphs drop such pairs, we refuse them)."""

TIE_TOLERANCE = 1e-3
"""Å; with ``max_neighbors``, pairs this much longer than the last one kept are kept too."""

GRID_VISITS = 50_000
"""Pairs of grid cells that may be looked through for a small system: below a millisecond."""

GRID_VISITS_PER_ATOM = 200
"""Pairs of grid cells that may be looked through per atom of a large system; one that fills its box takes some 20."""

GRID_CELLS = 1e5
"""Vesin merges cells where there are more, and divides by zero if that leaves none along a short side of the box."""

MAX_CELLS_AWAY = 1e6
"""Cells between an atom and the origin up to which the grid's 32-bit numbers suffice."""

MAX_NEIGHBORS = 5_000
"""Neighbours an atom may have on average within a usual cutoff; with a longer cutoff one atom per Å³ is the limit."""

SORTED_BY_DIGITS = 10_000
"""Atoms up to which NumPy's sort of 16-bit numbers, digit by digit, is the fastest; 65,536 is the most there can be."""

Pairs = tuple[Int[ndarray, "n_edges"], Int[ndarray, "n_edges"], Int[ndarray, "n_edges 3"], Float[ndarray, "n_edges"]]
"""Centres, neighbours, shifts and distances (Å), in any order."""


def neighbor_list(
    structure: Structure, cutoff: float, max_neighbors: int | None = None
) -> tuple[Int[ndarray, "2 n_edges"], Int[ndarray, "n_edges 3"]]:
    """All pairs nearer than ``cutoff`` (Å), periodic images and images of the atom itself included.

    Any mix of periodic directions, cells smaller than the cutoff or far larger than what is in them, skewed cells,
    atoms outside the cell and atoms far from all others are fine.

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
        InputError: if two atoms are nearer than ``MIN_DISTANCE`` (both are named), or atoms are so dense that the list
            would fill the memory.
    """
    centers, neighbors, shifts, distances = _pairs(structure, cutoff)
    if len(distances) and distances.min() < MIN_DISTANCE:
        k = int(distances.argmin())
        i, j = int(centers[k]), int(neighbors[k])
        who = f"atom {i} and its own periodic image" if i == j else f"atoms {i} and {j}"
        raise InputError(
            f"{structure.where}: {who} are {distances[k]:.4f} Å apart, at the same place; remove one of them or check "
            "the cell"
        )
    order = _by_center(centers, len(structure.positions))
    if max_neighbors is not None:
        order = order[_nearest(centers[order], distances[order], max_neighbors)]
    edge_index = np.empty((2, len(order)), dtype=np.int64)
    for row, array in zip(edge_index, (centers, neighbors), strict=True):
        np.take(array, order, out=row, mode="clip")
    return edge_index, np.take(shifts, order, axis=0)


def _pairs(structure: Structure, cutoff: float) -> Pairs:
    """The pairs of a structure, by the search that suits it."""
    positions, pbc = structure.positions, structure.pbc
    # Directions without periodicity may have no vector at all; the grid needs three independent ones.
    cell = complete_cell(np.where(pbc[:, None], structure.cell, 0.0))
    heights = [1 / hypot(*column) for column in np.linalg.inv(cell).T.tolist()]
    images = prod(1 + 2 * cutoff / h for h, p in zip(heights, pbc, strict=True) if p)
    if len(positions) * images > MAX_NEIGHBORS:
        _refuse_crowds(structure, cutoff)
    if not _fits_grid(structure, heights, cutoff):
        return _by_tree(structure, cutoff)
    from vesin import NeighborList  # brings PyTorch along, which processes that only read structures do without

    search = NeighborList(cutoff=cutoff, full_list=True, sorted=False)
    centers, neighbors, shifts, distances = search.compute(positions, cell, periodic=pbc, quantities="ijSd")
    return centers.view(np.int64), neighbors.view(np.int64), shifts, distances


def _fits_grid(structure: Structure, heights: list[float], cutoff: float) -> bool:
    """Whether Vesin's grid of cells is quick and safe, given the distances (Å) of opposite faces of the cell.

    Along a periodic direction the grid has the cell's height, along another the extent of the atoms. It looks from
    each cell as far as the cutoff, and to the end of the box along what is not periodic if something else is.
    """
    lowest, highest = structure.positions.min(axis=0).tolist(), structure.positions.max(axis=0).tolist()
    periodic = structure.pbc.tolist()
    extents = [max(high - low, 1.0) for low, high in zip(lowest, highest, strict=True)]
    lengths = [h if p else extent for h, extent, p in zip(heights, extents, periodic, strict=True)]
    n_cells = [max(1, int(length / cutoff)) for length in lengths]
    n_looked_at = [
        2 * n if any(periodic) and not p else 1 + 2 * ceil(n * cutoff / length)
        for n, length, p in zip(n_cells, lengths, periodic, strict=True)
    ]
    if prod(n_cells) * prod(n_looked_at) > GRID_VISITS + GRID_VISITS_PER_ATOM * len(structure):
        return False
    merging = (GRID_CELLS / prod(n_cells)) ** (1 / 3)
    if merging < 1 and merging * min(n_cells) < 4:
        return False
    away = hypot(*(max(abs(low), abs(high)) for low, high in zip(lowest, highest, strict=True)))
    return away < MAX_CELLS_AWAY * min(heights)


def _by_tree(structure: Structure, cutoff: float) -> Pairs:
    """The pairs by a k-d tree over the atoms, moved into the reduced cell, and over all their images in reach."""
    from scipy.spatial import cKDTree  # takes a tenth of a second, and hardly any structure needs it

    basis, combination = reduced_basis(structure.cell[structure.pbc])
    inverse = np.linalg.pinv(basis)
    coordinates = structure.positions @ inverse
    home = np.floor(coordinates).astype(np.int64)
    coordinates, positions = coordinates - home, structure.positions - home @ basis
    atoms, images = np.arange(len(positions)), np.zeros_like(home)
    for d, reach in enumerate(cutoff * np.linalg.norm(inverse, axis=0)):
        steps = np.arange(-int(reach) - 1, int(reach) + 2)
        moved = coordinates[atoms, d][:, None] + steps
        near = (moved >= coordinates[:, d].min() - reach) & (moved <= coordinates[:, d].max() + reach)
        rows, columns = np.nonzero(near)
        atoms, images = atoms[rows], images[rows]
        images[:, d] = steps[columns]
    here, there = cKDTree(positions), cKDTree(positions[atoms] + images @ basis)
    found = here.sparse_distance_matrix(there, cutoff, output_type="ndarray")
    centers, neighbors, distances, image = found["i"], atoms[found["j"]], found["v"], images[found["j"]]
    itself = (centers == neighbors) & (image == 0).all(axis=1)
    kept = ~itself & (distances < cutoff)
    centers, neighbors, distances, image = centers[kept], neighbors[kept], distances[kept], image[kept]
    shifts = np.zeros((len(centers), 3), dtype=np.int64)
    shifts[:, structure.pbc] = (image - home[neighbors] + home[centers]) @ combination
    return centers, neighbors, shifts, distances


def _refuse_crowds(structure: Structure, cutoff: float) -> None:
    """Stop before a list that would fill the memory: positions or a cell in another unit than Å make one.

    Raises:
        InputError: naming the mean number of neighbours.
    """
    basis, _ = reduced_basis(structure.cell[structure.pbc])
    inverse = np.linalg.pinv(basis)
    home = np.floor(structure.positions @ inverse) @ basis
    # Atoms in the same cube of the size of the cutoff, and the images of a cell that is smaller than the cutoff.
    cubes = np.floor((structure.positions - home) / cutoff).astype(np.int64)
    cubes -= cubes.min(axis=0)
    numbers_of_cubes = cubes @ [1, *np.cumprod(cubes.max(axis=0)[:2] + 1)]
    counts = np.unique(numbers_of_cubes, return_counts=True)[1]
    images = np.prod(np.maximum(cutoff * np.linalg.norm(inverse, axis=0), 1))
    sphere = 4 / 3 * np.pi * cutoff**3
    mean = float((counts**2).sum() / counts.sum() * images * sphere / cutoff**3)
    if mean > max(MAX_NEIGHBORS, sphere):
        raise InputError(
            f"{structure.where}: an atom has some {mean:,.0f} neighbours within {cutoff:g} Å; are positions and cell "
            "in Å?"
        )


def _by_center(centers: Int[ndarray, "n_edges"], n_atoms: int) -> Int[ndarray, "n_edges"]:
    """The order that sorts edges by centre and leaves those of a centre as they are; Vesin's own takes longer."""
    if n_atoms <= SORTED_BY_DIGITS:
        return np.argsort(centers.astype(np.uint16), kind="stable")
    # A sparse matrix lists its entries row by row.
    n_edges = len(centers)
    entries = (np.ones(n_edges, dtype=bool), (centers, np.arange(n_edges, dtype=np.int32)))
    return sparse.coo_array(entries, shape=(n_atoms, n_edges)).tocsr().indices


def _nearest(
    centers: Int[ndarray, "n_edges"], distances: Float[ndarray, "n_edges"], max_neighbors: int
) -> Int[ndarray, "n_kept"]:
    """Indices, ascending, of each centre's nearest edges up to the cap, ties with the last one included."""
    order = np.lexsort((distances, centers))
    ranked_centers, ranked_distances = centers[order], distances[order]
    first = np.searchsorted(ranked_centers, ranked_centers)
    last = np.minimum(first + max_neighbors, np.searchsorted(ranked_centers, ranked_centers, side="right")) - 1
    return np.sort(order[ranked_distances <= ranked_distances[last] + TIE_TOLERANCE])
