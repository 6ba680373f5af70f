"""Where the empty space of a cell is: what makes a structure a slab or a molecule, and what is up."""

import numpy as np
from ase.geometry import complete_cell
from jaxtyping import Bool, Float
from numpy import ndarray

from equicat.data.structure import Structure
from equicat.errors import InputError

MIN_VACUUM = 3.0
"""Å. Less empty space than this along a periodic direction is no vacuum."""


class UnclearAdsorbate(InputError):
    """Raised where it cannot be told which atoms are the adsorbate."""


class NoVacuum(UnclearAdsorbate):
    """There is no adsorbate without a surface, and no surface in a structure that is periodic without a gap."""


def heights(structure: Structure, fixed: Bool[ndarray, "n_atoms"]) -> Float[ndarray, "n_atoms"]:
    """Height (Å) of each atom above the lowest along the normal of the surface; fixed atoms are at the bottom.

    Raises:
        NoVacuum: if there is no vacuum.
    """
    axis = vacuum_axis(structure)
    fractional, spacing, _ = _across(structure)
    height = fractional[:, axis] * spacing[axis]
    if structure.pbc[axis]:
        # Cut open in the middle of the largest gap: a slab may stick out of one end of its cell and in at the other.
        ordered = np.sort(height % spacing[axis])
        gaps = np.diff(ordered, append=ordered[0] + spacing[axis])
        height = (height - ordered[(int(gaps.argmax()) + 1) % len(ordered)] + 1e-9) % spacing[axis]
    height = height - height.min()
    if fixed.any() and not fixed.all() and height[fixed].mean() > height[~fixed].mean():
        height = height.max() - height
    return height


def vacuum_axis(structure: Structure) -> int:
    """The lattice vector that crosses the vacuum.

    Raises:
        NoVacuum: if there is no vacuum.
    """
    _, _, gaps = _across(structure)
    # The last of equal ones: of several directions that are not periodic, z is up.
    axis: int = 2 - int(gaps[::-1].argmax())
    if gaps[axis] < MIN_VACUUM:
        raise NoVacuum(f"{structure.where}: no vacuum (largest gap {gaps[axis]:.1f} Å), so no surface; give tags")
    return axis


def is_surrounded_by_vacuum(structure: Structure) -> bool:
    """Whether there is empty space along all three lattice vectors, as around a molecule in a box."""
    return bool((_across(structure)[2] >= MIN_VACUUM).all())


def _across(
    structure: Structure,
) -> tuple[Float[ndarray, "n_atoms 3"], Float[ndarray, "3"], Float[ndarray, "3"]]:
    """Fractional coordinates; distance (Å) between opposite faces of the cell; largest gap (Å) along each vector.

    Along a direction that is not periodic the gap is infinite.
    """
    cell = complete_cell(structure.cell)
    spacing = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    fractional = np.linalg.solve(cell.T, structure.positions.T).T
    gaps = np.full(3, np.inf)
    for i in np.flatnonzero(structure.pbc):
        ordered = np.sort(fractional[:, i] % 1.0)
        gaps[i] = np.diff(ordered, append=ordered[0] + 1.0).max() * spacing[i]
    return fractional, spacing, gaps
