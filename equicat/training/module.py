"""Steps of training and validation, and the sums over an epoch."""

import math
import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from torch import Tensor

from equicat.data.batch import Batch
from equicat.errors import InputError
from equicat.models.direct import DirectModel
from equicat.models.potential import Potential
from equicat.tasks.tables import MetricSums, metrics_shown
from equicat.tasks.tasks import LossTerm, Task, total_loss, values_of
from equicat.training.config import TrainConfig
from equicat.training.optimizers import clip_gradient, make_optimizer, rate_factor, set_rates

LOGGED = tuple(metric.name for metric in metrics_shown("log"))
"""Metrics written to metrics.csv for training and validation, those that the task has."""
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
        self._sums = {stage: MetricSums(task.quantities) for stage in ("train", "val")}
        self._losses: dict[str, list[Float[Tensor, "n_terms 2"]]] = {"train": [], "val": []}
        """Sum and count of each term of the loss, of each batch."""
        self._weights: list[float] = []
        """Weight of each term of the loss."""
        self._row: dict[str, float] = {}

    def start_clock(self) -> None:
        """Count the time from now on, in addition to that of earlier sessions."""
        self._started = time.monotonic() - self.elapsed

    def seconds(self) -> float:
        """Time of training until now by the clock of this process, earlier sessions included."""
        return time.monotonic() - self._started

    def _terms(self, batch: Batch, stage: str) -> tuple[LossTerm, ...]:
        """The parts of the loss of this process's batch, which also count for the epoch."""
        prediction = self.task.predict(self.model, batch)
        terms = self.task.loss_terms(prediction, batch, self.model, self.config.loss)
        sums = torch.stack([term.sum.detach().double() for term in terms])
        self._weights = [term.weight for term in terms]
        self._losses[stage].append(torch.stack([sums, sums.new_tensor([term.count for term in terms])], dim=1))
        self._sums[stage].add(values_of(prediction, batch), self.task.target(batch), batch)
        return terms

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """This process's share of the loss of all processes' batches together.

        Sums are divided by the mean of all processes' counts; the mean over processes, which DDP takes of gradients, is
        then the sum of all sums over the sum of all counts.

        Raises:
            InputError: on all processes if the loss is not finite, before it can spoil the weights.
        """
        terms, where = self._terms(batch, "train"), batch.named()
        losses = self._losses["train"][-1]
        clock = losses.new_tensor([[self.seconds(), 1.0]])
        *parts, (self.elapsed, _) = self._reduced(torch.cat([losses, clock]), "mean")
        counts = [count for _, count in parts]
        shared = [LossTerm(term.weight, term.sum, count) for term, count in zip(terms, counts, strict=True)]
        everywhere = total_loss([LossTerm(w, *part) for w, part in zip(self._weights, parts, strict=True)], where)
        if not math.isfinite(everywhere):
            raise InputError(
                f"the training loss is {everywhere} at epoch {self.current_epoch}, batch {batch_idx} ({where}); lower "
                "optimizer.lr, or look for broken labels with `equicat data info`"
            )
        return total_loss(shared, where)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._terms(batch, "val")

    def _results(self, stage: str) -> dict[str, float]:
        """Loss and metrics of an epoch, pooled over batches and processes."""
        sums, losses = self._sums[stage], torch.stack(self._losses[stage]).sum(0)
        state = self._reduced(torch.cat([sums.state.to(losses), losses]), "sum")
        sums.state = sums.state.new_tensor(state[: len(sums.metrics)])
        terms = [LossTerm(w, *part) for w, part in zip(self._weights, state[len(sums.metrics) :], strict=True)]
        values = {name: value for name, value in sums.compute().items() if name in LOGGED}
        self._sums[stage], self._losses[stage] = MetricSums(sums.quantities), []
        loss = total_loss(terms, f"the {stage} data")
        return {f"{stage}_loss": loss} | {f"{stage}_{k}": v for k, v in values.items()}

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
