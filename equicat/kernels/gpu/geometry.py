"""Triton kernels of radial functions, envelope and harmonics of edges; importing this needs Triton.

One launch makes all three from pair vectors, one the gradient by these, and one how all three change along a direction,
which is what the derivative of the gradient needs. Operators take dozens, of which each reads and writes all edges.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.language import constexpr

from equicat.kernels.harmonics import raise_degree
from equicat.kernels.switches import BY_WEIGHTS

BLOCK = 128
"""Edges of a program."""
PI = tl.constexpr(3.141592653589793)
SQRT3 = tl.constexpr(1.7320508075688772)


@triton.jit
@no_type_check
def envelope_of(x, p: constexpr):
    """The envelope u(x) and its derivative; see :func:`equicat.networks.layers.polynomial_envelope`."""
    total = tl.zeros_like(x) + p * (p + 1) / 2
    power = tl.zeros_like(x) + 1
    for k in tl.static_range(p - 2, -1, -1):
        total = total * x + (k + 1) * (k + 2) / 2
        power *= x
    rest = tl.maximum(1 - x, 0)
    return rest * rest * rest * total, -p * (p + 1) * (p + 2) / 2 * power * rest * rest


@triton.jit
@no_type_check
def bessel_of(frequency, x):
    """A Bessel function sin(fx) / (πx), its derivative by x, and that by f."""
    function, cosine = tl.sin(frequency * x) / (x * PI), tl.cos(frequency * x) / PI
    return function, (frequency * cosine - function) / x, cosine


@triton.jit
@no_type_check
def direction_of(vectors, e, in_e):
    """Unit vectors and lengths of pair vectors."""
    x = tl.load(vectors + 3 * e, mask=in_e, other=1)
    y = tl.load(vectors + 3 * e + 1, mask=in_e, other=0)
    z = tl.load(vectors + 3 * e + 2, mask=in_e, other=0)
    r = tl.sqrt(x * x + y * y + z * z)
    return (x / r, y / r, z / r), r


@triton.jit
@no_type_check
def load_moves(moves, e, in_e, unit, r):
    """Moves of pair vectors: along them, and what they turn their unit vectors by."""
    h_x = tl.load(moves + 3 * e, mask=in_e, other=0)
    h_y = tl.load(moves + 3 * e + 1, mask=in_e, other=0)
    h_z = tl.load(moves + 3 * e + 2, mask=in_e, other=0)
    along = h_x * unit[0] + h_y * unit[1] + h_z * unit[2]
    return along, ((h_x - along * unit[0]) / r, (h_y - along * unit[1]) / r, (h_z - along * unit[2]) / r)


@triton.jit
@no_type_check
def store_gradient(out, e, in_e, unit, r, by_unit, by_r):
    """The gradient by pair vectors, from those by their unit vectors and by their lengths."""
    along = by_unit[0] * unit[0] + by_unit[1] * unit[1] + by_unit[2] * unit[2]
    for k in tl.static_range(3):
        tl.store(out + 3 * e + k, (by_unit[k] - along * unit[k]) / r + by_r * unit[k], mask=in_e)


@triton.jit
@no_type_check
def store_harmonics(out, e, in_e, y):
    """Y_lm of all degrees, into rows of edges."""
    for lm in tl.static_range(len(y)):
        tl.store(out + e * len(y) + lm, y[lm], mask=in_e)


@triton.jit
@no_type_check
def _raised(y, first, degree: constexpr, c: constexpr, couplings: constexpr):
    """Σ_ab C[l, a, b, c] Y_la Y_1b, which is Y_{l+1,c}; bilinear."""
    total = tl.zeros_like(first[0])
    for a in tl.static_range(2 * degree + 1):
        for b in tl.static_range(3):
            if couplings[((degree * 9 + a) * 3 + b) * 11 + c] != 0:
                total += couplings[((degree * 9 + a) * 3 + b) * 11 + c] * (y[degree * degree + a] * first[b])
    return total


@triton.jit
@no_type_check
def harmonics_of(unit, couplings: constexpr, l_max: constexpr):
    """Y_lm of all degrees, one after the other."""
    first = (unit[0] * SQRT3, unit[1] * SQRT3, unit[2] * SQRT3)
    y = (tl.zeros_like(unit[0]) + 1,)
    if l_max > 0:
        y = y + first
    for degree in tl.static_range(1, l_max):
        for c in tl.static_range(2 * degree + 3):
            y = y + (_raised(y, first, degree, c, couplings),)
    return y


@triton.jit
@no_type_check
def harmonics_back(grads, at, in_e, unit, couplings: constexpr, l_max: constexpr):
    """The gradient by the unit vectors from those by the harmonics, degree by degree from the highest."""
    y = harmonics_of(unit, couplings, l_max)
    zero = tl.zeros_like(unit[0])
    by_unit = (zero, zero, zero)
    upper = ()
    for c in tl.static_range(2 * l_max + 1):
        column = grads + at * (l_max + 1) * (l_max + 1) + l_max * l_max + c
        upper = upper + (tl.load(column, mask=in_e, other=0),)
    for degree in tl.static_range(l_max - 1, 0, -1):
        for b in tl.static_range(3):
            total = tl.zeros_like(unit[0])
            for a in tl.static_range(2 * degree + 1):
                for c in tl.static_range(2 * degree + 3):
                    if couplings[((degree * 9 + a) * 3 + b) * 11 + c] != 0:
                        total += couplings[((degree * 9 + a) * 3 + b) * 11 + c] * (upper[c] * y[degree * degree + a])
            if b == 0:
                by_unit = (by_unit[0] + total, by_unit[1], by_unit[2])
            elif b == 1:
                by_unit = (by_unit[0], by_unit[1] + total, by_unit[2])
            else:
                by_unit = (by_unit[0], by_unit[1], by_unit[2] + total)
        lower = ()
        for a in tl.static_range(2 * degree + 1):
            column = grads + at * (l_max + 1) * (l_max + 1) + degree * degree + a
            total = tl.load(column, mask=in_e, other=0)
            for b in tl.static_range(3):
                for c in tl.static_range(2 * degree + 3):
                    if couplings[((degree * 9 + a) * 3 + b) * 11 + c] != 0:
                        total += couplings[((degree * 9 + a) * 3 + b) * 11 + c] * (upper[c] * (unit[b] * SQRT3))
            lower = lower + (total,)
        upper = lower
    if l_max > 0:
        by_unit = (
            (by_unit[0] + upper[0]) * SQRT3,
            (by_unit[1] + upper[1]) * SQRT3,
            (by_unit[2] + upper[2]) * SQRT3,
        )
    return by_unit


@triton.jit
@no_type_check
def moving_harmonics(unit, moves, couplings: constexpr, l_max: constexpr):
    """How Y_lm of all degrees change when the unit vectors move."""
    y = harmonics_of(unit, couplings, l_max)
    first = (unit[0] * SQRT3, unit[1] * SQRT3, unit[2] * SQRT3)
    moving = (moves[0] * SQRT3, moves[1] * SQRT3, moves[2] * SQRT3)
    out = (tl.zeros_like(unit[0]),)
    if l_max > 0:
        out = out + moving
    for degree in tl.static_range(1, l_max):
        for c in tl.static_range(2 * degree + 3):
            change = _raised(out, first, degree, c, couplings) + _raised(y, moving, degree, c, couplings)
            out = out + (change,)
    return out


@triton.jit
@no_type_check
def _load_edges(vectors, scale, n_e, block: constexpr):
    """Numbers of edges, which exist, their directions and lengths, and the factor that makes r / cutoff of these."""
    e = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    in_e = e < n_e
    unit, r = direction_of(vectors, e, in_e)
    return e, in_e, unit, r, tl.load(scale[0] + e * scale[1], mask=in_e, other=1)


@triton.jit
@no_type_check
def _forwards(vectors, scale, radial, out, n_e, sizes: constexpr, couplings: constexpr):
    """Radial functions (B_n − μ_n) / σ_n times the envelope, the envelope, and the harmonics."""
    n_radial: constexpr = sizes[0]
    e, in_e, unit, r, per_r = _load_edges(vectors, scale, n_e, sizes[3])
    x = r * per_r
    envelope, _ = envelope_of(x, sizes[1])
    for n in range(n_radial):
        function, _, _ = bessel_of(tl.load(radial[0] + n), x)
        function = (function - tl.load(radial[1] + n)) * tl.load(radial[2] + n)
        tl.store(out[0] + e * n_radial + n, function * envelope, mask=in_e)
    tl.store(out[1] + e, envelope, mask=in_e)
    store_harmonics(out[2], e, in_e, harmonics_of(unit, couplings, sizes[2]))


@triton.jit
@no_type_check
def _backwards(vectors, scale, radial, grads, out, n_e, sizes: constexpr, couplings: constexpr):
    """The gradient by pair vectors from those by the three results; and that by the frequencies, edge by edge."""
    n_radial: constexpr = sizes[0]
    e, in_e, unit, r, per_r = _load_edges(vectors, scale, n_e, sizes[3])
    x = r * per_r
    envelope, slope = envelope_of(x, sizes[1])
    by_x = tl.load(grads[1] + e, mask=in_e, other=0) * slope
    for n in range(n_radial):
        function, rising, by_frequency = bessel_of(tl.load(radial[0] + n), x)
        grad = tl.load(grads[0] + e * n_radial + n, mask=in_e, other=0) * tl.load(radial[2] + n)
        by_x += grad * (rising * envelope + (function - tl.load(radial[1] + n)) * slope)
        if out[1] is not None:
            tl.store(out[1] + e * n_radial + n, grad * by_frequency * envelope, mask=in_e)
    by_unit = harmonics_back(grads[2], e, in_e, unit, couplings, sizes[2])
    store_gradient(out[0], e, in_e, unit, r, by_unit, by_x * per_r)


@triton.jit
@no_type_check
def _moving(vectors, scale, radial, moves, out, n_e, sizes: constexpr, couplings: constexpr):
    """How the three results change when pair vectors move; and the gradient of the first, times its gradient, by the
    frequencies, edge by edge."""
    n_radial: constexpr = sizes[0]
    e, in_e, unit, r, per_r = _load_edges(vectors, scale, n_e, sizes[3])
    along, turning = load_moves(moves[0], e, in_e, unit, r)
    x, dx = r * per_r, along * per_r
    envelope, slope = envelope_of(x, sizes[1])
    for n in range(n_radial):
        frequency, scaled = tl.load(radial[0] + n), tl.load(radial[2] + n)
        function, rising, cosine = bessel_of(frequency, x)
        change = rising * envelope + (function - tl.load(radial[1] + n)) * slope
        tl.store(out[0] + e * n_radial + n, scaled * change * dx, mask=in_e)
        if out[3] is not None:
            grad = tl.load(moves[1] + e * n_radial + n, mask=in_e, other=0) * scaled
            by_frequency = cosine * slope - frequency * x * function * envelope
            tl.store(out[3] + e * n_radial + n, grad * by_frequency * dx, mask=in_e)
    tl.store(out[1] + e, slope * dx, mask=in_e)
    store_harmonics(out[2], e, in_e, moving_harmonics(unit, turning, couplings, sizes[2]))


@cache
def couplings(l_max: int) -> tuple[float, ...]:
    """Coefficients of Y_{l+1,c} = Σ_ab C[l, a, b, c] Y_la Y_1b (:func:`raise_degree`), as kernels read them: one after
    the other, for l below l_max, with zeros where a has fewer than 9 values, or c fewer than 11."""
    out = torch.zeros(max(l_max, 1), 9, 3, 11, dtype=torch.float64)
    for degree in range(1, l_max):
        out[degree, : 2 * degree + 1, :, : 2 * degree + 3] = raise_degree(degree).unflatten(0, (-1, 3))
    return tuple(out.flatten().tolist())


Results = tuple[Float[Tensor, "n_edges n_radial"], Float[Tensor, "n_edges 1"], Float[Tensor, "n_edges dim"]]
"""Radial functions times the envelope, the envelope, and the harmonics."""


@dataclass(frozen=True, eq=False)
class Shape:
    """Constants of radial functions, envelope and harmonics."""

    mean: Float[Tensor, "n_radial"]
    """μ of each Bessel function."""
    inverse_std: Float[Tensor, "n_radial"]
    """1 / σ of each."""
    envelope_p: int
    l_max: int

    def results(self, vectors: Float[Tensor, "n_edges 3"]) -> Results:
        """Room for the results of these edges."""
        n, dim = len(vectors), (self.l_max + 1) ** 2
        return vectors.new_empty(n, len(self.mean)), vectors.new_empty(n, 1), vectors.new_empty(n, dim)

    def launch(
        self,
        kernel: Any,
        vectors: Float[Tensor, "n_edges 3"],
        scale: Float[Tensor, "n_edges"],
        frequencies: Float[Tensor, "n_radial"],
        *arrays: tuple[Float[Tensor, "..."] | None, ...],
    ) -> None:
        """Call one of the kernels, on arrays that are contiguous."""
        if not len(vectors):
            return
        sizes = len(self.mean), self.envelope_p, self.l_max, BLOCK
        radial = frequencies.contiguous(), self.mean, self.inverse_std
        with torch.cuda.device_of(vectors):
            kernel[(triton.cdiv(len(vectors), BLOCK),)](
                *(vectors, (scale, scale.stride(0)), radial, *arrays, len(vectors)),
                sizes=sizes,
                couplings=couplings(self.l_max),
                num_warps=4,
            )


def geometry(
    shape: Shape,
    vectors: Float[Tensor, "n_edges 3"],
    scale: Float[Tensor, "n_edges"],
    frequencies: Float[Tensor, "n_radial"],
) -> Results:
    """Radial functions, envelope and harmonics of pair vectors; differentiable twice, and by pair vectors once.

    Args:
        shape: constants.
        vectors: Å.
        scale: 1 / cutoff of each edge, 1/Å.
        frequencies: of the Bessel functions.
    """
    return _Geometry.apply(shape, vectors, scale, frequencies)


class _Geometry(torch.autograd.Function):
    """Radial functions, envelope and harmonics of pair vectors; differentiable twice, and by pair vectors once.

    The gradient by pair vectors has no gradient by these: where it is differentiated, that is by other things.
    """

    @staticmethod
    def forward(ctx: Any, shape: Shape, vectors: Tensor, scale: Tensor, frequencies: Tensor) -> Results:
        ctx.shape, vectors = shape, vectors.contiguous()
        ctx.save_for_backward(vectors, scale, frequencies)
        out = shape.results(vectors)
        shape.launch(_forwards, vectors, scale, frequencies, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_frequencies = ctx.needs_input_grad[3] and BY_WEIGHTS.on
        found = _Gradient.apply(ctx.shape, by_frequencies, *ctx.saved_tensors, *grads)
        return None, found[0], None, found[1] if by_frequencies else None


class _Gradient(torch.autograd.Function):
    """The gradient by pair vectors, and by frequencies; the first is differentiable by all but pair vectors."""

    @staticmethod
    def forward(
        ctx: Any,
        shape: Shape,
        by_frequencies: bool,
        vectors: Tensor,
        scale: Tensor,
        frequencies: Tensor,
        *grads: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        grads = tuple(g.contiguous() for g in grads)
        ctx.shape = shape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(vectors, scale, frequencies, grads[0])
        by_vectors, each = torch.empty_like(vectors), torch.empty_like(grads[0]) if by_frequencies else None
        shape.launch(_backwards, vectors, scale, frequencies, grads, (by_vectors, each))
        return by_vectors, None if each is None else each.sum(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, move: Tensor | None, by_frequencies: Tensor | None) -> tuple[Tensor | None, ...]:
        if by_frequencies is not None:
            raise NotImplementedError("gradients by the frequencies of a radial basis are not differentiated on a GPU")
        if move is None:
            return (None,) * 8
        vectors, scale, frequencies, grad = ctx.saved_tensors
        each = torch.empty_like(grad) if ctx.needs_input_grad[4] and BY_WEIGHTS.on else None
        out = ctx.shape.results(vectors)
        ctx.shape.launch(_moving, vectors, scale, frequencies, (move.contiguous(), grad), (*out, each))
        return None, None, None, None, None if each is None else each.sum(0), *out
