"""Names of molecules and slabs as chemists write them."""

import pytest

from equicat.data.contacts import composition, formula_of
from equicat.errors import InputError

AS_WRITTEN = """
H OH H2O OOH H2O2 NH NH2 NH3 N2H4 HNO NO2 N2O SH H2S SO2 HCl SiH4 BH3 PH3 O2 O3 N2 Cl2
C CO CO2 CH CH4 CHO CH3O C2H6O HCN CHO2 CH4N2O CH3Cl
Cu12 Cu3Pd CuO TiO2 SrTiO3 Cu12OH Pd12CO Cu27NH3
"""
"""Formulas without carbon, with carbon, and with metals."""
each = pytest.mark.parametrize("formula", AS_WRITTEN.split())


def numbers_of(formula: str) -> list[int]:
    return [z for z, n in composition(formula, "").items() for _ in range(n)]


@each
def test_formulas_as_chemists_write_them(formula):
    assert formula_of(numbers_of(formula)) == formula
    assert formula_of(reversed(numbers_of(formula))) == formula, "in whatever order the atoms come"


@each
def test_a_formula_reads_back(formula):
    assert sorted(numbers_of(formula_of(numbers_of(formula)))) == sorted(numbers_of(formula))


def test_no_atoms_and_no_formula():
    assert formula_of([]) == ""
    assert composition("", "") == {}
    assert composition("*OH", "") == {8: 1, 1: 1}
    with pytest.raises(InputError, match="the adsorbate: 'Xy' is no chemical formula"):
        composition("Xy", "the adsorbate")
