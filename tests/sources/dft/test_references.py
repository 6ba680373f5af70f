"""Adsorption energies: what determines a gas reference, which clean slab belongs to which system, what is missing."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc100, fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator

from equicat.data.readers import write
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.sources.dft.references import CleanSlab, ReferenceFiles, References, in_plane, load_references
from equicat.sources.dft.tables import Energy

OC20 = {"H2": -6.8, "H2O": -14.2, "CO": -14.8, "N2": -16.6}
"""The four molecules of OC20's references; energies invented."""
H, C, N, O = 1, 6, 7, 8  # noqa: E741 - symbols of elements


def labelled(atoms: Atoms, energy: float, source: str) -> Structure:
    atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return Structure.from_ase(atoms, source=source)


def slab(metal: str = "Cu", size: tuple[int, int, int] = (2, 2, 3), energy: float = -40.0) -> Structure:
    atoms = fcc111(metal, size, a=3.6, vacuum=7.0)
    atoms.pbc = True
    return labelled(atoms, energy, f"{metal}.traj, frame 0")


def energies(values: dict[str, float], file: str = "r.yaml") -> dict[str, Energy]:
    return {name: Energy(value, file) for name, value in values.items()}


def gas_energy(values: dict[str, float], numbers: list[int]) -> float:
    return References(energies(values)).gas_reference(numbers).energy


class TestGas:
    def test_elements_from_molecules(self):
        assert gas_energy(OC20, [H]) == pytest.approx(-3.4)
        assert gas_energy(OC20, [O]) == pytest.approx(-14.2 + 6.8)
        assert gas_energy(OC20, [C]) == pytest.approx(-14.8 - (-14.2 + 6.8))
        assert gas_energy(OC20, [N, N, O]) == pytest.approx(-16.6 + -14.2 + 6.8)
        assert gas_energy(OC20, [C, H, H, H, O]) == pytest.approx(-14.8 + 1.5 * -6.8)
        assert gas_energy(OC20, []) == 0.0

    @pytest.mark.parametrize(
        ("numbers", "text"),
        [
            ([O], "H2O - H2"),
            ([O, H], "H2O - ½ H2"),
            ([C, O], "CO"),
            ([C], "H2 + CO - H2O"),
            ([N, H], "½ H2 + ½ N2"),
            ([C, H, H, H, O], "3/2 H2 + CO"),
            ([], ""),
        ],
    )
    def test_combination_in_words(self, numbers, text):
        assert References(energies(OC20)).gas_reference(numbers).text == text

    def test_atoms_as_references(self):
        assert gas_energy({"O": -1.5, "H": -1.0}, [O, H]) == -2.5

    def test_a_molecule_alone_gives_itself_but_not_its_elements(self):
        assert gas_energy({"CO": -14.8}, [O, C]) == pytest.approx(-14.8)
        assert gas_energy({"CO": -14.8}, [C, O, C, O]) == pytest.approx(-29.6)
        with pytest.raises(InputError, match="no gas reference for O: it is no combination of CO; add what is missing"):
            gas_energy({"CO": -14.8}, [O])

    def test_missing_element_names_the_composition(self):
        with pytest.raises(InputError, match="no gas reference for CH3S: it is no combination of H2, H2O, CO, N2"):
            gas_energy(OC20, [C, H, H, H, 16])
        with pytest.raises(InputError, match=r"no gas reference for O: .*\(there are none\)"):
            gas_energy({}, [O])

    def test_contradicting_references(self):
        assert gas_energy({"H2": -6.8, "H": -3.4}, [H]) == pytest.approx(-3.4)
        with pytest.raises(
            InputError, match=r"gas references H2, H: more energies than elements .H., and they contradict"
        ):
            References(energies({"H2": -6.8, "H": -1.0}))

    def test_one_molecule_under_two_names(self):
        assert gas_energy({"OH": -7.0, "HO": -7.0, "H2": -6.8}, [O, H]) == pytest.approx(-7.0)
        with pytest.raises(InputError, match=r"two energies for the gas molecule OH: -7 eV \(r.yaml\) and -8 eV \(r.y"):
            References(energies({"OH": -7.0, "HO": -8.0}))


class TestFoundAmongTheFiles:
    """Molecules and clean slabs that are not given but come with the relaxations."""

    def completed(self, given: dict[str, float], found: dict[str, float]) -> list[str]:
        references = References(energies(given)).completed(energies(found, "gas/OUTCAR").items(), [])
        assert {name: energy.value for name, energy in references.gas.items()}.items() <= (found | given).items()
        return list(references.gas)

    def test_molecules_of_oc20_come_first_and_what_adds_nothing_is_left(self):
        assert self.completed({}, {"CH4": -24.0, "O2": -9.9, **OC20}) == ["CO", "H2", "N2", "H2O"]
        assert self.completed({}, {"CH4": -24.0, "H2": -6.8, "H2O": -14.2}) == ["H2", "H2O", "CH4"]
        assert self.completed({"O2": -9.9, "H2": -6.8}, {"H2O": -14.2, "CO": -14.8}) == ["O2", "H2", "CO"]

    def test_what_is_given_too_must_be_the_same(self):
        assert self.completed({"OH": -7.0}, {"OH": -7.00001}) == ["OH"]
        with pytest.raises(
            InputError, match=r"two energies for the gas molecule H2: -6.8 eV \(r.yaml\) and -6.5 eV \(gas/OUTCAR\)"
        ):
            self.completed({"H2": -6.8}, {"H2": -6.5})

    def test_a_molecule_twice(self):
        twice = [("H2", Energy(-6.8, "a/OUTCAR")), ("H2", Energy(-6.7, "b/OUTCAR"))]
        with pytest.raises(InputError, match=r"-6.8 eV \(a/OUTCAR\) and -6.7 eV \(b/OUTCAR\); keep the right one"):
            References().completed(twice, [])
        # Nobody asks for isomers if neither is needed.
        isomers = [("C2H6O", Energy(-46.0, "a/OUTCAR")), ("C2H6O", Energy(-47.0, "b/OUTCAR"))]
        assert list(References(energies(OC20)).completed(isomers, []).gas) == list(OC20)


class TestSlabs:
    def test_by_id_then_by_name_then_by_formula(self):
        references = References(slabs=energies({"sys7": -1.0, "Cu(111)": -2.0, "Cu12": -3.0}))
        assert references.slab_energy(["sys7", "Cu(111)"], slab())[0].value == -1.0
        assert references.slab_energy(["sys8", "Cu(111)"], slab())[0].value == -2.0
        assert references.slab_energy(["sys8"], slab())[0].value == -3.0

    def test_by_structure(self):
        references = References(clean=[CleanSlab.of(slab(energy=-40.0)), CleanSlab.of(slab("Pd", energy=-50.0))])
        energy, clean = references.slab_energy([], slab("Pd"))
        assert energy.value == -50.0
        assert clean is references.clean[1]
        assert references.slab_energy([], slab("Cu"))[0].where == "Cu.traj, frame 0"

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
        references = References(clean=[CleanSlab.of(slab())])
        with pytest.raises(
            InputError, match=r"no clean-slab energy for Cu12 in this cell: Cu.traj, frame 0 has the atoms"
        ):
            references.slab_energy([], Structure.from_ase(atoms))

    def test_missing(self):
        with pytest.raises(InputError, match="no clean-slab energy for Pd12: give it under slabs"):
            References(slabs=energies({"Cu12": -1.0, "not a formula": 0.0})).slab_energy(["a"], slab("Pd"))

    def test_several_that_differ(self):
        other = replace(slab(energy=-39.0), source="other.traj, frame 3")
        references = References(clean=[CleanSlab.of(slab()), CleanSlab.of(other)])
        with pytest.raises(
            InputError,
            match=r"several clean slabs fit Cu12 and differ in energy: -40 eV \(Cu.traj, frame 0\) and -39 eV \(other",
        ):
            references.slab_energy([], slab())
        same = References(clean=[CleanSlab.of(slab()), CleanSlab.of(replace(other, energy=-40.0))])
        assert same.slab_energy([], slab())[0].value == -40.0

    def test_a_table_and_a_file_that_differ(self):
        clean = [CleanSlab.of(slab())]
        with pytest.raises(InputError, match=r"-3 eV \(r.yaml\) and -40 eV \(Cu.traj, frame 0\)"):
            References(slabs=energies({"Cu12": -3.0}), clean=clean).slab_energy([], slab())
        with pytest.raises(InputError, match=r"-3 eV \(r.yaml\) and -4 eV \(r.yaml\)"):
            References(slabs=energies({"Cu12": -3.0, "Cu6Cu6": -4.0})).slab_energy([], slab())
        assert References(slabs=energies({"Cu12": -40.0}), clean=clean).slab_energy([], slab())[1] is clean[0]
        by_id = References(slabs=energies({"sys7": -3.0, "sys8": -40.0}), clean=clean)
        assert by_id.slab_energy(["sys7"], slab()) == (by_id.slabs["sys7"], None), "said by system id, not of this file"
        assert by_id.slab_energy(["sys8"], slab()) == (by_id.slabs["sys8"], clean[0])


class TestFiles:
    def load(self, tmp_path, **texts: str) -> References:
        """References from a YAML file and tables with these texts."""
        paths = {}
        for name, text in texts.items():
            paths[name] = str(tmp_path / {"yaml": "r.yaml", "slab_table": "t.csv"}[name])
            (tmp_path / paths[name]).write_text(text)
        return load_references(ReferenceFiles(**paths))

    def test_all_sources(self, tmp_path):
        write(tmp_path / "slabs.extxyz", [slab(energy=-41.0), slab(energy=-42.0), slab("Pd", energy=-50.0)])
        write(tmp_path / "gas.extxyz", [labelled(molecule("N2", vacuum=4), -16.0 - i, "") for i in range(2)])
        (tmp_path / "r.yaml").write_text("gas: {H2: -6.8, NO: -12.3}\nslabs:\n  Cu12: -3.5\n")
        (tmp_path / "t.csv").write_text("name,energy\n# from March\nsys1,-1.25\n\nsys2, -2\n")
        files = ReferenceFiles(
            str(tmp_path / "r.yaml"),
            str(tmp_path / "t.csv"),
            slab_files=[tmp_path / "slabs.extxyz"],
            gas_files=[tmp_path / "gas.extxyz"],
        )
        references = load_references(files)
        gas = {name: energy.value for name, energy in references.gas.items()}
        assert gas == {"H2": -6.8, "NO": -12.3, "N2": -17.0}, "NO is a molecule, not the truth value of YAML"
        assert {name: e.value for name, e in references.slabs.items()} == {"Cu12": -3.5, "sys1": -1.25, "sys2": -2.0}
        assert references.slabs["sys1"].where == f"{tmp_path / 't.csv'}, row 3"
        assert references.slabs["Cu12"].where == f"{tmp_path / 'r.yaml'}, slabs, line 3"
        assert [c.energy.value for c in references.clean] == [-42.0, -50.0], "the last frame of each slab"
        assert [c.structure.sid for c in references.clean] == ["slab-slabs-0", "slab-slabs-1"]
        (tmp_path / "t.yaml").write_text("sys1: -7\n")
        assert load_references(ReferenceFiles(slab_table=str(tmp_path / "t.yaml"))).slabs["sys1"].value == -7.0
        assert not load_references(ReferenceFiles())

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("gass: {H2: -6.8}", r"r.yaml: unknown section 'gass' \(did you mean 'gas'\?\)"),
            ("gas: {H2: low}", r"r.yaml, gas, line 1: the energy of H2 is 'low', expected a number \(eV\)"),
            ("gas: {H2: nan}", r"the energy of H2 is nan, expected a finite number"),
            ("gas: {H2: [1]}", r"r.yaml, gas, line 1: the energy of H2 is no number"),
            ("gas: [1]", r"r.yaml, gas: expected names and energies"),
            ("- 1", r"r.yaml: expected names and energies"),
            ("gas: {", r"r.yaml: not valid YAML"),
            ("gas: {Xy: -1}", r"gas references: 'Xy' is no chemical formula"),
        ],
    )
    def test_bad_yaml(self, tmp_path, text, message):
        with pytest.raises(InputError, match=message):
            self.load(tmp_path, yaml=text)

    def test_empty_sections(self, tmp_path):
        assert not self.load(tmp_path, yaml="gas:\nslabs: {}\n")

    @pytest.mark.parametrize(
        ("texts", "message"),
        [
            (
                {"slab_table": "Cu12,3\nCu12,4\n"},
                r"energies for the clean slab Cu12: 3 eV .*row 1. and 4 eV .*row 2",
            ),
            (
                {"yaml": "slabs: {Cu12: 3,\n  Cu12: 4}"},
                r"clean slab Cu12: 3 eV .*line 1. and 4 eV .*line 2",
            ),
            (
                {"yaml": "slabs: {Cu12: 3}", "slab_table": "Cu12,4"},
                r"Cu12: 3 eV .*line 1. and 4 eV .*t.csv, row 1",
            ),
            (
                {"yaml": "slabs: {Cu12: 3}\nslabs: {Cu12: 4}"},
                r"Cu12: 3 eV .*line 1. and 4 eV .*line 2.; keep",
            ),
            ({"yaml": "gas: {H2: -6, H2: -7}"}, r"two energies for the gas molecule H2: -6 eV .* and -7 eV"),
            ({"yaml": "gas: {OH: -6, HO: -7}"}, r"two energies for the gas molecule OH: -6 eV .* and -7 eV"),
        ],
    )
    def test_two_energies_for_one_thing(self, tmp_path, texts, message):
        with pytest.raises(InputError, match=message):
            self.load(tmp_path, **texts)

    def test_one_energy_twice(self, tmp_path):
        references = self.load(
            tmp_path,
            yaml="gas: {H2: -6, H2: -6.0}\nslabs: {Cu12: 3}\nslabs: {Cu12: 3.00001}",
            slab_table="Cu12,3\nCu12,3",
        )
        assert (references.gas["H2"].value, references.slabs["Cu12"].value) == (-6.0, 3.0)

    def test_a_molecule_in_a_table_and_in_a_file(self, tmp_path):
        write(tmp_path / "gas.extxyz", [labelled(molecule("H2", vacuum=4), -6.5, "")])
        (tmp_path / "r.yaml").write_text("gas: {H2: -6.8}")
        files = ReferenceFiles(str(tmp_path / "r.yaml"), gas_files=[tmp_path / "gas.extxyz"])
        with pytest.raises(InputError, match=r"H2: -6.8 eV .*r.yaml, gas, line 1. and -6.5 eV .*gas.extxyz, frame 0"):
            load_references(files)

    def test_bad_tables(self, tmp_path):
        with pytest.raises(InputError, match=r"none.yaml: cannot read the references"):
            load_references(ReferenceFiles(yaml=str(tmp_path / "none.yaml")))
        with pytest.raises(InputError, match=r"none.csv: cannot read the table"):
            load_references(ReferenceFiles(slab_table=str(tmp_path / "none.csv")))
        with pytest.raises(InputError, match=r"t.csv, row 2: has 1 columns, expected two: name, energy"):
            self.load(tmp_path, slab_table="a,1\nb\n")

    def test_slab_without_energy(self, tmp_path):
        write(tmp_path / "s.extxyz", [replace(slab(), energy=None)])
        with pytest.raises(InputError, match=r"s.extxyz, frame 0: a clean slab without energy"):
            load_references(ReferenceFiles(slab_files=[tmp_path / "s.extxyz"]))
