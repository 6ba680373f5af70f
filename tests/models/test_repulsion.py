"""The repulsion of nuclei."""

import pytest
import torch

from equicat.models.repulsion import ZBL, Repulsion


def test_zbl_of_two_copper_atoms():
    """Figures worked out by hand from the formula: 1 Å, no envelope to speak of at a cutoff of 100 Å."""
    zbl = ZBL(Repulsion(6, (100.0,)), (29,))
    edge_vec = torch.tensor([[0, 0, 1.0], [0, 0, -1.0]], dtype=torch.float64)
    energy = zbl(edge_vec, torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 0]), 1)
    d = 2 * 29**0.23 / 0.4685
    terms = ((0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162))
    screening = sum(c * 2.718281828459045 ** (-k * d) for c, k in terms)
    assert energy.sum().item() == pytest.approx(14.399645 * 29**2 * screening, rel=1e-9)
    assert energy[0] == energy[1]
