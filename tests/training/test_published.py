"""The published parametrisation and first weights: equal to a network that holds other weights, kept by a run."""

import json

import pytest
import torch
from conftest import TINY_MODEL, configuration, labelled
from torch.func import functional_call
from torch.optim.swa_utils import get_ema_multi_avg_fn

from equicat import InputError
from equicat.data.batch import Batch
from equicat.models.gradient import ComputeOptions
from equicat.models.heads import OutputMLP
from equicat.models.potential import Potential
from equicat.networks.allegro import AllegroConfig
from equicat.networks.published import draw_as_published, published_scales
from equicat.run_directory import read_checkpoint
from equicat.training.config import from_mapping
from equicat.training.optimizers import OptimizerConfig, clip_gradient, make_optimizer, rate_of, set_rates
from equicat.training.train import train

STEPS = 39
PUBLISHED = {"optimizer": {"parametrization": "published", "lr": 0.01}, "initialization": "published"}


def potential() -> Potential:
    torch.manual_seed(0)
    sizes = {name: tuple(value) if isinstance(value, list) else value for name, value in TINY_MODEL.items()}
    config = AllegroConfig(**sizes, normalize_basis=True, avg_num_neighbors=10.0, n_types=84)
    model = Potential(config, (8, 29), OutputMLP((8,), linear=True), compute=ComputeOptions(kernels=False))
    draw_as_published(model.double())
    return model


def batch() -> Batch:
    return Batch.from_structures([labelled(s) for s in range(2)], TINY_MODEL["cutoff"], dtype=torch.float64)


def loss_of(prediction, data: Batch) -> torch.Tensor:
    energy, forces = prediction.energy - data.energy, prediction.forces - data.forces
    return energy.square().mean() + forces.square().mean()


class HoldsUnitWeights(torch.nn.Module):
    """The authors' parametrisation written out: w of unit variance, multiplied by s whenever the network is called."""

    def __init__(self, model: Potential):
        super().__init__()
        self.model, self.scales = [model], published_scales(model)
        self.names = list(self.scales)
        self.weights = torch.nn.ParameterList(
            weight.detach() / self.scales[name] for name, weight in model.named_parameters()
        )

    def applied(self, weights=None) -> dict[str, torch.Tensor]:
        weights = self.weights if weights is None else weights
        return {name: w * self.scales[name] for name, w in zip(self.names, weights, strict=True)}

    def forward(self, data: Batch):
        return functional_call(self.model[0], self.applied(), (data,))


@pytest.mark.parametrize(
    ("decay", "amsgrad", "clip"), [(0.0, False, None), (0.1, True, 0.5)], ids=["as in the paper", "decayed, clipped"]
)
def test_training_is_that_of_a_network_that_holds_unit_weights(decay, amsgrad, clip):
    """Losses, weights and averaged weights, over as many steps as the check against the authors' code had."""
    model, data = potential(), batch()
    theirs = HoldsUnitWeights(potential())
    options = OptimizerConfig(parametrization="published", lr=0.002, weight_decay=decay, amsgrad=amsgrad)
    ours = make_optimizer(options, model)
    reference = torch.optim.AdamW(theirs.weights, lr=0.002, weight_decay=decay, amsgrad=amsgrad)
    update = get_ema_multi_avg_fn(0.9)
    means = [[p.detach().clone() for p in module.parameters()] for module in (model, theirs)]
    losses = []
    for step in range(STEPS):
        rate = 1.0 if step < 20 else 0.8
        set_rates(ours, options, rate)
        reference.param_groups[0]["lr"] = rate * 0.002
        found = []
        for module, optimizer in ((model, ours), (theirs, reference)):
            optimizer.zero_grad()
            loss = loss_of(module(data), data)
            loss.backward()
            found.append(loss.item())
            if clip is not None:
                clip_gradient(optimizer, clip)
            optimizer.step()
        losses.append(found)
        for mean, module in zip(means, (model, theirs), strict=True):
            update(mean, list(module.parameters()), step)
    assert rate_of(ours) == pytest.approx(0.8 * 0.002)
    for mine, other in losses:
        assert mine == pytest.approx(other, rel=1e-12)
    assert losses[-1][0] < losses[0][0], "or this tests nothing"
    for mine, other in zip(model.parameters(), theirs.applied().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)
    for mine, other in zip(means[0], theirs.applied(means[1]).values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def test_clipping_without_scales_is_that_of_pytorch():
    models = [potential(), potential()]
    for model in models:
        loss_of(model(batch()), batch()).backward()
    clip_gradient(make_optimizer(OptimizerConfig(), models[0]), 0.1)
    torch.nn.utils.clip_grad_norm_(models[1].parameters(), 0.1)
    for mine, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_a_run_is_trained_and_goes_on_as_published(data, tmp_path):
    def go(out, n_epochs, **run):
        values = configuration(data, tmp_path / out, run={"max_epochs": n_epochs, "dtype": "float64", **run})
        values["optimizer"] = dict(PUBLISHED["optimizer"], gradient_clip=0.1)
        values |= {"initialization": "published", "output_nonlinearity": None}
        values["model"] |= {"normalize_basis": True, "n_types": 84, "avg_num_neighbors": 37}
        return values, train(from_mapping(values)).run

    _, whole = go("whole", 3)
    go("parts", 2)
    values, parts = go("parts", 3, resume=True)
    losses = [[row.split(",")[10] for row in (run / "metrics.csv").read_text().splitlines()] for run in (whole, parts)]
    assert losses[0] == losses[1]
    lr = (whole / "metrics.csv").read_text().splitlines()[1].split(",")[3]
    assert lr == "0.01", "as the options count it"
    groups = read_checkpoint(whole / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"]
    assert len({group["lr"] / group["scale"] for group in groups}) == 1
    assert {group["eps"] * group["scale"] for group in groups} == {1e-8}
    assert len(groups) > 3
    network = json.loads((whole / "model.json").read_text())["model"]
    assert (network["n_types"], network["avg_num_neighbors"], network["normalize_basis"]) == (84, 37.0, True)
    values["optimizer"]["parametrization"] = "equicat"
    values["run"] |= {"max_epochs": 4}
    with pytest.raises(InputError, match=r"optimizer\.parametrization is equicat .* but published in the run"):
        train(from_mapping(values))


def test_a_run_of_before_the_option_keeps_what_it_had(data, tmp_path):
    values = configuration(data, tmp_path / "run", run={"max_epochs": 1})
    run = train(from_mapping(values)).run
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("  parametrization: equicat\n", ""))
    values["optimizer"]["parametrization"] = "published"
    values["run"] |= {"max_epochs": 2, "resume": True}
    with pytest.raises(InputError, match=r"optimizer\.parametrization is published .* but equicat in the run"):
        train(from_mapping(values))


def test_first_weights_depend_on_the_seed_alone(data, tmp_path):
    def readout(out, seed):
        values = configuration(data, tmp_path / out, run={"max_epochs": 1, "seed": seed}, optimizer={"lr": 1e-12})
        run = train(from_mapping(values | {"initialization": "published"})).run
        return read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]["model.head.mlp.weights.0"]

    first, again, other = readout("a", 0), readout("b", 0), readout("c", 1)
    torch.testing.assert_close(first, again)
    assert not torch.allclose(first, other)
    assert first.abs().max() <= 3**0.5 / len(first) ** 0.5 + 1e-6, "uniform of variance 1 / n_in"
    assert first.std() > 0.5 / len(first) ** 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": {"name": "muon", "parametrization": "published"}}, r"optimizer\.parametrization is for .* adam"),
        ({"model": {"name": "schnet"}, "initialization": "published"}, "initialization is published, which is for"),
        ({"model": {"name": "schnet"}, "optimizer": {"parametrization": "published"}}, r"optimizer\.parametrization"),
    ],
)
def test_it_is_for_allegro_and_adam(values, message):
    with pytest.raises(InputError, match=message):
        from_mapping(values)
