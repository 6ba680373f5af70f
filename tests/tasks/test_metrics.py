"""OC20's metrics against hand-computed numbers, and the properties that make them pool correctly."""

import math

import numpy as np
import pytest
import torch

from equicat.data.batch import Batch
from equicat.tasks import metrics
from equicat.tasks.metrics import Values
from equicat.tasks.tables import MetricSums

S2EF = ("energy", "forces")

NAN = math.nan


def floats(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def batch_of(system_idx: list[int], fixed: list[bool] | None = None, **fields: torch.Tensor) -> Batch:
    """A batch of atoms in those systems without edges; metrics look at nothing else."""
    n, n_systems = len(system_idx), fields.pop("n_systems", max(system_idx) + 1)
    values = {
        "positions": torch.zeros(n, 3, dtype=torch.float64),
        "cell": torch.eye(3, dtype=torch.float64).repeat(n_systems, 1, 1) * 5,
        "pbc": torch.zeros(n_systems, 3, dtype=torch.bool),
        "numbers": torch.ones(n, dtype=torch.long),
        "system_idx": torch.tensor(system_idx),
        "edge_index": torch.zeros(2, 0, dtype=torch.long),
        "edge_shift": torch.zeros(0, 3, dtype=torch.long),
        "fixed": torch.tensor(fixed or [False] * n),
        "tags": torch.zeros(n, dtype=torch.long),
    }
    return Batch(**values | fields)


def energies(prediction: torch.Tensor, target: torch.Tensor) -> tuple[Values, Values, Batch]:
    """Predicted and true energies of systems with one atom each, and their batch."""
    return Values(energy=prediction), Values(energy=target), batch_of(list(range(len(target))))


def test_energy_metrics_by_hand() -> None:
    prediction, target = Values(floats(1.0, -2.0, 0.5, 3.0)), Values(floats(1.01, -1.0, 0.5, 2.5))
    args = (prediction, target, batch_of([0, *[1] * 2, *[2] * 4, *[3] * 10]))
    assert metrics.energy_mae(*args).value == pytest.approx(1.51 / 4)
    assert metrics.energy_mse(*args).value == pytest.approx((0.01**2 + 1 + 0.25) / 4)
    assert metrics.energy_per_atom_mae(*args).value == pytest.approx((0.01 + 0.5 + 0.05) / 4)
    assert metrics.energy_within_threshold(*args).value == 0.5


def test_labels_that_do_not_count_are_in_no_metric() -> None:
    """Three systems of one atom: the first counts, the second has no energy, the third no forces."""
    weights = {"energy_weight": [0.5, 0.0, 1.0], "forces_weight": [2.0, 1.0, 0.0]}
    factors = {name: torch.tensor(values, dtype=torch.float64) for name, values in weights.items()}
    batch = batch_of([0, 1, 2], **factors)
    forces = torch.tensor([[0.01, 0, 0], [0.05, 0, 0], [900.0, 0, 0]])
    args = (Values(floats(0.01, 900.0, 0.03), forces), Values(floats(0, 0, 0), torch.zeros(3, 3)), batch)
    found = {name: getattr(metrics, name)(*args).value for name in ("energy_mae", "energy_mse", "forces_mae")}
    assert found == pytest.approx({"energy_mae": 0.02, "energy_mse": 0.0005, "forces_mae": 0.01}, rel=1e-5)
    assert metrics.energy_within_threshold(*args).value == 0.5
    assert metrics.energy_per_atom_mae(*args).value == pytest.approx(0.02)
    assert metrics.forces_magnitude_error(*args).value == pytest.approx(0.03)
    both = metrics.energy_forces_within_threshold(*args)
    assert (both.total.item(), int(both.numel)) == (1.0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_energy_threshold_is_strict(dtype: torch.dtype) -> None:
    """Exactly 0.02 eV, as the dtype has it, is not within; the next number below is."""
    edge = torch.tensor(0.02, dtype=dtype)
    errors = torch.stack([edge, torch.nextafter(edge, torch.zeros_like(edge)), -edge])
    result = metrics.energy_within_threshold(*energies(errors, torch.zeros(3, dtype=dtype)))
    assert (result.total.item(), result.numel) == (1.0, 3)


def test_force_metrics_by_hand() -> None:
    prediction = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [9.0, 9.0, 9.0]])
    target = torch.tensor([[4.0, 3.0, 0.0], [0.0, 2.0, 0.0], [-1.0, -1.0, -1.0], [0.0, 0.0, 0.0]])
    batch = batch_of([0] * 4, [False, False, False, True])
    args = (Values(forces=prediction), Values(forces=target), batch)
    assert metrics.forces_mae(*args).value == pytest.approx((2 + 2 + 6) / 9)
    assert metrics.forces_mse(*args).value == pytest.approx((2 + 4 + 12) / 9)
    assert metrics.forces_cosine_similarity(*args).value == pytest.approx((24 / 25 + 0 - 1) / 3, abs=1e-6)
    assert metrics.forces_magnitude_error(*args).value == pytest.approx((0 + 2 + 0) / 3)
    assert metrics.forces_mae(*args).numel == 9
    assert metrics.forces_cosine_similarity(*args).numel == 3


def test_stress_metrics_by_hand() -> None:
    """Over all nine components: a shear counts twice."""
    target = torch.zeros(2, 3, 3)
    prediction = target.clone()
    prediction[0, 0, 0], prediction[1, 0, 1], prediction[1, 1, 0] = 0.3, -0.1, -0.1
    args = (Values(stress=prediction), Values(stress=target), batch_of([0, 1]))
    assert metrics.stress_mae(*args).value == pytest.approx(0.5 / 18)
    assert metrics.stress_mse(*args).value == pytest.approx(0.11 / 18)


def efwt(energy_error: list[float], force_error: list[list[float]], fixed: list[bool], system_idx: list[int]) -> float:
    energy, forces = torch.tensor(energy_error), torch.tensor(force_error)
    zero = Values(energy=torch.zeros_like(energy), forces=torch.zeros_like(forces))
    batch = batch_of(system_idx, fixed, n_systems=len(energy))
    return metrics.energy_forces_within_threshold(Values(energy, forces), zero, batch).value


def test_energy_forces_within_threshold_is_about_components() -> None:
    inside = [0.029, 0.029, -0.029]  # its norm, 0.05, is above the threshold; no component is
    assert efwt([0.0], [inside, inside], [False, False], [0, 0]) == 1.0
    assert efwt([0.0], [inside, [0.0, 0.03, 0.0]], [False, False], [0, 0]) == 0.0, "0.03 exactly does not pass"
    assert efwt([0.02], [inside, inside], [False, False], [0, 0]) == 0.0, "0.02 exactly does not pass"
    assert efwt([-0.019], [inside, [1.0, 1.0, 1.0]], [False, True], [0, 0]) == 1.0, "fixed atoms do not count"


def test_energy_forces_within_threshold_per_system() -> None:
    good, bad = [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]
    assert efwt([0.0, 0.0, 0.5, 0.0], [good, bad, good, good], [False] * 4, [0, 1, 2, 3]) == 0.5


def adwt(displacement_error: torch.Tensor, batch: Batch, target: torch.Tensor | None = None) -> metrics.Mean:
    target = torch.zeros_like(displacement_error) if target is None else target
    prediction = Values(displacements=displacement_error + target)
    return metrics.positions_average_distance_within_threshold(prediction, Values(displacements=target), batch)


def test_no_free_atom_leaves_the_decision_to_the_energy() -> None:
    assert efwt([0.0, 1.0], [[5.0] * 3, [5.0] * 3], [True, True], [0, 1]) == 0.5
    # a system without any atom of its own in system_idx is the same case
    assert efwt([0.0, 0.0], [[5.0] * 3], [False], [0]) == 0.5
    forces, frozen = torch.ones(1, 3), batch_of([0], [True])
    args = (Values(reference_forces=forces), Values(), frozen)
    assert metrics.force_below_threshold(*args).value == 1.0
    assert metrics.average_force_below_threshold(*args).value == 1.0
    assert adwt(forces, frozen).value == 1.0


def test_nan_is_never_within_and_shows_in_the_means() -> None:
    assert efwt([NAN, 0.0, 0.0], [[0.0] * 3, [0.0, NAN, 0.0], [0.0] * 3], [False] * 3, [0, 1, 2]) == pytest.approx(
        1 / 3
    )
    energy = energies(floats(NAN, 0.0), torch.zeros(2))
    assert metrics.energy_within_threshold(*energy).value == 0.5
    assert math.isnan(metrics.energy_mae(*energy).value)
    forces, one_system = torch.tensor([[NAN, 0.0, 0.0], [0.0, 0.0, 0.0]]), [0, 0]
    for metric in (metrics.forces_cosine_similarity, metrics.forces_magnitude_error, metrics.forces_mae):
        assert math.isnan(metric(Values(forces=forces), Values(forces=torch.ones(2, 3)), batch_of(one_system)).value)
    fixed = batch_of(one_system, [True, False])
    assert metrics.forces_mae(Values(forces=forces), Values(forces=torch.ones(2, 3)), fixed).value == 1.0
    args = (Values(reference_forces=forces), Values(), batch_of(one_system))
    assert metrics.force_below_threshold(*args).value == 0.0
    assert metrics.average_force_below_threshold(*args).value == 0.0
    assert adwt(forces, batch_of(one_system)).value == 0.0


def test_average_force_below_threshold_by_hand() -> None:
    """Largest norms 0.2505 (thresholds 0.251 … 0.399: 149 of 390) and 0 (all); the 5 eV/Å sits on a fixed atom."""
    forces = torch.tensor([[0.1503, 0.2004, 0.0], [0.0, 0.01, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    args = (Values(reference_forces=forces), Values(), batch_of([0, 0, 0, 1], [False, False, True, False]))
    result = metrics.average_force_below_threshold(*args)
    assert (result.total.item(), result.numel) == (149 + 390, 2 * 390)
    assert metrics.force_below_threshold(*args).value == 0.5
    at_threshold = Values(reference_forces=torch.tensor([[0.0, 0.05, 0.0]]))
    assert metrics.force_below_threshold(at_threshold, Values(), batch_of([0])).value == 0.0


def test_average_distance_within_threshold_by_hand() -> None:
    """System 0: displacements 0.1 and 0.3 (the latter across the boundary), mean 0.2; system 1: 2 Å, none within."""
    cell = torch.stack([10.0 * torch.eye(3), torch.zeros(3, 3)]).double()
    pbc = torch.tensor([[True, True, True], [False, False, False]])
    target = torch.tensor([[1.0, 1, 1], [9.9, 5, 5], [3, 3, 3], [0, 0, 0]]).double()
    prediction = torch.tensor([[1.1, 1, 1], [0.2, 5, 5], [8, 8, 8], [2, 0, 0]]).double()
    batch = batch_of([0, 0, 0, 1], [False, False, True, False], cell=cell, pbc=pbc)
    result = adwt(prediction - target, batch, target)
    assert result.numel == 2 * 490
    assert abs(result.total.item() - 299) <= 1  # 0.201 … 0.499; 0.200 itself is a matter of rounding
    args = (Values(displacements=prediction), Values(displacements=target), batch)
    assert metrics.positions_mae(*args).value == pytest.approx((0.1 + 9.7 + 2) / 9)  # not folded


def test_position_metrics_differ_in_the_atoms_that_they_count() -> None:
    error = torch.tensor([[0.3, 0, 0], [0, 0.6, 0], [0, 0, 0.9], [1.2, 0, 0]])
    batch = batch_of([0] * 4, [True, False, False, True], tags=torch.tensor([0, 1, 2, 2]))
    args = (Values(displacements=error), Values(displacements=torch.zeros(4, 3)), batch)
    assert metrics.positions_mae(*args).value == pytest.approx(1.5 / 6)
    assert metrics.positions_mse(*args).value == pytest.approx((0.36 + 0.81) / 6)
    assert metrics.positions_mae_all_atoms(*args).value == pytest.approx(3.0 / 12)
    assert metrics.positions_mae_adsorbate(*args).value == pytest.approx(0.9 / 3), "free atoms with tag 2"


def test_folding_is_that_of_oc20() -> None:
    """Against the definition in OC20.md, written plainly in NumPy: fractional coordinates, each folded by itself."""
    rng = np.random.default_rng(0)
    cell = np.array([[7.0, 0.0, 0.0], [3.0, 6.0, 0.0], [-2.0, 2.5, 9.0]])
    displacement = rng.uniform(-15, 15, (50, 3))
    fractional = np.linalg.solve(cell.T, displacement.T).T % 1.0
    fractional[fractional > 0.5] -= 1
    folded = metrics.folded_displacement(
        torch.from_numpy(displacement),
        torch.zeros(50, dtype=torch.long),
        torch.from_numpy(cell)[None],
        torch.ones(1, 3, dtype=torch.bool),
    )
    np.testing.assert_allclose(folded.numpy(), fractional @ cell, atol=1e-12)


def test_folding_leaves_the_vacuum_direction_alone() -> None:
    cell = torch.tensor([[[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [1.0, 0.0, 20.0]]])
    displacement = torch.tensor([[3.0, -3.0, 15.0]])
    args = (displacement, torch.tensor([0]), cell)
    folded = metrics.folded_displacement(*args, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(folded, torch.tensor([[-1.0, 1.0, 15.0]]))
    folded = metrics.folded_displacement(*args, torch.tensor([[False, False, False]]))
    torch.testing.assert_close(folded, displacement)


def random_s2ef(n_systems: int) -> list[tuple[torch.Tensor, ...]]:
    """(energies, forces, fixed) of systems of different sizes, with errors near the thresholds."""
    generator = torch.Generator().manual_seed(1)
    systems: list[tuple[torch.Tensor, ...]] = []
    for i in range(n_systems):
        n = 1 + i % 5
        energy, forces = torch.randn(1, generator=generator), torch.randn(n, 3, generator=generator)
        fixed = torch.rand(n, generator=generator) < 0.4
        noisy_forces = forces + 0.02 * torch.randn(n, 3, generator=generator)
        noisy_energy = energy + 0.02 * torch.randn(1, generator=generator)
        systems.append((noisy_energy, energy, noisy_forces, forces, fixed))
    return systems


def sums_of(systems: list[tuple[torch.Tensor, ...]], batch_size: int) -> MetricSums:
    sums = MetricSums(S2EF)
    for start in range(0, len(systems), batch_size):
        some = systems[start : start + batch_size]
        energy, true_energy, forces, true_forces, fixed = (torch.cat(c) for c in zip(*some, strict=True))
        system_idx = [k for k, system in enumerate(some) for _ in system[2]]
        sums.add(Values(energy, forces), Values(true_energy, true_forces), batch_of(system_idx, fixed.tolist()))
    return sums


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_batching_does_not_matter(batch_size: int) -> None:
    """The mean of batch means would differ: systems have 1 to 5 atoms and the last batch is smaller."""
    systems = random_s2ef(23)
    whole, parts = sums_of(systems, 23).compute(), sums_of(systems, batch_size).compute()
    assert whole == pytest.approx(parts, rel=1e-6)
    assert 0 < whole["energy_forces_within_threshold"] < whole["energy_within_threshold"] < 1
    errors = torch.cat([(f - t)[~fixed] for _, _, f, t, fixed in systems])
    assert whole["forces_rmse"] == pytest.approx(errors.square().mean().sqrt().item(), rel=1e-5)


def test_ranks_add_up_even_when_one_saw_nothing() -> None:
    systems = random_s2ef(9)
    first, second, idle = sums_of(systems[:4], 2), sums_of(systems[4:], 2), MetricSums(S2EF)
    assert idle.state.shape == first.state.shape
    assert all(math.isnan(value) for value in idle.compute().values())
    reduced = MetricSums(S2EF)
    reduced.state = first.state + second.state + idle.state  # what all_reduce does
    assert reduced.compute() == pytest.approx(sums_of(systems, 9).compute(), rel=1e-6)


def test_the_sums_do_not_lose_small_terms() -> None:
    """In float32, 2²⁴ + 1 = 2²⁴; neither within a batch nor between batches."""
    whole = energies(floats(2.0**24, *[1.0] * 8), torch.zeros(9))
    assert metrics.energy_mae(*whole).total.item() == 2.0**24 + 8
    sums = MetricSums(["energy"])
    sums.add(*energies(floats(2.0**24), floats(0.0)))
    for _ in range(8):
        sums.add(*energies(floats(1.0), floats(0.0)))
    assert sums.compute()["energy_mae"] * 9 == 2.0**24 + 8


def test_wrong_shapes_are_errors() -> None:
    with pytest.raises(ValueError, match=r"prediction has shape \(2,\), target \(3,\)"):
        metrics.energy_mae(Values(floats(0, 0)), Values(floats(0, 0, 0)), batch_of([0, 1, 2]))


def test_gradients_do_not_flow_into_metrics() -> None:
    prediction = torch.zeros(2, requires_grad=True)
    assert not metrics.energy_mae(*energies(prediction, torch.ones(2))).total.requires_grad
