"""Stated rules: what a frame or a relaxed system is called, at the limits given and not before."""

from dataclasses import replace

import numpy as np
import pytest
from ase.build import add_adsorbate, fcc111, molecule
from ase.constraints import FixAtoms

from equicat.data.structure import Structure
from equicat.sources.dft.rules import Rules, atoms_differ, best_order, fmax_of, judge_ends, judge_frames, order_differs

RULES = Rules()


def system(adsorbate: str = "CO") -> Structure:
    """An adsorbate upright on Cu(111), tagged, no forces on anything."""
    atoms = fcc111("Cu", (3, 3, 3), a=3.6, vacuum=8.0)
    atoms.pbc = True
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 3))
    atoms.set_tags((atoms.get_tags() < 3).astype(int))
    molecular = molecule(adsorbate) if len(adsorbate) > 1 else adsorbate
    add_adsorbate(atoms, molecular, 1.9, "ontop", mol_index=1 if adsorbate == "CO" else 0)
    atoms.set_tags([*atoms.get_tags()[:27], *[2] * (len(atoms) - 27)])
    structure = Structure.from_ase(atoms, source="a.traj, frame 0")
    return replace(structure, energy=0.0, forces=np.zeros((len(atoms), 3)), fid=0)


def moved(structure: Structure, atoms: list[int], by: tuple[float, float, float]) -> Structure:
    positions = structure.positions.copy()
    positions[atoms] += by
    return replace(structure, positions=positions, source="a.traj, frame 9")


def with_force(structure: Structure, atom: int, force: float) -> Structure:
    forces = structure.forces.copy()
    forces[atom] = [0.6 * force, 0.0, 0.8 * force]
    return replace(structure, forces=forces)


class TestFrames:
    def test_the_largest_force_is_the_length_on_a_free_atom(self):
        assert fmax_of(with_force(system(), 20, 5.0)) == pytest.approx(5.0)
        assert fmax_of(with_force(system(), 0, 5.0)) == 0.0, "fixed"
        assert fmax_of(replace(system(), forces=None)) is None
        assert fmax_of(replace(system(), fixed=np.ones(29, bool))) == 0.0

    def test_exploded(self):
        frames = [with_force(system(), 20, f) for f in (1.0, 29.9, 30.1, 355.0, 0.1)]
        assert judge_frames(frames, RULES) == ["", "", "exploded", "exploded", ""]
        assert judge_frames(frames, Rules(max_force=300.0)) == ["", "", "", "exploded", ""]
        assert judge_frames(frames, Rules(max_force=float("inf"))) == [""] * 5

    def test_missing_labels(self):
        frames = [replace(system(), energy=None), replace(system(), forces=None), system()]
        assert judge_frames(frames, RULES) == ["no_energy", "no_forces", ""]

    @pytest.mark.parametrize(
        ("energies", "dropped"),
        [
            ([0.0, -7.0, -9.0, -9.5], []),  # a relaxation may fall by any amount
            ([0.0, 4.0, -1.0], []),
            ([0.0, 6.0, -1.0], [1]),  # a bad self-consistent cycle
            ([0.0, 6.0, 7.0, -1.0], [1, 2]),
            ([0.0, -60.0, -1.0, -1.1], [2, 3]),  # after a bad low one: seen from below, that is a jump up
            ([0.0, 1.0, 2.0, 9.0], [3]),  # the last one is bad
            ([0.0, -3.0, -60.0], []),
        ],
    )
    def test_energy_jumps(self, energies, dropped):
        frames = [replace(system(), energy=e) for e in energies]
        fate = judge_frames(frames, RULES)
        assert [i for i, rule in enumerate(fate) if rule] == dropped
        assert set(fate) <= {"", "energy_jump"}

    def test_an_exploded_frame_is_no_measure_of_jumps(self):
        frames = [system(), replace(with_force(system(), 20, 99.0), energy=60.0), replace(system(), energy=-0.1)]
        assert judge_frames(frames, RULES) == ["", "exploded", ""]


class TestEnds:
    def test_nothing_to_find(self):
        assert judge_ends(system(), moved(system(), [27, 28], (0.3, 0.2, 0.1)), RULES) == []

    def test_unconverged(self):
        assert judge_ends(system(), with_force(system(), 20, 0.049), RULES) == []
        assert judge_ends(system(), with_force(system(), 20, 0.0512), RULES) == [
            ("unconverged", "largest force 0.051 eV/Å in the last frame")
        ]
        assert judge_ends(system(), with_force(system(), 20, 0.0512), Rules(fmax=0.06)) == []
        assert judge_ends(system(), replace(system(), forces=None), RULES) == []

    def test_desorbed(self):
        """C and Cu touch at 2.08 Å; 1.5 times that is 3.12 Å above the top site."""
        structure = system()
        height = structure.positions[27:, 2].min() - structure.positions[:27, 2].max()
        for z, expected in ((3.05, []), (3.2, ["desorbed"]), (6.0, ["desorbed"])):
            relaxed = moved(structure, [27, 28], (0.0, 0.0, z - height))
            assert [rule for rule, _ in judge_ends(structure, relaxed, RULES)] == expected
        assert judge_ends(structure, relaxed, RULES)[0][1] == "CO is 2.88 sums of covalent radii from the slab"
        assert judge_ends(structure, relaxed, Rules(desorbed_ratio=3.0)) == []

    def test_the_next_slab_above_does_not_bind(self):
        """Half way to the image above, an adsorbate is far from both."""
        structure = system()
        edge = structure.cell[2, 2]  # the slab is in the middle of the cell
        relaxed = moved(structure, [27, 28], (0.0, 0.0, edge - structure.positions[27:, 2].mean()))
        assert judge_ends(structure, relaxed, RULES)[0][0] == "desorbed"
        relaxed = moved(structure, [27, 28], (0.0, 0.0, edge + 6.0 - structure.positions[27:, 2].mean()))
        assert judge_ends(structure, relaxed, RULES) == [], "bound to the lower side of the slab above"

    def test_dissociated(self):
        relaxed = moved(system(), [27], (1.9, 1.1, -1.6))
        assert judge_ends(system(), relaxed, RULES) == [("dissociated", "CO falls into 2 pieces")]

    def test_atoms_apart_from_the_start_are_not_dissociated(self):
        apart = moved(system(), [27], (1.9, 1.1, -1.6))
        assert judge_ends(apart, moved(apart, [27], (0.4, 0.0, 0.0)), RULES) == []

    def test_one_of_two_desorbs(self):
        apart = moved(system(), [27], (1.9, 1.1, -1.6))
        found = judge_ends(apart, moved(apart, [27], (0.0, 0.0, 3.5)), RULES)
        assert [rule for rule, _ in found] == ["desorbed"]
        assert found[0][1].startswith("O is ")

    def test_reconstructed(self):
        assert judge_ends(system(), moved(system(), [20], (0.0, 0.0, 1.4)), RULES) == []
        assert judge_ends(system(), moved(system(), [20], (1.0, 0.0, 1.2)), RULES) == [
            ("reconstructed", "slab atom 20 moves 1.56 Å")
        ]

    def test_changed_cell(self):
        relaxed = replace(system(), cell=system().cell * 1.01)
        ((rule, text),) = judge_ends(system(), relaxed, RULES)
        assert rule == "cell_changed"
        assert "changes by 0." in text


class TestOrder:
    def shuffled(self, order: list[int]) -> Structure:
        structure = moved(system(), [27, 28], (0.2, 0.0, 0.0))
        return replace(
            structure, numbers=structure.numbers[order], positions=structure.positions[order], source="b.traj, frame 0"
        )

    def test_same(self):
        assert atoms_differ([system(), moved(system(), [28], (0.3, 0, 0))]) == ""
        assert order_differs(system(), moved(system(), [27], (1.9, 1.1, -1.6))) == "", "one atom went far"

    def test_other_atoms(self):
        text = atoms_differ([system(), system("O")])
        assert text.startswith("a.traj, frame 0 has Cu27O, a.traj, frame 0 has CCu27O; frames of one system must have")

    def test_other_elements_at_a_place(self):
        order = [28, *range(27), 27]
        text = atoms_differ([system(), self.shuffled(order)])
        assert text.startswith(
            "b.traj, frame 0 has the atoms of a.traj, frame 0 in another order, from atom 0; reordered as"
        )
        assert "no atom moves more than 0.20 Å: reorder the file, or let --reorder true do it" in text

    def test_other_places_of_one_element(self):
        order = [*range(9), *range(26, 8, -1), 27, 28]
        shuffled = self.shuffled(order)
        assert atoms_differ([system(), shuffled]) == ""
        text = order_differs(system(), shuffled)
        assert text.startswith("b.traj, frame 0 seems to have the atoms of a.traj, frame 0 in another order: atom ")
        found, furthest = best_order(system(), shuffled)
        np.testing.assert_allclose(shuffled.positions[found][:27], system().positions[:27])
        assert furthest == pytest.approx(0.2)

    def test_across_the_edge_of_the_cell(self):
        structure = system()
        shifted = replace(structure, positions=structure.positions + structure.cell[0] - structure.cell[1])
        assert order_differs(structure, shifted) == ""
        assert best_order(structure, shifted)[1] == pytest.approx(0.0, abs=1e-9)
