"""Fixed atoms and tags: given, from a formula, or found; wrong ones are refused, unclear ones are called unclear."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.constraints import FixAtoms

from equicat.data.contacts import bonded_groups, contact_ratios, formula_of, molecules_of
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.sources.dft.tagging import UnclearAdsorbate, composition, fixed_atoms, heights, slab_only, tag_atoms


def slab(fixed: bool = True) -> Atoms:
    """Cu(111), three layers of four; the lowest is fixed."""
    atoms = fcc111("Cu", (2, 2, 3), a=3.6, vacuum=7.0)
    atoms.pbc = True
    if fixed:
        atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 3))
    atoms.set_tags(0)
    return atoms


def with_adsorbate(adsorbate: str | Atoms = "O", atoms: Atoms | None = None, height: float = 1.3) -> Structure:
    atoms = slab() if atoms is None else atoms
    add_adsorbate(atoms, adsorbate, height, position=(1.3, 0.7))
    return Structure.from_ase(atoms, source="here")


def tag(structure: Structure, name: str = "", trust: bool = True):
    return tag_atoms(structure, structure.fixed, name, trust)


class TestGivenTags:
    def test_are_used(self):
        structure = with_adsorbate()
        tags = np.array([0] * 8 + [1] * 4 + [2])
        found = tag(replace(structure, tags=tags))
        np.testing.assert_array_equal(found.tags, tags)
        assert (found.adsorbate, found.method) == ("O", "tags in the file")

    def test_without_a_surface_get_one(self):
        found = tag(replace(with_adsorbate(), tags=np.array([0] * 12 + [2])))
        assert found.tags.tolist() == [0] * 4 + [1] * 8 + [2]
        assert found.method == "tags in the file; surface: free slab atoms"

    def test_numbers_of_layers_as_ase_build_gives_them(self):
        atoms = fcc111("Cu", (2, 2, 3), a=3.6, vacuum=7.0, periodic=True)
        add_adsorbate(atoms, "O", 1.3)
        atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 3))
        found = tag(Structure.from_ase(atoms))
        assert found.tags.tolist() == [0] * 4 + [1] * 8 + [2]
        assert "layer tags of ase.build" in found.method

    def test_of_two_layers_look_like_ours_but_contradict_the_constraint(self):
        atoms = fcc111("Cu", (2, 2, 2), a=3.6, vacuum=7.0, periodic=True)
        add_adsorbate(atoms, "O", 1.3)
        atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 2))
        structure = Structure.from_ase(atoms, source="pt.traj, frame 0")
        with pytest.raises(InputError, match=r"pt.traj, frame 0: adsorbate atom 0 \(Cu\) is fixed.*--trust_tags false"):
            tag(structure)
        free = replace(structure, fixed=np.zeros(len(atoms), bool))
        with pytest.raises(InputError, match="the adsorbate lies below every other atom"):
            tag(free)
        assert tag(structure, trust=False).tags.tolist() == [0] * 4 + [1] * 4 + [2]

    def test_that_contradict_the_formula(self):
        structure = replace(with_adsorbate(), tags=np.array([0] * 8 + [1] * 4 + [2]))
        with pytest.raises(InputError, match="tagged as adsorbate are O, the adsorbate is given as CO"):
            tag(structure, "CO")

    def test_of_everything(self):
        structure = with_adsorbate(atoms=slab(fixed=False))
        with pytest.raises(InputError, match="every atom is tagged as adsorbate"):
            tag(replace(structure, tags=np.full(13, 2)))


class TestFound:
    @pytest.mark.parametrize("name", ["CO", "CH3OH", "H2O", "NH3", "C2H4"])
    def test_molecules_by_element(self, name):
        structure = with_adsorbate(molecule(name), height=2.5)
        found = tag(structure)
        assert (found.tags == 2).tolist() == [False] * 12 + [True] * len(molecule(name))
        assert found.adsorbate == formula_of(molecule(name).numbers.tolist())
        assert found.method == "elements that the slab does not have; surface: free slab atoms"

    def test_several_apart_are_named_once(self):
        atoms = slab()
        for position in ((1.3, 0.7), (3.8, 0.7)):
            add_adsorbate(atoms, "O", 1.3, position=position)
        assert tag(Structure.from_ase(atoms)).adsorbate == "O"
        add_adsorbate(atoms, molecule("CO"), 2.5, position=(2.6, 2.9))
        assert tag(Structure.from_ase(atoms)).adsorbate == "CO+O"

    def test_without_a_constraint_the_highest_layer_is_the_surface(self):
        found = tag(with_adsorbate(atoms=slab(fixed=False)))
        assert found.tags.tolist() == [0] * 8 + [1] * 4 + [2]
        assert "highest 2 Å of the slab" in found.method

    @pytest.mark.parametrize("moved", [0.0, 5.0, 11.0, 14.0])
    def test_a_slab_cut_by_the_edge_of_its_cell(self, moved):
        structure = with_adsorbate(atoms=slab(fixed=False))
        positions = structure.positions + np.array([0.0, 0.0, moved])
        positions[:, 2] %= structure.cell[2, 2]
        assert tag(replace(structure, positions=positions)).tags.tolist() == [0] * 8 + [1] * 4 + [2]

    def test_a_slab_upside_down_is_told_by_its_constraint(self):
        structure = with_adsorbate()
        flipped = replace(structure, positions=structure.positions * np.array([1.0, 1.0, -1.0]))
        assert tag(flipped).tags.tolist() == tag(structure).tags.tolist()
        np.testing.assert_allclose(heights(flipped, flipped.fixed), heights(structure, structure.fixed), atol=1e-8)

    def test_heights_are_along_the_normal(self):
        """A lattice vector across the vacuum that leans, as in OC20, changes no height."""
        structure = with_adsorbate()
        cell = structure.cell.copy()
        cell[2] += 0.3 * cell[0] + 0.2 * cell[1]
        np.testing.assert_allclose(
            heights(replace(structure, cell=cell), structure.fixed), heights(structure, structure.fixed), atol=1e-8
        )

    def test_nothing_found(self):
        with pytest.raises(
            UnclearAdsorbate, match=r"no adsorbate found.*slab: Cu\); give tags or the adsorbate's formula"
        ):
            tag(Structure.from_ase(slab()))
        assert slab_only(Structure.from_ase(slab()), Structure.from_ase(slab()).fixed).tolist() == [0] * 4 + [1] * 8

    def test_an_atom_of_the_slab_bonded_to_the_adsorbate_is_doubtful(self):
        atoms = slab()
        atoms.symbols[[0, 9]] = "O"
        add_adsorbate(atoms, "C", 1.3, position=atoms.positions[9, :2])
        with pytest.raises(UnclearAdsorbate, match=r"atom 9 \(O\) is bonded to the adsorbate and may belong to it"):
            tag(Structure.from_ase(atoms))

    def test_no_vacuum(self):
        bulk = Structure.from_ase(Atoms("Cu", cell=3 * np.eye(3), pbc=True).repeat(2))
        with pytest.raises(UnclearAdsorbate, match=r"no vacuum \(largest gap 2.7 Å\), so no surface"):
            heights(replace(bulk, cell=0.9 * bulk.cell, positions=0.9 * bulk.positions), bulk.fixed)


class TestFormula:
    def test_of_what_the_slab_has_not(self):
        structure = with_adsorbate(molecule("CO"), height=2.5)
        found = tag(structure, "CO")
        assert found.tags.tolist()[12:] == [2, 2]
        assert found.method.startswith("adsorbate formula CO")

    def test_several_of_it(self):
        atoms = slab()
        for position in ((1.3, 0.7), (3.8, 0.7)):
            add_adsorbate(atoms, "O", 1.3, position=position)
        assert tag(Structure.from_ase(atoms), "O").tags.tolist()[12:] == [2, 2]

    def oxide(self) -> Atoms:
        """Every second atom of each layer is oxygen."""
        atoms = slab()
        atoms.symbols[::2] = "O"
        return atoms

    def test_on_an_oxide_the_highest(self):
        structure = with_adsorbate("O", self.oxide())
        assert (tag(structure, "O").tags == 2).nonzero()[0].tolist() == [12]

    def test_on_an_oxide_the_closest_bonded(self):
        atoms = self.oxide()
        add_adsorbate(atoms, molecule("CO"), 1.6, position=(1.3, 0.7))
        add_adsorbate(atoms, "Cu", 4.0, position=(3.0, 3.0))
        structure = Structure.from_ase(atoms)
        assert (tag(structure, "CO").tags == 2).nonzero()[0].tolist() == [12, 13]

    def test_a_metal_on_its_own_surface(self):
        structure = with_adsorbate("Cu", height=2.0)
        assert (tag(structure, "Cu").tags == 2).nonzero()[0].tolist() == [12]

    def test_not_clear(self):
        atoms = self.oxide()
        for position in ((1.3, 0.7), (3.8, 0.7)):
            add_adsorbate(atoms, "O", 1.3, position=position)
        with pytest.raises(UnclearAdsorbate, match="which O atoms are the adsorbate is not clear"):
            tag(Structure.from_ase(atoms), "O")

    def test_no_multiple(self):
        with pytest.raises(UnclearAdsorbate, match="found O beside the slab, which is no multiple of the adsorbate O2"):
            tag(with_adsorbate(), "O2")
        with pytest.raises(UnclearAdsorbate, match="found none of its atoms beside the slab"):
            tag(with_adsorbate(), "N")

    def test_no_formula(self):
        with pytest.raises(InputError, match="the adsorbate: 'Xy' is no chemical formula"):
            tag(with_adsorbate(), "Xy")
        assert composition("*CH3O", "") == {6: 1, 1: 3, 8: 1}


class TestFixedAtoms:
    def test_from_the_constraint(self):
        structure = with_adsorbate()
        positions = np.stack([structure.positions, structure.positions + 0.01])
        fixed, method = fixed_atoms(structure, positions, infer=True)
        np.testing.assert_array_equal(fixed, structure.fixed)
        assert method == "constraint"

    def test_that_move(self):
        structure = with_adsorbate()
        positions = np.stack([structure.positions] * 2)
        positions[1, 2, 0] += 0.2
        positions[1, 12, 0] += 3.0  # free: of no concern
        with pytest.raises(InputError, match=r"here: atom 2 is fixed but moves 0.20 Å"):
            fixed_atoms(structure, positions, infer=False)

    def test_from_what_never_moves(self):
        structure = with_adsorbate(atoms=slab(fixed=False))
        positions = np.stack([structure.positions] * 3)
        positions[1, 4:] += 0.05
        fixed, method = fixed_atoms(structure, positions, infer=True)
        assert fixed.tolist() == [True] * 4 + [False] * 9
        assert method == "atoms that never move"
        assert fixed_atoms(structure, positions, infer=False)[1] == "none: no constraint"
        positions[1] += 0.05
        assert fixed_atoms(structure, positions, infer=True)[1] == "none: every atom moves"
        assert not fixed_atoms(structure, positions[:1], infer=True)[0].any(), "one frame shows no motion"


class TestAdsorbates:
    def test_ratios_are_the_nearest_image_also_under_a_leaning_vector_that_is_not_periodic(self):
        structure = with_adsorbate()
        cell = structure.cell.copy()
        cell[2] += 5.3 * cell[0]
        pbc = np.array([True, True, False])
        chosen = structure.numbers == 8
        upright = contact_ratios(structure.numbers, structure.positions, structure.cell, pbc, chosen)
        np.testing.assert_allclose(contact_ratios(structure.numbers, structure.positions, cell, pbc, chosen), upright)
        assert upright[0, 12] == 0.0

    def test_groups_and_names(self):
        ratios = np.array([[0, 1.0, 3, 3], [1.0, 0, 1.2, 3], [3, 1.2, 0, 3], [3, 3, 3, 0.0]])
        assert bonded_groups(ratios, 1.3).tolist() == [0, 0, 0, 1]
        assert molecules_of(np.array([1, 8, 1, 6]), np.array([0, 0, 0, 1])) == "C+H2O"
        assert formula_of([]) == ""
