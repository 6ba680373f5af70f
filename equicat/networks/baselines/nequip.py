"""NequIP, the message-passing relative of Allegro: Batzner et al., Nat. Commun. 13, 2453 (2022).

The interaction layers are the `nequip` package's (ConvNetLayer), in the arrangement of its ``NequIPGNNModel``, and
take its weights, which are kept as matrices. Geometry, the embedding of elements and the readout are ours, so this file
is an adapter: from pair vectors to the dictionary that those layers pass along, and back to named tensors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from equicat.errors import InputError
from equicat.extras import extra
from equicat.kernels.harmonics import spherical_harmonics
from equicat.networks.features import Features
from equicat.networks.layers import BesselBasis, polynomial_envelope
from equicat.options.values import Checked, Cutoff, Degree, Depth, EnvelopeExponent, ExtraDepth, PositiveNumber, Width


@dataclass(frozen=True)
class NequIPConfig(Checked, section="model"):
    """Hyperparameters; the defaults are those of the package."""

    name: Literal["nequip"] = "nequip"
    """Which architecture."""
    cutoff: Cutoff = 6.0
    """Distance (Å) up to which two atoms are neighbours."""
    n_layers: Depth = 4
    """Interaction layers."""
    l_max: Degree = 1
    """Highest degree of the spherical harmonics and features."""
    parity: bool = True
    """Features of both parities for each degree; otherwise only that of the harmonics."""
    n_channels: Width = 32
    """Channels of each kind of feature, and of the embedding of elements."""
    n_bessel: Width = 8
    """Radial basis functions."""
    bessel_trainable: bool = False
    """Train the frequencies of the radial basis."""
    envelope_p: EnvelopeExponent = 6
    """Exponent of the polynomial envelope."""
    radial_mlp_depth: ExtraDepth = 1
    """Hidden layers of the radial MLPs."""
    radial_mlp_width: Width = 128
    """Width of the hidden layers of the radial MLPs."""
    avg_num_neighbors: PositiveNumber | None = None
    """Neighbours of an atom on average, which normalises sums over them; null takes it from the training data."""


class NequIP(nn.Module):
    """Edge vectors and species in, scalar features of every atom out.

    Args:
        config: hyperparameters, ``avg_num_neighbors`` set.
        n_species: number of elements.
        vectors: let the last layer also make vectors, for heads that need them.

    Raises:
        InputError: if the package is not installed, or ``avg_num_neighbors`` is not set.
    """

    per: Literal["edge", "atom"] = "atom"

    def __init__(self, config: NequIPConfig, n_species: int, vectors: bool = False):
        super().__init__()
        if config.avg_num_neighbors is None:
            raise InputError(
                "model.avg_num_neighbors is not set; training fits it to the data, otherwise give a number"
            )
        c = self.config = config
        self.n_features, self.n_vectors = c.n_channels, c.n_channels if vectors else 0
        self._exact: dict[str, Tensor] = {}
        self._radial_factor = 2 * math.pi / c.cutoff**2  # the package's; our weights are drawn without it
        self.embedding = nn.Embedding(n_species, c.n_channels)
        self.bessel = BesselBasis(c.n_bessel, c.bessel_trainable)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # coupling coefficients are constants of the layers
        try:
            with extra("nequip.utils", "nequip").conditional_torchscript_mode(False):
                self.layers = nn.ModuleList(_layers(c, vectors))
        finally:
            torch.set_default_dtype(default)
        self._exact = {name: buffer.clone() for name, buffer in self.layers.named_buffers()}
        for layer in self.layers:
            _weights_as_matrices(layer, self._radial_factor)
        self.to(default)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NequIP":
        """Constants follow device and dtype, from float64 each time: float().double() must not round."""
        super()._apply(fn, recurse)
        buffers = dict(self.layers.named_buffers())
        for name, exact in self._exact.items():
            buffers[name].data = exact.to(self.embedding.weight)
        return self

    def forward(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> Features:
        c = self.config
        r = torch.linalg.vector_norm(edge_vec, dim=1, keepdim=True)
        x = r / c.cutoff
        radial = self.bessel(x) * polynomial_envelope(x, c.envelope_p) * self._radial_factor
        h = self.embedding(species)
        data = {
            "atom_types": species,
            "edge_index": edge_index,
            "edge_attrs": spherical_harmonics(c.l_max, edge_vec / r),
            "edge_embedding": radial,
            "node_attrs": h,
            "node_features": h,
        }
        for layer in self.layers:
            data = layer(data)
        scalars, vectors = data["node_features"].split([self.n_features, 3 * self.n_vectors], dim=1)
        # e3nn has channels before components.
        per_channel = vectors.view(len(species), self.n_vectors, 3).transpose(1, 2)
        return Features(scalars, "atom", per_channel if self.n_vectors else None)


class _Matrices(nn.Module):
    """The weights of one module of the package as matrices [n_in, n_out] of the size at which they act.

    The package (as e3nn) draws weights of order one, often several matrices in one flat array, and multiplies them by
    1 / sqrt(n_in) in use. An optimiser would see no matrices, and its steps would be too small by that factor.

    Args:
        n_out: columns of each matrix.
        sizes: numbers of weights of each.
        scales: what the module multiplies them by.
        shape: of the module's own array.
    """

    def __init__(self, n_out: list[int], sizes: list[int], scales: list[float], shape: torch.Size):
        super().__init__()
        self.n_out, self.sizes, self.scales, self.shape = n_out, sizes, scales, shape

    def forward(self, *matrices: Tensor) -> Tensor:
        """The module's own array."""
        return torch.cat([(m / s).view(-1) for m, s in zip(matrices, self.scales, strict=True)]).view(self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The matrices of such an array; so one can be assigned."""
        parts = zip(weight.view(-1).split(self.sizes), self.n_out, self.scales, strict=True)
        return tuple(part.view(-1, n_out) * scale for part, n_out, scale in parts)


def _weights_as_matrices(layer: Any, radial_factor: float) -> None:
    """Let the optimiser see every weight of an interaction layer so.

    The first matrix of the radial MLP acts on what the radial functions were before the package's factor (0.25 at 5 Å),
    and is drawn for that: with the factor, neighbours would hardly count at the start.
    """
    for module in list(layer.modules()):
        weight = module._parameters.get("weight")
        if weight is None or not weight.numel():
            continue
        if isinstance(module, extra("nequip.nn.mlp", "nequip").ScalarLinearLayer):
            factor = radial_factor if module is layer.conv.edge_mlp.mlp[0] else 1.0
            shapes, scales = [tuple(weight.shape)], [float(module.alpha) * factor]
            weight.data /= factor
        else:
            paths = [i for i in module.instructions if math.prod(i.path_shape)]
            shapes, scales = [i.path_shape for i in paths], [i.path_weight for i in paths]
        sizes = [math.prod(shape) for shape in shapes]
        matrices = _Matrices([shape[-1] for shape in shapes], sizes, scales, weight.shape)
        register_parametrization(module, "weight", matrices)


def _layers(c: NequIPConfig, vectors: bool) -> list[nn.Module]:
    """The package's interaction layers; the first has no self-connection, as there."""
    package = extra("nequip.nn", "nequip")
    irreps = extra("e3nn.o3", "nequip").Irreps
    parities = {degree: "eo" if c.parity else "eo"[degree % 2] for degree in range(c.l_max + 1)}
    hidden = irreps([(c.n_channels, f"{degree}{p}") for degree, both in parities.items() for p in both])
    last = irreps(f"{c.n_channels}x0e + {c.n_channels}x1o" if vectors else f"{c.n_channels}x0e")
    entering = {
        "node_attrs": irreps(f"{c.n_channels}x0e"),
        "node_features": irreps(f"{c.n_channels}x0e"),
        "edge_attrs": irreps.spherical_harmonics(c.l_max),
        "edge_embedding": irreps(f"{c.n_bessel}x0e"),
    }
    layers = []
    for k in range(c.n_layers):
        convolution = {
            "radial_mlp_depth": c.radial_mlp_depth,
            "radial_mlp_width": c.radial_mlp_width,
            "use_sc": k > 0,
            "is_first_layer": k == 0,
            "avg_num_neighbors": c.avg_num_neighbors,
            "type_names": None,
        }
        layer = package.ConvNetLayer(entering, hidden if k < c.n_layers - 1 else last, convolution_kwargs=convolution)
        entering = layer.irreps_out
        layers.append(layer)
    return layers
