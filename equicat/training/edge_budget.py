"""The edge budget ``auto``: batches of even size, and none that does not fit into memory."""

import ctypes
import gc
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Int
from lightning.pytorch.callbacks import Callback
from numpy import ndarray

from equicat.data.batches import ResumableLoader
from equicat.errors import InputError
from equicat.models.devices import free_memory, kilobytes
from equicat.tasks.tasks import total_loss
from equicat.training.callbacks import trained
from equicat.training.checkpoints import random_state, set_random_state
from equicat.training.module import TrainingModule

MEMORY_SHARE = 0.5
"""Share of the free memory that a step may take; the rest is for the optimiser, recorded graphs and fragments."""
PROBE_EDGES = 40_000
"""Edges of the batch whose step is measured, unless two structures, or a whole batch, set another limit."""


def even_budget(costs: Sequence[Int[ndarray, "_"]], batch_size: int) -> int:
    """The edge budget with which batches of training data hold ``batch_size`` structures on average.

    The largest structure of all sets is added, for :class:`~equicat.data.batches.BatchSampler` keeps that much free in
    each batch.

    Args:
        costs: edges of each structure, of the training data first, then of each set of validation data.
        batch_size: structures.
    """
    largest = max(int(of_set.max(initial=1)) for of_set in costs)
    return largest + max(largest, round(batch_size * costs[0].sum(dtype=np.int64).item() / len(costs[0])))


class EdgeBudget(Callback):
    """Measures the memory of a training step before the first one, and makes batches smaller if they would not fit.

    All processes agree on the budget, the smallest of those that they find. It is written to ``config.yaml`` as a
    number, with which a resumed run goes on.

    Args:
        loaders: of the training data first, then of each set of validation data; their budgets are even ones.
    """

    def __init__(self, loaders: Sequence[ResumableLoader]):
        self.loaders = loaders

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Set the budget of all batches.

        Raises:
            InputError: if two of the largest structures do not fit into memory together.
        """
        module = trained(module)
        wanted, fitting = self.loaders[0].sampler.limit, self._fitting(module, trainer.num_devices)
        if fitting is not None:
            found = torch.tensor(fitting, dtype=torch.float64, device=module.device)
            fitting = int(trainer.strategy.reduce(found, reduce_op="min"))
        budget = wanted if fitting is None else min(wanted, fitting)
        least = 2 * max(loader.sampler.largest for loader in self.loaders)
        if budget < least:
            raise InputError(
                f"run.edge_budget is auto: training steps of about {budget:,} edges fit into memory, but two "
                f"structures have up to {least:,}; use run.recompute, a smaller network or another device"
            )
        for loader in self.loaders:
            loader.sampler.limit = budget
        module.config = replace(module.config, run=replace(module.config.run, edge_budget=budget))
        if trainer.is_global_zero:
            print(_said(budget, wanted, fitting), file=sys.stderr, flush=True)

    def _fitting(self, module: TrainingModule, n_processes: int) -> int | None:
        """Edges whose training step fits into the memory that is free, shared with the other processes of this machine;
        None where memory cannot be measured (a processor, and no Linux)."""
        loader = self.loaders[0]
        costs, device = loader.sampler.costs, module.device
        assert costs is not None
        on_gpu = device.type == "cuda"
        if not (on_gpu or sys.platform == "linux"):
            return None
        largest = int(np.argmax(costs))
        n_copies = max(2, min(PROBE_EDGES, loader.sampler.limit) // int(costs[largest]))
        before = random_state()
        batch = loader.dataset[[largest] * n_copies].to(device)
        set_random_state(before)

        def step() -> None:
            terms, _ = module.objective.judged(module.model(batch, **module.task.extras), batch)
            weights = [p for p in module.model.parameters() if p.requires_grad]
            torch.autograd.grad(total_loss(terms, batch.named()), weights, allow_unused=True)

        try:
            step()  # compiles kernels, and fills tables
            used = peak_memory(step, device)
        except torch.OutOfMemoryError:
            return 0
        free = free_memory(device) / (1 if on_gpu else n_processes)
        return int(MEMORY_SHARE * free / max(used, 1) * n_copies * int(costs[largest]))


def _said(budget: int, wanted: int, fitting: int | None) -> str:
    if fitting is None:
        return f"batches hold up to {budget:,} edges; what fits into memory cannot be measured here"
    found = f"batches hold up to {budget:,} edges; training steps of about {fitting:,} fit into memory"
    short = f", fewer than run.batch_size asks for ({wanted:,}): run.accumulate makes steps of several batches"
    return found + (short if budget < wanted else "")


def peak_memory(function: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call takes at most, beyond those in use before it: on the GPU, or of this process (Linux)."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kilobytes("/proc/self/status", "VmRSS")
    function()
    return 1024 * (kilobytes("/proc/self/status", "VmHWM") - before)
