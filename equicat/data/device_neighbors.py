"""Periodic neighbour lists in PyTorch, for many systems in one call, on the device where the positions are.

Each atom is moved into its cell and repeated wherever an image can be in reach of that cell; from there on nothing is
periodic. The images are sorted into square columns along z, and along z within a column. A centre then looks through
one stretch of each column near it, and these stretches are laid out one after the other for the distances to be formed
in a few operators. Any cell, any mix of periodic directions and any distance of atoms from the cell are served.

What would take too much memory or overflow goes to :func:`equicat.data.neighbors.neighbor_list`, and so do atoms at the
same place, because that function names them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Shaped
from numpy import ndarray
from torch import Tensor

from equicat.data.images import reduced_basis
from equicat.data.neighbors import MAX_NEIGHBORS, MIN_DISTANCE, neighbor_list
from equicat.data.structure import Structure

COLUMNS = 2
"""Columns along the cutoff: narrower ones mean less to look through, and more of them."""

LAYERS = 16
"""Parts of the cutoff along z by which the images of a column are sorted."""

SLACK = 1e-6
"""How much further (relative to the cutoff, or to a lattice vector) everything reaches than it has to, for rounding."""

MAX_SKEW = 2.0
"""Product, over the periodic directions, of length times distance⁻¹ of planes up to which a basis is used as it is; a
reduced one of a face-centred cubic lattice has 1.84."""

MAX_IMAGES = 20_000_000
"""Images in one call; each takes some 200 bytes."""

CANDIDATES = 16_000_000
"""Pairs that are looked through at a time; each takes some 130 bytes."""

FIRST_CENTERS = 32_768
"""Centres that are looked at first; how many candidates they have says how many come next."""

MAX_INTEGER = 2.0**62
"""Largest key of a place in the order of columns; keys are 64-bit integers."""

MAX_SHIFT = 2.0**30
"""Lattice vectors between an atom and its cell; shifts are 32-bit integers."""


def neighbor_lists(
    structures: Sequence[Structure], positions: Float64[Tensor, "n_atoms 3"], cutoff: float
) -> tuple[Int[Tensor, "2 n_edges"], Int[Tensor, "n_edges 3"]]:
    """All pairs nearer than ``cutoff`` (Å) of each of the systems, periodic images included.

    Args:
        structures: whose cells, periodic directions and numbers of atoms count; not their positions.
        positions: Å, finite, of all systems one after the other; the lists are made where these are.
        cutoff: Å.

    Returns:
        ``edge_index`` and ``edge_shift`` as :func:`~equicat.data.neighbors.neighbor_list` defines them, with atoms
        counted through all systems. Edges are sorted by centre; those of a centre come in another order than there.

    Raises:
        InputError: as :func:`~equicat.data.neighbors.neighbor_list` does.
    """
    found = _search(structures, positions, cutoff)
    return _on_host(structures, positions, cutoff) if found is None else found


def _on_host(
    structures: Sequence[Structure], positions: Float64[Tensor, "n_atoms 3"], cutoff: float
) -> tuple[Int[Tensor, "2 n_edges"], Int[Tensor, "n_edges 3"]]:
    """The pairs of one system after the other, from NumPy arrays."""
    ends = np.cumsum([len(s) for s in structures])
    moved = np.split(positions.cpu().numpy(), ends[:-1])
    lists = [
        neighbor_list(Structure.unchecked(**{**vars(s), "positions": r}), cutoff)
        for s, r in zip(structures, moved, strict=True)
    ]
    index = np.concatenate([i + end - len(s) for (i, _), end, s in zip(lists, ends, structures, strict=True)], axis=1)
    shift = np.concatenate([shift for _, shift in lists])
    return torch.from_numpy(index).to(positions.device), torch.from_numpy(shift).to(positions.device)


def _search(
    structures: Sequence[Structure], positions: Float64[Tensor, "n_atoms 3"], cutoff: float
) -> tuple[Int[Tensor, "2 n_edges"], Int[Tensor, "n_edges 3"]] | None:
    """The pairs, or None where this is not the way to find them."""
    lattices = _Lattices.of(structures, cutoff)
    n_atoms = np.array([len(s) for s in structures])
    if (n_atoms * lattices.images).sum() > MAX_IMAGES:
        return None
    home = _Home.of(positions, lattices, n_atoms)
    n_images, furthest = torch.stack([home.n_images.sum().double(), home.cells.abs().amax()]).tolist()
    if not (n_images <= MAX_IMAGES and furthest <= MAX_SHIFT):
        return None
    columns = _Columns.of(home, int(n_images), cutoff)
    n_same = torch.zeros((), dtype=torch.int64, device=positions.device)
    indices, shifts = [], []
    for centers, first, length, n_candidates in columns.stretches(home):
        if n_candidates > len(centers) * max(MAX_NEIGHBORS, 4 * cutoff**3):
            return None
        index, shift, same = columns.pairs(home, centers, first, length, n_candidates)
        n_same += same
        indices.append(index)
        shifts.append(shift)
    n_same, n_keys = torch.stack([n_same.double(), columns.n_keys]).tolist()
    if n_same or n_keys > MAX_INTEGER:
        return None
    return _joined(indices, 1), _joined(shifts, 0)


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)


@dataclass(frozen=True, eq=False)
class _Lattices:
    """Bases of the lattices of all systems, with zeros in place of directions that are not periodic."""

    basis: Float[ndarray, "n_systems 3 3"]
    """Rows are vectors, Å."""
    inverse: Float[ndarray, "n_systems 3 3"]
    """Columns give the coordinates of a vector in the basis, 1/Å."""
    combination: Float[ndarray, "n_systems 3 3"]
    """Integers: the basis in vectors of the cell."""
    reach: Float[ndarray, "n_systems 3"]
    """The cutoff in distances of lattice planes."""
    images: Float[ndarray, "n_systems"]
    """Images of an atom that are looked at, on average."""

    @classmethod
    def of(cls, structures: Sequence[Structure], cutoff: float) -> "_Lattices":
        """The lattices of some systems; bases that are too skewed are reduced."""
        pbc = np.stack([s.pbc for s in structures])
        basis = np.where(pbc[:, :, None], np.stack([s.cell for s in structures]), 0.0)
        inverse = np.where(pbc[:, None, :], np.linalg.pinv(basis), 0.0)  # without the rounding of what is zero
        combination = np.tile(np.eye(3), (len(basis), 1, 1))
        skew = (np.linalg.norm(basis, axis=2) * np.linalg.norm(inverse, axis=1) + ~pbc).prod(1)
        for k in np.flatnonzero(skew > MAX_SKEW):
            vectors, combined = reduced_basis(basis[k][pbc[k]])
            used = slice(len(vectors))
            for array in (basis, inverse, combination):
                array[k] = 0.0
            basis[k][used], inverse[k][:, used] = vectors, np.linalg.pinv(vectors)
            combination[k][used, pbc[k]] = combined
        reach = cutoff * np.linalg.norm(inverse, axis=1)
        periodic = basis.any(2)
        return cls(basis, inverse, combination, reach + SLACK * periodic, (periodic + 2 * reach + ~periodic).prod(1))

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """Basis, inverse, combination and reach on a device, in one copy."""
        n = len(self.basis)
        parts = (self.basis, self.inverse, self.combination, self.reach)
        flat = torch.from_numpy(np.concatenate([part.reshape(n, -1) for part in parts], axis=1))
        basis, inverse, combination, reach = flat.to(device, non_blocking=True).split((9, 9, 9, 3), dim=1)
        return *(part.reshape(n, 3, 3) for part in (basis, inverse, combination)), reach


def _times(vectors: Float[Tensor, "n 3"], matrices: Float[Tensor, "n 3 3"]) -> Float[Tensor, "n 3"]:
    """``vectors @ matrices``, row by row."""
    return (vectors[:, :, None] * matrices).sum(1)


@dataclass(frozen=True, eq=False)
class _Home:
    """The atoms, each moved into its cell."""

    system: Int[Tensor, "n_atoms"]
    places: Float[Tensor, "n_atoms 3"]
    """Where they are then, Å."""
    cells: Float[Tensor, "n_atoms 3"]
    """Vectors of the basis by which they were moved, whole numbers."""
    lowest: Float[Tensor, "n_atoms 3"]
    """Number of the first image along each vector of the basis that may be in reach of the cell."""
    n_along: Int[Tensor, "n_atoms 3"]
    """Images along each vector."""
    n_images: Int[Tensor, "n_atoms"]
    basis: Float[Tensor, "n_systems 3 3"]
    combination: Float[Tensor, "n_systems 3 3"]

    @classmethod
    def of(
        cls, positions: Float64[Tensor, "n_atoms 3"], lattices: _Lattices, n_atoms: Int[ndarray, "n_systems"]
    ) -> "_Home":
        """The atoms of all systems at these positions."""
        device = positions.device
        basis, inverse, combination, reach = lattices.on(device)
        counts = torch.from_numpy(n_atoms).to(device, non_blocking=True)
        system = torch.repeat_interleave(counts, output_size=len(positions))
        coordinates = _times(positions, inverse.index_select(0, system))
        cells = coordinates.floor()
        coordinates = coordinates - cells
        places = positions - _times(cells, basis.index_select(0, system))
        reach = reach.index_select(0, system)
        lowest = (-reach - coordinates).ceil()
        # Along a direction that is not periodic the reach is exactly zero, and there is one image.
        n_along = ((reach > 0) + reach - coordinates).floor().sub_(lowest).long().add_(1)
        return cls(system, places, cells, lowest, n_along, n_along.prod(1), basis, combination)

    def images(self, n_images: int) -> tuple[Tensor, Tensor, Tensor]:
        """The atom, the place (Å) and the vectors of the basis of every image in reach of the cell."""
        atom = torch.repeat_interleave(self.n_images, output_size=n_images)
        within = _within(self.n_images, atom)
        _, n_b, n_c = self.n_along.index_select(0, atom).unbind(1)
        a_and_b = torch.div(within, n_c, rounding_mode="floor")
        a = torch.div(a_and_b, n_b, rounding_mode="floor")
        moved = torch.stack([a, a_and_b - a * n_b, within - a_and_b * n_c], dim=1) + self.lowest.index_select(0, atom)
        basis = self.basis.index_select(0, self.system.index_select(0, atom))
        return atom, self.places.index_select(0, atom) + _times(moved, basis), moved

    def shifts(self, atom: Int[Tensor, "n"], moved: Float[Tensor, "n 3"]) -> Int[Tensor, "n 3"]:
        """Whole vectors of the basis of some atoms as vectors of their cells."""
        combination = self.combination.index_select(0, self.system.index_select(0, atom))
        return _times(moved, combination).to(torch.int32)


def _within(counts: Int[Tensor, "n"], owner: Int[Tensor, "total"], first: Tensor | int = 0) -> Int[Tensor, "total"]:
    """Numbers that count on from ``first`` within each stretch of the same owner."""
    before = first - (counts.cumsum(0) - counts)
    return torch.arange(len(owner), device=owner.device) + before.index_select(0, owner)


@dataclass(frozen=True, eq=False)
class _Columns:
    """All images, sorted by system, column and height."""

    cutoff: float
    keys: Int[Tensor, "n_images"]
    atom: Int[Tensor, "n_images"]
    places: Float[Tensor, "n_images 3"]
    shifts: Int[Tensor, "n_images 3"]
    """Vectors of the cell from the atom to its image."""
    lowest: Float[Tensor, "3"]
    """Numbers of the first column along x and y and of the first layer, less a margin."""
    n_along: Float[Tensor, "3"]
    """Columns along x and y, and layers, with margins on both sides."""
    n_keys: Float[Tensor, ""]
    """How many different keys there may be."""

    @classmethod
    def of(cls, home: _Home, n_images: int, cutoff: float) -> "_Columns":
        """Sort the images of all atoms."""
        atom, places, moved = home.images(n_images)
        numbers = (places * cls._per_length(places, cutoff)).floor_()
        margin = _constant(places, (COLUMNS + 1.0, COLUMNS + 1.0, LAYERS + 1.0))
        lowest = numbers.amin(0) - margin
        n_along = numbers.amax(0) + margin + 1 - lowest
        system = home.system.index_select(0, atom)
        keys, order = _keys(system, numbers - lowest, n_along).sort()
        atom = atom.index_select(0, order)
        shifts = home.shifts(atom, moved.index_select(0, order) - home.cells.index_select(0, atom))
        n_keys = n_along.prod() * len(home.basis)
        return cls(cutoff, keys, atom, places.index_select(0, order), shifts, lowest, n_along, n_keys)

    @staticmethod
    def _per_length(like: Tensor, cutoff: float) -> Float[Tensor, "3"]:
        """Columns along x and y, and layers along z, per Å."""
        return _constant(like, (COLUMNS / cutoff, COLUMNS / cutoff, LAYERS / cutoff))

    def stretches(self, home: _Home) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        """For some centres at a time: which, first image and length of their stretch of each column, sum of lengths."""
        start, size, n_atoms = 0, FIRST_CENTERS, len(home.places)
        while start < n_atoms:
            centers = torch.arange(start, min(start + size, n_atoms), device=home.places.device)
            first, length = self._stretches(home.system.index_select(0, centers), home.places.index_select(0, centers))
            n_candidates = int(length.sum())
            if n_candidates > 2 * CANDIDATES and len(centers) > 1:
                size = len(centers) // 2
                continue
            yield centers, first, length, n_candidates
            start += len(centers)
            size = max(1, CANDIDATES * len(centers) // max(n_candidates, 1))

    def _stretches(self, system: Int[Tensor, "n"], places: Float[Tensor, "n 3"]) -> tuple[Tensor, Tensor]:
        """First image, and number of images, that each centre has to look at in each column near it."""
        scaled = places[:, :2] * (COLUMNS / self.cutoff)
        around = torch.arange(-COLUMNS, COLUMNS + 1, device=places.device, dtype=places.dtype)
        columns = scaled.floor()[:, :, None] + around
        # From the centre to the nearest point of a column, along x and along y, in widths of a column.
        gap = torch.maximum(columns - scaled[:, :, None], scaled[:, :, None] - columns - 1).clamp_(min=0)
        gap_x, gap_y = gap[:, 0, :, None], gap[:, 1, None, :]
        height2 = (1 + SLACK) - (gap_x * gap_x + gap_y * gap_y) / COLUMNS**2
        half = height2.clamp(min=0).sqrt_() * LAYERS
        z = (places[:, 2] * (LAYERS / self.cutoff))[:, None, None]
        x, y = (columns - self.lowest[:2, None]).unbind(1)
        shape = half.shape
        number = (x[:, :, None].expand(shape), y[:, None, :].expand(shape))
        ends = [(end - self.lowest[2]) for end in ((z - half).floor_(), (z + half).floor_())]
        system = system[:, None, None].expand(shape)
        first, last = (_keys(system, torch.stack([*number, end], dim=-1), self.n_along) for end in ends)
        first, last = torch.searchsorted(self.keys, first), torch.searchsorted(self.keys, last, right=True)
        return first.view(-1), torch.where(height2 > 0, last - first, 0).view(-1)

    def pairs(
        self, home: _Home, centers: Tensor, first: Tensor, length: Tensor, n_candidates: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs and shifts of some centres, and how many pairs are atoms at the same place."""
        stretch = torch.repeat_interleave(length, output_size=n_candidates)
        image = _within(length, stretch, first)
        center = torch.div(stretch, len(length) // len(centers), rounding_mode="floor").add_(centers[0])
        x, y, z = (self.places.index_select(0, image) - home.places.index_select(0, center)).unbind(1)
        distance2 = (x * x).addcmul_(y, y).addcmul_(z, z)
        # An atom's own place among the images is exactly where the atom is.
        n_same = (distance2 < MIN_DISTANCE**2).sum() - len(centers)
        near = ((distance2 < self.cutoff**2) & (distance2 > 0)).nonzero()[:, 0]
        center, image = center.index_select(0, near), image.index_select(0, near)
        moved = home.shifts(centers, home.cells.index_select(0, centers))
        shifts = self.shifts.index_select(0, image).add_(moved.index_select(0, center - centers[0]))
        return torch.stack([center, self.atom.index_select(0, image)]), shifts, n_same


def _keys(
    system: Int[Tensor, "*shape"], numbers: Float[Tensor, "*shape 3"], n_along: Float[Tensor, "3"]
) -> Int[Tensor, "*shape"]:
    """Integers in the order of system, column along x, column along y, layer."""
    n_x, n_y, n_z = n_along.long().unbind()
    x, y, z = numbers.long().unbind(-1)
    return ((system * n_x + x) * n_y + y) * n_z + z


def _constant(like: Tensor, values: Sequence[float]) -> Shaped[Tensor, "n"]:
    """Numbers of Python on the device, without a wait."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)
