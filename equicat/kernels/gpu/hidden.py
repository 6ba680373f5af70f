"""Triton kernels of MLPs with one hidden layer, C_j + silu(Z + X A) B_j, on many rows; importing needs Triton.

One launch makes the results, one the gradients by X and Z, and one how these change along moves, which is what their
derivative needs. No number of a row is written but those that something else reads. Matrices are multiplied as in
:mod:`equicat.kernels.gpu.products`, at float32's accuracy; MLPs that are too wide for this take the products there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.language import constexpr

from equicat.kernels import activations
from equicat.kernels.gpu.activations import silu, silu_curvature, silu_slope
from equicat.kernels.gpu.products import (
    PLAIN,
    Extra,
    Halves,
    beside,
    halved,
    halves,
    load_halves,
    matrix,
    multiplied,
    rows,
)
from equicat.kernels.gpu.tiles import HOPPER, shared_memory
from equicat.kernels.switches import BY_WEIGHTS

NARROW = 128
"""Widest X and Z that a program makes both products of; wider ones are multiplied by one matrix after the other."""
EDGES = 64
"""Rows of a program."""
COLUMNS = 32
"""Columns that it multiplies at a time."""
WARPS = 4
"""Warps of a program."""


@triton.jit
@no_type_check
def _edges(n_e, shape: constexpr):
    """Numbers of the rows of a program, which of them exist, and columns of X and of Z."""
    e = tl.program_id(0) * shape[2] + tl.arange(0, shape[2])
    return e.to(tl.int64)[:, None], (e < n_e)[:, None], tl.arange(0, shape[0]), tl.arange(0, shape[1])


@triton.jit
@no_type_check
def _times(x, halves, n, in_n, k, in_k):
    """Rows in halves, with their units, times entries [k, n] of a matrix in halves."""
    w_kn = load_halves(halves, n, k, in_k[:, None] & in_n[None, :])
    return multiplied(x, w_kn) * x[2] * tl.load(halves[2] + n, mask=in_n, other=0)[None, :]


@triton.jit
@no_type_check
def _store_results(h, b, outs, added, rows_of, middle, columns: constexpr):
    """C_j + H B_j for all j, from rows of H in halves."""
    at, in_e = rows_of
    m, in_m = middle
    first = 0
    for j in tl.static_range(len(outs)):
        out, stride, n_n = outs[j]
        for start in range(0, n_n, columns):
            n = start + tl.arange(0, columns)
            total = _times(h, b, first + n, n < n_n, m, in_m)
            in_en = in_e & (n < n_n)[None, :]
            if added[j] is not None:
                total += tl.load(added[j][0] + at * added[j][1] + n[None, :], mask=in_en, other=0)
            tl.store(out + at * stride + n[None, :], total, mask=in_en)
        first += n_n


@triton.jit
@no_type_check
def _by_h(grads, b, rows_of, middle, shape: constexpr):
    """The gradient by H, Σ_j G_j B_jᵀ, from those by the results; ``b`` are the halves of all B_jᵀ."""
    tile: constexpr = shape[2]
    width: constexpr = shape[1]
    columns: constexpr = shape[3]
    at, in_e = rows_of
    m, in_m = middle
    total = tl.zeros((tile, width), tl.float32)
    first = 0
    for j in tl.static_range(len(grads)):
        grad, stride, n_n = grads[j]
        for start in range(0, n_n, columns):
            n = start + tl.arange(0, columns)
            g_en = tl.load(grad + at * stride + n[None, :], mask=in_e & (n < n_n)[None, :], other=0)
            g = halved(g_en, 1)
            b_nm = load_halves(b, m, first + n, (n < n_n)[:, None] & in_m[None, :])
            total += multiplied(g, b_nm) * g[2]
        first += n_n
    return total * tl.load(b[2] + m, mask=in_m, other=0)[None, :]


@triton.jit
@no_type_check
def _hidden(x, a, added, outs, size, shape: constexpr):
    """Z + X A, which is written, and C_j + silu of it times B_j."""
    n_e, n_x, n_z = size
    at, in_e, k, m = _edges(n_e, shape)
    in_k, in_m = k < n_x, m < n_z
    x_ek = tl.load(x[0] + at * x[1] + k[None, :], mask=in_e & in_k[None, :], other=0)
    if shape[4]:
        x_ek = silu(x_ek)
    z = _times(halved(x_ek, 1), a, m, in_m, k, in_k)
    exists = in_e & in_m[None, :]
    if added is not None:
        z += tl.load(added[0] + at * added[1] + m[None, :], mask=exists, other=0)
    tl.store(outs[0] + at * n_z + m[None, :], z, mask=exists)
    _store_results(halved(silu(z), 1), outs[1], outs[2], outs[3], (at, in_e), (m, in_m), shape[3])


@triton.jit
@no_type_check
def _hidden_back(grads, b, z, a, x, size, shape: constexpr):
    """The gradients by Z and by X from those by the results."""
    n_e, n_x, n_z = size
    at, in_e, k, m = _edges(n_e, shape)
    in_k, in_m = k < n_x, m < n_z
    exists = in_e & in_m[None, :]
    by_z = _by_h(grads, b, (at, in_e), (m, in_m), shape)
    by_z *= silu_slope(tl.load(z[0] + at * n_z + m[None, :], mask=exists, other=0))
    if z[2] is not None:
        by_z += tl.load(z[2] + at * n_z + m[None, :], mask=exists, other=0)
    tl.store(z[1] + at * n_z + m[None, :], by_z, mask=exists)
    by_x = _times(halved(by_z, 1), a, k, in_k, m, in_m)
    exists = in_e & in_k[None, :]
    if shape[4]:
        by_x *= silu_slope(tl.load(x[0] + at * x[1] + k[None, :], mask=exists, other=0))
    tl.store(x[2] + at * n_x + k[None, :], by_x, mask=exists)


@triton.jit
@no_type_check
def _hidden_moving(moves, a, z, grads, b, outs, size, shape: constexpr):
    """How the gradients by X and by Z change along moves of these: by each G_j, and by Z through the SiLU's curvature.

    The move of silu(Z), which the derivative by B needs, is written as well. Something may be added to those by G_j.
    """
    n_e, n_x, n_z = size
    at, in_e, k, m = _edges(n_e, shape)
    in_k, in_m = k < n_x, m < n_z
    exists = in_e & in_m[None, :]
    x_ek = tl.load(moves[0] + at * n_x + k[None, :], mask=in_e & in_k[None, :], other=0)
    move = _times(halved(x_ek, 1), a, m, in_m, k, in_k)
    if moves[1] is not None:
        move += tl.load(moves[1] + at * n_z + m[None, :], mask=exists, other=0)
    by_h = _by_h(grads, b[0], (at, in_e), (m, in_m), shape)
    z_em = tl.load(z + at * n_z + m[None, :], mask=exists, other=0)
    tl.store(outs[0] + at * n_z + m[None, :], move * by_h * silu_curvature(z_em), mask=exists)
    move *= silu_slope(z_em)
    tl.store(outs[1] + at * n_z + m[None, :], move, mask=exists)
    _store_results(halved(move, 1), b[1], outs[2], outs[3], (at, in_e), (m, in_m), shape[3])


def is_narrow(first: Float[Tensor, "n_x n_z"]) -> bool:
    """Whether X and Z are narrow enough for A to be multiplied by a program that goes on with the result."""
    # At 128 columns a program takes 98,304 bytes of shared memory, at 64 a third of that.
    return max(first.shape) <= (NARROW if shared_memory(first.device) >= 98_304 else NARROW // 2)


@dataclass(frozen=True, eq=False)
class Hidden:
    """C_j + silu(Z + X A) B_j, or silu(X) in the place of X, for matrices B_j side by side."""

    first: Float[Tensor, "n_x n_z"]
    """A."""
    last: Float[Tensor, "n_z n_n"]
    """All B_j."""
    widths: Sequence[int]
    """Columns of each B_j."""
    act: bool = False
    """Whether X goes through a SiLU first."""

    @cached_property
    def a(self) -> Halves:
        """Halves of A."""
        return halves(self.first)

    @cached_property
    def a_back(self) -> Halves:
        """Halves of Aᵀ."""
        return halves(self.first.t())

    @cached_property
    def b(self) -> Halves:
        """Halves of B_1 ‖ B_2 …"""
        return halves(self.last)

    @cached_property
    def b_back(self) -> Halves:
        """Halves of (B_1 ‖ B_2 …)ᵀ."""
        return halves(self.last.t())

    def __call__(
        self,
        x: Float[Tensor, "n_edges n_x"],
        z: Float[Tensor, "n_edges n_z"] | None,
        added: Sequence[Float[Tensor, "n_edges _"] | None],
    ) -> tuple[Float[Tensor, "n_edges n_z"], list[Float[Tensor, "n_edges _"]]]:
        """Z + X A, and the results.

        Args:
            x: X.
            z: Z; None adds nothing.
            added: C_j; None adds nothing.
        """
        if not is_narrow(self.first):
            z = rows([x], self.a, Extra(self.act, z))
            return z, beside(z, self.b, self.widths, added, act=True)
        n_x, n_z = self.first.shape
        before = x.new_empty(len(x), n_z)
        found = [x.new_empty(len(x), width) for width in self.widths]
        outs = before, self.b.arguments(), tuple(map(matrix, found)), tuple(_strided(c) for c in added)
        self._launch(_hidden, len(x), matrix(x)[:2], self.a.arguments(), _strided(z), outs, (len(x), n_x, n_z))
        return before, found

    def back(
        self,
        x: Float[Tensor, "n_edges n_x"],
        z: Float[Tensor, "n_edges n_z"],
        grads: Sequence[Float[Tensor, "n_edges _"]],
        by_z: Float[Tensor, "n_edges n_z"] | None = None,
    ) -> tuple[Float[Tensor, "n_edges n_x"], Float[Tensor, "n_edges n_z"]]:
        """The gradients by X and by Z.

        Args:
            x: X.
            z: Z + X A.
            grads: by the results.
            by_z: by Z + X A, if this was read by something else as well.
        """
        if not is_narrow(self.first):
            total = rows(grads, self.b_back, Extra(sloping=z))
            total = total if by_z is None else total + by_z
            return rows([total], self.a_back, Extra(sloping=x) if self.act else PLAIN), total
        n_x, n_z = self.first.shape
        by_x, total = z.new_empty(len(z), n_x), torch.empty_like(z)
        x_and_by_x = (*matrix(x)[:2], by_x) if self.act else (None, None, by_x)
        self._launch(
            *(_hidden_back, len(z), tuple(map(matrix, grads)), self.b_back.arguments(), (z, total, by_z)),
            *(self.a_back.arguments(), x_and_by_x, (len(z), n_x, n_z)),
        )
        return by_x, total

    def moving(
        self,
        by_x: Float[Tensor, "n_edges n_x"],
        by_z: Float[Tensor, "n_edges n_z"] | None,
        z: Float[Tensor, "n_edges n_z"],
        grads: Sequence[Float[Tensor, "n_edges _"]],
        added: Sequence[Float[Tensor, "n_edges _"] | None] | None = None,
    ) -> tuple[Float[Tensor, "n_edges n_z"], Float[Tensor, "n_edges n_z"], list[Float[Tensor, "n_edges _"]]]:
        """How the gradients by X and Z change along moves of them: by Z, the move of silu(Z), and by each of ``grads``.

        Args:
            by_x: move of the gradient by X.
            by_z: move of the gradient by Z; None is 0.
            z: Z + X A.
            grads: by the results.
            added: to what is returned for each of them; None adds nothing.
        """
        n_x, n_z = self.first.shape
        to_z, move_h = torch.empty_like(z), torch.empty_like(z)
        to_grads = [z.new_empty(g.shape) for g in grads]
        self._launch(
            *(_hidden_moving, len(z), (by_x.contiguous(), None if by_z is None else by_z.contiguous())),
            *(self.a.arguments(), z, tuple(map(matrix, grads)), (self.b_back.arguments(), self.b.arguments())),
            *((to_z, move_h, tuple(map(matrix, to_grads)), tuple(map(_strided, added or [None] * len(grads)))),),
            (len(z), n_x, n_z),
        )
        return to_z, move_h, to_grads

    def _launch(self, kernel: Any, n_edges: int, *arguments: object) -> None:
        width_x, width = (max(triton.next_power_of_2(n), 16) for n in self.first.shape)
        stages = 3 if shared_memory(self.first.device) >= HOPPER else 1
        with torch.cuda.device_of(self.first):
            kernel[(triton.cdiv(n_edges, EDGES),)](
                *arguments, shape=(width_x, width, EDGES, COLUMNS, self.act), num_warps=WARPS, num_stages=stages
            )


def _strided(x: Float[Tensor, "n_edges _"] | None) -> tuple[Tensor, int] | None:
    """An array for a kernel, if there is one."""
    return None if x is None else matrix(x)[:2]


class _Hidden(torch.autograd.Function):
    """Z + X A, and C_j + silu of it times B_j, differentiable twice."""

    @staticmethod
    def forward(
        ctx: Any, layer: Hidden, x: Tensor, z: Tensor | None, a: Tensor, b: Tensor, *added: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.layer, ctx.is_added, ctx.is_z = layer, [c is not None for c in added], z is not None
        ctx.set_materialize_grads(False)
        before, found = layer(x, z, added)
        ctx.save_for_backward(x, before, a, b)
        return before, *found

    @staticmethod
    def backward(ctx: Any, by_z: Tensor | None, *by_results: Tensor | None) -> tuple[Tensor | None, ...]:
        x, z, a, b = ctx.saved_tensors
        widths = ctx.layer.widths
        grads = [z.new_zeros(len(z), n) if g is None else g for g, n in zip(by_results, widths, strict=True)]
        if torch.is_grad_enabled():
            by_x, by_z = _HiddenGradient.apply(ctx.layer, x, z, a, b, by_z, *grads)
        else:
            by_x, by_z = ctx.layer.back(x, z, grads, by_z)
        by_a = x.t() @ by_z if BY_WEIGHTS.on and ctx.needs_input_grad[3] else None
        by_b = None
        if BY_WEIGHTS.on and ctx.needs_input_grad[4]:
            by_b = activations.silu(z).t() @ torch.cat(grads, dim=1)
        added = (g if is_added else None for g, is_added in zip(by_results, ctx.is_added, strict=True))
        return None, by_x, by_z if ctx.is_z else None, by_a, by_b, *added


class _HiddenGradient(torch.autograd.Function):
    """The gradients by X and by Z, differentiable once; X itself has no part in them."""

    @staticmethod
    def forward(ctx: Any, layer: Hidden, x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
        z, a, b, by_z, *grads = inputs
        ctx.layer, ctx.is_given = layer, by_z is not None
        by_x, total = layer.back(x, z, grads, by_z)
        ctx.save_for_backward(z, a, b, total if by_z is None else total - by_z, *grads)
        return by_x, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, move_x: Tensor, move_z: Tensor) -> tuple[Tensor | None, ...]:
        z, a, _, by_z, *grads = ctx.saved_tensors
        to_z, move_h, to_grads = ctx.layer.moving(move_x, move_z, z, grads)
        by_weights = [BY_WEIGHTS.on and needed for needed in ctx.needs_input_grad[3:5]]
        to_a = move_x.t() @ by_z if by_weights[0] else None
        to_b = move_h.t() @ torch.cat(grads, dim=1) if by_weights[1] else None
        to_given = move_z + move_x @ a if ctx.is_given else None
        return None, None, to_z, to_a, to_b, to_given, *to_grads


def hidden(
    x: Float[Tensor, "n_edges n_x"],
    z: Float[Tensor, "n_edges n_z"] | None,
    matrices: tuple[Float[Tensor, "n_x n_z"], Float[Tensor, "n_z n_n"]],
    added: Sequence[Float[Tensor, "n_edges _"] | None],
    widths: Sequence[int],
) -> tuple[Float[Tensor, "n_edges _"], ...]:
    """C_j + silu(Z + X A) B_j for matrices B_j side by side, in one launch; differentiable twice.

    Args:
        x: X, not wider than :data:`NARROW`.
        z: Z, likewise; None adds nothing.
        matrices: A, and all B_j.
        added: C_j; None adds nothing.
        widths: of B_j.
    """
    first, last = (w.detach() for w in matrices)
    return _Hidden.apply(Hidden(first, last, tuple(widths)), x, z, *matrices, *added)[1:]
