"""Placements: adsorbates lowered onto the sites of a slab, in several turns and heights, or at random; no overlaps.

A placement in which atoms overlap is left out and counted by its reason; if nothing is left of an adsorbate, it is an
error.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated

import numpy as np
from ase.data import covalent_radii
from jaxtyping import Float, Int
from numpy import ndarray

from equicat.adsorption.adsorbates import Adsorbate, distinct_turns
from equicat.adsorption.sites import Finder, Site, find_sites, kind_at, sideways
from equicat.adsorption.slabs import Slab
from equicat.data.contacts import BONDED_RATIO, contact_ratios
from equicat.data.structure import Structure
from equicat.errors import InputError, nearest
from equicat.options.values import Checked, Length, Natural, Number, PositiveNumber, Range

CONTACT = 1.0
"""Distance at which a lowered adsorbate stops, in sums of covalent radii."""
OVERLAP = 0.8
"""Sums of covalent radii. Atoms of an adsorbate closer than this to the slab overlap with it."""
RANDOM = "random"
"""Site of a placement for which none was chosen."""


@dataclass(frozen=True)
class PlacementConfig(Checked):
    """Where and how adsorbates are placed."""

    sites: tuple[str, ...] = ()
    """Names of sites, such as fcc, or the beginning of names, such as bridge. Default: all."""
    finder: Finder = "auto"
    """Who finds sites: pymatgen, delaunay (equicat's own), or auto (pymatgen if it is installed)."""
    rotations: Annotated[int, Range(at_least=1, at_most=360)] = 3
    """Equal turns about the normal of the surface; those that change nothing are left out."""
    heights: Annotated[tuple[Number, ...], Length(1)] = (0.0,)
    """Å above the height at which the first atom touches the slab (a sum of covalent radii)."""
    n_random: Annotated[int, Range(at_least=0, at_most=100_000)] = 0
    """Further placements of each adsorbate, at random points and turns."""
    seed: Natural = 0
    """Seed of the random placements."""
    coverage: PositiveNumber | None = None
    """Adsorbates for each exposed atom of the surface: so many are placed on sites of one kind, far apart."""


@dataclass(frozen=True, eq=False)
class Placement:
    """Adsorbates on a slab, before relaxation."""

    adsorbates: tuple[Adsorbate, ...]
    site: str
    """Names of the sites, joined by ``+``; :data:`RANDOM` where no site was chosen."""
    turn: float
    """Degrees about the normal of the surface."""
    height: float
    """Å above contact."""
    structure: Structure

    @property
    def load(self) -> str:
        """Adsorbates on the slab in words: ``CO``, ``4 CO``, ``CO+O``."""
        return load_name(self.adsorbates)


def load_name(adsorbates: Sequence[Adsorbate]) -> str:
    """Names of adsorbates with their counts."""
    counts = Counter(one.name for one in adsorbates)
    return "+".join(f"{n} {name}" if n > 1 else name for name, n in counts.items())


@dataclass(frozen=True, eq=False)
class Placed:
    """All placements on a slab, and what was left out."""

    placements: list[Placement]
    sites: list[Site]
    notes: tuple[str, ...]


def place(slab: Slab, loads: Sequence[tuple[Adsorbate, ...]], config: PlacementConfig) -> Placed:
    """Placements of every load (one adsorbate, or several together) on every kind of site.

    Raises:
        InputError: if an adsorbate is larger than the cell, overlaps with the slab wherever it is put, or there is no
            such site.
    """
    sites, note = find_sites(slab, config.finder)
    chosen = _chosen(sites, config.sites)
    n_exposed = sum(len(site.positions) for site in sites if site.name.startswith("ontop"))
    notes, placements = [note], []
    for load in loads:
        if config.coverage is not None:
            load = load * _copies(config.coverage, n_exposed, len(load))
            notes.append(
                f"Coverage: {len(load)} adsorbates on {n_exposed} exposed atoms, {len(load) / n_exposed:.3g} an atom."
            )
        rng = np.random.default_rng(config.seed)
        reasons: Counter[str] = Counter()
        found = []
        for k, (site, turn, height, points) in enumerate(_plans(slab, load, chosen, config, rng)):
            structure, reason = _put(slab, load, points, turn, height)
            if structure is None:
                reasons[reason] += 1
                continue
            structure = _named(structure, f"{load_name(load)} {k} {site}")
            found.append(Placement(load, site, turn, height, structure))
        if not found:
            raise InputError(f"{load_name(load)} on {slab.structure.where}: {_nothing_left(reasons)}")
        if reasons:
            left_out = ", ".join(f"{n} because {reason}" for reason, n in reasons.items())
            notes.append(f"Left out of {load_name(load)}: {left_out}.")
        placements += found
    counts = Counter(placement.load for placement in placements)
    notes.append(f"Placements: {', '.join(f'{n} of {name}' for name, n in counts.items())}.")
    return Placed(placements, sites, tuple(notes))


def _chosen(sites: Sequence[Site], names: Sequence[str]) -> list[Site]:
    chosen = [site for site in sites if not names or any(site.name.startswith(name) for name in names)]
    for name in names:
        if not any(site.name.startswith(name) for site in sites):
            known = [site.name for site in sites]
            raise InputError(f"no site {name!r}{nearest(name, known)}; this slab has {', '.join(known)}")
    return chosen


def _copies(coverage: float, n_exposed: int, n_adsorbates: int) -> int:
    copies = round(coverage * n_exposed / n_adsorbates)
    if copies < 1:
        raise InputError(
            f"coverage {coverage:g} of {n_exposed} exposed atoms is less than one adsorbate; use a larger slab"
        )
    return copies


def _plans(
    slab: Slab, load: tuple[Adsorbate, ...], sites: Sequence[Site], config: PlacementConfig, rng: np.random.Generator
) -> Iterator[tuple[str, float, float, list[Float[ndarray, "3"]]]]:
    """Name of the site, turn, height, and a point for each adsorbate, of all placements of a load."""
    turns = sorted({turn for one in load for turn in distinct_turns(one, config.rotations)})
    alike = len({one.name for one in load}) == 1
    kinds = ((site,) * len(load) for site in sites) if alike else product(sites, repeat=len(load))
    for combination in kinds:
        points = _spread(slab, combination)
        if points is None:
            continue
        name = combination[0].name if alike else "+".join(site.name for site in combination)
        for turn, height in product(turns, config.heights):
            yield name, turn, height, points
    lattice = slab.structure.cell[slab.in_plane]
    for _ in range(config.n_random):
        points = list(rng.random((len(load), 2)) @ lattice)
        turn = 0.0 if turns == [0.0] and len(load) == 1 else 360.0 * rng.random()
        yield RANDOM, turn, config.heights[0], points


def _spread(slab: Slab, sites: Sequence[Site]) -> list[Float[ndarray, "3"]] | None:
    """One position of each site, each as far as possible from those before; None if there are not enough."""
    points: list[Float[ndarray, 3]] = [sites[0].positions[0]]
    for site in sites[1:]:
        nearest_one = np.min(
            [np.linalg.norm(sideways(slab, site.positions - point), axis=1) for point in points], axis=0
        )
        # The first of equally far ones counts, whatever the last digit says.
        best = int(np.round(nearest_one, 6).argmax())
        if nearest_one[best] < 1e-3:
            return None
        points.append(site.positions[best])
    return points


def _put(
    slab: Slab, load: Sequence[Adsorbate], points: Sequence[Float[ndarray, "3"]], turn: float, height: float
) -> tuple[Structure | None, str]:
    """The slab with adsorbates above points (Å), or None and what is wrong."""
    base = slab.structure
    numbers, positions = base.numbers, base.positions
    molecule = np.full(len(base), -1)
    for k, (one, point) in enumerate(zip(load, points, strict=True)):
        atoms = _lowered(slab, one.numbers, one.turned(turn) @ slab.frame, point, height)
        numbers, positions = np.r_[numbers, one.numbers], np.concatenate([positions, atoms])
        molecule = np.r_[molecule, np.full(len(one.numbers), k)]
    reason = _overlap(slab, numbers, positions, molecule)
    if reason:
        return None, reason
    assert base.tags is not None
    assert base.fixed is not None
    new = molecule >= 0
    free = np.tile(np.eye(3), (new.sum(), 1, 1))
    structure = Structure(
        numbers,
        positions,
        cell=base.cell,
        pbc=base.pbc,
        fixed=np.r_[base.fixed, np.zeros(new.sum(), bool)],
        tags=np.r_[base.tags, np.full(new.sum(), 2)],
        free_directions=None if base.free_directions is None else np.concatenate([base.free_directions, free]),
        other_constraints=base.other_constraints,
    )
    return structure, ""


def _named(structure: Structure, name: str) -> Structure:
    return Structure(**{**vars(structure), "sid": name, "source": name})


def _lowered(
    slab: Slab,
    numbers: Int[ndarray, "n"],
    positions: Float[ndarray, "n 3"],
    point: Float[ndarray, "3"],
    height: float,
) -> Float[ndarray, "n 3"]:
    """Positions (Å) above a point, as high as the first atom touches the slab, and ``height`` more."""
    up = slab.frame[2]
    base, below = slab.structure, ~slab.adsorbed
    positions = positions + point - (point @ up) * up
    vectors = (positions[:, None] - base.positions[below]).reshape(-1, 3)
    apart = np.linalg.norm(sideways(slab, vectors), axis=1).reshape(len(numbers), -1)
    reach = CONTACT * (covalent_radii[numbers][:, None] + covalent_radii[base.numbers[below]])
    touching = (base.positions[below] @ up) + np.sqrt(np.maximum(reach**2 - apart**2, 0.0))
    lift = np.where(apart < reach, touching - (positions @ up)[:, None], -np.inf)
    if not np.isfinite(lift.max()):  # above a hole that no atom of the adsorbate touches: as high as the top atom
        lift = np.array(slab.heights[below].max() - (positions @ up).min())
    return positions + (lift.max() + height) * up


def _overlap(
    slab: Slab, numbers: Int[ndarray, "n"], positions: Float[ndarray, "n 3"], molecule: Int[ndarray, "n"]
) -> str:
    """Reason why a placement is left out, or an empty string."""
    new = molecule >= 0
    s = slab.structure
    ratios = contact_ratios(numbers, positions, s.cell, s.pbc, new)
    other = molecule[new][:, None] != molecule
    adsorbed = np.r_[slab.adsorbed, np.ones(new.sum(), bool)]
    if (ratios[:, ~adsorbed] < OVERLAP).any():
        return "it overlaps with the slab"
    if (np.where(other, ratios, np.inf)[:, adsorbed] < BONDED_RATIO).any():
        return "it touches another adsorbate"
    for k in range(molecule.max() + 1):
        own = molecule == k
        if _image_ratio(numbers[own], positions[own], slab) < BONDED_RATIO:
            return "it touches its own periodic image"
    return ""


def _image_ratio(numbers: Int[ndarray, "n"], positions: Float[ndarray, "n 3"], slab: Slab) -> float:
    """Shortest distance of a molecule to its own periodic images, in sums of covalent radii."""
    steps = [np.arange(-2, 3) if periodic else np.zeros(1, int) for periodic in slab.structure.pbc]
    shifts = np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 3)
    moved = shifts[(shifts != 0).any(1)] @ slab.structure.cell
    vectors = positions[:, None, None] - positions[None, :, None] + moved
    radii = covalent_radii[numbers]
    return float((np.linalg.norm(vectors, axis=3) / (radii[:, None] + radii)[:, :, None]).min(initial=np.inf))


def _nothing_left(reasons: Counter[str]) -> str:
    """Why no placement is possible, and what to do."""
    if not reasons:
        return "there are fewer sites of a kind than adsorbates; lower --coverage, or use a larger slab"
    reason, _ = reasons.most_common(1)[0]
    advice = {
        "it overlaps with the slab": "the adsorbate overlaps with the slab wherever it is put; raise --heights",
        "it touches another adsorbate": "it touches another adsorbate wherever it is put; lower --coverage, or use a "
        "larger slab",
        "it touches its own periodic image": "the adsorbate is larger than the cell, it touches its own periodic "
        "image; use a larger slab",
    }
    return advice[reason]


def sites_of(slab: Slab, sites: Sequence[Site], relaxed: Structure, load: Sequence[Adsorbate]) -> str:
    """Names of the sites that adsorbates are at: those nearest to the lowest atom of each, joined by ``+``."""
    start, names = len(slab.structure), []
    for one in load:
        atoms = np.arange(start, start + len(one.numbers))
        start += len(one.numbers)
        lowest = atoms[(relaxed.positions[atoms] @ slab.frame[2]).argmin()]
        names.append(kind_at(slab, sites, relaxed.positions[lowest]))
    return names[0] if len(set(names)) == 1 else "+".join(names)
