"""Triton kernels of the MLPs of edges in a nequip-allegro network, for inference; importing needs Triton.

- :class:`Hidden`: two matrices with a SiLU in between, C_j + silu(Z + X A) B_j, and back to X and Z;
- :func:`read`: Σ_e silu(x_e) · h of every centre, and its slope.

Each is one launch where operators are several, and no number of an edge is written but those that another kernel reads.
Matrices are multiplied as in :mod:`equicat.kernels.gpu.products`, at float32's accuracy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from triton.language import constexpr

from equicat.kernels.gpu.products import (
    PLAIN,
    Extra,
    Halves,
    activated,
    halved,
    halves,
    load_halves,
    matrix,
    multiplied,
    rows,
    silu,
    silu_slope,
)

MAX_WIDTH = 128
"""Widest X and Z that a program makes both products of; wider ones are multiplied by one matrix after the other."""
EDGES = 128
"""Edges of such a program."""
COLUMNS = 32
"""Columns that it multiplies at a time."""
READ = 1024
"""Edges times features that a program of :func:`read` works on at a time."""

# ---- hidden layers -------------------------------------------------------------------------------------------------


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
    """The gradients by Z, which is overwritten by it, and by X, from those of the results."""
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
    by_z *= silu_slope(tl.load(z + at * n_z + m[None, :], mask=exists, other=0))
    tl.store(z + at * n_z + m[None, :], by_z, mask=exists)
    high, low, unit = halved(by_z, 1)
    in_k = k < n_x
    a_mk = load_halves(a, k, m, in_m[:, None] & in_k[None, :])
    by_x = multiplied((high, low), a_mk) * unit * tl.load(a[2] + k, mask=in_k, other=0)[None, :]
    exists = in_e & in_k[None, :]
    if act:
        by_x *= silu_slope(tl.load(x[0] + at * x[1] + k[None, :], mask=exists, other=0))
    tl.store(x[2] + at * n_x + k[None, :], by_x, mask=exists)


@dataclass(frozen=True, eq=False)
class Hidden:
    """C_j + silu(Z + X A) B_j, or silu(X) in the place of X, for matrices B_j side by side."""

    a: Halves
    a_back: Halves
    """Halves of Aᵀ."""
    b: Halves
    b_back: Halves
    """Halves of (B_1 ‖ B_2 …)ᵀ."""
    widths: Sequence[int]
    """Columns of each B_j."""
    act: bool = False
    """Whether X goes through a SiLU first."""

    @classmethod
    def of(
        cls, a: Float[Tensor, "n_x n_z"], b: Float[Tensor, "n_z n_n"], widths: Sequence[int], act: bool = False
    ) -> "Hidden":
        """Both products, of matrices in float32."""
        return cls(halves(a), halves(a.t()), halves(b), halves(b.t()), widths, act)

    @property
    def is_narrow(self) -> bool:
        """Whether X and Z are narrow enough to be kept by a program, which then makes both products."""
        return max(self.a.high.shape) <= MAX_WIDTH

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
        if not self.is_narrow:
            z = rows([x], self.a, Extra(self.act, z))
            return z, activated(z, self.b, self.widths, added)
        n_z, n_x = self.a.high.shape
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
    ) -> tuple[Float[Tensor, "n_edges n_x"], Float[Tensor, "n_edges n_z"]]:
        """The gradients by X and by Z.

        Args:
            x: X.
            z: Z + X A, which may be overwritten.
            grads: by the results.
        """
        if not self.is_narrow:
            by_z = rows(grads, self.b_back, Extra(sloping=z))
            return rows([by_z], self.a_back, Extra(sloping=x) if self.act else PLAIN), by_z
        n_z, n_x = self.a.high.shape
        by_x = x.new_empty(len(x), n_x)
        self._launch(
            *(_hidden_back, len(x), tuple(map(matrix, grads)), self.b_back.arguments(), z),
            *(self.a_back.arguments(), (*matrix(x)[:2], by_x), (len(x), n_x, n_z)),
        )
        return by_x, z

    def _launch(self, kernel: Any, n_edges: int, *arguments: object) -> None:
        width, width_x = (max(triton.next_power_of_2(n), 16) for n in self.a.high.shape)
        with torch.cuda.device_of(self.a.unit):
            kernel[(triton.cdiv(n_edges, EDGES),)](
                *arguments, shape=(width_x, width, EDGES, COLUMNS), act=self.act, num_warps=8
            )


def _strided(x: Float[Tensor, "n_edges _"] | None) -> tuple[Tensor, int] | None:
    """An array for a kernel, if there is one."""
    return None if x is None else matrix(x)[:2]


# ---- readout -------------------------------------------------------------------------------------------------------


@triton.jit
@no_type_check
def _read(x, weights, sums, first, size, width: constexpr, act: constexpr, tile: constexpr):
    """The sum of a centre, and the slope in the place of X."""
    n_x = size
    center = tl.program_id(0)
    u = tl.arange(0, width)
    h = tl.load(weights + u, mask=u < n_x, other=0)[None, :]
    total = tl.zeros((tile, width), tl.float32)
    end = tl.load(first + center + 1)
    for start in range(tl.load(first + center), end, tile):
        e = start + tl.arange(0, tile)
        exists = (e < end)[:, None] & (u < n_x)[None, :]
        at = x + e.to(tl.int64)[:, None] * n_x + u[None, :]
        x_eu = tl.load(at, mask=exists, other=0)
        if act:
            total += silu(x_eu) * h
            tl.store(at, silu_slope(x_eu) * h, mask=exists)
        else:
            total += x_eu * h
            tl.store(at, h + tl.zeros_like(x_eu), mask=exists)
    tl.store(sums + center, tl.sum(tl.sum(total, axis=1), axis=0))


def read(
    x: Float[Tensor, "n_edges n_x"], weights: Float[Tensor, "n_x"], act: bool, first: Int[Tensor, "n_ends"]
) -> Float[Tensor, "n_atoms"]:
    """Σ_e x_e · h of every centre, or with the SiLU of x; its slope is written in the place of x, which is contiguous.

    Args:
        x: of edges, by centre.
        weights: h.
        act: whether x goes through a SiLU.
        first: where the edges of each centre begin, and where the last ones end.
    """
    sums = x.new_empty(len(first) - 1)
    width = triton.next_power_of_2(x.shape[1])
    with torch.cuda.device_of(x):
        _read[(len(sums),)](
            x, weights, sums, first, x.shape[1], width=width, act=act, tile=max(READ // width, 1), num_warps=4
        )
    return sums
