"""Reference energies, and the adsorption energies that they make: E(slab + adsorbate) − E(slab) − E(gas)."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase.geometry import complete_cell, minkowski_reduce
from jaxtyping import Float
from numpy import ndarray

from equicat.data.contacts import formula_of
from equicat.data.readers import read
from equicat.data.structure import Structure
from equicat.errors import InputError, nearest
from equicat.sources.dft.tagging import composition, vacuum_axis

SAME_LENGTH = 0.03
"""Å. In-plane lattice vectors that differ by less are those of one slab."""
SAME_ENERGY = 1e-4
"""eV. Energies closer than this are the same."""
SECTIONS = ("gas", "slabs")


@dataclass(frozen=True)
class CleanSlab:
    """A relaxed slab without adsorbate."""

    composition: Counter[int]
    plane: Float[ndarray, "2 2"]
    """Of :func:`in_plane`."""
    energy: float
    """eV, total."""
    source: str


@dataclass(frozen=True)
class References:
    """Energies (eV) of what an adsorption energy is measured against.

    Raises:
        InputError: if the gas energies contradict each other.
    """

    gas: Mapping[str, float] = field(default_factory=dict)
    """Total energy of molecules by formula; ``O`` is an atom. What an adsorbate is made of must be a combination of
    them: O of H2O and H2."""
    slabs: Mapping[str, float] = field(default_factory=dict)
    """Total energy of clean slabs by system id, by name, or by formula."""
    clean: Sequence[CleanSlab] = ()
    """Clean slabs from structure files."""

    def __post_init__(self) -> None:
        if not self.gas:
            return
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
        return np.array(list(self.gas.values()))

    def gas_energy(self, numbers: Sequence[int]) -> float:
        """Energy (eV) of the atoms of an adsorbate, as a combination of the gas references.

        Raises:
            InputError: if they do not determine it; the message names the composition.
        """
        if not len(numbers):
            return 0.0
        counts = Counter(numbers)
        matrix, elements = self._matrix() if self.gas else (np.zeros((0, 0)), [])
        wanted = np.array([float(counts[z]) for z in elements])
        combination = np.linalg.lstsq(matrix.T, wanted, rcond=None)[0] if self.gas else np.zeros(0)
        # What least squares leaves over is no combination of the molecules.
        if set(counts) - set(elements) or np.abs(combination @ matrix - wanted).max(initial=0.0) > 1e-6:
            raise InputError(
                f"no gas reference for {formula_of(numbers)}: it is no combination of "
                f"{', '.join(self.gas) or 'the gas references (there are none)'}; add what is missing under gas "
                "in the references file"
            )
        return float(combination @ self._energies())

    def slab_energy(self, names: Sequence[str], slab: Structure) -> tuple[float, str]:
        """Energy (eV) of the clean slab and what it was found by.

        Args:
            names: to look for in the table, such as the system id; the first found counts.
            slab: the slab's atoms, in the cell of the system.

        Raises:
            InputError: if there is none, or several that differ; the message names the composition.
        """
        for name in names:
            if name in self.slabs:
                return self.slabs[name], name
        formula, counts = formula_of(slab.numbers.tolist()), Counter(slab.numbers.tolist())
        matches = {name: energy for name, energy in self.slabs.items() if _same_formula(name, counts)}
        if not matches:
            same = [clean for clean in self.clean if clean.composition == counts]
            plane = in_plane(slab) if same else None
            matches = {clean.source: clean.energy for clean in same if _same_plane(plane, clean.plane)}
            if same and not matches:
                raise InputError(
                    f"no clean-slab energy for {formula} in this cell: {same[0].source} has the atoms but another "
                    "cell; give the slab of this one, or its energy under slabs by system id"
                )
        if not matches:
            raise InputError(
                f"no clean-slab energy for {formula}: give it under slabs in the references file or the slab table, "
                "or its structure file with --slab_files"
            )
        if max(matches.values()) - min(matches.values()) > SAME_ENERGY:
            raise InputError(
                f"several clean slabs fit {formula} and differ in energy: {', '.join(list(matches)[:3])}; "
                "say which with a slab table by system id"
            )
        name = next(iter(matches))
        return matches[name], name


def _same_formula(name: str, counts: Counter[int]) -> bool:
    try:
        return Counter(composition(name, "slabs")) == counts
    except InputError:
        return False


def _same_plane(a: Float[ndarray, "2 2"] | None, b: Float[ndarray, "2 2"]) -> bool:
    # |a|² differs by 2 |a| times what |a| differs by.
    return a is not None and bool(np.abs(a - b).max() < 2 * SAME_LENGTH * np.sqrt(np.diag(b).max()))


def in_plane(structure: Structure) -> Float[ndarray, "2 2"]:
    """Scalar products (Å²) of the two shortest lattice vectors that span the surface: the same for all choices of them.

    Raises:
        InputError: if there is no vacuum.
    """
    across = np.arange(3) == vacuum_axis(structure)
    reduced, _ = minkowski_reduce(complete_cell(structure.cell * ~across[:, None]), ~across)
    products = reduced[~across] @ reduced[~across].T
    return np.abs(products if products[0, 0] <= products[1, 1] else products[::-1, ::-1])


def load_references(
    path: str | None, slab_table: str | None, slab_files: Sequence[Path], energy_key: str | None
) -> References:
    """References from a YAML file with the sections ``gas`` and ``slabs``, a table, and structure files of clean slabs.

    Args:
        path: of the YAML file, or None.
        slab_table: CSV (name, energy in eV) or YAML mapping of clean slabs, or None.
        slab_files: structure files of relaxed clean slabs; the last frame of each slab counts.
        energy_key: where the energies of the structure files are, if not in the calculator.

    Raises:
        InputError: if a file is missing or not as it should be.
    """
    sections: dict[str, Any] = {} if path is None else _yaml_mapping(path)
    for name in sections:
        if name not in SECTIONS:
            raise InputError(f"{path}: unknown section {name!r}{nearest(name, SECTIONS)}; it may have gas and slabs")
    gas, slabs = (_energies(sections.get(name) or {}, f"{path}, {name}") for name in SECTIONS)
    if slab_table is not None:
        table = _csv_mapping(slab_table) if slab_table.endswith(".csv") else _yaml_mapping(slab_table)
        slabs |= _energies(table, slab_table)
    clean = [slab for file in slab_files for slab in _clean_slabs(file, energy_key)]
    return References(gas, slabs, clean)


def _clean_slabs(file: Path, energy_key: str | None) -> Iterator[CleanSlab]:
    """The slabs of a file: the last of consecutive frames with the same atoms and cell vectors in the surface."""

    def slab_of(structure: Structure) -> tuple[str, bytes, bytes]:
        return structure.sid, structure.numbers.tobytes(), structure.cell.round(2).tobytes()

    for _, frames in groupby(read(file, energy_key), slab_of):
        *_, last = frames
        if last.energy is None:
            raise InputError(f"{last.where}: a clean slab without energy; found {', '.join(last.info) or 'no labels'}")
        yield CleanSlab(Counter(last.numbers.tolist()), in_plane(last), last.energy, last.where)


def _yaml_mapping(path: str) -> dict[str, Any]:
    try:
        # Everything as text: YAML would read the molecule NO as false.
        values = yaml.load(Path(path).read_text(encoding="utf-8"), yaml.BaseLoader)
    except OSError as error:
        raise InputError(f"{path}: cannot read the references ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected names and energies, such as  gas: {{H2: -6.77}}")
    return values


def _csv_mapping(path: str) -> dict[str, str]:
    """Rows of name and value; a first row whose value is no number is a title."""
    return {row[0].strip(): row[1].strip() for row in csv_rows(path, "name, energy") if not _is_title(row)}


def _is_title(row: Sequence[str]) -> bool:
    return row[1].strip().lower() in ("energy", "e", "energy_ev", "energy [ev]", "energy (ev)")


def csv_rows(path: str, columns: str) -> list[list[str]]:
    """The rows of a CSV file with two columns, without empty ones and comments (``#``).

    Raises:
        InputError: if the file is missing or a row has another number of columns.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read the table ({error.strerror})") from error
    rows = [row for row in csv.reader(text.splitlines()) if row and not row[0].startswith("#")]
    for i, row in enumerate(rows):
        if len(row) != 2:
            raise InputError(f"{path}, row {i + 1}: has {len(row)} columns, expected two: {columns}")
    return rows


def _energies(values: Any, where: str) -> dict[str, float]:
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected names and energies (eV), such as {{H2: -6.77}}")
    energies = {}
    for name, value in values.items():
        try:
            energies[str(name)] = float(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: the energy of {name} is {value!r}, expected a number (eV)") from error
        if not np.isfinite(energies[str(name)]):
            raise InputError(f"{where}: the energy of {name} is {value}, expected a finite number (eV)")
    return energies
