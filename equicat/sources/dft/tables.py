"""Tables that people write: YAML and CSV files of names and energies, read with the place of every entry."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from equicat.errors import InputError, nearest

SAME_ENERGY = 1e-4
"""eV. Energies closer than this are the same."""
TITLES = ("energy", "e", "energy_ev", "energy [ev]", "energy (ev)")
"""Titles of the second column of a CSV table, in its first row."""


@dataclass(frozen=True)
class Energy:
    """A reference energy and where it comes from."""

    value: float
    """eV, total."""
    where: str
    """File, and line or frame."""

    def __str__(self) -> str:
        return f"{self.value:.6g} eV ({self.where})"


Entry = tuple[str, str, str]
"""Name, value and place in the file, all as text."""


def once(energies: Iterable[tuple[str, Energy]], what: str) -> dict[str, Energy]:
    """A mapping of names to energies, provided that nothing has two different ones.

    Args:
        energies: in any order; the same energy may come several times.
        what: the things that have energies, for the message, such as ``clean slab``.

    Raises:
        InputError: naming the thing, both energies and both places.
    """
    found: dict[str, Energy] = {}
    for name, energy in energies:
        known = found.setdefault(name, energy)
        if abs(known.value - energy.value) > SAME_ENERGY:
            raise InputError(f"two energies for the {what} {name}: {known} and {energy}; keep the right one")
    return found


def yaml_sections(path: str, known: Sequence[str]) -> dict[str, list[Entry]]:
    """The entries of each section of a YAML file of mappings, repeated keys included.

    Raises:
        InputError: if the file is missing, no YAML or not of this form, or has another section.
    """
    sections: dict[str, list[Entry]] = {name: [] for name in known}
    for key, value in _pairs(_yaml_tree(path), path):
        if key.value not in sections:
            hint = nearest(key.value, known)
            raise InputError(f"{path}: unknown section {key.value!r}{hint}; it may have {' and '.join(known)}")
        if not _is_empty(value):
            sections[key.value] += _entries(value, path, f"{path}, {key.value}")
    return sections


def yaml_entries(path: str) -> list[Entry]:
    """The entries of a YAML file that is one mapping, repeated keys included.

    Raises:
        InputError: if the file is missing, no YAML or no mapping.
    """
    return _entries(_yaml_tree(path), path, path)


def csv_entries(path: str, columns: str) -> list[Entry]:
    """The rows of a CSV file with two columns, without empty ones and comments (``#``).

    Raises:
        InputError: if the file is missing or a row has another number of columns.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read the table ({error.strerror})") from error
    entries = []
    reader = csv.reader(text.splitlines())
    for row in reader:
        if not row or row[0].startswith("#"):
            continue
        if len(row) != 2:
            raise InputError(f"{path}, row {reader.line_num}: has {len(row)} columns, expected two: {columns}")
        entries.append((row[0].strip(), row[1].strip(), f"{path}, row {reader.line_num}"))
    return entries


def energy_table(path: str) -> list[tuple[str, Energy]]:
    """Names and energies (eV) of a CSV file, whose first row may be a title, or of a YAML mapping.

    Raises:
        InputError: as :func:`csv_entries` and :func:`yaml_entries`, or if an energy is no number.
    """
    if not path.endswith(".csv"):
        return as_energies(yaml_entries(path))
    return as_energies(entry for entry in csv_entries(path, "name, energy") if entry[1].lower() not in TITLES)


def as_energies(entries: Iterable[Entry]) -> list[tuple[str, Energy]]:
    """Entries with their values as numbers (eV).

    Raises:
        InputError: naming the entry whose value is no finite number.
    """
    energies = []
    for name, text, where in entries:
        try:
            value = float(text)
        except ValueError as error:
            raise InputError(f"{where}: the energy of {name} is {text!r}, expected a number (eV)") from error
        if not np.isfinite(value):
            raise InputError(f"{where}: the energy of {name} is {text}, expected a finite number (eV)")
        energies.append((name, Energy(value, where)))
    return energies


def _yaml_tree(path: str) -> yaml.Node | None:
    try:
        # The tree, not values: YAML would read the molecule NO as false, and keep the last of two equal keys.
        return yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.BaseLoader)
    except OSError as error:
        raise InputError(f"{path}: cannot read the references ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error


def _pairs(node: yaml.Node | None, where: str) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{where}: expected names and energies (eV), such as  gas: {{H2: -6.77}}")
    yield from node.value


def _entries(node: yaml.Node | None, path: str, where: str) -> list[Entry]:
    entries = []
    for key, value in _pairs(node, where):
        line = f"{where}, line {key.start_mark.line + 1}"
        if not isinstance(value, yaml.ScalarNode):
            raise InputError(f"{line}: the energy of {key.value} is no number (eV)")
        entries.append((key.value, value.value, line))
    return entries


def _is_empty(node: yaml.Node) -> bool:
    """Whether nothing stands after the colon of a section."""
    return isinstance(node, yaml.ScalarNode) and node.value.strip().lower() in ("", "null", "~")
