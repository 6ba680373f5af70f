"""Clean slabs, from files or built: which way is up, which atoms are fixed, which are the surface; all of it stated."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.geometry import complete_cell
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from equicat.adsorption.builders import SlabConfig, build_slab, slab_named
from equicat.data.contacts import formula_of
from equicat.data.readers import read
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.sources.dft.tagging import SURFACE_DEPTH
from equicat.sources.dft.vacuum import MIN_VACUUM, NoVacuum, vacuum_axis

SAME_LAYER = 0.3
"""Å. Atoms whose heights differ by less, one after the other, are one layer."""
FIXED_LAYERS = 2
"""Lowest layers that are fixed where neither the file nor the user says which."""


@dataclass(frozen=True, eq=False)
class Slab:
    """A clean slab, ready for adsorbates."""

    structure: Structure
    """Atoms in one piece across the vacuum, with fixed atoms and tags (0 subsurface, 1 surface, 2 adsorbed already)."""
    frame: Float[ndarray, "3 3"]
    """Rows are unit vectors: along the first lattice vector in the surface, across it, and out of the surface."""
    axis: int
    """Which lattice vector crosses the vacuum."""
    notes: tuple[str, ...]
    """How the slab was made or changed, in sentences."""

    @property
    def heights(self) -> Float[ndarray, "n_atoms"]:
        """Å along the outward normal."""
        return self.structure.positions @ self.frame[2]

    @property
    def in_plane(self) -> Bool[ndarray, "3"]:
        """Periodic lattice vectors in the surface."""
        return self.structure.pbc & (np.arange(3) != self.axis)

    @property
    def adsorbed(self) -> Bool[ndarray, "n_atoms"]:
        """Atoms of adsorbates that the slab came with."""
        assert self.structure.tags is not None
        return self.structure.tags == 2

    @property
    def layers(self) -> Int[ndarray, "n_atoms"]:
        """Layer of each atom, 0 the highest; −1 for adsorbates."""
        layers = np.full(len(self.structure), -1)
        below = ~self.adsorbed
        layers[below] = layers_of(-self.heights[below])
        return layers


def layers_of(heights: Float[ndarray, "n_atoms"]) -> Int[ndarray, "n_atoms"]:
    """Layer of each atom, 0 the one with the smallest height (Å)."""
    order = np.argsort(heights, kind="stable")
    layers = np.zeros(len(heights), np.int64)
    layers[order] = np.r_[0, np.cumsum(np.diff(heights[order]) > SAME_LAYER)]
    return layers


def open_slab(slab: str | Path | Atoms | Structure | Slab, config: SlabConfig) -> Slab:
    """A slab from a file, from a name such as ``Cu(111) 3x3x4``, or from a structure in memory.

    Args:
        slab: file with one slab (of a trajectory the last frame counts), name, or structure; a ready one is returned.
        config: how to build and what to fix.

    Raises:
        InputError: if there is no such slab, it has no vacuum, or all its atoms are fixed.
    """
    if isinstance(slab, Slab):
        return slab
    if isinstance(slab, Structure):
        return prepared(slab, config)
    if isinstance(slab, Atoms):
        return prepared(Structure.from_ase(slab, source="slab"), config)
    name = slab_named(str(slab))
    if name is not None and not Path(slab).exists():
        atoms, note = build_slab(name, config)
        return prepared(Structure.from_ase(atoms, source=str(slab)), config, (note,))
    if not Path(slab).exists():
        raise InputError(
            f"{slab}: no such file, and no name of a slab; give a structure file, or a name such as 'Cu(111) 3x3x4'"
        )
    return prepared(*_from_file(Path(slab), config))


def _from_file(path: Path, config: SlabConfig) -> tuple[Structure, SlabConfig, tuple[str, ...]]:
    """The last frame of a file, and a sentence about it.

    Raises:
        InputError: if the frames have different atoms.
    """
    frames = list(read(path))
    last = frames[-1]
    for frame in frames:
        if not np.array_equal(frame.numbers, last.numbers):
            raise InputError(
                f"{path}: holds different systems ({formula_of(frame.numbers.tolist())} and "
                f"{formula_of(last.numbers.tolist())}); give a file with one slab"
            )
    which = "" if len(frames) == 1 else f", the last of {len(frames)} frames"
    return last, config, (f"Slab: {formula_of(last.numbers.tolist())} from {path}{which}.",)


def prepared(structure: Structure, config: SlabConfig, notes: tuple[str, ...] = ()) -> Slab:
    """The slab of a structure; nothing but whole lattice vectors is added to positions.

    Raises:
        InputError: if it has no vacuum, or no atom is free.
    """
    try:
        axis = vacuum_axis(structure)
    except NoVacuum as error:
        raise InputError(
            f"{structure.where}: no vacuum: no gap of {MIN_VACUUM:g} Å along any lattice vector, so this is no slab; "
            "add vacuum along one of them"
        ) from error
    _check_periodic(structure, axis)
    positions = _in_one_piece(structure, axis)
    frame, side = _frame(structure, positions, axis)
    heights = positions @ frame[2]
    adsorbed, surface = _tags_of_oc20(structure, heights)
    fixed, how_fixed = _fixed(structure, heights, adsorbed, config)
    if surface is None:
        tops = heights > heights[~adsorbed].max() - SURFACE_DEPTH
        surface = ~adsorbed & (~fixed if fixed.any() else tops)
    tags = np.where(adsorbed, 2, surface.astype(np.int64))
    slab = Structure(
        structure.numbers,
        positions,
        cell=structure.cell,
        pbc=structure.pbc,
        fixed=fixed,
        tags=tags,
        sid="clean slab",
        source=structure.where,
        free_directions=structure.free_directions,
        other_constraints=structure.other_constraints,
    )
    counted = f"Tags: {(tags == 0).sum()} subsurface, {(tags == 1).sum()} surface atoms"
    counted += f", {adsorbed.sum()} of adsorbates that the slab came with." if adsorbed.any() else "."
    return Slab(slab, frame, axis, tuple(note for note in (*notes, side, how_fixed, counted) if note))


def _check_periodic(structure: Structure, axis: int) -> None:
    if np.delete(structure.pbc, axis).sum() != 2:
        raise InputError(
            f"{structure.where}: periodic along {structure.pbc.tolist()}; a slab must be periodic along the two "
            "lattice vectors of its surface; set pbc"
        )


def _in_one_piece(structure: Structure, axis: int) -> Float[ndarray, "n_atoms 3"]:
    """Positions (Å), moved along the vector across the vacuum so that the slab does not stick out of its cell."""
    if not structure.pbc[axis]:
        return structure.positions.copy()
    fractional = np.linalg.solve(complete_cell(structure.cell).T, structure.positions.T)[axis]
    ordered = np.sort(fractional % 1.0)
    gaps = np.diff(ordered, append=ordered[0] + 1.0)
    lowest = ordered[(int(gaps.argmax()) + 1) % len(ordered)]
    jumps = np.round((fractional - lowest + 1e-6) % 1.0 + lowest - 1e-6 - fractional)
    return structure.positions + (jumps - np.median(jumps))[:, None] * structure.cell[axis]


def _frame(
    structure: Structure, positions: Float[ndarray, "n_atoms 3"], axis: int
) -> tuple[Float[ndarray, "3 3"], str]:
    """The axes of the surface, and a sentence if it is not the upper side; fixed atoms are at the bottom."""
    cell = complete_cell(structure.cell)
    first, second = cell[(axis + 1) % 3], cell[(axis + 2) % 3]
    up = np.cross(first, second)
    up *= np.sign(up @ cell[axis]) / np.linalg.norm(up)
    fixed, side = structure.fixed, ""
    assert fixed is not None
    heights = positions @ up
    if fixed.any() and not fixed.all() and heights[fixed].mean() > heights[~fixed].mean():
        up, side = -up, "Surface: the lower side, because the fixed atoms are at the upper one."
    along = first / np.linalg.norm(first)
    return np.stack([along, np.cross(up, along), up]), side


def _tags_of_oc20(
    structure: Structure, heights: Float[ndarray, "n_atoms"]
) -> tuple[Bool[ndarray, "n_atoms"], Bool[ndarray, "n_atoms"] | None]:
    """Atoms tagged as adsorbates, and those tagged as surface, or None if the tags are not OC20's.

    The builders of ASE number layers from 1 at the top, and leave 0 to adsorbates; heights tell the two apart.
    """
    tags = structure.tags
    assert tags is not None
    none = np.zeros(len(tags), bool)
    if tags.min() != 0 or not 1 <= tags.max() <= 2:
        return none, None
    bottom = heights[tags == 0].mean()
    if any((tags == tag).any() and heights[tags == tag].mean() < bottom for tag in (1, 2)):
        return none, None
    return tags == 2, (tags == 1 if (tags == 1).any() else None)


def _fixed(
    structure: Structure, heights: Float[ndarray, "n_atoms"], adsorbed: Bool[ndarray, "n_atoms"], config: SlabConfig
) -> tuple[Bool[ndarray, "n_atoms"], str]:
    """Fixed atoms, and how they were chosen.

    Raises:
        InputError: if no atom of the slab is left free, or there are not as many layers.
    """
    assert structure.fixed is not None
    if structure.fixed.any() and config.fixed_layers is None:
        fixed, how = structure.fixed, "as the slab has them"
    else:
        layers = np.full(len(heights), -1)
        layers[~adsorbed] = layers_of(heights[~adsorbed])
        n_layers = int(layers.max()) + 1
        n = min(FIXED_LAYERS, n_layers - 1) if config.fixed_layers is None else config.fixed_layers
        if n > n_layers:
            raise InputError(f"{structure.where}: --fixed_layers is {n}, but the slab has {n_layers} layers")
        fixed, how = ~adsorbed & (layers < n), f"the lowest {n} of {n_layers} layers"
        how += "" if config.fixed_layers is not None else ", because the slab fixes none"
    if fixed[~adsorbed].all():
        raise InputError(
            f"{structure.where}: every atom of the slab is fixed, so it cannot relax; free the upper layers, or say "
            "with --fixed_layers how many of the lowest are fixed"
        )
    return fixed, f"Fixed: {fixed.sum()} of {len(fixed)} atoms, {how}."
