"""Is the highest image a saddle point? Frequencies there, of the atoms that take part."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from equicat.data.structure import Structure
from equicat.relaxation.held import free_directions
from equicat.relaxation.models import ForceModel
from equicat.vibrations.config import VibrationConfig
from equicat.vibrations.modes import vibrations_of

TAKES_PART = 0.1
"""Å; an atom that moves further along the path takes part, and so does every adsorbate (tag 2)."""
IMAGINARY = 30.0
"""cm⁻¹; below this an imaginary frequency may be rounding, or a force that is not quite zero."""


def taking_part(path: Sequence[Structure]) -> Bool[ndarray, "n_atoms"]:
    """The atoms that are displaced: those free to move that do so along the path, and free atoms of adsorbates."""
    moved = np.stack([np.linalg.norm(image.positions - path[0].positions, axis=1) for image in path]).max(0)
    assert path[0].tags is not None
    return ((moved > TAKES_PART) | (path[0].tags == 2)) & free_directions(path[0]).any(axis=(1, 2))


def frequencies(
    path: Sequence[Structure], image: int, model: ForceModel, edges: int | None
) -> Float[ndarray, "n_modes"] | None:
    """Frequencies (cm⁻¹) at an image, of the atoms that take part in the path, all others held.

    Args:
        path: all images.
        image: number of the one to look at.
        model: gives the forces.
        edges: in a batch at most.

    Returns:
        In ascending order, imaginary ones negative; none where forces were not finite. None if no atom takes part.
    """
    chosen = tuple(int(atom) for atom in np.flatnonzero(taking_part(path)))
    if not chosen:
        return None
    (found,) = vibrations_of([path[image]], model, VibrationConfig(atoms=chosen, gas="no", edges=edges))
    return found.frequencies
