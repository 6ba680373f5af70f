"""An evaluation keeps for a report: the worst structures, whose they are, and the steps of chosen relaxations."""

import numpy as np
import torch
from report_runs import CHEMISTRY, slabs_of

from equicat.apply.kept import Kept
from equicat.apply.traces import chosen
from equicat.data.batch import Batch
from equicat.tasks.metrics import Values


def test_the_worst_of_all_batches_are_kept_whole():
    kept = Kept(("energy", "forces"), CHEMISTRY)
    slabs = slabs_of(24)
    energy_errors, force_errors = np.random.default_rng(0).permutation(48).reshape(2, 24) / 100 + 0.01
    for first in range(0, 24, 5):
        part = slice(first, first + 5)
        batch = Batch.from_structures(slabs[part], 0.1)
        off = torch.from_numpy(force_errors[part])[batch.system_idx, None].expand(-1, 3)
        energies = torch.zeros(batch.n_systems, dtype=torch.float64)
        target = Values(energy=energies, forces=torch.zeros(batch.positions.shape, dtype=torch.float64))
        found = Values(energy=energies + torch.from_numpy(energy_errors[part]), forces=target.forces + off)
        kept.add(batch, found, target)
    arrays = kept.arrays(np.arange(24))
    worst = set(np.argsort(-energy_errors)[:10]) | set(np.argsort(-force_errors)[:10])
    assert arrays["example_names"].tolist() == [f"slab{k}" for k in sorted(worst)]
    np.testing.assert_allclose(arrays["example_energy_error"], energy_errors[sorted(worst)], atol=1e-6)
    np.testing.assert_allclose(arrays["example_vector_error"], force_errors[sorted(worst)], atol=1e-6)
    np.testing.assert_array_equal(arrays["example_positions"][:13], slabs[min(worst)].positions)
    assert arrays["adsorbates"].tolist() == ["O", "N"] * 12
    assert arrays["catalysts"].tolist() == ["Cu", "Pd", "Au"] * 8
    assert arrays["n_free"].tolist() == [9] * 24
    assert len(arrays["free_numbers"]) == len(arrays["forces_pred"]) == kept.n_free_atoms == 24 * 9
    assert str(arrays["example_what"]) == "forces"


def test_adsorbates_are_unknown_without_the_training_data():
    kept = Kept(("energy",))
    energy = torch.zeros(1, dtype=torch.float64)
    kept.add(Batch.from_structures(slabs_of(1), 0.1), Values(energy=energy), Values(energy=energy))
    arrays = kept.arrays(np.zeros(1, dtype=int))
    assert arrays["adsorbates"].tolist() == ["?"]
    assert "example_n_atoms" not in arrays


def test_best_median_and_worst():
    errors = np.array([0.3, np.nan, 0.1, 0.2, 0.5, 0.4])
    assert chosen(errors) == {"best": 2, "median": 0, "worst": 4}
    assert chosen(errors[:1]) == {"best": 0}
    assert chosen(errors[1:2]) == {}
