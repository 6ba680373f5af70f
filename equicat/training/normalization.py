"""What a network does not have to learn: reference energies and scales."""

from dataclasses import dataclass
from typing import Literal

from ase.data import atomic_numbers

from equicat.data.fitted import Statistics
from equicat.errors import InputError, nearest


@dataclass(frozen=True)
class NormalizationConfig:
    """What the network does not have to learn."""

    references: Literal["linear", "none"] | dict[str, float] = "linear"
    """Energy of each element (eV): linear fits them to the training energies; or give them, such as {H: -13.6}."""
    scale: float | None = None
    """Energies are in units of this (eV); null takes the root mean square force of free atoms (s2ef), or what the
    linear references leave of the energies."""
    displacement_scale: float | None = None
    """Displacements are in units of this (Å); null takes their root mean square component of free atoms."""


def _references(config: NormalizationConfig, fitted: Statistics) -> tuple[float, ...]:
    if config.references == "none":
        return (0.0,) * len(fitted.elements)
    if config.references == "linear":
        return fitted.linear_reference
    assert isinstance(config.references, dict)
    by_number = {}
    for symbol, energy in config.references.items():
        if symbol not in atomic_numbers:
            raise InputError(
                f"normalization.references: no element {symbol!r}{nearest(symbol, atomic_numbers)}; "
                "note that YAML reads N and Y as they are but no, yes, on and off as booleans"
            )
        by_number[atomic_numbers[symbol]] = energy
    missing = [z for z in fitted.elements if z not in by_number]
    if missing:
        raise InputError(f"normalization.references: no energy for the elements with numbers {missing}; add them")
    return tuple(by_number[z] for z in fitted.elements)
