"""`equicat train`: from a configuration to a run directory. The loop is Lightning's."""

import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from ase.data import atomic_numbers, chemical_symbols
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar, WeightAveraging
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.optim.swa_utils import get_ema_multi_avg_fn

from equicat import runs, statistics
from equicat.config import NormalizationConfig, RunConfig, TrainConfig
from equicat.direct import DirectModel
from equicat.errors import InputError, nearest
from equicat.files import replace_json, replacing_file
from equicat.loader import AnyDataset, Corrupted, batches, training_data
from equicat.models.networks import architecture
from equicat.potential import AtomisticModel, Potential
from equicat.sampler import edge_costs
from equicat.tasks import Task, outputs_of, resolved, task_of
from equicat.training import MinuteLimit, RunWriter, TrainingModule

PREPARING_BATCHES = 16
"""Of the training data, to which an architecture's constants are fitted."""


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
    model = _initial_model(config, task, train_set)
    if options.recompute:
        if not isinstance(model, Potential):
            raise InputError(f"run.recompute is for energies and forces (task s2ef); leave it out for {config.task}")
        model.recompute = True
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


def _initial_model(config: TrainConfig, task: Task, data: AnyDataset) -> Potential | DirectModel:
    """A new model with statistics of the data, or the model of another run to start from."""
    torch.manual_seed(config.run.seed)
    if config.run.init_from is not None:
        return _fine_tuned(config, data, config.run.init_from)
    fitted = statistics.fit(data, config.model.cutoff, task.energy)  # type: ignore[arg-type]
    outputs = outputs_of(config.task, config.loss)
    info = runs.ModelInfo(
        config.task,
        config.model,
        config.output_mlp,
        config.run.dtype,
        data.info.energy_reference,
        fitted,
        outputs,
        config.displacement_head if "displacements" in outputs else None,
        config.force_head,
        data.info.reference_energies,
    )
    norm = config.normalization
    scale = norm.scale or (fitted.forces_rms if config.task == "s2ef" else fitted.energy_residual_rms)
    displacement_scale = norm.displacement_scale or fitted.displacements_rms
    model = runs.build(info, scale, displacement_scale, _references(norm, fitted))
    _prepare_network(model, data, config.run)
    return model


def _prepare_network(model: AtomisticModel, data: AnyDataset, options: RunConfig) -> None:
    """Fit what an architecture wants fitted before training (GemNet: scale factors) to batches of the training data."""
    prepare = architecture(model.config.name).prepare
    if prepare is not None and not options.resume:  # a checkpoint has them
        loader = batches(data, model.cutoff, options.batch_size, dtype=model.dtype, shuffle=True, seed=options.seed)
        graphs = ((b.edge_vec(), b.edge_index, model.species(b)) for b in islice(loader, PREPARING_BATCHES))
        prepare(model.model, graphs)


def _fine_tuned(config: TrainConfig, data: AnyDataset, run: str) -> Potential | DirectModel:
    model = runs.load(run)
    check_same_model(config, model.info, run)
    runs.check_energy_reference(model.info, data.info, data.path)
    unknown = [chemical_symbols[z] for z in data.elements if z not in model.elements]
    if unknown:
        raise InputError(
            f"{data.path}: holds {', '.join(unknown)}, but {run} was trained without; it knows "
            f"{', '.join(model.info.element_symbols)}"
        )
    return model.requires_grad_(True).train()


def check_same_model(config: TrainConfig, info: runs.ModelInfo, run: str | Path) -> None:
    """Make sure that a configuration describes the model that a run holds.

    Raises:
        InputError: naming the first hyperparameter that differs, with both values.
    """
    outputs = outputs_of(config.task, resolved(config.task, config.loss))
    ours: dict[str, Any] = {"output_mlp": config.output_mlp, "outputs": outputs, "force_head": config.force_head}
    if "displacements" in outputs:
        ours["displacement_head"] = config.displacement_head
    theirs = {name: getattr(info, name) for name in ours} | asdict(info.model)
    for name, value in (ours | asdict(config.model)).items():
        fitted = name == "avg_num_neighbors" and value is None
        if not fitted and value != theirs[name]:
            where = name if name in ours else f"model.{name}"
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
    if is_main_process() and run.exists() and any(run.iterdir()) and not options.overwrite:
        raise InputError(
            f"{run}: exists; choose another run.out, or give `--run.overwrite true` to replace it "
            "or `--run.resume true` to go on"
        )
    return None


def _prepare_directory(run: Path, options: RunConfig, config: TrainConfig, model: AtomisticModel) -> None:
    if options.resume:
        check_same_model(config, runs.load_info(run), run)
    if not is_main_process():
        return
    if run.exists() and not options.resume:
        shutil.rmtree(run)
    run.mkdir(parents=True, exist_ok=True)
    with replacing_file(run / "config.yaml") as temporary:
        values = asdict(config)
        values["model"] = asdict(model.config)
        temporary.write_text(yaml.safe_dump(_plain(values), sort_keys=False), encoding="utf-8")
    replace_json(run / "environment.json", runs.environment())


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
