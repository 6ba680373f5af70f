"""Free energies: against ASE's classes on the same frequencies, and measured entropies of gases."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.emt import EMT
from ase.thermochemistry import HarmonicThermo, IdealGasThermo, QuasiHarmonicThermo
from emt_minima import gas, on_copper
from springs import Springs

import equicat
from equicat.errors import InputError
from equicat.relaxation.models import CalculatorForces
from equicat.vibrations.config import FreeEnergyConfig
from equicat.vibrations.modes import WAVENUMBER
from equicat.vibrations.thermochemistry import modes_that_count

emt = CalculatorForces(EMT)
TEMPERATURES = (100.0, 298.15, 700.0)


def energies(frequencies: np.ndarray) -> list[float]:
    return (np.asarray(frequencies) * units.invcm).tolist()


def free_energies(atoms: Atoms, model=emt, **options):
    (result,) = equicat.free_energies([atoms], model, FreeEnergyConfig(temperature=TEMPERATURES, **options)).results
    return result


@pytest.mark.parametrize("low", [0.0, 50.0, 120.0])
def test_adsorbates_are_harmonic_and_low_frequencies_are_raised_as_ase_raises_them(low):
    result = free_energies(on_copper("O"), low_frequency=low)
    expected = QuasiHarmonicThermo(
        energies(result.vibrations.frequencies), result.vibrations.structure.energy, raise_to=low * units.invcm
    )
    assert result.n_raised == (2 if low == 120.0 else 0)
    for one, temperature in zip(result.free_energies, TEMPERATURES, strict=True):
        assert one.free_energy == pytest.approx(expected.get_helmholtz_energy(temperature, verbose=False), abs=1e-9)
        assert one.zero_point == pytest.approx(expected.get_ZPE_correction(), abs=1e-9)
        assert one.energy + one.zero_point + one.heat == pytest.approx(expected.get_internal_energy(temperature, False))
        assert one.pressure is None
    if low == 0.0:
        plain = HarmonicThermo(energies(result.vibrations.frequencies)).get_helmholtz_energy(700.0, verbose=False)
        assert result.free_energies[2].correction == pytest.approx(plain, abs=1e-9)


def test_strong_imaginary_modes_are_left_out_and_weak_ones_raised():
    result = free_energies(on_copper("CO"))  # upright CO is a saddle point of EMT: 57i cm⁻¹, twice
    assert result.vibrations.n_imaginary == 2
    assert result.flags == ("imaginary",)
    real = energies(result.vibrations.frequencies[2:])
    expected = HarmonicThermo(real).get_helmholtz_energy(298.15, verbose=False)
    assert result.free_energies[1].correction == pytest.approx(expected, abs=1e-9)
    raised = free_energies(on_copper("CO"), low_frequency=60.0)
    assert (raised.n_raised, raised.flags) == (2, ())
    expected = HarmonicThermo([*energies([60, 60]), *real]).get_helmholtz_energy(298.15, verbose=False)
    assert raised.free_energies[1].correction == pytest.approx(expected, abs=1e-9)


def test_which_modes_count():
    counted, n_raised, n_left_out = modes_that_count(np.array([-80.0, -20.0, 0.0, 30.0, 900.0]), 50.0)
    assert counted.tolist() == [50.0, 50.0, 50.0, 900.0]
    assert (n_raised, n_left_out) == (3, 1)
    counted, n_raised, n_left_out = modes_that_count(np.array([-80.0, -20.0, 0.0, 30.0, 900.0]), 0.0)
    assert counted.tolist() == [30.0, 900.0]
    assert (n_raised, n_left_out) == (0, 3)
    assert modes_that_count(np.zeros(0), 50.0)[1:] == (0, 0)


@pytest.mark.parametrize(
    ("name", "geometry", "number", "spin"),
    [("H2O", "nonlinear", 2, 0), ("N2", "linear", 2, 0), ("O", "monatomic", 1, 1)],
)
def test_gas_molecules_are_an_ideal_gas_at_their_pressure(name, geometry, number, spin):
    result = free_energies(gas(name), pressure=0.2)
    expected = IdealGasThermo(
        energies(result.vibrations.frequencies),
        geometry,
        result.vibrations.structure.energy,
        gas(name),
        number,
        spin,
    )
    for one, temperature in zip(result.free_energies, TEMPERATURES, strict=True):
        gibbs = expected.get_gibbs_energy(temperature, 0.2e5, verbose=False)
        assert one.free_energy == pytest.approx(gibbs, abs=1e-9)
        enthalpy = expected.get_enthalpy(temperature, verbose=False)
        assert one.energy + one.zero_point + one.heat == pytest.approx(enthalpy, abs=1e-9)
        assert one.pressure == 0.2


@pytest.mark.parametrize(
    ("symbols", "length", "wavenumber", "entropy"),
    [
        ("N2", 1.0977, 2359, 191.61),
        ("O2", 1.2075, 1580, 205.15),
        ("CO", 1.1283, 2170, 197.66),
        ("H2", 0.7414, 4401, 130.68),
    ],
)
def test_entropies_of_gases_are_the_measured_ones(symbols, length, wavenumber, entropy):
    """Standard entropies at 298.15 K and 1 bar, J/(mol K), are NIST-JANAF's; the constants Huber and Herzberg's."""
    masses = Atoms(symbols).get_masses()
    k = (wavenumber / WAVENUMBER) ** 2 / (1 / masses).sum()
    result = free_energies(Atoms(symbols, [[0, 0, 0], [0, 0, length]]), Springs(k, length))
    assert result.vibrations.frequencies == pytest.approx([wavenumber], rel=1e-4)
    one = result.free_energies[1]
    assert one.zero_point == pytest.approx(wavenumber * units.invcm / 2, rel=1e-4)
    assert one.temperature_entropy / 298.15 / (units.J / units.mol) == pytest.approx(entropy, abs=0.5)
    assert one.heat == pytest.approx(3.5 * units.kB * 298.15, abs=1e-4)


def test_symmetry_numbers_and_spins_that_are_given_count():
    found = free_energies(gas("O2"))
    given = free_energies(gas("O2"), symmetry_numbers={"O2": 6}, spins={"O2": 0.0})
    assert (given.gas.symmetry_number, given.gas.spin) == (6, 0)
    change = given.free_energies[1].correction - found.free_energies[1].correction
    assert change == pytest.approx(units.kB * 298.15 * np.log(3 * 3), abs=1e-9)  # σ three times, one state of three


def test_what_is_said_of_a_molecule_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="spins names O2, but no gas molecule is that; gas molecules: N2"):
        free_energies(gas("N2"), spins={"O2": 1.0})
    with pytest.raises(InputError, match="symmetry_numbers names CO, but no gas molecule is that; gas molecules: none"):
        free_energies(on_copper("CO"), symmetry_numbers={"CO": 1})


def test_nothing_overflows_when_it_is_cold():
    cold = FreeEnergyConfig(temperature=(1.0,))
    for atoms in (gas("H2O"), on_copper("CO")):
        (result,) = equicat.free_energies([atoms], emt, cold).results
        assert result.free_energies[0].correction == pytest.approx(result.free_energies[0].zero_point, abs=1e-2)


def test_without_a_real_mode_the_energy_stays_as_it_is():
    repelled = Atoms("N2", [[0, 0, 0], [0, 0, 1.0]])
    held = FreeEnergyConfig(gas="no", atoms=(0,), low_frequency=0.0)
    (result,) = equicat.free_energies([repelled], Springs(-30.0, 1.0), held).results
    assert result.vibrations.n_imaginary == 3
    assert result.flags == ("imaginary",)
    assert result.free_energies[0].free_energy == result.vibrations.structure.energy
