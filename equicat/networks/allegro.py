"""Allegro: strictly local E(3)-equivariant features of ordered pairs, in two flavours.

Published (``model.name: allegro``): Musaelian et al., Nat. Commun. 14, 579 (2023), whose equation numbers are given.
As the nequip-allegro package builds it since 0.8 (``nequip-allegro``): ``docs/decisions/0010`` has its equations.

Every ordered pair ij carries scalar features x^ij and tensor features V^ij. In each layer the environment of the
*centre* i alone is summed (eq. 9) and multiplied into V^ij, and what comes out as scalars updates x^ij. Nothing ever
flows from pair to pair, so after any number of layers E_ij depends on atoms within one cutoff of i only.

:class:`Allegro` is the loop over layers. What the flavours differ in is in :mod:`equicat.networks.allegro_parts`: the
embedding of pairs, how scalars of layers follow one another, and what is done with tensors. Edges are sorted by centre
and stay as they lie; what connects them with their centres is in :mod:`equicat.kernels.forms`.
:mod:`equicat.testing.plain_allegro` is the same function path by path and edge by edge, the oracle of the tests.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat.errors import InputError
from equicat.kernels import backend
from equicat.kernels.forms import Indexed, Segments, cut, environment
from equicat.kernels.harmonics import spherical_harmonics
from equicat.kernels.irreps import Parity
from equicat.kernels.switches import BY_VECTORS_TWICE
from equicat.networks.features import Features
from equicat.networks.layers import BesselBasis, polynomial_envelope
from equicat.options.values import (
    Checked,
    Cutoff,
    Degree,
    Depth,
    EnvelopeExponent,
    Length,
    Positive,
    PositiveNumber,
    Width,
)


@dataclass(frozen=True)
class AllegroConfig(Checked, section="model"):
    """Hyperparameters; the default sizes are those of the OC20 models in the paper on Allegro for catalysis.

    Other defaults are not that paper's: ``normalize_basis`` (true there), ``n_types`` (84) and ``avg_num_neighbors``
    (37 for relaxed energies, 33 for forces); neighbour lists, cut there to the nearest 50 of each atom; and, outside
    the network, the readout, the first weights and what a learning rate means. The configurations ``oc20/…/allegro``
    set all of these but the neighbour lists; docs/paper.md says why the defaults differ.
    """

    name: Literal["allegro"] = "allegro"
    """Which architecture."""
    cutoff: Cutoff = 6.0
    """Distance (Å) up to which two atoms are neighbours."""
    n_layers: Depth = 3
    """Tensor-product layers."""
    l_max: Degree = 2
    """Highest degree of the spherical harmonics and tensor features."""
    parity: Parity = "full"
    """full: tensor features of both parities for each degree; restricted: only that of the harmonics."""
    tensor_channels: Width = 32
    """Channels of the tensor features."""
    n_bessel: Width = 8
    """Radial basis functions."""
    bessel_trainable: bool = True
    """Train the frequencies of the radial basis."""
    normalize_basis: bool = False
    """Shift and scale each radial function to mean 0 and standard deviation 1 over the cutoff, as the authors' code."""
    envelope_p: EnvelopeExponent = 6
    """Exponent of the polynomial envelope; two continuous derivatives at the cutoff for any p ≥ 2."""
    two_body_mlp: Annotated[tuple[Width, ...], Length(2)] = (64, 128, 256, 512)
    """Widths of the two-body MLP; the last is the number of scalar features."""
    latent_mlp: Annotated[tuple[Width, ...], Length(1)] = (512,)
    """Widths of each layer's latent MLP; the last must equal that of the two-body MLP."""
    env_embed_mlp: tuple[Width, ...] = ()
    """Hidden widths of the map from scalars to environment weights; empty means linear."""
    avg_num_neighbors: PositiveNumber | None = None
    """Neighbours of an atom on average, which normalises sums over them; null takes it from the training data."""
    n_types: Positive | None = None
    """Elements that the authors' one-hot encoding has room for, which sets the size of its first weights and steps
    (initialization and optimizer.parametrization published); null: those of the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.two_body_mlp[-1] != self.latent_mlp[-1]:
            raise InputError(
                f"the last widths of model.two_body_mlp {list(self.two_body_mlp)} and model.latent_mlp "
                f"{list(self.latent_mlp)} must be equal, because layers update the same scalar features"
            )

    @property
    def n_features(self) -> int:
        """Scalar features of a pair."""
        return self.two_body_mlp[-1]


@dataclass(frozen=True)
class NequipAllegroConfig(Checked, section="model"):
    """Hyperparameters; the defaults are the nequip-allegro package's."""

    name: Literal["nequip-allegro"] = "nequip-allegro"
    """Which architecture."""
    cutoff: Cutoff = 6.0
    """Distance (Å) up to which two atoms are neighbours."""
    pair_cutoffs: Annotated[tuple[PositiveNumber, ...], Length(1)] | None = None
    """Å, shorter cutoffs of ordered pairs of elements (centre, neighbour), row by row; null: ``cutoff`` for all."""
    n_layers: Depth = 2
    """Tensor-product layers."""
    l_max: Degree = 2
    """Highest degree of the spherical harmonics and tensor features."""
    parity: Parity = "full"
    """full: tensor features of both parities for each degree; restricted: only that of the harmonics."""
    n_scalars: Width = 64
    """Scalars that each layer adds."""
    tensor_channels: Width = 32
    """Channels of the tensor features."""
    coupling: Literal["channel", "path"] = "channel"
    """channel: each channel weights each tensor-product path; path: all channels share the weights."""
    radial: Literal["bessel", "spline"] = "bessel"
    """bessel: one basis times an embedding of the elements; spline: a radial function of its own for each pair."""
    n_radial: Width = 8
    """Radial basis functions."""
    bessel_trainable: bool = False
    """Train the frequencies of the radial basis (bessel)."""
    envelope_p: EnvelopeExponent = 6
    """Exponent of the polynomial envelope (bessel)."""
    spline_span: Width = 12
    """How many splines overlap (spline)."""
    embedding_width: Width | None = None
    """Width of the radial and chemical embedding; null takes n_scalars."""
    two_body_hidden: tuple[Width, ...] = (64,)
    """Hidden widths of the two-body MLP."""
    latent_hidden: Annotated[tuple[Width, ...], Length(1)] = (64,)
    """Hidden widths of each layer's latent MLP, at least one."""
    n_features: Width = 32
    """Width of the features that are made of the scalars of all layers."""
    features_silu: bool = True
    """Whether these come out of a SiLU (a hidden layer of the readout), or are linear."""
    avg_num_neighbors: PositiveNumber | None = None
    """Neighbours of an atom on average, which normalises sums over them; null takes it from the training data."""
    neighbors_of_element: Annotated[tuple[PositiveNumber, ...], Length(1)] | None = None
    """Neighbours on average of the atoms of each element, where they differ; normalises environments."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radial == "bessel" and self.width % 2:
            raise InputError(
                f"model.embedding_width is {self.width}; it must be even, since half of it is the centre's element"
            )
        if self.pair_cutoffs is not None and max(self.pair_cutoffs) > self.cutoff:
            raise InputError(f"model.pair_cutoffs has {max(self.pair_cutoffs)}, but model.cutoff is {self.cutoff}")

    def check_elements(self, n_species: int) -> None:
        """Make sure that what is given by element is given for all of them.

        Raises:
            InputError: naming the option that is too short or too long.
        """
        for name, n in (("pair_cutoffs", n_species**2), ("neighbors_of_element", n_species)):
            values = getattr(self, name)
            if values is not None and len(values) != n:
                raise InputError(f"model.{name} has {len(values)} entries; {n_species} elements need {n}")

    @property
    def width(self) -> int:
        """Width of the radial and chemical embedding."""
        return self.embedding_width or self.n_scalars


@dataclass(frozen=True, eq=False)
class Geometry:
    """Edges as the network sees them."""

    pair: Int[Tensor, "n_edges"]
    """Ordered pair of elements, species_i · n_species + species_j."""
    envelope: Float[Tensor, "n_edges 1"]
    """u(r_ij)."""
    radial: Float[Tensor, "n_edges n_radial"]
    """Radial basis functions, which vanish at the cutoff."""
    harmonics: Float[Tensor, "n_edges dim_env"]
    """Y_lm(r_ij) for all degrees."""

    def split(self, sizes: list[int]) -> list["Geometry"]:
        """Consecutive edges, so many at a time."""
        fields = (self.pair, self.envelope, self.radial, self.harmonics)
        return [Geometry(*parts) for parts in zip(*(x.split(sizes) for x in fields), strict=True)]


@dataclass(frozen=True, eq=False)
class Piece:
    """Some centres with all their edges, worked on at a time."""

    geometry: Geometry
    segments: Segments | Indexed
    """Which edges belong to which centre."""
    prepared: Any
    """Result of :meth:`Allegro.prepared`, made once for all pieces of a call."""


@dataclass(frozen=True, eq=False)
class Latent:
    """The scalar side of some edges after a layer."""

    env_weights: Float[Tensor, "n_edges n_weights"]
    """w^ij_l by degree and channel, of the next layer's environment; empty after the last layer."""
    scalar_features: Any
    """x^ij [n_edges, n_features]; in the second flavour the sums that later layers read (see allegro_parts)."""


MAX_KERNEL_DEGREE = 4
"""Highest degree of harmonics that a GPU's kernels write out."""


def has_geometry_kernel(edge_vec: Float[Tensor, "n_edges 3"], l_max: int) -> bool:
    """Whether one kernel makes radial functions, envelope and harmonics: on a GPU, for potentials, which ask for no
    second derivatives by pair vectors."""
    return not BY_VECTORS_TWICE.on and l_max <= MAX_KERNEL_DEGREE and backend.has_triton(edge_vec.device)


class Allegro(nn.Module, ABC):
    """Edge vectors and species in, features of every ordered pair out; they vanish smoothly at the cutoff.

    The base of :class:`~equicat.networks.allegro_parts.PublishedAllegro` and
    :class:`~equicat.networks.allegro_parts.NequipAllegro`, which say what a layer is.

    Args:
        config: hyperparameters, ``avg_num_neighbors`` set.
        n_species: number of elements.
        vectors: keep the last layer's polar vectors (l = 1, odd), for heads that need them.

    Raises:
        InputError: for ``vectors`` with ``l_max`` 0.
    """

    per: Literal["edge", "atom"] = "edge"
    recordable = True
    """Whether the shapes of all arrays follow from those of the inputs, so that CUDA graphs can repeat it."""
    floats_per_edge: int
    """The largest intermediate of an edge."""
    layers: Any

    def __init__(self, config: Any, n_species: int, vectors: bool = False):
        super().__init__()
        if vectors and config.l_max < 1:
            raise InputError("model.l_max is 0, so there are no vectors for this head; set it to 1 or more")
        self.config, self.n_species = config, n_species
        self.n_features, self.n_vectors = config.n_features, config.tensor_channels if vectors else 0

    def forward(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> Features:
        """Features by edge.

        This is what runs on GPUs, for heads that need features (vectors, direct predictions), for l_max above 4, and
        where there is no C++ compiler. Elsewhere, which is the default on a CPU, a potential's energies and gradient
        come from the kernels in :mod:`equicat.networks.allegro_cpu`: the same function in C++, without this method.

        Args:
            edge_vec: r_j − r_i, Å.
            edge_index: centre and neighbour, sorted by centre.
            species: of atoms, 0 … n_species − 1.
        """
        geometry, prepared = self.geometry(edge_vec, edge_index, species), self.prepared()
        segments = cut(edge_index[0], len(species), self.floats_per_edge)
        parts = geometry.split([s.n_edges for s in segments])
        pieces = (Piece(part, s, prepared) for part, s in zip(parts, segments, strict=True))
        found = [self.pair_features(piece, species[piece.segments.atoms]) for piece in pieces]
        scalars, vectors = (x[0] if len(x) == 1 else torch.cat(x) for x in zip(*found, strict=True))
        return Features(scalars, "edge", vectors if self.n_vectors else None)

    def geometry(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> Geometry:
        """Distances, directions and elements of edges as the layers read them."""
        pair = species[edge_index[0]] * self.n_species + species[edge_index[1]]
        basis, l_max = self.bessel, self.config.l_max
        if basis is not None and has_geometry_kernel(edge_vec, l_max):
            from equicat.kernels.gpu import geometry as kernels  # needs Triton

            mean, inverse_std = (x.to(edge_vec) for x in (basis.mean, basis.inverse_std))
            shape = kernels.Shape(mean, inverse_std, self.config.envelope_p, l_max)
            scale = self.inverse_cutoffs(pair).to(edge_vec)
            radial, envelope, harmonics = kernels.geometry(shape, edge_vec, scale, basis.frequencies)
            return Geometry(pair, envelope, radial, harmonics)
        r = torch.linalg.vector_norm(edge_vec, dim=1, keepdim=True)
        x = self.scaled_distance(r, pair)
        envelope = polynomial_envelope(x, self.config.envelope_p)
        harmonics = spherical_harmonics(self.config.l_max, edge_vec / r).contiguous()
        return Geometry(pair, envelope, self.radial(x, envelope), harmonics)

    def pair_features(
        self, piece: Piece, species: Int[Tensor, "n_atoms"]
    ) -> tuple[Float[Tensor, "n_edges n_features"], Float[Tensor, "n_edges 3 n_vectors"]]:
        """The network, on the edges of some centres of these species: scalars and vectors."""
        harmonics, segments = piece.geometry.harmonics, piece.segments
        latent, tensor_weights = self.embed(piece)  # eq. 13, and the weights of V⁰ (eq. 6)
        tensors = self.first_tensors(tensor_weights, harmonics)
        norm = self.environment_norm(species)
        for k in range(len(self.layers)):
            env = environment(latent.env_weights, harmonics, segments) * norm  # eq. 9
            scalars, tensors = self.products(k, tensors, env, piece)  # eqs. 8 and 10
            latent = self.update(k, latent, scalars, piece)  # eqs. 11 and 12
        features = self.features(latent)
        return features, self.vectors(tensors, segments) if self.n_vectors else features[:, None, :0].expand(-1, 3, -1)

    # ---- what a flavour is -----------------------------------------------------------------------------------------

    def scaled_distance(
        self, r: Float[Tensor, "n_edges 1"], pair: Int[Tensor, "n_edges"]
    ) -> Float[Tensor, "n_edges 1"]:
        """Distances in units of the cutoff."""
        return r / self.config.cutoff

    def inverse_cutoffs(self, pair: Int[Tensor, "n_edges"]) -> Float[Tensor, "n_edges"]:
        """1/Å, of ordered pairs of elements."""
        return torch.full((1,), 1 / self.config.cutoff, dtype=torch.float64, device=pair.device).expand(len(pair))

    @property
    @abstractmethod
    def bessel(self) -> BesselBasis | None:
        """The radial functions, if they are Bessel functions times the envelope."""

    def environment_norm(self, species: Int[Tensor, "n_atoms"]) -> Float[Tensor, "n_atoms 1 1"] | float:
        """The factor of environments."""
        return 1 / math.sqrt(self.config.avg_num_neighbors or 1.0)

    def prepared(self) -> Any:
        """Functions of the weights alone, computed once for all pieces of a call."""
        return None

    @abstractmethod
    def radial(
        self, x: Float[Tensor, "n_edges 1"], envelope: Float[Tensor, "n_edges 1"]
    ) -> Float[Tensor, "n_edges n_radial"]:
        """Radial basis functions of distances in units of the cutoff."""

    @abstractmethod
    def embed(self, piece: Piece) -> tuple[Latent, Float[Tensor, "n_edges n_weights"]]:
        """The two-body features, and weights of the harmonics in the first tensor features."""

    @abstractmethod
    def first_tensors(
        self, weights: Float[Tensor, "n_edges n_weights"], harmonics: Float[Tensor, "n_edges dim_env"]
    ) -> Any:
        """V^ij,0 = w^ij_l Y_lm(r_ij), in the form in which this flavour keeps tensor features."""

    @abstractmethod
    def products(
        self, k: int, tensors: Any, env: Float[Tensor, "n_atoms dim_env channels"], piece: Piece
    ) -> tuple[Float[Tensor, "n_edges n_scalars"], Any]:
        """Tensor products with the environment in layer k = 0, 1, …: their scalars, and the next tensor features."""

    @abstractmethod
    def update(self, k: int, latent: Latent, scalars: Float[Tensor, "n_edges n_scalars"], piece: Piece) -> Latent:
        """The scalar features after layer k."""

    @abstractmethod
    def features(self, latent: Latent) -> Float[Tensor, "n_edges n_features"]:
        """The features that heads read."""

    @abstractmethod
    def vectors(self, tensors: Any, segments: Segments | Indexed) -> Float[Tensor, "n_edges 3 channels"]:
        """Polar vectors among the last tensor features."""
