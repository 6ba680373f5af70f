"""Training steps recorded as CUDA graphs: all up to the gradient in one launch, and what moves the weights in another.

A batch is filled up with atoms and edges that count nowhere (:mod:`equicat.data.padded`), on the GPU, so that few
shapes occur. The first graph leaves the sums of losses and metrics, the norm of the gradient, and all gradients as one
array. The host waits for the sums and the norm, once a step, and leaves the step out if one is not finite. The second
graph (:class:`RecordedUpdate`) clips the gradient and moves the weights and their average.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.func import functional_call

from equicat.data.batch import Batch
from equicat.data.padded import PaddedBatch, room_for
from equicat.kernels import backend
from equicat.kernels.gpu.graphs import MAX_EDGES, Recorder, padded_sizes
from equicat.models.direct import DirectModel
from equicat.models.gradient import pair_vectors
from equicat.models.model import Prediction
from equicat.models.potential import Potential
from equicat.networks.allegro import Allegro
from equicat.tasks.tables import MetricSums, sum_and_count
from equicat.tasks.tasks import AnyPrediction, LossConfig, LossTerm, Task, values_of, weighted_sum
from equicat.training.muon import Muon
from equicat.training.optimizers import clip_gradient


@dataclass(frozen=True, eq=False)
class Objective:
    """A model with its loss and its metrics: all that a training step computes of a batch."""

    model: Potential | DirectModel
    task: Task
    loss: LossConfig
    metrics: MetricSums
    """The metrics that are summed, by the rows of their state."""
    weights: list[float] = field(default_factory=list)
    """Weight of each term of the loss, known after the first batch."""

    def judged(
        self, prediction: AnyPrediction, batch: Batch
    ) -> tuple[tuple[LossTerm, ...], Float64[Tensor, "n_rows 2"]]:
        """Terms of the loss; and sum and count of each of them and of each metric, on the device of the batch."""
        terms = self.task.loss_terms(prediction, batch, self.model, self.loss)
        self.weights[:] = [term.weight for term in terms]
        losses = torch.stack([sum_and_count(term.sum, term.count) for term in terms])
        values, target = values_of(prediction, batch), self.task.target(batch)
        return terms, torch.cat([losses, self.metrics.rows(values, target, batch)])


@dataclass(frozen=True, eq=False)
class Step:
    """A training step up to the gradient."""

    rows: Float64[Tensor, "n_rows 2"]
    """Sum and count of each term of the loss and of each metric, on the host, which has waited for them."""
    norm: float
    """Norm of the gradient."""
    gradient: Float[Tensor, "n_weights"]
    """The gradient of the loss by all weights that it depends on, as one array; overwritten by the next step."""
    weights: Sequence[nn.Parameter]
    """These weights."""

    def loss(self, value: float) -> Float[Tensor, ""]:
        """The loss as a tensor whose backward pass adds the gradient to that of the weights."""
        return _Known.apply(value, self.gradient, *self.weights)


class RecordedSteps:
    """Training steps of an objective on batches of similar size, for one process with a GPU and Triton.

    Args:
        objective: of a potential; its weights must stay where they are in memory.
    """

    def __init__(self, objective: Objective):
        self.objective = objective
        self.judged = _Judged(objective)
        self.weights: list[nn.Parameter] = []
        """The weights that the loss depends on."""
        self.recorder: Recorder[PaddedBatch, tuple[Tensor, Tensor]] = Recorder(self._compute, "a training step")

    def takes(self, batch: Batch) -> bool:
        """Whether a step on that batch can be recorded, and is small enough to gain by it."""
        model, network = self.objective.model, self.objective.model.network
        recordable = isinstance(network, Allegro) and network.recordable
        recordable = recordable and isinstance(model, Potential) and model.long_range is None  # for want of positions
        recordable = recordable and batch.energy_weight is None and batch.forces_weight is None
        on_gpu = backend.has_triton(batch.positions.device)
        return recordable and self.recorder.works and 0 < batch.n_edges <= MAX_EDGES and on_gpu

    def __call__(self, batch: Batch) -> Step:
        """The step on a batch."""
        n_atoms, n_edges = padded_sizes(len(batch.numbers) + 1, batch.n_edges)
        vectors, far = pair_vectors(batch, slice(None)), 2 * self.objective.model.cutoff
        numbers, gradient = self.recorder(
            (n_atoms, n_edges, batch.n_systems),
            new=lambda: room_for(batch, n_atoms, n_edges),
            write=lambda inputs: inputs.write(batch, vectors, far),
        )
        known = numbers.cpu()
        return Step(known[:-1].view(-1, 2), float(known[-1]), gradient, self.weights)

    def _compute(self, filled: PaddedBatch) -> tuple[Float64[Tensor, "n"], Float[Tensor, "n_weights"]]:
        """Sums of losses and metrics with the norm of the gradient, and the gradient.

        It is a function of the batch's memory that can be recorded.

        The loss is differentiated by new parameters in the memory of the weights. Autograd ties its node of a parameter
        to the stream of the first graph that has it, and a recording may not wait for one that is still alive.
        """
        known = {name: p for name, p in self.judged.named_parameters() if p.requires_grad}
        aliases: dict[str, Tensor] = {name: nn.Parameter(p.detach()) for name, p in known.items()}
        loss, rows = functional_call(self.judged, aliases, (filled,))
        found = torch.autograd.grad(loss, list(aliases.values()), allow_unused=True)
        pairs = [(p, g) for p, g in zip(known.values(), found, strict=True) if g is not None]
        self.weights = [p for p, _ in pairs]
        gradient = torch.cat([g.flatten() for _, g in pairs])
        norm = torch.linalg.vector_norm(gradient).to(rows.dtype)
        return torch.cat([rows.flatten(), norm[None]]), gradient


@dataclass(frozen=True, eq=False)
class Moving:
    """The memory that a recorded update reads."""

    gradient: Float[Tensor, "n_weights"]
    rates: list[Float[Tensor, ""]]
    """The learning rate of each group of parameters; float32, as fused optimisers read it."""


class RecordedUpdate:
    """Clipping, a step of the optimiser and one of the average of the weights, as one CUDA graph.

    Args:
        optimizer: one that :meth:`takes` takes.
        largest: norm of the gradient; None clips nothing.
        average: moves the average of the weights, if there is one.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, largest: float | None, average: Callable[[], None] | None
    ) -> None:
        self.optimizer, self.largest, self.average = optimizer, largest, average
        self.weights: Sequence[nn.Parameter] = ()
        """The weights that the present gradient is of."""
        self.recorder: Recorder[Moving, tuple[()]] = Recorder(self._compute, "a step of the optimiser")

    @staticmethod
    def takes(optimizer: torch.optim.Optimizer) -> bool:
        """Whether the optimiser computes nothing on the host; SOAP's decompositions wait for the GPU."""
        return isinstance(optimizer, Muon | torch.optim.AdamW)

    def __call__(self, step: Step) -> None:
        """Move the weights by a gradient that is finite, with the learning rates that the optimiser has now."""
        self.weights = step.weights
        rates = [group["lr"] for group in self.optimizer.param_groups]

        def new() -> Moving:
            like = step.gradient
            return Moving(torch.empty_like(like), [like.new_empty((), dtype=torch.float32) for _ in rates])

        def write(inputs: Moving) -> None:
            inputs.gradient.copy_(step.gradient)
            for tensor, rate in zip(inputs.rates, rates, strict=True):
                tensor.fill_(rate)

        self.recorder(tuple(map(id, step.weights)), new, write)
        torch.autograd.graph.increment_version(step.weights)  # which a launch of a graph does not do

    def _compute(self, inputs: Moving) -> tuple[()]:
        parts = inputs.gradient.split([p.numel() for p in self.weights])
        for p, part in zip(self.weights, parts, strict=True):
            p.grad = part.view(p.shape)
        if self.largest is not None:
            clip_gradient(self.optimizer, self.largest)
        with _rates_as_tensors(self.optimizer, inputs.rates):
            self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average()
        return ()


@contextmanager
def _rates_as_tensors(optimizer: torch.optim.Optimizer, rates: Sequence[Float[Tensor, ""]]) -> Iterator[None]:
    """Within the block, learning rates are read from memory; and PyTorch's optimisers may be recorded."""
    groups = optimizer.param_groups
    before: list[dict[str, Any]] = [
        {name: group[name] for name in ("lr", "capturable") if name in group} for group in groups
    ]
    is_recording = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    for group, rate, old in zip(groups, rates, before, strict=True):
        group["lr"] = rate
        if "capturable" in old:
            group["capturable"] = is_recording
    try:
        yield
    finally:
        for group, old in zip(groups, before, strict=True):
            group.update(old)


class _Judged(nn.Module):
    """The loss of a padded batch, as a module, for these can be called with other weights."""

    def __init__(self, objective: Objective):
        super().__init__()
        self.objective, self.model = objective, objective.model

    def forward(self, filled: PaddedBatch) -> tuple[Float[Tensor, ""], Float64[Tensor, "n_rows 2"]]:
        """The loss; and sum and count of each of its terms and of each metric."""
        batch = filled.without_last_system()
        prediction = _of_systems(self.model(filled, **self.objective.task.extras), batch.n_systems)
        terms, rows = self.objective.judged(prediction, batch)
        return weighted_sum(terms), rows


def _of_systems(prediction: AnyPrediction, n: int) -> Prediction:
    """The prediction without the systems after the first n."""
    assert isinstance(prediction, Prediction)
    virial = None if prediction.virial is None else prediction.virial[:n]
    return replace(prediction, energy=prediction.energy[:n], virial=virial)


class _Known(torch.autograd.Function):
    """A number whose gradient is known."""

    @staticmethod
    def forward(ctx: Any, value: float, gradient: Tensor, *weights: Tensor) -> Tensor:
        ctx.gradient, ctx.shapes = gradient, [w.shape for w in weights]
        return gradient.new_full((), value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        parts = (ctx.gradient * factor).split([shape.numel() for shape in ctx.shapes])
        return None, None, *(part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True))
