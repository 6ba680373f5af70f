"""`equicat train`: from a configuration to a run directory. The loop is Lightning's."""

import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar, WeightAveraging
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.optim.swa_utils import get_ema_multi_avg_fn

from equicat.data.batches import batches, edge_costs
from equicat.data.noise import Corrupted
from equicat.data.training_data import training_data
from equicat.errors import InputError
from equicat.files import replace_json, replacing_file
from equicat.models import saved
from equicat.models.model import AtomisticModel
from equicat.run_directory import environment
from equicat.tasks.tasks import outputs_of, resolved, task_of
from equicat.training.callbacks import MinuteLimit, RunWriter
from equicat.training.config import RunConfig, TrainConfig
from equicat.training.initial_model import _initial_model, check_same_model
from equicat.training.module import TrainingModule


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
    config = replace(config, loss=resolved(config.task, config.loss))
    task = task_of(outputs_of(config.task, config.loss))
    labels = [*task.labels, *(["relaxed_positions"] if config.noise.share else [])]
    train_set, val_set = training_data(config.data, config.task, labels)
    pl.seed_everything(options.seed, verbose=False)
    if options.recompute and config.task != "s2ef":
        raise InputError(f"run.recompute is for energies and forces (task s2ef); leave it out for {config.task}")
    model = _initial_model(config, task, train_set)
    _prepare_directory(run, options, config, model)
    corrupted = Corrupted(train_set, config.noise) if config.noise.share else train_set
    writer = RunWriter(run)
    dtype = getattr(torch, options.dtype)
    train_loader, val_loader = (
        batches(
            data,
            config.model.cutoff,
            options.edge_budget or size,
            dtype=dtype,
            shuffle=shuffle,
            num_workers=options.num_workers,
            costs=edge_costs(clean, config.model.cutoff) if options.edge_budget else None,
            seed=options.seed,
        )
        for data, clean, size, shuffle in (
            (corrupted, train_set, options.batch_size, True),
            (val_set, val_set, options.val_batch_size or options.batch_size, False),
        )
    )
    with _quiet_lightning(), _matmul_precision(options.matmul_precision):
        trainer = _trainer(config, run, writer)
        started = time.monotonic()
        trainer.fit(
            TrainingModule(model, task, config), train_loader, val_loader, ckpt_path=checkpoint, weights_only=False
        )
    if trainer.is_global_zero and trainer.interrupted:
        raise InputError(f"interrupted; go on with `--run.resume true` ({run})")
    return TrainResult(run, writer.best, time.monotonic() - started)


@contextmanager
def _matmul_precision(name: str) -> Iterator[None]:
    """Of float32 products, as PyTorch calls it, within the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def is_main_process() -> bool:
    """Whether this process writes files; with several devices, torchrun or SLURM only the first one does."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


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
        use_distributed_sampler=False,  # ours repeats no structure
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


def _checkpoint_to_resume(run: Path, options: RunConfig) -> Path | None:
    if options.resume:
        checkpoint = run / "checkpoints" / "last.ckpt"
        if not checkpoint.is_file():
            raise InputError(f"{run}: nothing to resume, {checkpoint} is missing")
        return checkpoint
    if is_main_process() and run.exists() and any(run.iterdir()) and not options.overwrite:
        raise InputError(
            f"{run}: exists; choose another run.out, or give `--run.overwrite true` to replace it "
            "or `--run.resume true` to go on"
        )
    return None


def _prepare_directory(run: Path, options: RunConfig, config: TrainConfig, model: AtomisticModel) -> None:
    if options.resume:
        check_same_model(config, saved.load_info(run), run)
    if not is_main_process():
        return
    if run.exists() and not options.resume:
        shutil.rmtree(run)
    run.mkdir(parents=True, exist_ok=True)
    with replacing_file(run / "config.yaml") as temporary:
        values = asdict(config)
        values["model"] = asdict(model.config)
        temporary.write_text(yaml.safe_dump(_plain(values), sort_keys=False), encoding="utf-8")
    replace_json(run / "environment.json", environment())


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
