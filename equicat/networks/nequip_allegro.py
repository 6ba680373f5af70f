"""Allegro as the nequip-allegro package builds it today (0.8): the second flavour, and the home of its trained models.

Against :mod:`equicat.networks.allegro`: the latent scalars of all layers are kept and read by all later ones, nothing
is multiplied by the envelope but the radial basis, one output of each latent MLP weights the next environment, and the
channels of the tensor track never mix: a path has one weight a channel. ``docs/decisions`` has the equations.

That last point makes the tensor track cheap. Every V^ij,L is a matrix of the *centre* and the channel times V^ij,0, so
the scalars that a layer takes from it are Σ_lm w⁰_l Y_lm(r_ij) G_L[i, lm], with a vector G_L of the centre: products of
environments and coupling coefficients, made once per atom. No tensor of an edge is ever written, whatever l_max is.
:mod:`equicat.testing.plain_nequip_allegro` is the same function edge by edge; the tests hold the two together.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat.errors import InputError
from equicat.kernels.edges import Segments, environment, read_out
from equicat.kernels.harmonics import spherical_harmonics
from equicat.kernels.irreps import SCALAR, VECTOR, Irrep, Parity, Paths, layer_irreps
from equicat.networks.centers import Chunk, join, layouts
from equicat.networks.features import Features
from equicat.networks.layers import MLP, BesselBasis, SplineBasis, linear_weight, polynomial_envelope, silu


@dataclass(frozen=True)
class NequipAllegroConfig:
    """Hyperparameters; the defaults are the package's."""

    name: Literal["nequip-allegro"] = "nequip-allegro"
    """Which architecture."""
    cutoff: float = 6.0
    """Å."""
    pair_cutoffs: tuple[float, ...] | None = None
    """Å, shorter cutoffs of ordered pairs of elements (centre, neighbour), row by row; null: ``cutoff`` for all."""
    n_layers: int = 2
    """Tensor-product layers."""
    l_max: int = 2
    """Highest degree of the spherical harmonics and tensor features."""
    parity: Parity = "full"
    """full: tensor features of both parities for each degree; restricted: only that of the harmonics."""
    n_scalars: int = 64
    """Scalars that each layer adds."""
    tensor_channels: int = 32
    """Channels of the tensor features."""
    coupling: Literal["channel", "path"] = "channel"
    """channel: each channel weights each tensor-product path; path: all channels share the weights."""
    radial: Literal["bessel", "spline"] = "bessel"
    """bessel: one basis times an embedding of the elements; spline: a radial function of its own for each pair."""
    n_radial: int = 8
    """Radial basis functions."""
    bessel_trainable: bool = False
    """Train the frequencies of the radial basis (bessel)."""
    envelope_p: int = 6
    """Exponent of the polynomial envelope (bessel)."""
    spline_span: int = 12
    """How many splines overlap (spline)."""
    embedding_width: int | None = None
    """Width of the radial and chemical embedding; null takes n_scalars."""
    two_body_hidden: tuple[int, ...] = (64,)
    """Hidden widths of the two-body MLP."""
    latent_hidden: tuple[int, ...] = (64,)
    """Hidden widths of each layer's latent MLP, at least one."""
    n_features: int = 32
    """Width of the features that are made of the scalars of all layers."""
    features_silu: bool = True
    """Whether these come out of a SiLU (a hidden layer of the readout), or are linear."""
    avg_num_neighbors: float | None = None
    """Neighbours of an atom on average, which normalises sums over them; null takes it from the training data."""
    neighbors_of_element: tuple[float, ...] | None = None
    """The same for each element's environment, where they differ."""

    def __post_init__(self) -> None:
        if self.l_max < 0 or min(self.n_layers, self.tensor_channels, self.n_scalars) < 1 or self.cutoff <= 0:
            raise InputError(
                "model: n_layers, n_scalars, tensor_channels and cutoff must be positive, l_max at least 0"
            )
        if not self.latent_hidden:
            raise InputError("model: latent_hidden needs at least one hidden width")
        if self.radial == "bessel" and self.width % 2:
            raise InputError(f"model: embedding_width {self.width} must be even: half of it is the centre's element")

    @property
    def width(self) -> int:
        """Of the radial and chemical embedding."""
        return self.embedding_width or self.n_scalars


class ProductEmbedding(nn.Module):
    """(c[Z_i] ‖ n[Z_j]) ∘ B(r) W: a learned vector of the ordered pair times radial functions."""

    def __init__(self, n_radial: int, width: int, n_species: int):
        super().__init__()
        self.center = nn.Parameter(torch.randn(n_species, width // 2))
        self.neighbor = nn.Parameter(torch.randn(n_species, width // 2))
        self.radial = linear_weight(n_radial, width)

    def forward(
        self, basis: Float[Tensor, "n_rows n_radial"], pair: Int[Tensor, "n_rows"]
    ) -> Float[Tensor, "n_rows width"]:
        return self.table().index_select(0, pair) * (basis @ self.radial)

    def table(self) -> Float[Tensor, "n_pairs width"]:
        """c[Z_i] ‖ n[Z_j] of all ordered pairs."""
        n = len(self.center)
        return torch.cat([self.center.repeat_interleave(n, 0), self.neighbor.repeat(n, 1)], dim=1)


class SplineEmbedding(nn.Module):
    """Σ_s φ_s(r) W[Z_i, Z_j, s]: each ordered pair of elements has its own radial functions."""

    def __init__(self, n_radial: int, span: int, width: int, n_species: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_species**2, n_radial, width) / math.sqrt(max(span, 1)))

    def forward(
        self, basis: Float[Tensor, "n_rows n_radial"], pair: Int[Tensor, "n_rows"]
    ) -> Float[Tensor, "n_rows width"]:
        """One product for each ordered pair of elements that occurs; rows are never given a matrix of their own."""
        order = pair.argsort()
        present, counts = torch.unique_consecutive(pair[order], return_counts=True)
        rows = basis.index_select(0, order).split(counts.tolist())
        out = torch.cat([r @ self.weight[p] for r, p in zip(rows, present.tolist(), strict=True)])
        return out.index_select(0, torch.empty_like(order).scatter_(0, order, torch.arange(len(order)).to(order)))


class TensorProduct(nn.Module):
    """All paths of one layer, weighted: V'[c, u] = Σ_abp w[u, p] C[a, b, c, p] V[a, u] A[b, u], channels u apart.

    Args:
        irreps_in: of V.
        irreps_out: of V', the scalar first.
        config: hyperparameters.
    """

    def __init__(self, irreps_in: list[Irrep], irreps_out: list[Irrep], config: NequipAllegroConfig):
        super().__init__()
        self.channels = config.tensor_channels
        self.paths = {out: Paths.build(irreps_in, config.l_max, out) for out in irreps_out}
        n_weights = self.channels if config.coupling == "channel" else 1
        n_paths = sum(len(paths.pairs) for paths in self.paths.values())
        self.weight = nn.Parameter(torch.empty(n_weights, n_paths).uniform_(-math.sqrt(3), math.sqrt(3)))
        self._apply(lambda tensor: tensor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TensorProduct":
        """Coupling coefficients follow device and dtype, from float64 each time: float().double() must not round."""
        super()._apply(fn, recurse)
        self.coefficients = [paths.coefficients.to(self.weight) for paths in self.paths.values()]
        return self

    def weighted(self) -> Float[Tensor, "n_weights dim_env dim_in dim_out"]:
        """Σ_p w[u, p] C[a, b, c, p]: once a call, for all atoms."""
        weights = self.weight.split([len(paths.pairs) for paths in self.paths.values()], dim=1)
        terms = zip(weights, self.coefficients, strict=True)
        return torch.cat([torch.einsum("up,acpb->ubac", w, c) for w, c in terms], dim=3)

    def matrices(
        self,
        env: Float[Tensor, "n_atoms dim_env channels"],
        weighted: Float[Tensor, "n_weights dim_env dim_in dim_out"],
    ) -> Float[Tensor, "channels n_atoms dim_in dim_out"]:
        """What multiplies V of every edge of a centre: M[u, i, a, c] = Σ_b (Σ_p w C)[u, b, a, c] A[i, b, u]."""
        _, _, dim_in, dim_out = weighted.shape
        return (env.permute(2, 0, 1).contiguous() @ weighted.flatten(2)).unflatten(2, (dim_in, dim_out))


class NequipAllegroLayer(nn.Module):
    """Weights of layer k = 0, 1, …: its tensor product and its latent MLP, which reads x^0 … x^k and new scalars.

    Args:
        config: hyperparameters.
        k: which layer.
        irreps_in: of the tensor features that enter.
        irreps_out: of those that leave, the scalar first.
    """

    def __init__(self, config: NequipAllegroConfig, k: int, irreps_in: list[Irrep], irreps_out: list[Irrep]):
        super().__init__()
        last = k == config.n_layers - 1
        self.product = TensorProduct(irreps_in, irreps_out, config)
        n_env = 0 if last else (config.l_max + 1) * config.tensor_channels
        n_in = (k + 1) * config.n_scalars + config.tensor_channels
        self.latent_mlp = MLP([n_in, *config.latent_hidden, config.n_scalars + n_env])


class NequipAllegro(nn.Module):
    """Edge vectors and species in, features of every ordered pair out; they vanish smoothly at the cutoff.

    Args:
        config: hyperparameters, ``avg_num_neighbors`` set.
        n_species: number of elements.
        vectors: also make polar vectors (l = 1, odd) in the last layer, for heads that need them.

    Raises:
        InputError: for ``vectors`` with ``l_max`` 0.
    """

    per: Literal["edge", "atom"] = "edge"
    triton: bool | None = None
    """Whether Triton kernels connect edges and centres; null: on a GPU, unless ``EQUICAT_NATIVE=0``."""
    inverse_cutoff: Tensor
    env_norm: Tensor

    def __init__(self, config: NequipAllegroConfig, n_species: int, vectors: bool = False):
        super().__init__()
        if vectors and config.l_max < 1:
            raise InputError("model.l_max is 0, so there are no vectors for this head; set it to 1 or more")
        self.config, self.n_species = config, n_species
        self.n_features, self.n_vectors = config.n_features, config.tensor_channels if vectors else 0
        n_scalars, n_weights = config.n_scalars, (config.l_max + 1) * config.tensor_channels
        self.basis: nn.Module
        self.embedding: nn.Module
        if config.radial == "bessel":
            self.basis = BesselBasis(config.n_radial, config.bessel_trainable)
            self.embedding = ProductEmbedding(config.n_radial, config.width, n_species)
        else:
            self.basis = SplineBasis(config.n_radial, config.spline_span)
            self.embedding = SplineEmbedding(config.n_radial, config.spline_span, config.width, n_species)
        self.two_body_mlp = MLP([config.width, *config.two_body_hidden, n_scalars])
        self.tensor_weights = linear_weight(n_scalars, n_weights)
        self.projection = linear_weight(n_scalars, n_scalars + n_weights)
        entering = layer_irreps(config.l_max, config.n_layers, config.parity, vectors)
        leaving = [*entering[1:], [SCALAR, VECTOR] if vectors else [SCALAR]]
        self.layers: Any = nn.ModuleList(
            NequipAllegroLayer(config, k, a, b) for k, (a, b) in enumerate(zip(entering, leaving, strict=True))
        )
        self.readout = linear_weight((config.n_layers + 1) * n_scalars, config.n_features)
        cutoffs = config.pair_cutoffs or (config.cutoff,) * n_species**2
        self.register_buffer("inverse_cutoff", 1 / torch.tensor(cutoffs, dtype=torch.float64), persistent=False)
        neighbors = config.neighbors_of_element or (config.avg_num_neighbors or 1.0,) * n_species
        self.register_buffer("env_norm", torch.tensor(neighbors, dtype=torch.float64).rsqrt(), persistent=False)
        self.floats_per_edge = max(weight.shape[1] for weight in self.composed())

    def composed(self) -> list[Tensor]:
        """Linear maps that follow one another, multiplied out: what the last hidden features of each MLP turn into.

        x^k is linear in them, and so is everything that is done with x^k: it is added up in the first product of each
        later MLP and of the readout. Entry 0 yields weights of V⁰, weights of the first environment, and the shares of
        x^0 in the sums of layers 1, 2, … and the readout; entry k the weights of the next environment and the shares of
        x^k.
        """
        n = self.config.n_scalars
        readers = [*(layer.latent_mlp.weights[0] for layer in self.layers), self.readout]
        shares = [torch.cat([r[k * n : (k + 1) * n] for r in readers[k:]], dim=1) for k in range(len(readers))]
        projected = torch.cat([self.tensor_weights, self.projection[:, n:], self.projection[:, :n] @ shares[0]], dim=1)
        out = [self.two_body_mlp.weights[-1] @ projected]
        for layer, share in zip(self.layers, shares[1:], strict=True):
            last = layer.latent_mlp.weights[-1]
            out.append(torch.cat([last[:, n:], last[:, :n] @ share], dim=1))
        return out

    def geometry(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> tuple[Int[Tensor, "n_edges"], Float[Tensor, "n_edges n_radial"], Float[Tensor, "n_edges dim_env"]]:
        """What the network sees of edges: ordered pairs of elements, radial basis, and spherical harmonics."""
        config, (center, neighbor) = self.config, edge_index
        pair = species[center] * self.n_species + species[neighbor]
        r = torch.linalg.vector_norm(edge_vec, dim=1, keepdim=True)
        x = r * self.inverse_cutoff[pair][:, None].to(r)
        basis = self.basis(x)
        if config.radial == "bessel":
            basis = basis * polynomial_envelope(x, config.envelope_p)
        return pair, basis, spherical_harmonics(config.l_max, edge_vec / r)

    def forward(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> Features:
        """Features by edge."""
        pair, basis, sh = self.geometry(edge_vec, edge_index, species)
        # All about an edge's geometry as one array, so that cutting it into chunks is one operation.
        geometry = torch.cat([basis, sh], dim=1)
        maps, products = self.composed(), [layer.product.weighted() for layer in self.layers]
        pieces, position = layouts(edge_index[0], len(species), self.floats_per_edge, self.triton)
        found = [self.pair_features(geometry[c.edges], pair[c.edges], c, maps, products) for c in pieces]
        scalars, vectors = (join(parts, position) for parts in zip(*found, strict=True))
        return Features(scalars, "edge", vectors if self.n_vectors else None)

    def pair_features(
        self,
        geometry: Float[Tensor, "n_edges n_geometry"],
        pair: Int[Tensor, "n_edges"],
        layout: Segments | Chunk,
        maps: list[Tensor],
        products: list[Tensor],
    ) -> tuple[Float[Tensor, "n_edges n_features"], Float[Tensor, "n_edges 3 n_vectors"]]:
        """The network, on all edges of some centres: scalars and vectors.

        Unused slots of a padded layout are worked on as well: there the radial basis is 0, and so is all that follows.
        """
        config, shape = self.config, layout.shape
        pair = layout.pad_index(pair)
        basis, sh = layout.pad(geometry).split([config.n_radial, (config.l_max + 1) ** 2], dim=-1)
        norm = self.env_norm[layout.of_center(pair) // self.n_species].to(geometry)
        hidden = _hidden(self.embedding(basis.flatten(0, -2), pair), self.two_body_mlp.weights[:-1])

        n_weights = (config.l_max + 1) * config.tensor_channels
        readers = [layer.latent_mlp.weights[0].shape[1] for layer in self.layers] + [config.n_features]
        w0, env_weights, *sums = (hidden @ maps[0]).split([n_weights, n_weights, *readers], dim=1)
        earlier: list[Tensor] = []
        for k, layer in enumerate(self.layers):
            env = self.environment(env_weights.view(*shape, -1), sh, layout) * norm[:, None, None]
            m = layer.product.matrices(env, products[k])
            g = chain([*earlier, m[..., :1]])  # (0, +1) comes first
            (scalars,) = self.read_out(w0.view(*shape, -1), sh, g, layout)
            earlier.append(m)
            first, *rest = layer.latent_mlp.weights[:-1]
            hidden = _hidden(
                silu(torch.addmm(sums[0], scalars.flatten(0, -2), first[(k + 1) * config.n_scalars :])), rest
            )
            n_next = n_weights if k + 1 < len(self.layers) else 0
            env_weights, *shares = (hidden @ maps[k + 1]).split([n_next, *readers[k + 1 :]], dim=1)
            sums = [a + b for a, b in zip(sums[1:], shares, strict=True)]
        features = layout.unpad((silu(sums[0]) if config.features_silu else sums[0]).view(*shape, -1))
        if not self.n_vectors:
            return features, features.new_zeros(len(features), 3, 0)
        vectors = self.read_out(w0.view(*shape, -1), sh, chain([*earlier[:-1], m[..., 1:]]), layout)
        return features, layout.unpad(torch.stack(vectors, dim=-2))

    def environment(
        self,
        weights: Float[Tensor, "*slots n_weights"],
        sh: Float[Tensor, "*slots dim_env"],
        layout: Segments | Chunk,
    ) -> Float[Tensor, "n_atoms dim_env channels"]:
        """Σ_j w^ij_l Y_lm(r_ij).

        Y_00 is 1, and unused slots have no weight: the first is a plain sum.
        """
        if isinstance(layout, Segments):
            return environment(weights, sh, layout)
        (_, *harmonics), (w00, *rest) = self.by_degree(sh, weights)
        sums = [y.transpose(1, 2) @ w for y, w in zip(harmonics, rest, strict=True)]
        return torch.cat([w00.sum(1, keepdim=True), *sums], dim=1)

    def read_out(
        self,
        w0: Float[Tensor, "*slots n_weights"],
        sh: Float[Tensor, "*slots dim_env"],
        g: Float[Tensor, "channels n_atoms dim_env dim_out"],
        layout: Segments | Chunk,
    ) -> list[Float[Tensor, "*slots channels"]]:
        """Components of V^ij after a layer, Σ_l w⁰_l Σ_m Y_lm G[lm], for each column of G."""
        by_column = g.permute(3, 1, 2, 0).contiguous().unbind(0)
        if isinstance(layout, Segments):
            return [read_out(w0, sh, column, layout) for column in by_column]
        (_, *harmonics), (w00, *weights) = self.by_degree(sh, w0)
        out = []
        for column in by_column:
            c00, *columns = column.split(self.dims, dim=1)
            terms = [w * (y @ c) for w, y, c in zip(weights, harmonics, columns, strict=True)]
            out.append(sum(terms, start=w00 * c00))
        return out

    def by_degree(self, sh: Tensor, weights: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Harmonics and their weights, cut along the last axis."""
        return sh.split(self.dims, dim=2), weights.split(self.config.tensor_channels, dim=2)

    @property
    def dims(self) -> list[int]:
        """Components of each degree."""
        return [2 * degree + 1 for degree in range(self.config.l_max + 1)]


def chain(matrices: list[Tensor]) -> Float[Tensor, "channels n_atoms dim_env dim_out"]:
    """The product of the matrices of some layers, from the right: it begins with the fewest columns."""
    *rest, g = matrices
    for matrix in reversed(rest):
        g = matrix @ g
    return g


def _hidden(x: Tensor, weights: Iterable[Tensor]) -> Tensor:
    """The hidden layers of an MLP."""
    for weight in weights:
        x = silu(x @ weight)
    return x
