"""A task is the labels it needs, its loss, its metrics and its trivial baselines: data and functions, no trainer.

- ``s2ef``: structure to energy and forces, with the stress if its loss has a weight.
- ``is2re``: initial structure to relaxed energy, with displacements as an auxiliary task if their loss has a weight.
- ``is2rs``: initial to relaxed structure, with energies as an auxiliary task if their loss has a weight.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from equicat.data.batch import Batch
from equicat.data.fitted import Statistics
from equicat.errors import InputError
from equicat.models.direct import DirectModel, RelaxedPrediction
from equicat.models.model import Prediction
from equicat.models.potential import Potential
from equicat.options.values import Checked, NonNegativeNumber, Share
from equicat.tasks.metrics import Values

AnyPrediction = Prediction | RelaxedPrediction

LABEL_OF = {
    "energy": "energy",
    "forces": "forces",
    "stress": "stress",
    "relaxed_energy": "relaxed_energy",
    "displacements": "relaxed_positions",
}
"""The label that a structure must have for each output of a model."""


LATE = 0.75
"""Share of a run after which late weights count unless told otherwise."""


@dataclass(frozen=True)
class LossConfig(Checked, section="loss"):
    """Sum of weight × loss over what is predicted, errors in units of the model's scales; free atoms only."""

    energy: Literal["mae", "per_atom_mae", "per_atom_mse"] = "mae"
    """Mean absolute error per system, or mean absolute or squared error per atom."""
    forces: Literal["l2", "mae", "mse"] = "l2"
    """Mean length of the error vector, or mean absolute or squared error of the components."""
    displacements: Literal["l2", "mae", "mse"] = "l2"
    """Mean length of the error vector of displacements, or mean absolute or squared error (is2re, is2rs)."""
    stress: Literal["mae", "mse"] = "mae"
    """Mean absolute or squared error of the nine components of stress × volume per atom (eV)."""
    energy_weight: NonNegativeNumber | None = None
    """Coefficient of the energy loss; null is 1, but 0 (no energies) for is2rs."""
    forces_weight: NonNegativeNumber = 30.0
    """Coefficient of the force loss (s2ef)."""
    displacement_weight: NonNegativeNumber | None = None
    """Coefficient of the displacement loss; null is 1 for is2rs and 0 (no displacements) for is2re."""
    stress_weight: NonNegativeNumber = 0.0
    """Coefficient of the stress loss (s2ef); 0 trains without stresses, and data need none."""
    late_energy_weight: NonNegativeNumber | None = None
    """Coefficient of the energy loss towards the end of the run (s2ef), and in val_loss; null keeps energy_weight."""
    late_forces_weight: NonNegativeNumber | None = None
    """Coefficient of the force loss towards the end of the run (s2ef), and in val_loss; null keeps forces_weight."""
    late_from: Share = LATE
    """Share of the run after which the late coefficients count."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.late_from != LATE and self.late_energy_weight is None and self.late_forces_weight is None:
            raise InputError("loss.late_from says when the late weights count, but none is given; leave it out")


@dataclass(frozen=True, eq=False)
class LossTerm:
    """weight · sum / count: a weighted mean, its parts kept because sums and counts add up and means do not."""

    weight: float
    sum: Any
    """A scalar tensor, or a number."""
    count: Any
    """Systems, free atoms or components: a number, or a scalar tensor."""


def total_loss(terms: Sequence[LossTerm], where: str = "the batch") -> Any:
    """Σ weight · sum / count: a scalar tensor, or a number if the sums are numbers.

    Raises:
        InputError: naming ``where``, if nothing is counted because no atom is free there.
    """
    if not all(term.count for term in terms):
        raise InputError(f"{where}: every atom is fixed, so there is nothing to train on")
    return weighted_sum(terms)


def weighted_sum(terms: Sequence[LossTerm]) -> Any:
    """Σ weight · sum / count without a look at the counts, which on a GPU would wait; NaN if nothing is counted."""
    return sum(term.weight * term.sum / term.count for term in terms)


@dataclass(frozen=True)
class Task:
    """Labels, loss, metrics and baselines for a model with these outputs."""

    outputs: tuple[str, ...]
    """Outputs of the model: ``energy``, ``forces`` and perhaps ``stress``, or ``relaxed_energy``,
    ``displacements`` or both."""

    @property
    def energy(self) -> str:
        """The label of the energies, whether or not they are predicted."""
        return "energy" if "forces" in self.outputs else "relaxed_energy"

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that every structure must have."""
        return tuple(LABEL_OF[name] for name in self.outputs)

    @property
    def quantities(self) -> tuple[str, ...]:
        """The fields of :class:`~equicat.tasks.metrics.Values` that are predicted, to be compared with the labels."""
        return tuple("energy" if name == "relaxed_energy" else name for name in self.outputs)

    @property
    def extras(self) -> dict[str, bool]:
        """Options of a model's call that give all that the task needs: the virial if it has a stress."""
        return {"virial": True} if "stress" in self.outputs else {}

    def target(self, batch: Batch) -> Values:
        """The labels of a batch, as far as the model predicts them."""
        labels = {
            "energy": batch.energy if self.energy == "energy" else batch.relaxed_energy,
            "forces": batch.forces,
            "stress": batch.stress,
            "displacements": batch.displacements,
        }
        return Values(**{name: labels[name] for name in self.quantities})

    def loss_terms(
        self, prediction: AnyPrediction, batch: Batch, model: Potential | DirectModel, config: LossConfig
    ) -> tuple[LossTerm, ...]:
        """One term for each predicted quantity, errors in units of the model's scales, vectors of free atoms only.

        Factors of a batch multiply the losses of its systems, and leave the counts as they are: a system with the
        factor f contributes f times what it would without, whatever else is in its batch. There are as many terms for
        every batch; :func:`total_loss` adds them.
        """
        assert config.energy_weight is not None, "resolved() gives the task's own weights"
        assert config.displacement_weight is not None or "displacements" not in self.outputs
        found, wanted, scale, terms = values_of(prediction, batch), self.target(batch), model.scale, []
        if found.energy is not None:
            error = ((found.energy - _known(wanted.energy)) / scale.double()).to(model.dtype)
            terms.append(_energy_term(config.energy_weight, error, config.energy, batch))
        if found.forces is not None:
            error = (found.forces - _known(wanted.forces)) / scale
            factors = None if batch.forces_weight is None else batch.forces_weight.to(error)[batch.system_idx]
            terms.append(_vector_term(config.forces_weight, error, ~batch.fixed, config.forces, factors))
        if "stress" in self.outputs:
            # Stress × volume per atom is an energy as the virial is: its size does not depend on the vacuum of a slab.
            volume_per_atom = batch.volume / batch.n_atoms
            error = (_known(found.stress) - _known(wanted.stress)) * volume_per_atom[:, None, None] / scale
            terms.append(_component_term(config.stress_weight, error, config.stress))
        if found.displacements is not None and isinstance(model, DirectModel):
            error = (found.displacements - _known(wanted.displacements)) / model.displacement_scale
            weight = config.displacement_weight or 0.0
            terms.append(_vector_term(weight, error, ~batch.fixed, config.displacements))
        return tuple(terms)

    def baselines(self, batch: Batch, statistics: Statistics) -> dict[str, Values]:
        """Guesses that need no model, by name; the names are those of every batch.

        Energies are the training set's mean or its linear fit to the composition; nothing pulls, nothing moves.
        """
        nothing = torch.zeros_like(batch.positions)
        still: dict[str, Tensor] = {name: nothing for name in ("forces", "displacements") if name in self.quantities}
        if "stress" in self.quantities:
            still["stress"] = torch.zeros_like(batch.cell)
        words = {"forces": "F = 0", "displacements": "no displacement"}
        ending = ", ".join(words[name] for name in still if name in words)
        if "energy" not in self.quantities:
            return {ending: Values(**still)}
        guesses = zip(("mean energy", "linear reference"), _guessed_energies(batch, statistics), strict=True)
        return {", ".join(filter(None, (name, ending))): Values(energy=guess, **still) for name, guess in guesses}


def values_of(prediction: AnyPrediction, batch: Batch) -> Values:
    """The prediction of a model for a batch, under the names that labels have."""
    if isinstance(prediction, RelaxedPrediction):
        return Values(energy=prediction.relaxed_energy, displacements=prediction.displacements)
    stress = None
    if prediction.virial is not None:
        stress = prediction.virial / batch.volume[:, None, None]
    return Values(prediction.energy, prediction.forces, stress)


def task_of(outputs: tuple[str, ...]) -> Task:
    """The task that a model with these outputs is trained and judged on."""
    return Task(outputs)


def resolved(task: str, loss: LossConfig) -> LossConfig:
    """The loss with the task's own weights where none were given.

    Raises:
        InputError: if the task's own quantity has no weight.
    """
    energy, displacements = {"s2ef": (1.0, 0.0), "is2re": (1.0, 0.0), "is2rs": (0.0, 1.0)}[task]
    energy = energy if loss.energy_weight is None else loss.energy_weight
    displacements = displacements if loss.displacement_weight is None else loss.displacement_weight
    late = {name: value for name, value in asdict(loss).items() if name.startswith("late_") and value is not None}
    if task != "s2ef" and late != {"late_from": LATE}:
        raise InputError(f"loss.{next(iter(late))} is for s2ef, whose energies and forces have weights; leave it out")
    if task == "s2ef" and energy == loss.forces_weight == 0:
        raise InputError("loss.energy_weight and loss.forces_weight are both 0, which leaves nothing to train on")
    if (task == "is2re" and energy <= 0) or (task == "is2rs" and displacements <= 0):
        name = "energy_weight" if task == "is2re" else "displacement_weight"
        raise InputError(f"loss.{name} is 0, but it is what {task} trains on; give it a weight")
    return replace(loss, energy_weight=energy, displacement_weight=displacements)


def loss_at(loss: LossConfig, progress: float) -> LossConfig:
    """The loss when a share of the run is over: with the late weights from ``late_from`` on.

    Validations take that of the end, so that they are comparable, and the best is best by what counts at last.
    """
    if progress < loss.late_from:
        return loss
    late: dict[str, Any] = {"energy_weight": loss.late_energy_weight, "forces_weight": loss.late_forces_weight}
    return replace(loss, **{name: weight for name, weight in late.items() if weight is not None})


def outputs_of(task: str, loss: LossConfig) -> tuple[str, ...]:
    """The outputs of a model trained with that (resolved) loss."""
    if task == "s2ef":
        return ("energy", "forces", "stress") if loss.stress_weight > 0 else ("energy", "forces")
    assert loss.energy_weight is not None
    assert loss.displacement_weight is not None
    weights = {"relaxed_energy": loss.energy_weight, "displacements": loss.displacement_weight}
    return tuple(name for name, weight in weights.items() if weight > 0)


def _known(label: Tensor | None) -> Tensor:
    assert label is not None, "the data were checked for the task's labels"
    return label


def _vector_term(
    weight: float,
    error: Float[Tensor, "n_atoms 3"],
    counted: Bool[Tensor, "n_atoms"],
    kind: str,
    factors: Float[Tensor, "n_atoms"] | None = None,
) -> LossTerm:
    """Mean length of the error vectors of counted atoms, or mean absolute or squared error of their components.

    Each is multiplied by the factor of its atom. Atoms that are not counted are emptied, not left out: on a GPU nobody
    has to wait for their number.
    """
    error, n = error.masked_fill(~counted[:, None], 0), counted.sum()
    if kind == "l2":
        # The norm has no derivative where it is zero; this one has, and differs by at most 1e-6 of the scale.
        lengths = torch.sqrt(error.square().sum(1) + 1e-12)
        return LossTerm(weight, _times(lengths.masked_fill(~counted, 0), factors).sum(), n)
    return LossTerm(weight, _component_term(weight, error, kind, factors).sum, 3 * n)


def _component_term(
    weight: float, error: Float[Tensor, "n *rest"], kind: str, factors: Float[Tensor, "n"] | None = None
) -> LossTerm:
    """Mean absolute or squared error of all components, each multiplied by the factor of its row."""
    return LossTerm(weight, _times(error.abs() if kind == "mae" else error.square(), factors).sum(), error.numel())


def _times(losses: Float[Tensor, "n *rest"], factors: Float[Tensor, "n"] | None) -> Float[Tensor, "n *rest"]:
    return losses if factors is None else losses * factors.view(-1, *(1,) * (losses.ndim - 1))


def _energy_term(weight: float, error: Float[Tensor, "n_systems"], kind: str, batch: Batch) -> LossTerm:
    """Mean absolute error of the systems, or mean absolute or squared error per atom."""
    if kind != "mae":
        error = error / batch.n_atoms
    factors = None if batch.energy_weight is None else batch.energy_weight.to(error)
    return _component_term(weight, error, "mse" if kind == "per_atom_mse" else "mae", factors)


def _guessed_energies(batch: Batch, statistics: Statistics) -> tuple[Tensor, Tensor]:
    """The mean of the training set, and its linear fit on the composition: [n_systems] each, eV."""
    per_element = torch.zeros(120, dtype=torch.float64, device=batch.numbers.device)
    per_element[list(statistics.elements)] = per_element.new_tensor(statistics.linear_reference)
    linear = per_element.new_zeros(batch.n_systems).index_add(0, batch.system_idx, per_element[batch.numbers])
    return torch.full_like(linear, statistics.mean_energy), linear
