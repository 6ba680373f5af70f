"""The loop's parts: what a training step is, and what a run directory gets after each epoch."""

import csv
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor

from equicat import runs
from equicat.batch import Batch
from equicat.config import TrainConfig
from equicat.errors import InputError
from equicat.metrics import TASK_METRICS, MetricSums
from equicat.tasks import s2ef_loss, s2ef_metrics

COLUMNS = ("energy_mae", "energy_per_atom_mae", "forces_mae", "forces_rmse", "forces_cosine_similarity")
"""Metrics written to metrics.csv for validation (and, where cheap, for training)."""


class TrainingModule(pl.LightningModule):
    """Loss, metrics and optimiser of S2EF around a potential."""

    def __init__(self, potential: runs.TrainedPotential, config: TrainConfig):
        super().__init__()
        self.potential, self.config = potential, config
        self.started = time.monotonic()
        self.sums = {stage: MetricSums(TASK_METRICS["s2ef"]) for stage in ("train", "val")}
        self.losses: dict[str, list[Tensor]] = {"train": [], "val": []}
        self.row: dict[str, float] = {}

    def _step(self, batch: Batch, stage: str) -> Tensor:
        prediction = self.potential(batch)
        loss = s2ef_loss(prediction, batch, self.potential.scale, self.config.loss)
        self.losses[stage].append(loss.detach().double() * batch.n_systems)
        self.sums[stage].add(s2ef_metrics(prediction, batch))
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
        sums, losses = self.sums[stage], self.losses[stage]
        state = torch.cat([sums.state.flatten().cpu(), torch.stack([torch.stack(losses).sum().cpu()])])
        if self.trainer.world_size > 1:
            state = self.trainer.strategy.reduce(state.to(self.device), reduce_op="sum").cpu()
        sums.state = state[:-1].view_as(sums.state)
        n_systems = sums.state[sums.names.index("energy_mae"), 1]
        values = {name: value for name, value in sums.compute().items() if name in COLUMNS}
        self.sums[stage], self.losses[stage] = MetricSums(sums.names), []
        return {f"{stage}_loss": float(state[-1] / n_systems)} | {f"{stage}_{k}": v for k, v in values.items()}

    def on_validation_epoch_end(self) -> None:
        results = self._results("val")
        self.row = results if not self.trainer.sanity_checking else {}
        for name, value in results.items():
            shown = name in ("val_loss", "val_energy_mae", "val_forces_mae")
            self.log(name, value, prog_bar=shown)

    def finish_epoch(self) -> dict[str, float]:
        """Metrics of the epoch: training, and validation if there was one."""
        row, self.row = self._results("train") | self.row, {}
        for name in ("train_loss", "train_energy_mae", "train_forces_mae"):
            self.log(name, row[name], prog_bar=name != "train_loss")
        return row

    def configure_optimizers(self) -> Any:
        options = self.config.optimizer
        optimizer = torch.optim.AdamW(
            self.potential.parameters(), lr=options.lr, weight_decay=options.weight_decay, fused=True
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
        warmup = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
        if options.schedule == "constant":
            return warmup
        return warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self._progress(step))))

    def _progress(self, step: int) -> float:
        """Share of the run that is over: of its epochs or of its minutes, whichever is further."""
        trainer = self._trainer
        total = float(trainer.estimated_stepping_batches) if trainer is not None and step else math.inf
        minutes = self.config.run.max_minutes
        timed = (time.monotonic() - self.started) / 60 / minutes if minutes else 0.0
        return min(1.0, max(step / total, timed))


class RunWriter(Callback):
    """Keeps metrics.csv and the model files of a run directory up to date, from the main process."""

    def __init__(self, run: Path):
        self.run = run
        self.best = min(self._logged("val_loss"), default=math.inf)  # of the sessions before this one, if resumed

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        module.started = time.monotonic() - max(self._logged("time_s"), default=0.0)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        row: dict[str, float] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row["time_s"] = round(time.monotonic() - module.started, 2)
        row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        row |= module.finish_epoch()
        if trainer.is_global_zero:
            self._append({k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in row.items()})

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write the model whenever it is the best yet, so that a run that is killed can be loaded."""
        assert isinstance(module, TrainingModule)
        loss = module.row.get("val_loss", math.nan)
        if trainer.is_global_zero and not trainer.sanity_checking and loss < self.best:
            self.best = loss
            averaging = next((c for c in trainer.callbacks if isinstance(c, WeightAveraging)), None)  # type: ignore[attr-defined]
            averaged = None if averaging is None else averaging._average_model
            source = module if averaged is None else averaged.module
            assert isinstance(source, TrainingModule)
            runs.save(self.run, module.potential, source.potential.state_dict())

    def _header(self) -> list[str]:
        metrics = [f"{stage}_{name}" for stage in ("train", "val") for name in ("loss", *COLUMNS)]
        return ["epoch", "step", "time_s", "lr", *metrics]

    def _append(self, row: dict[str, str]) -> None:
        path = self.run / "metrics.csv"
        new = not path.exists()
        with path.open("a", encoding="utf-8") as file:
            if new:
                file.write(",".join(self._header()) + "\n")
            file.write(",".join(row.get(name, "") for name in self._header()) + "\n")

    def _logged(self, column: str) -> list[float]:
        """What metrics.csv holds already."""
        path = self.run / "metrics.csv"
        if not path.exists():
            return []
        with path.open(encoding="utf-8") as file:
            return [float(row[column]) for row in csv.DictReader(file) if row[column]]


class MinuteLimit(Callback):
    """Stops training after ``minutes``; a validation closes the last epoch."""

    def __init__(self, minutes: float):
        self.minutes = minutes

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        assert isinstance(module, TrainingModule)
        if time.monotonic() - module.started > 60 * self.minutes:
            trainer.should_stop = True
