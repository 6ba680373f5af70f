"""What the kernels of strictly local networks share in Python; in C++ that is ``equicat/native/tile.h``.

A pair depends on the pairs of its own centre alone. So a kernel takes a few centres at a time forward and backward
through all layers, and what it knows about their edges never leaves the cache. For training it runs on dual numbers:
with the inputs perturbed along what comes back for the gradient, the derivative of every weight's gradient is that of
the gradient itself (forward over reverse). Nothing is kept between the two passes but the inputs.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat import native

MAX_DEGREE = 4
"""Largest l_max that is compiled."""
BLOCK_BYTES = 64
"""Columns of matrices come in blocks of this size (``BLOCK`` in ``numbers.h``)."""
POINTER = ctypes.c_void_p


class _Matrix(ctypes.Structure):
    _fields_ = (("data", POINTER), ("k", ctypes.c_int64), ("n", ctypes.c_int64), ("grad", POINTER))


class _Call(ctypes.Structure):
    _fields_ = (
        ("network", POINTER),
        *((name, ctypes.c_int64) for name in ("l_max", "channels", "n_matrices", "n_plain", "n_threads", "n_centers")),
        *((name, ctypes.c_int64) for name in ("width", "n_geometry")),
        *((name, POINTER) for name in ("first_edge", "norm")),
        ("embedding", ctypes.c_int64),
        *((name, POINTER) for name in ("pair", "e", "geometry")),
        *((name, POINTER) for name in ("e_tangent", "geometry_tangent", "to_energy")),
        *((name, ctypes.POINTER(_Matrix)) for name in ("matrices", "plain")),
        *((name, POINTER) for name in ("energy", "e_bar", "geometry_bar")),
    )


@dataclass(frozen=True, eq=False)
class Embedding:
    """What a kernel does first with the e of an edge: e W, times or plus a table's row for its pair of elements."""

    operation: Literal["times", "plus"]
    radial: Float[Tensor, "n_radial width"]
    """W."""
    table: Float[Tensor, "n_pairs width"]
    """By ordered pair of elements."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Of a call, as the kernel reads them, widths padded to multiples."""

    matrices: list[Tensor]
    """Each [k, n], multiplied from the right."""
    plain: list[Tensor]
    """Each [k, n]."""
    last: Float[Tensor, "1 n"]
    """The end of the readout."""
    embedding: Embedding | None = None

    def listed(self, multiple: int) -> tuple[list[Tensor], list[Tensor]]:
        """Matrices and others as the kernel numbers them: with those of the embedding, and the last at the end."""
        if self.embedding is None:
            return self.matrices, [*self.plain, self.last]
        radial, table = padded(self.embedding.radial, multiple), padded(self.embedding.table, multiple, rows=False)
        return [radial, *self.matrices], [*self.plain, table, self.last]


@dataclass(frozen=True, eq=False)
class Problem:
    """What a network tells its kernel, beside weights and edges."""

    library: ctypes.CDLL
    network: ctypes.Structure
    """What only this kernel knows."""
    l_max: int
    channels: int
    norm: Float[Tensor, "n_centers"]
    """Of environments."""
    owned: Any
    """What ``network`` points to: it lives as long as this."""


@dataclass(frozen=True, eq=False)
class _Launch:
    """All that a call needs but tensors that are differentiated."""

    problem: Problem
    first_edge: Int[Tensor, "n_centers_plus_1"]
    """Where each centre's edges begin, and the end."""
    pair: Int[Tensor, "n_edges"]
    """Ordered pair of elements of each edge, the row of the embedding's table."""
    embedding: Literal["times", "plus"] | None
    n_matrices: int

    def run(
        self, function: str, weights: Sequence[Tensor], grads: Sequence[Tensor] | None, arrays: dict[str, Tensor]
    ) -> None:
        """Call the kernel.

        Args:
            function: which.
            weights: ``n_matrices`` matrices, then plain ones.
            grads: of these, added to; None for none.
            arrays: the other fields of the call.
        """
        pointers = [g.data_ptr() for g in grads] if grads is not None else [None] * len(weights)
        listed = [_Matrix(w.data_ptr(), *w.shape, g) for w, g in zip(weights, pointers, strict=True)]
        matrices, plain = listed[: self.n_matrices], listed[self.n_matrices :]
        problem = self.problem
        call = _Call(
            network=ctypes.addressof(problem.network),
            l_max=problem.l_max,
            channels=problem.channels + -problem.channels % block(problem.norm.dtype),
            n_matrices=len(matrices),
            n_plain=len(plain),
            n_threads=torch.get_num_threads(),
            n_centers=len(problem.norm),
            width=arrays["e"].shape[1],
            n_geometry=arrays["geometry"].shape[1],
            first_edge=self.first_edge.data_ptr(),
            norm=problem.norm.data_ptr(),
            embedding={None: 0, "times": 1, "plus": 2}[self.embedding],
            pair=self.pair.data_ptr(),
            matrices=(_Matrix * len(matrices))(*matrices),
            plain=(_Matrix * len(plain))(*plain),
            **{name: array.data_ptr() for name, array in arrays.items()},
        )
        getattr(problem.library, function)(ctypes.byref(call))


class _EnergiesAndGradient(torch.autograd.Function):
    """E_i of centres, and ∂ΣE/∂e, ∂ΣE/∂geometry of edges; differentiable once."""

    @staticmethod
    def forward(ctx: Any, launch: _Launch, e: Tensor, geometry: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        e, geometry, weights = e.contiguous(), geometry.contiguous(), tuple(w.contiguous() for w in weights)
        ctx.launch = launch
        ctx.save_for_backward(e, geometry, *weights)
        out = (torch.empty_like(launch.problem.norm), torch.empty_like(e), torch.empty_like(geometry))
        arrays = dict(zip(("energy", "e_bar", "geometry_bar"), out, strict=True))
        launch.run("energies_and_gradient", weights, None, {"e": e, "geometry": geometry} | arrays)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_energy: Tensor, to_e_bar: Tensor, to_geometry_bar: Tensor) -> tuple[Tensor | None, ...]:
        e, geometry, *weights = ctx.saved_tensors
        e_bar, geometry_bar = torch.empty_like(e), torch.empty_like(geometry)
        grads = [torch.zeros_like(w) for w in weights]
        arrays = {"e": e, "geometry": geometry, "e_bar": e_bar, "geometry_bar": geometry_bar}
        seeds = {"to_energy": to_energy, "e_tangent": to_e_bar, "geometry_tangent": to_geometry_bar}
        seeds = {name: tensor.contiguous() for name, tensor in seeds.items()}
        ctx.launch.run("weight_gradients", weights, grads, arrays | seeds)
        return None, e_bar, geometry_bar, *grads


def remembered(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``make`` of a module, which reads its constants alone, called once for each module and dtype."""
    known: WeakKeyDictionary[nn.Module, tuple[torch.dtype, Any]] = WeakKeyDictionary()

    def of(module: nn.Module) -> Any:
        dtype = next(module.parameters()).dtype
        if module not in known or known[module][0] != dtype:
            known[module] = (dtype, make(module))
        return known[module][1]

    return of


def library(source: str, network: Any, edge_vec: Float[Tensor, "n_edges 3"]) -> ctypes.CDLL | None:
    """The kernel for such a network and edges, or None.

    There is none on other devices than a CPU, without a compiler or any edge, for networks with vectors or l_max above
    4, for other dtypes than float32 and float64, or where weights and edges differ in it.
    """
    suits = not network.n_vectors and network.config.l_max <= MAX_DEGREE
    same = next(network.parameters()).dtype == edge_vec.dtype
    if edge_vec.device.type != "cpu" or not len(edge_vec) or not suits or not same:
        return None
    return native.load(source, edge_vec.dtype)


def block(dtype: torch.dtype) -> int:
    """What widths are padded to a multiple of."""
    return BLOCK_BYTES // dtype.itemsize


def padded(weight: Float[Tensor, "k n"], multiple: int, rows: bool = True) -> Float[Tensor, "k_padded n_padded"]:
    """Rows and columns of zeros up to multiples: they multiply what is zero, or what nobody reads."""
    k, n = weight.shape
    return torch.nn.functional.pad(weight, (0, -n % multiple, 0, -k % multiple if rows else 0))


def by_channel(weight: Float[Tensor, "k n"], channels: int, multiple: int) -> Float[Tensor, "k_padded n_padded"]:
    """The same for columns that are blocks of channels: each block is padded."""
    blocks = torch.nn.functional.pad(weight.unflatten(1, (-1, channels)), (0, -channels % multiple))
    return padded(blocks.flatten(1), multiple)


def energies_and_gradient(
    problem: Problem,
    weights: Weights,
    edge_vec: Float[Tensor, "n_edges 3"],
    center: Int[Tensor, "n_edges"],
    see: Callable[[Float[Tensor, "n_edges 3"]], tuple[Tensor, Tensor, Tensor]],
    create_graph: bool,
) -> tuple[Float[Tensor, "n_centers"], Float[Tensor, "n_edges 3"]]:
    """Energies of centres, and the derivative of their sum by the pair vectors.

    Args:
        problem: what to call.
        weights: of the network and its readout.
        edge_vec: Å.
        center: of each edge, ascending.
        see: what the kernel sees of pair vectors: ordered pairs of elements [n_edges], e [n_edges, width] and geometry
            [n_edges, n_geometry].
        create_graph: whether both stay differentiable once by the weights.
    """
    multiple = block(edge_vec.dtype)
    with torch.enable_grad():
        edge_vec = edge_vec.detach().requires_grad_()
        pair, e, geometry = see(edge_vec)
        e = padded(e, multiple, rows=False)
    with torch.set_grad_enabled(create_graph):
        matrices, plain = weights.listed(multiple)
        first_edge = torch.nn.functional.pad(torch.bincount(center, minlength=len(problem.norm)).cumsum(0), (1, 0))
        operation = weights.embedding.operation if weights.embedding else None
        launch = _Launch(problem, first_edge, pair, operation, len(matrices))
        energy, *bars = _EnergiesAndGradient.apply(launch, e, geometry, *matrices, *plain)
    # Harmonics of degree 0 alone are constants.
    used = [(x, bar) for x, bar in zip((e, geometry), bars, strict=True) if x.requires_grad]
    outputs, bars = zip(*used, strict=True)
    (gradient,) = torch.autograd.grad(outputs, edge_vec, bars, create_graph=create_graph)
    return energy, gradient
