"""Which atom belongs to which of the systems that are relaxed together, and sums and maxima over each system.

Every operation here works on one system at a time as far as bits are concerned: on a CPU a system's sums come out the
same, to the last digit, whatever other systems stand beside it.
"""

from dataclasses import dataclass

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

    def dots(
        self, many: Float[Tensor, "n_vectors n_atoms 3"], one: Float[Tensor, "n_atoms 3"]
    ) -> Float[Tensor, "n_vectors n_systems"]:
        """Σ a·b over the atoms of each system, for each a of ``many``."""
        place = torch.arange(0, len(many), device=one.device)[:, None] * self.n_systems + self.coordinate_idx
        sums = one.new_zeros(len(many) * self.n_systems).index_add_(0, place.view(-1), (many * one).view(-1))
        return sums.view(len(many), self.n_systems)

    def largest(self, vectors: Float[Tensor, "n_atoms 3"]) -> Float[Tensor, "n_systems"]:
        """The norm of the longest vector of each system; infinity where one is not a number."""
        x, y, z = vectors.unbind(1)
        norms = (x * x + y * y + z * z).sqrt()
        norms = torch.where(norms.isnan(), torch.inf, norms)  # not every device keeps NaN in a maximum
        return norms.new_zeros(self.n_systems).scatter_reduce_(0, self.system_idx, norms, "amax")

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
