"""Weights and constants of both flavours of Allegro, as ``kernels/cpu/allegro.cpp`` reads them.

The network is the oracle of the kernel. Matrices are listed in the order in which ``published.h`` and ``nequip.h``
number them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equicat.kernels.cpu.call import (
    Embedding,
    Kernel,
    Layer,
    Network,
    Problem,
    Radial,
    Weights,
    by_channel,
    padded,
    remembered,
)
from equicat.kernels.irreps import dim
from equicat.networks.allegro_embeddings import ProductEmbedding, SplineEmbedding, TwoBody
from equicat.networks.allegro_parts import AllegroLayer, NequipAllegro, PublishedAllegro, TensorProduct
from equicat.networks.layers import BesselBasis


@dataclass(frozen=True, eq=False)
class ProductTerms:
    """The tensor products of a layer: M[row] = Σ_t coefficient_t A[b_t], in the second flavour times weight[p_t]."""

    terms: Int[Tensor, "n_terms 3"]
    """Row of M, component b of the environment and path p of each coefficient that is not zero, sorted by row."""
    coefficients: Float[Tensor, "n_terms"]
    sizes: dict[str, int]
    """Fields of :class:`~equicat.kernels.cpu.call.Layer`."""
    arrays: dict[str, Int[Tensor, "..."]]
    """Fields of that structure, by their names."""

    def structure(self) -> Layer:
        """These terms as the kernel reads them, valid as long as this object."""
        arrays = self.arrays | {"terms": self.terms, "coefficients": self.coefficients}
        addresses = {name: array.data_ptr() for name, array in arrays.items()}
        return Layer(n_terms=len(self.terms), **self.sizes, **addresses)


def _problem(
    network: PublishedAllegro | NequipAllegro,
    lists: list[ProductTerms],
    sizes: tuple[int, ...],
    radial: Radial,
    norm: Float[Tensor, "n_centers"],
) -> Problem:
    """With ``sizes`` of :class:`~equicat.kernels.cpu.call.Network` after the number of layers."""
    layers = (Layer * len(lists))(*(of_layer.structure() for of_layer in lists))
    config = network.config
    return Problem(Network(len(lists), *sizes, layers), config.l_max, config.tensor_channels, radial, norm, lists)


# ---- published -----------------------------------------------------------------------------------------------------


@remembered
def _published_lists(layer: AllegroLayer, like: Tensor) -> ProductTerms:
    """The layer's :class:`~equicat.kernels.irreps.Contraction`, in the precision of ``like``.

    Columns of M are (irrep of V, its components, first row of M), ordered by output, component and path; outputs are
    (components, paths, first column).
    """
    contraction = layer.contraction.like(like)
    dims, widths = torch.tensor(contraction.dims), torch.tensor(contraction.widths)
    row_and_b = contraction.coefficients.nonzero()  # by row, as they are read
    irrep = contraction.columns[:, 0]
    n_components, first_column = dims[irrep], widths.cumsum(0) - widths
    columns = torch.stack([irrep, n_components, n_components.cumsum(0) - n_components], dim=1)
    components = torch.tensor([dim([out]) for out in layer.paths])
    outputs = torch.stack([components, widths // components, first_column], dim=1)
    return ProductTerms(
        torch.nn.functional.pad(row_and_b, (0, 1)),
        contraction.coefficients[tuple(row_and_b.t())],
        {"n_rows": len(contraction.coefficients), "n_outputs": len(outputs)}
        | {"n_irreps": len(dims), "n_mixed": len(layer.mix)},
        {"columns": columns[contraction.by_output()], "outputs": outputs, "dims": dims},
    )


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
    config, like, first = network.config, network.two_body.radial, network.layers[0]
    lists = [_published_lists(layer, like) for layer in network.layers]
    n_matrices = (len(mlp.weights) for mlp in (network.two_body.mlp, first.env_embed, first.latent_mlp))
    inverse_cutoff = like.new_full((network.n_species**2,), 1 / config.cutoff)
    radial = Radial(inverse_cutoff, config.n_bessel + config.normalize_basis, None, config.envelope_p)
    norm = like.new_full((len(species),), float(network.environment_norm(species)))
    return _problem(network, lists, (*n_matrices, False), radial, norm)


PUBLISHED = Kernel("Published", _published_problem, _published_weights)

# ---- nequip-allegro ------------------------------------------------------------------------------------------------


@remembered
def _nequip_lists(product: TensorProduct, like: Tensor) -> ProductTerms:
    """The dense coefficients [a, c, p, b], in the precision of ``like``; row a · dim_out + c of M is its entry ac."""
    dense = product.coefficients.like(like)
    rows = dense.transpose(2, 3).flatten(0, 1)
    terms = rows.nonzero().contiguous()
    return ProductTerms(
        terms, rows[tuple(terms.t())].contiguous(), {"n_rows": len(rows), "n_columns": dense.shape[1]}, arrays={}
    )


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
    lists = [_nequip_lists(layer.product, like) for layer in network.layers]
    sizes = (len(config.two_body_hidden), 0, len(config.latent_hidden), config.features_silu)
    span = config.spline_span if config.radial == "spline" else None
    radial = Radial(network.inverse_cutoff.to(like.dtype), config.n_radial, span, config.envelope_p)
    return _problem(network, lists, sizes, radial, network.environment_norm(species).flatten())


NEQUIP = Kernel("Nequip", _nequip_problem, _nequip_weights)
