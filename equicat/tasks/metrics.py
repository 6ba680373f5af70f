"""OC20's metrics, exactly, as functions of what is predicted, what is true and the batch.

Every metric is a mean over systems, atoms or components, pooled over the whole data set: each function returns a
:class:`Mean` (a sum and a count), and means of batches add up. :mod:`equicat.tasks.tables` lists the metrics, says
how each is shown, and sums them. Definitions: OC20 (Chanussot et al., ACS Catal. 2021, arXiv 2010.09990, section 4)
as computed by fairchem-core 1.10 (``modules/evaluator.py``), fed as its OC20 configurations do; docs/metrics.md has
them for readers. In detail:

- Fixed atoms never count.
- Errors are computed and compared in the dtype they come in: in float32, an error that rounds to float32(0.02) is not
  below 0.02 (fairchem does the same). Sums are float64.
- All thresholds are strict. NaN is never below a threshold, and it makes the means it enters NaN.
- A system without a free atom: fairchem raises (EFwT) or counts it as a failure (ADwT). Here a condition on all free
  atoms holds when there are none, so only the energy decides EFwT, and ADwT and AFbT count it as a success.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Shaped
from torch import Tensor

from equicat.data.batch import Batch

ENERGY_THRESHOLD = 0.02
"""eV; the energy error below which EwT and EFwT count a system."""
FORCE_THRESHOLD = 0.03
"""eV/Å; EFwT wants every force component of every free atom closer than this."""
ADSORBATE_TAG = 2
RELAXED_FORCE_THRESHOLD = 0.05
"""eV/Å; FbT wants the force on every free atom shorter than this."""
DISTANCE_THRESHOLDS = tuple(np.arange(0.01, 0.5, 0.001).tolist())
"""Å; the 490 thresholds that ADwT averages over, 0.010 to 0.499."""
AVERAGE_FORCE_THRESHOLDS = tuple(np.arange(0.01, 0.4, 0.001).tolist())
"""eV/Å; the 390 thresholds that AFbT averages over, 0.010 to 0.399 (the end is left out, as in ADwT)."""


@dataclass(frozen=True)
class Mean:
    """A sum and a count: the mean of a metric over what has been seen so far. Means of disjoint batches add."""

    total: Float64[Tensor, ""]
    numel: int | Int[Tensor, ""]
    """A tensor where a mask says what counts."""

    @classmethod
    def of(cls, values: Shaped[Tensor, "n *rest"], counted: Bool[Tensor, "n"] | None = None) -> "Mean":
        """The mean of all entries of ``values``, floating-point or bool, or of the rows that are counted.

        Other rows are emptied, not left out: on a GPU nobody has to wait for their number.
        """
        values = values.detach()
        if counted is None:
            return cls(values.sum(dtype=torch.float64), values.numel())
        others = ~counted.view(-1, *(1,) * (values.ndim - 1))
        return cls(values.masked_fill(others, 0).sum(dtype=torch.float64), counted.sum() * values[:1].numel())

    @property
    def value(self) -> float:
        """The mean; NaN when nothing has been counted."""
        n = int(self.numel)
        return self.total.item() / n if n else math.nan

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.numel + other.numel)


@dataclass(frozen=True, eq=False)
class Values:
    """Quantities that metrics and losses compare: predictions, labels, or guesses; None where there are none."""

    energy: Float[Tensor, "n_systems"] | None = None
    """eV; the energy of the structure (S2EF) or of the relaxed structure (IS2RE)."""
    forces: Float[Tensor, "n_atoms 3"] | None = None
    """eV/Å."""
    stress: Float[Tensor, "n_systems 3 3"] | None = None
    """eV/Å³, (dE/dε)/V."""
    displacements: Float[Tensor, "n_atoms 3"] | None = None
    """r_relaxed − r_initial, Å."""
    reference_forces: Float[Tensor, "n_atoms 3"] | None = None
    """eV/Å, of the reference method at the predicted relaxed positions; no label, for it takes a calculation."""


# ---- energies ----------------------------------------------------------------------------------------------------


def energy_mae(prediction: Values, target: Values, batch: Batch) -> Mean:
    """Mean absolute error of the energy over systems, eV (per system, not per atom)."""
    return Mean.of(_error(prediction.energy, target.energy).abs(), batch.with_energy)


def energy_mse(prediction: Values, target: Values, batch: Batch) -> Mean:
    """Mean squared error of the energy over systems, eV²."""
    return Mean.of(_error(prediction.energy, target.energy) ** 2, batch.with_energy)


def energy_per_atom_mae(prediction: Values, target: Values, batch: Batch) -> Mean:
    """Mean over systems of the absolute error of the energy divided by the number of atoms (fixed ones too), eV."""
    return Mean.of(_error(prediction.energy, target.energy).abs() / batch.n_atoms, batch.with_energy)


def energy_within_threshold(prediction: Values, target: Values, batch: Batch) -> Mean:
    """EwT: share of systems with an absolute energy error below 0.02 eV."""
    return Mean.of(_error(prediction.energy, target.energy).abs() < ENERGY_THRESHOLD, batch.with_energy)


# ---- forces ------------------------------------------------------------------------------------------------------


def forces_mae(prediction: Values, target: Values, batch: Batch) -> Mean:
    """Mean absolute error of the force components of free atoms, all systems pooled, eV/Å."""
    return Mean.of(_error(prediction.forces, target.forces).abs(), batch.with_forces)


def forces_mse(prediction: Values, target: Values, batch: Batch) -> Mean:
    """Mean squared error of the force components of free atoms, all systems pooled, (eV/Å)²."""
    return Mean.of(_error(prediction.forces, target.forces) ** 2, batch.with_forces)


def forces_cosine_similarity(prediction: Values, target: Values, batch: Batch) -> Mean:
    """Mean over free atoms of the cosine of the angle between the two force vectors.

    Computed in float32 by ``torch.cosine_similarity`` (eps 1e-8), as fairchem does: a zero vector gives 0.
    """
    found, wanted = _pair(prediction.forces, target.forces)
    return Mean.of(torch.cosine_similarity(found.float(), wanted.float(), dim=-1), batch.with_forces)


def forces_magnitude_error(prediction: Values, target: Values, batch: Batch) -> Mean:
    """Mean over free atoms of the absolute difference between the lengths of the two force vectors, eV/Å."""
    found, wanted = _pair(prediction.forces, target.forces)
    return Mean.of((found.norm(dim=-1) - wanted.norm(dim=-1)).abs(), batch.with_forces)


def energy_forces_within_threshold(prediction: Values, target: Values, batch: Batch) -> Mean:
    """EFwT: share of systems with |ΔE| < 0.02 eV and |ΔF| < 0.03 eV/Å for every component on every free atom."""
    energy_good = _error(prediction.energy, target.energy).abs() < ENERGY_THRESHOLD
    atom_good = (_error(prediction.forces, target.forces).abs() < FORCE_THRESHOLD).all(dim=-1)
    good = energy_good & _all_free_atoms(atom_good, batch.fixed, batch.system_idx, len(energy_good))
    return Mean.of(good, batch.with_both)


def force_below_threshold(prediction: Values, target: Values, batch: Batch) -> Mean:
    """FbT: share of relaxed structures whose reference forces all have a norm below 0.05 eV/Å on free atoms."""
    assert prediction.reference_forces is not None
    below = prediction.reference_forces.norm(dim=-1) < RELAXED_FORCE_THRESHOLD
    return Mean.of(_all_free_atoms(below, batch.fixed, batch.system_idx, batch.n_systems))


def average_force_below_threshold(prediction: Values, target: Values, batch: Batch) -> Mean:
    """AFbT: :func:`force_below_threshold`, averaged over the thresholds 0.010, 0.011, … 0.399 eV/Å.

    The definition is that of the OC20 paper; fairchem has no code for it (the leaderboard runs DFT).
    """
    assert prediction.reference_forces is not None
    norm = torch.where(batch.fixed, 0.0, prediction.reference_forces.norm(dim=-1))
    norm = torch.where(norm.isnan(), math.inf, norm)  # not every device keeps NaN in a maximum
    largest = norm.new_zeros(batch.n_systems).scatter_reduce(0, batch.system_idx.long(), norm, "amax")
    return _share_below(largest, AVERAGE_FORCE_THRESHOLDS)


# ---- stress ------------------------------------------------------------------------------------------------------


def stress_mae(prediction: Values, target: Values, batch: Batch) -> Mean:
    """Mean absolute error over the nine components of the stress tensors, all systems pooled, eV/Å³."""
    return Mean.of(_error(prediction.stress, target.stress).abs())


def stress_mse(prediction: Values, target: Values, batch: Batch) -> Mean:
    """Mean squared error over the nine components of the stress tensors, all systems pooled, (eV/Å³)²."""
    return Mean.of(_error(prediction.stress, target.stress) ** 2)


# ---- relaxed positions -------------------------------------------------------------------------------------------


def positions_mae(prediction: Values, target: Values, batch: Batch) -> Mean:
    """Mean absolute error of the relaxed positions' components over free atoms, as OC20's evaluator counts, Å.

    The displacements compared are those of the minimum image; the difference of the two is not folded again.
    """
    return Mean.of(_error(prediction.displacements, target.displacements).abs(), ~batch.fixed)


def positions_mse(prediction: Values, target: Values, batch: Batch) -> Mean:
    """Mean squared error over the components that :func:`positions_mae` counts, Å²."""
    return Mean.of(_error(prediction.displacements, target.displacements) ** 2, ~batch.fixed)


def positions_mae_all_atoms(prediction: Values, target: Values, batch: Batch) -> Mean:
    """Mean absolute error of the relaxed positions' components over all atoms, fixed ones too, Å.

    The paper on Allegro for catalysis counts so.
    """
    return Mean.of(_error(prediction.displacements, target.displacements).abs())


def positions_mae_adsorbate(prediction: Values, target: Values, batch: Batch) -> Mean:
    """Mean absolute error of the relaxed positions' components over the free atoms of adsorbates (tag 2), Å."""
    counted = ~batch.fixed & (batch.tags == ADSORBATE_TAG)
    return Mean.of(_error(prediction.displacements, target.displacements).abs(), counted)


def positions_average_distance_within_threshold(prediction: Values, target: Values, batch: Batch) -> Mean:
    """ADwT: share of (system, threshold) pairs in which the mean displacement of the free atoms is below the threshold.

    Thresholds are 0.010, 0.011, … 0.499 Å. Displacements are folded by :func:`folded_displacement`.
    """
    error = _error(prediction.displacements, target.displacements)
    free = ~batch.fixed
    length = folded_displacement(error, batch.system_idx, batch.cell.to(error.dtype), batch.pbc)[free].norm(dim=-1)
    zeros = length.new_zeros(batch.n_systems)
    total = zeros.index_add(0, batch.system_idx[free], length)
    n_free = zeros.index_add(0, batch.system_idx[free], torch.ones_like(length))
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


# ---- helpers -----------------------------------------------------------------------------------------------------


def _pair(prediction: Tensor | None, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both tensors, of one shape: (n, 1) against (n,) would broadcast to n² errors, a defect of fairchem 1.10."""
    assert prediction is not None, "a metric is computed only where its quantity is predicted"
    assert target is not None, "the data were checked for the task's labels"
    if prediction.shape != target.shape:
        raise ValueError(f"prediction has shape {tuple(prediction.shape)}, target {tuple(target.shape)}")
    return prediction.detach(), target


def _error(prediction: Tensor | None, target: Tensor | None) -> Tensor:
    found, wanted = _pair(prediction, target)
    return found - wanted


def _all_free_atoms(
    good: Bool[Tensor, "n_atoms"], fixed: Bool[Tensor, "n_atoms"], system_idx: Int[Tensor, "n_atoms"], n_systems: int
) -> Bool[Tensor, "n_systems"]:
    """Whether ``good`` holds for all free atoms of a system; True when it has none."""
    bad = (~good & ~fixed).long()
    return bad.new_zeros(n_systems).index_add(0, system_idx, bad) == 0


def _share_below(value: Float[Tensor, "n_systems"], thresholds: Sequence[float]) -> Mean:
    """The share of (system, threshold) pairs with the system's value below the threshold, compared in float64."""
    return Mean.of(value.double()[:, None] < torch.tensor(thresholds, dtype=torch.float64, device=value.device))
