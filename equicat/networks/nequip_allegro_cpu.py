"""The kernel in C++ of :mod:`equicat.networks.nequip_allegro`, whose oracle that is."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equicat.kernels.cpu.call import (
    POINTER,
    Embedding,
    Kernel,
    Problem,
    Radial,
    Weights,
    by_channel,
    padded,
    remembered,
)
from equicat.networks.layers import BesselBasis
from equicat.networks.nequip_allegro import NequipAllegro, ProductEmbedding, SplineEmbedding


class _Product(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n_terms", "dim_in", "dim_out")),
        *((name, POINTER) for name in ("terms", "coefficients")),
    )


class _Network(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n_layers", "n_two_body", "n_latent", "features_silu")),
        ("products", ctypes.POINTER(_Product)),
    )


@dataclass(frozen=True, eq=False)
class Terms:
    """The tensor product of a layer as a list: M[a, c] = Σ_t coefficient_t weight[p_t] A[b_t]."""

    indices: Int[Tensor, "n_terms 4"]
    """a, c, b, p of each coefficient that is not zero."""
    coefficients: Float[Tensor, "n_terms"]
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
        rows = torch.cat(found)
        order = sorted(range(len(rows)), key=rows.tolist().__getitem__)
        return cls(rows[order].contiguous(), torch.cat(values)[order], len(coefficients[0]), first_c[-1])


_terms = remembered(lambda product: Terms.of(product.coefficients))


def _weights(network: NequipAllegro, readout: Sequence[Tensor], multiple: int) -> Weights:
    """In the order in which the kernel reads them."""
    config, n_layers, channels = network.config, network.config.n_layers, network.config.tensor_channels
    readers = [*(layer.latent_mlp.weights[0].shape[1] for layer in network.layers), config.n_features]
    n_weights = (config.l_max + 1) * channels
    matrices = [padded(w, multiple) for w in network.two_body_mlp.weights[:-1]]
    for k, composed in enumerate(network.composed()):
        if k > 0:
            first, *rest = network.layers[k - 1].latent_mlp.weights[:-1]
            matrices += [padded(w, multiple) for w in (first[k * config.n_scalars :], *rest)]
        env = [n_weights * (2 if k == 0 else 1)] if k < n_layers else []
        parts = composed.split([*env, *readers[k:]], dim=1)
        matrices += [by_channel(w, channels, multiple) for w in parts[: len(env)]]
        matrices += [padded(w, multiple) for w in parts[len(env) :]]
    matrices += [padded(w, multiple) for w in readout[:-1]]
    products = [layer.product.weight.expand(channels, -1).t() for layer in network.layers]
    *plain, last = (padded(w, multiple, rows=False) for w in (*products, readout[-1].t()))
    return Weights(_embedding(network), matrices, plain, last)


def _embedding(network: NequipAllegro) -> Embedding:
    basis, embedding = network.basis, network.embedding
    if isinstance(basis, BesselBasis) and isinstance(embedding, ProductEmbedding):
        return Embedding("times", basis.frequencies, embedding.table(), embedding.radial)
    assert isinstance(embedding, SplineEmbedding)
    return Embedding("matrices", embedding.weight.new_empty(0), embedding.weight)


def _problem(network: NequipAllegro, species: Int[Tensor, "n_atoms"]) -> Problem:
    config, like = network.config, network.readout
    terms = [_terms(layer.product) for layer in network.layers]
    products = [
        _Product(len(t.indices), t.dim_in, t.dim_out, t.indices.data_ptr(), t.coefficients.data_ptr()) for t in terms
    ]
    sizes = (config.n_layers, len(config.two_body_hidden), len(config.latent_hidden), config.features_silu)
    span = config.spline_span if config.radial == "spline" else None
    return Problem(
        _Network(*sizes, (_Product * len(products))(*products)),
        config.l_max,
        config.tensor_channels,
        Radial(network.inverse_cutoff.to(like.dtype), config.n_radial, span, config.envelope_p),
        norm=network.env_norm[species].to(like.dtype),
        owned=terms,
    )


KERNEL = Kernel("nequip_allegro", _problem, _weights)
