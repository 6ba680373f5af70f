"""Where a data set comes from and how much of it there is, for a run directory: what a report says without the data."""

from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from equicat.data.datasets import AnyDataset
from equicat.data.identity import has_ids, n_systems
from equicat.errors import InputError
from equicat.files import read_json

MAX_SET_ASIDE = 20
"""Systems that were left out of a data set, wholly or in part, which are listed with the reason."""
LEVELS = 4
"""Directories above a store in which ``dataset.json`` and ``import.json`` are looked for."""


def origin_of(dataset: AnyDataset) -> dict[str, Any]:
    """The description of a data set that a run directory keeps.

    Args:
        dataset: as it was opened.

    Returns:
        ``path``, ``n_structures``, ``n_systems``, ``has_ids`` (whether systems were counted by ``sid``), ``elements``,
        ``energy_reference``, ``reference_energies`` (eV), ``description`` and ``set_aside``: what an import left out.
    """
    info = dataset.info
    return {
        "path": str(dataset.path),
        "n_structures": len(dataset),
        "n_systems": n_systems(dataset),
        "has_ids": has_ids(dataset),
        "elements": [chemical_symbols[z] for z in dataset.elements],
        "energy_reference": info.energy_reference,
        "reference_energies": info.reference_energies,
        "description": info.description,
        "set_aside": set_aside(Path(dataset.path)),
    }


def set_aside(store: Path) -> dict[str, Any]:
    """Systems and frames left out when a data set was made, by its report; empty if there is none, or nothing was.

    Returns:
        ``systems`` and ``frames`` (numbers), ``reasons`` (how often each occurred) and ``listed``: up to
        :data:`MAX_SET_ASIDE` systems with their findings.
    """
    for folder in list(store.resolve().parents)[:LEVELS]:
        if (folder / "import.json").is_file():
            return _of_import(_read(folder / "import.json"))
        if (folder / "dataset.json").is_file():
            return _of_generator(_read(folder / "dataset.json"), store.name)
    return {}


def _read(path: Path) -> dict[str, Any]:
    """A report beside the data; a damaged one says nothing, and training does not depend on it."""
    try:
        return read_json(path)
    except InputError:
        return {}


def _of_import(report: dict[str, Any]) -> dict[str, Any]:
    counts = report.get("counts", {})
    found = {
        "systems": counts.get("systems_dropped", 0),
        "frames": counts.get("frames_dropped", 0),
        "reasons": {rule: n.get("systems_found", 0) for rule, n in report.get("rules", {}).items()},
        "listed": [],
    }
    for system in report.get("systems", []):
        reasons = [finding.get("text", "") for finding in system.get("findings", [])]
        if reasons:
            found["listed"].append({"system": system.get("sid", ""), "reasons": reasons})
    found["listed"] = found["listed"][:MAX_SET_ASIDE]
    return found if found["systems"] or found["frames"] or found["listed"] else {}


def _of_generator(report: dict[str, Any], split: str) -> dict[str, Any]:
    reasons = report.get("splits", {}).get(split, {}).get("dropped", {})
    return {"systems": sum(reasons.values()), "frames": 0, "reasons": reasons, "listed": []} if reasons else {}
