"""Ingredients of the toy data set: fcc metals and ordered alloys, their surfaces, and small adsorbates.

Everything is as the effective-medium theory (EMT) of ASE has it: lattice constants are EMT's, and so are the gas-phase
energies. EMT describes the seven metals well; its H, C, N and O are caricatures, which is enough for a toy.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from ase import Atoms
from ase.build import molecule, surface
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.data import covalent_radii
from ase.filters import StrainFilter
from ase.optimize import LBFGS

from equicat.data.images import minimum_image

LATTICE_GUESS = {"Al": 4.05, "Ni": 3.52, "Cu": 3.61, "Pd": 3.89, "Ag": 4.09, "Pt": 3.92, "Au": 4.08}
"""Å, measured; where the relaxation of the EMT lattice starts."""
METALS = tuple(LATTICE_GUESS)
HELD_OUT_PAIRS = frozenset({("Al", "Pt"), ("Ni", "Au"), ("Cu", "Pd"), ("Pd", "Ag")})
"""Alloys of these metals, in the order of ``METALS``, are the catalysts that training never sees."""

ADSORBATES: dict[str, list[tuple[str, float, float, float]]] = {
    "H": [("H", 0, 0, 0)],
    "C": [("C", 0, 0, 0)],
    "N": [("N", 0, 0, 0)],
    "O": [("O", 0, 0, 0)],
    "OH": [("O", 0, 0, 0), ("H", 0.5, 0, 0.9)],
    "NH": [("N", 0, 0, 0), ("H", 0, 0, 1.06)],
    "CO": [("C", 0, 0, 0), ("O", 0, 0, 1.06)],
    "NO": [("N", 0, 0, 0), ("O", 0, 0, 1.06)],
    "C2": [("C", 0, 0, 0), ("C", 1, 0, 0.2)],
    "CHO": [("C", 0, 0, 0), ("O", 0.65, 0, 0.84), ("H", -0.8, 0, 0.72)],
    "NO2": [("N", 0, 0, 0), ("O", 0.95, 0, 0.5), ("O", -0.95, 0, 0.5)],
    "CH": [("C", 0, 0, 0), ("H", 0, 0, 1.07)],
    "O2": [("O", 0, 0, 0), ("O", 1.1, 0, 0.2)],
    "CCO": [("C", 0, 0, 0), ("C", 0, 0, 1.05), ("O", 0, 0, 2.1)],
    "CO2": [("C", 0, 0, 0), ("O", 0.95, 0, 0.4), ("O", -0.95, 0, 0.4)],
}
"""Symbol and position (Å) of each atom; the first one binds to the surface, which is below. Chosen for surviving on
EMT's metals, which pull most molecules apart."""
HELD_OUT_ADSORBATES = ("CH", "O2", "CCO", "CO2")
"""Adsorbates that training never sees; made of elements that it does see."""


@dataclass(frozen=True)
class Catalyst:
    """A pure metal (one element) or an ordered alloy (two elements)."""

    elements: tuple[str, ...]
    prototype: str = "fcc"
    """``fcc``; ``L1_0``: AB, layers of A and B along the third axis; ``L1_2``: A₃B, B on the corners of the cube."""

    @property
    def formula(self) -> str:
        return {"fcc": "{0}", "L1_0": "{0}{1}", "L1_2": "{0}3{1}"}[self.prototype].format(*self.elements)


def catalysts(metals: tuple[str, ...]) -> list[Catalyst]:
    """All pure metals and ordered alloys of ``metals``, in a fixed order."""
    found = [Catalyst((metal,)) for metal in metals]
    for i, first in enumerate(metals):
        for second in metals[i + 1 :]:
            found += [Catalyst((first, second), "L1_0")]
            found += [Catalyst((first, second), "L1_2"), Catalyst((second, first), "L1_2")]
    return found


def is_held_out(catalyst: Catalyst) -> bool:
    """Whether the catalyst belongs to the splits with unseen catalysts."""
    return tuple(sorted(catalyst.elements, key=METALS.index)) in HELD_OUT_PAIRS


@cache
def lattice(catalyst: Catalyst) -> tuple[float, float]:
    """Lattice constants a and c (Å) of the four-atom cell with the lowest EMT energy; equal where it is cubic."""
    guess = sum(LATTICE_GUESS[symbol] for symbol in catalyst.elements) / len(catalyst.elements)
    atoms = conventional_cell(catalyst, guess, guess)
    atoms.calc = EMT()
    LBFGS(StrainFilter(atoms, mask=[1, 1, 1, 0, 0, 0]), logfile=None).run(fmax=0.005, steps=50)  # type: ignore[arg-type]
    lengths = atoms.cell.lengths()
    return float(lengths[0]), float(lengths[2])


def conventional_cell(catalyst: Catalyst, a: float, c: float) -> Atoms:
    """The four-atom cell with lattice constants ``a`` and ``c`` (Å)."""
    first, second = catalyst.elements[0], catalyst.elements[-1]
    symbols = {"fcc": [first] * 4, "L1_2": [second, first, first, first], "L1_0": [first, second, second, first]}
    scaled = [(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)]
    return Atoms(symbols[catalyst.prototype], scaled_positions=scaled, cell=(a, a, c), pbc=True)


@dataclass(frozen=True)
class Facet:
    """A cut through the conventional cell and the sizes that slabs of it may have."""

    miller: tuple[int, int, int]
    shapes: tuple[tuple[int, int, int], ...]
    """Repetitions of the four-atom unit: along the two vectors in the plane, and downwards."""


FACETS = (
    Facet((1, 1, 1), ((1, 1, 4), (2, 1, 3), (1, 2, 3), (2, 1, 4))),
    Facet((1, 0, 0), ((2, 1, 2), (2, 1, 3), (2, 2, 2))),
    Facet((0, 0, 1), ((2, 1, 2), (2, 1, 3), (2, 2, 2))),
    Facet((1, 1, 0), ((1, 2, 2), (1, 2, 3), (1, 3, 3))),
    Facet((2, 1, 1), ((1, 1, 5), (1, 1, 6), (1, 2, 5))),
)
"""16 to 40 slab atoms. (001) differs from (100) in L1_0 only."""

VACUUM = 15.0
"""Å between a slab and its image above; adsorbates are less than 4 Å high."""


CONTACT = 1.1
"""Distance at which an adsorbate is put on a surface, in sums of covalent radii."""


def cut_slab(catalyst: Catalyst, facet: Facet, shape: tuple[int, int, int]) -> Atoms:
    """The ideal, unrelaxed slab, periodic in three directions as in OC20.

    Its lower half is subsurface (tag 0) and fixed, the upper half surface (tag 1) and free.
    """
    slab = surface(conventional_cell(catalyst, *lattice(catalyst)), facet.miller, shape[2], vacuum=VACUUM / 2)
    slab = slab.repeat((shape[0], shape[1], 1))
    slab.pbc = True
    heights = slab.positions[:, 2]
    upper = heights > (heights.min() + heights.max()) / 2 - 1e-3
    slab.set_tags(upper.astype(int))
    slab.set_constraint(FixAtoms(mask=~upper))
    return slab


def add_adsorbate(slab: Atoms, name: str, rng: np.random.Generator, max_tilt: float) -> Atoms:
    """The slab with an adsorbate lowered onto it at a random site until two atoms touch; its tag is 2.

    Args:
        slab: of :func:`cut_slab`.
        name: of the adsorbate.
        rng: chooses the site, the turn about the surface normal and the tilt.
        max_tilt: largest angle (degrees) away from the upright orientation.
    """
    symbols, *coordinates = zip(*ADSORBATES[name], strict=True)
    adsorbate = Atoms(symbols, np.array(coordinates).T.astype(float))
    adsorbate.rotate(max_tilt * rng.random(), "x")
    adsorbate.rotate(360 * rng.random(), "z")
    site = rng.random(2) @ slab.cell.array[:2]
    adsorbate.translate(site - adsorbate.positions[0])
    reach = CONTACT * (covalent_radii[adsorbate.numbers][:, None] + covalent_radii[slab.numbers])
    sideways = adsorbate.positions[:, None] - slab.positions
    sideways[..., 2] = 0.0
    shortest = minimum_image(sideways.reshape(-1, 3), slab.cell.array, slab.pbc)
    lateral = np.linalg.norm(shortest, axis=1).reshape(reach.shape)
    # Height at which the pair touches; pairs too far apart sideways never do.
    touching = slab.positions[:, 2] + np.sqrt(np.maximum(reach**2 - lateral**2, 0.0))
    lift = np.where(lateral < reach, touching - adsorbate.positions[:, 2:], -np.inf).max()
    adsorbate.translate((0, 0, lift))
    adsorbate.set_tags(2)
    return slab + adsorbate


@cache
def gas_references() -> dict[str, float]:
    """EMT energy (eV) per atom of H, C, N and O in OC20's way: from H₂, H₂O, CO and N₂."""
    energies = {}
    for name in ("H2", "H2O", "CO", "N2"):
        gas = molecule(name)
        gas.calc = EMT()
        LBFGS(gas, logfile=None).run(fmax=0.005, steps=100)  # type: ignore[arg-type]
        energies[name] = float(gas.get_potential_energy())
    oxygen = energies["H2O"] - energies["H2"]
    return {"H": energies["H2"] / 2, "C": energies["CO"] - oxygen, "N": energies["N2"] / 2, "O": oxygen}
