"""Pretraining: many structures with labels of a cheap calculator, and the training on them that comes first."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch

from equicat.data.datasets import AnyDataset, Subset
from equicat.data.fitted import evenly_spread
from equicat.data.readers import read, write
from equicat.data.structure import Structure
from equicat.data.training_data import DataConfig, training_data
from equicat.errors import InputError
from equicat.models.devices import n_gpus
from equicat.relaxation.held import free_directions
from equicat.run_directory import has_checkpoint
from equicat.sources.labelling import Label, LabelConfig, factory_of, labels
from equicat.tasks.tasks import outputs_of, resolved, task_of
from equicat.terminal.progress import progress_bar
from equicat.training.config import PretrainingConfig, TrainConfig
from equicat.training.optimizers import OptimizerConfig
from equicat.training.trainer import started_processes

MANY_EPOCHS = 1_000_000
"""Passes over the structures of a pretraining that steps or minutes will not reach."""
MOST_VALIDATED = 100
"""Structures of the pretraining that choose its model, at most; a twentieth otherwise."""


def pretraining_run(run: Path) -> Path:
    """Run directory of the pretraining that comes before a run; its structures are beside it."""
    return run.with_name(f"pretraining_{run.name}")


def structures_file(run: Path) -> Path:
    """The labelled structures of the pretraining that comes before a run."""
    return run.with_name(f"pretraining_{run.name}.extxyz")


def pretrains(config: TrainConfig) -> bool:
    """Whether a new run begins with a pretraining: a calculator is named, and no run to start from."""
    return config.pretraining.calculator is not None and config.run.init_from is None


def left_in_pretraining(config: TrainConfig) -> bool:
    """Whether a run was left before it had a checkpoint of its own, with the structures of its pretraining there."""
    run = Path(config.run.out)
    return pretrains(config) and structures_file(run).is_file() and not has_checkpoint(run)


def first_training(config: TrainConfig) -> TrainConfig:
    """Label the structures for a pretraining, unless an interrupted one left them, and say how to train on them.

    Energies and forces are multiplied by one factor, with which the forces come nearest to those of the data.

    Args:
        config: of the training that comes after, with a calculator in ``pretraining``.

    Raises:
        InputError: if there is no such calculator, its forces are none of the data's, or a pretraining is in the way.
    """
    run, options = Path(config.run.out), config.pretraining
    first, file = pretraining_run(run), structures_file(run)
    assert options.calculator is not None
    factory_of(options.calculator)
    _require_one_process(config)
    labelled = task_of(outputs_of(config.task, resolved(config.task, config.loss))).labels
    data, _ = training_data(config.data, config.task, labelled)
    goes_on = config.run.resume and file.is_file()
    if not goes_on:
        for path in (first, file):
            if path.exists() and not config.run.overwrite:
                raise InputError(
                    f"{path}: exists, where the pretraining would be; choose another run.out, or give "
                    "`--run.overwrite true` to replace it or `--run.resume true` to go on"
                )
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, _labelled(data, options.calculator, options, config.run.seed))
    resumes = goes_on and has_checkpoint(first)
    n_labelled = sum(1 for _ in read(file))  # the calculator may have failed for some
    return replace(
        config,
        data=DataConfig(
            train=(str(file),),
            n_val=max(1, min(n_labelled // 20, MOST_VALIDATED)),
            energy_reference=cast(Any, data.info.energy_reference),
        ),
        pretraining=PretrainingConfig(),
        normalization=replace(config.normalization, references=None),
        loss=replace(config.loss, stress_weight=0.0),
        optimizer=_faster(config.optimizer, options.rate_factor),
        run=replace(
            config.run,
            out=str(first),
            resume=resumes,
            overwrite=not resumes,  # there is none, or what a kill has left, or one that may be replaced
            max_steps=options.max_steps,
            max_minutes=options.max_minutes,
            max_epochs=MANY_EPOCHS,
            early_stopping=None,
            wandb_name=None,
        ),
    )


def second_training(config: TrainConfig) -> TrainConfig:
    """A training on the data, with the weights of the pretraining that came before it.

    Reference energies are shifted to those of the data, unless they are given; the scale is that of the pretraining.
    """
    first, norm = pretraining_run(Path(config.run.out)), config.normalization
    return replace(
        config,
        run=replace(
            config.run, init_from=str(first), resume=False, overwrite=config.run.overwrite or config.run.resume
        ),
        normalization=replace(norm, references=norm.references or "linear", scale=None),
    )


def _faster(optimizer: OptimizerConfig, factor: float) -> OptimizerConfig:
    """An optimiser with its rates times a factor."""
    if optimizer.name == "muon":
        optimizer = replace(optimizer, matrix_lr=optimizer.matrix_lr * factor)
    return replace(optimizer, lr=optimizer.lr * factor)


def _require_one_process(config: TrainConfig) -> None:
    """Make sure that no other process would pretrain the same model.

    Raises:
        InputError: if several would.
    """
    options = config.run
    gpus = 0 if options.accelerator == "cpu" else n_gpus()
    here, nodes = started_processes() or (max(1, gpus) if options.devices == "auto" else options.devices, 1)
    if here * nodes > 1:
        raise InputError(
            f"pretraining is done by one process, but {here * nodes} would train; pretrain with `--run.devices 1`, or "
            "leave the calculator out and start from a run with run.init_from"
        )


def _labelled(data: AnyDataset, calculator: str, config: PretrainingConfig, seed: int) -> Iterator[Structure]:
    """The structures with labels of the calculator, times the factor that fits its forces to those of the data.

    Raises:
        InputError: if it labels no structure of the data, or its forces have nothing to do with theirs.
    """
    sample = Subset.of(data, evenly_spread(len(data), config.n_structures))
    structures, started = displaced(sample, config, seed), time.monotonic()
    found = _labels(structures, calculator)
    own = [label for label in found[: len(sample)] if not label.error]
    if not own:
        raise InputError(f"pretraining: {calculator} labels no structure of the data: {found[0].error}")
    scale, correlation = _force_factor(sample, own)
    n_failed = sum(bool(label.error) for label in found)
    print(
        f"pretraining: {len(found) - n_failed} structures with labels of {calculator} in "
        f"{(time.monotonic() - started) / 60:.1f} min"
        + (f" ({n_failed} without)" if n_failed else "")
        + f"; its forces, times {scale:.3g}, correlate by {correlation:.3f} with those of the data",
        flush=True,
    )
    info = {"calculator": calculator, "energy_reference": data.info.energy_reference}
    for structure, label in zip(structures, found, strict=True):
        for frame in label.frames:
            energy, forces = scale * frame.energy, scale * frame.forces
            yield replace(structure, energy=energy, forces=forces, info={**structure.info, **info})


def displaced(data: AnyDataset, config: PretrainingConfig, seed: int) -> list[Structure]:
    """The structures of data without labels, then copies of them with displaced free atoms, as many as configured.

    Args:
        data: of no more structures than configured.
        config: how many, and how far atoms move.
        seed: of the displacements.
    """
    rng, found = np.random.default_rng(seed), list[Structure]()
    for k in range(config.n_structures):
        round_, place = divmod(k, len(data))
        structure = data[place].without_labels()
        positions = structure.positions
        if round_ > 0:
            moves = rng.uniform(0, config.displacement) * rng.normal(size=positions.shape)
            positions = positions + np.einsum("nij,nj->ni", free_directions(structure), moves)
        copy = replace(structure, positions=positions, sid=f"structure{place}", fid=round_)
        found.append(replace(copy, energy_weight=1.0, forces_weight=1.0))
    return found


def _labels(structures: Sequence[Structure], calculator: str) -> list[Label]:
    """Labels of structures, in their order, by as many processes as this one has threads."""
    found = dict[int, Label]()
    workers = max(1, min(torch.get_num_threads(), len(structures)))
    bar = progress_bar(total=len(structures), desc="labels to pretrain on", unit="structure")
    with TemporaryDirectory() as folder, bar:
        for label in labels(enumerate(structures), calculator, LabelConfig(), workers, Path(folder)):
            found[label.number] = label
            bar.update()
    return [found[k] for k in range(len(structures))]


def _force_factor(data: AnyDataset, found: Sequence[Label]) -> tuple[float, float]:
    """The factor with which a calculator's forces on free atoms come nearest to those of the data (least squares).

    Args:
        data: with forces.
        found: labels of its structures.

    Returns:
        The factor, and the correlation of the forces.

    Raises:
        InputError: if the factor is not positive.
    """
    ours, theirs = list[np.ndarray](), list[np.ndarray]()
    for label in found:
        structure = data[label.number]
        assert structure.forces is not None
        assert structure.fixed is not None
        ours.append(structure.forces[~structure.fixed].ravel())
        theirs.append(label.frames[0].forces[~structure.fixed].ravel())
    a, b = np.concatenate(ours), np.concatenate(theirs)
    scale, correlation = float(a @ b / (b @ b)), float(a @ b / np.sqrt((a @ a) * (b @ b)))
    if not scale > 0:
        raise InputError(
            f"pretraining: forces of this calculator do not point where those of the data do (correlation "
            f"{correlation:.2f}), so there is nothing to learn from it"
        )
    return scale, correlation
