"""Slabs and their adsorption sites."""

import importlib.util

import numpy as np
import pytest
from ase.build import fcc100, fcc111
from ase.constraints import FixAtoms

from equicat import InputError, Structure
from equicat.adsorption.builders import SlabConfig, slab_named
from equicat.adsorption.sites import find_sites, kind_at
from equicat.adsorption.slabs import layers_of, open_slab

PYMATGEN = importlib.util.find_spec("pymatgen") is not None
FINDERS = ["delaunay"] + ["pymatgen"] * PYMATGEN

HOW_MANY = {
    "Cu(111) 2x3x4": {"ontop": 6, "bridge": 18, "fcc": 6, "hcp": 6},
    "Cu(111) 1x1x4": {"ontop": 1, "bridge": 3, "fcc": 1, "hcp": 1},
    "Cu(100) 2x2x3": {"ontop": 4, "bridge": 8, "hollow": 4},
    "Pd(110) 2x2x4": {"ontop": 4, "bridge 1": 4, "bridge 2": 4, "hollow": 4},
    "W(100) 2x2x4": {"ontop": 4, "bridge": 8, "hollow": 4},
    "Fe(110) 2x2x3": {"ontop": 4, "bridge 1": 8, "bridge 2": 4, "hollow": 8},
    "Ru(0001) 2x2x4": {"ontop": 4, "bridge": 12, "fcc": 4, "hcp": 4},
}
"""Counted by hand: positions of each kind of site on a slab."""


def names(slab, finder="delaunay") -> dict[str, int]:
    sites, _ = find_sites(slab, finder)
    assert all(abs(site.positions @ slab.frame[2] - slab.heights.max()).max() < 2.5 for site in sites)
    return {site.name: len(site.positions) for site in sites}


@pytest.mark.parametrize("finder", FINDERS)
@pytest.mark.parametrize("name", HOW_MANY)
def test_a_close_packed_facet_has_the_sites_of_the_textbooks(name, finder):
    assert names(open_slab(name, SlabConfig()), finder) == HOW_MANY[name]


def test_without_pymatgen_the_sites_are_found_by_equicat():
    _, note = find_sites(open_slab("Cu(111) 1x1x3", SlabConfig()))
    assert ("pymatgen" in note) == PYMATGEN


def test_an_fcc_site_lies_above_the_third_layer_and_an_hcp_site_above_the_second():
    slab = open_slab("Cu(111) 2x2x4", SlabConfig())
    for site in find_sites(slab, "delaunay")[0]:
        below = slab.structure.positions[:, :2] - site.positions[0][:2]
        if site.name in ("fcc", "hcp"):
            nearest = slab.layers[np.linalg.norm(below, axis=1) < 0.1]
            assert {"fcc": 2, "hcp": 1}[site.name] in nearest


def test_a_stepped_facet_has_sites_at_the_foot_of_its_steps():
    found = names(open_slab("Cu(211) 1x2x3", SlabConfig()))
    assert sum(name.startswith("ontop") for name in found) == 3
    assert "hollow" in found  # the square below the edge


def test_rumpled_atoms_do_not_make_new_kinds_of_sites():
    atoms = fcc100("Cu", (2, 2, 3), vacuum=8.0)
    atoms.positions += np.random.default_rng(0).normal(scale=0.01, size=(12, 3))
    assert names(open_slab(atoms, SlabConfig())) == {"ontop": 4, "bridge": 8, "hollow": 4}


def test_sites_of_an_alloy_are_told_apart_by_their_elements():
    atoms = fcc111("Cu", (2, 2, 3), vacuum=8.0)
    atoms.numbers[-1] = 46
    found = names(open_slab(atoms, SlabConfig()))
    kinds = {name.rstrip(" 123") for name in found}
    assert kinds >= {"ontop Cu", "ontop Pd", "bridge CuPd", "fcc Cu2Pd", "hcp Cu2Pd"}
    assert sum(found.values()) == 24


@pytest.mark.parametrize("finder", FINDERS)
@pytest.mark.parametrize("order", [(2, 0, 1), (0, 2, 1), (1, 0, 2)])
def test_any_lattice_vector_may_cross_the_vacuum(order, finder):
    slab = open_slab("Cu(111) 2x2x3", SlabConfig()).structure
    turned = Structure(slab.numbers, slab.positions[:, order], slab.cell[np.ix_(order, order)], slab.pbc)
    assert names(open_slab(turned, SlabConfig()), finder) == {"ontop": 4, "bridge": 12, "fcc": 4, "hcp": 4}


def test_the_site_below_a_position_is_named_across_the_edge_of_the_cell():
    slab = open_slab("Cu(111) 2x2x3", SlabConfig())
    sites, _ = find_sites(slab, "delaunay")
    for site in sites:
        assert kind_at(slab, sites, site.positions[0] + 3 * slab.structure.cell[0] + [0.1, 0, 1.5]) == site.name


# ---- slabs -----------------------------------------------------------------------------------------------------------


def test_two_lowest_layers_are_fixed_and_this_is_said():
    slab = open_slab("Cu(111) 2x2x4", SlabConfig())
    assert slab.structure.fixed.sum() == 8
    assert (slab.layers[slab.structure.fixed] >= 2).all()
    assert any("lowest 2 of 4 layers, because the slab fixes none" in note for note in slab.notes)


def test_atoms_that_a_file_fixes_stay_fixed_unless_layers_are_named(tmp_path):
    atoms = fcc111("Cu", (2, 2, 4), vacuum=8.0)
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 4))
    atoms.write(tmp_path / "slab.traj")
    assert open_slab(tmp_path / "slab.traj", SlabConfig()).structure.fixed.sum() == 4
    assert open_slab(tmp_path / "slab.traj", SlabConfig(fixed_layers=3)).structure.fixed.sum() == 12


def test_a_slab_that_sticks_out_of_its_cell_is_put_together():
    atoms = fcc111("Cu", (2, 2, 4), vacuum=8.0)
    whole = open_slab(atoms, SlabConfig())
    atoms.positions[:, 2] += atoms.cell[2, 2] / 2 - 1.0
    atoms.wrap()
    again = open_slab(atoms, SlabConfig())
    assert np.ptp(again.heights) == pytest.approx(np.ptp(whole.heights))
    np.testing.assert_array_equal(again.layers, whole.layers)


def test_the_surface_is_the_side_away_from_the_fixed_atoms():
    atoms = fcc111("Cu", (2, 2, 4), vacuum=8.0)
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() < 3))
    slab = open_slab(atoms, SlabConfig())
    assert slab.frame[2] @ [0, 0, 1] == pytest.approx(-1)
    assert any("lower side" in note for note in slab.notes)
    for finder in FINDERS:
        assert names(slab, finder) == {"ontop": 4, "bridge": 12, "fcc": 4, "hcp": 4}


def test_tags_are_those_of_oc20():
    slab = open_slab(fcc111("Cu", (2, 2, 4), vacuum=8.0), SlabConfig())  # ASE numbers layers from 1
    np.testing.assert_array_equal(slab.structure.tags, np.where(slab.structure.fixed, 0, 1))


def test_layers_are_divided_by_height():
    np.testing.assert_array_equal(layers_of(np.array([2.0, 0.0, 0.1, 4.1, 2.2])), [1, 0, 0, 2, 1])


@pytest.mark.parametrize(
    ("text", "bulk", "miller", "size"),
    [
        ("Cu(111) 3x3x4", "Cu", (1, 1, 1), (3, 3, 4)),
        ("Ru(0001)2x2x4", "Ru", (0, 0, 1), (2, 2, 4)),
        ("Cu(1,0,-1) 1x2x3", "Cu", (1, 0, -1), (1, 2, 3)),
        ("Cu(-110) 1x2x3", "Cu", (-1, 1, 0), (1, 2, 3)),
        ("my bulk.cif(211) 1x2x3", "my bulk.cif", (2, 1, 1), (1, 2, 3)),
    ],
)
def test_names_of_slabs(text, bulk, miller, size):
    name = slab_named(text)
    assert (name.bulk, name.miller, name.size) == (bulk, miller, size)


@pytest.mark.parametrize(
    ("slab", "problem"),
    [
        ("slab.cif", "no such file"),
        ("Xx(111) 2x2x2", "no element"),
        ("Cu(11) 2x2x2", "no facet"),
        ("Cu(111) 2x0x2", "no atoms"),
        ("Hg(111) 2x2x2", "ASE builds slabs of"),
        (fcc111("Cu", (2, 2, 3), vacuum=None, a=3.6, periodic=True), "no vacuum"),
        (fcc111("Cu", (2, 2, 3), vacuum=0.5, periodic=True), "no vacuum"),
    ],
)
def test_what_is_no_slab_is_refused(slab, problem):
    with pytest.raises(InputError, match=problem):
        open_slab(slab, SlabConfig())


@pytest.mark.parametrize(("layers", "problem"), [(4, "every atom of the slab is fixed"), (5, "has 4 layers")])
def test_a_slab_that_cannot_relax_is_refused(layers, problem):
    with pytest.raises(InputError, match=problem):
        open_slab("Cu(111) 2x2x4", SlabConfig(fixed_layers=layers))


def test_a_slab_that_is_not_periodic_along_its_surface_is_refused():
    atoms = fcc111("Cu", (2, 2, 3), vacuum=8.0)
    atoms.pbc = False
    with pytest.raises(InputError, match="must be periodic"):
        open_slab(atoms, SlabConfig())
