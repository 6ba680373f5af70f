"""Two ends: what is no path is refused, by name; atoms go the shortest way."""

import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian
from diffusion import adatoms, on_slab

from equicat.barriers.ends import Ends, ends_of, path_of
from equicat.data.structure import Structure
from equicat.errors import InputError


def pair(initial: Atoms, final: Atoms, reorder: bool | None = None) -> Ends:
    a, b = Structure.from_ase(initial, source="a.xyz, frame 0"), Structure.from_ase(final, source="b.xyz, frame 0")
    return ends_of(a, b, reorder)


def refused(*arguments) -> str:
    with pytest.raises(InputError) as error:
        pair(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_other_atoms():
    text = refused(on_slab("fcc"), on_slab("hcp", adsorbate="N"))
    assert text.startswith("b.xyz, frame 0 has Pd8N, a.xyz, frame 0 has Pd8O")
    assert "b.xyz, frame 0 has Pd8, " in refused(on_slab("fcc"), on_slab("hcp")[:-1])


def test_another_order_is_refused_with_the_order_that_fits_and_can_be_put_right():
    final = on_slab("hcp")[[8, *range(8)]]
    text = refused(on_slab("fcc"), final)
    assert "in another order, from atom 0" in text
    assert "[1 2 3 4 5 6 7 8 0]" in text
    assert "--reorder true" in text
    found, expected = pair(on_slab("fcc"), final, True), pair(on_slab("fcc"), on_slab("hcp"))
    assert np.array_equal(found.final.positions, expected.final.positions)
    assert found.notes == ("The atoms of b.xyz, frame 0 were put in the order of a.xyz, frame 0.",)


def test_atoms_of_one_element_that_changed_places():
    final = on_slab("hcp")[[0, 1, 2, 3, 5, 4, 6, 7, 8]]
    text = refused(on_slab("fcc"), final)
    assert "another order: atom 4 moves 2.75 Å, and with the places of atoms 4, 5 exchanged at most 0.00 Å" in text
    assert text.endswith("--reorder true puts them in order, --reorder false takes them as they are")
    assert np.linalg.norm(pair(on_slab("fcc"), final, False).final.positions - on_slab("fcc").positions, axis=1)[4] > 2
    assert pair(on_slab("fcc"), final, True).final.positions[4] == pytest.approx(on_slab("fcc").positions[4])


def test_another_cell():
    final = on_slab("hcp")
    final.cell[0, 0] += 0.01
    assert "b.xyz, frame 0: the cell is not that of a.xyz, frame 0" in refused(on_slab("fcc"), final)
    final = on_slab("hcp")
    final.pbc = [True, False, False]
    assert "the cell is not that of" in refused(on_slab("fcc"), final)
    final.pbc = on_slab("fcc").pbc
    final.cell[2] *= 2  # a direction without periodicity means nothing
    pair(on_slab("fcc"), final)


@pytest.mark.parametrize("constraint", [[], FixAtoms([0, 1, 2]), [FixAtoms([0, 1, 2]), FixCartesian([3], [1, 1, 0])]])
def test_other_constraints_name_the_first_atom(constraint):
    final = on_slab("hcp")
    final.set_constraint(constraint)
    first = 0 if constraint == [] else 3
    assert f"atom {first} is not held as it is in a.xyz, frame 0" in refused(on_slab("fcc"), final)


def test_fixed_atoms_that_are_elsewhere():
    final = on_slab("hcp")
    final.positions[2] += [0.0, 0.3, 0.0]
    assert "b.xyz, frame 0: atom 2 is held, but 0.30 Å from where it is in a.xyz, frame 0" in refused(
        on_slab("fcc"), final
    )
    final.positions[2] = on_slab("hcp").positions[2] + 1e-6  # files round
    found = pair(on_slab("fcc"), final)
    assert np.array_equal(found.final.positions[:4], found.initial.positions[:4])


def test_the_same_structure_also_when_it_is_wrapped():
    final = on_slab("fcc")
    final.positions += 0.001
    final.positions[:4] -= 0.001
    final.positions[-1] += final.cell[0]
    assert "are the same structure (no atom moves more than 0.002 Å)" in refused(on_slab("fcc"), final)


def test_atoms_go_the_shortest_way_across_a_boundary():
    found = pair(*adatoms())
    way = found.final.positions - found.initial.positions
    assert way[-1] == pytest.approx([found.initial.cell[0, 0] / 3, 0.0, 0.0])
    assert np.abs(way[:-1]).max() == 0
    assert found.notes == ()


def test_a_way_that_is_not_clear_is_said():
    (note,) = pair(*adatoms(2)).notes
    assert note.startswith("Atom 8 moves by about half a lattice vector, so it could as well go the other way round")


def test_a_path_of_ones_own_is_unwrapped():
    initial, final = adatoms()
    middle = initial.copy()
    middle.positions[-1, 0] += initial.cell[0, 0] / 6
    images = [Structure.from_ase(atoms, source=f"p.xyz, frame {k}") for k, atoms in enumerate((initial, middle, final))]
    path = path_of(images)
    assert path.inner.shape == (1, 13, 3)
    assert path.final.positions[-1, 0] - initial.positions[-1, 0] == pytest.approx(initial.cell[0, 0] / 3)
    with pytest.raises(InputError, match=r"p.xyz, frame 0: a path needs both ends and at least one image between them"):
        path_of(images[:2])
    with pytest.raises(InputError, match="are the same structure"):
        path_of([images[0], images[1], images[0]])
