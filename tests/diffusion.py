"""Ends of diffusion paths on small slabs that EMT knows, and that a stored model knows."""

import dataclasses

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc100, fcc111
from ase.constraints import FixAtoms
from places import FIXTURES

import equicat
from equicat.data.structure import Structure

RUN = FIXTURES / "runs_b139b12" / "allegro"


def on_slab(site: str, metal: str = "Pd", adsorbate: str = "O") -> Atoms:
    """Two layers of 4 atoms, the lower one fixed, with an atom above a site of (111)."""
    return _with(fcc111(metal, (2, 2, 2), vacuum=6.0), adsorbate, 1.2, site)


def adatoms(n: int = 3) -> tuple[Atoms, Atoms]:
    """Cu in two neighbouring hollows of Cu(100), n along the cell; the second is wrapped to the other side of it."""
    initial = _with(fcc100("Cu", (n, 2, 2), vacuum=6.0), "Cu", 1.7, "hollow")
    final = initial.copy()
    final.positions[-1] += initial.cell[0] / n - initial.cell[0]
    return initial, final


def _with(slab: Atoms, adsorbate: str, height: float, site: str) -> Atoms:
    add_adsorbate(slab, adsorbate, height, site)
    slab.set_tags(np.where(slab.get_tags() == 0, 2, slab.get_tags() % 2))
    slab.set_constraint(FixAtoms(mask=slab.get_tags() == 0))
    return slab


def known_to_the_run(shift: float = 0.0) -> tuple[Structure, Structure]:
    """CO on a slab of platinum, and the same a surface atom further on; ``shift`` (Å) moves both molecules sideways."""
    slab = list(equicat.read(FIXTURES / "runs_b139b12" / "structures.extxyz"))[1]
    way = np.where(slab.tags[:, None] == 2, [slab.cell[0, 0] / 2 - 0.1, 0.0, 0.0], 0.0)
    aside = np.where(slab.tags[:, None] == 2, [0.0, shift, 0.0], 0.0)
    bare = {"energy": None, "forces": None, "fid": None}
    initial = dataclasses.replace(slab, positions=slab.positions + aside, **bare)
    return initial, dataclasses.replace(initial, positions=initial.positions + way)
