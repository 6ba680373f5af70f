"""Small slabs that EMT knows, for tests of relaxations."""

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from ase.constraints import FixAtoms

from equicat.data.structure import Structure


def rattled_slab(seed: int, adsorbate: str = "O") -> Atoms:
    """A metal slab of 12 atoms with an adsorbate; the lowest layer is fixed, all others are displaced at random."""
    rng = np.random.default_rng(seed)
    atoms = fcc111(("Cu", "Pd", "Au")[seed % 3], (2, 2, 3), vacuum=8.0)
    atoms.set_tags(np.where(atoms.get_tags() == 3, 0, 1))
    add_adsorbate(atoms, adsorbate, 1.5, "fcc")
    atoms[-1].tag = 2
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 0))
    free = atoms.get_tags() > 0
    atoms.positions[free] += rng.normal(scale=0.1, size=(free.sum(), 3))
    return atoms


def structures(n: int) -> list[Structure]:
    """Several of them, with ids."""
    made = []
    for seed in range(n):
        atoms = rattled_slab(seed)
        atoms.info["sid"] = f"slab{seed}"
        made.append(Structure.from_ase(atoms, source=f"slab {seed}"))
    return made
