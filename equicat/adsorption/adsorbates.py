"""Adsorbates by name, as SMILES, or as a structure: upright, with the atoms that bind to the surface at the bottom."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule
from jaxtyping import Float, Int
from numpy import ndarray

from equicat.data.contacts import BONDED_RATIO, bonded_groups, contact_ratios, formula_of
from equicat.data.readers import read
from equicat.data.structure import Structure
from equicat.errors import InputError, nearest
from equicat.extras import extra

SMILES = "smiles:"
"""Prefix of SMILES: ``CO`` is carbon monoxide, ``smiles:CO`` methanol."""
TOO_CLOSE = 0.6
"""Sums of covalent radii. Atoms of an adsorbate closer than this are a mistake in it."""
AS_LOW = 0.05
"""Å. Atoms of a given structure this little above its lowest one bind with it."""

Coordinates = tuple[tuple[str, float, float, float], ...]

MOLECULES: dict[str, tuple[str, tuple[int, ...]]] = {
    "H": ("H", (0,)),
    "H2": ("H2", (0,)),
    "O": ("O", (0,)),
    "O2": ("O2", (0,)),
    "OH": ("OH", (0,)),
    "H2O": ("H2O", (0,)),
    "C": ("C", (0,)),
    "CO": ("CO", (1,)),
    "CO2": ("CO2", (0,)),
    "CH": ("CH", (0,)),
    "CH2": ("CH2_s1A1d", (0,)),
    "CH3": ("CH3", (0,)),
    "CH4": ("CH4", (0,)),
    "CHO": ("HCO", (0,)),
    "CH2O": ("H2CO", (0,)),
    "OCH3": ("CH3O", (1,)),
    "OHCH3": ("CH3OH", (1,)),
    "CCH": ("CCH", (1,)),
    "N": ("N", (0,)),
    "N2": ("N2", (0,)),
    "NH": ("NH", (0,)),
    "NH2": ("NH2", (0,)),
    "NH3": ("NH3", (0,)),
    "NO": ("NO", (0,)),
    "NO2": ("NO2", (0,)),
    "CN": ("CN", (0,)),
    "S": ("S", (0,)),
    "SH": ("SH", (0,)),
    "Cl": ("Cl", (0,)),
}
"""Adsorbates that ASE has as molecules (of the G2 set): its name, and the atoms that bind."""
OWN: dict[str, tuple[Coordinates, tuple[int, ...]]] = {
    "OOH": ((("O", 0, 0, 0), ("O", 1.02, 0, 1.02), ("H", 0.60, 0, 1.90)), (0,)),
    "COOH": ((("C", 0, 0, 0), ("O", 1.05, 0, 0.58), ("O", -1.11, 0, 0.76), ("H", -0.85, 0, 1.70)), (0,)),
    "HCOO": ((("O", -1.12, 0, 0), ("O", 1.12, 0, 0), ("C", 0, 0, 0.58), ("H", 0, 0, 1.69)), (0, 1)),
    "COH": ((("C", 0, 0, 0), ("O", 0, 0, 1.33), ("H", 0.92, 0, 1.63)), (0,)),
    "NNH": ((("N", 0, 0, 0), ("N", 0, 0, 1.20), ("H", 0.89, 0, 1.71)), (0,)),
}
"""Adsorbates that ASE does not have, upright: symbol and position (Å) of each atom, and the atoms that bind. Bond
lengths are those of the free radicals, rounded."""
OTHER_NAMES = {"HO": "OH", "HOO": "OOH", "HO2": "OOH", "HCO": "CHO", "CH3O": "OCH3", "CH3OH": "OHCH3", "N2H": "NNH"}
NAMES = (*MOLECULES, *OWN)


@dataclass(frozen=True, eq=False)
class Adsorbate:
    """A molecule above a surface that is the plane z = 0; the middle of its binding atoms is the origin."""

    name: str
    numbers: Int[ndarray, "n_atoms"]
    positions: Float[ndarray, "n_atoms 3"]
    """Å."""
    gas: Structure
    """The molecule alone, not periodic: the gas whose energy is taken off where the energy reference needs it."""

    def turned(self, degrees: float) -> Float[ndarray, "n_atoms 3"]:
        """Positions (Å) after a turn about the normal of the surface."""
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        return self.positions @ np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])


def adsorbate(what: str | Path | Atoms | Structure) -> Adsorbate:
    """The adsorbate of a name, of SMILES, of a file, or of a structure in memory.

    A structure is used as it is: it is turned about z and moved, and nothing else; z points away from the surface,
    and its lowest atoms bind.

    Args:
        what: name (see :data:`NAMES`; ``*`` is ignored), ``smiles:`` and SMILES, a structure file, or a structure.

    Raises:
        InputError: if there is no such adsorbate, or it is no molecule.
    """
    if isinstance(what, Structure):
        return _as_given(what, formula_of(what.numbers.tolist()))
    if isinstance(what, Atoms):
        return _as_given(Structure.from_ase(what, source="adsorbate"), what.get_chemical_formula())
    text = str(what).strip()
    if text.startswith(SMILES):
        return _of_smiles(text)
    name = text.replace("*", "")
    name = OTHER_NAMES.get(name, name)
    if name in MOLECULES:
        source, binding = MOLECULES[name]
        free = molecule(source)
        return _upright(name, free.numbers, free.positions, binding)
    if name in OWN:
        coordinates, binding = OWN[name]
        symbols, *columns = zip(*coordinates, strict=True)
        atoms = Atoms(list(symbols), np.array(columns, dtype=float).T)
        return _standing(name, atoms.numbers, atoms.positions, binding)
    if Path(text).is_file():
        return _of_file(Path(text))
    raise InputError(
        f"no adsorbate {text!r}{nearest(name, NAMES)}; give one of {', '.join(NAMES)}, SMILES as {SMILES}CCO, or a "
        "structure file"
    )


def together(what: str | Path | Atoms | Structure) -> tuple[Adsorbate, ...]:
    """The adsorbates of one entry: ``CO+O`` are two that are placed on one slab.

    Raises:
        InputError: as :func:`adsorbate`.
    """
    if isinstance(what, str) and not what.startswith(SMILES) and not Path(what).is_file():
        return tuple(adsorbate(name) for name in what.split("+"))
    return (adsorbate(what),)


def _of_file(path: Path) -> Adsorbate:
    frames = list(read(path))
    if len(frames) > 1:
        raise InputError(f"{path}: holds {len(frames)} structures; give a file with one adsorbate")
    return _as_given(frames[0], path.name.split(".")[0])


def _as_given(structure: Structure, name: str) -> Adsorbate:
    """A given structure, checked and not changed.

    Raises:
        InputError: if its atoms are not one molecule, two are at the same place, or some are held.
    """
    assert structure.fixed is not None
    if structure.fixed.any() or structure.free_directions is not None or structure.other_constraints:
        raise InputError(
            f"{structure.where}: has constraints, but an adsorbate is relaxed as a whole; take them out of it"
        )
    everything = np.ones(len(structure), bool)
    open_cell, nowhere = np.zeros((3, 3)), np.zeros(3, bool)
    ratios = contact_ratios(structure.numbers, structure.positions, open_cell, nowhere, everything)
    pieces = int(bonded_groups(ratios, BONDED_RATIO).max()) + 1
    if pieces > 1:
        across = " (is it cut by the faces of its cell?)" if structure.pbc.any() else ""
        raise InputError(
            f"{structure.where}: is not one molecule but {pieces} as it stands{across}; it is used as given, so give "
            "one molecule, in one piece"
        )
    np.fill_diagonal(ratios, np.inf)
    if len(structure) > 1 and ratios.min() < TOO_CLOSE:
        i, j = np.unravel_index(ratios.argmin(), ratios.shape)
        raise InputError(f"{structure.where}: atoms {i} and {j} overlap; correct the adsorbate")
    heights = structure.positions[:, 2]
    binding = tuple(np.flatnonzero(heights < heights.min() + AS_LOW).tolist())
    return _standing(name, structure.numbers, structure.positions, binding)


def _of_smiles(text: str) -> Adsorbate:
    """A molecule of SMILES by RDKit; the atom with map number 1 binds (``[OH:1]C``), else the first.

    Raises:
        InputError: if RDKit is not installed, or cannot make a molecule of it.
    """
    smiles = text.removeprefix(SMILES)
    chem: Any = extra("rdkit.Chem", "surfaces")
    all_chem: Any = extra("rdkit.Chem.AllChem", "surfaces")
    made = chem.MolFromSmiles(smiles)
    if made is None or made.GetNumAtoms() == 0 or "." in smiles:
        raise InputError(f"{text}: not the SMILES of one molecule")
    marked = [atom.GetIdx() for atom in made.GetAtoms() if atom.GetAtomMapNum() == 1]
    for atom in made.GetAtoms():
        atom.SetAtomMapNum(0)
    made = chem.AddHs(made)
    if all_chem.EmbedMolecule(made, randomSeed=1) != 0:
        raise InputError(f"{text}: RDKit finds no geometry; give the adsorbate as a structure file")
    if all_chem.MMFFHasAllMoleculeParams(made):
        all_chem.MMFFOptimizeMolecule(made)
    numbers = np.array([atom.GetAtomicNum() for atom in made.GetAtoms()], np.int64)
    return _upright(smiles, numbers, np.array(made.GetConformer().GetPositions()), (*marked, 0)[:1])


def _upright(name: str, numbers: ndarray, positions: ndarray, binding: Sequence[int]) -> Adsorbate:
    """The molecule turned so that the rest of it stands above the binding atoms; flat if it is centred on them."""
    at = positions[list(binding)].mean(0)
    rest = positions.mean(0) - at
    positions = positions - at
    if len(numbers) > 1:
        # A linear molecule that binds by its middle has no rest: it is laid flat.
        longest = np.linalg.svd(positions, full_matrices=True)[2]
        positions = positions @ (_turn(rest) if np.linalg.norm(rest) > 0.05 else longest.T)
    return _standing(name, numbers, positions, binding)


def _turn(up: Float[ndarray, "3"]) -> Float[ndarray, "3 3"]:
    """The matrix R with v R = z for the direction v."""
    z = up / np.linalg.norm(up)
    x = np.cross(np.eye(3)[np.abs(z).argmin()], z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


def _standing(name: str, numbers: ndarray, positions: ndarray, binding: Sequence[int]) -> Adsorbate:
    positions = positions - positions[list(binding)].mean(0)
    gas = Structure(numbers.astype(np.int64), positions.copy(), sid=f"gas {name}", source=f"adsorbate {name}")
    return Adsorbate(name, gas.numbers, positions, gas)


def distinct_turns(one: Adsorbate, n: int) -> list[float]:
    """Angles (degrees) of ``n`` equal turns, without those that give the same atoms again."""
    angles: list[float] = []
    for k in range(n):
        angle = 360.0 * k / n
        if not any(_same(one, one.turned(angle), one.turned(other)) for other in angles):
            angles.append(angle)
    return angles


def _same(one: Adsorbate, a: Float[ndarray, "n_atoms 3"], b: Float[ndarray, "n_atoms 3"]) -> bool:
    distances = np.linalg.norm(a[:, None] - b, axis=2)
    distances[one.numbers[:, None] != one.numbers] = np.inf
    return bool(distances.min(1).max() < 0.05)
