"""Results of a job so far: rows of its table and structures, read from the files of its screening."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from equicat.adsorption.folder import PLACEMENTS, RELAXED
from equicat.adsorption.results import TABLE
from equicat.data.readers import read
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.files import read_json
from equicat.relaxation.parts import kept_in
from equicat.relaxation.records import Record
from equicat.serve.home import RESULT, SCREENING, STEPS
from equicat.serve.watched import steps_in

Row = dict[str, Any]


def finished_in(folder: Path) -> dict[int, Record]:
    """Records of the systems of a job that are relaxed, by number, while others still are not."""
    parts = sorted((folder / SCREENING).glob(f"{RELAXED}.*.parts"))
    if not parts:
        return {}
    files = tuple((path, path.stat().st_size) for path in sorted(parts[0].glob("*.jsonl")))
    return _records(parts[0], files)


@lru_cache(maxsize=8)
def _records(folder: Path, files: tuple[tuple[Path, int], ...]) -> dict[int, Record]:
    """The records of a folder; files only grow, so that their sizes tell whether there are more."""
    return kept_in(folder, Record.from_line)


def n_finished(folder: Path, n_systems: int) -> int:
    """Number of systems of a job that are relaxed."""
    if (folder / SCREENING / RELAXED).exists():
        return n_systems
    try:
        return len(finished_in(folder))
    except (OSError, InputError):  # its process is just putting the parts together
        return 0


def live_rows(folder: Path, systems: Sequence[Mapping[str, Any]], running: bool) -> list[Row]:
    """A row for each placement that is relaxed; energies (eV) once the clean slab and the gases are there.

    Args:
        folder: of the job.
        systems: what it relaxes; see :func:`equicat.serve.check.systems_of`.
        running: give rows of placements that are being relaxed as well, with the step that they are at.
    """
    try:
        done = finished_in(folder)
    except (OSError, InputError):
        return []
    now = steps_in(folder / STEPS) if running else {}
    rows = []
    for number, system in enumerate(systems):
        if system["kind"] != "placement" or (number not in done and number not in now):
            continue
        row = {
            "system": number,
            "adsorbate": system["adsorbate"],
            "site": system["site"],
            "relaxed_site": "",
            "n_placements": 1,
            "relaxing": number not in done,
        }
        if (record := done.get(number)) is None:
            step, fmax = now[number]
            rows.append(row | {"energy": None, "n_steps": step, "fmax": _finite(fmax), "converged": False, "flags": []})
            continue
        outcome = {
            "energy": _adsorption_energy(system, record, done),
            "n_steps": record.n_steps,
            "fmax": _finite(record.fmax),
            "converged": record.converged,
            "flags": list(record.flags),
        }
        rows.append(row | outcome)
    return rows


def _adsorption_energy(system: Mapping[str, Any], record: Record, done: dict[int, Record]) -> float | None:
    """Energy (eV) for one adsorbate; None without finite numbers, or before what it is measured against is relaxed."""
    against = [done.get(number) for number in (0, *system["gases"])]
    if record.last is None or any(one is None or one.last is None for one in against):
        return None
    total = record.last.energy - system["gas"] - sum(one.last.energy for one in against if one and one.last)
    return total / system["n_adsorbates"]


def result_rows(folder: Path, systems: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows of the table of a job that is done, duplicates merged; arguments as of :func:`live_rows`."""
    numbers = {system["sid"]: number for number, system in enumerate(systems)}
    with (folder / SCREENING / TABLE).open(newline="", encoding="utf-8") as file:
        return [
            {
                "system": numbers[line["sid"]],
                "adsorbate": line["adsorbate"],
                "site": line["site"],
                "relaxed_site": line["relaxed_site"],
                "energy": _number(line["energy_per_adsorbate_eV"]),
                "n_placements": int(line["n_placements"]),
                "n_steps": int(line["n_steps"]),
                "fmax": _number(line["fmax_eV_per_A"]),
                "converged": line["converged"] == "True",
                "flags": line["flags"].split(),
                "relaxing": False,
            }
            for line in csv.DictReader(file)
        ]


def remarks_in(folder: Path) -> dict[str, list[str]]:
    """Warnings, sentences on the energies, and notes on the results of a job; empty before there are results."""
    return read_json(folder / RESULT) if (folder / RESULT).exists() else {"warnings": [], "reference": [], "notes": []}


def structure_of(folder: Path, number: int) -> Structure:
    """One system of a job, relaxed and with the positions that it began with, or as it begins.

    Raises:
        InputError: if there is no such system yet.
    """
    screening = folder / SCREENING
    if not (screening / PLACEMENTS).exists():
        raise InputError("the structures of this job are not there yet")
    before = next(read(screening / PLACEMENTS, index=number))
    if (screening / RELAXED).exists():
        after = next(read(screening / RELAXED, index=number))
    else:
        record = finished_in(folder).get(number)
        if record is None or record.last is None:
            return before
        after = record.structure(before, "")
    return replace(after, initial_positions=before.positions)


def _finite(value: float) -> float | None:
    """The number, or None where JSON has none for it."""
    return value if math.isfinite(value) else None


def _number(text: str) -> float | None:
    return float(text) if text else None
