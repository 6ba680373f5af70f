"""Nothing between the inputs of a CUDA graph and its outputs waits for the GPU or is copied to it.

PyTorch's ``meta`` device stands for the GPU. Its tensors hold nothing, so an operator that needs a number of one raises
by itself, and whatever takes part on the processor came from there: a constant that was never copied, a copy of one, or
a tensor made of Python's numbers. Kernels of Triton are left out, for they write where they are told to.
"""

import copy
import dataclasses
import math

import pytest
import torch
from conftest import SMALL, SMALL_NEQUIP
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from equicat.kernels import backend, harmonics
from equicat.kernels.backend import Forms
from equicat.kernels.edges import Edges
from equicat.models.potential import Potential
from equicat.models.repulsion import EnergyTerms, Repulsion
from equicat.training.optimizers import OptimizerConfig, make_optimizer
from equicat.training.recorded import Moving, RecordedUpdate

META = torch.device("meta")
ELEMENTS = (1, 8, 29)
HIDDEN = ("repeat_interleave.Tensor", "bincount", "masked_select", "unique", "nonzero", "lift_fresh")
"""Beginnings of operators that wait on a GPU for a size, or bring a tensor made of Python's numbers."""


class OnTheDevice(TorchDispatchMode):
    """Refuses operators that a CUDA graph cannot record, and counts those that launch something.

    Args:
        before: a mode under which the same was computed; what was used there, and is used again, is a weight or a
            constant. Everything else must come from operators. Without it nothing is refused.
    """

    def __init__(self, before: "OnTheDevice | None" = None) -> None:
        super().__init__()
        self.strict = before is not None
        self.seen = {} if before is None else dict(before.seen)
        """Memory of all tensors so far, kept so that no other tensor gets it."""
        self.n_launches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        out = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        if self.strict:
            assert not name.startswith(HIDDEN), f"{name} cannot be recorded"
            assert all(x.device == META for x in given), f"{name} reads a tensor of the processor"
            assert all(x.device == META for x in made), f"{name} leaves the GPU"
            unknown = [tuple(x.shape) for x in given if x.untyped_storage()._cdata not in self.seen]
            assert not unknown, f"{name} reads a tensor of shape {unknown} that no operator made"
        self.seen |= {x.untyped_storage()._cdata: x for x in given + made}
        self.n_launches += not (func.is_view or name.startswith(("new_empty", "empty", "detach", "_unsafe_view")))
        return out


def check_recordable(function) -> int:
    """The launches of a function, which is called twice, but for those of Triton kernels.

    Raises:
        AssertionError: if the second call could not be recorded.
    """
    with OnTheDevice() as first:
        function()
    with OnTheDevice(first) as second:
        function()
    return second.n_launches


@pytest.fixture(autouse=True)
def on_meta(monkeypatch):
    nothing = Forms(lambda *args, **kwargs: None, lambda *args: None)
    monkeypatch.setattr(backend, "forms", lambda like, l_max: nothing)


def edges(n_atoms: int = 9, n_edges: int = 50) -> Edges:
    index = torch.empty(2, n_edges, dtype=torch.long, device=META)
    species = torch.empty(n_atoms, dtype=torch.long, device=META)
    return Edges(torch.empty(n_edges, 3, device=META), index, species)


def potential(config) -> Potential:
    terms = EnergyTerms(factors=(0.5, 1.0, 2.0), repulsion=Repulsion(6, (4.0,)))
    return Potential(config, ELEMENTS, (5,), 1.7, (-13.6, -430.0, -1500.0), terms).to(META)


def differentiated_twice(model: Potential) -> None:
    """Energies, their gradient, and the derivatives of both by the weights."""
    energies, gradient = model.by_autograd(edges(), training=True)
    weights = [p for p in model.parameters() if p.requires_grad]
    torch.autograd.grad(energies.sum() + gradient.square().sum(), weights, allow_unused=True)


VARIANTS = {
    f"{config.name}, l_max {l_max}, {parity}": dataclasses.replace(config, l_max=l_max, parity=parity)
    for config in (SMALL, SMALL_NEQUIP)
    for l_max in range(4)
    for parity in ("full", "restricted")
} | {
    "three layers": dataclasses.replace(SMALL_NEQUIP, n_layers=3, latent_hidden=(9, 8)),
    "shared weights": dataclasses.replace(SMALL_NEQUIP, coupling="path", bessel_trainable=True, features_silu=False),
    "cutoffs by pair": dataclasses.replace(SMALL_NEQUIP, pair_cutoffs=(3.0,) * 9, neighbors_of_element=(5.0,) * 3),
    "as published": dataclasses.replace(SMALL, normalize_basis=True, bessel_trainable=False, env_embed_mlp=(6,)),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_everything_is_on_the_device_after_the_first_time(config):
    model = potential(config)
    assert check_recordable(lambda: differentiated_twice(model)) > 100


@pytest.mark.parametrize("options", [{"weight_decay": 0.1}, {"rates": {"head": 0.1}}])
def test_a_step_of_muon_stays_on_the_device(options, monkeypatch):
    """The fused kernel for Adam, which PyTorch has no stand-in for, is left out."""
    monkeypatch.setattr(torch, "_fused_adamw_", lambda *args, **kwargs: None)
    model = potential(SMALL_NEQUIP)
    average = copy.deepcopy(model)
    weights = [p for p in model.parameters() if p.requires_grad]
    pairs = list(average.parameters()), list(model.parameters())
    optimizer = make_optimizer(OptimizerConfig(name="muon", **options), model)
    update = RecordedUpdate(optimizer, 10.0, torch.no_grad()(lambda: torch._foreach_lerp_(*pairs, 0.01)))
    update.weights = weights
    inputs = Moving(
        torch.empty(sum(p.numel() for p in weights), device=META),
        [torch.empty((), device=META) for _ in optimizer.param_groups],
    )
    with torch.no_grad():
        assert check_recordable(lambda: update._compute(inputs)) > 5


def test_a_constant_that_is_copied_at_every_call_is_caught(monkeypatch):
    """The copy that recording on an H100 failed with: ``raise_degree(degree).to(outer)``."""
    model = potential(SMALL_NEQUIP)
    copied = lambda degree, dtype, device: harmonics.raise_degree(degree).to(device, dtype)  # noqa: E731
    monkeypatch.setattr(harmonics, "_raise_degree_like", copied)
    with pytest.raises(AssertionError, match="reads a tensor of the processor"):
        check_recordable(lambda: differentiated_twice(model))


@pytest.mark.parametrize(
    "copy",
    [
        lambda x: x * torch.tensor([1.0, 2.0, 3.0], device=META),
        lambda x: x[:, [0, 2]],
        lambda x: x.new_tensor([1.0, 2.0, 3.0]) * x,
        lambda x: x * torch.from_numpy(math.pi * torch.ones(3).numpy()),
        lambda x: x[x[:, 0] > 0],
        lambda x: float(x.sum()),
        lambda x: x.to("cpu"),
        lambda x: x.repeat_interleave(torch.empty(50, dtype=torch.long, device=META), 0),
    ],
)
def test_copies_and_waits_are_caught(copy):
    vectors, *_ = edges()
    with OnTheDevice() as first:
        vectors.mul(2)
    with OnTheDevice(first), pytest.raises((AssertionError, RuntimeError)):
        copy(vectors) + 1
