"""`equicat train`: from a configuration to a run directory. The loop is Lightning's."""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from equicat.data.batches import BatchReader, BatchSampler, ResumableLoader, batches, edge_costs
from equicat.data.datasets import AnyDataset, Joined, Subset, require_elements
from equicat.data.fitted import evenly_spread
from equicat.data.noise import Corrupted
from equicat.data.training_data import training_data
from equicat.errors import InputError
from equicat.models import saved
from equicat.models.devices import require_devices
from equicat.models.direct import DirectModel
from equicat.models.potential import Potential
from equicat.models.uncertainty import Grade
from equicat.run_directory import GRADE, WEIGHTS, NewRun, check_free, has_checkpoint, new_run
from equicat.tasks.tasks import Task, outputs_of, resolved, task_of
from equicat.training.callbacks import RunWriter
from equicat.training.config import RunConfig, TrainConfig
from equicat.training.edge_budget import even_budget
from equicat.training.initial_model import fine_tuned_model, new_model
from equicat.training.loggers import finish
from equicat.training.module import TrainingModule
from equicat.training.origin import Origin
from equicat.training.pretraining import first_training, left_in_pretraining, pretrains, second_training
from equicat.training.rates import freeze
from equicat.training.resume import (
    Resumption,
    check_same_data,
    data_summary,
    nothing_left,
    read_resumption,
    resumed_model,
)
from equicat.training.trainer import flushed_to_zero, is_main_process, make_trainer, matmul_precision, quiet_lightning

GRADE_SAMPLE = 2000
"""Training structures to whose atoms those of a prediction are compared."""


@dataclass(frozen=True)
class TrainResult:
    """Outcome of a training."""

    run: Path
    """Run directory."""
    best_val_loss: float
    """Validation loss of the model that is saved."""
    seconds: float
    """Length of this session; 0 if nothing was left to do."""


def members(config: TrainConfig) -> list[TrainConfig]:
    """The configurations of the models of an ensemble, or the one configuration if it asks for one model.

    When an ensemble is resumed, members that were not begun begin.
    """
    run, out = config.run, Path(config.run.out)
    if run.members == 1:
        return [config]
    seeds = range(run.seed, run.seed + run.members)
    runs = [replace(run, out=str(out / f"seed_{seed}"), seed=seed, members=1, members_at_once=1) for seed in seeds]
    found = [replace(config, run=run) for run in runs]
    begun = [has_checkpoint(Path(c.run.out)) or left_in_pretraining(c) for c in found]
    return [replace(c, run=replace(c.run, resume=run.resume and b)) for c, b in zip(found, begun, strict=True)]


@flushed_to_zero()  # before the first operation, for threads that PyTorch has started already do not know of it
def train(config: TrainConfig) -> TrainResult:
    """Train a model as configured and write its run directory.

    With ``run.overwrite`` the run that is there stays until the new one has its first model; with ``run.resume`` it
    stays as it is until training goes on.

    Raises:
        InputError: for bad configuration or data, before anything is written; or if the loss is not finite.
        KeyboardInterrupt: if the user interrupts the training.
    """
    run = Path(config.run.out)
    require_devices(config.run.accelerator, config.run.devices)
    left = config.run.resume and left_in_pretraining(config)
    earlier = read_resumption(run) if config.run.resume and not left else None
    if earlier is None and is_main_process():
        check_free(run, config.run.overwrite or left)
    if earlier is None and pretrains(config):
        train(first_training(config))
        config = second_training(config)
    start = _Start.of(replace(config, loss=resolved(config.task, config.loss)), earlier)
    config, options = start.config, start.config.run
    if earlier is not None and (reason := nothing_left(earlier, config)) is not None:
        if is_main_process():
            print(f"{run}: nothing to do, {reason}", flush=True)
            if (run / WEIGHTS).is_file() and not (run / GRADE).is_file():  # killed between its end and its grade
                write_grade(run, start.train_set, options.accelerator)
        return TrainResult(run, min(earlier.val_losses, default=math.inf), 0.0)
    module, origin = start.module(earlier), None
    loaders = _loaders(config, start.task.labels, start.train_set, tuple(start.held_out.values()))
    if is_main_process():
        origin = Origin.of(config, start.train_set, start.held_out["val"])
    started = time.monotonic()
    with quiet_lightning(), matmul_precision(options.matmul_precision), _directory(options) as directory:
        writer = RunWriter(directory, origin, [] if earlier is None else earlier.rows, start.message)
        trainer = make_trainer(config, directory.path, writer, loaders)
        checkpoint = None if earlier is None else earlier.path
        with _interrupts(trainer, directory, run):
            trainer.fit(module, loaders[0], loaders[1:], ckpt_path=checkpoint, weights_only=True)
        if math.isinf(writer.best):
            raise InputError(f"{run}: no validation loss was a number, so there is no model; lower optimizer.lr")
    seconds = time.monotonic() - started
    if is_main_process():
        write_grade(run, start.train_set, options.accelerator)
    return TrainResult(run, writer.best, seconds)


@dataclass(frozen=True, eq=False)
class _Start:
    """All that a training begins with."""

    config: TrainConfig
    """The configuration, with what was left to the data or an earlier run."""
    task: Task
    model: Potential | DirectModel
    train_set: AnyDataset
    held_out: dict[str, AnyDataset]
    """Validation data by the name of their columns; the first, ``val``, choose the model."""
    summaries: dict[str, dict[str, Any]]
    """Words on the data, for checkpoints."""
    message: str
    """Remark on a run that goes on."""

    @classmethod
    def of(cls, config: TrainConfig, earlier: Resumption | None) -> "_Start":
        """Open the data; make the model, or take that of the run that goes on or is fine-tuned."""
        task = task_of(outputs_of(config.task, config.loss))
        labels = [*task.labels, *(["relaxed_positions"] if config.noise.share else [])]
        train_set, val_set = training_data(config.data, config.task, labels)
        summaries = {"training": data_summary(train_set, task.energy), "validation": data_summary(val_set, task.energy)}
        seed_everything(config.run.seed, verbose=False)
        message = ""
        if earlier is not None:
            check_same_data(earlier, summaries)
            model, config, message = resumed_model(earlier, config, train_set)
        elif config.run.init_from is not None:
            model, config = fine_tuned_model(config, task, train_set, config.run.init_from)
        else:
            model, config = new_model(config, task, train_set)
        further = train_set.held_out if isinstance(train_set, Joined) else {}
        held_out = {"val": val_set, **{f"val_{name}": data for name, data in further.items()}}
        for data in held_out.values():
            require_elements(data, model.elements)
        return cls(config, task, model, train_set, held_out, summaries, message)

    def module(self, earlier: Resumption | None) -> TrainingModule:
        """The model with its loss and optimiser, at the point where the earlier run stopped, if there is one."""
        freeze(self.model, self.config.optimizer.rates)
        module = TrainingModule(self.model, self.task, self.config, self.summaries)
        module.stages = tuple(self.held_out)
        if earlier is not None:
            module.val_losses, module.elapsed = earlier.val_losses, earlier.seconds
        return module


def write_grade(run: Path, data: AnyDataset, accelerator: str) -> None:
    """Describe training data in the features of a run's saved model, by which predictions are graded.

    Args:
        run: run directory with a model.
        data: the training data; :data:`GRADE_SAMPLE` structures, evenly spread, are looked at.
        accelerator: that of the training; but for ``cpu``, a GPU computes if there is one.
    """
    model = saved.load(run, "cpu" if accelerator == "cpu" else "auto")
    sample = Subset.of(data, evenly_spread(len(data), GRADE_SAMPLE))
    loader = batches(sample, model.cutoff, batch_size=8, dtype=model.dtype, labels=())
    seen = (batch.to(model.scale.device) for batch in loader)
    Grade.fit(model, seen, len(model.elements)).save(run / GRADE)


@contextmanager
def _interrupts(trainer: Trainer, directory: NewRun, run: Path) -> Iterator[None]:
    """Say what an interrupt leaves behind, and make an end of the loggers, however the loop ends.

    Raises:
        KeyboardInterrupt: in the place of what Lightning makes of an interrupt.
    """
    try:
        yield
    except SystemExit as exit_:
        if not trainer.interrupted:
            raise
        kept = "go on with `--run.resume true`" if directory.is_kept else "there is no model yet, so nothing is kept"
        if is_main_process():
            print(f"{run}: interrupted; {kept}", file=sys.stderr, flush=True)
        raise KeyboardInterrupt from exit_
    finally:
        if is_main_process():
            finish(trainer.loggers, run)


def _directory(options: RunConfig) -> AbstractContextManager[NewRun]:
    """Where this process writes: the main one into a new directory, unless it goes on with a run."""
    run = Path(options.out)
    if is_main_process() and not options.resume:
        return new_run(run, options.overwrite)
    existing = NewRun(run, replaces=False)
    existing.keep()
    return nullcontext(existing)


def _loaders(
    config: TrainConfig, labels: tuple[str, ...], train_set: AnyDataset, val_sets: Sequence[AnyDataset]
) -> list[ResumableLoader]:
    """Batches with these labels for training and each validation, shared among the processes that train."""
    options, cutoff, dtype = config.run, config.model.cutoff, getattr(torch, config.run.dtype)
    sets, budget = [train_set, *val_sets], options.edge_budget
    costs = [edge_costs(data, cutoff) if budget else None for data in sets]
    if budget == "auto":
        budget = even_budget([edges for edges in costs if edges is not None], options.batch_size)
    n_structures = [options.batch_size, *[options.val_batch_size or options.batch_size] * len(val_sets)]
    shown = [Corrupted(train_set, config.noise) if config.noise.share else train_set, *val_sets]

    on_gpu = options.accelerator != "cpu" and torch.cuda.is_available()

    def loader(k: int) -> ResumableLoader:
        sampler = BatchSampler(len(sets[k]), budget or n_structures[k], costs[k], shuffle=k == 0, seed=options.seed)
        reads_ahead = on_gpu and not isinstance(shown[k], Corrupted)
        reader = BatchReader(shown[k], cutoff, dtype, labels)
        return ResumableLoader(reader, sampler, options.num_workers, reads_ahead)

    return [loader(k) for k in range(len(sets))]
