"""When a training validates, logs, saves and ends: after so many epochs, steps or minutes."""

import signal
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from equicat.data.batches import ResumableLoader
from equicat.training.callbacks import RunWriter, trained
from equicat.training.checkpoints import from_the_start_of_the_epoch
from equicat.training.config import RunConfig
from equicat.training.module import TrainingModule

NEVER = 2**62
"""Lightning validates every so many epochs: it is told this one, or 1 when a validation is due."""


def is_due(every: str | None, before: tuple[int, float], now: tuple[int, float]) -> bool:
    """Whether a multiple of ``500 steps`` or ``10 minutes`` lies between two moments, each a step and seconds.

    It depends on these moments alone, so a resumed run does everything when it would have done it anyway.
    """
    if every is None:
        return False
    number, unit = every.split()
    period, of = (float(number), 0) if unit.startswith("step") else (60 * float(number), 1)
    return now[of] // period > before[of] // period


class Rhythm(Callback):
    """Decides after each step what is due, on all processes alike.

    It must be the last callback: what it saves is the state after all others have seen the step.

    Args:
        writer: writes what is due.
        options: the intervals, and the ends of the run.
        loader: of the training data.
    """

    def __init__(self, writer: RunWriter, options: RunConfig, loader: ResumableLoader):
        self.writer, self.options, self.loader = writer, options, loader
        self._before = (0, 0.0)

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """With other batches than before, an epoch that was under way begins anew."""
        (state,) = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader") or (None,)
        if checkpoint.get("batches") and (state is None or state["plan"] != self.loader.state_dict()["plan"]):
            from_the_start_of_the_epoch(checkpoint)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        trainer.val_check_batch = 1
        trainer.check_val_every_n_epoch = NEVER
        self._before = (trainer.global_step, trained(module).elapsed)
        if trainer.world_size > 1:
            _listen(trained(module))

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        trainer.check_val_every_n_epoch = NEVER
        if trainer.fit_loop._should_accumulate():
            return  # gradients of half a step are in no checkpoint
        options, before = self.options, self._before
        now = self._before = (trainer.global_step, trained(module).elapsed)
        is_over = options.max_minutes is not None and now[1] > 60 * options.max_minutes
        is_over = is_over or (options.max_steps is not None and now[0] >= options.max_steps)
        trainer.should_stop = trainer.should_stop or is_over
        last, often = trainer.is_last_batch, options.val_every
        if isinstance(often, int):
            validates = last and (trainer.current_epoch + 1) % often == 0
        else:
            ends = last and trainer.current_epoch + 1 == options.max_epochs
            validates = ends or is_due(often, before, now)
        if validates or is_over:
            trainer.check_val_every_n_epoch = 1
        if last:
            return  # the end of the epoch is written
        terminated = trainer.received_sigterm or trained(module).ends
        logs = is_due(options.log_every, before, now)
        saves = terminated or is_due(options.checkpoint_every, before, now)
        if validates or is_over or logs or saves:
            self.writer.hold(trainer)
        if not (validates or is_over):  # else the row waits for the validation
            if logs:
                self.writer.write(trainer, module)
            elif saves:
                self.writer.save(trainer)
            self._end_if_told(trainer, module)

    def on_validation_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        """Let a validation finish that a signal to end comes into: a checkpoint of the step before it would lack it."""
        if trainer.received_sigterm:
            trainer._signal_connector.received_sigterm = False
            trained(module).ends = True

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.is_last_batch:
            self._end_if_told(trainer, module)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._end_if_told(trainer, module)

    def _end_if_told(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Let Lightning end all processes after this step, which is saved, if one of them got a signal to end."""
        if trained(module).ends:
            trainer._signal_connector.received_sigterm = True


def _listen(module: TrainingModule) -> None:
    """Keep a signal to end until all processes have heard of it.

    Lightning's own handler sends it to the other processes at once, in the middle of whatever they exchange.
    """

    def hear(*_: Any) -> None:
        module.is_told_to_end = True

    signal.signal(signal.SIGTERM, hear)
