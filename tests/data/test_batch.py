"""Batches: the labels that are asked for and no others, and pair vectors that know nothing of the origin."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import SMALL, labelled, relaxing

from equicat.data.batch import Batch
from equicat.errors import InputError
from equicat.models.potential import Potential


def named(seed: int, source: str, **changes: object):
    return dataclasses.replace(relaxing(seed), source=source, **changes)


class TestLabels:
    def test_what_only_some_structures_have_stays_out(self):
        structures = [named(0, "a, frame 0"), named(1, "a, frame 1", energy=None, relaxed_positions=None)]
        batch = Batch.from_structures(structures, 4.0)
        assert batch.energy is None
        assert batch.displacements is None
        assert batch.forces is not None
        assert batch.relaxed_energy.tolist() == [s.relaxed_energy for s in structures]

    def test_only_what_is_asked_for(self):
        batch = Batch.from_structures([named(0, "a"), named(1, "b", forces=None)], 4.0, labels=("energy",))
        assert batch.energy is not None
        assert batch.relaxed_energy is None
        assert batch.displacements is None

    def test_what_is_asked_for_must_be_there(self):
        structures = [named(0, "a, frame 0"), named(1, "a, frame 1", forces=None)]
        with pytest.raises(InputError, match="a, frame 1: no forces"):
            Batch.from_structures(structures, 4.0, labels=("energy", "forces"))

    def test_stress(self):
        stress = np.array([[1.0, 0.1, 0.2], [0.1, 2.0, 0.3], [0.2, 0.3, 3.0]])
        structures = [dataclasses.replace(labelled(k), stress=(k + 1) * stress) for k in range(2)]
        batch = Batch.from_structures(structures, 4.0)
        assert batch.stress.dtype == torch.float32
        np.testing.assert_allclose(batch.stress.numpy(), np.stack([stress, 2 * stress]), rtol=1e-6)


def test_types():
    single = Batch.from_structures([relaxing(0)], 4.0)
    double = Batch.from_structures([relaxing(0)], 4.0, dtype=torch.float64)
    for batch, dtype in ((single, torch.float32), (double, torch.float64)):
        assert batch.dtype == batch.edge_vec().dtype == batch.forces.dtype == batch.displacements.dtype == dtype
        assert batch.positions.dtype == batch.cell.dtype == batch.energy.dtype == torch.float64
        assert batch.edge_vec(slice(0)).shape == (0, 3)


class TestPairVectors:
    STRUCTURES = tuple(labelled(seed) for seed in range(3))

    @pytest.mark.parametrize("n_systems", [1, 3])
    def test_are_those_of_the_definition(self, n_systems):
        batch = Batch.from_structures(self.STRUCTURES[:n_systems], 4.0, dtype=torch.float64)
        (i, j), shift = batch.edge_index, batch.edge_shift.double()
        cell = batch.cell[batch.system_idx[i]]
        expected = batch.positions[j] + torch.einsum("ek,ekx->ex", shift, cell) - batch.positions[i]
        torch.testing.assert_close(batch.edge_vec(), expected, rtol=0, atol=1e-12)
        some = slice(17, 60)
        torch.testing.assert_close(batch.edge_vec(some), expected[some], rtol=0, atol=1e-12)
        assert batch.edge_vec().norm(dim=1).max() < 4.0

    def test_far_from_the_origin_and_unwrapped(self):
        """In float32 positions of 100,000 Å are multiples of 0.008 Å; pair vectors must not be."""
        there = self.STRUCTURES[0]
        images = np.random.default_rng(0).integers(-10_000, 10_000, (len(there), 2)) @ there.cell[:2]
        moved = dataclasses.replace(there, positions=there.positions + 1e5 + images)

        def vectors(structure):
            batch = Batch.from_structures([structure], 4.0)
            order = np.lexsort((*batch.edge_vec().numpy().round(3).T, *batch.edge_index.numpy()))
            return batch.edge_vec().numpy()[order]

        np.testing.assert_allclose(vectors(moved), vectors(there), rtol=0, atol=1e-6)

    def test_energy_and_forces_are_those_at_the_origin(self):
        torch.manual_seed(0)
        potential = Potential(SMALL, (1, 8, 29)).eval()
        there = self.STRUCTURES[1]
        here, moved = (
            potential(Batch.from_structures([dataclasses.replace(there, positions=there.positions + shift)], 4.0))
            for shift in (0.0, 5000.0)
        )
        assert moved.energy.item() == pytest.approx(here.energy.item(), abs=1e-6)
        torch.testing.assert_close(moved.forces, here.forces, rtol=0, atol=1e-5)

    def test_follow_new_positions(self):
        batch = Batch.from_structures(self.STRUCTURES, 4.0)
        step = 0.01 * torch.randn(batch.positions.shape, dtype=torch.float64)
        moved = dataclasses.replace(batch, positions=batch.positions + step)
        center, neighbor = batch.edge_index
        expected = batch.edge_vec().double() + step[neighbor] - step[center]
        torch.testing.assert_close(moved.edge_vec().double(), expected, rtol=0, atol=1e-6)
        assert moved.dtype == torch.float32

    @pytest.mark.parametrize("n_systems", [1, 3])
    def test_are_differentiable_by_positions_and_cell(self, n_systems):
        batch = Batch.from_structures(self.STRUCTURES[:n_systems], 4.0, dtype=torch.float64)
        positions, cell = batch.positions.requires_grad_(), batch.cell.requires_grad_()
        weights = torch.randn(batch.n_edges, 3, dtype=torch.float64)
        to_positions, to_cell = torch.autograd.grad((batch.edge_vec() * weights).sum(), (positions, cell))
        center, neighbor = batch.edge_index
        expected = torch.zeros_like(positions).index_add(0, neighbor, weights).index_add(0, center, -weights)
        torch.testing.assert_close(to_positions, expected)
        outer = batch.edge_shift.double()[:, :, None] * weights[:, None, :]
        expected_cell = torch.zeros_like(cell).index_add(0, batch.system_idx[center], outer)
        torch.testing.assert_close(to_cell, expected_cell)


def test_systems_are_named_by_file_and_frame():
    structures = [named(k, f"slabs.extxyz, frame {k}", sid="") for k in range(6)]
    batch = Batch.from_structures(structures, 4.0)
    assert batch.ids == ("",) * 6
    assert batch.named(2) == "slabs.extxyz, frame 0; slabs.extxyz, frame 1 and 4 more"
    nameless = [dataclasses.replace(s, source="") for s in structures[:2]]
    assert Batch.from_structures(nameless, 4.0).named() == "structure 0; structure 1"
    assert Batch.from_structures([relaxing(0)], 4.0).named() == "structure s0"
