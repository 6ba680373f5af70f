"""Steps of training and validation, and the sums over an epoch."""

import time
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from math import inf, isfinite
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from equicat.data.batch import Batch
from equicat.models.direct import DirectModel
from equicat.models.potential import Potential
from equicat.tasks.metrics import Values
from equicat.tasks.tables import MetricSums, metrics_shown
from equicat.tasks.tasks import LossTerm, Task, loss_at, total_loss, values_of
from equicat.training.average import WeightAverage
from equicat.training.checkpoints import random_state, set_random_state
from equicat.training.config import TrainConfig
from equicat.training.health import Health, broken_structures, has_finite_gradient
from equicat.training.idle import IdleClock
from equicat.training.optimizers import clip_gradient, make_optimizer, rate_factor, set_rates
from equicat.training.recorded import Objective, RecordedSteps, RecordedUpdate, Step

HEADLINES = tuple(metric.name for metric in metrics_shown("headline"))
"""Metrics on the progress bar."""


class TrainingModule(pl.LightningModule):
    """Loss, metrics and optimiser around a model.

    A loss is a mean over systems or free atoms of all processes together, not a mean of the means that each process
    has: the same structures give the same loss and the same gradient on any number of processes.

    Args:
        model: what is trained.
        task: labels, loss and metrics.
        config: of the run.
        data: what checkpoints say of the data.
    """

    def __init__(
        self, model: Potential | DirectModel, task: Task, config: TrainConfig, data: Mapping[str, Mapping[str, Any]]
    ):
        super().__init__()
        self.model, self.task, self.config, self.data = model, task, config, data
        self.val_losses: list[float] = []
        """Loss of each validation so far, earlier sessions included."""
        self.elapsed = 0.0
        """Seconds of training up to the last step, earlier sessions included; all processes agree on it."""
        self.health = Health(config.run.max_skipped_steps)
        self.idle = IdleClock()
        self.is_told_to_end = False
        """Whether this process got a signal to end."""
        self.ends = False
        """Whether any process got one; all know it from the same step on."""
        self._place = ("", list[str]())
        """The last batch in words, and its structures."""
        self.n_epochs = 0
        """Finished epochs, earlier sessions included."""
        self._started = time.monotonic()
        early, late = (
            Objective(model, task, loss_at(config.loss, share), MetricSums(task.quantities, "log"))
            for share in (0.0, 1.0)
        )
        self.objective = early
        self.late_objective = early if early.loss == late.loss else late
        """The objective towards the end of the run, and of every validation."""
        self.recorded = RecordedSteps(self.objective)
        self.late_recorded = self.recorded if self.late_objective is early else RecordedSteps(late)
        self._is_recorded = self._is_update_recorded = False
        """Whether the step that is under way is recorded up to the gradient, and whether what follows is."""
        self._step: Step | None = None
        """The recorded step that is under way, between its gradient and the update of the weights."""
        self.stages: tuple[str, ...] = ("val",)
        """Beginnings of the names of columns, for each set of validation data; the first one chooses the model."""
        self._sums: dict[str, Float64[Tensor, "n_rows 2"]] = {}
        """Sum and count of each term of the loss and of each metric, of the batches so far in ``train`` and ``val``."""
        self._weights: dict[str, list[float]] = {}
        """Weight of each term of the loss in the last of these batches."""
        self._row: dict[str, float] = {}
        self._random_state: dict[str, Any] | None = None
        """State of the random generators that a checkpoint had, until training goes on with it."""

    def start_clock(self) -> None:
        """Count the time from now on, in addition to that of earlier sessions."""
        self._started = time.monotonic() - self.elapsed

    def seconds(self) -> float:
        """Time of training until now by the clock of this process, earlier sessions included."""
        return time.monotonic() - self._started

    @cached_property
    def _average(self) -> WeightAverage | None:
        """The average of the weights, while training."""
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]  # made by a part of it
        return next((found for found in callbacks if isinstance(found, WeightAverage)), None)

    @cached_property
    def _update(self) -> RecordedUpdate | None:
        """A graph that moves the weights of recorded steps, if there can be one."""
        optimizer, average = self.trainer.optimizers[0], self._average
        if self.config.run.accumulate > 1 or not RecordedUpdate.takes(optimizer):
            return None
        move = None if average is None else partial(average.move, self)
        return RecordedUpdate(optimizer, self.config.optimizer.gradient_clip, move)

    def _plan_recording(self, batch: Batch) -> None:
        """Decide what of the step on a batch is recorded."""
        options, average = self.config.run, self._average
        alone = self.trainer.world_size == 1 and not options.recompute
        self._is_recorded = options.cuda_graphs and alone and self.recorded.takes(batch)
        has_begun = average is None or average.has_begun
        self._is_update_recorded = self._is_recorded and has_begun and self._update is not None

    def _count(self, stage: str, rows: Float64[Tensor, "n_rows 2"], objective: Objective) -> None:
        """Add a batch to the sums of the next row."""
        self._sums[stage] = rows + self._sums[stage].to(rows) if stage in self._sums else rows.clone()
        self._weights[stage] = list(objective.weights)

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """This process's share of the loss of all processes' batches together.

        Sums are divided by the mean of all processes' counts; the mean over processes, which DDP takes of gradients, is
        then the sum of all sums over the sum of all counts. A batch whose loss is not finite counts nowhere.
        """
        is_late = self.progress() >= self.config.loss.late_from
        objective = self.late_objective if is_late else self.objective
        if self._is_recorded:
            return self._recorded_step(batch, batch_idx, objective, self.late_recorded if is_late else self.recorded)
        prediction = self.model(batch, **self.task.extras)
        terms, rows = objective.judged(prediction, batch)
        losses = rows[: len(terms)]
        others = losses.new_tensor([[self.seconds(), 1.0], [float(self.is_told_to_end), 1.0]])
        with self.idle.waiting():
            *parts, (self.elapsed, _), (share_told, _) = self._reduced(torch.cat([losses, others]), "mean")
        self.ends = self.ends or share_told > 0
        counts = [count for _, count in parts]
        shared = [LossTerm(term.weight, term.sum, count) for term, count in zip(terms, counts, strict=True)]
        found = values_of(prediction, batch)
        if isfinite(self._checked_loss(parts, batch, batch_idx, objective, found)):
            self._count("train", rows, objective)
        return total_loss(shared, batch.named())

    def _recorded_step(
        self, batch: Batch, batch_idx: int, objective: Objective, recorded: RecordedSteps
    ) -> Float[Tensor, ""]:
        """:meth:`training_step` of a single process as a CUDA graph."""
        step = recorded(batch)
        self.elapsed = self.seconds()
        loss = self._checked_loss(step.rows[: len(objective.weights)].tolist(), batch, batch_idx, objective)
        if isfinite(loss):
            self._count("train", step.rows, objective)
        if self._is_update_recorded:
            self._step = step
            return torch.tensor(loss)
        return step.loss(loss)

    def backward(self, loss: Float[Tensor, ""], *args: Any, **kwargs: Any) -> None:
        """The gradient of the loss, unless a recorded step has it already."""
        if self._step is None:
            super().backward(loss, *args, **kwargs)

    def _checked_loss(
        self, parts: Sequence[Sequence[float]], batch: Batch, batch_idx: int, objective: Objective, *found: Values
    ) -> float:
        """The loss from sum and count of its terms; one that is not finite makes the step one to skip.

        Args:
            parts: sum and count of each term.
            batch: of this process.
            batch_idx: its number in the epoch.
            objective: gives the weights.
            found: the predictions, if they are at hand, to tell which structures are broken.
        """
        where = batch.named()
        loss = total_loss([LossTerm(w, *part) for w, part in zip(objective.weights, parts, strict=True)], where)
        self._place = f"epoch {self.current_epoch}, batch {batch_idx} ({where})", list(batch.sources)
        broken = [] if isfinite(loss) else broken_structures(batch, self.task.target(batch), *found)
        self.health.see_loss(loss, self._place[0], broken)
        return float(loss)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        _, rows = self.late_objective.judged(self.model(batch, **self.task.extras), batch)
        self._count(self.stages[dataloader_idx], rows, self.late_objective)

    def _results(self, stage: str) -> dict[str, float]:
        """Loss and metrics since the last row, pooled over batches and processes; nothing if there was no batch."""
        if stage not in self._sums:
            return {}
        state, n = self._reduced(self._sums.pop(stage), "sum"), len(self._weights[stage])
        sums = MetricSums(self.task.quantities, "log")
        sums.state = sums.state.new_tensor(state[n:])
        terms = [LossTerm(w, *part) for w, part in zip(self._weights[stage], state[:n], strict=True)]
        loss = total_loss(terms, f"the {stage} data")
        return {f"{stage}_loss": loss} | {f"{stage}_{k}": v for k, v in sums.compute().items()}

    def _reduced(self, rows: Float[Tensor, "n 2"], how: str) -> list[list[float]]:
        """Sum or mean over all processes."""
        reduced = self.trainer.strategy.reduce(rows.to(self.device), reduce_op=how)
        assert isinstance(reduced, Tensor)
        return reduced.tolist()

    def on_validation_epoch_end(self) -> None:
        self._row = {name: value for stage in self.stages for name, value in self._results(stage).items()}
        self.val_losses.append(self._row["val_loss"])
        for name, value in self._row.items():
            shown = name.removeprefix("val_") in ("loss", *HEADLINES)
            self.log(name, value, prog_bar=shown)

    def finish_row(self) -> dict[str, float]:
        """Metrics since the last row: training, and validation if there was one."""
        row, self._row = self._results("train") | self._row, {}
        ((waited, total),) = self._reduced(torch.tensor([self.idle.taken()], dtype=torch.float64), "sum")
        row["idle"] = waited / total if total and self.trainer.world_size > 1 else 0.0
        for logger in self.loggers:
            logger.log_metrics({k: v for k, v in row.items() if k.startswith("train_")}, self.trainer.global_step)
        return row

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know: the clock, sums since the last row over all processes, random numbers."""
        checkpoint["data"] = dict(self.data)
        rows = self._sums.get("train")
        checkpoint["progress"] = {
            "epochs": self.n_epochs,
            "seconds": self.seconds(),
            "sums": None if rows is None else self._reduced(rows, "sum"),
            "weights": self._weights.get("train", []),
            "health": self.health.state_dict(),
            "random": random_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        progress = checkpoint.get("progress")
        if progress is None:  # of an earlier version, which saved finished epochs only
            self.n_epochs = int(checkpoint["epoch"]) + 1
            return
        self.n_epochs, self.elapsed = progress["epochs"], progress["seconds"]
        self._weights["train"], self._random_state = progress["weights"], progress["random"]
        self.health.load_state_dict(progress["health"])
        if progress["sums"] is not None:
            rows = torch.tensor(progress["sums"], dtype=torch.float64)
            self._sums["train"] = rows if self.trainer.is_global_zero else torch.zeros_like(rows)

    def on_train_start(self) -> None:
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None
        self.idle.watch(self.trainer.strategy.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.config.optimizer, self.model)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of the gradient, or remove the gradient of a step that is to be skipped: without one, an
        optimiser leaves weights as they are.

        After a recorded step a CUDA graph clips and moves the weights, and also leaves no gradient behind.

        Raises:
            InputError: if too many steps had a loss or gradient that was not finite.
        """
        step, self._step = self._step, None
        is_finite = has_finite_gradient(self.model.parameters()) if step is None else isfinite(step.norm)
        if self.health.skips(is_finite, *self._place):
            optimizer.zero_grad()
        elif step is not None:
            assert self._update is not None
            self._update(step)
            if self._average is not None:
                self._average.is_moved = True
        elif gradient_clip_val is not None:
            clip_gradient(optimizer, gradient_clip_val)

    def on_after_backward(self) -> None:
        self.idle.backward_ended()

    def on_train_batch_end(self, *args: Any) -> None:
        self.idle.end()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.idle.begin()
        self._plan_recording(batch)
        set_rates(self.trainer.optimizers[0], self.config.optimizer, self.rate_factor())

    def progress(self) -> float:
        """Share of the run that is over, while training: of its steps or of its minutes, whichever is further."""
        minutes = self.config.run.max_minutes
        timed = self.elapsed / 60 / minutes if minutes else 0.0
        n_steps = min(self.trainer.estimated_stepping_batches, self.config.run.max_steps or inf)
        return min(1.0, max(self.trainer.global_step / n_steps, timed))

    def rate_factor(self) -> float:
        """Factor of the schedule on the learning rates of the next step, while training."""
        return rate_factor(self.config.optimizer, self.trainer.global_step, self.progress(), self.val_losses)
