"""What a run directory gets after each epoch, and when training stops."""

import csv
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, WeightAveraging

from equicat.models import saved
from equicat.tasks.metrics import MetricSums
from equicat.tasks.tasks import Task
from equicat.training.module import COLUMNS, TrainingModule


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
            text = {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in row.items()}
            self._append(text, self._header(module.task))

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
            saved.save(self.run, module.model, source.model.state_dict())

    def _header(self, task: Task) -> list[str]:
        names = [name for name in COLUMNS if name in MetricSums(task.metric_names).compute()]
        metrics = [f"{stage}_{name}" for stage in ("train", "val") for name in ("loss", *names)]
        return ["epoch", "step", "time_s", "lr", *metrics]

    def _append(self, row: dict[str, str], header: list[str]) -> None:
        path = self.run / "metrics.csv"
        new = not path.exists()
        with path.open("a", encoding="utf-8") as file:
            if new:
                file.write(",".join(header) + "\n")
            file.write(",".join(row.get(name, "") for name in header) + "\n")

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
            trainer.check_val_every_n_epoch = 1  # the last epoch is validated, whichever it is
