"""The physics that every potential must obey, as checks that anyone can run on a model: ``check_all(potential)``.

A potential is a ``torch.nn.Module`` with ``cutoff`` (Å), ``elements`` (atomic numbers) and
``forward(batch, forces=True) -> Prediction``. Each check works on a float64 copy, in the mode (train or eval) the
potential is in, and raises an ``AssertionError`` that states the check, the structure, what was found and what is
allowed. Deviations are relative: forces to the largest force component, energies to the sum of |atomic energies|.

The list follows what Allegro promises (Musaelian et al., Nat. Commun. 14, 579 (2023)): invariance under E(3),
permutation and translation, forces that are −dE/dr, energies that are smooth, extensive and strictly local.

One more check is about a trained model of adsorption energies, and not part of ``check_all``:
``check_clean_slab_is_zero(potential, slab)``.
"""

from equicat.testing.layers import check_equivariance
from equicat.testing.potentials import (
    PotentialModule,
    check_additivity,
    check_all,
    check_batch_independence,
    check_cross_system_gradient,
    check_finite_difference_forces,
    check_isolated_atom,
    check_net_force_zero,
    check_permutation,
    check_reflection,
    check_rotation,
    check_smooth_cutoff,
    check_strict_locality,
    check_supercell,
    check_translation,
)
from equicat.testing.slabs import SlabEnergies, check_clean_slab_is_zero, slab_energies
from equicat.testing.structures import example_structures, random_rotation

__all__ = [
    "PotentialModule",
    "SlabEnergies",
    "check_additivity",
    "check_all",
    "check_batch_independence",
    "check_clean_slab_is_zero",
    "check_cross_system_gradient",
    "check_equivariance",
    "check_finite_difference_forces",
    "check_isolated_atom",
    "check_net_force_zero",
    "check_permutation",
    "check_reflection",
    "check_rotation",
    "check_smooth_cutoff",
    "check_strict_locality",
    "check_supercell",
    "check_translation",
    "example_structures",
    "random_rotation",
    "slab_energies",
]
