"""The labels and ids that an ASE ``Atoms`` carries: where each is looked for, and what it must be.

Only labels that are asked for are looked at. So one that nobody needs, however it is written, stops nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from jaxtyping import Float, Float64
from numpy import ndarray

from equicat.errors import InputError

LABELS = ("energy", "forces", "stress", "relaxed_energy", "relaxed_positions")
"""Labels that a model can be trained on: names of fields of a structure, and of entries and columns of files."""

ASYMMETRY = 1e-3
"""A stress whose components differ by more from their transposed ones, relative to the largest, is none."""

MAX_ENERGY = 1e7
"""eV an atom. The heaviest atom with all its electrons has about 2e6; what is larger is a mistake, or means none."""
MAX_FORCE = 1e5
"""eV/Å. Two bare carbon nuclei 0.07 Å apart repel each other so; what is larger is a mistake, or means none."""

MAX_INTEGER = 2**63
"""Ids are kept as 64-bit integers."""


@dataclass(frozen=True)
class LabelKeys:
    """Which labels are wanted of an ``Atoms``, and where energy and forces stand if not under their usual names."""

    energy: str | None = None
    """Entry of ``info`` or result of the calculator."""
    forces: str | None = None
    """Column of atoms or result of the calculator."""
    wanted: tuple[str, ...] = LABELS


USUAL_KEYS = LabelKeys()
"""All labels, under their usual names."""


def labels_of_atoms(atoms: Atoms, keys: LabelKeys, where: str) -> dict[str, Any]:
    """The wanted ones of :data:`LABELS`, None for those that are not there.

    Energy (eV) and forces (eV/Å) come from the calculator, the latter also from a column ``forces``, or both from where
    the keys say. The stress (eV/Å³, positive where the cell wants to shrink) comes from the calculator's or the entry
    ``stress`` as a 3 × 3 matrix or as xx, yy, zz, yz, xz, xy, else from an entry ``virial`` = −volume × stress (eV). A
    stress in any other form is left out: many programs write one, few need it.

    Raises:
        InputError: if a key is absent (the keys found are listed), or a label is not a number or an array of numbers,
            or is one that no method gives.
    """
    results = results_of(atoms)
    found: dict[str, Any] = dict.fromkeys(LABELS)
    if "energy" in keys.wanted:
        energy = results.get("energy")
        if keys.energy is not None:
            energy = _under(keys.energy, "energy", (atoms.info, results), atoms, where)
        found["energy"] = one_number(energy, keys.energy or "energy", where)
    if "forces" in keys.wanted:
        forces = results.get("forces", atoms.arrays.get("forces"))
        if keys.forces is not None:
            forces = _under(keys.forces, "forces", (atoms.arrays, results), atoms, where)
        found["forces"] = numbers_of_atoms(forces, keys.forces or "forces", where)
    if "stress" in keys.wanted:
        found["stress"] = stress_of(atoms)
    if "relaxed_energy" in keys.wanted:
        found["relaxed_energy"] = one_number(atoms.info.get("relaxed_energy"), "relaxed_energy", where)
    if "relaxed_positions" in keys.wanted:
        positions = atoms.arrays.get("relaxed_positions")
        found["relaxed_positions"] = numbers_of_atoms(positions, "relaxed_positions", where)
    check_range(found, len(atoms), where)
    return found


def check_range(labels: Mapping[str, Any], n_atoms: int, where: str) -> None:
    """Refuse energies and forces that no method gives. Whether those of a frame are good is for an import to judge.

    Args:
        labels: by name, those of :data:`LABELS`; energies in eV, forces in eV/Å, None for those that are not there.
        n_atoms: of the structure.
        where: the structure, for messages.

    Raises:
        InputError: naming the label, its largest number, and for forces the first atom concerned.
    """
    energies = {name: labels.get(name) for name in ("energy", "relaxed_energy")}
    for name, energy in energies.items():
        if energy is not None and MAX_ENERGY * n_atoms < abs(energy) < np.inf:
            raise InputError(
                f"{where}: {name} is {energy:.1e} eV, more than {MAX_ENERGY:g} eV an atom, which no method gives; drop "
                "or repair this frame"
            )
    forces = labels.get("forces")
    if forces is not None and np.isfinite(forces).all() and (too_large := np.abs(forces) > MAX_FORCE).any():
        atom = np.flatnonzero(too_large.any(axis=-1))[0]
        raise InputError(
            f"{where}: forces is {np.abs(forces).max():.1e} eV/Å at atom {atom}, more than {MAX_FORCE:g} eV/Å, which "
            "no method gives; drop or repair this frame"
        )


def results_of(atoms: Atoms) -> dict[str, Any]:
    """Results of the atoms' calculator; empty without one."""
    return {} if atoms.calc is None else atoms.calc.results


def scalar_info(atoms: Atoms) -> dict[str, Any]:
    """Entries of ``atoms.info`` that are texts, numbers or truth values."""
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in atoms.info.items()}
    return {k: v for k, v in plain.items() if isinstance(v, str | bool | int | float)}


def further_columns(atoms: Atoms) -> tuple[str, ...]:
    """Names of the columns of atoms that hold neither what every structure has nor a label of usual name."""
    known = {"numbers", "positions", "tags", "initial_positions", *LABELS}
    arrays = {name: value for name, value in results_of(atoms).items() if isinstance(value, ndarray)}
    per_atom = {name for name, value in arrays.items() if value.shape[:1] == (len(atoms),)}
    return tuple(sorted({*atoms.arrays, *per_atom} - known))


def _under(key: str, label: str, sources: tuple[dict[str, Any], ...], atoms: Atoms, where: str) -> Any:
    """The entry of that name in the first source that has it."""
    for source in sources:
        if key in source:
            return source[key]
    columns = ", ".join([*sorted(set(atoms.arrays) - {"numbers", "positions"})]) or "none"
    entries = ", ".join(sorted({*map(str, atoms.info), *results_of(atoms)})) or "none"
    raise InputError(f"{where}: no {label} key {key!r}; found entries {entries}; columns of atoms {columns}")


def one_number(value: Any, name: str, where: str) -> float | None:
    """The number that ``value`` is, or the only one that it holds; None stays None.

    Raises:
        InputError: naming the value, if it is anything else.
    """
    if value is None:
        return None
    number = single(value)
    if isinstance(number, str):
        try:
            return float(number)
        except ValueError:
            pass
    elif isinstance(number, int | float) and not isinstance(number, bool):
        return float(number)
    fortran = isinstance(number, str) and re.fullmatch(r"[-+.\d]+[dD][-+]?\d+", number.strip())
    advice = "; write exponents with E, not D" if fortran else ""
    raise InputError(f"{where}: {name} is {_shown(value)}, expected a number{advice}")


def single(value: Any) -> Any:
    """An array or list of one element as that element, and a number of NumPy's as one of Python's."""
    if isinstance(value, list | tuple):
        return single(value[0]) if len(value) == 1 else value
    return value.item() if isinstance(value, ndarray | np.generic) and value.size == 1 else value


def whole_number(value: Any) -> int | None:
    """The whole number that ``value`` is, also as 3.0 or as text; None if it is anything else."""
    number = single(value)
    if isinstance(number, str) and re.fullmatch(r"\s*[-+]?\d+\s*", number):
        number = int(number)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    is_whole = isinstance(number, int) and not isinstance(number, bool)
    return number if is_whole and abs(number) < MAX_INTEGER else None


def numbers_of_atoms(value: Any, name: str, where: str) -> Float64[ndarray, "..."] | None:
    """A column of atoms as float64; None stays None.

    Raises:
        InputError: if it holds something else than numbers.
    """
    if value is None:
        return None
    array = _array_of_numbers(value)
    if array is None:
        raise InputError(f"{where}: {name} holds {_shown(value)}, expected numbers")
    return array


def stress_of(atoms: Atoms) -> Float[ndarray, "3 3"] | None:
    """The stress in eV/Å³ as a symmetric matrix, or None if there is none in a form that is known."""
    volume = abs(np.linalg.det(atoms.cell.array))
    if not volume > 0:
        return None
    given = results_of(atoms).get("stress", atoms.info.get("stress"))
    stress = _symmetric(given)
    if stress is None:
        virial = _symmetric(atoms.info.get("virial"))
        stress = None if virial is None else -virial / volume
    return stress


def _symmetric(value: Any) -> Float[ndarray, "3 3"] | None:
    """Six numbers in the order xx, yy, zz, yz, xz, xy, or nine, as a symmetric matrix."""
    array = None if value is None else _array_of_numbers(value)
    if array is None or array.size not in (6, 9) or not np.isfinite(array).all():
        return None
    matrix = voigt_6_to_full_3x3_stress(array.ravel()) if array.size == 6 else array.reshape(3, 3)
    if np.abs(matrix - matrix.T).max() > ASYMMETRY * np.abs(matrix).max():
        return None
    return 0.5 * (matrix + matrix.T)


def _array_of_numbers(value: Any) -> ndarray | None:
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return None
    return array.astype(np.float64) if array.dtype.kind in "iuf" else None


def _shown(value: Any) -> str:
    """``value`` for a message: one line, not too long."""
    text = " ".join(repr(value.tolist() if isinstance(value, ndarray | np.generic) else value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
