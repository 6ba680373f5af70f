"""Ensembles: models that differ by the seed of their training, and their mean as one model."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from equicat.errors import InputError
from equicat.models.direct import DirectModel, RelaxedPrediction
from equicat.models.model import AtomisticModel, Prediction
from equicat.models.potential import Potential

OnePrediction = TypeVar("OnePrediction", Prediction, RelaxedPrediction)


def mean_prediction(predicted: Sequence[OnePrediction]) -> OnePrediction:
    """The mean of what several models predict for one batch, quantity by quantity."""
    first = predicted[0]
    by_name = {part.name: [getattr(p, part.name) for p in predicted] for part in dataclasses.fields(first)}
    means: dict[str, Any] = {name: torch.stack(v).mean(0) for name, v in by_name.items() if v[0] is not None}
    return dataclasses.replace(first, **means)


class _Mean(AtomisticModel):
    """Predicts the mean; asked for anything else, such as its cutoff or its grades, it is the first of its models.

    Args:
        models: of one configuration, trained on the same data.

    Raises:
        InputError: if they differ in their cutoff, elements, kind of energy or outputs.
    """

    models: Any
    """The models, as PyTorch's list of modules."""

    def __init__(self, models: Sequence[AtomisticModel]):
        nn.Module.__init__(self)
        described = {(m.cutoff, m.elements, m.info.energy_reference, m.info.outputs) for m in models}
        if len(described) > 1:
            raise InputError("models of an ensemble have other cutoffs, elements or energies than the first of them")
        self.models, self.grade = nn.ModuleList(models), models[0].grade

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            models: Any = super().__getattr__("models")
            return getattr(models[0], name)

    @property
    def reference_energies(self) -> Float64[Tensor, "n_elements"]:
        """The mean of ε by element, eV, which goes with the mean of the energies of atoms."""
        return torch.stack([model.reference_energies for model in self.models]).mean(0)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """The mean of the predictions; see the ``forward`` of one model."""
        return mean_prediction([model(*arguments, **options) for model in self.models])


class MeanPotential(_Mean, Potential):
    """The mean of potentials: energies, and forces that are the derivative of their mean."""


class MeanDirectModel(_Mean, DirectModel):
    """The mean of direct models of relaxed energies and structures."""
