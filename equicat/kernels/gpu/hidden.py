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
    silu,
    silu_slope,
)
from equicat.kernels.gpu.tiles import HOPPER, shared_memory
from equicat.kernels.switches import BY_WEIGHTS

NARROW = 128
"""Widest X and Z that a program makes both products of; wider ones are multiplied by one matrix after the other."""
EDGES = 128
"""Rows of a program; half of them where shared memory is short of what Hopper has."""
COLUMNS = 32
"""Columns that it multiplies at a time."""


@triton.jit
@no_type_check
def _hidden(x, a, added, outs, size, shape: constexpr, act: constexpr):
    """Z + X A, which is written, and C_j + silu of it times B_j."""
    width_x: constexpr = shape[0]
    width: constexpr = shape[1]
    tile: constexpr = shape[2]
    columns: constexpr = shape[3]
    n_e, n_x, n_z = size
    e = tl.program_id(0) * tile + tl.arange(0, tile)
    at, in_e = e.to(tl.int64)[:, None], (e < n_e)[:, None]
    k, m = tl.arange(0, width_x), tl.arange(0, width)
    x_ek = tl.load(x[0] + at * x[1] + k[None, :], mask=in_e & (k < n_x)[None, :], other=0)
    if act:
        x_ek = silu(x_ek)
    high, low, unit = halved(x_ek, 1)
    in_m = m < n_z
    a_km = load_halves(a, m, k, (k < n_x)[:, None] & in_m[None, :])
    z = multiplied((high, low), a_km) * unit * tl.load(a[2] + m, mask=in_m, other=0)[None, :]
    exists = in_e & in_m[None, :]
    if added is not None:
        z += tl.load(added[0] + at * added[1] + m[None, :], mask=exists, other=0)
    tl.store(outs[0] + at * n_z + m[None, :], z, mask=exists)
    high, low, unit = halved(silu(z), 1)
    first = 0
    b = outs[1]
    for j in tl.static_range(len(outs[2])):
        out, stride, n_n = outs[2][j]
        for start in range(0, n_n, columns):
            n = start + tl.arange(0, columns)
            b_mn = load_halves(b, first + n, m, in_m[:, None] & (n < n_n)[None, :])
            total = multiplied((high, low), b_mn) * unit
            total *= tl.load(b[2] + first + n, mask=n < n_n, other=0)[None, :]
            in_en = in_e & (n < n_n)[None, :]
            if outs[3][j] is not None:
                total += tl.load(outs[3][j][0] + at * outs[3][j][1] + n[None, :], mask=in_en, other=0)
            tl.store(out + at * stride + n[None, :], total, mask=in_en)
        first += n_n


@triton.jit
@no_type_check
def _hidden_back(grads, b, z, a, x, size, shape: constexpr, act: constexpr):
    """The gradients by Z and by X from those by the results."""
    width_x: constexpr = shape[0]
    width: constexpr = shape[1]
    tile: constexpr = shape[2]
    columns: constexpr = shape[3]
    n_e, n_x, n_z = size
    e = tl.program_id(0) * tile + tl.arange(0, tile)
    at, in_e = e.to(tl.int64)[:, None], (e < n_e)[:, None]
    k, m = tl.arange(0, width_x), tl.arange(0, width)
    in_m = m < n_z
    by_z = tl.zeros((tile, width), tl.float32)
    first = 0
    for j in tl.static_range(len(grads)):
        grad, stride, n_n = grads[j]
        for start in range(0, n_n, columns):
            n = start + tl.arange(0, columns)
            g_en = tl.load(grad + at * stride + n[None, :], mask=in_e & (n < n_n)[None, :], other=0)
            high, low, unit = halved(g_en, 1)
            b_nm = load_halves(b, m, first + n, (n < n_n)[:, None] & in_m[None, :])
            by_z += multiplied((high, low), b_nm) * unit
        first += n_n
    exists = in_e & in_m[None, :]
    by_z *= tl.load(b[2] + m, mask=in_m, other=0)[None, :]
    by_z *= silu_slope(tl.load(z[0] + at * n_z + m[None, :], mask=exists, other=0))
    if z[2] is not None:
        by_z += tl.load(z[2] + at * n_z + m[None, :], mask=exists, other=0)
    tl.store(z[1] + at * n_z + m[None, :], by_z, mask=exists)
    high, low, unit = halved(by_z, 1)
    in_k = k < n_x
    a_mk = load_halves(a, k, m, in_m[:, None] & in_k[None, :])
    by_x = multiplied((high, low), a_mk) * unit * tl.load(a[2] + k, mask=in_k, other=0)[None, :]
    exists = in_e & in_k[None, :]
    if act:
        by_x *= silu_slope(tl.load(x[0] + at * x[1] + k[None, :], mask=exists, other=0))
    tl.store(x[2] + at * n_x + k[None, :], by_x, mask=exists)


@triton.jit
@no_type_check
def _hidden_moving(moves, a, z, grads, b, outs, size, shape: constexpr):
    """How the gradients by X and by Z change along moves of these: by each G_j, and by Z through the SiLU's curvature.

    The move of silu(Z), which the derivative by B needs, is written as well.
    """
    width_x: constexpr = shape[0]
    width: constexpr = shape[1]
    tile: constexpr = shape[2]
    columns: constexpr = shape[3]
    n_e, n_x, n_z = size
    e = tl.program_id(0) * tile + tl.arange(0, tile)
    at, in_e = e.to(tl.int64)[:, None], (e < n_e)[:, None]
    k, m = tl.arange(0, width_x), tl.arange(0, width)
    in_m = m < n_z
    exists = in_e & in_m[None, :]
    x_ek = tl.load(moves[0] + at * n_x + k[None, :], mask=in_e & (k < n_x)[None, :], other=0)
    x_high, x_low, x_unit = halved(x_ek, 1)
    a_km = load_halves(a, m, k, (k < n_x)[:, None] & in_m[None, :])
    move = multiplied((x_high, x_low), a_km) * x_unit * tl.load(a[2] + m, mask=in_m, other=0)[None, :]
    move += tl.load(moves[1] + at * n_z + m[None, :], mask=exists, other=0)
    back = b[0]
    by_h = tl.zeros((tile, width), tl.float32)
    first = 0
    for j in tl.static_range(len(grads)):
        grad, stride, n_n = grads[j]
        for start in range(0, n_n, columns):
            n = start + tl.arange(0, columns)
            g_en = tl.load(grad + at * stride + n[None, :], mask=in_e & (n < n_n)[None, :], other=0)
            g_high, g_low, g_unit = halved(g_en, 1)
            b_nm = load_halves(back, m, first + n, (n < n_n)[:, None] & in_m[None, :])
            by_h += multiplied((g_high, g_low), b_nm) * g_unit
        first += n_n
    by_h *= tl.load(back[2] + m, mask=in_m, other=0)[None, :]
    z_em = tl.load(z + at * n_z + m[None, :], mask=exists, other=0)
    s = 1 / (1 + tl.exp(-z_em))
    tl.store(outs[0] + at * n_z + m[None, :], move * by_h * (s * (1 - s) * (2 + z_em * (1 - 2 * s))), mask=exists)
    move *= s * (1 + z_em * (1 - s))
    tl.store(outs[1] + at * n_z + m[None, :], move, mask=exists)
    high, low, unit = halved(move, 1)
    forwards = b[1]
    before = 0
    for j in tl.static_range(len(grads)):
        n_n = grads[j][2]
        for start in range(0, n_n, columns):
            n = start + tl.arange(0, columns)
            b_mn = load_halves(forwards, before + n, m, in_m[:, None] & (n < n_n)[None, :])
            total = multiplied((high, low), b_mn) * unit
            total *= tl.load(forwards[2] + before + n, mask=n < n_n, other=0)[None, :]
            tl.store(outs[2][j] + at * n_n + n[None, :], total, mask=in_e & (n < n_n)[None, :])
        before += n_n


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
        by_z: Float[Tensor, "n_edges n_z"],
        z: Float[Tensor, "n_edges n_z"],
        grads: Sequence[Float[Tensor, "n_edges _"]],
    ) -> tuple[Float[Tensor, "n_edges n_z"], Float[Tensor, "n_edges n_z"], list[Float[Tensor, "n_edges _"]]]:
        """How the gradients by X and Z change along moves of them: by Z, the move of silu(Z), and by each of ``grads``.

        Args:
            by_x: move of the gradient by X.
            by_z: move of the gradient by Z.
            z: Z + X A.
            grads: by the results.
        """
        n_x, n_z = self.first.shape
        to_z, move_h = torch.empty_like(z), torch.empty_like(z)
        to_grads = [z.new_empty(g.shape) for g in grads]
        self._launch(
            *(_hidden_moving, len(z), (by_x.contiguous(), by_z.contiguous()), self.a.arguments(), z),
            *(tuple(map(matrix, grads)), (self.b_back.arguments(), self.b.arguments())),
            *((to_z, move_h, tuple(to_grads)), (len(z), n_x, n_z)),
        )
        return to_z, move_h, to_grads

    def _launch(self, kernel: Any, n_edges: int, *arguments: object) -> None:
        width_x, width = (max(triton.next_power_of_2(n), 16) for n in self.first.shape)
        flags = {} if kernel is _hidden_moving else {"act": self.act}
        tile, stages = (EDGES, 3) if shared_memory(self.first.device) >= HOPPER else (EDGES // 2, 1)
        with torch.cuda.device_of(self.first):
            kernel[(triton.cdiv(n_edges, tile),)](
                *arguments, shape=(width_x, width, tile, COLUMNS), num_warps=8, num_stages=stages, **flags
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
        by_x, by_z = _HiddenGradient.apply(ctx.layer, x, z, a, b, by_z, *grads)
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
