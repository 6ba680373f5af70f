"""Dependence of the energies of a clean slab, and of one adsorbate on it, on the size of the slab.

Adsorption energies should not: a clean slab has none, and one molecule on a large slab binds as on a small one on which
its periodic images are far. A model learns this only if its training data say so; see docs/import.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equicat.data.structure import Structure
from equicat.sources.dft.vacuum import vacuum_axis
from equicat.testing.potentials import PotentialModule, _double, _each

CLEAN_SLAB = 0.1
"""eV, allowed for a clean slab of any size."""


@dataclass(frozen=True)
class SlabEnergies:
    """A model's energies of slabs of growing size; as text a table."""

    repeats: tuple[int, ...]
    """Repetitions of the slab along both lattice vectors in its surface."""
    n_atoms: tuple[int, ...]
    """Atoms of the clean slabs."""
    clean: tuple[float, ...]
    """eV, of the clean slabs; 0 for an adsorption energy."""
    adsorbed: tuple[float, ...]
    """eV, with the adsorbate at one and the same site; equal if the slabs are large. Empty without an adsorbate."""

    @property
    def difference(self) -> tuple[float, ...]:
        """Energies with the adsorbate minus those of the clean slabs, eV; the same for all sizes that are large."""
        return tuple(a - c for a, c in zip(self.adsorbed, self.clean, strict=True)) if self.adsorbed else ()

    def __str__(self) -> str:
        lines = [f"{'size':<8}{'atoms':>6}{'clean slab':>12}{'adsorbate':>12}{'difference':>12}  [eV]"]
        for i, n in enumerate(self.repeats):
            energies = [self.clean[i], *([self.adsorbed[i], self.difference[i]] if self.adsorbed else [])]
            lines.append(f"{f'{n}×{n}':<8}{self.n_atoms[i]:>6}" + "".join(f"{e:>12.3f}" for e in energies))
        return "\n".join(lines)


def slab_energies(
    potential: PotentialModule,
    slab: Structure,
    adsorbate: Structure | None = None,
    repeats: Sequence[int] = (2, 3, 4),
) -> SlabEnergies:
    """A potential's energies of a clean slab, and of one adsorbate on it, by the size of the slab.

    Args:
        potential: to ask; of adsorption energies, or the clean slabs say nothing.
        slab: a relaxed clean slab, the smallest unit of it.
        adsorbate: in the place where it is on ``slab``, alone.
        repeats: of ``slab`` along both lattice vectors in the surface.

    Raises:
        NoVacuum: if the slab has no surface.
    """
    clean = [_repeated(slab, n) for n in repeats]
    with_adsorbate = [] if adsorbate is None else [_with(structure, adsorbate) for structure in clean]
    energies = [result.energy for result in _each(_double(potential), [*clean, *with_adsorbate])]
    return SlabEnergies(
        tuple(repeats), tuple(map(len, clean)), tuple(energies[: len(clean)]), tuple(energies[len(clean) :])
    )


def check_clean_slab_is_zero(
    potential: PotentialModule,
    slab: Structure,
    adsorbate: Structure | None = None,
    repeats: Sequence[int] = (2, 3, 4),
    tolerance: float = CLEAN_SLAB,
) -> SlabEnergies:
    """The adsorption energy of a clean slab is zero, however large it is: for models of adsorption energies.

    Arguments as for :func:`slab_energies`; ``tolerance`` in eV.

    Returns:
        The energies.

    Raises:
        AssertionError: with the energies by size, if one of a clean slab is larger than allowed.
    """
    found = slab_energies(potential, slab, adsorbate, repeats)
    largest = max(found.clean, key=abs)
    if not abs(largest) <= tolerance:  # also when NaN
        raise AssertionError(
            f"clean slab, {slab.where}: its adsorption energy is {largest:.3f} eV; allowed {tolerance:g} eV. Train "
            f"with clean slabs, or use slabs of the size trained on\n{found}"
        )
    return found


def _repeated(slab: Structure, n: int) -> Structure:
    """The slab n times along both lattice vectors in its surface."""
    in_plane = np.arange(3) != vacuum_axis(slab)
    times = np.where(in_plane, n, 1)
    shifts = np.stack(np.meshgrid(*map(np.arange, times), indexing="ij"), axis=-1).reshape(-1, 3) @ slab.cell
    assert slab.fixed is not None
    return Structure(
        np.tile(slab.numbers, len(shifts)),
        (slab.positions + shifts[:, None]).reshape(-1, 3),
        slab.cell * times[:, None],
        slab.pbc,
        np.tile(slab.fixed, len(shifts)),
        source=f"{slab.where}, {n}×{n}",
    )


def _with(slab: Structure, adsorbate: Structure) -> Structure:
    return Structure(
        np.concatenate([slab.numbers, adsorbate.numbers]),
        np.concatenate([slab.positions, adsorbate.positions]),
        slab.cell,
        slab.pbc,
        source=f"{slab.where} with {adsorbate.where}",
    )
