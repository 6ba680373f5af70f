"""Adsorption energies: what determines a gas reference, which clean slab belongs to which system, what is missing."""

from dataclasses import replace

import numpy as np
import pytest
from ase.build import fcc100, fcc111
from ase.calculators.singlepoint import SinglePointCalculator

from equicat.data.readers import write
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.sources.dft.references import CleanSlab, References, in_plane, load_references

OC20 = {"H2": -6.8, "H2O": -14.2, "CO": -14.8, "N2": -16.6}
"""The four molecules of OC20's references; energies invented."""
H, C, N, O = 1, 6, 7, 8  # noqa: E741 - symbols of elements


def slab(metal: str = "Cu", size: tuple[int, int, int] = (2, 2, 3), energy: float = -40.0) -> Structure:
    atoms = fcc111(metal, size, a=3.6, vacuum=7.0)
    atoms.pbc = True
    atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return Structure.from_ase(atoms, source=f"{metal}.traj, frame 0")


def clean(structure: Structure) -> CleanSlab:
    from collections import Counter

    return CleanSlab(
        Counter(structure.numbers.tolist()), in_plane(structure), structure.energy or 0.0, structure.source
    )


class TestGas:
    def test_elements_from_molecules(self):
        references = References(OC20)
        assert references.gas_energy([H]) == pytest.approx(-3.4)
        assert references.gas_energy([O]) == pytest.approx(-14.2 + 6.8)
        assert references.gas_energy([C]) == pytest.approx(-14.8 - (-14.2 + 6.8))
        assert references.gas_energy([N, N, O]) == pytest.approx(-16.6 + -14.2 + 6.8)
        assert references.gas_energy([C, H, H, H, O]) == pytest.approx(-14.8 + 1.5 * -6.8)
        assert references.gas_energy([]) == 0.0

    def test_atoms_as_references(self):
        assert References({"O": -1.5, "H": -1.0}).gas_energy([O, H]) == -2.5

    def test_a_molecule_alone_gives_itself_but_not_its_elements(self):
        references = References({"CO": -14.8})
        assert references.gas_energy([O, C]) == pytest.approx(-14.8)
        assert references.gas_energy([C, O, C, O]) == pytest.approx(-29.6)
        with pytest.raises(InputError, match="no gas reference for O: it is no combination of CO; add what is missing"):
            references.gas_energy([O])

    def test_missing_element_names_the_composition(self):
        with pytest.raises(InputError, match="no gas reference for CH3S: it is no combination of H2, H2O, CO, N2"):
            References(OC20).gas_energy([C, H, H, H, 16])
        with pytest.raises(InputError, match=r"no gas reference for O: .*\(there are none\)"):
            References().gas_energy([O])

    def test_contradicting_references(self):
        assert References({"H2": -6.8, "H": -3.4}).gas_energy([H]) == pytest.approx(-3.4)
        with pytest.raises(
            InputError, match=r"gas references H2, H: more energies than elements .H., and they contradict"
        ):
            References({"H2": -6.8, "H": -1.0})


class TestSlabs:
    def test_by_id_then_by_name_then_by_formula(self):
        references = References(slabs={"sys7": -1.0, "Cu(111)": -2.0, "Cu12": -3.0})
        assert references.slab_energy(["sys7", "Cu(111)"], slab()) == (-1.0, "sys7")
        assert references.slab_energy(["sys8", "Cu(111)"], slab()) == (-2.0, "Cu(111)")
        assert references.slab_energy(["sys8"], slab()) == (-3.0, "Cu12")

    def test_by_structure(self):
        references = References(clean=[clean(slab(energy=-40.0)), clean(slab("Pd", energy=-50.0))])
        assert references.slab_energy([], slab("Pd"))[0] == -50.0
        assert references.slab_energy([], slab("Cu"))[1] == "Cu.traj, frame 0"

    def test_other_choice_of_lattice_vectors(self):
        """The slab turned, with the other two vectors and more vacuum: still the same slab."""
        structure = slab()
        cell = structure.cell.copy()
        cell[[0, 1]] = cell[1], cell[0] - cell[1]
        cell[2] = [0.7, 0.2, 30.0]
        turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
        turned = replace(structure, cell=cell @ turn, positions=structure.positions @ turn)
        np.testing.assert_allclose(in_plane(turned), in_plane(structure), atol=1e-9)

    def test_same_atoms_another_facet(self):
        atoms = fcc100("Cu", (2, 2, 3), a=3.6, vacuum=7.0)
        atoms.pbc = True
        references = References(clean=[clean(slab())])
        with pytest.raises(
            InputError, match=r"no clean-slab energy for Cu12 in this cell: Cu.traj, frame 0 has the atoms"
        ):
            references.slab_energy([], Structure.from_ase(atoms))

    def test_missing(self):
        with pytest.raises(InputError, match="no clean-slab energy for Pd12: give it under slabs"):
            References(slabs={"Cu12": -1.0, "not a formula": 0.0}).slab_energy(["a"], slab("Pd"))

    def test_several_that_differ(self):
        references = References(clean=[clean(slab()), replace(clean(slab(energy=-39.0)), source="other.traj")])
        with pytest.raises(InputError, match=r"several clean slabs fit Cu12 and differ in energy: .*other.traj"):
            references.slab_energy([], slab())
        same = References(clean=[clean(slab()), replace(clean(slab()), source="other.traj")])
        assert same.slab_energy([], slab())[0] == -40.0


class TestFiles:
    def test_all_sources(self, tmp_path):
        (tmp_path / "r.yaml").write_text("gas: {H2: -6.8, NO: -12.3}\nslabs:\n  Cu12: -3.5\n")
        (tmp_path / "t.csv").write_text("name,energy\n# from March\nsys1,-1.25\n\nsys2, -2\n")
        write(tmp_path / "slabs.extxyz", [slab(energy=-41.0), slab(energy=-42.0), slab("Pd", energy=-50.0)])
        references = load_references(
            str(tmp_path / "r.yaml"), str(tmp_path / "t.csv"), [tmp_path / "slabs.extxyz"], None
        )
        assert references.gas == {"H2": -6.8, "NO": -12.3}, "NO is a molecule, not the truth value of YAML"
        assert references.slabs == {"Cu12": -3.5, "sys1": -1.25, "sys2": -2.0}
        assert [c.energy for c in references.clean] == [-42.0, -50.0], "the last frame of each slab"
        (tmp_path / "t.yaml").write_text("sys1: -7\n")
        assert load_references(None, str(tmp_path / "t.yaml"), [], None).slabs == {"sys1": -7.0}
        assert not load_references(None, None, [], None)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("gass: {H2: -6.8}", r"r.yaml: unknown section 'gass' \(did you mean 'gas'\?\)"),
            ("gas: {H2: low}", r"r.yaml, gas: the energy of H2 is 'low', expected a number \(eV\)"),
            ("gas: {H2: nan}", r"the energy of H2 is nan, expected a finite number"),
            ("gas: [1]", r"r.yaml, gas: expected names and energies"),
            ("- 1", r"r.yaml: expected names and energies"),
            ("gas: {", r"r.yaml: not valid YAML"),
            ("gas: {Xy: -1}", r"gas references: 'Xy' is no chemical formula"),
        ],
    )
    def test_bad_yaml(self, tmp_path, text, message):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(InputError, match=message):
            load_references(str(tmp_path / "r.yaml"), None, [], None)

    def test_bad_tables(self, tmp_path):
        with pytest.raises(InputError, match=r"none.yaml: cannot read the references"):
            load_references(str(tmp_path / "none.yaml"), None, [], None)
        with pytest.raises(InputError, match=r"none.csv: cannot read the table"):
            load_references(None, str(tmp_path / "none.csv"), [], None)
        (tmp_path / "t.csv").write_text("a,1\nb\n")
        with pytest.raises(InputError, match=r"t.csv, row 2: has 1 columns, expected two: name, energy"):
            load_references(None, str(tmp_path / "t.csv"), [], None)

    def test_slab_without_energy(self, tmp_path):
        write(tmp_path / "s.extxyz", [replace(slab(), energy=None)])
        with pytest.raises(InputError, match=r"s.extxyz, frame 0: a clean slab without energy"):
            load_references(None, None, [tmp_path / "s.extxyz"], None)
