"""Options of vibrations and free energies."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from equicat.options.values import Checked, Length, NonNegativeNumber, Positive, PositiveNumber, Range, Words

Group = Literal["adsorbate", "surface", "free"]
Temperature = Annotated[float, Range(at_least=1, at_most=100_000)]


@dataclass(frozen=True)
class OneOf:
    """Whole numbers from a list."""

    numbers: tuple[int, ...]

    def allows(self, number: int) -> bool:
        """Whether the list has the number."""
        return number in self.numbers

    def words(self, base: str) -> str:
        """The numbers, in place of ``base``."""
        return " or ".join(map(str, self.numbers))


@dataclass(frozen=True)
class VibrationConfig(Checked):
    """Which atoms vibrate, and how their force constants are found."""

    atoms: Group | tuple[int, ...] = "adsorbate"
    """Which atoms vibrate, unless they are fixed: adsorbate (tag 2), surface (tags 1 and 2), free (all), or their
    numbers from 0, such as [36,37]. The others stay where they are. A gas molecule vibrates as a whole."""
    delta: Annotated[float, Range(above=0, at_most=0.5)] = 0.01
    """Å; how far an atom is displaced."""
    nfree: Annotated[int, OneOf((2, 4))] = 2
    """Displacements along each coordinate: 2 (±delta), or 4 (±delta and ±2 delta, for anharmonic modes)."""
    gas: Literal["auto", "yes", "no"] = "auto"
    """Which structures are gas molecules, an ideal gas: auto takes those that are one molecule of nonmetals, nothing
    fixed, all tags the same; yes takes all, no takes none."""
    geometry: Literal["auto", "linear", "nonlinear"] = "auto"
    """Shape of gas molecules that are nearly straight, an atom 0.03 to 0.15 Å off the axis; auto refuses them."""
    fmax: PositiveNumber = 0.05
    """eV/Å; where a vibrating atom has a longer force along what is free, the structure is no minimum, and flagged."""
    edges: Positive | None = None
    """Edges in a batch at most. Default: 100,000 for strictly local models, 10,000 for others."""


@dataclass(frozen=True)
class ThermoConfig(Checked):
    """Conditions, and what is assumed of the modes."""

    temperature: Annotated[tuple[Temperature, ...], Length(at_least=1), Words()] = (298.15,)
    """K; one or several."""
    pressure: PositiveNumber = 1.0
    """bar; partial pressure of gas molecules."""
    low_frequency: NonNegativeNumber = 50.0
    """cm⁻¹; modes below it, real or imaginary, count as if they were there (quasi-harmonic). 0 leaves them as they
    are. Stronger imaginary modes are left out."""
    symmetry_numbers: dict[str, Positive] = field(default_factory=dict)
    """Symmetry numbers of gas molecules by formula, such as {CH4: 12}. Default: found from the structure."""
    spins: dict[str, NonNegativeNumber] = field(default_factory=dict)
    """Total spins of gas molecules by formula, such as {O2: 1}. Default: those of common molecules; else 0, or 0.5 for
    an odd number of electrons."""


@dataclass(frozen=True)
class FreeEnergyConfig(VibrationConfig, ThermoConfig):
    """Everything about free energies."""

    relax: bool = False
    """Relax the structures with the model first, until forces are shorter than fmax."""
