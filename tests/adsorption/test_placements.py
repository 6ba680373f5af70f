"""Adsorbates, and where they are placed."""

import importlib.util

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.constraints import FixAtoms, FixCartesian
from ase.io import write

from equicat import InputError
from equicat.adsorption.adsorbates import NAMES, adsorbate, distinct_turns, together
from equicat.adsorption.builders import SlabConfig
from equicat.adsorption.placements import PlacementConfig, place, sites_of
from equicat.adsorption.slabs import open_slab
from equicat.data.contacts import contact_ratios, formula_of

RDKIT = importlib.util.find_spec("rdkit") is not None
needs_rdkit = pytest.mark.skipif(not RDKIT, reason="RDKit is not installed (extra [surfaces])")


def placed(load, slab="Cu(111) 2x2x3", **options):
    options.setdefault("finder", "delaunay")
    return place(open_slab(slab, SlabConfig()), [together(load)], PlacementConfig(**options)).placements


# ---- adsorbates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_adsorbate_stands_on_its_binding_atoms_and_is_one_molecule(name):
    one = adsorbate(name)
    counts = sorted(Atoms("".join(c for c in name if c != "*")).numbers)
    assert sorted(one.numbers) == counts
    heavy = one.positions[one.numbers > 1] if (one.numbers > 1).any() else one.positions
    assert heavy[:, 2].min() == pytest.approx(0, abs=1e-6)
    ratios = contact_ratios(one.numbers, one.positions, np.zeros((3, 3)), np.zeros(3, bool), one.numbers > 0)
    np.fill_diagonal(ratios, np.inf)
    assert len(one.numbers) == 1 or 0.6 < ratios.min(1).max() < 1.3


def test_names_with_a_star_and_other_spellings_are_the_same_adsorbate():
    for name in ("*OH", "OH*", "HO"):
        assert adsorbate(name).name == "OH"


def test_carbon_monoxide_stands_on_its_carbon():
    one = adsorbate("CO")
    assert one.numbers[one.positions[:, 2].argmin()] == 6


def test_a_given_structure_is_moved_and_not_changed(tmp_path):
    water = molecule("H2O")
    water.rotate(37, (1, 2, 3))
    water.write(tmp_path / "water.xyz")
    one = adsorbate(tmp_path / "water.xyz")
    assert one.name == "water"
    shift = one.positions - water.positions
    np.testing.assert_allclose(shift - shift[0], 0, atol=1e-6)
    assert one.positions[:, 2].min() == pytest.approx(0)


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ("OHH", "no adsorbate 'OHH'"),
        ("COO", "did you mean"),
        (Atoms("OH", [(0, 0, 0), (0, 0, 3)]), "not one molecule but 2"),
        (Atoms("CO", [(0, 0, 0.1), (0, 0, 7.9)], cell=(8, 8, 8), pbc=True), "cut by the faces"),
        (Atoms("OH", [(0, 0, 0), (0, 0, 0.2)]), "overlap"),
        (Atoms("OH", [(0, 0, 0), (0, 0, 1)], constraint=FixAtoms([0])), "has constraints"),
    ],
)
def test_what_is_no_adsorbate_is_refused(what, problem):
    with pytest.raises(InputError, match=problem):
        adsorbate(what)


def test_a_file_with_several_structures_is_refused(tmp_path):
    write(tmp_path / "two.xyz", [molecule("CO"), molecule("NO")])
    with pytest.raises(InputError, match="holds 2 structures"):
        adsorbate(tmp_path / "two.xyz")


@pytest.mark.skipif(RDKIT, reason="RDKit is installed")
def test_smiles_without_rdkit_name_the_extra():
    with pytest.raises(InputError, match=r"pip install 'equicat\[surfaces\]'"):
        adsorbate("smiles:CCO")


@needs_rdkit
def test_smiles_bind_by_the_marked_atom():
    one = adsorbate("smiles:C[OH:1]")
    assert formula_of(one.numbers.tolist()) == "CH4O"
    assert one.numbers[np.linalg.norm(one.positions, axis=1).argmin()] == 8


@needs_rdkit
@pytest.mark.parametrize("text", ["smiles:xx", "smiles:C.O", "smiles:"])
def test_wrong_smiles_are_refused(text):
    with pytest.raises(InputError, match="not the SMILES of one molecule"):
        adsorbate(text)


def test_turns_that_change_nothing_are_left_out():
    assert [len(distinct_turns(adsorbate(name), 4)) for name in ("O", "CO", "H2O", "CHO")] == [1, 1, 2, 4]


# ---- placements ------------------------------------------------------------------------------------------------------


def test_each_kind_of_site_gets_every_turn_and_height():
    found = placed("CHO", rotations=3, heights=(0.0, 0.5))
    assert len(found) == 4 * 3 * 2
    assert {p.site for p in found} == {"ontop", "bridge", "fcc", "hcp"}
    assert len({p.structure.sid for p in found}) == len(found)


def test_the_first_atom_touches_the_slab_at_the_sum_of_covalent_radii():
    for placement in placed("O"):
        s = placement.structure
        ratios = contact_ratios(s.numbers, s.positions, s.cell, s.pbc, s.tags == 2)
        assert ratios[:, s.tags < 2].min() == pytest.approx(1.0)


def test_the_slab_keeps_its_atoms_and_the_adsorbate_is_free_and_tagged():
    slab = open_slab("Cu(111) 2x2x3", SlabConfig())
    (placement, *_) = place(slab, [together("CO")], PlacementConfig()).placements
    s, n = placement.structure, len(slab.structure)
    np.testing.assert_array_equal(s.positions[:n], slab.structure.positions)
    np.testing.assert_array_equal(s.fixed, np.r_[slab.structure.fixed, False, False])
    np.testing.assert_array_equal(s.tags[n:], 2)


def test_directions_along_which_slab_atoms_are_held_are_kept():
    atoms = fcc111("Cu", (2, 2, 3), vacuum=8.0)
    atoms.set_constraint([FixAtoms(range(8)), FixCartesian(range(8, 12), mask=(True, True, False))])
    (placement, *_) = place(open_slab(atoms, SlabConfig()), [together("O")], PlacementConfig()).placements
    np.testing.assert_allclose(placement.structure.free_directions[8], np.diag([0, 0, 1]), atol=1e-9)
    np.testing.assert_array_equal(placement.structure.free_directions[12], np.eye(3))


def test_an_adsorbate_before_relaxation_is_at_the_site_where_it_was_placed():
    slab = open_slab("Cu(111) 2x2x3", SlabConfig())
    found = place(slab, [together("OH")], PlacementConfig())
    for placement in found.placements:
        assert sites_of(slab, found.sites, placement.structure, placement.adsorbates) == placement.site


def test_on_the_lower_side_adsorbates_hang_head_down():
    atoms = fcc111("Cu", (2, 2, 3), vacuum=8.0)
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() < 2))
    (placement, *_) = place(open_slab(atoms, SlabConfig()), [together("CO")], PlacementConfig()).placements
    s = placement.structure
    oxygen, carbon = (s.positions[s.numbers == z, 2][0] for z in (8, 6))
    assert oxygen < carbon < atoms.positions[:, 2].min()


def test_sites_are_chosen_by_name():
    assert {p.site for p in placed("O", sites=("fcc", "hcp"))} == {"fcc", "hcp"}
    with pytest.raises(InputError, match=r"no site 'fc4'.*did you mean"):
        placed("O", sites=("fc4",))


def test_random_placements_are_the_same_for_the_same_seed():
    a, b, c = (placed("CHO", n_random=3, seed=seed)[-3:] for seed in (1, 1, 2))
    assert [p.site for p in a] == ["random"] * 3
    np.testing.assert_array_equal(a[0].structure.positions, b[0].structure.positions)
    assert not np.allclose(a[0].structure.positions, c[0].structure.positions)


def test_copies_at_a_coverage_are_on_one_kind_of_site_as_far_apart_as_they_can_be():
    for placement in placed("O", slab="Cu(111) 2x2x3", coverage=0.5):
        s = placement.structure
        assert placement.load == "2 O"
        first, second = s.positions[s.tags == 2]
        assert abs(first - second)[2] < 1e-9
    (dense,) = placed("O", slab="Cu(100) 2x2x3", coverage=0.5, sites=("hollow",))
    positions = dense.structure.positions[dense.structure.tags == 2]
    assert np.linalg.norm(positions[0] - positions[1]) == pytest.approx(3.61, abs=0.01)  # c(2x2), not a row


def test_two_adsorbates_share_a_slab_without_touching():
    found = placed("CO+O", slab="Cu(111) 3x3x3", sites=("ontop", "fcc"))
    assert {p.site for p in found} == {"ontop+ontop", "ontop+fcc", "fcc+ontop", "fcc+fcc"}
    for placement in found:
        s = placement.structure
        oxygen = s.numbers == 8
        alone = np.flatnonzero(oxygen)[-1]
        ratios = contact_ratios(s.numbers, s.positions, s.cell, s.pbc, np.arange(len(s)) == alone)
        assert ratios[0, np.flatnonzero(s.tags == 2)[:-1]].min() > 1.3


def test_adsorbates_of_the_slab_itself_are_kept_and_not_touched():
    atoms = fcc111("Cu", (2, 2, 3), vacuum=8.0)
    atoms.set_tags(np.where(atoms.get_tags() == 3, 0, 1))
    add_adsorbate(atoms, Atoms("O", tags=[2]), 1.3, "fcc")
    slab = open_slab(atoms, SlabConfig())
    found = place(slab, [together("O")], PlacementConfig(finder="delaunay"))
    assert slab.adsorbed.sum() == 1
    assert {p.site.split()[0] for p in found.placements} == {"ontop", "bridge", "fcc", "hcp"}
    for placement in found.placements:
        s = placement.structure
        ratios = contact_ratios(s.numbers, s.positions, s.cell, s.pbc, np.arange(len(s)) == len(s) - 1)
        assert ratios[0, len(s) - 2] > 1.3


@pytest.mark.parametrize(
    ("load", "options", "problem"),
    [
        ("O", {"heights": (-1.5,)}, "overlaps with the slab wherever it is put; raise --heights"),
        ("HCOO", {"slab": "Cu(111) 1x1x3"}, "larger than the cell"),
        ("O", {"coverage": 0.1}, "less than one adsorbate"),
        ("CO", {"coverage": 2.0}, "touches another adsorbate wherever it is put; lower --coverage"),
        ("CO", {"coverage": 2.0, "sites": ("fcc",)}, "fewer sites of a kind than adsorbates"),
    ],
)
def test_an_adsorbate_that_cannot_be_placed_is_refused(load, options, problem):
    with pytest.raises(InputError, match=problem):
        placed(load, **options)


def test_what_is_left_out_is_counted():
    slab = open_slab("Cu(111) 2x2x3", SlabConfig())
    notes = place(slab, [together("O")], PlacementConfig(heights=(0.0, -1.5), finder="delaunay")).notes
    assert any("Left out of O: 4 because it overlaps with the slab" in note for note in notes)


@pytest.mark.parametrize(
    "options",
    [{"rotations": 0}, {"n_random": -1}, {"heights": ()}, {"heights": (np.nan,)}, {"coverage": 0.0}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError):
        PlacementConfig(**options)


def test_heights_above_contact_are_kept():
    low, high = placed("O", sites=("fcc",), heights=(0.0, 0.75))
    assert high.structure.positions[-1, 2] - low.structure.positions[-1, 2] == pytest.approx(0.75)
