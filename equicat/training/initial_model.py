"""The model that training starts from: a new one, or another run's."""

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols

from equicat.data.batches import batches
from equicat.data.datasets import AnyDataset
from equicat.data.fitted import fit_statistics
from equicat.errors import InputError
from equicat.models import saved
from equicat.models.direct import DirectModel
from equicat.models.gradient import ComputeOptions
from equicat.models.model import AtomisticModel, ModelInfo, check_energy_reference
from equicat.models.potential import Potential
from equicat.networks.catalogue import architecture
from equicat.tasks.tasks import Task, outputs_of, resolved
from equicat.training.config import RunConfig, TrainConfig
from equicat.training.normalization import _references

PREPARING_BATCHES = 16
"""Of the training data, to which an architecture's constants are fitted."""


def _initial_model(config: TrainConfig, task: Task, data: AnyDataset) -> Potential | DirectModel:
    """A new model with statistics of the data, or the model of another run to start from."""
    torch.manual_seed(config.run.seed)
    compute = ComputeOptions(recompute=config.run.recompute)
    if config.run.init_from is not None:
        return _fine_tuned(config, data, config.run.init_from, compute)
    fitted = fit_statistics(data, config.model.cutoff, task.energy)  # type: ignore[arg-type]
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
        displacement_head=config.displacement_head if "displacements" in outputs else None,
        force_head=config.force_head,
        dataset_references=data.info.reference_energies,
    )
    norm = config.normalization
    scale = norm.scale or (fitted.forces_rms if config.task == "s2ef" else fitted.energy_residual_rms)
    displacement_scale = norm.displacement_scale or fitted.displacements_rms
    model = saved.build(info, scale, displacement_scale, _references(norm, fitted), compute)
    _prepare_network(model, data, config.run)
    return model


def _prepare_network(model: AtomisticModel, data: AnyDataset, options: RunConfig) -> None:
    """Fit what an architecture wants fitted before training (GemNet: scale factors) to batches of the training data."""
    prepare = architecture(model.config.name).prepare
    if prepare is not None and not options.resume:  # a checkpoint has them
        loader = batches(data, model.cutoff, options.batch_size, dtype=model.dtype, shuffle=True, seed=options.seed)
        graphs = ((b.edge_vec(), b.edge_index, model.species(b)) for b in islice(loader, PREPARING_BATCHES))
        prepare(model.network, graphs)


def _fine_tuned(config: TrainConfig, data: AnyDataset, run: str, compute: ComputeOptions) -> Potential | DirectModel:
    model = saved.load(run, compute=compute)
    check_same_model(config, model.info, run)
    check_energy_reference(model.info, data.info, data.path)
    unknown = [chemical_symbols[z] for z in data.elements if z not in model.elements]
    if unknown:
        raise InputError(
            f"{data.path}: holds {', '.join(unknown)}, but {run} was trained without; it knows "
            f"{', '.join(model.info.element_symbols)}"
        )
    return model.requires_grad_(True).train()


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
    }
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
