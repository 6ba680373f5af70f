"""The model that training starts from: a new one, or that of another run, made to fit the configuration."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from jaxtyping import Float
from numpy import ndarray

from equicat.data.batches import batches
from equicat.data.datasets import AnyDataset, Subset
from equicat.data.fitted import (
    Statistics,
    element_counts,
    evenly_spread,
    fit_domain,
    fit_statistics,
    linear_reference,
    reference_energies,
)
from equicat.data.identity import system_numbers
from equicat.errors import InputError
from equicat.models import saved
from equicat.models.direct import DirectModel, RelaxedPrediction
from equicat.models.domain import ADSORBATE_TAG
from equicat.models.gradient import ComputeOptions
from equicat.models.heads import MLP_HEAD
from equicat.models.model import AtomisticModel, ModelInfo, check_energy_reference
from equicat.models.potential import Potential
from equicat.models.repulsion import EnergyTerms
from equicat.networks.catalogue import architecture
from equicat.networks.published import draw_as_published
from equicat.tasks.tasks import Task, outputs_of, resolved
from equicat.training.config import RunConfig, TrainConfig
from equicat.training.new_elements import with_new_elements
from equicat.training.normalization import NormalizationConfig, given_references, new_references

PREPARING_BATCHES = 16
"""Batches of training data to which the constants of an architecture are fitted (GemNet: scale factors)."""
REFERENCE_SAMPLE = 200
"""Training structures at which a model to fine-tune is compared with the new energies."""
REFERENCES_PER_ELEMENT = 10
"""Structures with each new element that are looked at beside these."""
OFFSET = 1.0
"""eV, root mean square per system: errors of a model to fine-tune that are worth a warning, if ..."""
OFFSET_SHARE = 0.1
"""... other reference energies would leave less than this share of them."""


def new_model(config: TrainConfig, task: Task, data: AnyDataset) -> tuple[Potential | DirectModel, TrainConfig]:
    """A new model with statistics of the data, and the configuration with what was used."""
    torch.manual_seed(config.run.seed)
    fitted = fit_statistics(data, config.model.cutoff, task.energy)
    outputs = outputs_of(config.task, config.loss)
    info = ModelInfo(
        task=config.task,
        network=config.model,
        output_mlp=config.output_mlp,
        output_nonlinearity=config.output_nonlinearity,
        dtype=config.run.dtype,
        energy_reference=data.info.energy_reference,
        statistics=fitted,
        outputs=outputs,
        energy_head=config.energy_head if "relaxed_energy" in outputs else MLP_HEAD,
        displacement_head=config.displacement_head if "displacements" in outputs else None,
        force_head=config.force_head,
        energy_atoms=config.energy_atoms,
        dataset_references=data.info.reference_energies,
        domain=fit_domain(data, config.model.cutoff, system_numbers(data)),
        terms=EnergyTerms(long_range=config.long_range),
    )
    norm = replace(config.normalization, references=config.normalization.references or "linear")
    linear, residual = fitted.linear_reference, fitted.energy_residual_rms
    if config.energy_atoms == "adsorbate":
        _check_adsorbates(data, task.energy)
        linear, residual = reference_energies(data, fitted.elements, task.energy, tag=ADSORBATE_TAG)
    scale = norm.scale or (fitted.forces_rms if config.task == "s2ef" else residual)
    displacement_scale = norm.displacement_scale or fitted.displacements_rms
    references = new_references(norm, fitted.elements, linear)
    model = saved.build(info, scale, displacement_scale, references, compute_options(config.run))
    if config.initialization == "published":
        draw_as_published(model)
    _prepare_network(model, data, config.run)
    return model, replace(config, model=model.config, normalization=norm)


def _check_adsorbates(data: AnyDataset, energy: str) -> None:
    """Make sure that energies of data can be sums over their adsorbates.

    Raises:
        InputError: if they are no adsorption energies, or no atom has the tag of an adsorbate.
    """
    if energy in data.fields and data.info.energy_reference != "adsorption":
        raise InputError(
            f"energy_atoms is adsorbate, which is for adsorption energies, but those of {data.path} are "
            f"{data.info.energy_reference!r}; leave it out"
        )
    if not (np.asarray(data.array("tags")) == ADSORBATE_TAG).any():
        raise InputError(
            f"energy_atoms is adsorbate, but no atom of {data.path} has tag {ADSORBATE_TAG}; set tags (0 below, "
            "1 surface, 2 adsorbate), or leave it out"
        )


def compute_options(options: RunConfig) -> ComputeOptions:
    """Options of derivatives for a model that is trained."""
    return ComputeOptions(recompute=options.recompute, cuda_graphs=options.cuda_graphs)


def _prepare_network(model: AtomisticModel, data: AnyDataset, options: RunConfig) -> None:
    """Fit what an architecture wants fitted before training (GemNet: scale factors) to batches of the training data."""
    prepare = architecture(model.config.name).prepare
    if prepare is not None:
        loader = batches(
            data, model.cutoff, options.batch_size, dtype=model.dtype, labels=(), shuffle_seed=options.seed
        )
        graphs = ((b.edge_vec(), b.edge_index, model.species(b)) for b in islice(loader, PREPARING_BATCHES))
        prepare(model.network, graphs)


# ---- fine-tuning ---------------------------------------------------------------------------------------------------


def fine_tuned_model(
    config: TrainConfig, task: Task, data: AnyDataset, run: str
) -> tuple[Potential | DirectModel, TrainConfig]:
    """The model of another run in the configured precision, and the configuration with what was used.

    Weights, scales and the normalisation of sums over neighbours belong together and stay; reference energies change
    if ``normalization.references`` asks for it, and those of new elements are fitted; statistics, of which trivial
    baselines are made, are those of the data.

    Raises:
        InputError: if the run holds another model than the configuration describes, or does not fit the data.
    """
    model = saved.load(run, compute=compute_options(config.run))
    check_same_model(config, model.info, run)
    check_energy_reference(model.info, data.info, data.path)
    new = [int(z) for z in data.elements if z not in model.elements]
    if new:
        model, said = with_new_elements(model, new, compute_options(config.run))
        print(f"{run}: {said}", file=sys.stderr, flush=True)
    info = model.info
    model = model.to(getattr(torch, config.run.dtype))
    fitted = fit_statistics(data, model.cutoff, task.energy)
    model.info = replace(
        info,
        task=config.task,
        dtype=config.run.dtype,
        statistics=_for_elements(fitted, info.statistics),
        dataset_references=data.info.reference_energies or info.dataset_references,
        domain=None if info.domain is None else info.domain | fit_domain(data, model.cutoff, system_numbers(data)),
    )
    norm = _own_scales(config.normalization, model, run)
    if set(info.outputs) & {"energy", "relaxed_energy"}:
        _set_references(norm, model, data, task.energy, run, new)
    if norm.references is None:
        energies = model.reference_energies.tolist()
        norm = replace(norm, references=dict(zip(info.element_symbols, energies, strict=True)))
    return model.requires_grad_(True).train(), replace(config, model=model.config, normalization=norm)


def check_knows(model: AtomisticModel, data: AnyDataset, run: str | Path) -> None:
    """Make sure that a run's model can be trained on data.

    Raises:
        InputError: if the data hold another kind of energy, or an element that the model does not know.
    """
    check_energy_reference(model.info, data.info, data.path)
    unknown = [chemical_symbols[z] for z in data.elements if z not in model.elements]
    if unknown:
        raise InputError(
            f"{data.path}: holds {', '.join(unknown)}, but {run} was trained without; it knows "
            f"{', '.join(model.info.element_symbols)}"
        )


def check_same_model(config: TrainConfig, info: ModelInfo, run: str | Path) -> None:
    """Make sure that a configuration describes the model that a run holds.

    Raises:
        InputError: naming the first hyperparameter that differs, with both values.
    """
    outputs = outputs_of(config.task, resolved(config.task, config.loss))
    ours: dict[str, Any] = {
        "output_mlp": config.output_mlp,
        "output_nonlinearity": config.output_nonlinearity,
        "outputs": outputs,
        "force_head": config.force_head,
        "energy_atoms": config.energy_atoms,
        "long_range": config.long_range,
    }
    if "relaxed_energy" in outputs:
        ours["energy_head"] = config.energy_head
    if "displacements" in outputs:
        ours["displacement_head"] = config.displacement_head
    theirs = {name: getattr(info, name) for name in ours} | asdict(info.network)
    for name, value in (ours | asdict(config.model)).items():
        fitted = name == "avg_num_neighbors" and value is None
        if not fitted and value != theirs[name]:
            where = name if name in ours else f"model.{name}"
            raise InputError(
                f"{where} is {value} in the configuration but {theirs[name]} in the checkpoint of {run}; "
                f"set it to {theirs[name]}, or train a new model in another directory"
            )


def _for_elements(fitted: Statistics, known: Statistics) -> Statistics:
    """Statistics of data for all elements that a model knows; what the data lack is taken from its earlier data."""
    energies = dict(zip(known.elements, known.linear_reference, strict=True))
    energies |= dict(zip(fitted.elements, fitted.linear_reference, strict=True))
    return replace(fitted, elements=known.elements, linear_reference=tuple(energies[z] for z in known.elements))


def _own_scales(norm: NormalizationConfig, model: Potential | DirectModel, run: str) -> NormalizationConfig:
    """The options with the scales of the model, which are part of what its weights mean.

    Raises:
        InputError: if another scale is asked for.
    """
    scale = model.scale.item()
    displacement_scale = model.displacement_scale.item() if isinstance(model, DirectModel) else None
    for name, wanted, value in (
        ("scale", norm.scale, scale),
        ("displacement_scale", norm.displacement_scale, displacement_scale),
    ):
        if wanted is not None and value is not None and not np.isclose(wanted, value, rtol=1e-6):
            raise InputError(
                f"normalization.{name} is {wanted}, but the weights of {run} were trained with {value:.6g}, and stay "
                "with it in fine-tuning; leave it out"
            )
    return replace(norm, scale=scale, displacement_scale=displacement_scale)


def _set_references(
    norm: NormalizationConfig,
    model: Potential | DirectModel,
    data: AnyDataset,
    label: str,
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
        for z, energy in given_references(norm.references, data.elements).items():
            if z in model.elements:
                references[model.elements.index(z)] = energy
    counts, errors = _energy_errors(model, data, label, new)
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


def _energy_errors(
    model: Potential | DirectModel, data: AnyDataset, label: str, new: Sequence[int]
) -> tuple[Float[ndarray, "n n_elements"], Float[ndarray, "n"]]:
    """Atoms of each element that the model knows, and label minus prediction (eV), of a sample of the data.

    The sample holds some structures with each ``new`` element.
    """
    dataset, indices = (data.dataset, data.indices) if isinstance(data, Subset) else (data, np.arange(len(data)))
    holds = element_counts(data, tuple(int(z) for z in data.elements))[:, np.isin(data.elements, list(new))] > 0
    rare = [np.flatnonzero(column)[:REFERENCES_PER_ELEMENT] for column in holds.T]
    chosen = np.unique(np.concatenate([evenly_spread(len(data), REFERENCE_SAMPLE), *rare]))
    sample = Subset(dataset, indices[chosen])
    counts, errors = [], []
    for batch in batches(sample, model.cutoff, batch_size=4, dtype=model.dtype, labels=(label,)):
        with torch.no_grad():
            found = model(batch, forces=False) if isinstance(model, Potential) else model(batch)
        energy = found.relaxed_energy if isinstance(found, RelaxedPrediction) else found.energy
        assert energy is not None
        errors.append(getattr(batch, label) - energy)
        table = energy.new_zeros(batch.n_systems, len(model.elements))
        counted = model.counted(batch) if isinstance(model, DirectModel) else None
        ones = table.new_ones(len(batch.numbers)) if counted is None else counted.to(table)
        counts.append(table.index_put((batch.system_idx, model.species(batch)), ones, accumulate=True))
    return torch.cat(counts).numpy(), torch.cat(errors).numpy()
