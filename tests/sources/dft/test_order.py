"""The order of atoms: what is the same, what is not, and which order would fit."""

from dataclasses import replace

import numpy as np
import pytest
from co_on_copper import moved, system

from equicat.data.structure import Structure
from equicat.sources.dft.order import atoms_differ, best_order, order_differs


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
        assert text.startswith("a.traj, frame 0 has Cu27O, a.traj, frame 0 has Cu27CO; frames of one system must have")

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
