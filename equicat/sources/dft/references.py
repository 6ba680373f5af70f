"""Reference energies, and the adsorption energies that they make: E(slab + adsorbate) − E(slab) − E(gas)."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from equicat.data.contacts import composition, formula_of
from equicat.data.images import reduced_basis
from equicat.data.labels import USUAL_KEYS, LabelKeys
from equicat.data.readers import read
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.sources.dft.tables import SAME_ENERGY, Energy, as_energies, energy_table, once, yaml_sections
from equicat.sources.dft.trajectories import file_sids
from equicat.sources.dft.vacuum import vacuum_axis

SAME_LENGTH = 0.03
"""Å. In-plane lattice vectors that differ by less are those of one slab."""
PREFERRED = ("H2", "H2O", "CO", "N2")
"""Molecules that OC20 takes for H, O, C and N; they come first where more molecules are found than are needed."""


@dataclass(frozen=True)
class CleanSlab:
    """A relaxed slab without adsorbate."""

    composition: Counter[int]
    plane: Float[ndarray, "2 2"]
    """Scalar products (Å²) of its lattice vectors in the surface, from :func:`in_plane`."""
    energy: Energy
    structure: Structure
    """Relaxed, with whatever labels its file has; its ``sid`` is a name of its own."""

    @classmethod
    def of(cls, structure: Structure) -> "CleanSlab":
        """The clean slab of a structure with an energy."""
        assert structure.energy is not None
        energy = Energy(structure.energy, structure.where)
        return cls(Counter(structure.numbers.tolist()), in_plane(structure), energy, structure)

    def fits(self, slab: Structure) -> bool:
        """Whether a slab has the same composition and the same lattice in the surface."""
        return self.composition == Counter(slab.numbers.tolist()) and _same_plane(in_plane(slab), self.plane)


@dataclass(frozen=True)
class GasReference:
    """The gas molecules that stand for an adsorbate."""

    energy: float
    """eV."""
    text: str
    """The combination, such as ``H2O - ½ H2``."""


@dataclass(frozen=True)
class References:
    """Energies of what an adsorption energy is measured against.

    Raises:
        InputError: if the energies contradict each other.
    """

    gas: Mapping[str, Energy] = field(default_factory=dict)
    """Total energy of molecules by formula; ``O`` is an atom. What an adsorbate is made of must be a combination of
    them: O of H2O and H2."""
    slabs: Mapping[str, Energy] = field(default_factory=dict)
    """Total energy of clean slabs by system id, by name, or by formula."""
    clean: Sequence[CleanSlab] = ()
    """Clean slabs with their structures."""

    def __post_init__(self) -> None:
        if not self.gas:
            return
        once(((formula_of(_atoms(name)), energy) for name, energy in self.gas.items()), "gas molecule")
        matrix, elements = self._matrix()
        per_element = np.linalg.lstsq(matrix, self._energies(), rcond=None)[0]
        if np.abs(matrix @ per_element - self._energies()).max() > SAME_ENERGY:
            raise InputError(
                f"gas references {', '.join(self.gas)}: more energies than elements "
                f"({formula_of(elements)}), and they contradict each other; leave some out"
            )

    def __bool__(self) -> bool:
        return bool(self.gas or self.slabs or self.clean)

    def _matrix(self) -> tuple[Float[ndarray, "n_molecules n_elements"], list[int]]:
        """Atoms of each element in each molecule."""
        counts = [composition(name, "gas references") for name in self.gas]
        elements = sorted(set().union(*counts))
        return np.array([[float(c.get(z, 0)) for z in elements] for c in counts]).reshape(-1, len(elements)), elements

    def _energies(self) -> Float[ndarray, "n_molecules"]:
        return np.array([energy.value for energy in self.gas.values()])

    def gas_reference(self, numbers: Sequence[int]) -> GasReference:
        """The atoms of an adsorbate as a combination of the gas molecules.

        Raises:
            InputError: if they do not determine it; the message names the composition.
        """
        if not len(numbers):
            return GasReference(0.0, "")
        counts = Counter(numbers)
        matrix, elements = self._matrix() if self.gas else (np.zeros((0, 0)), [])
        wanted = np.array([float(counts[z]) for z in elements])
        combination = np.linalg.lstsq(matrix.T, wanted, rcond=None)[0] if self.gas else np.zeros(0)
        # A remainder of the least squares means that no combination of the molecules has this formula.
        if set(counts) - set(elements) or np.abs(combination @ matrix - wanted).max(initial=0.0) > 1e-6:
            raise InputError(
                f"no gas reference for {formula_of(numbers)}: it is no combination of "
                f"{', '.join(self.gas) or 'the gas references (there are none)'}; add what is missing under gas "
                "in the references file, or its structure file with --gas_files"
            )
        return GasReference(float(combination @ self._energies()), _combination_text(combination, list(self.gas)))

    def slab_energy(self, names: Sequence[str], slab: Structure) -> tuple[Energy, CleanSlab | None]:
        """Energy of the clean slab, and the slab itself if one of that energy is known.

        Args:
            names: to look for in the table, such as the system id; the first found counts.
            slab: the slab's atoms, in the cell of the system.

        Raises:
            InputError: if there is none, or several that differ; the message names the composition.
        """
        formula, counts = formula_of(slab.numbers.tolist()), Counter(slab.numbers.tolist())
        same = [clean for clean in self.clean if clean.composition == counts]
        fitting = [clean for clean in same if clean.fits(slab)]
        for name in names:
            if name in self.slabs:
                energy = self.slabs[name]
                same_energy = [c for c in fitting if abs(c.energy.value - energy.value) <= SAME_ENERGY]
                return energy, same_energy[0] if same_energy else None
        found = [energy for name, energy in self.slabs.items() if _same_formula(name, counts)]
        found += [clean.energy for clean in fitting]
        if same and not found:
            raise InputError(
                f"no clean-slab energy for {formula} in this cell: {same[0].energy.where} has the atoms but another "
                "cell; give the slab of this one, or its energy under slabs by system id"
            )
        if not found:
            raise InputError(
                f"no clean-slab energy for {formula}: give it under slabs in the references file or the slab table, "
                "or its structure file with --slab_files"
            )
        other = max(found, key=lambda energy: abs(energy.value - found[0].value))
        if abs(other.value - found[0].value) > SAME_ENERGY:
            raise InputError(
                f"several clean slabs fit {formula} and differ in energy: {found[0]} and {other}; keep the right one, "
                "or say which with a slab table by system id"
            )
        return found[0], fitting[0] if fitting else None

    def completed(self, gas: Iterable[tuple[str, Energy]], clean: Sequence[CleanSlab]) -> "References":
        """These references and others that were found, of the molecules only those that add something.

        Args:
            gas: molecules by formula. The same ones may be known already; others are taken, those of OC20 first, as
                long as they are no combination of the ones that are there.
            clean: clean slabs.

        Raises:
            InputError: if a molecule or slab is known with another energy.
        """
        found = list(gas)
        known = {formula_of(_atoms(name)): name for name in self.gas}
        # A molecule that is known already must have the same energy; its name is the one that was given.
        merged = [(known.get(name, name), energy) for name, energy in found if name in known]
        taken = once([*self.gas.items(), *merged], "gas molecule")
        candidates: dict[str, list[Energy]] = {}
        for name, energy in found:
            if name not in known:
                candidates.setdefault(name, []).append(energy)
        for name in sorted(candidates, key=lambda name: (name not in PREFERRED, len(_atoms(name)), name)):
            if _rank([*taken, name]) > _rank(taken):
                taken |= once([(name, energy) for energy in candidates[name]], "gas molecule")
        return replace(self, gas=taken, clean=[*self.clean, *clean])


def _atoms(formula: str) -> list[int]:
    return [z for z, n in composition(formula, "gas references").items() for _ in range(n)]


def _rank(formulas: Iterable[str]) -> int:
    """Number of molecules that are no combination of the others."""
    counts = [Counter(_atoms(formula)) for formula in formulas]
    elements = sorted(set().union(*counts))
    return int(np.linalg.matrix_rank([[c[z] for z in elements] for c in counts])) if counts else 0


def _combination_text(combination: Float[ndarray, "n_molecules"], names: Sequence[str]) -> str:
    """``H2O - ½ H2``; the molecules taken come before those given back."""
    terms = [(Fraction(c).limit_denominator(24), name) for c, name in zip(combination, names, strict=True)]
    text = ""
    for coefficient, name in sorted((t for t in terms if t[0]), key=lambda term: term[0] < 0):
        size = {Fraction(1): "", Fraction(1, 2): "½ "}.get(abs(coefficient), f"{abs(coefficient)} ")
        sign = "- " if coefficient < 0 else "+ " if text else ""
        text += f"{' ' if text else ''}{sign}{size}{name}"
    return text


def _same_formula(name: str, counts: Counter[int]) -> bool:
    try:
        return Counter(composition(name, "slabs")) == counts
    except InputError:
        return False


def _same_plane(a: Float[ndarray, "2 2"], b: Float[ndarray, "2 2"]) -> bool:
    # |a|² differs by 2 |a| times what |a| differs by.
    return bool(np.abs(a - b).max() < 2 * SAME_LENGTH * np.sqrt(np.diag(b).max()))


def in_plane(structure: Structure) -> Float[ndarray, "2 2"]:
    """Scalar products (Å²) of the two shortest lattice vectors that span the surface: the same for all choices of them.

    Raises:
        NoVacuum: if there is no surface.
    """
    across = np.arange(3) == vacuum_axis(structure)
    basis, _ = reduced_basis(structure.cell[~across])
    return np.abs(basis @ basis.T)


@dataclass(frozen=True)
class ReferenceFiles:
    """The files that hold reference energies."""

    yaml: str | None = None
    """YAML file with the sections ``gas`` and ``slabs``."""
    slab_table: str | None = None
    """CSV (name, energy in eV) or YAML mapping of clean slabs."""
    slab_files: Sequence[Path] = ()
    """Structure files of relaxed clean slabs; the last frame of each slab counts."""
    gas_files: Sequence[Path] = ()
    """Structure files of relaxed molecules; the last frame of each molecule counts."""


def load_references(files: ReferenceFiles, keys: LabelKeys = USUAL_KEYS) -> References:
    """References from all files.

    Args:
        files: that hold them.
        keys: the labels of the structure files that are wanted, and where they stand; of gas molecules the energy.

    Raises:
        InputError: if a file is missing or not as it should be, or a slab or molecule has two different energies.
    """
    sections = yaml_sections(files.yaml, ("gas", "slabs")) if files.yaml is not None else {"gas": [], "slabs": []}
    gas, slabs = as_energies(sections["gas"]), as_energies(sections["slabs"])
    if files.slab_table is not None:
        slabs += energy_table(files.slab_table)
    for file in files.gas_files:
        for last in _relaxed(file, replace(keys, wanted=("energy",)), "gas molecule"):
            gas.append((formula_of(last.numbers.tolist()), Energy(last.energy or 0.0, last.where)))
    clean = []
    for file, name in file_sids(files.slab_files).items():
        found = list(_relaxed(file, keys, "clean slab"))
        for i, last in enumerate(found):
            number = f"-{i}" if len(found) > 1 else ""
            clean.append(CleanSlab.of(replace(last, sid=f"slab-{last.sid or f'{name}{number}'}")))
    return References(once(gas, "gas molecule"), once(slabs, "clean slab"), clean)


def _relaxed(file: Path, keys: LabelKeys, what: str) -> Iterator[Structure]:
    """The last of consecutive frames with the same atoms and cell, each with an energy."""

    def key(structure: Structure) -> tuple[str, bytes, bytes]:
        return structure.sid, structure.numbers.tobytes(), structure.cell.round(2).tobytes()

    for _, frames in groupby(read(file, keys.energy, forces_key=keys.forces, labels=keys.wanted), key):
        *_, last = frames
        if last.energy is None:
            raise InputError(f"{last.where}: a {what} without energy; found {', '.join(last.info) or 'no labels'}")
        yield last
