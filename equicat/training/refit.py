"""Reference energies and scales of a model to fine-tune: those that it has, or others that fit the new data."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from equicat.data.batches import batches
from equicat.data.datasets import AnyDataset, Subset
from equicat.data.fitted import element_counts, evenly_spread, linear_reference
from equicat.errors import InputError
from equicat.models.direct import DirectModel, RelaxedPrediction
from equicat.models.potential import Potential
from equicat.tasks.tasks import LABEL_OF
from equicat.training.normalization import NormalizationConfig, given_references

REFERENCE_SAMPLE = 200
"""Training structures at which a model to fine-tune is compared with the new labels."""
REFERENCES_PER_ELEMENT = 10
"""Structures with each new element that are looked at beside these."""
OFFSET = 1.0
"""eV, root mean square per system: errors of a model to fine-tune that are worth a warning, if ..."""
OFFSET_SHARE = 0.1
"""... other reference energies would leave less than this share of them."""


def refit(
    norm: NormalizationConfig,
    model: Potential | DirectModel,
    data: AnyDataset,
    energy: str,
    run: str,
    new: Sequence[int],
) -> None:
    """Give a model the scales and reference energies that are asked for; warn if the references do not fit the data.

    Args:
        norm: ``fit`` for a scale multiplies it by the factor for which what the network contributes is closest to the
            new labels (least squares).
        model: is changed.
        data: the new training data.
        energy: the label of their energies.
        run: where the model comes from, for messages.
        new: atomic numbers that it did not know before.

    Raises:
        InputError: if a scale is to be fitted that the model has no use for.
    """
    has_energies = bool(set(model.info.outputs) & {"energy", "relaxed_energy"})
    sample = _sample(data, new)
    if norm.scale == "fit":
        if not has_energies:
            raise InputError(f"normalization.scale is fit, but {run} predicts no energies; leave it out")
        model.scale *= _scale_factor(model, sample, energy, run, with_references=norm.references == "linear")
    if norm.displacement_scale == "fit":
        if not isinstance(model, DirectModel) or "displacements" not in model.info.outputs:
            raise InputError(
                f"normalization.displacement_scale is fit, but {run} predicts no displacements; leave it out"
            )
        found, wanted = _vectors(model, sample, "displacements")
        model.displacement_scale *= _factor(found[:, None], wanted, "displacement_scale", run)
    if has_energies:
        _set_references(norm, model, data, sample, energy, run, new)


def own_scales(norm: NormalizationConfig, model: Potential | DirectModel, run: str) -> NormalizationConfig:
    """The options with the scales of the model, which are part of what its weights mean; ``fit`` stays.

    Raises:
        InputError: if another number is asked for.
    """
    scale = model.scale.item()
    displacement_scale = model.displacement_scale.item() if isinstance(model, DirectModel) else None
    settled: dict[str, Any] = {}
    for name, wanted, value in (
        ("scale", norm.scale, scale),
        ("displacement_scale", norm.displacement_scale, displacement_scale),
    ):
        if isinstance(wanted, float) and value is not None and not np.isclose(wanted, value, rtol=1e-6):
            raise InputError(
                f"normalization.{name} is {wanted}, but the weights of {run} were trained with {value:.6g}; leave it "
                "out, or give fit for one that fits the new data"
            )
        settled[name] = wanted if wanted == "fit" else value
    return replace(norm, **settled)


# ---- scales --------------------------------------------------------------------------------------------------------


def _scale_factor(
    model: Potential | DirectModel, sample: Subset, energy: str, run: str, *, with_references: bool
) -> float:
    """The factor on the scale for which forces fit best, or where there are none, energies.

    Args:
        model: stays as it is.
        sample: of the new data.
        energy: the label of their energies.
        run: where the model comes from.
        with_references: energies are fitted together with shifts of the references.
    """
    scale = model.scale.clone()
    found, wanted, counts = _forces_or_energies(model, sample, energy)
    model.scale.zero_()  # leaves references, repulsion and the like
    rest, _, _ = _forces_or_energies(model, sample, energy)
    model.scale.copy_(scale)
    columns = np.column_stack([found - rest, counts]) if with_references else (found - rest)[:, None]
    return _factor(columns, wanted - rest, "scale", run)


def _factor(columns: Float[ndarray, "n k"], wanted: Float[ndarray, "n"], name: str, run: str) -> float:
    """Coefficient of the first of some columns in the least-squares fit of what is wanted.

    One that is not positive says that the model knows nothing of the new labels; a scale then stays.
    """
    known = np.isfinite(wanted)
    factor = float(linear_reference(columns[known], wanted[known])[0])
    if factor > 0:
        return factor
    said = f"warning: normalization.{name} stays as it is, for {run} and the new labels have nothing in common"
    print(said, file=sys.stderr, flush=True)
    return 1.0


# ---- reference energies --------------------------------------------------------------------------------------------


def _set_references(
    norm: NormalizationConfig,
    model: Potential | DirectModel,
    data: AnyDataset,
    sample: Subset,
    energy: str,
    run: str,
    new: Sequence[int],
) -> None:
    """Give the model the reference energies that are asked for; warn if they do not fit the data.

    Those of new elements are fitted to what the model leaves of the energies, unless all are given or none is wanted.
    """
    references = model.reference_energies  # a view: what is written into it, the model has
    if norm.references == "none":
        references.zero_()
    elif isinstance(norm.references, dict):
        for z, value in given_references(norm.references, data.elements).items():
            if z in model.elements:
                references[model.elements.index(z)] = value
    found, wanted, counts = _energies(model, sample, energy)
    errors, counts = (wanted - found)[np.isfinite(wanted)], counts[np.isfinite(wanted)]
    shift = linear_reference(counts, errors)
    if norm.references == "linear":
        references += torch.from_numpy(shift)
        return
    if new and norm.references is None:
        columns = [model.elements.index(z) for z in new]
        fitted = linear_reference(counts[:, columns], errors)
        references[columns] = torch.from_numpy(fitted)
        errors = errors - counts[:, columns] @ fitted
        shift = linear_reference(counts, errors)
    now, then = (float(np.sqrt(np.mean(np.square(e)))) for e in (errors, errors - counts @ shift))
    if now > OFFSET and then < OFFSET_SHARE * now:
        per_atom = float(np.mean(np.abs(errors) / counts.sum(1)))
        print(
            f"warning: energies of {data.path} are {per_atom:.3g} eV an atom away from those of {run}, which other "
            "reference energies would mend; if they come from another code or other pseudopotentials, give "
            "`--normalization.references linear` to shift those of the run",
            file=sys.stderr,
            flush=True,
        )


# ---- predictions and labels of a sample ----------------------------------------------------------------------------

Compared = tuple[Float[ndarray, "n"], Float[ndarray, "n"], Float[ndarray, "n n_elements"]]
"""Predictions; labels; and atoms of each element that the model knows (no columns beside forces)."""


def _sample(data: AnyDataset, new: Sequence[int]) -> Subset:
    """Structures that are evenly spread over the data, and some with each new element."""
    holds = element_counts(data, tuple(int(z) for z in data.elements))[:, np.isin(data.elements, list(new))] > 0
    rare = [np.flatnonzero(column)[:REFERENCES_PER_ELEMENT] for column in holds.T]
    return Subset.of(data, np.unique(np.concatenate([evenly_spread(len(data), REFERENCE_SAMPLE), *rare])))


def _forces_or_energies(model: Potential | DirectModel, sample: Subset, energy: str) -> Compared:
    if isinstance(model, Potential):
        found, wanted = _vectors(model, sample, "forces")
        return found, wanted, np.zeros((len(found), 0))
    return _energies(model, sample, energy)


def _vectors(
    model: Potential | DirectModel, sample: Subset, name: str
) -> tuple[Float[ndarray, "n"], Float[ndarray, "n"]]:
    """Components of the predicted ``forces`` (eV/Å) or ``displacements`` (Å) of free atoms, and of the labels."""
    parts = []
    label = LABEL_OF[name]
    for batch in batches(sample, model.cutoff, batch_size=4, dtype=model.dtype, labels=(label,)):
        with torch.no_grad():
            found = getattr(model(batch), name)
        counted = batch.with_forces if name == "forces" else ~batch.fixed
        parts.append(torch.stack([found, getattr(batch, name)])[:, counted].reshape(2, -1))
    found, wanted = torch.cat(parts, dim=1).double().numpy()
    return found, wanted


def _energies(model: Potential | DirectModel, sample: Subset, label: str) -> Compared:
    """Energies (eV), NaN for labels that do not count, and the atoms over which they are summed."""
    predicted, wanted, counts = [], [], []
    for batch in batches(sample, model.cutoff, batch_size=4, dtype=model.dtype, labels=(label,)):
        with torch.no_grad():
            found = model(batch, forces=False) if isinstance(model, Potential) else model(batch)
        energy = found.relaxed_energy if isinstance(found, RelaxedPrediction) else found.energy
        assert energy is not None
        predicted.append(energy)
        known = torch.ones_like(energy, dtype=torch.bool) if batch.with_energy is None else batch.with_energy
        wanted.append(getattr(batch, label).masked_fill(~known, torch.nan))
        table = energy.new_zeros(batch.n_systems, len(model.elements))
        counted = model.counted(batch) if isinstance(model, DirectModel) else None
        ones = table.new_ones(len(batch.numbers)) if counted is None else counted.to(table)
        counts.append(table.index_put((batch.system_idx, model.species(batch)), ones, accumulate=True))
    return torch.cat(predicted).numpy(), torch.cat(wanted).numpy(), torch.cat(counts).numpy()
