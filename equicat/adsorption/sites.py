"""Adsorption sites of a slab: every position of each kind, by a triangulation of the exposed atoms.

Exposed are the atoms that a ball touches first when it is lowered onto the surface. Between neighbouring exposed atoms
lie bridges, between three or more around an empty circle lie hollows. Sites are of one kind if the distances to the
atoms around them are the same, those of adsorbates that the slab came with included.
"""

import importlib.util
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.spatial import Delaunay, QhullError

from equicat.adsorption.slabs import Slab
from equicat.data.contacts import formula_of
from equicat.data.images import minimum_image
from equicat.errors import InputError
from equicat.extras import extra

Finder = Literal["auto", "delaunay", "pymatgen"]

BALL = 1.04
"""Distance at which the lowered ball touches an atom, in nearest-neighbour distances. From 1.00 to 1.08 it sees the top
layer of fcc(110) only, and all three rows of fcc(211)."""
GRID = 0.2
"""Å between the points at which the ball is lowered."""
SAME_CIRCLE = 0.35
"""Å. Triangles whose circumcentres are closer are one hollow: the two halves of a square."""
SAME_DISTANCE = 0.15
"""Å. Sites whose distances to the atoms around them differ by less are of one kind."""
SAME_POINT = 0.05
"""Å. Sites closer than this, periodic images included, are one."""
EDGE = 1e-3
"""Fraction of a lattice vector by which sites may lie outside of the cell."""
BELOW = 0.15
"""Nearest-neighbour distances. An atom this close sideways lies below a site."""
EQUILATERAL = 1.08
"""Longest over shortest side of a triangle that counts as close-packed."""
AROUND = 2.1
"""Nearest-neighbour distances. Atoms within this tell one kind of site from another."""


@dataclass(frozen=True, eq=False)
class Site:
    """A kind of site and all its positions in the cell."""

    name: str
    """``ontop``, ``bridge``, ``hollow``, ``fcc``, ``hcp``; with elements where the surface has several."""
    positions: Float[ndarray, "n_positions 3"]
    """Å, in the mean height of their atoms; the first is nearest to the middle of the cell."""


def find_sites(slab: Slab, finder: Finder = "auto") -> tuple[list[Site], str]:
    """All kinds of sites of the slab's surface, and a sentence that says who found them.

    Args:
        slab: whose adsorbates, if it has some, are left out.
        finder: ``pymatgen`` (its ``AdsorbateSiteFinder``), ``delaunay`` (this module), or ``auto``: pymatgen if it is
            installed.

    Raises:
        InputError: if there are no sites, or pymatgen is asked for and not installed.
    """
    if finder == "auto":
        finder = "delaunay" if importlib.util.find_spec("pymatgen") is None else "pymatgen"
    surface = _Surface(slab)
    if finder == "pymatgen":
        found, who = [surface.nearest(*one) for one in _by_pymatgen(slab)], "pymatgen's AdsorbateSiteFinder"
    else:
        found, who = [surface.middle(group) for group in surface.groups()], "a triangulation of the exposed atoms"
    if not found:
        raise InputError(f"{slab.structure.where}: no adsorption sites found; place adsorbates with --n_random instead")
    sites = surface.kinds(found)
    counts = ", ".join(f"{len(site.positions)} {site.name}" for site in sites)
    return sites, f"Sites: {counts}; by {who}."


def kind_at(slab: Slab, sites: Sequence[Site], position: Float[ndarray, "3"]) -> str:
    """Name of the site nearest to a position (Å) sideways."""
    vectors = np.concatenate([site.positions for site in sites]) - position
    names = [site.name for site in sites for _ in site.positions]
    return names[int(np.linalg.norm(sideways(slab, vectors), axis=1).argmin())]


def sideways(slab: Slab, vectors: Float[ndarray, "n 3"]) -> Float[ndarray, "n 3"]:
    """The parts of vectors along the surface, shortest images."""
    up = slab.frame[2]
    flat = vectors - (vectors @ up)[:, None] * up
    return minimum_image(flat, slab.structure.cell * slab.in_plane[:, None], slab.in_plane)


@dataclass(frozen=True, eq=False)
class _Found:
    """One position of a site."""

    position: Float[ndarray, "3"]
    """Å."""
    group: Int[ndarray, "n"]
    """The images of atoms around it."""


class _Surface:
    """The exposed atoms with their periodic images, seen from above."""

    def __init__(self, slab: Slab):
        self.slab = slab
        self.positions, self.numbers = slab.structure.positions, slab.structure.numbers
        self.lattice = slab.structure.cell[slab.in_plane]
        self.spacing = self._spacing(self._images(4 * covalent_radii[self.numbers].max()))
        self.images = self._images(max(3 * self.spacing, 6.0))
        self.of_slab = ~slab.adsorbed[self.images[0]]
        """Images that are not those of an adsorbate."""
        self.exposed = np.unique(self._exposed())

    def _images(self, reach: float) -> tuple[Int[ndarray, "n"], Float[ndarray, "n 3"]]:
        """Atoms and their copies within ``reach`` (Å) of the cell: which atom, and where."""
        flat = self.lattice @ self.slab.frame[:2].T
        heights = 1 / np.linalg.norm(np.linalg.inv(flat), axis=0)
        fractional = np.linalg.solve(flat.T, (self.positions @ self.slab.frame[:2].T).T).T
        margin = reach / heights
        base = np.floor(fractional)
        n = np.ceil(margin).astype(int) + 1
        shifts = np.stack(np.meshgrid(*(np.arange(-k, k + 1) for k in n), indexing="ij"), -1).reshape(-1, 2)
        moved = (fractional - base)[:, None] + shifts
        inside = ((moved > -margin) & (moved < 1 + margin)).all(2)
        which, shift = np.nonzero(inside)
        return which, self.positions[which] + (shifts[shift] - base[which]) @ self.lattice

    def _spacing(self, images: tuple[Int[ndarray, "n"], Float[ndarray, "n 3"]]) -> float:
        """Median distance (Å) of an atom to its nearest neighbour."""
        below = ~self.slab.adsorbed
        distances = np.linalg.norm(self.positions[below, None] - images[1][below[images[0]]], axis=2)
        return float(np.median(np.where(distances < 1e-3, np.inf, distances).min(1)))

    def _exposed(self) -> Int[ndarray, "n_points"]:
        """The atom that a ball lowered at each point of a grid touches first."""
        which, positions = self.images
        lengths = np.linalg.norm(self.lattice, axis=1)
        fractions = [(np.arange(n) + 0.5) / n for n in np.maximum(np.ceil(lengths / GRID).astype(int), 4)]
        points = np.stack(np.meshgrid(*fractions, indexing="ij"), -1).reshape(-1, 2) @ self.lattice
        radii = covalent_radii[self.numbers[which]] / covalent_radii[self.numbers[~self.slab.adsorbed]].mean()
        contact = BALL * self.spacing * (1 + radii) / 2
        height = positions @ self.slab.frame[2]
        near = self.of_slab & (height > height[self.of_slab].max() - 3 * self.spacing)
        which, positions, contact, height = which[near], positions[near], contact[near], height[near]
        across = self.slab.frame[:2]
        first = np.zeros(len(points), np.int64)
        for chunk in np.array_split(np.arange(len(points)), len(points) // 1000 + 1):
            apart = np.linalg.norm((points[chunk][:, None] - positions) @ across.T, axis=2)
            touch = height + np.sqrt(np.maximum(contact**2 - apart**2, 0))
            first[chunk] = which[np.where(apart < contact, touch, -np.inf).argmax(1)]
        return first

    # ---- sites -----------------------------------------------------------------------------------------------------

    def groups(self) -> Iterator[Int[ndarray, "n"]]:
        """Indices among the images of the atoms around each site: one for ontop, two for bridges, more for hollows."""
        chosen = np.flatnonzero(np.isin(self.images[0], self.exposed))
        flat = self.images[1][chosen] @ self.slab.frame[:2].T
        try:
            triangulation = Delaunay(flat)
        except QhullError as error:
            raise InputError(f"{self.slab.structure.where}: its surface cannot be triangulated ({error})") from error
        yield from chosen[:, None]
        centers = np.array([_circumcenter(flat[corners]) for corners in triangulation.simplices])
        outer = (triangulation.neighbors < 0).any(1)
        polygons = _same_circles(centers, triangulation.neighbors)
        edges: Counter[tuple[int, int]] = Counter()
        for polygon in polygons:
            corners, counts = np.unique(triangulation.simplices[polygon], return_counts=True)
            assert len(counts) == len(corners)
            sides = Counter(
                tuple(sorted((int(t[i]), int(t[(i + 1) % 3]))))
                for t in triangulation.simplices[polygon]
                for i in range(3)
            )
            edges.update({(a, b): 1 for (a, b), n in sides.items() if n == 1})
            if not outer[polygon].any():
                yield chosen[corners]
        yield from (chosen[list(edge)] for edge in edges)

    def middle(self, group: Int[ndarray, "n"]) -> _Found:
        """The position (Å) amid some images, and these."""
        return _Found(self.images[1][group].mean(0), group)

    def nearest(self, n: int, position: Float[ndarray, "3"]) -> _Found:
        """A position (Å), and the ``n`` exposed images nearest to it sideways, and those that are as near."""
        apart = np.linalg.norm((self.images[1] - position) @ self.slab.frame[:2].T, axis=1)
        apart = np.where(np.isin(self.images[0], self.exposed), apart, np.inf)
        order = np.argsort(apart)
        n = int((apart < apart[order[n - 1]] + SAME_CIRCLE).sum())
        return _Found(position, order[:n])

    def kinds(self, found: Sequence[_Found]) -> list[Site]:
        """Sites without copies, divided by what is around them; ontop first, then bridges, then hollows."""
        unique = self._inside(found)
        prints = [self._around(one.position) for one in unique]
        kinds: list[list[int]] = []
        for k in range(len(unique)):
            same = (kind for kind in kinds if np.abs(prints[kind[0]] - prints[k]).max() < SAME_DISTANCE)
            kind = next(same, None)
            if kind is None:
                kinds.append([k])
            else:
                kind.append(k)
        kinds.sort(key=lambda kind: (len(unique[kind[0]].group), self._name(unique[kind[0]])))
        names = [self._name(unique[kind[0]]) for kind in kinds]
        middle = self.lattice.sum(0) / 2
        sites = []
        for k, (name, kind) in enumerate(zip(names, kinds, strict=True)):
            title = name if names.count(name) == 1 else f"{name} {names[: k + 1].count(name)}"
            positions = np.stack([unique[i].position for i in kind])
            apart = np.linalg.norm((positions - middle) @ self.slab.frame[:2].T, axis=1)
            sites.append(Site(title, positions[np.argsort(apart.round(6), kind="stable")]))
        return sites

    def _inside(self, found: Sequence[_Found]) -> list[_Found]:
        """Sites in the cell, each once; further out the triangulation ends, and is not what it is in the cell."""
        flat = self.lattice @ self.slab.frame[:2].T
        positions = np.array([one.position for one in found])
        fractional = np.linalg.solve(flat.T, (positions @ self.slab.frame[:2].T).T).T
        inside = np.flatnonzero(((fractional > -EDGE) & (fractional < 1 + EDGE)).all(1))
        kept: list[_Found] = []
        apart = (fractional[inside, None] - fractional[inside]) % 1.0
        apart = np.minimum(apart, 1 - apart) @ np.linalg.norm(flat, axis=1)
        for k, one in enumerate(inside.tolist()):
            if (apart[k, :k] > SAME_POINT).all():
                kept.append(found[one])
        return kept

    def _around(self, position: Float[ndarray, "3"]) -> Float[ndarray, "n"]:
        """Sorted distances (Å) to the atoms of each element, those beyond a limit counted as at the limit."""
        which, positions = self.images
        limit = AROUND * self.spacing
        distances = np.linalg.norm(positions - position, axis=1).clip(max=limit)
        numbers = self.numbers[which]
        return np.concatenate([np.r_[np.sort(distances[numbers == z]), np.full(64, limit)][:64] for z in set(numbers)])

    def _name(self, one: _Found) -> str:
        kind = {1: "ontop", 2: "bridge"}.get(len(one.group), "hollow")
        if len(one.group) == 3:
            kind = self._hollow(one)
        numbers = self.numbers[self.images[0][one.group]]
        if len(set(self.numbers[self.exposed].tolist())) > 1:
            kind += f" {formula_of(numbers.tolist())}"
        return kind

    def _hollow(self, one: _Found) -> str:
        """``hcp`` or ``fcc`` in a close-packed layer, by whether an atom of the next layer lies below."""
        corners = self.images[1][one.group]
        position = corners.mean(0)
        sides = np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1)
        depth = (position - self.images[1]) @ self.slab.frame[2]
        if sides.max() > EQUILATERAL * sides.min() or depth.max() < 0.5 * self.spacing:
            return "hollow"
        apart = np.linalg.norm((self.images[1] - position) @ self.slab.frame[:2].T, axis=1)
        next_layer = self.of_slab & (depth > 0.5 * self.spacing) & (depth < 1.2 * self.spacing)
        return "hcp" if (apart[next_layer] < BELOW * self.spacing).any() else "fcc"


def _circumcenter(corners: Float[ndarray, "3 2"]) -> Float[ndarray, "2"]:
    a, b, c = corners
    sides = 2 * np.array([b - a, c - a])
    squares = np.array([b @ b - a @ a, c @ c - a @ a])
    return np.linalg.lstsq(sides, squares, rcond=None)[0]


def _same_circles(centers: Float[ndarray, "n 2"], neighbors: Int[ndarray, "n 3"]) -> list[list[int]]:
    """Triangles joined with neighbours whose circumcentres are the same."""
    seen: Bool[ndarray, n] = np.zeros(len(centers), bool)
    groups = []
    for start in range(len(centers)):
        group, queue = [], [] if seen[start] else [start]
        seen[start] = True
        while queue:
            here = queue.pop()
            group.append(here)
            for there in neighbors[here]:
                same = there >= 0 and np.linalg.norm(centers[there] - centers[start]) < SAME_CIRCLE
                if same and not seen[there]:
                    seen[there] = True
                    queue.append(int(there))
        groups += [group] if group else []
    return groups


def _by_pymatgen(slab: Slab) -> list[tuple[int, Float[ndarray, "3"]]]:
    """All positions that pymatgen finds on the upper side, before symmetry, with the number of atoms around each."""
    adsorption, surface, adaptor = (
        extra(f"pymatgen.{module}", "surfaces") for module in ("analysis.adsorption", "core.surface", "io.ase")
    )
    s, keep = slab.structure, ~slab.adsorbed
    # pymatgen looks along a × b; the third vector only has to clear the slab.
    first, second = s.cell[slab.in_plane] @ slab.frame.T
    if first[0] * second[1] < first[1] * second[0]:
        first, second = second, first
    cell = np.stack([first, second, [0.0, 0.0, np.ptp(slab.heights) + 20.0]])
    atoms = Atoms(s.numbers[keep], s.positions[keep] @ slab.frame.T, cell=cell, pbc=True)
    raised = np.array([0.0, 0.0, 1.0 - atoms.positions[:, 2].min()])
    atoms.positions += raised
    structure = adaptor.AseAtomsAdaptor.get_structure(atoms)
    lattice, species, fractional = structure.lattice, structure.species, structure.frac_coords
    made = surface.Slab(lattice, species, fractional, (0, 0, 1), structure, 0, np.eye(3), reorient_lattice=False)
    finder = adsorption.AdsorbateSiteFinder(made)
    found = finder.find_adsorption_sites(distance=0.0, symm_reduce=0, near_reduce=SAME_POINT, no_obtuse_hollow=True)
    kinds = (("ontop", 1), ("bridge", 2), ("hollow", 3))
    return [(n, (p - raised) @ slab.frame) for kind, n in kinds for p in found.get(kind, [])]
