"""Stated rules: what a frame or a relaxed system is called, at the limits given and not before."""

from dataclasses import replace

import numpy as np
import pytest
from ase.constraints import FixCartesian, FixedLine, FixedPlane, FixScaled
from co_on_copper import moved, system, with_force

from equicat.data.structure import Structure
from equicat.sources.dft.rules import Rules, fmax_of, judge, judge_frames

RULES = Rules()


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


def found(initial: Structure, relaxed: Structure, rules: Rules | None = None) -> dict[str, str]:
    """Findings of the judge, but for the migration of adsorbates, which has its own tests."""
    return {rule: text for rule, text in judge(initial, relaxed, rules).items() if rule != "migrated"}


class TestJudge:
    def test_nothing_to_find(self):
        assert judge(system(), system()) == {}
        assert judge(system(), moved(system(), [27, 28], (0.3, 0.2, 0.1))) == {}

    def test_unconverged_and_exploded(self):
        assert judge(system(), with_force(system(), 20, 0.049)) == {}
        assert judge(system(), with_force(system(), 20, 0.0512)) == {
            "unconverged": "largest force 0.051 eV/Å in the last frame"
        }
        assert judge(system(), with_force(system(), 20, 0.0512), Rules(fmax=0.06)) == {}
        assert judge(system(), replace(system(), forces=None)) == {}
        assert list(judge(system(), with_force(system(), 20, 31.0))) == ["exploded"]

    def test_forces_along_directions_in_which_an_atom_is_held_do_not_count(self):
        atoms = system().to_ase()
        forces = np.zeros((29, 3))
        forces[27] = [1.0, 1.0, 0.02]
        held = [
            FixScaled([27], (True, True, False)),
            FixCartesian([27], (True, True, False)),
            FixedLine([27], (0, 0, 1)),
            [FixedPlane([27], (1, 1, 0)), FixedPlane([27], (1, -1, 0))],
        ]
        for constraint in held:
            atoms.set_constraint([*atoms.constraints[:1], *np.ravel([constraint])])
            relaxed = replace(Structure.from_ase(atoms), forces=forces)
            assert not relaxed.fixed[27]
            assert fmax_of(relaxed) == pytest.approx(0.02)
            assert judge(system(), relaxed) == {}
        atoms.set_constraint(FixedPlane([27], (1, 0, 0)))
        assert fmax_of(replace(Structure.from_ase(atoms), forces=forces)) == pytest.approx(np.hypot(1.0, 0.02))

    def test_desorbed(self):
        """C and Cu touch at 2.08 Å; 1.5 times that is 3.12 Å above the top site."""
        structure = system()
        height = structure.positions[27:, 2].min() - structure.positions[:27, 2].max()
        for z, expected in ((3.05, []), (3.2, ["desorbed"]), (6.0, ["desorbed"])):
            relaxed = moved(structure, [27, 28], (0.0, 0.0, z - height))
            assert list(found(structure, relaxed)) == expected
        assert found(structure, relaxed)["desorbed"] == "CO is 2.88 sums of covalent radii from the slab"
        assert found(structure, relaxed, Rules(desorbed_ratio=3.0)) == {}

    def test_the_next_slab_above_does_not_bind(self):
        """Half way to the image above, an adsorbate is far from both."""
        structure = system()
        edge = structure.cell[2, 2]  # the slab is in the middle of the cell
        relaxed = moved(structure, [27, 28], (0.0, 0.0, edge - structure.positions[27:, 2].mean()))
        assert list(found(structure, relaxed)) == ["desorbed"]
        free = replace(structure, fixed=np.zeros(29, bool), tags=np.where(structure.tags == 2, 2, 1))
        relaxed = moved(free, [27, 28], (0.0, 0.0, edge + 6.0 - structure.positions[27:, 2].mean()))
        assert found(free, relaxed) == {}, "bound to the lower side of the slab above"

    def test_dissociated(self):
        relaxed = moved(system(), [27], (1.9, 1.1, -1.6))
        assert found(system(), relaxed) == {"dissociated": "CO falls into 2 pieces"}

    def test_a_stretched_bond_is_not_broken(self):
        """C and O touch at 1.42 Å: at 1.3 times that a molecule is formed, at 1.5 times it is broken."""
        structure = system()
        bond = structure.positions[27] - structure.positions[28]
        for length, expected in ((2.0, []), (2.2, ["desorbed", "dissociated"])):
            relaxed = moved(structure, [27], tuple(bond * (length / np.linalg.norm(bond) - 1)))
            assert list(found(structure, relaxed)) == expected

    def test_atoms_apart_from_the_start_are_not_dissociated(self):
        apart = moved(system(), [27], (1.9, 1.1, -1.6))
        assert found(apart, moved(apart, [27], (0.4, 0.0, 0.0))) == {}

    def test_one_of_two_desorbs(self):
        apart = moved(system(), [27], (1.9, 1.1, -1.6))
        flags = found(apart, moved(apart, [27], (0.0, 0.0, 3.5)))
        assert list(flags) == ["desorbed"]
        assert flags["desorbed"].startswith("O is ")

    def test_reconstructed_across_the_edge_of_the_cell(self):
        assert found(system(), moved(system(), [20], (0.0, 0.0, 1.4))) == {}
        relaxed = moved(system(), [20], (1.0, 0.0, 1.2))
        assert found(system(), relaxed) == {"reconstructed": "slab atom 20 moves 1.56 Å"}
        assert found(system(), moved(system(), [20], tuple(system().cell[0]))) == {}, "another image is the same place"

    def test_intercalated(self):
        """An adsorbate atom beside a subsurface atom; it is where it is for any other reason as well."""
        structure = system()
        below = structure.positions[4] + [0.0, 0.0, 1.9] - structure.positions[28]
        relaxed = moved(structure, [27, 28], tuple(below))
        assert found(structure, relaxed)["intercalated"] == "C (atom 28) is bonded to subsurface atom 4"

    def test_migrated_as_catbench_has_it(self):
        structure = system()
        assert judge(structure, moved(structure, [27, 28], (0.6, 0.0, 0.0))) == {}
        flags = judge(structure, moved(structure, [27, 28], (1.3, 0.0, 0.0)))
        assert list(flags) == ["migrated"]
        assert judge(structure, moved(structure, [27, 28], (1.3, 0.0, 0.0)), Rules(migrated_share=0.9)) == {}

    def test_without_an_adsorbate_nothing_is_said_of_it(self):
        clean = replace(system(), tags=np.ones(29, np.int64))
        assert judge(clean, moved(clean, [27, 28], (0.0, 0.0, 0.9))) == {}

    def test_changed_cell(self):
        relaxed = replace(system(), cell=system().cell * 1.01)
        assert "changes by 0." in judge(system(), relaxed)["cell_changed"]
