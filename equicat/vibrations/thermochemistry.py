"""Free energies of adsorbates (harmonic) and of gas molecules (ideal gas), through ASE's thermochemistry.

Low frequencies are raised before the sums are formed, in zero-point energy, heat and entropy alike: the quasi-harmonic
approximation of Ribeiro, Marenich, Cramer and Truhlar, J. Phys. Chem. B 115, 14556 (2011), doi:10.1021/jp205508z, which
takes 100 cm⁻¹; ASE's ``QuasiHarmonicThermo``. An entropy of a mode that is nearly free would otherwise be mostly that
of the error of its frequency.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import units
from ase.thermochemistry import HarmonicThermo, IdealGasThermo
from jaxtyping import Float
from numpy import ndarray

from equicat.data.contacts import formula_of
from equicat.errors import InputError
from equicat.vibrations.config import ThermoConfig
from equicat.vibrations.modes import Vibrations
from equicat.vibrations.molecules import spin_of, symmetry_number
from equicat.vibrations.systems import System

PASCAL = 1e5
"""Pa in a bar."""


@dataclass(frozen=True)
class Gas:
    """Properties of a molecule that its entropy needs besides its vibrations."""

    symmetry_number: int
    spin: float


@dataclass(frozen=True)
class FreeEnergy:
    """Free energy of one structure at one temperature; all in eV.

    Of an adsorbate it is the Helmholtz energy of its vibrations, because pV of a surface is nothing; of a gas molecule
    Gibbs' energy at its pressure.
    """

    temperature: float
    """K."""
    pressure: float | None
    """bar; None if it is no gas."""
    energy: float
    """The model's own."""
    zero_point: float
    heat: float
    """Thermal energy between 0 K and the temperature; of a gas with translation, rotation and pV, an enthalpy."""
    temperature_entropy: float
    """T · S."""

    @property
    def correction(self) -> float:
        """ZPE + heat − TS: with it the energy becomes G."""
        return self.zero_point + self.heat - self.temperature_entropy

    @property
    def free_energy(self) -> float:
        """G, of the same energy reference as the energy."""
        return self.energy + self.correction


def modes_that_count(
    frequencies: Float[ndarray, "n_modes"], low_frequency: float
) -> tuple[Float[ndarray, "n_counted"], int, int]:
    """Frequencies (cm⁻¹) that go into the sums, how many of them were raised, and how many imaginary ones left out.

    Args:
        frequencies: cm⁻¹, imaginary ones negative.
        low_frequency: cm⁻¹; weaker modes, real or imaginary, are raised to it.
    """
    low = np.abs(frequencies) < low_frequency
    counted = np.where(low, low_frequency, frequencies)
    return counted[counted > 0], int(low.sum()), int((counted <= 0).sum())


def check_formulas(systems: Sequence[System], config: ThermoConfig) -> None:
    """Make sure, before anything is computed, that symmetry numbers and spins are those of molecules that are there.

    Raises:
        InputError: naming a formula that no gas molecule has.
    """
    there = {_formula(system) for system in systems if system.geometry is not None}
    for option in ("symmetry_numbers", "spins"):
        for name in sorted(set(getattr(config, option)) - there):
            found = ", ".join(sorted(there)) or "none"
            raise InputError(f"{option} names {name}, but no gas molecule is that; gas molecules: {found}")


def gas_of(system: System, config: ThermoConfig) -> Gas | None:
    """Symmetry number and spin of a gas molecule, given or found; None for everything else.

    Raises:
        InputError: if one is neither given nor to be found.
    """
    if system.geometry is None:
        return None
    name = _formula(system)
    symmetry, spin = config.symmetry_numbers.get(name), config.spins.get(name)
    return Gas(
        symmetry_number(system.structure, system.geometry) if symmetry is None else symmetry,
        spin_of(system.structure) if spin is None else spin,
    )


def _formula(system: System) -> str:
    return formula_of(system.structure.numbers.tolist())


def free_energies_of(vibrations: Vibrations, gas: Gas | None, config: ThermoConfig) -> list[FreeEnergy]:
    """Free energies at all temperatures; none if the model gave no finite numbers."""
    if not vibrations.is_finite:
        return []
    counted, _, _ = modes_that_count(vibrations.frequencies, config.low_frequency)
    energies = (counted * units.invcm).tolist()
    with np.errstate(over="ignore"):  # exp(ħω/kT) of a cold mode is infinite, and its share of heat and entropy zero
        if gas is None:
            return [_harmonic(vibrations, energies, t) for t in config.temperature]
        return [_ideal_gas(vibrations, energies, gas, t, config.pressure) for t in config.temperature]


def _harmonic(vibrations: Vibrations, energies: Sequence[float], temperature: float) -> FreeEnergy:
    energy = vibrations.structure.energy
    assert energy is not None
    if not energies:  # all modes are imaginary; ASE takes no empty list
        return FreeEnergy(temperature, None, energy, 0.0, 0.0, 0.0)
    thermo = HarmonicThermo(energies)
    zero_point = float(thermo.get_ZPE_correction())
    heat = float(thermo.get_internal_energy(temperature, verbose=False)) - zero_point
    entropy = float(thermo.get_entropy(temperature, verbose=False))
    return FreeEnergy(temperature, None, energy, zero_point, heat, temperature * entropy)


def _ideal_gas(
    vibrations: Vibrations, energies: Sequence[float], gas: Gas, temperature: float, pressure: float
) -> FreeEnergy:
    energy = vibrations.structure.energy
    assert energy is not None
    assert vibrations.geometry is not None
    thermo = IdealGasThermo(
        energies,
        vibrations.geometry,
        atoms=vibrations.structure.to_ase(),
        symmetrynumber=gas.symmetry_number,
        spin=gas.spin,
        vib_selection="all",
    )
    zero_point = float(thermo.get_ZPE_correction())
    heat = float(thermo.get_enthalpy(temperature, verbose=False)) - zero_point
    entropy = float(thermo.get_entropy(temperature, pressure * PASCAL, verbose=False))
    return FreeEnergy(temperature, pressure, energy, zero_point, heat, temperature * entropy)
