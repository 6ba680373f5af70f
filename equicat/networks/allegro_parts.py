"""The two flavours of :class:`equicat.networks.allegro.Allegro`: scalar features and tensor features.

Published: x^ij is updated layer by layer, times the envelope; V^ij are arrays of edges, and a linear map mixes paths
and channels (eq. 10). The environment meets the coupling coefficients once per *atom*: each edge then only multiplies
the small matrix of its centre, instead of repeating the tensor product.

Second (nequip-allegro): the scalars of all layers are kept and read by all later ones, nothing is multiplied by the
envelope but the radial basis, one output of each latent MLP weights the next environment, and channels never mix: a
path has one weight a channel. So V^ij,L is a matrix of the centre and the channel times V^ij,0, and the scalars that a
layer takes from it are Σ_lm w⁰_l Y_lm(r_ij) G_L[i, lm], with a vector G_L of the centre: a product of environments and
coupling coefficients, made once per atom. No tensor of an edge is ever written, whatever l_max is.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat.kernels import backend
from equicat.kernels.forms import Indexed, Segments, read_out, tensor_product
from equicat.kernels.irreps import SCALAR, VECTOR, Contraction, Irrep, Paths, couplings, dim, layer_irreps
from equicat.kernels.products import activated, hidden, product
from equicat.kernels.terms import Terms
from equicat.networks.allegro import Allegro, AllegroConfig, Latent, NequipAllegroConfig, Piece
from equicat.networks.allegro_embeddings import ProductEmbedding, SplineEmbedding, TwoBody
from equicat.networks.couplings import CenterProducts, LayerCouplings
from equicat.networks.layers import MLP, BesselBasis, Exact, SplineBasis, linear_weight, silu

# ---- published -----------------------------------------------------------------------------------------------------


class AllegroLayer(nn.Module):
    """One tensor-product layer as published, eqs. 7 to 12.

    Args:
        config: hyperparameters.
        irreps_in: of the tensor features V^{L-1}.
        irreps_out: of V^L; empty in a last layer of which only scalars are used.
        first: ``env_embed`` makes the weights of V⁰ as well (eqs. 6 and 10).
    """

    def __init__(self, config: AllegroConfig, irreps_in: list[Irrep], irreps_out: list[Irrep], first: bool):
        super().__init__()
        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        channels, n_features = config.tensor_channels, config.n_features
        # Scalars of every path enter the latent MLP, whether or not scalars are among the tensors passed on.
        self.paths = {ir: Paths.build(irreps_in, config.l_max, ir) for ir in dict.fromkeys([SCALAR, *irreps_out])}
        n_weights = (config.l_max + 1) * channels * (2 if first else 1)
        self.env_embed = MLP([n_features, *config.env_embed_mlp, n_weights])
        self.latent_mlp = MLP([n_features + len(self.paths[SCALAR].pairs) * channels, *config.latent_mlp])
        n_paths = [len(self.paths[ir].pairs) for ir in irreps_out]
        self.mix = nn.ParameterList(linear_weight(n * channels, channels) for n in n_paths)
        self.contraction = Exact(Contraction.build(irreps_in, self.paths))

    def products(
        self,
        tensor_features: Sequence[Float[Tensor, "n_edges _ channels"]],
        env: Float[Tensor, "n_atoms dim_env channels"],
        segments: Segments | Indexed,
    ) -> tuple[Float[Tensor, "n_edges n_scalars"], list[Float[Tensor, "n_edges _ channels"]]]:
        """Scalars of all paths (eq. 8), and all paths mixed into new tensor features by irrep (eq. 10)."""
        contraction = self.contraction.like(env)
        found = tensor_product(tensor_features, contraction.coefficients @ env, contraction, segments)
        products = dict(zip(self.paths, found, strict=True))
        mixed = [
            products[ir].flatten(1).unflatten(1, (dim([ir]), -1)) @ mix
            for ir, mix in zip(self.irreps_out, self.mix, strict=True)
        ]
        return products[SCALAR].flatten(1), mixed

    def update(
        self,
        scalar_features: Float[Tensor, "n_edges n_features"],
        scalars: Float[Tensor, "n_edges n_scalars"],
        envelope: Float[Tensor, "n_edges 1"],
    ) -> Float[Tensor, "n_edges n_features"]:
        """Eqs. 11 and 12, then the residual update with coefficients of unit norm (α = 1/2, supplement)."""
        update = self.latent_mlp(torch.cat([scalar_features, scalars], dim=1)) * (envelope / math.sqrt(5))
        return torch.add(update, scalar_features, alpha=2 / math.sqrt(5))


class PublishedAllegro(Allegro):
    """Allegro as published; arguments and errors are those of :class:`~equicat.networks.allegro.Allegro`."""

    def __init__(self, config: AllegroConfig, n_species: int, vectors: bool = False):
        super().__init__(config, n_species, vectors)
        self.two_body = TwoBody(config, n_species)
        entering = layer_irreps(config.l_max, config.n_layers, config.parity, vectors)
        leaving = [*entering[1:], [VECTOR] if vectors else []]
        self.layers = nn.ModuleList(
            AllegroLayer(config, a, b, first=k == 0) for k, (a, b) in enumerate(zip(entering, leaving, strict=True))
        )
        columns = max(max(layer.contraction.exact.widths) for layer in self.layers)
        self.floats_per_edge = max(*config.two_body_mlp, *config.latent_mlp, columns * config.tensor_channels)

    @property
    def bessel(self) -> BesselBasis:
        return self.two_body.bessel

    def prepared(self) -> Float[Tensor, "n_pairs width"]:
        """The first layer's rows by pair of elements."""
        return self.two_body.table()

    def radial(
        self, x: Float[Tensor, "n_edges 1"], envelope: Float[Tensor, "n_edges 1"]
    ) -> Float[Tensor, "n_edges n_radial"]:
        return self.two_body.bessel(x) * envelope

    def embed(self, piece: Piece) -> tuple[Latent, Float[Tensor, "n_edges n_weights"]]:
        """x^ij,0, and the weights of the first environment and of V⁰, which layer 0 makes of it."""
        scalar_features = self.two_body(piece.geometry, piece.prepared)
        env_weights, tensor_weights = self.layers[0].env_embed(scalar_features).chunk(2, dim=1)
        return Latent(env_weights, scalar_features), tensor_weights

    def first_tensors(
        self, weights: Float[Tensor, "n_edges n_weights"], harmonics: Float[Tensor, "n_edges dim_env"]
    ) -> list[Float[Tensor, "n_edges _ channels"]]:
        """V^ij,0 by irrep, written out."""
        n_degrees = self.config.l_max + 1
        by_degree = harmonics.split([2 * degree + 1 for degree in range(n_degrees)], dim=1)
        return [w[:, None] * y[:, :, None] for w, y in zip(weights.chunk(n_degrees, dim=1), by_degree, strict=True)]

    def products(
        self,
        k: int,
        tensors: list[Float[Tensor, "n_edges _ channels"]],
        env: Float[Tensor, "n_atoms dim_env channels"],
        piece: Piece,
    ) -> tuple[Float[Tensor, "n_edges n_scalars"], list[Float[Tensor, "n_edges _ channels"]]]:
        return self.layers[k].products(tensors, env, piece.segments)

    def update(self, k: int, latent: Latent, scalars: Float[Tensor, "n_edges n_scalars"], piece: Piece) -> Latent:
        """x^ij after layer k, and the weights of the next environment, which are made of it."""
        x = self.layers[k].update(latent.scalar_features, scalars, piece.geometry.envelope)
        last = k + 1 == len(self.layers)
        return Latent(x[:, :0] if last else self.layers[k + 1].env_embed(x), x)

    def features(self, latent: Latent) -> Float[Tensor, "n_edges n_features"]:
        return latent.scalar_features

    def vectors(
        self, tensors: list[Float[Tensor, "n_edges _ channels"]], segments: Segments | Indexed
    ) -> Float[Tensor, "n_edges 3 channels"]:
        return tensors[0]


# ---- nequip-allegro ------------------------------------------------------------------------------------------------


class TensorProduct(nn.Module):
    """All paths of one layer, weighted: V'[c, u] = Σ_abp w[u, p] C[a, c, p, b] V[a, u] A[b, u], channels u apart.

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
        self.coefficients = Exact(couplings(self.paths))

    @cached_property
    def terms(self) -> tuple[Exact[Terms], Exact[Terms]]:
        """Coefficients that are not zero, as a GPU's kernel reads them: of products that make scalars, and of all."""
        coefficients = self.coefficients.exact.permute(0, 3, 1, 2)
        return Exact(Terms.of(coefficients[:, :, :1])), Exact(Terms.of(coefficients))

    def weighted(self) -> Float[Tensor, "n_weights dim_env dim_in dim_out"]:
        """Σ_p w[u, p] C[a, c, p, b]: once a call, for all atoms."""
        return torch.einsum("up,acpb->ubac", self.weight, self.coefficients.like(self.weight))


def center_matrices(
    env: Float[Tensor, "n_atoms dim_env channels"], weighted: Float[Tensor, "n_weights dim_env dim_in dim_out"]
) -> Float[Tensor, "channels n_atoms dim_in dim_out"]:
    """The matrix that multiplies V of every edge of a centre: M[u, i, a, c] = Σ_b (Σ_p w C)[u, b, a, c] A[i, b, u]."""
    return (env.permute(2, 0, 1).contiguous() @ weighted.flatten(2)).unflatten(2, weighted.shape[2:])


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


@dataclass(frozen=True, eq=False)
class CenterTensors:
    """Tensor features of edges as matrices of their centres: V^ij,L = V^ij,0 M_1 … M_L."""

    weights: Float[Tensor, "n_edges n_weights"]
    """w⁰ of V^ij,0, by degree and channel."""
    harmonics: Float[Tensor, "n_edges dim_env"]
    matrices: list[Float[Tensor, "channels n_atoms _ _"]]
    """M of each layer so far."""

    def read(self, columns: slice, segments: Segments | Indexed) -> list[Float[Tensor, "n_edges channels"]]:
        """Some components of V^ij,L: Σ_l w⁰_l Σ_m Y_lm G[lm] with G = M_1 … M_L[:, columns], made from the right."""
        *earlier, last = self.matrices
        g = last[..., columns]
        for matrix in reversed(earlier):
            g = matrix @ g
        return [
            read_out(self.weights, self.harmonics, column, segments) for column in g.permute(3, 1, 2, 0).contiguous()
        ]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Weights of the second flavour, multiplied out once for all pieces of a call."""

    maps: list[Float[Tensor, "_ _"]]
    """See :meth:`NequipAllegro.composed`."""
    products: list[Float[Tensor, "n_weights dim_env _ _"]]
    """:meth:`TensorProduct.weighted` of each layer, where no kernel takes their place."""
    couplings: list[LayerCouplings] | None
    """Products of each layer for a GPU's kernel, where that serves: it makes scalars only."""


class NequipAllegro(Allegro):
    """The nequip-allegro package's; arguments and errors are those of :class:`~equicat.networks.allegro.Allegro`."""

    inverse_cutoff: Tensor
    env_norm: Tensor

    def __init__(self, config: NequipAllegroConfig, n_species: int, vectors: bool = False):
        super().__init__(config, n_species, vectors)
        n_scalars, self.n_weights = config.n_scalars, (config.l_max + 1) * config.tensor_channels
        self.basis: nn.Module
        config.check_elements(n_species)
        self.embedding: nn.Module
        if config.radial == "bessel":
            self.basis = BesselBasis(config.n_radial, config.bessel_trainable)
            self.embedding = ProductEmbedding(config.n_radial, config.width, n_species)
        else:
            self.basis, self.recordable = SplineBasis(config.n_radial, config.spline_span), False
            self.embedding = SplineEmbedding(config.n_radial, config.spline_span, config.width, n_species)
        self.two_body_mlp = MLP([config.width, *config.two_body_hidden, n_scalars])
        self.tensor_weights = linear_weight(n_scalars, self.n_weights)
        self.projection = linear_weight(n_scalars, n_scalars + self.n_weights)
        entering = layer_irreps(config.l_max, config.n_layers, config.parity, vectors)
        leaving = [*entering[1:], [SCALAR, VECTOR] if vectors else [SCALAR]]
        self.layers = nn.ModuleList(
            NequipAllegroLayer(config, k, a, b) for k, (a, b) in enumerate(zip(entering, leaving, strict=True))
        )
        self.readout = linear_weight((config.n_layers + 1) * n_scalars, config.n_features)
        cutoffs = config.pair_cutoffs or (config.cutoff,) * n_species**2
        self.register_buffer("inverse_cutoff", 1 / torch.tensor(cutoffs, dtype=torch.float64), persistent=False)
        neighbors = config.neighbors_of_element or (config.avg_num_neighbors or 1.0,) * n_species
        self.register_buffer("env_norm", torch.tensor(neighbors, dtype=torch.float64).rsqrt(), persistent=False)
        self.floats_per_edge = max(weight.shape[1] for weight in self.composed())

    def composed(self) -> list[Float[Tensor, "_ _"]]:
        """Pairs of linear maps with nothing in between, multiplied out.

        The last map of MLP k (0: two-body, k: latent MLP of layer k) yields x^k and the weights of the next
        environment; x^k is then only multiplied by rows of the first matrix of later MLPs and of the readout, its
        readers. Entry k therefore goes straight from the last hidden features of MLP k to: the weights of the next
        environment (not after the last layer), the weights of V⁰ (entry 0 alone), and what x^k adds to the first sum of
        each reader, of layers k + 1, k + 2, … and the readout.
        """
        n = self.config.n_scalars
        readers = [*(layer.latent_mlp.weights[0] for layer in self.layers), self.readout]
        shares = [torch.cat([r[k * n : (k + 1) * n] for r in readers[k:]], dim=1) for k in range(len(readers))]
        projected = torch.cat([self.projection[:, n:], self.tensor_weights, self.projection[:, :n] @ shares[0]], dim=1)
        out = [self.two_body_mlp.weights[-1] @ projected]
        for layer, share in zip(self.layers, shares[1:], strict=True):
            last = layer.latent_mlp.weights[-1]
            out.append(torch.cat([last[:, n:], last[:, :n] @ share], dim=1))
        return out

    def reader_widths(self) -> list[int]:
        """Width of the first sum of each latent MLP, and of the readout."""
        return [*(layer.latent_mlp.weights[0].shape[1] for layer in self.layers), self.config.n_features]

    def prepared(self) -> Prepared:
        """Composed maps and weighted coupling coefficients."""
        products = [layer.product for layer in self.layers]
        if backend.has_triton(self.readout.device) and not self.n_vectors:
            return Prepared(self.composed(), [], list(map(LayerCouplings.of, products)))
        return Prepared(self.composed(), [product.weighted() for product in products], None)

    def scaled_distance(
        self, r: Float[Tensor, "n_edges 1"], pair: Int[Tensor, "n_edges"]
    ) -> Float[Tensor, "n_edges 1"]:
        """Distances in units of the cutoff of the pair of elements."""
        return r * self.inverse_cutoff[pair][:, None].to(r)

    def inverse_cutoffs(self, pair: Int[Tensor, "n_edges"]) -> Float[Tensor, "n_edges"]:
        return self.inverse_cutoff[pair]

    @property
    def bessel(self) -> BesselBasis | None:
        return self.basis if isinstance(self.basis, BesselBasis) else None

    def environment_norm(self, species: Int[Tensor, "n_atoms"]) -> Float[Tensor, "n_atoms 1 1"]:
        """1 / sqrt(average number of neighbours) of each centre's element."""
        return self.env_norm[species].to(self.readout)[:, None, None]

    def radial(
        self, x: Float[Tensor, "n_edges 1"], envelope: Float[Tensor, "n_edges 1"]
    ) -> Float[Tensor, "n_edges n_radial"]:
        """Bessel functions times the envelope, or splines, which vanish at the cutoff by themselves."""
        basis = self.basis(x)
        return basis * envelope if self.config.radial == "bessel" else basis

    def embed(self, piece: Piece) -> tuple[Latent, Float[Tensor, "n_edges n_weights"]]:
        """The weights of the first environment, what x^0 adds to the sums of all readers, and the weights of V⁰."""
        x = self.embedding(piece.geometry.radial, piece.geometry.pair)
        sizes = [self.n_weights, self.n_weights, *self.reader_widths()]
        first, last = self.two_body_mlp.weights[:-1], piece.prepared.maps[0]
        if len(first) == 1:
            found = hidden(x, None, (first[0], last), [None] * len(sizes), sizes)
        elif len(first):
            found = activated(_before_silu(product(x, first[0]), first[1:]), last, [None] * len(sizes), sizes)
        else:
            found = product(x, last).split(sizes, dim=1)
        env_weights, tensor_weights, *sums = found
        return Latent(env_weights, sums), tensor_weights

    def first_tensors(
        self, weights: Float[Tensor, "n_edges n_weights"], harmonics: Float[Tensor, "n_edges dim_env"]
    ) -> CenterTensors:
        return CenterTensors(weights, harmonics, [])

    def products(
        self,
        k: int,
        tensors: CenterTensors | CenterProducts,
        env: Float[Tensor, "n_atoms dim_env channels"],
        piece: Piece,
    ) -> tuple[Float[Tensor, "n_edges channels"], CenterTensors | CenterProducts]:
        """One more environment of each centre, and the scalars that edges read with all of them."""
        known, segments = piece.prepared.couplings, piece.segments
        if known is not None and isinstance(segments, Segments):
            envs = [*(tensors.envs if isinstance(tensors, CenterProducts) else []), env]
            products = CenterProducts(tensors.weights, tensors.harmonics, envs, known)
            return products.scalars(segments), products
        assert isinstance(tensors, CenterTensors)
        weighted = piece.prepared.products[k] if known is None else self.layers[k].product.weighted()
        matrices = [*tensors.matrices, center_matrices(env, weighted)]
        after = CenterTensors(tensors.weights, tensors.harmonics, matrices)
        (scalars,) = after.read(slice(0, 1), piece.segments)  # (0, +1) comes first
        return scalars, after

    def update(self, k: int, latent: Latent, scalars: Float[Tensor, "n_edges channels"], piece: Piece) -> Latent:
        """Scalars that layer k adds to the sums of later readers, and the weights of the next environment."""
        mine, *others = latent.scalar_features  # sums that this layer and later readers see
        first, *rest = self.layers[k].latent_mlp.weights[:-1]
        own = first[(k + 1) * self.config.n_scalars :]
        widths, maps = self.reader_widths()[k + 1 :], piece.prepared.maps[k + 1]
        env = [] if k + 1 == len(self.layers) else [self.n_weights]
        added, sizes = [*([None] * len(env)), *others], [*env, *widths]
        if rest:
            z = _before_silu(torch.addmm(mine, scalars, own), rest)
            found = activated(z, maps, added, sizes)
        else:
            found = hidden(scalars, mine, (own, maps), added, sizes)
        return Latent(found[0] if env else scalars[:, :0], list(found[len(env) :]))

    def features(self, latent: Latent) -> Float[Tensor, "n_edges n_features"]:
        """The readout's sum over the scalars of all layers."""
        (total,) = latent.scalar_features
        return silu(total) if self.config.features_silu else total

    def vectors(self, tensors: CenterTensors, segments: Segments | Indexed) -> Float[Tensor, "n_edges 3 channels"]:
        return torch.stack(tensors.read(slice(1, None), segments), dim=1)


def _before_silu(z: Float[Tensor, "n n_in"], weights: Iterable[Tensor]) -> Float[Tensor, "n n_out"]:
    """The last hidden layer of an MLP before its SiLU, from the first one before its."""
    for weight in weights:
        z = product(silu(z), weight)
    return z
