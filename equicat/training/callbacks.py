"""Callbacks of the training loop: one writes the run directory, another ends the training early."""

import sys
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from equicat.files import writing_to
from equicat.models import saved
from equicat.run_directory import (
    BEST,
    GRADE,
    LAST,
    NewRun,
    Row,
    append_metrics,
    column,
    write_config,
    write_environment,
    write_metrics,
)
from equicat.tasks.tables import metrics_of
from equicat.tasks.tasks import Task
from equicat.terminal.progress import SECONDS
from equicat.training.module import TrainingModule
from equicat.training.optimizers import n_without_better, rate_of
from equicat.training.origin import Origin


def trained(module: pl.LightningModule) -> TrainingModule:
    """The module that is trained, for callbacks, whose signature promises less."""
    assert isinstance(module, TrainingModule)
    return module


class RunWriter(Callback):
    """Writes the files of a run directory from the main process; checkpoints need all processes.

    It must be the first callback: averaged weights are in the model only until the callback that averages them hears
    that a validation is over.

    Args:
        directory: where the files go.
        origin: of the data; None in a process that writes nothing.
        rows: the epochs so far, if the run is resumed.
        message: said when training starts, with the learning rate.
    """

    def __init__(self, directory: NewRun, origin: Origin | None, rows: Sequence[Row] = (), message: str = ""):
        self.directory, self.origin, self.rows, self.message = directory, origin, list(rows), message
        self.best = min(column(rows, "val_loss"), default=float("inf"))
        """Lowest validation loss so far, earlier sessions included."""
        self._validated: dict[str, torch.Tensor] = {}
        """The weights that were validated last."""
        self._loops: dict[str, Any] | None = None
        """State of Lightning's loop after the last step, while the epoch is not over."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """From here on a run is under way: what it was before is replaced."""
        module = trained(module)
        module.start_clock()
        if trainer.is_global_zero:
            path = self.directory.path
            (path / GRADE).unlink(missing_ok=True)  # of the weights of before
            saved.save_info(path, module.model.info)
            write_config(path, asdict(module.config))
            write_environment(path)
            if self.origin is not None:
                self.origin.write(path)
            write_metrics(path, self.rows, header(module.task, module.stages))
            if self.message:
                rate = module.rate_factor() * module.config.optimizer.lr
                print(f"{self.message}, with learning rate {rate:.3g}", flush=True)

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            state = trained(module).model.state_dict()
            self._validated = {name: tensor.detach().clone() for name, tensor in state.items()}

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.is_last_batch:
            self.write(trainer, module)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_last_batch:  # else it was cut short, which the validation before has written
            self._loops = None
            trained(module).n_epochs = trainer.current_epoch + 1
            self.write(trainer, module)

    def hold(self, trainer: pl.Trainer) -> None:
        """Take the state of the loop after a step that does not end an epoch; what is saved next goes on from there."""
        self._loops = deepcopy(trainer.fit_loop.state_dict())

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches"] = 0
        if self._loops is not None:
            checkpoint["loops"]["fit_loop"] = self._loops
            checkpoint["batches"] = trainer.fit_loop.batch_idx + 1

    def save(self, trainer: pl.Trainer) -> None:
        """Write the last checkpoint."""
        trainer.save_checkpoint(self.directory.path / LAST)
        if trainer.is_global_zero:
            self.directory.keep()

    def write(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write a row, the model if it is the best yet, and the checkpoints; in that order a kill harms nothing.

        Raises:
            InputError: if the disk is full or the place cannot be written to.
        """
        module = trained(module)
        results = module.finish_row()
        row: dict[str, float] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row["time_s"] = round(module.seconds(), 2)
        row["lr"] = rate_of(trainer.optimizers[0])
        row |= results | {"skipped": module.health.n_skipped}
        path = self.directory.path
        if trainer.is_global_zero:
            # In full, for a resumed run compares its losses with those that it reads here.
            text = {k: f"{v:.6g}" if isinstance(v, float) and k != "val_loss" else str(v) for k, v in row.items()}
            with writing_to(path):
                append_metrics(path, text)
        if results.get("val_loss", float("inf")) < self.best:
            self.best = results["val_loss"]
            if trainer.is_global_zero:
                with writing_to(path):
                    saved.save(path, module.model, self._validated)
            trainer.save_checkpoint(path / BEST)
        self.save(trainer)
        if trainer.is_global_zero and self.best < float("inf"):
            self.directory.publish()


def header(task: Task, stages: Sequence[str]) -> list[str]:
    """Columns of metrics.csv."""
    names = [metric.name for metric in metrics_of(task.quantities) if metric.is_shown("log")]
    metrics = [f"{stage}_{name}" for stage in ("train", *stages) for name in ("loss", *names)]
    return ["epoch", "step", "time_s", "lr", *metrics, "idle", "skipped"]


class Lines(Callback):
    """Says how a training is going in lines of a file, at most one in so many seconds, where nobody could see a bar."""

    def __init__(self) -> None:
        self.said = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        self._say(trainer, trained(module))

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._say(trainer, trained(module))

    def _say(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        if not trainer.is_global_zero or time.monotonic() - self.said < SECONDS:
            return
        self.said = time.monotonic()
        values = ", ".join(f"{name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items())
        where = f"epoch {trainer.current_epoch}, step {trainer.global_step}, {module.seconds():.0f} s"
        print(f"{where}: {values}" if values else where, file=sys.stderr, flush=True)


class Patience(Callback):
    """Stops training after so many validations without a better val_loss, those before a resumption included."""

    def __init__(self, validations: int):
        self.validations = validations

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if n_without_better(trained(module).val_losses) >= self.validations:
            trainer.should_stop = True
