"""An adsorbate on Cu(111) and small changes of it, for tests of what relaxations do."""

from dataclasses import replace

import numpy as np
from ase.build import add_adsorbate, fcc111, molecule
from ase.constraints import FixAtoms

from equicat.data.structure import Structure


def system(adsorbate: str = "CO") -> Structure:
    """An adsorbate upright on Cu(111), tagged, no forces on anything."""
    atoms = fcc111("Cu", (3, 3, 3), a=3.6, vacuum=8.0)
    atoms.pbc = True
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 3))
    atoms.set_tags((atoms.get_tags() < 3).astype(int))
    molecular = molecule(adsorbate) if len(adsorbate) > 1 else adsorbate
    add_adsorbate(atoms, molecular, 1.9, "ontop", mol_index=1 if adsorbate == "CO" else 0)
    atoms.set_tags([*atoms.get_tags()[:27], *[2] * (len(atoms) - 27)])
    structure = Structure.from_ase(atoms, source="a.traj, frame 0")
    return replace(structure, energy=0.0, forces=np.zeros((len(atoms), 3)), fid=0)


def moved(structure: Structure, atoms: list[int], by: tuple[float, float, float]) -> Structure:
    positions = structure.positions.copy()
    positions[atoms] += by
    return replace(structure, positions=positions, source="a.traj, frame 9")


def with_force(structure: Structure, atom: int, force: float) -> Structure:
    forces = structure.forces.copy()
    forces[atom] = [0.6 * force, 0.0, 0.8 * force]
    return replace(structure, forces=forces)
