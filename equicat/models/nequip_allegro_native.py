"""The kernel of :mod:`equicat.models.nequip_allegro` on a processor: energies of atoms and their gradient in one pass.

A pair depends on the pairs of its own centre alone. So the kernel takes a few centres at a time forward and backward
through all layers, and what it knows about their edges never leaves the cache. For training it runs on dual numbers:
with the inputs perturbed along what comes back for the gradient, the derivative of every weight's gradient is that of
the gradient itself (forward over reverse). Nothing is kept between the two passes but the inputs.

The C++ is in ``equicat/native/nequip_allegro.cpp``; the PyTorch operators of the network are its oracle.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equicat import native
from equicat.models.nequip_allegro import NequipAllegro

MAX_DEGREE = 4
"""Largest l_max that is compiled."""
SOURCE = "nequip_allegro"
P = ctypes.c_void_p


class _Matrix(ctypes.Structure):
    _fields_ = (("data", P), ("k", ctypes.c_int64), ("n", ctypes.c_int64), ("grad", P))


class _Product(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n_terms", "n_paths", "dim_in", "dim_out")),
        *((name, P) for name in ("terms", "coefficients", "weight", "grad")),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n_layers", "l_max", "channels", "n_two_body", "n_latent", "n_head")),
        *((name, ctypes.c_int64) for name in ("features_silu", "n_threads", "n_centers")),
        *((name, P) for name in ("first_edge", "norm", "e", "sh", "e_tangent", "sh_tangent", "to_energy")),
        ("matrices", ctypes.POINTER(_Matrix)),
        ("products", ctypes.POINTER(_Product)),
        *((name, P) for name in ("last", "last_grad", "energy", "e_bar", "sh_bar")),
    )


@dataclass(frozen=True, eq=False)
class Terms:
    """The tensor product of a layer as a list: M[a, c] = Σ_t coefficient_t weight[p_t] A[b_t]."""

    indices: Int[Tensor, "n_terms 4"]
    """a, c, b, p of each coefficient that is not zero."""
    coefficients: Float[Tensor, "n_terms"]
    n_paths: int
    dim_in: int
    dim_out: int

    @classmethod
    def of(cls, coefficients: Sequence[Tensor]) -> "Terms":
        """From dense coefficients [a, c, p, b], one array for each irrep of the output."""
        first_c = [0, *accumulate(c.shape[1] for c in coefficients)]
        first_p = [0, *accumulate(c.shape[2] for c in coefficients)]
        found, values = [], []
        for array, c, p in zip(coefficients, first_c, first_p, strict=False):
            a_c_p_b = array.nonzero()
            values.append(array[tuple(a_c_p_b.t())])
            found.append(a_c_p_b[:, [0, 1, 3, 2]] + torch.tensor([0, c, 0, p]))
        order = sorted(range(sum(map(len, found))), key=(rows := torch.cat(found)).tolist().__getitem__)
        return cls(rows[order].contiguous(), torch.cat(values)[order], first_p[-1], len(coefficients[0]), first_c[-1])


@dataclass(frozen=True, eq=False)
class _Problem:
    """All that a call needs but tensors that are differentiated."""

    library: ctypes.CDLL
    sizes: dict[str, int]
    first_edge: Int[Tensor, "n_centers_plus_1"]
    norm: Float[Tensor, "n_centers"]
    terms: tuple[Terms, ...]

    def run(self, function: str, weights: Sequence[Tensor], grads: Sequence[Tensor | None], **arrays: Tensor) -> None:
        """Call the kernel.

        Args:
            function: which.
            weights: of matrices, then of products, then of the last linear map.
            grads: of these; None for none.
            arrays: the other fields of the call.
        """
        n_products = len(self.terms)
        matrices = [
            _Matrix(w.data_ptr(), *w.shape, g.data_ptr() if g is not None else None)
            for w, g in zip(weights[: -n_products - 1], grads, strict=False)
        ]
        products = [
            _Product(
                *(len(t.indices), t.n_paths, t.dim_in, t.dim_out, t.indices.data_ptr(), t.coefficients.data_ptr()),
                *(w.data_ptr(), g.data_ptr() if g is not None else None),
            )
            for t, w, g in zip(self.terms, weights[-n_products - 1 : -1], grads[-n_products - 1 : -1], strict=True)
        ]
        call = _Call(
            **self.sizes,
            n_threads=torch.get_num_threads(),
            n_centers=len(self.norm),
            first_edge=self.first_edge.data_ptr(),
            norm=self.norm.data_ptr(),
            matrices=(_Matrix * len(matrices))(*matrices),
            products=(_Product * len(products))(*products),
            last=weights[-1].data_ptr(),
            last_grad=grads[-1].data_ptr() if grads[-1] is not None else None,
            **{name: array.data_ptr() for name, array in arrays.items()},
        )
        getattr(self.library, function)(ctypes.byref(call))


class _EnergiesAndGradient(torch.autograd.Function):
    """E_i of centres, and ∂ΣE/∂e, ∂ΣE/∂Y of edges; differentiable once by e and the weights."""

    @staticmethod
    def forward(ctx: Any, problem: _Problem, e: Tensor, sh: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        e, sh, weights = e.contiguous(), sh.contiguous(), tuple(w.contiguous() for w in weights)
        ctx.problem = problem
        ctx.save_for_backward(e, sh, *weights)
        energy, e_bar, sh_bar = torch.empty_like(problem.norm), torch.empty_like(e), torch.empty_like(sh)
        arrays = {"e": e, "sh": sh, "energy": energy, "e_bar": e_bar, "sh_bar": sh_bar}
        problem.run("energies_and_gradient", weights, [None] * len(weights), **arrays)
        return energy, e_bar, sh_bar

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_energy: Tensor, to_e_bar: Tensor, to_sh_bar: Tensor) -> tuple[Tensor | None, ...]:
        e, sh, *weights = ctx.saved_tensors
        e_bar, sh_bar, grads = torch.empty_like(e), torch.empty_like(sh), [torch.zeros_like(w) for w in weights]
        seeds = {"to_energy": to_energy, "e_tangent": to_e_bar, "sh_tangent": to_sh_bar}
        seeds = {name: tensor.contiguous() for name, tensor in seeds.items()}
        ctx.problem.run("weight_gradients", weights, grads, e=e, sh=sh, e_bar=e_bar, sh_bar=sh_bar, **seeds)
        return None, e_bar, sh_bar, *grads


def _padded(weight: Tensor, multiple: int) -> Tensor:
    """[k, n] with rows and columns of zeros up to multiples: they multiply what is zero."""
    k, n = weight.shape
    return torch.nn.functional.pad(weight, (0, -n % multiple, 0, -k % multiple))


def _weights(network: NequipAllegro, readout: Sequence[Tensor], multiple: int) -> list[Tensor]:
    """Weights in the order in which the kernel reads them, widths padded: matrices, products, the last linear map."""
    config, n_layers, channels = network.config, network.config.n_layers, network.config.tensor_channels

    def by_channel(weight: Tensor) -> Tensor:
        k, n = weight.shape
        padded = torch.nn.functional.pad(weight.view(k, n // channels, channels), (0, -channels % multiple))
        return _padded(padded.flatten(1), multiple)

    readers = [*(layer.latent_mlp.weights[0].shape[1] for layer in network.layers), config.n_features]
    n_weights = (config.l_max + 1) * channels
    out = [_padded(w, multiple) for w in network.two_body_mlp.weights[:-1]]
    for k, composed in enumerate(network.composed()):
        if k > 0:
            first, *rest = network.layers[k - 1].latent_mlp.weights[:-1]
            out += [_padded(w, multiple) for w in (first[k * config.n_scalars :], *rest)]
        widths = [n_weights * (2 if k == 0 else 1)] if k < n_layers else []
        parts = composed.split([*widths, *readers[k:]], dim=1)
        out += [by_channel(w) for w in parts[: len(widths)]] + [_padded(w, multiple) for w in parts[len(widths) :]]
    out += [_padded(w, multiple) for w in readout[:-1]]
    for layer in network.layers:
        weight = layer.product.weight.expand(channels, -1).t()
        out.append(torch.nn.functional.pad(weight, (0, -channels % multiple)))
    return [*out, torch.nn.functional.pad(readout[-1][:, 0], (0, -len(readout[-1]) % multiple))]


def energies_and_gradient(
    network: NequipAllegro,
    readout: Sequence[Tensor],
    edge_vec: Float[Tensor, "n_edges 3"],
    edge_index: Int[Tensor, "2 n_edges"],
    species: Int[Tensor, "n_atoms"],
    create_graph: bool,
) -> tuple[Float[Tensor, "n_atoms"], Float[Tensor, "n_edges 3"]] | None:
    """Σ_j MLP(x^ij) of every centre, and the derivative of the sum of all by the pair vectors.

    Args:
        network: that makes x^ij.
        readout: weights of the MLP, the last of one column.
        edge_vec: Å.
        edge_index: sorted by centre.
        species: of atoms.
        create_graph: whether both stay differentiable once by the weights.

    Returns:
        None where there is no kernel: not on a CPU, without a compiler or any edge, for another dtype, with vectors, or
        for l_max > 4.
    """
    config = network.config
    if edge_vec.device.type != "cpu" or not len(edge_vec) or network.n_vectors or config.l_max > MAX_DEGREE:
        return None
    library = native.load(SOURCE, edge_vec.dtype)
    if library is None:
        return None
    multiple = int(library.block())
    n_edges = torch.bincount(edge_index[0], minlength=len(species))
    sizes = {
        "n_layers": config.n_layers,
        "l_max": config.l_max,
        "channels": config.tensor_channels + -config.tensor_channels % multiple,
        "n_two_body": len(config.two_body_hidden),
        "n_latent": len(config.latent_hidden),
        "n_head": len(readout) - 1,
        "features_silu": int(config.features_silu),
    }
    terms = tuple(Terms.of(layer.product.coefficients) for layer in network.layers)
    first_edge = torch.nn.functional.pad(n_edges.cumsum(0), (1, 0))
    problem = _Problem(library, sizes, first_edge, network.env_norm[species].to(edge_vec.dtype), terms)
    with torch.enable_grad():
        edge_vec = edge_vec.detach().requires_grad_()
        pair, basis, sh = network.geometry(edge_vec, edge_index, species)
        e = network.embedding(basis, pair)
        e = torch.nn.functional.pad(e, (0, -e.shape[1] % multiple))
    with torch.set_grad_enabled(create_graph):
        energy, e_bar, sh_bar = _EnergiesAndGradient.apply(problem, e, sh, *_weights(network, readout, multiple))
    outputs, bars = ((e, sh), (e_bar, sh_bar)) if config.l_max else (e, e_bar)  # Y_00 is a constant
    (gradient,) = torch.autograd.grad(outputs, edge_vec, bars, create_graph=create_graph)
    return energy, gradient
