"""Edges as they lie, sorted by centre: the layout of GPU kernels, without padding.

Two operations connect edges with their centre: the sum that makes an environment, and what an edge reads from its
centre. Both are derivatives of one form, linear in each of its four arguments:

F(a, w, Y, G) = Σ_e Σ_lu a[e, u] w[e, l, u] Σ_m Y[e, lm] G[i(e), lm, u]

The environment is ∂F/∂G at a = 1, what is read is ∂F/∂a. Put the gradient that comes in for one of them in the place of
G (of a), and the gradients that go out are F's other derivatives. How these change when w, Y and G move is what a
second derivative needs beyond that. :mod:`equicat.kernels.gpu.environment` has a kernel for each.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

FLOATS_PER_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 30}
"""Largest intermediate of a chunk of edges: on a CPU one that stays in its cache, on a GPU only to bound memory."""


MIN_TRITON = (3, 5)
"""What PyTorch 2.9 comes with; 3.3 cannot compile the kernels."""


@dataclass(frozen=True, eq=False)
class Segments:
    """Some consecutive centres with all their edges; stands in for a :class:`~equicat.networks.centers.Chunk`."""

    edges: slice
    """Which edges of the batch."""
    first: Int[Tensor, "n_ends"]
    """Where the edges of each centre begin, counted within these edges, and where the last ones end."""
    n_edges: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an array of edges, less its last axis."""
        return (self.n_edges,)

    def pad(self, x: Tensor) -> Tensor:
        """Nothing to do."""
        return x

    unpad = pad_index = pad

    def of_center(self, x: Int[Tensor, "n_edges"]) -> Int[Tensor, "n_atoms"]:
        """What all edges of a centre have in common; anything for a centre without edges."""
        return x[self.first[:-1].clamp(max=self.n_edges - 1)]


def cut(center: Int[Tensor, "n_edges"], n_atoms: int, max_edges: int) -> list[Segments]:
    """Consecutive centres, so few at a time that they have at most that many edges (but at least one).

    Args:
        center: of each edge, ascending; at least one edge.
        n_atoms: number of centres.
        max_edges: bounds memory.
    """
    first = torch.searchsorted(center, torch.arange(n_atoms + 1, device=center.device))
    if len(center) <= max_edges:
        return [Segments(slice(None), first, len(center))]
    runs = consecutive(first[1:].cpu(), max_edges)
    return [
        Segments(edges, first[atoms.start : atoms.stop + 1] - edges.start, edges.stop - edges.start)
        for atoms, edges in runs
        if edges.stop > edges.start
    ]


def has_kernels(device: torch.device) -> bool:
    """Whether kernels are to be used there: a GPU, a Triton that compiles them, and not ``EQUICAT_NATIVE=0``."""
    if device.type != "cuda" or os.environ.get("EQUICAT_NATIVE") == "0":
        return False
    try:
        import triton
    except ImportError:
        return False
    return tuple(map(int, triton.__version__.split(".")[:2])) >= MIN_TRITON


def environment(
    w: Float[Tensor, "n_edges n_weights"], y: Float[Tensor, "n_edges dim_env"], segments: Segments
) -> Float[Tensor, "n_atoms dim_env channels"]:
    """A[i, lm, u] = Σ_e w[e, l, u] Y[e, lm] over the edges of centre i; differentiable."""
    return _Environment.apply(w, y, segments.first)


def read_out(
    w: Float[Tensor, "n_edges n_weights"],
    y: Float[Tensor, "n_edges dim_env"],
    g: Float[Tensor, "n_atoms dim_env channels"],
    segments: Segments,
) -> Float[Tensor, "n_edges channels"]:
    """s[e, u] = Σ_l w[e, l, u] Σ_m Y[e, lm] G[i(e), lm, u]; differentiable twice."""
    return _ReadOut.apply(w, y, g, segments.first)


def environment_plain(w: Tensor, y: Tensor, segments: Segments) -> Tensor:
    """:func:`environment` by autograd; the oracle."""
    center, degree = _plain_indices(y, segments)
    products = w.unflatten(1, (degree[-1] + 1, -1))[:, degree] * y[:, :, None]
    return products.new_zeros(len(segments.first) - 1, *products.shape[1:]).index_add(0, center, products)


def read_out_plain(w: Tensor, y: Tensor, g: Tensor, segments: Segments) -> Tensor:
    """:func:`read_out` by autograd; the oracle."""
    center, degree = _plain_indices(y, segments)
    return (w.unflatten(1, (degree[-1] + 1, -1))[:, degree] * y[:, :, None] * g[center]).sum(1)


def _plain_indices(y: Tensor, segments: Segments) -> tuple[Tensor, list[int]]:
    """The centre of each edge and the degree of each component."""
    center = torch.arange(len(segments.first) - 1).to(y.device).repeat_interleave(segments.first.diff())
    return center, [int(lm**0.5) for lm in range(y.shape[1])]


class _Environment(torch.autograd.Function):
    """(w, Y) → ∂F/∂G at a = 1, bilinear."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, y: Tensor, first: Tensor) -> Tensor:
        from equicat.kernels.gpu import environment as triton_kernels

        ctx.save_for_backward(w, y, first)
        return triton_kernels.environment(w, y, first)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        w, y, first = ctx.saved_tensors
        return *_EnvironmentGradient.apply(w, y, g, first), None


class _EnvironmentGradient(torch.autograd.Function):
    """(w, Y, G) → ∂F/∂w, ∂F/∂Y at a = 1. Each is bilinear: what follows from h_w and h_Y is more of the same."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, y: Tensor, g: Tensor, first: Tensor) -> tuple[Tensor, ...]:
        from equicat.kernels.gpu import environment as triton_kernels

        ctx.save_for_backward(w, y, g, first)
        return triton_kernels.gradient(None, w, y, g, first)

    @staticmethod
    def backward(ctx: Any, h_w: Tensor, h_y: Tensor) -> tuple[Tensor | None, ...]:
        w, y, g, first = ctx.saved_tensors
        to_g = _Environment.apply(h_w, y, first) + _Environment.apply(w, h_y, first)
        return *_EnvironmentGradient.apply(h_w, h_y, g, first), to_g, None


class _ReadOut(torch.autograd.Function):
    """(w, Y, G) → ∂F/∂a."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, y: Tensor, g: Tensor, first: Tensor) -> Tensor:
        from equicat.kernels.gpu import environment as triton_kernels

        ctx.save_for_backward(w, y, g, first)
        return triton_kernels.read_out(w, y, g, first)

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor | None, ...]:
        w, y, g, first = ctx.saved_tensors
        return *_ReadOutGradient.apply(a, w, y, g, first), None


class _ReadOutGradient(torch.autograd.Function):
    """(a, w, Y, G) → ∂F/∂w, ∂F/∂Y, ∂F/∂G."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, w: Tensor, y: Tensor, g: Tensor, first: Tensor) -> tuple[Tensor, ...]:
        from equicat.kernels.gpu import environment as triton_kernels

        ctx.save_for_backward(a, w, y, g, first)
        return triton_kernels.gradient(a, w, y, g, first)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, h_w: Tensor, h_y: Tensor, h_g: Tensor) -> tuple[Tensor | None, ...]:
        from equicat.kernels.gpu import environment as triton_kernels

        *arguments, first = ctx.saved_tensors
        return *triton_kernels.change(tuple(arguments), (h_w, h_y, h_g), first), None


def consecutive(ends: Int[Tensor, "n_atoms"], max_edges: int) -> Iterator[tuple[slice, slice]]:
    """All centres, consecutive ones together: as many as have at most that many edges, at least one.

    Args:
        ends: where the edges of each centre end.
        max_edges: bounds memory.

    Yields:
        Centres, and their edges.
    """
    first = edge = 0
    while first < len(ends):
        stop = max(int(torch.searchsorted(ends, edge + max_edges, right=True)), first + 1)
        end = int(ends[stop - 1])
        yield slice(first, stop), slice(edge, end)
        first, edge = stop, end
