"""Rows of adsorption energies: how they are made of relaxed structures, ordered, printed and written."""

import csv
import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from numpy import ndarray

from equicat.adsorption.duplicates import representatives
from equicat.adsorption.placements import RANDOM, Placed, Placement, sites_of
from equicat.adsorption.references import EnergyReference
from equicat.adsorption.slabs import Slab
from equicat.data.readers import write
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.files import replacing_file

TABLE, STRUCTURES = "table.csv", "structures.extxyz"
COLUMNS = (
    "adsorbate", "site", "relaxed_site", "adsorption_energy_eV", "energy_per_adsorbate_eV", "converged", "flags",
    "n_placements", "n_migrated", "n_steps", "fmax_eV_per_A", "rotation_deg", "height_A", "sid", "frame",
)  # fmt: skip
"""Columns of ``table.csv``."""


@dataclass(frozen=True, eq=False)
class Row:
    """One relaxed structure, and the placements that became it."""

    adsorbate: str
    """``CO``, ``4 CO``, ``CO+O``."""
    site: str
    """Where it was placed; of several merged ones, the first."""
    relaxed_site: str
    """The site nearest to its lowest atom after the relaxation."""
    energy: float | None
    """Adsorption energy (eV) of all adsorbates on the slab together; None if the model gave no finite numbers."""
    n_adsorbates: int
    converged: bool
    flags: tuple[str, ...]
    n_placements: int
    """Placements that relaxed to this structure."""
    n_migrated: int
    """Number of placements among them that began at another site than ``relaxed_site``; random ones are not counted."""
    n_steps: int
    fmax: float | None
    """eV/Å."""
    turn: float
    """Degrees."""
    height: float
    """Å above contact."""
    structure: Structure
    """With the model's own energy (eV) and forces (eV/Å), and the adsorption energy in ``info``."""
    start: Float[ndarray, "n_atoms 3"]
    """Å; the positions of the first placement that became it, before the relaxation."""

    @property
    def energy_per_adsorbate(self) -> float | None:
        """eV."""
        return None if self.energy is None else self.energy / self.n_adsorbates

    @property
    def trusted(self) -> bool:
        """Whether it converged, with an energy, and without flags."""
        return self.converged and not self.flags and self.energy is not None

    @property
    def remarks(self) -> str:
        """Flags and ``not converged``, for people."""
        return ", ".join([*self.flags, *([] if self.converged else ["not converged"])])


@dataclass(frozen=True, eq=False)
class AdsorptionEnergies:
    """Results of :func:`equicat.adsorption_energies`."""

    rows: list[Row]
    """Distinct relaxed structures: by adsorbate, those without flags first, the lowest energy first."""
    slab: Slab
    notes: tuple[str, ...]
    """Sentences on how the slab was built, and on atoms fixed and adsorbates placed or left out."""
    reference: tuple[str, ...]
    """Sentences on the kind of the energies and their references."""
    warnings: tuple[str, ...]
    clean_slab: Structure
    """Relaxed."""
    outside_training: tuple[str, ...] = ()
    """Warnings that speak of what the training data did not hold."""

    def best(self) -> list[Row]:
        """The best row of each adsorbate and relaxed site, in the order of the rows."""
        firsts: dict[tuple[str, str], Row] = {}
        for row in self.rows:
            firsts.setdefault((row.adsorbate, row.relaxed_site), row)
        return list(firsts.values())

    def as_text(self) -> str:
        """The best structure of each site, for the terminal."""
        lines = [f"{'adsorbate':<12}{'site':<18}{'energy [eV]':>12}  placements  migrated  remarks"]
        for row in self.best():
            energy = "-" if row.energy_per_adsorbate is None else f"{row.energy_per_adsorbate:.3f}"
            lines.append(
                f"{row.adsorbate:<12}{row.relaxed_site:<18}{energy:>12}  {row.n_placements:>10}  "
                f"{row.n_migrated:>8}  {row.remarks}".rstrip()
            )
        several = any(row.n_adsorbates > 1 for row in self.rows)
        after = ["Energies are for one adsorbate, averaged over those on the slab."] if several else []
        warned = [f"Warning: {text}" for text in self.warnings]
        return "\n".join([*lines, "", *self.reference, *after, *warned])


def rows_of(
    slab: Slab,
    placed: Placed,
    clean: Structure,
    relaxed: Sequence[Structure],
    reference: EnergyReference,
    gases: dict[str, float],
) -> list[Row]:
    """Rows of relaxed placements, duplicates merged.

    Args:
        slab: the clean slab before relaxation.
        placed: the placements.
        clean: the relaxed clean slab, with its energy.
        relaxed: the relaxed placements, in their order.
        reference: how energies become adsorption energies.
        gases: energies (eV) of relaxed gas molecules by sid.

    Raises:
        InputError: if the clean slab has no energy, so that nothing can be measured against it.
    """
    if clean.energy is None:
        raise InputError(
            "the model gives the clean slab no finite energy or forces, so there are no adsorption energies; look at "
            "the slab, which may be far from what the model was trained on"
        )
    rows = [
        _row(slab, placed, placement, after, clean.energy, reference.gas_energy(placement.adsorbates, gases))
        for placement, after in zip(placed.placements, relaxed, strict=True)
    ]
    rows.sort(key=_order)
    return _merged(rows, len(slab.structure))


def _row(slab: Slab, placed: Placed, placement: Placement, after: Structure, clean: float, gas: float) -> Row:
    info = after.info
    energy = None if after.energy is None else after.energy - clean - gas
    flags = tuple(flag for flag in str(info.get("flags", "")).split(",") if flag)
    said = {name: value for name, value in info.items() if name != "seconds"}  # other at every run
    if energy is not None:
        said["adsorption_energy"] = energy
    structure = dataclasses.replace(after, info={**said, "site": placement.site})
    relaxed_site = sites_of(slab, placed.sites, after, placement.adsorbates)
    return Row(
        adsorbate=placement.load,
        site=placement.site,
        relaxed_site=relaxed_site,
        energy=energy,
        n_adsorbates=len(placement.adsorbates),
        converged=bool(info["converged"]),
        flags=flags,
        n_placements=1,
        n_migrated=int(placement.site not in (relaxed_site, RANDOM)),
        n_steps=int(info["n_steps"]),
        fmax=None if info.get("fmax") is None else float(info["fmax"]),
        turn=placement.turn,
        height=placement.height,
        structure=structure,
        start=placement.structure.positions,
    )


def _order(row: Row) -> tuple[str, bool, bool, float]:
    return row.adsorbate, not row.trusted, row.energy is None, row.energy or 0.0


def _merged(rows: Sequence[Row], n_slab: int) -> list[Row]:
    """Rows without duplicates: of each the first, which counts the others and how many of them migrated."""
    energies = [float("nan") if row.energy is None else row.energy for row in rows]
    same = representatives([row.structure for row in rows], energies, n_slab, [row.adsorbate for row in rows])
    counts = Counter(same)
    migrated = Counter(first for first, row in zip(same, rows, strict=True) if row.n_migrated)
    return [
        dataclasses.replace(row, n_placements=counts[k], n_migrated=migrated[k])
        for k, row in enumerate(rows)
        if same[k] == k
    ]


def write_results(folder: Path, result: AdsorptionEnergies) -> None:
    """Write ``table.csv`` and ``structures.extxyz``, whose frames are the rows of the table."""
    write_table(folder / TABLE, COLUMNS, lines_of(result))
    write(folder / STRUCTURES, (row.structure for row in result.rows))


def lines_of(result: AdsorptionEnergies) -> list[list[Any]]:
    """The lines of the table: a value for each of :data:`COLUMNS`; ``frame`` counts the structures."""
    return [
        [
            row.adsorbate,
            row.site,
            row.relaxed_site,
            _number(row.energy),
            _number(row.energy_per_adsorbate),
            row.converged,
            " ".join(row.flags),
            row.n_placements,
            row.n_migrated,
            row.n_steps,
            _number(row.fmax),
            f"{row.turn:g}",
            f"{row.height:g}",
            row.structure.sid,
            frame,
        ]
        for frame, row in enumerate(result.rows)
    ]


def write_table(path: Path, columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV, complete or not at all."""
    with replacing_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *lines])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"
