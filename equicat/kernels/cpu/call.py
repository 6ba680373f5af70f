"""What the kernels of strictly local networks share in Python; in C++ that is ``equicat/kernels/cpu/tile.h``.

A pair depends on the pairs of its own centre alone. So a kernel takes a few centres at a time forward and backward
through all layers, and what it knows about their edges never leaves the cache. For training it runs on dual numbers:
with the pair vectors perturbed along what comes back for the gradient, the derivative of every weight's gradient is
that of the gradient itself (forward over reverse). Nothing has to be kept between the two passes but the inputs;
products of large matrices are, because computing them again takes longer than reading them.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal
from weakref import WeakKeyDictionary, finalize

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat.kernels import backend
from equicat.kernels.cpu import build
from equicat.kernels.harmonics import raise_degree

BLOCK_BYTES = 64
"""Columns of matrices come in blocks of this size (``BLOCK`` in ``numbers.h``)."""
POINTER = ctypes.c_void_p


def integers(*names: str) -> tuple[tuple[str, type], ...]:
    """Fields of a structure."""
    return tuple((name, ctypes.c_int64) for name in names)


def pointers(*names: str) -> tuple[tuple[str, type], ...]:
    """Fields of a structure: the addresses of arrays."""
    return tuple((name, POINTER) for name in names)


class _Matrix(ctypes.Structure):
    _fields_ = (*pointers("data"), *integers("k", "n"), *pointers("grad"))


class _Geometry(ctypes.Structure):
    _fields_ = (
        *integers("n_species", "splines", "n_radial", "envelope_p", "span", "n_terms"),
        *pointers("neighbor", "species", "inverse_cutoff", "terms", "coefficients", "edge_vec", "tangent", "gradient"),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        *pointers("network"),
        *integers("l_max", "channels", "n_matrices", "n_plain", "n_threads", "n_centers", "embedding"),
        *pointers("first_edge", "norm"),
        ("matrices", ctypes.POINTER(_Matrix)),
        ("plain", ctypes.POINTER(_Matrix)),
        *pointers("to_energy", "energy", "tape"),
        ("geometry", _Geometry),
    )


class _Handle(ctypes.Structure):
    _fields_ = pointers("tape")


@dataclass(frozen=True, eq=False)
class Radial:
    """Radial functions of a pair, without their weights."""

    inverse_cutoff: Float[Tensor, "n_pairs"]
    """1/Å, by ordered pair of elements."""
    n: int
    span: int | None = None
    """Overlapping splines (:class:`equicat.networks.layers.SplineBasis`); None: Bessel functions and an envelope."""
    envelope_p: int = 6


@dataclass(frozen=True, eq=False)
class Embedding:
    """What a kernel does first with the radial functions e of a pair."""

    operation: Literal["times", "plus", "matrices"]
    """e W times or plus the table's row for its pair of elements, or e times the matrix of that pair."""
    frequencies: Float[Tensor, "n_frequencies"]
    """Of Bessel functions; empty for splines."""
    table: Float[Tensor, "n_pairs width"] | Float[Tensor, "n_pairs n_radial width"]
    radial: Float[Tensor, "n_radial width"] | None = None
    """W."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Of a call, as the kernel reads them, widths padded to multiples."""

    embedding: Embedding
    matrices: list[Tensor]
    """Each [k, n], multiplied from the right."""
    plain: list[Tensor]
    """Each [k, n]."""
    last: Float[Tensor, "1 n"]
    """The end of the readout."""

    def listed(self, multiple: int) -> tuple[list[Tensor], list[Tensor]]:
        """Matrices and others as the kernel numbers them: with those of the embedding, and the last at the end."""
        embedding = self.embedding
        first = [] if embedding.radial is None else [padded(embedding.radial, multiple)]
        table = padded(embedding.table.flatten(0, -2), multiple, rows=False)
        return [*first, *self.matrices], [*self.plain, embedding.frequencies[None], table, self.last]


@dataclass(frozen=True, eq=False)
class Problem:
    """What a network tells its kernel, beside weights and edges."""

    network: ctypes.Structure
    """What only this kernel knows."""
    l_max: int
    channels: int
    radial: Radial
    norm: Float[Tensor, "n_centers"]
    """Of environments."""
    owned: Any
    """What ``network`` points to: it lives as long as this."""


@dataclass(frozen=True)
class Kernel:
    """Energies of centres and their gradient, all in one; PyTorch's operators are its oracle.

    Args:
        source: name of the C++ file.
        problem: what the kernel has to know of a network, given the species of atoms.
        weights: of a network and of the readout, given what widths are padded to a multiple of.
        structures: what the kernel reads of ``problem``, for numbers of a type.
    """

    source: str
    problem: Callable[[Any, Int[Tensor, "n_atoms"]], Problem]
    weights: Callable[[Any, Sequence[Tensor], int], Weights]
    structures: Callable[[torch.dtype], tuple[type[ctypes.Structure], ...]]

    def library(self, network: Any, like: Tensor) -> ctypes.CDLL | None:
        """What is called for this network and such positions, or None.

        There is nothing on other devices than a CPU, without a compiler, for networks with vectors or l_max above 4,
        for other dtypes than float32 and float64, or where weights and positions differ in it.
        """
        suits = not network.n_vectors and network.config.l_max <= build.MAX_DEGREE
        same = next(network.parameters()).dtype == like.dtype
        if not (backend.enabled() and like.device.type == "cpu" and like.dtype in build.REALS and suits and same):
            return None
        return build.load(self.source, like.dtype, (_Call, _Matrix, _Geometry, *self.structures(like.dtype)))

    def energies_and_gradient(
        self,
        network: nn.Module,
        readout: Sequence[Tensor],
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
        create_graph: bool,
        keep: bool = True,
    ) -> tuple[Float[Tensor, "n_atoms"], Float[Tensor, "n_edges 3"]]:
        """Σ_j MLP(x^ij) of every centre, and the derivative of the sum of all by the pair vectors.

        Args:
            network: that makes x^ij; one for which there is a library.
            readout: weights of the MLP, the last of one column.
            edge_vec: Å.
            edge_index: sorted by centre.
            species: of atoms.
            create_graph: whether both stay differentiable once by the weights.
            keep: products of large matrices until then: less time, more memory.
        """
        library = self.library(network, edge_vec)
        assert library is not None
        center, neighbor = edge_index
        ends = torch.bincount(center, minlength=len(species)).cumsum(0)
        with torch.set_grad_enabled(create_graph):
            problem, multiple = self.problem(network, species), block(edge_vec.dtype)
            weights = self.weights(network, readout, multiple)
            matrices, plain = weights.listed(multiple)
            first_edge, edge_vec = torch.nn.functional.pad(ends, (1, 0)), edge_vec.detach().contiguous()
            edges = _Edges(first_edge, neighbor.contiguous(), species.contiguous(), edge_vec)
            launch = _Launch(library, problem, edges, weights.embedding.operation, len(matrices))
            return _EnergiesAndGradient.apply(launch, keep, *matrices, *plain)


@dataclass(frozen=True, eq=False)
class _Edges:
    first_edge: Int[Tensor, "n_centers_plus_1"]
    """Where each centre's edges begin, and the end."""
    neighbor: Int[Tensor, "n_edges"]
    species: Int[Tensor, "n_atoms"]
    edge_vec: Float[Tensor, "n_edges 3"]


@dataclass(frozen=True, eq=False)
class _Launch:
    """All that a call needs but tensors that are differentiated."""

    library: ctypes.CDLL
    problem: Problem
    edges: _Edges
    embedding: Literal["times", "plus", "matrices"]
    n_matrices: int

    def run(
        self,
        function: str,
        weights: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        tape: "_Tape | None",
        arrays: dict[str, Tensor],
    ) -> None:
        """Call the kernel.

        Args:
            function: which.
            weights: ``n_matrices`` matrices, then plain ones.
            grads: of these, added to; None where they are not asked for.
            tape: written by the first pass, read by the second.
            arrays: written by the first pass, ``energy`` of centres and ``gradient`` by pair vectors; read by the
                second, ``to_energy`` and ``tangent``, what both are multiplied with in what is differentiated.
        """
        listed = [_Matrix(_address(w), *w.shape, _address(g)) for w, g in zip(weights, grads, strict=True)]
        matrices, plain = listed[: self.n_matrices], listed[self.n_matrices :]
        problem, edges, radial = self.problem, self.edges, self.problem.radial
        terms, coefficients = _harmonics(problem.l_max, edges.edge_vec.dtype)
        n_species = math.isqrt(len(radial.inverse_cutoff))
        call = _Call(
            network=ctypes.addressof(problem.network),
            l_max=problem.l_max,
            channels=problem.channels + -problem.channels % block(edges.edge_vec.dtype),
            n_matrices=len(matrices),
            n_plain=len(plain),
            n_threads=torch.get_num_threads(),
            n_centers=len(problem.norm),
            embedding=("times", "plus", "matrices").index(self.embedding),
            first_edge=_address(edges.first_edge),
            norm=_address(problem.norm),
            matrices=(_Matrix * len(matrices))(*matrices),
            plain=(_Matrix * len(plain))(*plain),
            to_energy=_address(arrays.get("to_energy")),
            energy=_address(arrays.get("energy")),
            tape=tape and tape.handle,
            geometry=_Geometry(
                *(n_species, radial.span is not None, radial.n, radial.envelope_p, radial.span or 0, len(terms)),
                *map(_address, (edges.neighbor, edges.species, radial.inverse_cutoff, terms, coefficients)),
                *map(_address, (edges.edge_vec, arrays.get("tangent"), arrays.get("gradient"))),
            ),
        )
        build.call(self.library, function, call)


class _Tape:
    """Of products of matrices, between the two passes; the memory is the kernel's."""

    def __init__(self, library: ctypes.CDLL):
        handle = _Handle()
        build.call(library, "new_tape", handle)
        self.handle = handle.tape
        finalize(self, build.call, library, "delete_tape", handle)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class _EnergiesAndGradient(torch.autograd.Function):
    """E_i of centres, and ∂ΣE/∂(edge_vec); differentiable once by weights."""

    @staticmethod
    def forward(ctx: Any, launch: _Launch, keep: bool, *weights: Tensor) -> tuple[Tensor, Tensor]:
        weights = tuple(w.contiguous() for w in weights)
        ctx.launch, ctx.tape = launch, _Tape(launch.library) if keep and any(ctx.needs_input_grad) else None
        ctx.save_for_backward(*weights)
        energy, gradient = torch.empty_like(launch.problem.norm), torch.empty_like(launch.edges.edge_vec)
        out = {"energy": energy, "gradient": gradient}
        launch.run("energies_and_gradient", weights, [None] * len(weights), ctx.tape, out)
        return energy, gradient

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_energy: Tensor, to_gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, (_, _, *needed) = ctx.saved_tensors, ctx.needs_input_grad
        grads = [torch.zeros_like(w) if need else None for w, need in zip(weights, needed, strict=True)]
        seeds = {"to_energy": to_energy.contiguous(), "tangent": to_gradient.contiguous()}
        ctx.launch.run("weight_gradients", weights, grads, ctx.tape, seeds)
        return None, None, *grads


@cache
def _harmonics(l_max: int, dtype: torch.dtype) -> tuple[Int[Tensor, "n_terms 3"], Float[Tensor, "n_terms"]]:
    """(c, a, b) and coefficient of all terms of Y_c = Σ coefficient Y_a Y_b, degree by degree, b of degree 1."""
    terms, values = [torch.zeros(0, 3, dtype=torch.int64)], [torch.zeros(0, dtype=dtype)]
    for degree in range(1, l_max):
        coefficients = raise_degree(degree).unflatten(0, (2 * degree + 1, 3))
        a_b_c = coefficients.nonzero()
        first = torch.tensor([degree**2, 1, (degree + 1) ** 2])
        terms.append((a_b_c + first)[:, [2, 0, 1]])
        values.append(coefficients[tuple(a_b_c.t())].to(dtype))
    return torch.cat(terms).contiguous(), torch.cat(values)


def remembered(make: Callable[[Any, Tensor], Any]) -> Callable[[Any, Tensor], Any]:
    """``make(module, like)``, which reads constants of the module alone, called once for each module and precision."""
    known: WeakKeyDictionary[nn.Module, dict[torch.dtype, Any]] = WeakKeyDictionary()

    def of(module: nn.Module, like: Tensor) -> Any:
        by_dtype = known.setdefault(module, {})
        if like.dtype not in by_dtype:
            by_dtype[like.dtype] = make(module, like)
        return by_dtype[like.dtype]

    return of


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
