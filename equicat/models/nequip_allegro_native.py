"""The kernel of :mod:`equicat.models.nequip_allegro` (``equicat/native/nequip_allegro.cpp``), whose oracle that is."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equicat.models import kernels
from equicat.models.kernels import POINTER, Embedding, Problem, Weights, by_channel, padded, remembered
from equicat.models.nequip_allegro import NequipAllegro, ProductEmbedding


class _Product(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n_terms", "dim_in", "dim_out")),
        *((name, POINTER) for name in ("terms", "coefficients")),
    )


class _Network(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n_layers", "n_two_body", "n_latent", "n_head", "features_silu")),
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
    embedding = None
    if isinstance(network.embedding, ProductEmbedding):
        embedding = Embedding("times", network.embedding.radial, network.embedding.table())
    return Weights(matrices, plain, last, embedding)


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
        None where there is no kernel (see :func:`equicat.models.kernels.library`).
    """
    config = network.config
    library = kernels.library("nequip_allegro", network, edge_vec)
    if library is None:
        return None
    terms = [_terms(layer.product) for layer in network.layers]
    products = [
        _Product(len(t.indices), t.dim_in, t.dim_out, t.indices.data_ptr(), t.coefficients.data_ptr()) for t in terms
    ]
    sizes = (config.n_layers, len(config.two_body_hidden), len(config.latent_hidden), len(readout) - 1)
    problem = Problem(
        library,
        _Network(*sizes, config.features_silu, (_Product * len(products))(*products)),
        config.l_max,
        config.tensor_channels,
        norm=network.env_norm[species].to(edge_vec.dtype),
        owned=terms,
    )

    def see(edge_vec: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pair, basis, sh = network.geometry(edge_vec, edge_index, species)
        return pair, (basis if config.radial == "bessel" else network.embedding(basis, pair)), sh

    weights = _weights(network, readout, kernels.block(edge_vec.dtype))
    return kernels.energies_and_gradient(problem, weights, edge_vec, edge_index[0], see, create_graph)
