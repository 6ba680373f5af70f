"""Constraints: atoms that are fixed, and directions along which others are held."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray
from torch import Tensor

from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.relaxation.layout import Change

ZERO = 1e-12
"""Entries of a projector smaller than this are its rounding."""


def free_directions(structure: Structure) -> Float[ndarray, "n_atoms 3 3"]:
    """Projectors onto the directions in which each atom may move; zero for fixed atoms."""
    given = structure.free_directions
    projectors = np.tile(np.eye(3), (len(structure), 1, 1)) if given is None else np.array(given)
    projectors[structure.fixed] = 0.0
    projectors[np.abs(projectors) < ZERO] = 0.0
    return projectors


def check_constraints(structure: Structure, purpose: str) -> None:
    """Refuse constraints that tie atoms to each other.

    Args:
        structure: which may have some.
        purpose: what cannot be done under them, a verb.

    Raises:
        InputError: naming them.
    """
    if structure.other_constraints:
        raise InputError(
            f"{structure.where}: cannot {purpose} under {', '.join(structure.other_constraints)}; of ASE's constraints "
            "only those that hold atoms are followed (FixAtoms, FixCartesian, FixScaled, FixedLine, FixedPlane): "
            "remove it, or hold atoms instead"
        )


@dataclass(frozen=True, eq=False)
class Freedom:
    """Directions in which the atoms of all systems that are relaxed together may move."""

    projectors: Float[Tensor, "n_atoms 3 3"]
    moves: Bool[Tensor, "n_atoms 3"]
    """Whether a coordinate can change at all; the others keep their bits."""
    atoms: Int[Tensor, "n_moving"]
    """Indices of the atoms that can move, ascending."""

    @classmethod
    def of(cls, projectors: Float[Tensor, "n_atoms 3 3"]) -> "Freedom":
        """The freedom that projectors leave."""
        moves = (projectors != 0).any(2)
        return cls(projectors, moves, moves.any(1).nonzero()[:, 0])

    def changed(self, change: Change, new: Float[Tensor, "n_new_atoms 3 3"]) -> "Freedom":
        """After some systems have left and others, with these projectors, have come."""
        return Freedom.of(torch.cat([self.projectors.index_select(0, change.atoms), new]))

    def along(self, forces: Float[Tensor, "n_atoms 3"]) -> Float[Tensor, "n_atoms 3"]:
        """The parts of forces along what is free; exactly zero, whatever the force, along what is not."""
        x, y, z = (forces[:, None, :] * self.projectors).unbind(2)
        return torch.where(self.moves, x + y + z, 0.0)

    def of_moving(self, values: Shaped[Tensor, "n_atoms 3"]) -> Shaped[Tensor, "n_moving 3"]:
        """The rows of the atoms that can move."""
        return values.index_select(0, self.atoms)

    def moved(
        self, positions: Float[Tensor, "n_atoms 3"], to: Float[Tensor, "n_moving 3"]
    ) -> Float[Tensor, "n_atoms 3"]:
        """Positions with the atoms that can move elsewhere; coordinates that are held keep their bits."""
        held = torch.where(self.of_moving(self.moves), to, self.of_moving(positions))
        return positions.index_copy(0, self.atoms, held)
