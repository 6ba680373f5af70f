"""Adsorbates at minima of the EMT potential, and molecules, for tests of vibrations."""

from functools import cache

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.optimize import BFGS


@cache
def _relaxed_slab(adsorbate: str) -> Atoms:
    atoms = fcc111("Cu", (2, 2, 3), vacuum=8.0)
    atoms.set_tags(np.where(atoms.get_tags() == 1, 1, 0))
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 0))
    load = molecule(adsorbate) if len(adsorbate) > 1 else adsorbate
    add_adsorbate(atoms, load, 1.5, "fcc", mol_index=1 if adsorbate == "CO" else 0)
    atoms.set_tags([*atoms.get_tags()[:12], *[2] * (len(atoms) - 12)])
    return _at_minimum(atoms)


@cache
def _relaxed_molecule(name: str) -> Atoms:
    return _at_minimum(molecule(name))


def _at_minimum(atoms: Atoms) -> Atoms:
    atoms.calc = EMT()
    BFGS(atoms, logfile=None).run(fmax=1e-3, steps=300)
    atoms.calc = None
    return atoms


def on_copper(adsorbate: str) -> Atoms:
    """An adsorbate on Cu(111) with tags; the two lower layers are fixed."""
    return _relaxed_slab(adsorbate).copy()


def gas(name: str) -> Atoms:
    """A molecule of ASE's G2 set."""
    return _relaxed_molecule(name).copy()
