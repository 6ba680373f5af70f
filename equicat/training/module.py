"""The loop's parts: what a training step is, and what a run directory gets after each epoch."""

import math
import time
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from equicat.data.batch import Batch
from equicat.errors import InputError
from equicat.models.direct import DirectModel
from equicat.models.potential import Potential
from equicat.tasks.metrics import MetricSums
from equicat.tasks.tasks import Task
from equicat.training.config import TrainConfig
from equicat.training.muon import Muon

COLUMNS = (
    "energy_mae",
    "energy_per_atom_mae",
    "forces_mae",
    "forces_rmse",
    "forces_cosine_similarity",
    "positions_mae",
    "positions_mae_adsorbate",
    "positions_average_distance_within_threshold",
)
"""Metrics written to metrics.csv for training and validation, those that the task has."""
SHOWN = ("energy_mae", "forces_mae", "positions_mae")
"""On the progress bar."""


class TrainingModule(pl.LightningModule):
    """Loss, metrics and optimiser around a model."""

    def __init__(self, model: Potential | DirectModel, task: Task, config: TrainConfig):
        super().__init__()
        self.model, self.task, self.config = model, task, config
        self.started = time.monotonic()
        self.sums = {stage: MetricSums(task.metric_names) for stage in ("train", "val")}
        self.losses: dict[str, list[Tensor]] = {"train": [], "val": []}
        self.row: dict[str, float] = {}

    def _step(self, batch: Batch, stage: str) -> Tensor:
        prediction = self.model(batch)
        loss = self.task.loss(prediction, batch, self.model, self.config.loss)
        n = torch.tensor(batch.n_systems, dtype=torch.float64, device=loss.device)
        self.losses[stage].append(torch.stack([loss.detach().double() * n, n]))
        self.sums[stage].add(self.task.metrics(prediction, batch))
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch.

        Raises:
            InputError: if it is not finite, before it can spoil the weights.
        """
        loss = self._step(batch, "train")
        if not torch.isfinite(loss):
            raise InputError(
                f"the training loss is {loss.item()} at epoch {self.current_epoch}, batch {batch_idx} (systems "
                f"{', '.join(batch.ids[:4])} …); lower optimizer.lr, or look for broken labels with `equicat data info`"
            )
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, "val")

    def _results(self, stage: str) -> dict[str, float]:
        """Pooled over batches and ranks."""
        sums = self.sums[stage]
        loss = torch.stack(self.losses[stage]).sum(0).cpu()
        state = torch.cat([sums.state.flatten().cpu(), loss])
        if self.trainer.world_size > 1:
            state = self.trainer.strategy.reduce(state.to(self.device), reduce_op="sum").cpu()
        sums.state = state[:-2].view_as(sums.state)
        values = {name: value for name, value in sums.compute().items() if name in COLUMNS}
        self.sums[stage], self.losses[stage] = MetricSums(sums.names), []
        return {f"{stage}_loss": float(state[-2] / state[-1])} | {f"{stage}_{k}": v for k, v in values.items()}

    def on_validation_epoch_end(self) -> None:
        results = self._results("val")
        self.row = results if not self.trainer.sanity_checking else {}
        for name, value in results.items():
            shown = name.removeprefix("val_") in ("loss", *SHOWN)
            self.log(name, value, prog_bar=shown)

    def finish_epoch(self) -> dict[str, float]:
        """Metrics of the epoch: training, and validation if there was one."""
        row, self.row = self._results("train") | self.row, {}
        for name, value in row.items():
            if name.startswith("train_"):
                self.log(name, value, prog_bar=name.removeprefix("train_") in SHOWN)
        return row

    def configure_optimizers(self) -> Any:
        options = self.config.optimizer
        parameters, decay = self.model.parameters(), options.weight_decay
        optimizer: torch.optim.Optimizer
        if options.name == "muon":
            optimizer = Muon(parameters, options.lr, options.matrix_lr, weight_decay=decay)
        else:
            optimizer = torch.optim.AdamW(
                parameters, lr=options.lr, weight_decay=decay, amsgrad=options.amsgrad, fused=True
            )
        if options.schedule == "plateau":
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=options.plateau_factor, patience=options.plateau_patience
            )
            return [optimizer], [{"scheduler": schedule, "monitor": "val_loss", "frequency": self.config.run.val_every}]
        factor = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._lr_factor(step))
        return [optimizer], [{"scheduler": factor, "interval": "step"}]

    def _lr_factor(self, step: int) -> float:
        options = self.config.optimizer
        share = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
        warmup = options.warmup_from + (1 - options.warmup_from) * share
        if options.schedule == "constant":
            return warmup
        if options.schedule == "milestones":
            return warmup * options.milestone_factor ** sum(step >= milestone for milestone in options.milestones)
        return warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self._progress(step))))

    def _progress(self, step: int) -> float:
        """Share of the run that is over: of its epochs or of its minutes, whichever is further."""
        trainer = self._trainer
        total = float(trainer.estimated_stepping_batches) if trainer is not None and step else math.inf
        minutes = self.config.run.max_minutes
        timed = (time.monotonic() - self.started) / 60 / minutes if minutes else 0.0
        return min(1.0, max(step / total, timed))
