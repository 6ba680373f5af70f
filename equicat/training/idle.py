"""How long processes that train together wait for the slowest of them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel


class IdleClock:
    """Measures, in each step, the time that this process waits where all meet: at the loss, and at the gradients.

    At the loss the wait is the time of the exchange. At the gradients it is the time from the moment when the last of
    them is ready to the end of the backward pass. Both hold on a processor, where a call returns when its work is done;
    a GPU is given work ahead, so there only the first one says something.
    """

    def __init__(self) -> None:
        self.waited, self.total = 0.0, 0.0
        """Seconds since the last row."""
        self._began = self._ready = 0.0

    def watch(self, model: Any) -> None:
        """Let data-parallel training tell when gradients are ready; anything else has nothing to wait for."""
        if isinstance(model, DistributedDataParallel):
            model.register_comm_hook(None, self._exchange)

    def _exchange(self, group: Any, bucket: GradBucket) -> Future[Tensor]:
        self._ready = time.perf_counter()
        return allreduce_hook(group, bucket)

    def begin(self) -> None:
        """A step begins."""
        self._began, self._ready = time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the block, this process does nothing but wait for the others."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def backward_ended(self) -> None:
        """The gradients of all processes are there."""
        if self._ready:
            self.waited += time.perf_counter() - self._ready

    def end(self) -> None:
        """A step ends."""
        self.total += time.perf_counter() - self._began

    def taken(self) -> tuple[float, float]:
        """Seconds waited, and of all steps, since the last time that somebody asked."""
        found = self.waited, self.total
        self.waited = self.total = 0.0
        return found
