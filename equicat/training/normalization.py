"""Reference energies and scales: parts of energies and displacements that a network does not have to learn."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ase.data import atomic_numbers

from equicat.errors import InputError, nearest
from equicat.options.values import Checked, Number, PositiveNumber


@dataclass(frozen=True)
class NormalizationConfig(Checked, section="normalization"):
    """Reference energies and scales."""

    references: Literal["linear", "none"] | dict[str, Number] | None = None
    """Energy of each element (eV): linear fits them to the training energies, none takes 0; or give them, such as
    {H: -13.6}. null: linear, but for fine-tuning those of the run; linear then shifts these to the new energies."""
    scale: Literal["fit"] | PositiveNumber | None = None
    """Energies are in units of this (eV); null takes the root mean square force of free atoms (s2ef), or what the
    linear references leave of the energies. With fine-tuning it is the run's; fit multiplies that by one factor, so
    that the model's forces, or where it has none its energies, fit the new data best."""
    displacement_scale: Literal["fit"] | PositiveNumber | None = None
    """Displacements are in units of this (Å); null takes their root mean square component of free atoms. With
    fine-tuning it is the run's; fit multiplies that by one factor, as with scale."""


def new_references(
    config: NormalizationConfig, elements: tuple[int, ...], linear: tuple[float, ...]
) -> tuple[float, ...]:
    """Reference energies (eV) of a new model's elements.

    Args:
        config: says which.
        elements: atomic numbers.
        linear: the fit to the training energies.

    Raises:
        InputError: if they are given for an unknown element, or not for all elements.
    """
    if config.references == "none":
        return (0.0,) * len(elements)
    if isinstance(config.references, dict):
        given = given_references(config.references, elements)
        return tuple(given[z] for z in elements)
    return linear


def given_references(references: Mapping[str, float], elements: Iterable[int]) -> dict[int, float]:
    """Reference energies (eV) that a configuration gives, by atomic number.

    Raises:
        InputError: for an unknown element, or if one of ``elements`` has none.
    """
    by_number = {}
    for symbol, energy in references.items():
        if symbol not in atomic_numbers:
            raise InputError(f"normalization.references: no element {symbol!r}{nearest(symbol, atomic_numbers)}")
        by_number[atomic_numbers[symbol]] = energy
    missing = [z for z in elements if z not in by_number]
    if missing:
        raise InputError(f"normalization.references: no energy for the elements with numbers {missing}; add them")
    return by_number
