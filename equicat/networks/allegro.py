"""Allegro as published: Musaelian et al., Nat. Commun. 14, 579 (2023). Equation numbers in comments are that paper's.

Every ordered pair ij carries scalars x^ij and tensors V^ij. In each layer the environment of the *centre* i alone is
summed (eq. 9) and multiplied into V^ij, and what comes out as scalars updates x^ij. Nothing ever flows from pair to
pair, so after any number of layers E_ij depends on atoms within one cutoff of i only.

Edges are sorted by centre. That makes the environment sum a batched matrix product, and it lets the environment meet
the coupling coefficients once per *atom*: each edge then only multiplies the small matrix of its centre, instead of
repeating the tensor product. Where GPU kernels are used, edges stay as they lie and the same is done without padding
(:mod:`equicat.kernels.tensor_product`). :mod:`equicat.testing.plain_allegro` is the same function as the paper
writes it, path by path and edge by edge; the tests hold them together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat.errors import InputError
from equicat.kernels.edges import Segments, environment
from equicat.kernels.harmonics import spherical_harmonics
from equicat.kernels.irreps import SCALAR, VECTOR, Contraction, Irrep, Parity, Paths, couples, harmonics, layer_irreps
from equicat.kernels.tensor_product import tensor_product
from equicat.networks.centers import Chunk, join, layouts
from equicat.networks.contract import contract_and_mix
from equicat.networks.features import Features
from equicat.networks.layers import MLP, BesselBasis, linear_weight, polynomial_envelope, silu


@dataclass(frozen=True)
class AllegroConfig:
    """Hyperparameters; the defaults are those used for OC20 in the paper on Allegro for catalysis."""

    name: Literal["allegro"] = "allegro"
    """Which architecture."""
    cutoff: float = 6.0
    """Å."""
    n_layers: int = 3
    """Tensor-product layers."""
    l_max: int = 2
    """Highest degree of the spherical harmonics and tensor features."""
    parity: Parity = "full"
    """full: tensor features of both parities for each degree; restricted: only that of the harmonics."""
    tensor_channels: int = 32
    """Channels of the tensor features."""
    n_bessel: int = 8
    """Radial basis functions."""
    bessel_trainable: bool = True
    """Train the frequencies of the radial basis."""
    normalize_basis: bool = False
    """Shift and scale each radial function to mean 0 and standard deviation 1 over the cutoff, as the authors' code."""
    envelope_p: int = 6
    """Exponent of the polynomial envelope; two continuous derivatives at the cutoff for any p ≥ 2."""
    two_body_mlp: tuple[int, ...] = (64, 128, 256, 512)
    """Widths of the two-body MLP; the last is the number of scalar features."""
    latent_mlp: tuple[int, ...] = (512,)
    """Widths of each layer's latent MLP; the last must equal that of the two-body MLP."""
    env_embed_mlp: tuple[int, ...] = ()
    """Hidden widths of the map from scalars to environment weights; empty means linear."""
    avg_num_neighbors: float | None = None
    """Neighbours of an atom on average, which normalises sums over them; null takes it from the training data."""

    def __post_init__(self) -> None:
        if self.l_max < 0 or self.n_layers < 1 or self.cutoff <= 0 or self.tensor_channels < 1:
            raise InputError("model: n_layers, cutoff and tensor_channels must be positive, l_max at least 0")
        if not self.two_body_mlp or not self.latent_mlp or self.two_body_mlp[-1] != self.latent_mlp[-1]:
            raise InputError(
                f"model: the last widths of two_body_mlp {list(self.two_body_mlp)} and latent_mlp "
                f"{list(self.latent_mlp)} must be equal, because layers update the same scalar features"
            )

    @property
    def n_features(self) -> int:
        """Scalar features of a pair."""
        return self.two_body_mlp[-1]


class TwoBody(nn.Module):
    """x^ij,0 = MLP(1hot(Z_i) ‖ 1hot(Z_j) ‖ B(r_ij)) u(r_ij), eq. 13 without its first product.

    A one-hot vector times a matrix is a row of the matrix: the first layer adds a row of a table of ordered pairs.
    Its variance counts the entries that are non-zero (two of the one-hots), not all that there are.
    """

    def __init__(self, config: AllegroConfig, n_species: int):
        super().__init__()
        width = config.two_body_mlp[0]
        scale = 1 / math.sqrt(2 + config.n_bessel)
        self.center_embedding = nn.Parameter(torch.randn(n_species, width) * scale)
        self.neighbor_embedding = nn.Parameter(torch.randn(n_species, width) * scale)
        self.radial = nn.Parameter(torch.randn(config.n_bessel, width) * scale)
        self.bessel = BesselBasis(config.n_bessel, config.bessel_trainable, config.normalize_basis)
        self.mlp = MLP(config.two_body_mlp, silu_input=True)

    def forward(
        self,
        radial: Float[Tensor, "n_edges n_bessel"],
        envelope: Float[Tensor, "n_edges 1"],
        pair: Int[Tensor, "n_edges"],
    ) -> Float[Tensor, "n_edges n_features"]:
        first = torch.addmm(self.table().index_select(0, pair), radial, self.radial)
        return self.mlp(silu(first)) * envelope

    def table(self) -> Float[Tensor, "n_pairs width"]:
        """The rows of all ordered pairs of elements."""
        return (self.center_embedding[:, None] + self.neighbor_embedding[None, :]).flatten(0, 1)


class AllegroLayer(nn.Module):
    """One tensor-product layer, eqs. 7 to 12.

    Args:
        config: hyperparameters.
        irreps_in: of the tensor features V^{L-1}.
        irreps_out: of V^L; empty in a last layer of which only scalars are used.
        first: V⁰ is then weights times harmonics and, in the padded layout, never written out.
    """

    def __init__(self, config: AllegroConfig, irreps_in: list[Irrep], irreps_out: list[Irrep], first: bool):
        super().__init__()
        self.first, self.irreps_in, self.irreps_out = first, irreps_in, irreps_out
        self.l_max = config.l_max
        self.avg_num_neighbors = config.avg_num_neighbors or 1.0
        channels, features = config.tensor_channels, config.n_features
        # Scalars of every path enter the latent MLP, whether or not scalars are among the tensors passed on.
        self.paths = {ir: Paths.build(irreps_in, config.l_max, ir) for ir in dict.fromkeys([SCALAR, *irreps_out])}
        # C = sign / sqrt(2l+1) for (l) ⊗ (l) → scalar, by degree: what a layer needs that yields scalars alone.
        to_scalar = Paths.build(harmonics(config.l_max), config.l_max, SCALAR).coefficients
        self.scalar_norms = [to_scalar[d * d, 0, d, d * d].item() for d in range(config.l_max + 1)]
        # V⁰ of the first layer needs weights of its own, made by the same map (eq. 6 and eq. 10).
        n_weights = (config.l_max + 1) * channels * (2 if first else 1)
        self.env_embed = MLP([features, *config.env_embed_mlp, n_weights])
        self.latent_mlp = MLP([features + len(self.paths[SCALAR].pairs) * channels, *config.latent_mlp])
        n_paths = [len(self.paths[ir].pairs) for ir in irreps_out]
        self.mix = nn.ParameterList(linear_weight(n * channels, channels) for n in n_paths)
        self._exact_contraction = Contraction.build(irreps_in, self.paths)
        self._apply(lambda tensor: tensor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AllegroLayer":
        """Coupling coefficients follow device and dtype, from float64 each time: float().double() must not round."""
        super()._apply(fn, recurse)
        like = next(self.parameters())  # a change of device alone keeps the dtype
        self.coefficients = [paths.coefficients.to(like) for paths in self.paths.values()]
        self.contraction = self._exact_contraction.to(like)
        return self

    def forward(
        self,
        x: Float[Tensor, "n_edges n_features"],
        v: list[Tensor],
        sh: Float[Tensor, "*slots dim_env"],
        envelope: Float[Tensor, "n_edges 1"],
        layout: Segments | Chunk,
    ) -> tuple[Float[Tensor, "n_edges n_features"], list[Tensor]]:
        """Scalar and tensor features after the layer.

        Args:
            x: scalar features of the edges.
            v: tensor features by irrep, each [*slots, 2l+1, channels]; empty before the first layer.
            sh: spherical harmonics.
            envelope: u(r_ij).
            layout: centres and their edges; slots are edges as they lie, or [n_atoms, n_max].
        """
        weights = layout.pad(self.env_embed(x))
        if isinstance(layout, Segments):
            scalars, v = self.products_by_edge(v, weights, sh, layout)
        else:
            scalars, v = self.products_by_center(v, weights, sh)
        # Eqs. 11 and 12, then the residual update with coefficients of unit norm (α = 1/2, supplement).
        update = self.latent_mlp(torch.cat([x, layout.unpad(scalars)], dim=1)) * (envelope / math.sqrt(5))
        return torch.add(update, x, alpha=2 / math.sqrt(5)), v

    def products_by_edge(
        self,
        v: list[Tensor],
        weights: Float[Tensor, "n_edges n_weights"],
        sh: Float[Tensor, "n_edges dim_env"],
        layout: Segments,
    ) -> tuple[Float[Tensor, "n_edges n_scalars"], list[Tensor]]:
        """Environment and tensor products of edges as they lie: scalars of all paths, and new tensor features by irrep.

        All paths are a kernel's, V⁰ among what it reads; eq. 10's linear map is a matrix product.
        """
        env_weights, *rest = weights.chunk(2 if self.first else 1, dim=1)
        env = environment(env_weights, sh, layout) / math.sqrt(self.avg_num_neighbors)
        if self.first:
            w0, by_degree = rest[0].chunk(self.l_max + 1, dim=1), self.by_degree(sh)
            v = [w[:, None] * y[:, :, None] for w, y in zip(w0, by_degree, strict=True)]
        found = tensor_product(v, self.contraction.coefficients @ env, self.contraction, layout)
        products = dict(zip(self.paths, found, strict=True))
        mixed = [
            products[ir].flatten(1).unflatten(1, (2 * ir[0] + 1, -1)) @ mix
            for ir, mix in zip(self.irreps_out, self.mix, strict=True)
        ]
        return products[SCALAR].flatten(1), mixed

    def products_by_center(
        self,
        v: list[Tensor],
        weights: Float[Tensor, "n_atoms n_max n_weights"],
        sh: Float[Tensor, "n_atoms n_max dim_env"],
    ) -> tuple[Float[Tensor, "n_atoms n_max n_scalars"], list[Tensor]]:
        """The same in the padded layout."""
        every, by_degree = weights.chunk((self.l_max + 1) * (2 if self.first else 1), dim=2), self.by_degree(sh)
        env_weights, w0 = every[: self.l_max + 1], every[self.l_max + 1 :]
        env = self.environment(env_weights, by_degree)
        if self.irreps_out:
            return self.tensor_products(v, w0, sh, torch.cat(env, dim=1))
        return self.scalar_products(v, w0, by_degree, env), []

    def by_degree(self, sh: Float[Tensor, "*slots dim_env"]) -> tuple[Tensor, ...]:
        """Spherical harmonics, cut along the last axis."""
        return sh.split([2 * degree + 1 for degree in range(self.l_max + 1)], dim=-1)

    def environment(self, weights: Sequence[Tensor], sh: Sequence[Tensor]) -> list[Tensor]:
        """Σ_k w^ik_l Y_l(r_ik) / sqrt(avg_num_neighbors), the bracket of eq. 9: [n_atoms, 2l+1, channels] by degree.

        Y_00 is 1, and unused slots have no weight: the first is a plain sum.
        """
        norm = 1 / math.sqrt(self.avg_num_neighbors)
        products = [(y.transpose(1, 2) * norm) @ w for y, w in zip(sh[1:], weights[1:], strict=True)]
        return [weights[0].sum(1, keepdim=True) * norm, *products]

    def scalar_products(
        self, v: list[Tensor], w0: Sequence[Tensor], sh: Sequence[Tensor], env: list[Tensor]
    ) -> Float[Tensor, "n_atoms n_max n_scalars"]:
        """The paths (l) ⊗ (l) → scalar alone: Σ_m V_lm A_lm / sqrt(2l+1), the sign that of the Wigner 3j symbol."""
        env = [a * norm for a, norm in zip(env, self.scalar_norms, strict=True)]
        if self.first:
            rest = [w * (y @ a) for w, y, a in zip(w0[1:], sh[1:], env[1:], strict=True)]
            return torch.cat([w0[0] * env[0], *rest], dim=2)
        return torch.cat([(t * a[:, None]).sum(2) for t, a in zip(v, env, strict=True)], dim=2)

    def tensor_products(
        self,
        v: list[Tensor],
        w0: Sequence[Tensor],
        sh: Float[Tensor, "n_atoms n_max dim_env"],
        env: Float[Tensor, "n_atoms dim_env channels"],
    ) -> tuple[Float[Tensor, "n_atoms n_max n_scalars"], list[Tensor]]:
        """Scalars of all paths of eq. 8, and all paths mixed into new tensor features (the linear map of eq. 10).

        The environment meets the coupling coefficients once per atom.
        """
        n_atoms, dim_env, channels = env.shape
        left = sh if self.first else torch.cat(v, dim=2).permute(0, 3, 1, 2)
        mixes = dict(zip(self.irreps_out, self.mix, strict=True))
        scalars, mixed = None, []
        for (out, paths), coefficients in zip(self.paths.items(), self.coefficients, strict=True):
            dim_in, dim_out, n_paths, _ = coefficients.shape
            if self.first:
                # m[i, a, k, u] = Σ_b C[a, k, b] A[i, b, u]; then w⁰[ij, u] Σ_a Y[ij, a] m[i, a, k, u].
                m = (coefficients.view(-1, dim_env) @ env).view(n_atoms, dim_in, -1)
                w = torch.cat([w0[degree] for (degree, _), _ in paths.pairs], dim=2)
                if out != SCALAR:
                    mixed.append(contract_and_mix(left, m, w, mixes[out]))
                    continue
                product = ((left @ m) * w)[:, :, None]
            else:
                # Each channel of V meets its own matrix: a product batched over atoms and channels.
                m = (env.transpose(1, 2) @ coefficients.view(-1, dim_env).t()).view(n_atoms, channels, dim_in, -1)
                product = (left @ m).permute(0, 2, 3, 1).unflatten(2, (dim_out, n_paths)).flatten(3)
            if out == SCALAR:
                scalars = product[:, :, 0]
            if out in mixes:
                mixed.append(product @ mixes[out])
        assert scalars is not None
        return scalars, mixed


class Allegro(nn.Module):
    """Edge vectors and species in, features of every ordered pair out; they vanish smoothly at the cutoff.

    Args:
        config: hyperparameters, ``avg_num_neighbors`` set.
        n_species: number of elements.
        vectors: keep the last layer's polar vectors (l = 1, odd), for heads that need them.

    Raises:
        InputError: for ``vectors`` with ``l_max`` 0.
    """

    per: Literal["edge", "atom"] = "edge"
    triton: bool | None = None
    """Whether Triton kernels connect edges and centres; null: on a GPU, unless ``EQUICAT_NATIVE=0``."""

    def __init__(self, config: AllegroConfig, n_species: int, vectors: bool = False):
        super().__init__()
        if vectors and config.l_max < 1:
            raise InputError("model.l_max is 0, so there are no vectors for this head; set it to 1 or more")
        self.config, self.n_species = config, n_species
        self.n_features = config.n_features
        self.n_vectors = config.tensor_channels if vectors else 0
        self.two_body = TwoBody(config, n_species)
        irreps = layer_irreps(config.l_max, config.n_layers, config.parity, vectors)
        leaving = [*irreps[1:], [VECTOR] if vectors else []]
        self.layers: Any = nn.ModuleList(
            AllegroLayer(config, a, b, first=k == 0) for k, (a, b) in enumerate(zip(irreps, leaving, strict=True))
        )
        # The largest intermediate of an edge decides how many edges are worked on at a time.
        rows = max(
            (2 * out[0] + 1) * sum(couples(a, b, out) for a in entering for b in harmonics(config.l_max))
            for entering, outs in zip(irreps, leaving, strict=True)
            for out in [SCALAR, *outs]
        )
        self.floats_per_edge = max(*config.two_body_mlp, *config.latent_mlp, rows * config.tensor_channels)

    def geometry(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> tuple[Int[Tensor, "n_edges"], Tensor, Tensor, Tensor]:
        """What the network sees of edges: ordered pairs of elements, envelope, radial basis, spherical harmonics."""
        center, neighbor = edge_index
        pair = species[center] * self.n_species + species[neighbor]
        r = torch.linalg.vector_norm(edge_vec, dim=1, keepdim=True)
        envelope = polynomial_envelope(r / self.config.cutoff, self.config.envelope_p)
        radial = self.two_body.bessel(r / self.config.cutoff) * envelope
        return pair, envelope, radial, spherical_harmonics(self.config.l_max, edge_vec / r)

    def forward(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> Features:
        """Features by edge."""
        pair, envelope, radial, sh = self.geometry(edge_vec, edge_index, species)
        pieces, position = layouts(edge_index[0], len(species), self.floats_per_edge, self.triton)
        # Everything about an edge's geometry as one array, so that cutting it into chunks is one operation.
        geometry = torch.cat([envelope, radial, sh], dim=1)
        found = [self.pair_features(geometry[piece.edges], pair[piece.edges], piece) for piece in pieces]
        scalars, vectors = (join(parts, position) for parts in zip(*found, strict=True))
        return Features(scalars, "edge", vectors if self.n_vectors else None)

    def pair_features(
        self,
        geometry: Float[Tensor, "n_edges n_geometry"],
        pair: Int[Tensor, "n_edges"],
        layout: Segments | Chunk,
    ) -> tuple[Float[Tensor, "n_edges n_features"], Float[Tensor, "n_edges 3 n_vectors"]]:
        """The network, on all edges of some centres: scalars and vectors."""
        config = self.config
        envelope, radial, sh = geometry.split([1, config.n_bessel, (config.l_max + 1) ** 2], dim=1)
        x = self.two_body(radial, envelope, pair)
        sh, v = layout.pad(sh), list[Tensor]()
        for layer in self.layers:
            x, v = layer(x, v, sh, envelope, layout)
        return x, layout.unpad(v[0]) if v else x.new_zeros(len(x), 3, 0)
