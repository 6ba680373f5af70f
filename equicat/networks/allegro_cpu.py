"""Weights and constants of both flavours of Allegro, as their kernels in C++ read them.

The kernels are ``equicat/kernels/cpu/allegro.cpp`` and ``nequip_allegro.cpp``; the network is their oracle.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equicat.kernels.cpu.call import (
    Embedding,
    Kernel,
    Problem,
    Radial,
    Weights,
    by_channel,
    integers,
    padded,
    pointers,
    remembered,
)
from equicat.kernels.irreps import dim
from equicat.networks.allegro_embeddings import ProductEmbedding, SplineEmbedding, TwoBody
from equicat.networks.allegro_parts import AllegroLayer, NequipAllegro, PublishedAllegro, TensorProduct
from equicat.networks.layers import BesselBasis

# ---- published -----------------------------------------------------------------------------------------------------


class _Layer(ctypes.Structure):
    _fields_ = (
        *integers("n_terms", "n_rows", "n_outputs", "n_irreps", "n_mixed"),
        *pointers("terms", "coefficients", "columns", "outputs", "dims"),
    )


def _allegro(real: type) -> type[ctypes.Structure]:
    class Allegro(ctypes.Structure):
        _fields_ = (
            *integers("n_layers", "n_two_body", "n_env", "n_latent"),
            *((name, real) for name in ("keep", "change")),
            ("layers", ctypes.POINTER(_Layer)),
        )

    return Allegro


_ALLEGRO = {torch.float32: _allegro(ctypes.c_float), torch.float64: _allegro(ctypes.c_double)}


@dataclass(frozen=True, eq=False)
class Lists:
    """A layer's :class:`~equicat.kernels.irreps.Contraction` as the kernel reads it."""

    terms: Int[Tensor, "n_terms 2"]
    """Row of M and component b of the environment of each coefficient that is not zero."""
    coefficients: Float[Tensor, "n_terms"]
    columns: Int[Tensor, "n_columns 3"]
    """Irrep of V, its components, first row of M; ordered by output, component and path."""
    outputs: Int[Tensor, "n_outputs 3"]
    """Components, paths, first column."""
    dims: Int[Tensor, "n_irreps"]
    """Components of the irreps of V."""
    n_rows: int

    @classmethod
    def of(cls, layer: AllegroLayer, like: Tensor) -> "Lists":
        """From the layer's dense coefficients, in the precision of ``like``."""
        contraction = layer.contraction.like(like)
        dims, widths = torch.tensor(contraction.dims), torch.tensor(contraction.widths)
        terms = contraction.coefficients.nonzero().contiguous()  # by row, as they are read
        irrep = contraction.columns[:, 0]
        n_components, first_column = dims[irrep], widths.cumsum(0) - widths
        columns = torch.stack([irrep, n_components, n_components.cumsum(0) - n_components], dim=1)
        components = torch.tensor([dim([out]) for out in layer.paths])
        return cls(
            terms,
            contraction.coefficients[tuple(terms.t())],
            columns[contraction.by_output()],
            torch.stack([components, widths // components, first_column], dim=1),
            dims,
            len(contraction.coefficients),
        )

    def structure(self, n_mixed: int) -> _Layer:
        """As the kernel reads it, valid as long as this object."""
        arrays = (self.terms, self.coefficients, self.columns, self.outputs, self.dims)
        sizes = (len(self.terms), self.n_rows, len(self.outputs), len(self.dims), n_mixed)
        return _Layer(*sizes, *(array.data_ptr() for array in arrays))


_lists = remembered(Lists.of)


def _channel_rows(weight: Float[Tensor, "k n"], channels: int, multiple: int) -> Float[Tensor, "k_padded n_padded"]:
    """A weight whose rows are blocks of channels: each block is padded."""
    return by_channel(weight.t(), channels, multiple).t()


def _published_weights(network: PublishedAllegro, readout: Sequence[Tensor], multiple: int) -> Weights:
    """In the order in which the kernel reads them."""
    channels, n_features = network.config.tensor_channels, network.config.n_features
    matrices = [padded(w, multiple) for w in network.two_body.mlp.weights]
    for layer in network.layers:
        *hidden, last = layer.env_embed.weights
        matrices += [*(padded(w, multiple) for w in hidden), by_channel(last, channels, multiple)]
        first, *rest = layer.latent_mlp.weights
        matrices += [padded(first[:n_features], multiple), _channel_rows(first[n_features:], channels, multiple)]
        matrices += [padded(w, multiple) for w in rest]
        matrices += [_channel_rows(w, channels, multiple) for w in layer.mix]
    matrices += [padded(w, multiple) for w in readout[:-1]]
    two_body = network.two_body
    frequencies, radial = _radial(two_body)
    embedding = Embedding("plus", frequencies, two_body.table(), radial)
    return Weights(embedding, matrices, [], padded(readout[-1].t(), multiple, rows=False))


SLOW = 1e-8
"""A frequency so low that sin(SLOW x) / (πx) is the constant SLOW / π."""


def _radial(two_body: TwoBody) -> tuple[Float[Tensor, "n_functions"], Float[Tensor, "n_functions width"]]:
    """Frequencies and weights of plain Bessel functions that give what the radial basis and its weights give.

    Normalised functions are plain ones times 1 / σ, less a constant: one more function, of a very low frequency.
    """
    bessel, weights = two_body.bessel, two_body.radial
    if not bessel.normalized:
        return bessel.frequencies, weights
    scaled = bessel.inverse_std.to(weights)[:, None] * weights
    constant = -(bessel.mean.to(weights)[None] @ scaled) * (math.pi / SLOW)
    return torch.cat([bessel.frequencies, bessel.frequencies.new_tensor([SLOW])]), torch.cat([scaled, constant])


def _published_problem(network: PublishedAllegro, species: Int[Tensor, "n_atoms"]) -> Problem:
    config, like = network.config, network.two_body.radial
    lists = [_lists(layer, like) for layer in network.layers]
    layers = [of_layer.structure(len(layer.mix)) for of_layer, layer in zip(lists, network.layers, strict=True)]
    first = network.layers[0]
    n_matrices = (len(mlp.weights) for mlp in (network.two_body.mlp, first.env_embed, first.latent_mlp))
    return Problem(
        _ALLEGRO[like.dtype](
            *(config.n_layers, *n_matrices, 2 / math.sqrt(5), 1 / math.sqrt(5)), (_Layer * len(layers))(*layers)
        ),
        config.l_max,
        config.tensor_channels,
        Radial(
            like.new_full((network.n_species**2,), 1 / config.cutoff),
            config.n_bessel + config.normalize_basis,
            None,
            config.envelope_p,
        ),
        norm=like.new_full((len(species),), 1 / math.sqrt(config.avg_num_neighbors or 1.0)),
        owned=lists,
    )


PUBLISHED = Kernel("allegro", _published_problem, _published_weights, lambda dtype: (_ALLEGRO[dtype], _Layer))

# ---- nequip-allegro ------------------------------------------------------------------------------------------------


class _Product(ctypes.Structure):
    _fields_ = (*integers("n_terms", "dim_in", "dim_out"), *pointers("terms", "coefficients"))


class _NequipAllegro(ctypes.Structure):
    _fields_ = (
        *integers("n_layers", "n_two_body", "n_latent", "features_silu"),
        ("products", ctypes.POINTER(_Product)),
    )


@dataclass(frozen=True, eq=False)
class Terms:
    """The tensor product of a layer as a list: M[a, c] = Σ_t coefficient_t weight[p_t] A[b_t]."""

    indices: Int[Tensor, "n_terms 4"]
    """a, c, b, p of each coefficient that is not zero, sorted."""
    coefficients: Float[Tensor, "n_terms"]
    dim_in: int
    dim_out: int

    @classmethod
    def of(cls, product: TensorProduct, like: Tensor) -> "Terms":
        """From the dense coefficients [a, c, p, b], in the precision of ``like``."""
        dense = product.coefficients.like(like).transpose(2, 3)
        indices = dense.nonzero().contiguous()
        return cls(indices, dense[tuple(indices.t())].contiguous(), *dense.shape[:2])


_terms = remembered(Terms.of)


def _nequip_weights(network: NequipAllegro, readout: Sequence[Tensor], multiple: int) -> Weights:
    """In the order in which the kernel reads them."""
    config, n_layers, channels = network.config, network.config.n_layers, network.config.tensor_channels
    matrices = [padded(w, multiple) for w in network.two_body_mlp.weights[:-1]]
    for k, composed in enumerate(network.composed()):
        if k > 0:
            first, *rest = network.layers[k - 1].latent_mlp.weights[:-1]
            matrices += [padded(w, multiple) for w in (first[k * config.n_scalars :], *rest)]
        env = [network.n_weights * (2 if k == 0 else 1)] if k < n_layers else []
        parts = composed.split([*env, *network.reader_widths()[k:]], dim=1)
        matrices += [by_channel(w, channels, multiple) for w in parts[: len(env)]]
        matrices += [padded(w, multiple) for w in parts[len(env) :]]
    matrices += [padded(w, multiple) for w in readout[:-1]]
    products = [layer.product.weight.expand(channels, -1).t() for layer in network.layers]
    *plain, last = (padded(w, multiple, rows=False) for w in (*products, readout[-1].t()))
    return Weights(_nequip_embedding(network), matrices, plain, last)


def _nequip_embedding(network: NequipAllegro) -> Embedding:
    basis, embedding = network.basis, network.embedding
    if isinstance(basis, BesselBasis) and isinstance(embedding, ProductEmbedding):
        return Embedding("times", basis.frequencies, embedding.table(), embedding.radial)
    assert isinstance(embedding, SplineEmbedding)
    return Embedding("matrices", embedding.weight.new_empty(0), embedding.weight)


def _nequip_problem(network: NequipAllegro, species: Int[Tensor, "n_atoms"]) -> Problem:
    config, like = network.config, network.readout
    terms = [_terms(layer.product, like) for layer in network.layers]
    products = [
        _Product(len(t.indices), t.dim_in, t.dim_out, t.indices.data_ptr(), t.coefficients.data_ptr()) for t in terms
    ]
    sizes = (config.n_layers, len(config.two_body_hidden), len(config.latent_hidden), config.features_silu)
    span = config.spline_span if config.radial == "spline" else None
    return Problem(
        _NequipAllegro(*sizes, (_Product * len(products))(*products)),
        config.l_max,
        config.tensor_channels,
        Radial(network.inverse_cutoff.to(like.dtype), config.n_radial, span, config.envelope_p),
        norm=network.environment_norm(species).flatten(),
        owned=terms,
    )


NEQUIP = Kernel("nequip_allegro", _nequip_problem, _nequip_weights, lambda dtype: (_NequipAllegro, _Product))
