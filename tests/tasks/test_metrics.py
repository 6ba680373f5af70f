"""OC20's metrics against hand-computed numbers, and the properties that make them pool correctly."""

import math

import numpy as np
import pytest
import torch

from equicat.errors import InputError
from equicat.tasks import metrics
from equicat.tasks.metrics import TASK_METRICS, Mean, MetricSums
from equicat.tasks.tables import METRIC_FORMATS, format_table

NAN = math.nan


def floats(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def free(n: int) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.bool)


def test_energy_metrics_by_hand() -> None:
    prediction, target = floats(1.0, -2.0, 0.5, 3.0), floats(1.01, -1.0, 0.5, 2.5)
    result = metrics.energy_metrics(prediction, target, torch.tensor([1, 2, 4, 10]))
    assert result["energy_mae"].value == pytest.approx(1.51 / 4)
    assert result["energy_mse"].value == pytest.approx((0.01**2 + 1 + 0.25) / 4)
    assert result["energy_per_atom_mae"].value == pytest.approx((0.01 + 0.5 + 0.05) / 4)
    assert result["energy_within_threshold"].value == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_energy_threshold_is_strict(dtype: torch.dtype) -> None:
    """Exactly 0.02 eV, as the dtype has it, is not within; the next number below is."""
    edge = torch.tensor(0.02, dtype=dtype)
    errors = torch.stack([edge, torch.nextafter(edge, torch.zeros_like(edge)), -edge])
    result = metrics.energy_within_threshold(errors, torch.zeros(3, dtype=dtype))
    assert (result.total.item(), result.numel) == (1.0, 3)


def test_force_metrics_by_hand() -> None:
    prediction = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [9.0, 9.0, 9.0]])
    target = torch.tensor([[4.0, 3.0, 0.0], [0.0, 2.0, 0.0], [-1.0, -1.0, -1.0], [0.0, 0.0, 0.0]])
    fixed = torch.tensor([False, False, False, True])
    args = (prediction, target, fixed)
    assert metrics.component_mae(prediction, target, ~fixed).value == pytest.approx((2 + 2 + 6) / 9)
    assert metrics.component_mse(prediction, target, ~fixed).value == pytest.approx((2 + 4 + 12) / 9)
    assert metrics.forces_cosine_similarity(*args).value == pytest.approx((24 / 25 + 0 - 1) / 3, abs=1e-6)
    assert metrics.forces_magnitude_error(*args).value == pytest.approx((0 + 2 + 0) / 3)
    assert metrics.component_mae(prediction, target, ~fixed).numel == 9
    assert metrics.forces_cosine_similarity(*args).numel == 3


def efwt(energy_error: list[float], force_error: list[list[float]], fixed: list[bool], system_idx: list[int]) -> float:
    energy, forces = torch.tensor(energy_error), torch.tensor(force_error)
    zeros = (torch.zeros_like(energy), torch.zeros_like(forces))
    return metrics.energy_forces_within_threshold(
        energy, zeros[0], forces, zeros[1], torch.tensor(fixed), torch.tensor(system_idx)
    ).value


def test_energy_forces_within_threshold_is_about_components() -> None:
    inside = [0.029, 0.029, -0.029]  # its norm, 0.05, is above the threshold; no component is
    assert efwt([0.0], [inside, inside], [False, False], [0, 0]) == 1.0
    assert efwt([0.0], [inside, [0.0, 0.03, 0.0]], [False, False], [0, 0]) == 0.0, "0.03 exactly does not pass"
    assert efwt([0.02], [inside, inside], [False, False], [0, 0]) == 0.0, "0.02 exactly does not pass"
    assert efwt([-0.019], [inside, [1.0, 1.0, 1.0]], [False, True], [0, 0]) == 1.0, "fixed atoms do not count"


def test_energy_forces_within_threshold_per_system() -> None:
    good, bad = [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]
    assert efwt([0.0, 0.0, 0.5, 0.0], [good, bad, good, good], [False] * 4, [0, 1, 2, 3]) == 0.5


def test_no_free_atom_leaves_the_decision_to_the_energy() -> None:
    assert efwt([0.0, 1.0], [[5.0] * 3, [5.0] * 3], [True, True], [0, 1]) == 0.5
    # a system without any atom of its own in system_idx is the same case
    assert efwt([0.0, 0.0], [[5.0] * 3], [False], [0]) == 0.5
    forces, fixed, system_idx = torch.ones(1, 3), torch.tensor([True]), torch.tensor([0])
    assert metrics.force_below_threshold(forces, fixed, system_idx, 1).value == 1.0
    assert metrics.average_force_below_threshold(forces, fixed, system_idx, 1).value == 1.0
    cell, pbc = 5.0 * torch.eye(3)[None], torch.ones(1, 3, dtype=torch.bool)
    adwt = metrics.positions_average_distance_within_threshold(forces, 0 * forces, fixed, system_idx, cell, pbc)
    assert adwt.value == 1.0


def test_nan_is_never_within_and_shows_in_the_means() -> None:
    assert efwt([NAN, 0.0, 0.0], [[0.0] * 3, [0.0, NAN, 0.0], [0.0] * 3], [False] * 3, [0, 1, 2]) == pytest.approx(
        1 / 3
    )
    energy = floats(NAN, 0.0)
    assert metrics.energy_within_threshold(energy, torch.zeros(2)).value == 0.5
    assert math.isnan(metrics.energy_mae(energy, torch.zeros(2)).value)
    forces, one_system = torch.tensor([[NAN, 0.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 0])
    for metric in (metrics.forces_cosine_similarity, metrics.forces_magnitude_error):
        assert math.isnan(metric(forces, torch.ones(2, 3), free(2)).value)
    assert math.isnan(metrics.component_mae(forces, torch.ones(2, 3), ~free(2)).value)
    assert metrics.component_mae(forces, torch.ones(2, 3), torch.tensor([False, True])).value == 1.0
    assert metrics.force_below_threshold(forces, free(2), one_system, 1).value == 0.0
    assert metrics.average_force_below_threshold(forces, free(2), one_system, 1).value == 0.0
    adwt = metrics.positions_average_distance_within_threshold(
        forces, torch.zeros(2, 3), free(2), one_system, torch.eye(3)[None], torch.zeros(1, 3, dtype=torch.bool)
    )
    assert adwt.value == 0.0


def test_average_force_below_threshold_by_hand() -> None:
    """Largest norms 0.2505 (thresholds 0.251 … 0.399: 149 of 390) and 0 (all); the 5 eV/Å sits on a fixed atom."""
    forces = torch.tensor([[0.1503, 0.2004, 0.0], [0.0, 0.01, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    fixed, system_idx = torch.tensor([False, False, True, False]), torch.tensor([0, 0, 0, 1])
    result = metrics.average_force_below_threshold(forces, fixed, system_idx, 2)
    assert (result.total.item(), result.numel) == (149 + 390, 2 * 390)
    assert metrics.force_below_threshold(forces, fixed, system_idx, 2).value == 0.5
    at_threshold = torch.tensor([[0.0, 0.05, 0.0]])
    assert metrics.force_below_threshold(at_threshold, free(1), torch.tensor([0]), 1).value == 0.0


def test_average_distance_within_threshold_by_hand() -> None:
    """System 0: displacements 0.1 and 0.3 (the latter across the boundary), mean 0.2; system 1: 2 Å, none within."""
    cell = torch.stack([10.0 * torch.eye(3), torch.zeros(3, 3)]).double()
    pbc = torch.tensor([[True, True, True], [False, False, False]])
    target = torch.tensor([[1.0, 1, 1], [9.9, 5, 5], [3, 3, 3], [0, 0, 0]]).double()
    prediction = torch.tensor([[1.1, 1, 1], [0.2, 5, 5], [8, 8, 8], [2, 0, 0]]).double()
    fixed, system_idx = torch.tensor([False, False, True, False]), torch.tensor([0, 0, 0, 1])
    result = metrics.positions_average_distance_within_threshold(prediction, target, fixed, system_idx, cell, pbc)
    assert result.numel == 2 * 490
    assert abs(result.total.item() - 299) <= 1  # 0.201 … 0.499; 0.200 itself is a matter of rounding
    assert metrics.component_mae(prediction, target, ~fixed).value == pytest.approx((0.1 + 9.7 + 2) / 9)  # not folded


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
    sums = MetricSums(TASK_METRICS["s2ef"])
    for start in range(0, len(systems), batch_size):
        batch = systems[start : start + batch_size]
        energy, true_energy, forces, true_forces, fixed = (torch.cat(c) for c in zip(*batch, strict=True))
        n_atoms = torch.tensor([len(system[2]) for system in batch])
        system_idx = torch.repeat_interleave(torch.arange(len(batch)), n_atoms)
        sums.add(metrics.energy_forces_metrics(energy, true_energy, forces, true_forces, fixed, system_idx))
    return sums


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_batching_does_not_matter(batch_size: int) -> None:
    """The mean of batch means would differ: systems have 1 to 5 atoms and the last batch is smaller."""
    systems = random_s2ef(23)
    whole, parts = sums_of(systems, 23).compute(), sums_of(systems, batch_size).compute()
    assert whole == pytest.approx(parts, rel=1e-6)
    assert 0 < whole["energy_forces_within_threshold"] < whole["energy_within_threshold"] < 1
    assert whole["forces_rmse"] == pytest.approx(math.sqrt(whole["forces_mse"]))


def test_ranks_add_up_even_when_one_saw_nothing() -> None:
    systems = random_s2ef(9)
    first, second, idle = sums_of(systems[:4], 2), sums_of(systems[4:], 2), MetricSums(TASK_METRICS["s2ef"])
    assert idle.state.shape == first.state.shape
    assert all(math.isnan(value) for value in idle.compute().values())
    reduced = MetricSums(TASK_METRICS["s2ef"])
    reduced.state = first.state + second.state + idle.state  # what all_reduce does
    first.merge(second)
    assert first.compute() == reduced.compute() == pytest.approx(sums_of(systems, 9).compute(), rel=1e-6)


def test_the_sums_do_not_lose_small_terms() -> None:
    """In float32, 2²⁴ + 1 = 2²⁴; neither within a batch nor between batches."""
    assert metrics.energy_mae(floats(2.0**24, *[1.0] * 8), torch.zeros(9)).total.item() == 2.0**24 + 8
    sums = MetricSums(["energy_mae"])
    sums.add({"energy_mae": metrics.energy_mae(floats(2.0**24), floats(0.0))})
    for _ in range(8):
        sums.add({"energy_mae": metrics.energy_mae(floats(1.0), floats(0.0))})
    assert sums.compute()["energy_mae"] * 9 == 2.0**24 + 8


def test_every_task_metric_is_computed_by_its_function() -> None:
    cell, pbc = torch.eye(3)[None] * 5, torch.ones(1, 3, dtype=torch.bool)
    energy, forces, one_system = torch.zeros(1), torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    s2ef = metrics.energy_forces_metrics(energy, energy, forces, forces, free(2), one_system)
    assert tuple(s2ef) == TASK_METRICS["s2ef"]
    assert tuple(metrics.energy_metrics(energy, energy, torch.tensor([2]))) == TASK_METRICS["is2re"]
    is2rs = metrics.positions_metrics(forces, forces, free(2), torch.tensor([2, 1]), one_system, cell, pbc)
    assert tuple(is2rs) == TASK_METRICS["is2rs"]


def test_wrong_shapes_and_names_are_errors() -> None:
    # jaxtyping raises a TypeError of its own; without it, the function's check must hold.
    with pytest.raises((ValueError, TypeError), match=r"shape|prediction"):
        metrics.energy_mae(torch.zeros(3, 1), torch.zeros(3))
    sums = MetricSums(["energy_mae"])
    with pytest.raises(ValueError, match="energy_mse"):
        sums.add({"energy_mse": Mean.of(torch.zeros(1))})
    with pytest.raises(ValueError, match="forces_mae"):
        sums.merge(MetricSums(["forces_mae"]))


def test_gradients_do_not_flow_into_metrics() -> None:
    prediction = torch.zeros(2, requires_grad=True)
    assert not metrics.energy_mae(prediction, torch.ones(2)).total.requires_grad


def test_table() -> None:
    rows = {
        "allegro": {"energy_mae": 0.12345, "energy_within_threshold": 0.05, "forces_mae": 0.0211},
        "mean energy, F = 0": {"energy_mae": 1.5, "energy_within_threshold": 0.0, "forces_mae": NAN},
        "energies only": {"energy_mae": 0.5},
    }
    lines = format_table(rows, energy_reference="adsorption").splitlines()
    assert lines[0].split("  ")[-3:] == ["energy MAE [eV]", "EwT [%]", "force MAE [eV/Å]"]
    assert lines[2].split() == ["allegro", "0.1235", "5.00", "0.0211"]
    assert lines[3].split()[-3:] == ["1.5000", "0.00", "nan"]
    assert lines[4].split()[-2:] == ["–", "–"]
    assert lines[5].startswith("Energies: adsorption")
    assert len({len(line) for line in lines[:5]}) == 1, "columns line up"
    assert "EFwT" in format_table(rows, ["energy_forces_within_threshold"])
    with pytest.raises(InputError, match=r"force_mae.*did you mean 'forces_mae'"):
        format_table(rows, ["force_mae"])


def test_every_metric_but_squares_can_be_shown() -> None:
    names = {name for task in TASK_METRICS.values() for name in task}
    assert {name.replace("_mse", "_rmse") for name in names} <= set(METRIC_FORMATS)
