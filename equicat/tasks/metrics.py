"""OC20's metrics, exactly, as sums that add over batches and ranks (``equicat.tasks.tables`` shows them).

Every metric is a mean over systems, atoms or components, pooled over the whole data set: each function returns a
:class:`Mean` (a sum and a count), means of batches add up, and :class:`MetricSums` adds a set of them by name.
Definitions: OC20 (Chanussot et al., ACS Catal. 2021, arXiv 2010.09990, section 4) as computed by fairchem-core 1.10
(``modules/evaluator.py``), fed as its OC20 configurations do. What that means in detail:

- Fixed atoms never count.
- Errors are computed and compared in the dtype they come in: in float32, an error that rounds to float32(0.02) is not
  below 0.02 (fairchem does the same). Sums are float64.
- All thresholds are strict. NaN is never below a threshold, and it makes the means it enters NaN.
- A system without a free atom: fairchem raises (EFwT) or counts it as a failure (ADwT). Here a condition on all free
  atoms holds when there are none, so only the energy decides EFwT, and ADwT and AFbT count it as a success.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

ENERGY_THRESHOLD = 0.02
"""eV, of EwT and EFwT."""
FORCE_THRESHOLD = 0.03
"""eV/Å on every component, of EFwT."""
ADSORBATE_TAG = 2
RELAXED_FORCE_THRESHOLD = 0.05
"""eV/Å on the norm, of FbT."""
DISTANCE_THRESHOLDS = tuple(np.arange(0.01, 0.5, 0.001).tolist())
"""Å, of ADwT: 490 values, 0.010 to 0.499."""
AVERAGE_FORCE_THRESHOLDS = tuple(np.arange(0.01, 0.4, 0.001).tolist())
"""eV/Å on the norm, of AFbT: 390 values, 0.010 to 0.399 (the end left out, as in ADwT)."""


@dataclass(frozen=True)
class Mean:
    """A sum and a count: the mean of a metric over what has been seen so far. Means of disjoint batches add."""

    total: Float64[Tensor, ""]
    numel: int

    @classmethod
    def of(cls, values: Tensor) -> "Mean":
        """The mean of all entries of ``values`` (any shape, float or bool)."""
        return cls(values.detach().sum(dtype=torch.float64), values.numel())

    @property
    def value(self) -> float:
        """The mean; NaN when nothing has been counted."""
        return self.total.item() / self.numel if self.numel else math.nan

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.numel + other.numel)


# ---- energies ----------------------------------------------------------------------------------------------------


def energy_mae(prediction: Float[Tensor, "n_systems"], target: Float[Tensor, "n_systems"]) -> Mean:
    """Mean absolute error of the energy over systems, eV (per system, not per atom)."""
    return Mean.of(_error(prediction, target).abs())


def energy_mse(prediction: Float[Tensor, "n_systems"], target: Float[Tensor, "n_systems"]) -> Mean:
    """Mean squared error of the energy over systems, eV²."""
    return Mean.of(_error(prediction, target) ** 2)


def energy_per_atom_mae(
    prediction: Float[Tensor, "n_systems"], target: Float[Tensor, "n_systems"], n_atoms: Int[Tensor, "n_systems"]
) -> Mean:
    """Mean over systems of the absolute error of the energy divided by the number of atoms (fixed ones too), eV."""
    return Mean.of(_error(prediction, target).abs() / n_atoms)


def energy_within_threshold(prediction: Float[Tensor, "n_systems"], target: Float[Tensor, "n_systems"]) -> Mean:
    """EwT: share of systems with an absolute energy error below 0.02 eV."""
    return Mean.of(_error(prediction, target).abs() < ENERGY_THRESHOLD)


# ---- forces ------------------------------------------------------------------------------------------------------


def component_mae(
    prediction: Float[Tensor, "n_atoms 3"], target: Float[Tensor, "n_atoms 3"], counted: Bool[Tensor, "n_atoms"]
) -> Mean:
    """Mean absolute error over the components of the vectors of the atoms that count, all systems pooled.

    Of forces (eV/Å) or positions (Å); of positions, periodic images are not folded.
    """
    return Mean.of(_error(prediction, target)[counted].abs())


def component_mse(
    prediction: Float[Tensor, "n_atoms 3"], target: Float[Tensor, "n_atoms 3"], counted: Bool[Tensor, "n_atoms"]
) -> Mean:
    """Mean squared error over the same components, in the square of their unit."""
    return Mean.of(_error(prediction, target)[counted] ** 2)


def forces_cosine_similarity(
    prediction: Float[Tensor, "n_atoms 3"], target: Float[Tensor, "n_atoms 3"], fixed: Bool[Tensor, "n_atoms"]
) -> Mean:
    """Mean over free atoms of the cosine of the angle between the two force vectors.

    Computed in float32 by ``torch.cosine_similarity`` (eps 1e-8), as fairchem does: a zero vector gives 0.
    """
    _check_shapes(prediction, target)
    return Mean.of(torch.cosine_similarity(prediction[~fixed].float(), target[~fixed].float(), dim=-1))


def forces_magnitude_error(
    prediction: Float[Tensor, "n_atoms 3"], target: Float[Tensor, "n_atoms 3"], fixed: Bool[Tensor, "n_atoms"]
) -> Mean:
    """Mean over free atoms of the absolute difference between the lengths of the two force vectors, eV/Å."""
    _check_shapes(prediction, target)
    return Mean.of((prediction[~fixed].norm(dim=-1) - target[~fixed].norm(dim=-1)).abs())


def energy_forces_within_threshold(
    energy_prediction: Float[Tensor, "n_systems"],
    energy_target: Float[Tensor, "n_systems"],
    forces_prediction: Float[Tensor, "n_atoms 3"],
    forces_target: Float[Tensor, "n_atoms 3"],
    fixed: Bool[Tensor, "n_atoms"],
    system_idx: Int[Tensor, "n_atoms"],
) -> Mean:
    """EFwT: share of systems with |ΔE| < 0.02 eV and |ΔF| < 0.03 eV/Å for every component on every free atom."""
    energy_good = _error(energy_prediction, energy_target).abs() < ENERGY_THRESHOLD
    atom_good = (_error(forces_prediction, forces_target).abs() < FORCE_THRESHOLD).all(dim=-1)
    return Mean.of(energy_good & _all_free_atoms(atom_good, fixed, system_idx, len(energy_good)))


def force_below_threshold(
    forces: Float[Tensor, "n_atoms 3"],
    fixed: Bool[Tensor, "n_atoms"],
    system_idx: Int[Tensor, "n_atoms"],
    n_systems: int,
) -> Mean:
    """FbT: share of relaxed structures whose DFT forces all have a norm below 0.05 eV/Å on free atoms.

    ``forces`` are those of the reference method at the predicted relaxed positions, not a model's.
    """
    below = forces.norm(dim=-1) < RELAXED_FORCE_THRESHOLD
    return Mean.of(_all_free_atoms(below, fixed, system_idx, n_systems))


def average_force_below_threshold(
    forces: Float[Tensor, "n_atoms 3"],
    fixed: Bool[Tensor, "n_atoms"],
    system_idx: Int[Tensor, "n_atoms"],
    n_systems: int,
) -> Mean:
    """AFbT: :func:`force_below_threshold`, averaged over the thresholds 0.010, 0.011, … 0.399 eV/Å.

    ``forces`` are those of the reference method at the predicted relaxed positions. The definition is that of the
    OC20 paper; fairchem has no code for it (the leaderboard runs DFT).
    """
    norm = torch.where(fixed, 0.0, forces.norm(dim=-1))
    norm = torch.where(norm.isnan(), math.inf, norm)  # not every device keeps NaN in a maximum
    largest = norm.new_zeros(n_systems).scatter_reduce(0, system_idx.long(), norm, "amax")
    return _share_below(largest, AVERAGE_FORCE_THRESHOLDS)


# ---- relaxed positions -------------------------------------------------------------------------------------------


def positions_average_distance_within_threshold(
    prediction: Float[Tensor, "n_atoms 3"],
    target: Float[Tensor, "n_atoms 3"],
    fixed: Bool[Tensor, "n_atoms"],
    system_idx: Int[Tensor, "n_atoms"],
    cell: Float[Tensor, "n_systems 3 3"],
    pbc: Bool[Tensor, "n_systems 3"],
) -> Mean:
    """ADwT: share of (system, threshold) pairs in which the mean displacement of the free atoms is below the threshold.

    Thresholds are 0.010, 0.011, … 0.499 Å. Displacements are folded by :func:`folded_displacement`.
    """
    length = folded_displacement(_error(prediction, target), system_idx, cell, pbc)[~fixed].norm(dim=-1)
    zeros = length.new_zeros(len(cell))
    total = zeros.index_add(0, system_idx[~fixed], length)
    n_free = zeros.index_add(0, system_idx[~fixed], torch.ones_like(length))
    return _share_below(total / n_free.clamp(min=1), DISTANCE_THRESHOLDS)


def folded_displacement(
    displacement: Float[Tensor, "n_atoms 3"],
    system_idx: Int[Tensor, "n_atoms"],
    cell: Float[Tensor, "n_systems 3 3"],
    pbc: Bool[Tensor, "n_systems 3"],
) -> Float[Tensor, "n_atoms 3"]:
    """Displacements with each fractional coordinate along a periodic vector folded into (−1/2, 1/2], Å.

    This is what OC20 measures; for a very skewed cell it is not always the shortest image. fairchem gives all systems
    periodic boundaries and then folds the same way. Here only the periodic vectors of each system count, so a
    displacement out of a slab's plane stays as it is, whatever third vector the file has.
    """
    lattice = cell * pbc[..., None]  # rows of non-periodic vectors are zero, and so are their fractional coordinates
    fractional = torch.einsum("ni,nij->nj", displacement, torch.linalg.pinv(lattice)[system_idx])
    shift = torch.ceil(fractional - 0.5)
    return displacement - torch.einsum("ni,nij->nj", shift, lattice[system_idx])


# ---- the metrics of a task, and their sums -----------------------------------------------------------------------


def energy_metrics(
    prediction: Float[Tensor, "n_systems"], target: Float[Tensor, "n_systems"], n_atoms: Int[Tensor, "n_systems"]
) -> dict[str, Mean]:
    """All metrics of energies (IS2RE), as in :data:`TASK_METRICS`."""
    return {
        "energy_mae": energy_mae(prediction, target),
        "energy_mse": energy_mse(prediction, target),
        "energy_per_atom_mae": energy_per_atom_mae(prediction, target, n_atoms),
        "energy_within_threshold": energy_within_threshold(prediction, target),
    }


def energy_forces_metrics(
    energy_prediction: Float[Tensor, "n_systems"],
    energy_target: Float[Tensor, "n_systems"],
    forces_prediction: Float[Tensor, "n_atoms 3"],
    forces_target: Float[Tensor, "n_atoms 3"],
    fixed: Bool[Tensor, "n_atoms"],
    system_idx: Int[Tensor, "n_atoms"],
) -> dict[str, Mean]:
    """All metrics of energies and forces (S2EF)."""
    n_atoms = torch.bincount(system_idx, minlength=len(energy_target))
    forces = (forces_prediction, forces_target, fixed)
    return energy_metrics(energy_prediction, energy_target, n_atoms) | {
        "forces_mae": component_mae(forces_prediction, forces_target, ~fixed),
        "forces_mse": component_mse(forces_prediction, forces_target, ~fixed),
        "forces_cosine_similarity": forces_cosine_similarity(*forces),
        "forces_magnitude_error": forces_magnitude_error(*forces),
        "energy_forces_within_threshold": energy_forces_within_threshold(
            energy_prediction, energy_target, *forces, system_idx
        ),
    }


def positions_metrics(
    prediction: Float[Tensor, "n_atoms 3"],
    target: Float[Tensor, "n_atoms 3"],
    fixed: Bool[Tensor, "n_atoms"],
    tags: Int[Tensor, "n_atoms"],
    system_idx: Int[Tensor, "n_atoms"],
    cell: Float[Tensor, "n_systems 3 3"],
    pbc: Bool[Tensor, "n_systems 3"],
) -> dict[str, Mean]:
    """All metrics of relaxed positions (IS2RS) that need no DFT.

    ``positions_mae`` counts free atoms, as OC20's evaluator does; the paper on Allegro for catalysis counts all atoms
    (``positions_mae_all_atoms``); what a chemist looks at is the adsorbate (``positions_mae_adsorbate``, tag 2).
    """
    return {
        "positions_mae": component_mae(prediction, target, ~fixed),
        "positions_mse": component_mse(prediction, target, ~fixed),
        "positions_mae_all_atoms": component_mae(prediction, target, torch.ones_like(fixed)),
        "positions_mae_adsorbate": component_mae(prediction, target, ~fixed & (tags == ADSORBATE_TAG)),
        "positions_average_distance_within_threshold": positions_average_distance_within_threshold(
            prediction, target, fixed, system_idx, cell, pbc
        ),
    }


ENERGY_METRICS = ("energy_mae", "energy_mse", "energy_per_atom_mae", "energy_within_threshold")
FORCES_METRICS = ("forces_mae", "forces_mse", "forces_cosine_similarity", "forces_magnitude_error")
POSITIONS_METRICS = (
    "positions_mae",
    "positions_mse",
    "positions_mae_all_atoms",
    "positions_mae_adsorbate",
    "positions_average_distance_within_threshold",
)
TASK_METRICS: dict[str, tuple[str, ...]] = {
    "s2ef": (*ENERGY_METRICS, *FORCES_METRICS, "energy_forces_within_threshold"),
    "is2re": ENERGY_METRICS,
    "is2rs": POSITIONS_METRICS,
}
"""The names that :func:`energy_forces_metrics`, :func:`energy_metrics` and :func:`positions_metrics` return."""


class MetricSums:
    """Metrics of a data set, added batch by batch. Its whole state is one float64 tensor, so ranks can be summed.

    The names are fixed at the start, so that a rank that saw no batch has the same state shape as the others::

        sums = MetricSums(TASK_METRICS["s2ef"])
        for ...: sums.add(energy_forces_metrics(...))
        torch.distributed.all_reduce(sums.state)
        sums.compute()["forces_mae"]
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self.state: Float64[Tensor, "n_names 2"] = torch.zeros(len(self.names), 2, dtype=torch.float64)
        """Sum and count of each metric."""

    def add(self, means: Mapping[str, Mean]) -> None:
        """Add the metrics of one batch.

        Raises:
            ValueError: if the names are not those of this accumulator.
        """
        if set(means) != set(self.names):
            raise ValueError(f"expected the metrics {sorted(self.names)}, got {sorted(means)}")
        totals = torch.stack([means[name].total for name in self.names]).to(self.state.device)
        counts = totals.new_tensor([means[name].numel for name in self.names])
        self.state += torch.stack([totals, counts], dim=1)

    def merge(self, other: "MetricSums") -> None:
        """Add what another accumulator of the same metrics has seen.

        Raises:
            ValueError: if the names or their order differ.
        """
        if other.names != self.names:
            raise ValueError(f"expected the metrics {self.names}, got {other.names}")
        self.state += other.state.to(self.state.device)

    def compute(self) -> dict[str, float]:
        """Every metric by name (NaN if nothing was counted); for each ``*_mse`` also its root, ``*_rmse``."""
        values = {}
        for name, (total, count) in zip(self.names, self.state.tolist(), strict=True):
            values[name] = total / count if count else math.nan
            if name.endswith("_mse"):
                values[name.removesuffix("_mse") + "_rmse"] = math.sqrt(values[name])
        return values


# ---- helpers -----------------------------------------------------------------------------------------------------


def _check_shapes(prediction: Tensor, target: Tensor) -> None:
    """(n, 1) against (n,) would broadcast to n² errors: the defect of fairchem 1.10's relaxed energies."""
    if prediction.shape != target.shape:
        raise ValueError(f"prediction has shape {tuple(prediction.shape)}, target {tuple(target.shape)}")


def _error(prediction: Tensor, target: Tensor) -> Tensor:
    _check_shapes(prediction, target)
    return prediction - target


def _all_free_atoms(
    good: Bool[Tensor, "n_atoms"], fixed: Bool[Tensor, "n_atoms"], system_idx: Int[Tensor, "n_atoms"], n_systems: int
) -> Bool[Tensor, "n_systems"]:
    """Whether ``good`` holds for all free atoms of a system; True when it has none."""
    bad = (~good & ~fixed).long()
    return bad.new_zeros(n_systems).index_add(0, system_idx, bad) == 0


def _share_below(value: Float[Tensor, "n_systems"], thresholds: Sequence[float]) -> Mean:
    """The share of (system, threshold) pairs with the system's value below the threshold, compared in float64."""
    return Mean.of(value.double()[:, None] < torch.tensor(thresholds, dtype=torch.float64, device=value.device))
