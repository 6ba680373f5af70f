"""The model that training starts from: a new one, or that of another run, made to fit the configuration."""

import sys
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from equicat.data.batches import batches
from equicat.data.datasets import AnyDataset, Subset
from equicat.data.fitted import (
    Statistics,
    evenly_spread,
    fit_domain,
    fit_statistics,
    reference_energies,
)
from equicat.data.identity import system_numbers
from equicat.errors import InputError
from equicat.models import saved
from equicat.models.direct import DirectModel
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
from equicat.training.normalization import new_references
from equicat.training.refit import own_scales, refit

PREPARING_BATCHES = 16
"""Batches of training data to which the constants of an architecture are fitted (GemNet: scale factors)."""
LINEAR_SAMPLE = 5000
"""Training structures to which a linear model that has a share in energies is fitted."""
RIDGE = 0.01
"""Penalty of squared coefficients of that model (eV), beside squared errors (eV)."""


def new_model(config: TrainConfig, task: Task, data: AnyDataset) -> tuple[Potential | DirectModel, TrainConfig]:
    """A new model with statistics of the data, and the configuration with what was used."""
    torch.manual_seed(config.run.seed)
    fitted = fit_statistics(data, config.model.cutoff, task.energy)
    outputs = outputs_of(config.task, config.loss)
    if config.linear_share and "relaxed_energy" not in outputs:
        raise InputError("linear_share is a share in relaxed energies, which are not trained here; leave it out")
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
        linear_share=config.linear_share,
        dataset_references=data.info.reference_energies,
        domain=fit_domain(data, config.model.cutoff, system_numbers(data)),
        terms=EnergyTerms(long_range=config.long_range),
    )
    norm = replace(config.normalization, references=config.normalization.references or "linear")
    linear, residual = fitted.linear_reference, fitted.energy_residual_rms
    if config.energy_atoms == "adsorbate":
        _check_adsorbates(data, task.energy)
        linear, residual = reference_energies(data, fitted.elements, task.energy, tag=ADSORBATE_TAG)
    assert norm.scale != "fit", "the configuration refuses it"
    assert norm.displacement_scale != "fit", "the configuration refuses it"
    scale = norm.scale or (fitted.forces_rms if config.task == "s2ef" else residual)
    displacement_scale = norm.displacement_scale or fitted.displacements_rms
    references = new_references(norm, fitted.elements, linear)
    model = saved.build(info, scale, displacement_scale, references, compute_options(config.run))
    if config.initialization == "published":
        draw_as_published(model)
    _prepare_network(model, data, config.run)
    fit_local_linear(model, data, task.energy)
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


def fit_local_linear(model: Potential | DirectModel, data: AnyDataset, label: str) -> None:
    """Fit the linear model that has a share in energies, if there is one, to what it leaves of those of the data.

    The change is that of ridge regression, so coefficients of elements that the data lack stay. Least squares alone
    would leave open a constant that all α gain and all β lose.
    """
    if not isinstance(model, DirectModel) or model.local_linear is None:
        return
    sample = Subset.of(data, evenly_spread(len(data), LINEAR_SAMPLE))
    linear, descriptors, errors = model.local_linear, [], []
    for batch in batches(sample, model.cutoff, batch_size=16, dtype=model.dtype, labels=(label,)):
        adsorbate = model.counted(batch)
        assert adsorbate is not None
        found = linear.descriptors(batch, model.species(batch), adsorbate).flatten(1)
        error = getattr(batch, label) - found @ linear.coefficients.double().flatten()
        known = slice(None) if batch.with_energy is None else batch.with_energy
        descriptors.append(found[known])
        errors.append(error[known])
    x, y = torch.cat(descriptors), torch.cat(errors)
    change = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    linear.coefficients += change.view_as(linear.coefficients).to(linear.coefficients)


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

    Weights, scales and the normalisation of sums over neighbours belong together and stay; reference energies and
    scales change if ``normalization`` asks for it, and references of new elements are fitted; statistics, of which
    trivial baselines are made, are those of the data.

    Raises:
        InputError: if the run holds another model than the configuration describes, or does not fit the data.
    """
    model = saved.load_one(run, compute=compute_options(config.run))
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
    norm = own_scales(config.normalization, model, run)
    model.train()  # a linear model then has no share in what references and scales are fitted to
    refit(norm, model, data, task.energy, run, new)
    fit_local_linear(model, data, task.energy)
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
        "linear_share": config.linear_share,
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
