"""`equicat train`: from a configuration to a run directory. The loop is Lightning's."""

import logging
import math
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from ase.data import atomic_numbers
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar, WeightAveraging
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from equicat import runs, statistics
from equicat.batch import Batch
from equicat.config import NormalizationConfig, OptimizerConfig, RunConfig, TrainConfig
from equicat.errors import InputError, nearest
from equicat.files import replacing_file, write_json
from equicat.loader import AnyDataset, batches, training_data
from equicat.metrics import TASK_METRICS, MetricSums
from equicat.tasks import LABELS, s2ef_loss, s2ef_metrics

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
        factor = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)
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

    def __init__(self, run: Path, columns_from: float | None = None):
        self.run = run
        self.best = math.inf if columns_from is None else columns_from

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        module.started = time.monotonic() - self._seconds_before()

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

    def _seconds_before(self) -> float:
        """Training time of the sessions before this one, if the run is resumed."""
        path = self.run / "metrics.csv"
        lines = path.read_text().splitlines() if path.exists() else []
        return float(lines[-1].split(",")[2]) if len(lines) > 1 else 0.0


class MinuteLimit(Callback):
    """Stops training after ``minutes``; a validation closes the last epoch."""

    def __init__(self, minutes: float):
        self.minutes = minutes

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        assert isinstance(module, TrainingModule)
        if time.monotonic() - module.started > 60 * self.minutes:
            trainer.should_stop = True


@dataclass(frozen=True)
class TrainResult:
    """Where a finished run is, and its best validation loss."""

    run: Path
    best_val_loss: float
    seconds: float


def train(config: TrainConfig) -> TrainResult:
    """Train a model as configured and write its run directory.

    Raises:
        InputError: for bad configuration or data, before anything is written; or if the loss is not finite.
    """
    options = config.run
    run = Path(options.out)
    checkpoint = _checkpoint_to_resume(run, options)
    train_set, val_set = training_data(config.data, LABELS[config.task])
    pl.seed_everything(options.seed, verbose=False)
    potential = _initial_potential(config, train_set)
    _prepare_directory(run, options, config, potential)
    writer = RunWriter(run)
    dtype = getattr(torch, options.dtype)
    loaders = [
        batches(data, config.model.cutoff, size, dtype=dtype, shuffle=shuffle, num_workers=options.num_workers)
        for data, size, shuffle in (
            (train_set, options.batch_size, True),
            (val_set, options.val_batch_size or options.batch_size, False),
        )
    ]
    with _quiet_lightning():
        trainer = _trainer(config, run, writer)
        started = time.monotonic()
        trainer.fit(TrainingModule(potential, config), *loaders, ckpt_path=checkpoint, weights_only=False)
    if trainer.is_global_zero and trainer.interrupted:
        raise InputError(f"interrupted; go on with `--run.resume true` ({run})")
    return TrainResult(run, writer.best, time.monotonic() - started)


def _trainer(config: TrainConfig, run: Path, writer: RunWriter) -> pl.Trainer:
    options = config.run
    checkpoints = ModelCheckpoint(
        run / "checkpoints", "best", monitor="val_loss", save_last=True, enable_version_counter=False
    )
    callbacks: list[Callback] = [checkpoints, writer]
    if config.optimizer.ema_decay is not None:
        average = WeightAveraging(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(config.optimizer.ema_decay))
        callbacks.insert(0, average)
    if options.early_stopping is not None:
        callbacks.append(EarlyStopping("val_loss", patience=options.early_stopping))
    if options.max_minutes is not None:
        callbacks.append(MinuteLimit(options.max_minutes))
    if options.progress:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    return pl.Trainer(
        max_epochs=options.max_epochs,
        accelerator=options.accelerator,
        devices=options.devices if options.devices == "auto" else int(options.devices),
        gradient_clip_val=config.optimizer.gradient_clip,
        check_val_every_n_epoch=options.val_every,
        num_sanity_val_steps=0,
        inference_mode=False,  # forces are derivatives
        logger=_loggers(config, run),
        callbacks=callbacks,
        enable_progress_bar=options.progress,
        enable_model_summary=False,
        log_every_n_steps=10,
    )


def _loggers(config: TrainConfig, run: Path) -> list[Logger]:
    loggers: list[Logger] = []
    try:
        if config.run.tensorboard:
            loggers.append(TensorBoardLogger(run, name="tensorboard", version=""))
        if config.run.wandb:
            offline = "WANDB_API_KEY" not in os.environ and os.environ.get("WANDB_MODE") != "online"
            loggers.append(WandbLogger(name=run.name, save_dir=run, offline=offline, project="equicat"))
            loggers[-1].log_hyperparams(asdict(config))
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name or error} is not installed; run `pip install 'equicat[tracking]'`") from error
    return loggers


def _initial_potential(config: TrainConfig, data: AnyDataset) -> runs.TrainedPotential:
    """A new model with statistics of the data, or the model of another run to start from."""
    torch.manual_seed(config.run.seed)
    if config.run.init_from is not None:
        return _fine_tuned(config, data, config.run.init_from)
    fitted = statistics.fit(data, config.model.cutoff)  # type: ignore[arg-type]
    info = runs.ModelInfo(
        config.task,
        config.model,
        config.output_mlp,
        config.run.dtype,
        data.info.energy_reference,
        fitted,
        data.info.reference_energies,
    )
    references = _references(config.normalization, fitted)
    return runs.build(info, config.normalization.scale or fitted.forces_rms, references)


def _fine_tuned(config: TrainConfig, data: AnyDataset, run: str) -> runs.TrainedPotential:
    potential = runs.load(run)
    check_same_model(config, potential.info, run)
    if potential.info.energy_reference != data.info.energy_reference:
        raise InputError(
            f"{run} predicts {potential.info.energy_reference!r} energies, the data hold "
            f"{data.info.energy_reference!r} ones; the two cannot be mixed"
        )
    for structure in data:
        potential.species(Batch.from_structures([structure], 1e-3))
    return potential.requires_grad_(True)


def check_same_model(config: TrainConfig, info: runs.ModelInfo, run: str | Path) -> None:
    """Make sure that a configuration describes the model that a run holds.

    Raises:
        InputError: naming the first hyperparameter that differs, with both values.
    """
    ours, theirs = asdict(config.model) | {"output_mlp": config.output_mlp}, asdict(info.model)
    theirs |= {"output_mlp": info.output_mlp}
    for name, value in ours.items():
        fitted = name == "avg_num_neighbors" and value is None
        if not fitted and value != theirs[name]:
            where = name if name == "output_mlp" else f"model.{name}"
            raise InputError(
                f"{where} is {value} in the configuration but {theirs[name]} in the checkpoint of {run}; "
                f"set it to {theirs[name]}, or train a new model in another directory"
            )


def _references(config: NormalizationConfig, fitted: statistics.Statistics) -> tuple[float, ...]:
    if config.references == "none":
        return (0.0,) * len(fitted.elements)
    if config.references == "linear":
        return fitted.linear_reference
    assert isinstance(config.references, dict)
    by_number = {}
    for symbol, energy in config.references.items():
        if symbol not in atomic_numbers:
            raise InputError(
                f"normalization.references: no element {symbol!r}{nearest(symbol, atomic_numbers)}; "
                "note that YAML reads N and Y as they are but no, yes, on and off as booleans"
            )
        by_number[atomic_numbers[symbol]] = energy
    missing = [z for z in fitted.elements if z not in by_number]
    if missing:
        raise InputError(f"normalization.references: no energy for the elements with numbers {missing}; add them")
    return tuple(by_number[z] for z in fitted.elements)


def _checkpoint_to_resume(run: Path, options: RunConfig) -> Path | None:
    if options.resume:
        checkpoint = run / "checkpoints" / "last.ckpt"
        if not checkpoint.is_file():
            raise InputError(f"{run}: nothing to resume, {checkpoint} is missing")
        return checkpoint
    if run.exists() and any(run.iterdir()) and not options.overwrite:
        raise InputError(
            f"{run}: exists; choose another run.out, or give `--run.overwrite true` to replace it "
            "or `--run.resume true` to go on"
        )
    return None


def _prepare_directory(run: Path, options: RunConfig, config: TrainConfig, potential: runs.TrainedPotential) -> None:
    if options.resume:
        check_same_model(config, runs.load_info(run), run)
    elif run.exists() and not os.environ.get("LOCAL_RANK", "0") != "0":
        shutil.rmtree(run)
    run.mkdir(parents=True, exist_ok=True)
    with replacing_file(run / "config.yaml") as temporary:
        resolved = asdict(config)
        resolved["model"]["avg_num_neighbors"] = potential.config.avg_num_neighbors
        temporary.write_text(yaml.safe_dump(_plain(resolved), sort_keys=False), encoding="utf-8")
    with replacing_file(run / "environment.json") as temporary:
        write_json(temporary, runs.environment())


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without its banners and hints about workers; its errors still show."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
