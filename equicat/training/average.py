"""The exponential moving average of the weights."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage(WeightAveraging):
    """Lightning's average of the weights, moved in one launch on a GPU and without waiting for it.

    Lightning makes its average before the model is on its device, leaves it there, asks in every step whether it has
    begun, and copies constants. This one is where the model will be. It begins with the weights after the first step.

    Args:
        decay: share of the average that a step keeps.
    """

    def __init__(self, decay: float):
        self._approach = get_ema_multi_avg_fn(decay)
        super().__init__(use_buffers=False, multi_avg_fn=self._approach)
        self.is_moved = False
        """Whether the average has been moved in this step, by what moved the weights."""
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None

    @property
    def state_key(self) -> str:
        """The name of its state in checkpoints, which those of earlier versions have."""
        return "WeightAveraging"

    @property
    def has_begun(self) -> bool:
        """Whether there has been a first step, in this session or before."""
        return self._latest_update_step > 0

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Make the average, on the device where the model will be."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, module, stage)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        if trainer.global_step == self._latest_update_step:  # gradients are still added up
            return
        if not self.has_begun:
            assert self._average_model is not None
            self._average_model.update_parameters(module)
        elif not self.is_moved:
            self.move(module)
        self.is_moved = False
        self._latest_update_step = trainer.global_step

    def move(self, module: nn.Module) -> None:
        """Move the average towards the weights of the module, once it has begun."""
        assert self._average_model is not None
        if self._pairs is None:
            self._pairs = [*self._average_model.module.parameters()], [*module.parameters()]
        self._approach(*self._pairs, self._average_model.n_averaged)
        self._average_model.n_averaged.add_(1)
