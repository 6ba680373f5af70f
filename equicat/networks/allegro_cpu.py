"""The kernel of :mod:`equicat.networks.allegro` (``equicat/kernels/cpu/allegro.cpp``), whose oracle that is."""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

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
from equicat.kernels.irreps import dim
from equicat.networks.allegro import Allegro, AllegroLayer, TwoBody


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n_terms", "n_rows", "n_outputs", "n_irreps", "n_mixed")),
        *((name, POINTER) for name in ("terms", "coefficients", "columns", "outputs", "dims")),
    )


def _network_type(real: type) -> type[ctypes.Structure]:
    class Network(ctypes.Structure):
        _fields_ = (
            *((name, ctypes.c_int64) for name in ("n_layers", "n_two_body", "n_env", "n_latent")),
            *((name, real) for name in ("keep", "change")),
            ("layers", ctypes.POINTER(_Layer)),
        )

    return Network


NETWORK = {torch.float32: _network_type(ctypes.c_float), torch.float64: _network_type(ctypes.c_double)}


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
    def of(cls, layer: AllegroLayer) -> "Lists":
        """From the layer's dense coefficients."""
        contraction = layer.contraction
        dims, widths = torch.tensor(contraction.dims), torch.tensor(contraction.widths)
        terms = contraction.coefficients.nonzero().contiguous()  # by row, as they are read
        irrep, output, _, place = contraction.columns.unbind(1)
        n_components, first_column = dims[irrep], widths.cumsum(0) - widths
        columns = torch.stack([irrep, n_components, n_components.cumsum(0) - n_components], dim=1)
        components = torch.tensor([dim([out]) for out in layer.paths])
        return cls(
            terms,
            contraction.coefficients[tuple(terms.t())],
            columns[(first_column[output] + place).argsort()],
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


def _weights(network: Allegro, readout: Sequence[Tensor], multiple: int) -> Weights:
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


def _problem(network: Allegro, species: Int[Tensor, "n_atoms"]) -> Problem:
    config, like = network.config, network.two_body.radial
    lists = [_lists(layer) for layer in network.layers]
    layers = [of_layer.structure(len(layer.mix)) for of_layer, layer in zip(lists, network.layers, strict=True)]
    first = network.layers[0]
    n_matrices = (len(mlp.weights) for mlp in (network.two_body.mlp, first.env_embed, first.latent_mlp))
    return Problem(
        NETWORK[like.dtype](
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


KERNEL = Kernel("allegro", _problem, _weights)
