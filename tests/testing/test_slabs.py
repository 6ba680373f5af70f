"""Clean slabs: an energy that grows with the slab is found, one that does not passes."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import fcc111
from ase.data import atomic_numbers
from torch import nn

from equicat.data.batch import Batch
from equicat.data.structure import Structure
from equicat.models.model import Prediction
from equicat.sources.dft.vacuum import NoVacuum
from equicat.testing import check_clean_slab_is_zero, slab_energies


class Coordination(nn.Module):
    """Binds each adsorbate atom by its number of neighbours, and each metal atom by a constant that is not zero."""

    elements = (atomic_numbers["O"], atomic_numbers["Cu"])
    cutoff = 4.0

    def __init__(self, metal_energy: float) -> None:
        super().__init__()
        self.metal_energy = nn.Parameter(torch.tensor(metal_energy))

    def forward(self, batch: Batch, forces: bool = True) -> Prediction:
        is_metal = batch.numbers == atomic_numbers["Cu"]
        binding = -0.1 * torch.bincount(batch.edge_index[0], minlength=len(is_metal))
        atom_energies = torch.where(is_metal, self.metal_energy, binding.to(self.metal_energy.dtype)).detach()
        energy = atom_energies.new_zeros(batch.n_systems).index_add(0, batch.system_idx, atom_energies)
        return Prediction(energy, atom_energies, torch.zeros_like(batch.positions))


@pytest.fixture
def slab() -> Structure:
    atoms = fcc111("Cu", (1, 1, 3), a=3.6, vacuum=7.0)
    atoms.pbc = True
    return Structure.from_ase(atoms, source="Cu.traj")


@pytest.fixture
def oxygen(slab) -> Structure:
    return Structure.from_ase(Atoms("O", [slab.positions[-1] + [0, 0, 1.8]]), source="O on top")


def test_a_model_that_gives_clean_slabs_nothing_passes(slab, oxygen):
    found = check_clean_slab_is_zero(Coordination(0.0), slab, oxygen)
    assert found.clean == (0.0, 0.0, 0.0)
    assert found.n_atoms == (12, 27, 48)
    np.testing.assert_allclose(found.adsorbed, found.adsorbed[0])
    assert found.adsorbed[0] < -0.5


def test_an_energy_that_grows_with_the_slab_is_found(slab, oxygen):
    found = slab_energies(Coordination(0.01), slab, oxygen)
    np.testing.assert_allclose(found.clean, [0.12, 0.27, 0.48])
    np.testing.assert_allclose(found.difference, found.difference[0], err_msg="the same for all sizes")
    with pytest.raises(AssertionError, match=r"clean slab, Cu.traj: its adsorption energy is 0.480 eV; allowed 0.1 eV"):
        check_clean_slab_is_zero(Coordination(0.01), slab)
    assert check_clean_slab_is_zero(Coordination(0.01), slab, tolerance=0.5).difference == ()


def test_the_table(slab, oxygen):
    lines = str(slab_energies(Coordination(0.01), slab, oxygen, repeats=(2, 3))).splitlines()
    assert lines[1].split()[:3] == ["2×2", "12", "0.120"]
    assert len(lines) == 3


def test_a_crystal_has_no_surface(slab):
    bulk = Structure(np.array([29]), np.zeros((1, 3)), 2.5 * np.eye(3), np.ones(3, bool))
    with pytest.raises(NoVacuum):
        slab_energies(Coordination(0.0), bulk)
