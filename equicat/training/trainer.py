"""Lightning's trainer as a configuration asks for it: devices, callbacks, loggers; and without its chatter."""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from equicat.data.batches import ResumableLoader
from equicat.errors import InputError
from equicat.terminal.progress import is_watched
from equicat.training.average import WeightAverage
from equicat.training.callbacks import Lines, Patience, RunWriter
from equicat.training.checkpoints import CheckpointFiles
from equicat.training.config import RunConfig, TrainConfig
from equicat.training.edge_budget import EdgeBudget
from equicat.training.loggers import begin, make_loggers
from equicat.training.rhythm import Rhythm


def is_main_process() -> bool:
    """Whether this process writes files; with several devices, torchrun or SLURM only the first one does."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def make_trainer(config: TrainConfig, run: Path, writer: RunWriter, loaders: Sequence[ResumableLoader]) -> pl.Trainer:
    """The trainer of a run.

    Args:
        config: of the run.
        run: where loggers write now; their runs are named after ``config.run.out``.
        writer: writes the rest.
        loaders: of the training data first, then of each set of validation data.

    Raises:
        InputError: if a device or a package is not there.
    """
    options = config.run
    callbacks: list[Callback] = [writer]
    if config.optimizer.ema_decay is not None:
        callbacks.append(WeightAverage(config.optimizer.ema_decay))
    if options.early_stopping is not None:
        callbacks.append(Patience(options.early_stopping))
    if options.progress:
        callbacks.append(TQDMProgressBar(refresh_rate=10) if is_watched() else Lines())
    if options.edge_budget == "auto":
        callbacks.append(EdgeBudget(loaders))
    callbacks.append(Rhythm(writer, options, loaders[0]))
    devices, num_nodes = devices_and_nodes(options)
    try:
        trainer = pl.Trainer(
            default_root_dir=run,
            max_epochs=options.max_epochs,
            accelerator=options.accelerator,
            devices=devices,
            num_nodes=num_nodes,
            gradient_clip_val=config.optimizer.gradient_clip,
            accumulate_grad_batches=options.accumulate,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # ours repeats no structure
            inference_mode=False,  # forces are derivatives
            logger=make_loggers(config, run),
            callbacks=callbacks,
            plugins=[CheckpointFiles()],
            enable_checkpointing=False,  # the writer saves what we promise
            enable_progress_bar=options.progress and is_watched(),
            enable_model_summary=False,
            log_every_n_steps=10,
        )
    except (MisconfigurationException, ModuleNotFoundError, ValueError, RuntimeError) as error:
        raise InputError(f"run.accelerator {options.accelerator}, run.devices {options.devices}: {error}") from error
    if is_main_process():
        begin(trainer.loggers, config, run)
    return trainer


def devices_and_nodes(options: RunConfig) -> tuple[int | str, int]:
    """Devices of this machine, and machines: as torchrun or SLURM started processes, else as configured.

    Raises:
        InputError: if the configuration asks for another number of devices than there are processes.
    """
    started = started_processes()
    if started is None:
        return options.devices, 1
    here, num_nodes = started
    if options.devices not in ("auto", here):
        raise InputError(
            f"run.devices is {options.devices}, but {here} processes were started on this machine (torchrun, SLURM); "
            "leave it out"
        )
    return here, num_nodes


def started_processes() -> tuple[int, int] | None:
    """Processes on this machine and machines, if a launcher started this process among others."""
    env = os.environ
    if "LOCAL_RANK" in env and int(env.get("WORLD_SIZE", 1)) > 1:  # torchrun, or Lightning itself
        here = int(env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"]))
        return here, int(env["WORLD_SIZE"]) // here
    if SLURMEnvironment.detect():
        num_nodes = int(env.get("SLURM_NNODES", 1))
        return int(env["SLURM_NTASKS"]) // num_nodes, num_nodes
    return None


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Within the block, factors of float32 matrix products have this precision (PyTorch's names)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def flushed_to_zero() -> Iterator[None]:
    """Within the block, numbers below the smallest normal one count as 0 on a CPU, in this thread and those it starts.

    A product with such a number takes a processor a hundred times longer, and networks make more and more of them as
    they learn. Kernels in C++ do so by themselves (``FlushedToZero`` in ``threads.h``).
    """
    tiny = torch.tensor([1e-40])
    before = (tiny * 1).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Within the block, Lightning shows no banners and hints about workers; its errors still show."""
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
