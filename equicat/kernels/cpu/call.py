"""Calls of the kernels of strictly local networks: their arguments, their memory, and autograd around them.

A pair depends on the pairs of its own centre alone. So a kernel takes a few centres at a time forward and backward
through all layers, and what it knows about their edges never leaves the cache. For training it runs once more, on dual
numbers: pair vectors are perturbed along dL/d(gradient), and the ε part of a weight's gradient is then its gradient of
the loss (forward over reverse). Nothing but the inputs must be kept between the two passes; results of large matrix
products are, because computing them again takes longer than reading them.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal
from weakref import WeakKeyDictionary, finalize

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from equicat.kernels import backend
from equicat.kernels.cpu import build
from equicat.kernels.edges import Edges
from equicat.kernels.frozen import Frozen
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


class Layer(ctypes.Structure):
    """A layer of a network; fields that its flavour does not have stay 0."""

    _fields_ = (
        *integers("n_terms", "n_rows"),
        *pointers("terms", "coefficients"),
        *integers("n_columns", "n_outputs", "n_irreps", "n_mixed"),
        *pointers("columns", "outputs", "dims"),
    )


class Network(ctypes.Structure):
    """The numbers of matrices of a network, and its layers."""

    _fields_ = (
        *integers("n_layers", "n_two_body", "n_env", "n_latent", "features_silu"),
        ("layers", ctypes.POINTER(Layer)),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        ("network", ctypes.POINTER(Network)),
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
    """Number of radial functions."""
    span: int | None = None
    """Overlapping splines (:class:`equicat.networks.layers.SplineBasis`); None: Bessel functions and an envelope."""
    envelope_p: int = 6


@dataclass(frozen=True, eq=False)
class Embedding:
    """The first step of a kernel: from the radial functions e of a pair to its embedding."""

    operation: Literal["times", "plus", "matrices"]
    """times, plus: e W times or plus the table's row for the pair of elements; matrices: e times that pair's matrix."""
    frequencies: Float[Tensor, "n_frequencies"]
    """Frequencies of Bessel functions; empty for splines."""
    table: Float[Tensor, "n_pairs width"] | Float[Tensor, "n_pairs n_radial width"]
    radial: Float[Tensor, "n_radial width"] | None = None
    """W."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of a network and its readout as the kernel reads them, widths padded to multiples of a block."""

    embedding: Embedding
    matrices: list[Tensor]
    """Each [k, n], multiplied from the right."""
    plain: list[Float[Tensor, "_ _"]]
    """Weights [k, n] that are no matrices to multiply with."""
    last: Float[Tensor, "1 n"]
    """The last weights of the readout."""

    def listed(self, multiple: int) -> tuple[list[Float[Tensor, "_ _"]], list[Float[Tensor, "_ _"]]]:
        """``matrices`` and ``plain`` as the kernel numbers them: the embedding's matrix first; frequencies, table and
        last weights at the end."""
        embedding = self.embedding
        first = [] if embedding.radial is None else [padded(embedding.radial, multiple)]
        table = padded(embedding.table.flatten(0, -2), multiple, rows=False)
        return [*first, *self.matrices], [*self.plain, embedding.frequencies[None], table, self.last]


@dataclass(frozen=True, eq=False)
class Problem:
    """The sizes and constants of a network, as its kernel reads them."""

    network: Network
    l_max: int
    channels: int
    radial: Radial
    norm: Float[Tensor, "n_centers"]
    """Factor of the environment of each centre."""
    owned: Any
    """Owners of the memory that ``network`` points to, kept alive."""


@dataclass(frozen=True)
class Kernel:
    """Energies of centres and their gradient, all in one; PyTorch's operators are its oracle.

    Args:
        flavour: class in C++ that ``allegro.cpp`` is compiled for.
        problem: of a network and the species of atoms.
        weights: of a network, a readout, and the number that widths are padded to a multiple of.
    """

    flavour: Literal["Published", "Nequip"]
    problem: Callable[[Any, Int[Tensor, "n_atoms"]], Problem]
    weights: Callable[[Any, Sequence[Tensor], int], Weights]

    def library(self, network: Any, like: Shaped[Tensor, "..."]) -> ctypes.CDLL | None:
        """The compiled kernel for this network and such positions, or None.

        It is None on other devices than a CPU, without a compiler, with ``EQUICAT_NATIVE=0``, for networks with vectors
        or l_max above 4, for other dtypes than float32 and float64, or where weights and positions differ in dtype.
        """
        suits = not network.n_vectors and network.config.l_max <= build.MAX_DEGREE
        same = next(network.parameters()).dtype == like.dtype
        if not (backend.enabled() and like.device.type == "cpu" and like.dtype in build.REALS and suits and same):
            return None
        return build.load("allegro", like.dtype, (_Call, _Matrix, _Geometry, Network, Layer), self.flavour)

    def energies_and_gradient(
        self,
        network: nn.Module,
        readout: Sequence[Float[Tensor, "_ _"]],
        edges: Edges,
        create_graph: bool,
        keep: bool = True,
    ) -> tuple[Float[Tensor, "n_atoms"], Float[Tensor, "n_edges 3"]]:
        """Σ_j MLP(x^ij) of every centre, and the derivative of their total by the pair vectors.

        An edge and its reverse between equal elements may share their radial part, whose gradient then stands at one of
        the two: only sums over both, such as forces and virial, mean something.

        Args:
            network: makes x^ij; :meth:`library` has a kernel for it.
            readout: weights of the MLP, the last with one column.
            edges: of some centres, all that they have.
            create_graph: both results stay differentiable once by the weights.
            keep: for this derivative, keep results of large matrix products: less time, more memory.

        Raises:
            MemoryError: if memory does not suffice.
            RuntimeError: if the kernel refuses its arguments.
        """
        with torch.set_grad_enabled(create_graph):
            launch, weights = self.launch(network, readout, edges)
            return _EnergiesAndGradient.apply(launch, keep and create_graph, *weights)

    def launch(
        self, network: nn.Module, readout: Sequence[Float[Tensor, "_ _"]], edges: Edges
    ) -> tuple["Launch", list[Float[Tensor, "_ _"]]]:
        """A call of the kernel, and the weights that it reads."""
        edge_vec, (center, neighbor), species = edges.edge_vec.detach(), edges.edge_index, edges.species
        library = self.library(network, edge_vec)
        assert library is not None
        first_edge = torch.nn.functional.pad(torch.bincount(center, minlength=len(species)).cumsum(0), (1, 0))
        operation, matrices, plain = self._listed(network, readout, block(edge_vec.dtype))
        launch = Launch(
            *(library, self.problem(network, species), operation, len(matrices)),
            *(x.contiguous() for x in (first_edge, neighbor, species, edge_vec)),
        )
        return launch, [*matrices, *plain]

    def _listed(self, network: nn.Module, readout: Sequence[Tensor], multiple: int) -> "_Listed":
        """The operation of the embedding, and the weights as the kernel numbers them; frozen ones are prepared once."""

        def make() -> _Listed:
            weights = self.weights(network, readout, multiple)
            matrices, plain = weights.listed(multiple)
            return weights.embedding.operation, [w.contiguous() for w in matrices], [w.contiguous() for w in plain]

        return _PREPARED(network, [*network.parameters(), *readout], make)


_Listed = tuple[Literal["times", "plus", "matrices"], list[Tensor], list[Tensor]]

_PREPARED = Frozen[_Listed]()
"""Weights of frozen networks as kernels read them."""


@dataclass(frozen=True, eq=False)
class Launch:
    """Arguments of a kernel call, except the tensors that autograd tracks."""

    library: ctypes.CDLL
    problem: Problem
    embedding: Literal["times", "plus", "matrices"]
    n_matrices: int
    first_edge: Int[Tensor, "n_centers_plus_1"]
    """Where the edges of each centre begin, and where the last ones end."""
    neighbor: Int[Tensor, "n_edges"]
    species: Int[Tensor, "n_atoms"]
    edge_vec: Float[Tensor, "n_edges 3"]

    def run(
        self,
        function: str,
        weights: Sequence[Float[Tensor, "_ _"]],
        grads: Sequence[Float[Tensor, "_ _"] | None],
        tape: "_Tape | None",
        arrays: dict[str, Float[Tensor, "..."]],
    ) -> None:
        """Call the kernel.

        Args:
            function: ``energies_and_gradient`` (first pass) or ``weight_gradients`` (second).
            weights: ``n_matrices`` matrices, then plain ones.
            grads: gradients of the loss by these, added to in the second pass; None where they are not needed.
            tape: written by the first pass, read by the second.
            arrays: the first pass writes ``energy`` [n_centers] and ``gradient`` [n_edges, 3]; the second reads
                ``to_energy`` [n_centers] = dL/dE_i and ``tangent`` [n_edges, 3] = dL/d(gradient).
        """
        listed = [_Matrix(_address(w), *w.shape, _address(g)) for w, g in zip(weights, grads, strict=True)]
        matrices, plain = listed[: self.n_matrices], listed[self.n_matrices :]
        problem, radial, dtype = self.problem, self.problem.radial, self.edge_vec.dtype
        terms, coefficients = harmonic_terms(problem.l_max, dtype)
        n_species = math.isqrt(len(radial.inverse_cutoff))
        call = _Call(
            network=ctypes.pointer(problem.network),
            l_max=problem.l_max,
            channels=problem.channels + -problem.channels % block(dtype),
            n_matrices=len(matrices),
            n_plain=len(plain),
            n_threads=torch.get_num_threads(),
            n_centers=len(problem.norm),
            embedding=("times", "plus", "matrices").index(self.embedding),
            first_edge=_address(self.first_edge),
            norm=_address(problem.norm),
            matrices=(_Matrix * len(matrices))(*matrices),
            plain=(_Matrix * len(plain))(*plain),
            to_energy=_address(arrays.get("to_energy")),
            energy=_address(arrays.get("energy")),
            tape=tape and tape.handle,
            geometry=_Geometry(
                *(n_species, radial.span is not None, radial.n, radial.envelope_p, radial.span or 0, len(terms)),
                *map(_address, (self.neighbor, self.species, radial.inverse_cutoff, terms, coefficients)),
                *map(_address, (self.edge_vec, arrays.get("tangent"), arrays.get("gradient"))),
            ),
        )
        build.call(self.library, function, call)


class _Tape:
    """Results of matrix products, kept between the two passes in memory of the kernel."""

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
    def forward(ctx: Any, launch: Launch, keep: bool, *weights: Tensor) -> tuple[Tensor, Tensor]:
        ctx.launch, ctx.tape = launch, _Tape(launch.library) if keep and any(ctx.needs_input_grad) else None
        ctx.save_for_backward(*weights)
        energy, gradient = torch.empty_like(launch.problem.norm), torch.empty_like(launch.edge_vec)
        written = {"energy": energy, "gradient": gradient}
        launch.run("energies_and_gradient", weights, [None] * len(weights), ctx.tape, written)
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
def harmonic_terms(l_max: int, dtype: torch.dtype) -> tuple[Int[Tensor, "n_terms 3"], Float[Tensor, "n_terms"]]:
    """(c, a, b) and coefficient of all terms of Y_c = Σ coefficient Y_a Y_b, degree by degree, b of degree 1."""
    terms, values = [torch.zeros(0, 3, dtype=torch.int64)], [torch.zeros(0, dtype=dtype)]
    for degree in range(1, l_max):
        coefficients = raise_degree(degree).unflatten(0, (2 * degree + 1, 3))
        a_b_c = coefficients.nonzero()
        first = torch.tensor([degree**2, 1, (degree + 1) ** 2])
        terms.append((a_b_c + first)[:, [2, 0, 1]])
        values.append(coefficients[tuple(a_b_c.t())].to(dtype))
    return torch.cat(terms).contiguous(), torch.cat(values)


def remembered(make: Callable[[Any, Float[Tensor, "..."]], Any]) -> Callable[[Any, Float[Tensor, "..."]], Any]:
    """``make(module, like)``, which reads constants of the module alone, called once for each module and precision."""
    known: WeakKeyDictionary[nn.Module, dict[torch.dtype, Any]] = WeakKeyDictionary()

    def of(module: nn.Module, like: Tensor) -> Any:
        by_dtype = known.setdefault(module, {})
        if like.dtype not in by_dtype:
            by_dtype[like.dtype] = make(module, like)
        return by_dtype[like.dtype]

    return of


def block(dtype: torch.dtype) -> int:
    """Numbers in a block: widths are padded to multiples of it."""
    return BLOCK_BYTES // dtype.itemsize


def padded(weight: Float[Tensor, "k n"], multiple: int, rows: bool = True) -> Float[Tensor, "k_padded n_padded"]:
    """The weight with zero rows and columns up to multiples; they meet zeros, or make columns that nobody reads."""
    k, n = weight.shape
    return torch.nn.functional.pad(weight, (0, -n % multiple, 0, -k % multiple if rows else 0))


def by_channel(weight: Float[Tensor, "k n"], channels: int, multiple: int) -> Float[Tensor, "k_padded n_padded"]:
    """The weight, whose columns are blocks of channels, with each block padded by zeros to a multiple."""
    blocks = torch.nn.functional.pad(weight.unflatten(1, (-1, channels)), (0, -channels % multiple))
    return padded(blocks.flatten(1), multiple)
