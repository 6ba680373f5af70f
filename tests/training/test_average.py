"""The average of the weights: Lightning's numbers, where the model is, from a checkpoint of Lightning's own."""

from unittest.mock import Mock

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from equicat.training.average import WeightAverage


class Module(pl.LightningModule):
    """Two weights and a constant."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.full((3,), start)) for start in (1.0, -2.0))
        self.register_buffer("constant", torch.arange(3))


def trainer(device: str = "cpu") -> Mock:
    found = Mock(spec=pl.Trainer, global_step=0)
    found.strategy.root_device = torch.device(device)
    return found


@pytest.fixture
def both():
    """A module, a trainer, our average and Lightning's."""
    module, training = Module(), trainer()
    averages = WeightAverage(0.9), WeightAveraging(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for average in averages:
        average.setup(training, module, "fit")
    return module, training, *averages


def steps(module, training, averages, n: int) -> None:
    """Steps of a training, every second of which only adds up gradients."""
    for _ in range(n):
        with torch.no_grad():
            module.weight.add_(1.0)
            module.bias.mul_(0.5)
        training.global_step += 1
        for _ in range(2):
            for average in averages:
                average.on_train_batch_end(training, module, None, None, 0)


def test_it_is_that_of_lightning(both):
    module, training, *averages = both
    steps(module, training, averages, 5)
    ours, theirs = (average._average_model.state_dict() for average in averages)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert ours["n_averaged"] == 5


def test_what_a_graph_has_moved_is_not_moved_again(both):
    module, training, ours, theirs = both
    steps(module, training, (ours, theirs), 2)
    module.weight.data.add_(1.0)
    ours.move(module)
    ours.is_moved = True
    training.global_step += 1
    for average in (ours, theirs):
        average.on_train_batch_end(training, module, None, None, 0)
    torch.testing.assert_close(ours._average_model.state_dict(), theirs._average_model.state_dict(), rtol=0, atol=0)
    assert not ours.is_moved


def test_it_is_where_the_model_will_be():
    """Lightning makes callbacks ready before it moves the model."""
    average = WeightAverage(0.9)
    average.setup(trainer("meta"), Module(), "fit")
    assert {p.device.type for p in average._average_model.parameters()} == {"meta"}


def test_a_state_of_lightning_s_own_is_its_state(both):
    module, training, ours, theirs = both
    assert ours.state_key == theirs.state_key
    steps(module, training, (theirs,), 2)
    ours.load_state_dict(theirs.state_dict())
    assert ours.has_begun
