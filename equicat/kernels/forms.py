"""The three operations that connect edges with their centres, each differentiable twice or more, on any device.

Edges are sorted by centre and stay as they lie. A pair e has its centre i(e); u counts channels.

- :func:`environment`: what a centre sums over its edges, A[i, lm, u] = Σ_e w[e, l, u] Y[e, lm];
- :func:`read_out`: what an edge reads from its centre, s[e, u] = Σ_l w[e, l, u] Σ_m Y[e, lm] G[i(e), lm, u];
- :func:`tensor_product`: an edge's tensors times its centre's matrix, B[e, c, u] = Σ_k V[e, k, u] M[i(e), c, k, u].

The first two are derivatives of one form that is linear in each of its four arguments:

F(a, w, Y, G) = Σ_e Σ_lu a[e, u] w[e, l, u] Σ_m Y[e, lm] G[i(e), lm, u]

The environment is ∂F/∂G at a = 1, the read-out is ∂F/∂a. In their backward pass the gradient that comes in takes the
place of G (of a), and the gradients that go out are F's other derivatives. A second derivative also needs how these
change when w, Y and G move. The third operation is the derivative by B of

F(V, M, B) = Σ_e Σ_cku B[e, c, u] V[e, k, u] M[i(e), c, k, u]

with columns c and the components k that enter them (:class:`equicat.kernels.irreps.Contraction`). The derivatives of
∂F/∂B are ∂F/∂V and ∂F/∂M with the gradient that comes in in the place of B, and so on: no order needs anything else.

:func:`equicat.kernels.backend.forms` chooses the version: ``cpu/forms.cpp``, ``gpu/*.py``, or the plain ones below,
which autograd differentiates and which are the oracle of the others.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equicat.kernels import backend
from equicat.kernels.backend import Forms
from equicat.kernels.irreps import Contraction
from equicat.kernels.padding import Padding

FLOATS_AT_A_TIME = {"cpu": 1 << 20, "cuda": 1 << 30}
"""Edges worked on at a time, times the largest intermediate of each: on a CPU what stays in its cache, on a GPU what
bounds memory."""
MIN_EDGES = 256
"""Fewer edges at a time cost more in overhead than they save."""
V, M, B = range(3)
"""The arguments of the form of tensor products."""


@dataclass(frozen=True, eq=False)
class Segments:
    """Some consecutive centres with all their edges."""

    atoms: slice
    """The centres, of all atoms."""
    edges: slice
    """Edges of the segments, as numbers among all edges."""
    first: Int[Tensor, "n_ends"]
    """Where the edges of each centre begin, counted from the first of these edges, and where the last ones end."""
    n_edges: int

    @cached_property
    def padding(self) -> Padding:
        """Places of these edges in rows of equal length."""
        return Padding.of_centers(self.first, self.n_edges)

    @cached_property
    def _padded(self) -> dict[int, tuple[Tensor, Tensor]]:
        return {}

    def padded(self, x: Float[Tensor, "n_edges n_columns"]) -> Float[Tensor, "n_atoms n_max n_columns"]:
        """An array that several layers read, in rows of equal length; made once for each."""
        if id(x) not in self._padded:
            self._padded[id(x)] = x, self.padding.pad(x)  # x is kept, so that its id stays its own
        return self._padded[id(x)][1]

    @cached_property
    def center(self) -> Int[Tensor, "n_edges"]:
        """The centre of each edge, counted from the first of these centres."""
        return torch.arange(len(self.first) - 1, device=self.first.device).repeat_interleave(self.first.diff())


def cut(center: Int[Tensor, "n_edges"], n_atoms: int, floats_per_edge: int) -> list[Segments]:
    """All centres, consecutive ones together, as many as the device can work on at a time (at least one).

    Args:
        center: of each edge, ascending.
        n_atoms: number of atoms.
        floats_per_edge: the largest intermediate of an edge.
    """
    first = ends_of(center, n_atoms)
    kind = center.device.type
    max_edges = max(FLOATS_AT_A_TIME.get(kind, FLOATS_AT_A_TIME["cuda"]) // floats_per_edge, MIN_EDGES)
    if len(center) <= max_edges:
        return [Segments(slice(0, n_atoms), slice(None), first, len(center))]
    return [
        Segments(atoms, edges, first[atoms.start : atoms.stop + 1] - edges.start, edges.stop - edges.start)
        for atoms, edges in consecutive(first[1:].cpu(), max_edges)
        if edges.stop > edges.start
    ]


def ends_of(center: Int[Tensor, "n_edges"], n_atoms: int) -> Int[Tensor, "n_ends"]:
    """Where the edges of each centre begin, and where the last ones end, for ascending centres."""
    return torch.searchsorted(center, torch.arange(n_atoms + 1, device=center.device))


def consecutive(ends: Int[Tensor, "n_atoms"], max_edges: int) -> Iterator[tuple[slice, slice]]:
    """All centres, consecutive ones together, in few parts of nearly even size.

    Args:
        ends: where the edges of each centre end.
        max_edges: bounds memory: a part has no more edges, unless it is one centre that alone has more.

    Yields:
        Centres, and their edges.
    """
    first = edge = 0
    while first < len(ends):
        left = int(ends[-1]) - edge
        share = math.ceil(left / max(math.ceil(left / max_edges), 1))
        complete = int(ends[torch.searchsorted(ends, edge + share)])  # with all edges of the centre that reaches it
        stop = max(int(torch.searchsorted(ends, min(complete, edge + max_edges), right=True)), first + 1)
        end = int(ends[stop - 1])
        yield slice(first, stop), slice(edge, end)
        first, edge = stop, end


@dataclass(frozen=True, eq=False)
class Indexed:
    """All edges, which find their centres by index: no step depends on data, so a trace of it holds for any system.

    It takes the place of :class:`Segments` where a program is traced (:mod:`equicat.interfaces.compiled`), at the price
    of intermediates of edges that the other versions do without.
    """

    center: Int[Tensor, "n_edges"]
    atoms: Int[Tensor, "n_atoms"]
    """Numbers of any meaning, one for each atom; only how many there are is read, which a trace leaves open."""

    def environment(
        self, w: Float[Tensor, "n_edges n_weights"], y: Float[Tensor, "n_edges dim_env"]
    ) -> Float[Tensor, "n_atoms dim_env channels"]:
        """:func:`environment`."""
        products = self._by_component(w, y) * y[:, :, None]
        return products.new_zeros(self.atoms.shape[0], *products.shape[1:]).index_add(0, self.center, products)

    def read_out(
        self,
        w: Float[Tensor, "n_edges n_weights"],
        y: Float[Tensor, "n_edges dim_env"],
        g: Float[Tensor, "n_atoms dim_env channels"],
    ) -> Float[Tensor, "n_edges channels"]:
        """:func:`read_out`."""
        return (self._by_component(w, y) * y[:, :, None] * g.index_select(0, self.center)).sum(1)

    def tensor_product(
        self,
        v: Sequence[Float[Tensor, "n_edges _ channels"]],
        m: Float[Tensor, "n_atoms n_rows channels"],
        contraction: Contraction,
    ) -> tuple[Float[Tensor, "n_edges _ channels"], ...]:
        """:func:`tensor_product`, one product for each row of M that is not zero."""
        n_out, entering = sum(contraction.widths), torch.cat(list(v), dim=1)
        component, column = contraction.places // n_out, contraction.places % n_out
        products = entering.index_select(1, component) * m.index_select(0, self.center)
        out = products.new_zeros(products.shape[0], n_out, products.shape[2]).index_add(1, column, products)
        return out.split(contraction.widths, dim=1)

    @staticmethod
    def _by_component(w: Tensor, y: Tensor) -> Float[Tensor, "n_edges dim_env channels"]:
        """The weight of each component's degree."""
        degrees = [degree for degree in range(l_max_of(y) + 1) for _ in range(2 * degree + 1)]
        return w.unflatten(1, (l_max_of(y) + 1, -1)).index_select(1, torch.tensor(degrees, device=w.device))


# ---- environment and read-out --------------------------------------------------------------------------------------


def environment(
    w: Float[Tensor, "n_edges n_weights"], y: Float[Tensor, "n_edges dim_env"], segments: Segments | Indexed
) -> Float[Tensor, "n_atoms dim_env channels"]:
    """A[i, lm, u] = Σ_e w[e, l, u] Y[e, lm] over the edges of centre i; differentiable any number of times."""
    if isinstance(segments, Indexed):
        return segments.environment(w, y)
    forms = backend.forms(w, l_max_of(y))
    return environment_plain(w, y, segments) if forms is None else _Environment.apply(forms, w, y, segments.first)


def read_out(
    w: Float[Tensor, "n_edges n_weights"],
    y: Float[Tensor, "n_edges dim_env"],
    g: Float[Tensor, "n_atoms dim_env channels"],
    segments: Segments | Indexed,
) -> Float[Tensor, "n_edges channels"]:
    """s[e, u] = Σ_l w[e, l, u] Σ_m Y[e, lm] G[i(e), lm, u]; differentiable twice."""
    if isinstance(segments, Indexed):
        return segments.read_out(w, y, g)
    forms = backend.forms(w, l_max_of(y))
    return read_out_plain(w, y, g, segments) if forms is None else _ReadOut.apply(forms, w, y, g, segments.first)


def environment_plain(
    w: Float[Tensor, "n_edges n_weights"], y: Float[Tensor, "n_edges dim_env"], segments: Segments
) -> Float[Tensor, "n_atoms dim_env channels"]:
    """:func:`environment` in PyTorch's operators. Y_00 is 1, so the first degree is a plain sum."""
    (w00, *weights), (_, *harmonics) = _by_degree(segments.padding.pad(w), segments.padded(y))
    products = [y_l.transpose(1, 2) @ w_l for w_l, y_l in zip(weights, harmonics, strict=True)]
    return torch.cat([w00.sum(1, keepdim=True), *products], dim=1)


def read_out_plain(
    w: Float[Tensor, "n_edges n_weights"],
    y: Float[Tensor, "n_edges dim_env"],
    g: Float[Tensor, "n_atoms dim_env channels"],
    segments: Segments,
) -> Float[Tensor, "n_edges channels"]:
    """:func:`read_out` in PyTorch's operators."""
    (w00, *weights), (_, *harmonics) = _by_degree(segments.padded(w), segments.padded(y))
    g00, *columns = g.split([1, *(y_l.shape[2] for y_l in harmonics)], dim=1)
    out = w00 * g00
    for w_l, y_l, g_l in zip(weights, harmonics, columns, strict=True):
        out = out + w_l * (y_l @ g_l)
    return segments.padding.unpad(out)


def l_max_of(y: Float[Tensor, "n_edges dim_env"]) -> int:
    """The highest degree of harmonics with dim_env = (l_max + 1)² components."""
    return math.isqrt(y.shape[1]) - 1


def _by_degree(
    w: Float[Tensor, "n_atoms n_max n_weights"], y: Float[Tensor, "n_atoms n_max dim_env"]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Weights [n_atoms, n_max, channels] and harmonics [n_atoms, n_max, 2l+1] of each degree."""
    sizes = [2 * degree + 1 for degree in range(math.isqrt(y.shape[2]))]
    return w.chunk(len(sizes), dim=2), y.split(sizes, dim=2)


class _Environment(torch.autograd.Function):
    """(w, Y) → ∂F/∂G at a = 1, bilinear."""

    @staticmethod
    def forward(ctx: Any, forms: Forms, w: Tensor, y: Tensor, first: Tensor) -> Tensor:
        ctx.forms = forms
        ctx.save_for_backward(w, y, first)
        by_g = w.new_empty(len(first) - 1, y.shape[1], w.shape[1] // (l_max_of(y) + 1))
        forms.edges(first, w=w, y=y, by_g=by_g)
        return by_g

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        w, y, first = ctx.saved_tensors
        return None, *_EnvironmentGradient.apply(ctx.forms, w, y, g, first), None


class _EnvironmentGradient(torch.autograd.Function):
    """(w, Y, G) → ∂F/∂w, ∂F/∂Y at a = 1. Both are bilinear: their derivatives are made of functions already here."""

    @staticmethod
    def forward(ctx: Any, forms: Forms, w: Tensor, y: Tensor, g: Tensor, first: Tensor) -> tuple[Tensor, ...]:
        ctx.forms = forms
        ctx.save_for_backward(w, y, g, first)
        by_w, by_y = _room_for(w, y)
        forms.edges(first, w=w, y=y, g=g, by_w=by_w, by_y=by_y)
        return by_w, by_y

    @staticmethod
    def backward(ctx: Any, h_w: Tensor, h_y: Tensor) -> tuple[Tensor | None, ...]:
        forms, (w, y, g, first) = ctx.forms, ctx.saved_tensors
        to_g = _Environment.apply(forms, h_w, y, first) + _Environment.apply(forms, w, h_y, first)
        return None, *_EnvironmentGradient.apply(forms, h_w, h_y, g, first), to_g, None


class _ReadOut(torch.autograd.Function):
    """(w, Y, G) → ∂F/∂a."""

    @staticmethod
    def forward(ctx: Any, forms: Forms, w: Tensor, y: Tensor, g: Tensor, first: Tensor) -> Tensor:
        ctx.forms = forms
        ctx.save_for_backward(w, y, g, first)
        by_a = w.new_empty(len(w), g.shape[2])
        forms.edges(first, w=w, y=y, g=g, by_a=by_a)
        return by_a

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor | None, ...]:
        w, y, g, first = ctx.saved_tensors
        return None, *_ReadOutGradient.apply(ctx.forms, a, w, y, g, first), None


class _ReadOutGradient(torch.autograd.Function):
    """(a, w, Y, G) → ∂F/∂w, ∂F/∂Y, ∂F/∂G; then how all four derivatives change along h_w, h_Y and h_G."""

    @staticmethod
    def forward(
        ctx: Any, forms: Forms, a: Tensor, w: Tensor, y: Tensor, g: Tensor, first: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.forms = forms
        ctx.save_for_backward(a, w, y, g, first)
        by_w, by_y, by_g = _room_for(w, y, g)
        forms.edges(first, a=a, w=w, y=y, g=g, by_w=by_w, by_y=by_y, by_g=by_g)
        return by_w, by_y, by_g

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, h_w: Tensor, h_y: Tensor, h_g: Tensor) -> tuple[Tensor | None, ...]:
        *arguments, first = ctx.saved_tensors
        written = _room_for(*arguments)
        names, moves = ("a", "w", "y", "g"), {"move_w": h_w, "move_y": h_y, "move_g": h_g}
        inputs = dict(zip(names, arguments, strict=True))
        outputs = {f"by_{name}": x for name, x in zip(names, written, strict=True)}
        ctx.forms.edges(first, **inputs, **moves, **outputs)
        return None, *written, None


def _room_for(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of these shapes to be written, contiguous whatever these are."""
    return tuple(x.new_empty(x.shape) for x in tensors)


# ---- tensor products -----------------------------------------------------------------------------------------------


def tensor_product(
    v: Sequence[Float[Tensor, "n_edges _ channels"]],
    m: Float[Tensor, "n_atoms n_rows channels"],
    contraction: Contraction,
    segments: Segments | Indexed,
) -> tuple[Float[Tensor, "n_edges _ channels"], ...]:
    """All columns of all edges, by output; differentiable any number of times.

    Args:
        v: tensor features by irrep.
        m: matrices of the centres.
        contraction: which columns there are.
        segments: edges and their centres.
    """
    if isinstance(segments, Indexed):
        return segments.tensor_product(v, m, contraction)
    forms = backend.forms(m, max(contraction.dims) // 2)
    if forms is None:
        return tensor_product_plain(v, m, contraction, segments)
    return _Derivative.apply(B, contraction, forms, segments.first, *v, m)


def tensor_product_plain(
    v: Sequence[Float[Tensor, "n_edges _ channels"]],
    m: Float[Tensor, "n_atoms n_rows channels"],
    contraction: Contraction,
    segments: Segments,
) -> tuple[Float[Tensor, "n_edges _ channels"], ...]:
    """:func:`tensor_product` in PyTorch's operators: matrix products batched over centres and channels."""
    n_in, n_out = sum(contraction.dims), sum(contraction.widths)
    dense = m.new_zeros(len(m), n_in * n_out, m.shape[2]).index_copy(1, contraction.places, m)
    left = segments.padding.pad(torch.cat(list(v), dim=1)).permute(0, 3, 1, 2)
    columns = left @ dense.unflatten(1, (n_in, n_out)).permute(0, 3, 1, 2)
    return segments.padding.unpad(columns.permute(0, 2, 3, 1)).split(contraction.widths, dim=1)


class _Derivative(torch.autograd.Function):
    """∂F by one of its arguments, from the other two."""

    @staticmethod
    def forward(
        ctx: Any, by: int, contraction: Contraction, forms: Forms, first: Tensor, *others: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.by, ctx.contraction, ctx.forms = by, contraction, forms
        ctx.save_for_backward(first, *others)
        arguments = _arguments(by, (), others, contraction)
        like = (arguments[V] or arguments[B])[0]
        n, widths = len(like), (contraction.dims, [len(contraction.coefficients)], contraction.widths)[by]
        written = tuple(like.new_empty(len(first) - 1 if by == M else n, width, like.shape[2]) for width in widths)
        arguments[by] = written
        forms.tensors(by, [[x.contiguous() for x in argument] for argument in arguments], contraction, first)
        return written

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        first, *others = ctx.saved_tensors
        arguments = _arguments(ctx.by, grads, others, ctx.contraction)
        needed = _arguments(ctx.by, (), ctx.needs_input_grad[4:], ctx.contraction)
        out: list[Tensor | None] = []
        for by in (V, M, B):
            if any(needed[by]):
                rest = [x for argument in (V, M, B) if argument != by for x in arguments[argument]]
                out += _Derivative.apply(by, ctx.contraction, ctx.forms, first, *rest)
            elif by != ctx.by:
                out += [None] * len(arguments[by])
        return None, None, None, None, *out


def _arguments(by: int, one: Sequence, others: Sequence, contraction: Contraction) -> list[Sequence]:
    """V, M and B, each a sequence of tensors: ``one`` for the argument ``by``, and the others in their order."""
    sizes = [len(contraction.dims), 1, len(contraction.widths)]
    rest = iter(others)
    return [one if k == by else [next(rest) for _ in range(n)] for k, n in enumerate(sizes)]
