"""Results of vibrations: a table of free energies, all frequencies, the structures, and modes to look at."""

import csv
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equicat.data.contacts import formula_of
from equicat.data.readers import write
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.files import replace_json, replacing_directory, replacing_file, writing_to
from equicat.vibrations.config import FreeEnergyConfig
from equicat.vibrations.modes import Vibrations
from equicat.vibrations.thermochemistry import FreeEnergy, Gas, modes_that_count

N_FRAMES = 20
"""Frames of a trajectory that shows a mode, one period."""
AMPLITUDE = 0.4
"""Å that the atom which moves most is displaced in such a trajectory."""


@dataclass(frozen=True)
class Output:
    """Where results go, and what to do with what is there."""

    file: str | Path
    """Table, csv. Beside it come NAME.json with all frequencies, and NAME.extxyz with the structures."""
    modes: str | Path | None = None
    """Folder for trajectories that show the modes, one of each; `ase gui` plays them."""
    overwrite: bool = False
    """Replace what is there."""

    def files(self) -> tuple[Path, Path, Path]:
        """The table, the frequencies, and the structures."""
        table = Path(self.file)
        return table, table.with_suffix(".json"), table.with_suffix(".extxyz")


@dataclass(frozen=True, eq=False)
class Result:
    """Vibrations and free energies of one structure."""

    number: int
    """Place in the input, from 0."""
    vibrations: Vibrations
    gas: Gas | None
    free_energies: tuple[FreeEnergy, ...]
    """One for each temperature; none if the model gave no finite numbers."""
    config: FreeEnergyConfig
    relaxation_flags: tuple[str, ...]
    """Flags of the relaxation that came before, if there was one."""

    @property
    def name(self) -> str:
        """The id of the structure, or where it came from."""
        return self.vibrations.structure.id or self.vibrations.structure.where

    @property
    def formula(self) -> str:
        """Formula of the atoms that vibrate."""
        return formula_of(self.vibrations.structure.numbers[self.vibrations.atoms].tolist())

    @property
    def n_raised(self) -> int:
        """Modes that were raised to the low frequency."""
        return modes_that_count(self.vibrations.frequencies, self.config.low_frequency)[1]

    @property
    def flags(self) -> tuple[str, ...]:
        """``not_finite``: NaN or infinite forces, no results; ``forces``: no minimum, a force is longer than ``fmax``;
        ``imaginary``: modes were left out; then those of the relaxation."""
        v = self.vibrations
        left_out = modes_that_count(v.frequencies, self.config.low_frequency)[2]
        checks = {"not_finite": not v.is_finite, "forces": v.fmax > self.config.fmax, "imaginary": left_out > 0}
        return (*(name for name, found in checks.items() if found), *self.relaxation_flags)

    def rows(self, energy_reference: str) -> Iterator[dict[str, Any]]:
        """The rows of the table, one for each temperature."""
        v = self.vibrations
        about: dict[str, Any] = {
            "structure": self.number,
            "id": v.structure.id,
            "kind": "gas" if v.is_gas else "surface",
            "formula": self.formula,
        }
        after = {
            "n_modes": len(v.frequencies),
            "n_imaginary": v.n_imaginary,
            "n_raised": self.n_raised,
            "fmax_eV_A": _rounded(v.fmax),
            "symmetry_number": self.gas.symmetry_number if self.gas else "",
            "spin": self.gas.spin if self.gas else "",
            "energy_reference": energy_reference,
            "flags": ",".join(self.flags),
        }
        at: Sequence[FreeEnergy | None] = self.free_energies or (None,) * len(self.config.temperature)
        for temperature, one in zip(self.config.temperature, at, strict=True):
            energies = dict.fromkeys(ENERGIES, "")
            if one is not None:
                values = (one.energy, one.zero_point, one.heat, one.temperature_entropy, one.correction)
                energies = dict(zip(ENERGIES, map(_rounded, (*values, one.free_energy)), strict=True))
            pressure = self.config.pressure if v.is_gas else ""
            yield {**about, "temperature_K": temperature, "pressure_bar": pressure, **energies, **after}

    def as_json(self) -> dict[str, Any]:
        """Everything about the vibrations, for people and programs; numbers that are not finite are null."""
        v = self.vibrations
        return {
            "structure": self.number,
            "id": v.structure.id,
            "source": v.structure.source,
            "kind": "gas" if v.is_gas else "surface",
            "geometry": v.geometry,
            "symmetry_number": self.gas.symmetry_number if self.gas else None,
            "spin": self.gas.spin if self.gas else None,
            "formula": self.formula,
            "atoms": v.atoms.tolist(),
            "energy_eV": v.structure.energy,
            "fmax_eV_A": None if math.isnan(v.fmax) else v.fmax,
            "frequencies_cm-1": v.frequencies.tolist(),
            "n_imaginary": v.n_imaginary,
            "n_raised": self.n_raised,
            "flags": list(self.flags),
        }


ENERGIES = ("energy_eV", "zero_point_eV", "heat_eV", "TS_eV", "correction_eV", "G_eV")
"""Columns of the table that hold energies."""


@dataclass(frozen=True, eq=False)
class FreeEnergies:
    """Results of :func:`equicat.free_energies`."""

    results: list[Result]
    """In the order of the input."""
    energy_reference: str
    """Which energy G builds on: adsorption, total or relative."""
    config: FreeEnergyConfig

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the table: structures times temperatures."""
        return [row for result in self.results for row in result.rows(self.energy_reference)]

    def as_text(self, limit: int = 40) -> str:
        """The table that `equicat vibrations` prints, with at most so many rows."""
        columns = {
            "": "structure",
            "id": "id",
            "formula": "formula",
            "kind": "kind",
            "T [K]": "temperature_K",
            "E [eV]": "energy_eV",
            "ZPE": "zero_point_eV",
            "heat": "heat_eV",
            "TS": "TS_eV",
            "G − E": "correction_eV",
            "G [eV]": "G_eV",
            "imaginary": "n_imaginary",
            "flags": "flags",
        }
        rows = self.rows()
        cells = [list(columns), *([_shown(key, row[key]) for key in columns.values()] for row in rows[:limit])]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
        if len(rows) > limit:
            lines.append(f"and {len(rows) - limit:,} more rows")
        return "\n".join([*lines, *self._remarks()])

    def _remarks(self) -> list[str]:
        low, n_raised = self.config.low_frequency, sum(result.n_raised for result in self.results)
        said = [f"Energies: {self.energy_reference}. G = E + ZPE + heat − TS, eV."]
        if any(result.gas for result in self.results):
            said.append(f"Gas molecules: ideal gas at {self.config.pressure:g} bar; their heat is an enthalpy.")
        if n_raised:
            said.append(f"{n_raised} modes below {low:g} cm⁻¹ count as {low:g} cm⁻¹ (--low_frequency).")
        if any("imaginary" in result.flags for result in self.results):
            said.append("Stronger imaginary modes were left out: these structures are no minima.")
        return said


def check_output(output: Output) -> None:
    """Make sure, before anything is computed, that results can be written and that nothing is lost.

    Raises:
        InputError: if the name is not that of a csv file, its folder is missing, or something is there.
    """
    table = Path(output.file)
    if table.suffix != ".csv":
        raise InputError(f"{table}: the table is written as csv; end the name in .csv")
    if not table.absolute().parent.is_dir():
        raise InputError(f"{table}: the folder {table.parent} does not exist; create it first")
    folders = () if output.modes is None else (Path(output.modes),)
    for path in (*output.files(), *folders):
        if path.exists() and path.is_dir() != (path in folders):
            raise InputError(f"{path}: is {'no' if path in folders else 'a'} directory; give another name")
        if path.exists() and not output.overwrite:
            raise InputError(f"{path}: exists already; choose another name, or --overwrite")


def write_results(output: Output, found: FreeEnergies) -> None:
    """Write the table, the frequencies and the structures, and the modes if they are wanted; each whole or not."""
    table, frequencies, structures = output.files()
    with writing_to(table):
        write(structures, (_described(result, found.energy_reference) for result in found.results))
        if output.modes is not None:
            _write_modes(Path(output.modes), found, output.overwrite)
        settings = {"energy_reference": found.energy_reference, "settings": dataclasses.asdict(found.config)}
        replace_json(frequencies, {**settings, "structures": [result.as_json() for result in found.results]})
        rows = found.rows()
        with replacing_file(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def _described(result: Result, energy_reference: str) -> Structure:
    structure = result.vibrations.structure
    info = {**structure.info, "energy_reference": energy_reference, "n_imaginary": result.vibrations.n_imaginary}
    return dataclasses.replace(structure, info={**info, "flags": ",".join(result.flags)})


def _write_modes(folder: Path, found: FreeEnergies, overwrite: bool) -> None:
    """Write ``000012_03_CO_1985.extxyz``: structure, mode, formula and frequency (cm⁻¹; imaginary ones end in i)."""
    with replacing_directory(folder, overwrite) as temporary:
        for result in found.results:
            v = result.vibrations
            for k, (frequency, mode) in enumerate(zip(v.frequencies, v.modes, strict=True)):
                wavenumber = f"{abs(frequency):.0f}{'i' if frequency < 0 else ''}"
                name = f"{result.number:06d}_{k:02d}_{result.formula}_{wavenumber}"
                write(temporary / f"{name}.extxyz", _swinging(v.structure, mode, float(frequency)))


def _swinging(structure: Structure, mode: np.ndarray, frequency: float) -> Iterator[Structure]:
    step = AMPLITUDE * mode / np.linalg.norm(mode, axis=1).max()
    for k, phase in enumerate(np.sin(2 * np.pi * np.arange(N_FRAMES) / N_FRAMES)):
        labels: dict[str, Any] = {"energy": None, "forces": None, "fid": k}
        info = {**structure.info, "frequency": frequency}
        yield dataclasses.replace(structure, positions=structure.positions + phase * step, info=info, **labels)


def _rounded(value: float) -> Any:
    return "" if math.isnan(value) else float(f"{value:.6f}")


def _shown(column: str, value: Any) -> str:
    return f"{value:.4f}" if column in ENERGIES and value != "" else f"{value}"
