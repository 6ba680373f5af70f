"""Which atom belongs to which of the systems that are relaxed together, and sums and maxima over each system.

Every operation here works on one system at a time as far as bits are concerned: on a CPU a system's sums come out the
same, to the last digit, whatever other systems stand beside it.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """The atoms of all systems stand one after the other, system by system."""

    system_idx: Int[Tensor, "n_atoms"]
    """The system of each atom, ascending."""
    coordinate_idx: Int[Tensor, "n_coordinates"]
    """The system of each coordinate: sums and products over flat arrays are the fastest."""
    n_systems: int

    @classmethod
    def of(cls, n_atoms: Int[Tensor, "n_systems"]) -> "Layout":
        """The layout of systems with these numbers of atoms, on the device of ``n_atoms``."""
        systems = torch.arange(len(n_atoms), device=n_atoms.device)
        return cls(
            torch.repeat_interleave(systems, n_atoms), torch.repeat_interleave(systems, 3 * n_atoms), len(n_atoms)
        )

    @property
    def n_atoms(self) -> int:
        """Atoms of all systems together."""
        return len(self.system_idx)

    def dot(self, a: Float[Tensor, "n_atoms 3"], b: Float[Tensor, "n_atoms 3"]) -> Float[Tensor, "n_systems"]:
        """Σ a·b over the atoms of each system."""
        return a.new_zeros(self.n_systems).index_add_(0, self.coordinate_idx, (a * b).view(-1))

    def largest(self, vectors: Float[Tensor, "n_atoms 3"]) -> Float[Tensor, "n_systems"]:
        """The norm of the longest vector of each system; infinity where one is not a number."""
        x, y, z = vectors.unbind(1)
        norms = (x * x + y * y + z * z).sqrt()
        norms = torch.where(norms.isnan(), torch.inf, norms)  # not every device keeps NaN in a maximum
        return norms.new_zeros(self.n_systems).scatter_reduce_(0, self.system_idx, norms, "amax")

    @cached_property
    def first_coordinate(self) -> Int[Tensor, "n_ends"]:
        """Where the coordinates of each system begin, and where those of the last one end."""
        counts = torch.bincount(self.coordinate_idx, minlength=self.n_systems)
        return torch.nn.functional.pad(counts.cumsum(0), (1, 0))

    @cached_property
    def _padding(self) -> tuple[Int[Tensor, "n_coordinates"], int]:
        """Place of each coordinate when all systems have as many as the largest, and that many."""
        counts = torch.bincount(self.coordinate_idx, minlength=self.n_systems)
        n, first = int(counts.max()), counts.cumsum(0) - counts
        within = torch.arange(len(self.coordinate_idx), device=counts.device) - first.index_select(
            0, self.coordinate_idx
        )
        return self.coordinate_idx * n + within, n

    def padded(self, values: Float[Tensor, "n_rows n_atoms 3"]) -> Float[Tensor, "n_systems n_rows n_largest"]:
        """Rows of coordinates for each system, filled up with zeros."""
        place, n = self._padding
        flat = values.new_zeros(len(values), self.n_systems * n).index_copy_(1, place, values.flatten(1))
        return flat.view(len(values), self.n_systems, n).transpose(0, 1)

    def unpadded(self, values: Float[Tensor, "n_systems n_rows n_largest"]) -> Float[Tensor, "n_rows n_atoms 3"]:
        """The inverse of :meth:`padded`."""
        flat = values.transpose(0, 1).flatten(1).index_select(1, self._padding[0])
        return flat.view(len(flat), -1, 3)

    def by_atom(self, values: Shaped[Tensor, "n_systems"]) -> Shaped[Tensor, "n_atoms 3"]:
        """The value of each atom's system, for each coordinate."""
        return values.index_select(0, self.coordinate_idx).view(-1, 3)

    def atoms_of(self, systems: Bool[Tensor, "n_systems"]) -> Int[Tensor, "n_chosen"]:
        """Indices of the atoms of some systems."""
        return systems.index_select(0, self.system_idx).nonzero()[:, 0]


@dataclass(frozen=True, eq=False)
class Change:
    """Some systems stay, in their order, and new ones are appended: how arrays of atoms and of systems follow."""

    atoms: Int[Tensor, "n_kept_atoms"]
    """Indices of the atoms that stay."""
    systems: Int[Tensor, "n_kept_systems"]
    """Indices of the systems that stay."""
    n_new_atoms: int
    n_new_systems: int

    def of_atoms(self, values: Shaped[Tensor, "..."], axis: int = 0) -> Shaped[Tensor, "..."]:
        """An array with one entry for each atom along ``axis``; those of new atoms are zero."""
        kept = values.index_select(axis, self.atoms)
        return _appended(kept, self.n_new_atoms, axis, 0.0)

    def of_systems(self, values: Shaped[Tensor, "..."], axis: int = 0, new: float = 0.0) -> Shaped[Tensor, "..."]:
        """An array with one entry for each system along ``axis``; those of new systems are ``new``."""
        return _appended(values.index_select(axis, self.systems), self.n_new_systems, axis, new)


def _appended(values: Tensor, n: int, axis: int, value: float) -> Tensor:
    shape = list(values.shape)
    shape[axis] = n
    return torch.cat([values, values.new_full(shape, value)], dim=axis) if n else values
