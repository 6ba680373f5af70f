"""Steps of training and validation, and the sums over an epoch."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from equicat.data.batch import Batch
from equicat.errors import InputError
from equicat.models.direct import DirectModel
from equicat.models.potential import Potential
from equicat.tasks.tables import MetricSums, metrics_shown
from equicat.tasks.tasks import LossTerm, Task, total_loss
from equicat.training.config import TrainConfig
from equicat.training.optimizers import clip_gradient, make_optimizer, rate_factor, set_rates
from equicat.training.recorded import Objective, RecordedSteps

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
        self._started = time.monotonic()
        self.objective = Objective(model, task, config.loss, MetricSums(task.quantities, "log"))
        self.recorded = RecordedSteps(self.objective)
        self._sums: dict[str, Float64[Tensor, "n_rows 2"]] = {}
        """Sum and count of each term of the loss and of each metric, of the batches so far in ``train`` and ``val``."""
        self._row: dict[str, float] = {}

    def start_clock(self) -> None:
        """Count the time from now on, in addition to that of earlier sessions."""
        self._started = time.monotonic() - self.elapsed

    def seconds(self) -> float:
        """Time of training until now by the clock of this process, earlier sessions included."""
        return time.monotonic() - self._started

    def _is_recorded(self, batch: Batch) -> bool:
        options = self.config.run
        alone = self.trainer.world_size == 1 and not options.recompute
        return options.cuda_graphs and alone and self.recorded.takes(batch)

    def _count(self, rows: Float64[Tensor, "n_rows 2"], stage: str) -> None:
        """Add a batch to the sums of an epoch."""
        self._sums[stage] = rows + self._sums[stage] if stage in self._sums else rows.clone()

    def _terms(self, batch: Batch, stage: str) -> tuple[tuple[LossTerm, ...], Float64[Tensor, "n_terms 2"]]:
        """The parts of the loss of this process's batch, which also count for the epoch."""
        terms, rows = self.objective.judged(self.task.predict(self.model, batch), batch)
        self._count(rows, stage)
        return terms, rows[: len(terms)]

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """This process's share of the loss of all processes' batches together.

        Sums are divided by the mean of all processes' counts; the mean over processes, which DDP takes of gradients, is
        then the sum of all sums over the sum of all counts.

        Raises:
            InputError: on all processes if the loss is not finite, before it can spoil the weights.
        """
        if self._is_recorded(batch):
            return self._recorded_step(batch, batch_idx)
        terms, losses = self._terms(batch, "train")
        clock = losses.new_tensor([[self.seconds(), 1.0]])
        *parts, (self.elapsed, _) = self._reduced(torch.cat([losses, clock]), "mean")
        counts = [count for _, count in parts]
        shared = [LossTerm(term.weight, term.sum, count) for term, count in zip(terms, counts, strict=True)]
        self._checked_loss(parts, batch, batch_idx)
        return total_loss(shared, batch.named())

    def _recorded_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """:meth:`training_step` of a single process as a CUDA graph."""
        step = self.recorded(batch)
        self._count(step.rows, "train")
        parts = step.rows[: len(self.objective.weights)].tolist()
        self.elapsed = self.seconds()
        return step.loss(self._checked_loss(parts, batch, batch_idx))

    def _checked_loss(self, parts: Sequence[Sequence[float]], batch: Batch, batch_idx: int) -> float:
        """The loss from sum and count of its terms.

        Raises:
            InputError: if it is not finite.
        """
        where = batch.named()
        loss = total_loss([LossTerm(w, *part) for w, part in zip(self.objective.weights, parts, strict=True)], where)
        if not math.isfinite(loss):
            raise InputError(
                f"the training loss is {loss} at epoch {self.current_epoch}, batch {batch_idx} ({where}); lower "
                "optimizer.lr, or look for broken labels with `equicat data info`"
            )
        return float(loss)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._terms(batch, "val")

    def _results(self, stage: str) -> dict[str, float]:
        """Loss and metrics of an epoch, pooled over batches and processes."""
        state, n = self._reduced(self._sums.pop(stage), "sum"), len(self.objective.weights)
        sums = MetricSums(self.task.quantities, "log")
        sums.state = sums.state.new_tensor(state[n:])
        terms = [LossTerm(w, *part) for w, part in zip(self.objective.weights, state[:n], strict=True)]
        loss = total_loss(terms, f"the {stage} data")
        return {f"{stage}_loss": loss} | {f"{stage}_{k}": v for k, v in sums.compute().items()}

    def _reduced(self, rows: Float[Tensor, "n 2"], how: str) -> list[list[float]]:
        """Sum or mean over all processes."""
        reduced = self.trainer.strategy.reduce(rows.to(self.device), reduce_op=how)
        assert isinstance(reduced, Tensor)
        return reduced.tolist()

    def on_validation_epoch_end(self) -> None:
        self._row = self._results("val")
        self.val_losses.append(self._row["val_loss"])
        for name, value in self._row.items():
            shown = name.removeprefix("val_") in ("loss", *HEADLINES)
            self.log(name, value, prog_bar=shown)

    def finish_epoch(self) -> dict[str, float]:
        """Metrics of the epoch: training, and validation if there was one."""
        row, self._row = self._results("train") | self._row, {}
        for name, value in row.items():
            if name.startswith("train_"):
                self.log(name, value, prog_bar=name.removeprefix("train_") in HEADLINES)
        return row

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["data"] = dict(self.data)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.config.optimizer, self.model)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of the gradient; the published parametrisation has another norm."""
        if gradient_clip_val is not None and self.config.optimizer.parametrization == "published":
            clip_gradient(optimizer, gradient_clip_val)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        set_rates(self.trainer.optimizers[0], self.config.optimizer, self.rate_factor())

    def rate_factor(self) -> float:
        """Factor of the schedule on the learning rates of the next step, while training."""
        step, minutes = self.trainer.global_step, self.config.run.max_minutes
        timed = self.elapsed / 60 / minutes if minutes else 0.0
        # The share of the run that is over: of its epochs or of its minutes, whichever is further.
        progress = min(1.0, max(step / self.trainer.estimated_stepping_batches, timed))
        return rate_factor(self.config.optimizer, step, progress, self.val_losses)
