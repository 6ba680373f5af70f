"""DimeNet (Gasteiger, Groß, Günnemann, ICLR 2020) and DimeNet++ (Gasteiger et al., arXiv:2011.14115).

Messages m_ji go along directed edges and are updated with those that arrive at j, each weighted by a basis in its
length d_kj and the angle of the triplet k → j → i. The layers with weights are PyTorch Geometric's, and take its
weights; what is ours is periodic edges, and sums over triplets without a list of triplets
(:mod:`equicat.networks.baselines.angles`). Forces are derivatives of everything, angles included.

The energy of the original is a sum over output blocks of a linear map of their last hidden features. The features here
are those of all blocks side by side, so one linear map without hidden layers on them is the original readout.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat.extras import extra
from equicat.networks.baselines.angles import AngularSums, reverse_edges
from equicat.networks.baselines.bessel import SphericalBesselBasis
from equicat.networks.baselines.memory import check_memory
from equicat.networks.baselines.padding import chunks
from equicat.networks.features import Features
from equicat.networks.layers import silu
from equicat.options.values import Checked, Cutoff, Depth, ExtraDepth, Range, Width, WidthOfSeveral


@dataclass(frozen=True)
class _Shared(Checked, section="model"):
    """Hyperparameters that DimeNet and DimeNet++ have in common."""

    name: str = ""
    cutoff: Cutoff = 6.0
    """Distance (Å) up to which two atoms are neighbours."""
    hidden_channels: WidthOfSeveral = 128
    """Width of messages."""
    n_blocks: Depth = 6
    """Interaction blocks."""
    n_spherical: Annotated[int, Range(at_least=1, at_most=20)] = 7
    """Degrees of the angular basis."""
    n_radial: Width = 6
    """Functions of each radial basis."""
    envelope_exponent: Annotated[int, Range(at_least=1, at_most=99)] = 5
    """Exponent as the published code counts it: the polynomial envelope has p = exponent + 1."""
    n_before_skip: ExtraDepth = 1
    """Residual layers of a block before its skip connection."""
    n_after_skip: ExtraDepth = 2
    """Residual layers after it."""
    n_output_layers: ExtraDepth = 3
    """Hidden layers of an output block."""


@dataclass(frozen=True)
class DimeNetPlusPlusConfig(_Shared, section="model"):
    """Hyperparameters; the defaults are those of OC20's S2EF models."""

    name: Literal["dimenet++"] = "dimenet++"
    """Which architecture."""
    hidden_channels: WidthOfSeveral = 192
    """Width of messages."""
    n_blocks: Depth = 3
    """Interaction blocks."""
    out_emb_channels: WidthOfSeveral = 192
    """Width of the atom features of each output block."""
    int_emb_size: Width = 64
    """Width of messages in the sum over triplets."""
    basis_emb_size: Width = 8
    """Width between the two maps of each basis."""


@dataclass(frozen=True)
class DimeNetConfig(_Shared, section="model"):
    """Hyperparameters; the defaults are those of the paper, with the cutoff of OC20."""

    name: Literal["dimenet"] = "dimenet"
    """Which architecture."""
    hidden_channels: WidthOfSeveral = 128
    """Width of messages, and of the atom features of each output block."""
    n_bilinear: Width = 8
    """Width of the basis in the bilinear layer."""
    angle_at: Literal["middle", "end"] = "middle"
    """middle: the angle of the paper and of OC20's code, between k → j and j → i; end: that of the original code and of
    PyTorch Geometric, between i → j and i → k."""


class DimeNetPlusPlus(nn.Module):
    """Edge vectors and species in, scalar features of every atom out: those of all output blocks side by side.

    Args:
        config: hyperparameters.
        n_species: number of elements.

    Raises:
        InputError: if PyTorch Geometric is not installed.
    """

    n_vectors = 0
    per: Literal["edge", "atom"] = "atom"

    def __init__(self, config: DimeNetPlusPlusConfig, n_species: int):
        super().__init__()
        layers = extra("torch_geometric.nn.models.dimenet", "baselines")
        c, p = config, config.envelope_exponent + 1
        self.config = config
        self.n_features = (c.n_blocks + 1) * c.out_emb_channels
        self.rbf = layers.BesselBasisLayer(c.n_radial, c.cutoff, c.envelope_exponent)
        self.sbf = SphericalBesselBasis(c.n_spherical, c.n_radial, c.cutoff, p)
        self.emb = _embedding(layers.EmbeddingBlock(c.n_radial, c.hidden_channels, silu), n_species)
        output = (c.n_radial, c.hidden_channels, c.out_emb_channels, 1, c.n_output_layers, silu)
        blocks = [_headless(layers.OutputPPBlock(*output)) for _ in range(c.n_blocks + 1)]
        for block in blocks:  # a bias, as in OC20's code
            block.lin_up.register_parameter("bias", nn.Parameter(torch.zeros(c.out_emb_channels)))
        self.output_blocks = nn.ModuleList(blocks)
        sizes = (c.hidden_channels, c.int_emb_size, c.basis_emb_size, c.n_spherical, c.n_radial)
        depth = (c.n_before_skip, c.n_after_skip)
        self.interaction_blocks = nn.ModuleList(
            layers.InteractionPPBlock(*sizes, *depth, silu) for _ in range(c.n_blocks)
        )

    def forward(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> Features:
        """Features of every atom.

        Raises:
            InputError: if a pair is in the list in one direction only.
        """
        i, j = edge_index
        r = torch.linalg.vector_norm(edge_vec, dim=1)
        rbf, sbf = self.rbf(r), _toward(self.sbf(r))
        reverse = reverse_edges(edge_vec, edge_index, len(species))
        sums = AngularSums(edge_vec, i, len(species), self.config.n_spherical, self.config.int_emb_size)
        x = self.emb(species, rbf, i, j)
        features = [self.output_blocks[0](x, rbf, i, num_nodes=len(species))]
        for interaction, output in zip(self.interaction_blocks, self.output_blocks[1:], strict=True):
            x = self.interact(interaction, x, rbf, sbf, sums, reverse)
            features.append(output(x, rbf, i, num_nodes=len(species)))
        return Features(torch.cat(features, dim=1), "atom")

    def interact(
        self,
        block: Any,
        x: Float[Tensor, "n_edges n_hidden"],
        rbf: Float[Tensor, "n_edges n_radial"],
        sbf: Float[Tensor, "n_edges n_spherical n_radial"],
        sums: AngularSums,
        reverse: Int[Tensor, "n_edges"],
    ) -> Float[Tensor, "n_edges n_hidden"]:
        """m_ji updated with Σ_k of what edges k → j carry, a row of ``x`` being the message to its edge's centre."""
        x_kj = silu(block.lin_kj(x)) * block.lin_rbf2(block.lin_rbf1(rbf))
        x_kj = silu(block.lin_down(x_kj))
        # The two linear maps of the basis as one, then the basis without its angular part: [l, edges, channels].
        weight = (block.lin_sbf2.weight @ block.lin_sbf1.weight).view(-1, *sbf.shape[1:])
        radial = sbf.transpose(0, 1) @ weight.permute(1, 2, 0)
        # The sum for i → j is that of its reverse, whose centre is j.
        total = sums.over_degrees((radial * x_kj).transpose(0, 1)).index_select(0, reverse)
        return _residual(block, x, silu(block.lin_up(total)))


class DimeNet(nn.Module):
    """Edge vectors and species in, scalar features of every atom out: those of all output blocks side by side.

    Its bilinear layer does not separate as that of DimeNet++ does. Triplets are laid out atom by atom, [atoms, edges
    out, edges in], so the sum over them is a batched matrix product; memory is quadratic in the number of neighbours.

    Args:
        config: hyperparameters.
        n_species: number of elements.

    Raises:
        InputError: if PyTorch Geometric is not installed.
    """

    n_vectors = 0
    per: Literal["edge", "atom"] = "atom"

    def __init__(self, config: DimeNetConfig, n_species: int):
        super().__init__()
        layers = extra("torch_geometric.nn.models.dimenet", "baselines")
        c, p = config, config.envelope_exponent + 1
        self.config = config
        self.n_features = (c.n_blocks + 1) * c.hidden_channels
        self.rbf = layers.BesselBasisLayer(c.n_radial, c.cutoff, c.envelope_exponent)
        self.sbf = SphericalBesselBasis(c.n_spherical, c.n_radial, c.cutoff, p)
        self.emb = _embedding(layers.EmbeddingBlock(c.n_radial, c.hidden_channels, silu), n_species)
        output = (c.n_radial, c.hidden_channels, 1, c.n_output_layers, silu)
        self.output_blocks = nn.ModuleList(_headless(layers.OutputBlock(*output)) for _ in range(c.n_blocks + 1))
        sizes = (c.hidden_channels, c.n_bilinear, c.n_spherical, c.n_radial)
        depth = (c.n_before_skip, c.n_after_skip)
        self.interaction_blocks = nn.ModuleList(
            layers.InteractionBlock(*sizes, *depth, silu) for _ in range(c.n_blocks)
        )

    def forward(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> Features:
        """Features of every atom.

        Raises:
            InputError: if a pair is in the list in one direction only, or the triplets do not fit into memory.
        """
        i, j = edge_index
        self.check_memory(i, len(species))
        r = torch.linalg.vector_norm(edge_vec, dim=1)
        rbf, sbf = self.rbf(r), self.sbf(r)
        reverse = reverse_edges(edge_vec, edge_index, len(species))
        triplets = Triplets(edge_vec, i, len(species), self.config)
        x = self.emb(species, rbf, i, j)
        features = [self.output_blocks[0](x, rbf, i, num_nodes=len(species))]
        for interaction, output in zip(self.interaction_blocks, self.output_blocks[1:], strict=True):
            x = self.interact(interaction, x, rbf, sbf, triplets, reverse)
            features.append(output(x, rbf, i, num_nodes=len(species)))
        return Features(torch.cat(features, dim=1), "atom")

    def check_memory(self, center: Int[Tensor, "n_edges"], n_atoms: int) -> None:
        """Refuse what cannot fit.

        Raises:
            InputError: with the estimate and what to do.
        """
        counts = torch.bincount(center, minlength=n_atoms).double()
        n_triplets = float((counts * (counts - 1)).sum())
        c = self.config
        floats = n_triplets * (2 * c.n_spherical + c.n_blocks * (c.n_spherical + c.n_bilinear))
        floats += len(center) * c.hidden_channels * c.n_blocks * (c.n_bilinear + 20)
        what = f"DimeNet on {n_atoms} atoms with {len(center):,} edges and {n_triplets:,.0f} triplets"
        advice = "use smaller batches, a shorter model.cutoff, or dimenet++ or gemnet, which need no triplets"
        check_memory(floats * self.rbf.freq.element_size(), center.device, what, advice)

    def interact(
        self,
        block: Any,
        x: Float[Tensor, "n_edges n_hidden"],
        rbf: Float[Tensor, "n_edges n_radial"],
        sbf: Float[Tensor, "n_edges n_spherical n_radial"],
        triplets: "Triplets",
        reverse: Int[Tensor, "n_edges"],
    ) -> Float[Tensor, "n_edges n_hidden"]:
        """m_ji updated with Σ_k of what edges k → j carry, a row of ``x`` being the message to its edge's centre."""
        x_kj = silu(block.lin_kj(x)) * block.lin_rbf(rbf)
        radial = torch.einsum("eln,bln->elb", sbf, block.lin_sbf.weight.view(-1, *sbf.shape[1:]))
        # Σ_k basis_b x_l first, the bilinear weights once per edge.
        total = triplets.sum(radial, x_kj).flatten(1) @ block.W.permute(1, 2, 0).flatten(0, 1)
        return _residual(block, x, total.index_select(0, reverse))


class Triplets:
    """All pairs of edges (g, f) that leave an atom j, g = j → i and f = j → k, for sums over k.

    Args:
        edge_vec: Å.
        center: of each edge, in ascending order.
        n_atoms: of the batch.
        config: what angle, and how many degrees of the basis.
    """

    def __init__(
        self, edge_vec: Float[Tensor, "n_edges 3"], center: Int[Tensor, "n_edges"], n_atoms: int, config: DimeNetConfig
    ):
        n_max = int(torch.bincount(center, minlength=n_atoms).max())
        floats_per_edge = max(n_max, config.hidden_channels) * max(config.n_bilinear, config.n_spherical)
        self.pieces, self.position = chunks(center, n_atoms, floats_per_edge)
        self.basis = []
        for piece in self.pieces:
            vec = piece.pad(edge_vec[piece.edges])
            there = piece.pad(torch.ones_like(edge_vec[piece.edges, :1]))[:, :, 0]
            triplet = (there[:, :, None] * there[:, None, :]) * (1 - torch.eye(piece.n_max).to(vec))
            cosine = _cosines(vec, triplet, config.angle_at)
            self.basis.append(legendre(config.n_spherical, cosine) * triplet[:, :, :, None])

    def sum(
        self, radial: Float[Tensor, "n_edges n_spherical n_bilinear"], x: Float[Tensor, "n_edges n_hidden"]
    ) -> Float[Tensor, "n_edges n_bilinear n_hidden"]:
        """Σ_f (Σ_l Y_l0(g, f) radial[f, l, b]) x[f] for every edge g."""
        out = []
        for piece, basis in zip(self.pieces, self.basis, strict=True):
            weights = torch.einsum("agfl,aflb->agbf", basis, piece.pad(radial[piece.edges]))
            sums = weights.flatten(1, 2) @ piece.pad(x[piece.edges])
            out.append(piece.unpad(sums.view(*weights.shape[:3], -1)))
        return out[0] if self.position is None else torch.cat(out).index_select(0, self.position)


def _cosines(
    vec: Float[Tensor, "n_atoms n_max 3"], triplet: Float[Tensor, "n_atoms n_max n_max"], angle_at: str
) -> Float[Tensor, "n_atoms n_max n_max"]:
    """Cosine of the angle of the triplet of edges g = j → i and f = j → k; anything where there is no triplet."""
    g, f = vec[:, :, None], vec[:, None, :]
    # Middle: between i → j = −g and j → k = f. End: between i → j = −g and i → k = f − g.
    a, b = (-g, f) if angle_at == "middle" else (-g, f - g)
    no_triplet = triplet[:, :, :, None] == 0
    square = (a.square().sum(3) * b.square().sum(3)).masked_fill(no_triplet[..., 0], 1.0)
    return (a * b).sum(3) / square.sqrt()


def legendre(n_spherical: int, x: Float[Tensor, "..."]) -> Float[Tensor, "... n_spherical"]:
    """Y_l0 of an angle with cosine x for l = 0 … n_spherical − 1: sqrt((2l+1) / 4π) P_l(x)."""
    p = [torch.ones_like(x), x]
    for n in range(1, n_spherical - 1):
        p.append(((2 * n + 1) * x * p[n] - n * p[n - 1]) / (n + 1))
    norms = x.new_tensor([(2 * n + 1) / (4 * torch.pi) for n in range(n_spherical)]).sqrt()
    return torch.stack(p[:n_spherical], dim=-1) * norms


def _toward(sbf: Float[Tensor, "n_edges n_spherical n_radial"]) -> Float[Tensor, "n_edges n_spherical n_radial"]:
    """The angle between k → j and j → i is π minus that between j → k and j → i: P_l(−x) = (−1)^l P_l(x)."""
    signs = sbf.new_tensor([(-1) ** degree for degree in range(sbf.shape[1])])
    return sbf * signs[:, None]


def _embedding(block: Any, n_species: int) -> nn.Module:
    """PyTorch Geometric's embedding block with a row for each element of this model."""
    block.emb = nn.Embedding(n_species, block.emb.embedding_dim)
    block.reset_parameters()
    return block


def _headless(block: Any) -> Any:
    """PyTorch Geometric's output block without its last linear map, which belongs to the head."""
    block.lin = nn.Identity()
    return block


def _residual(
    block: Any, x: Float[Tensor, "n_edges n_hidden"], update: Float[Tensor, "n_edges n_hidden"]
) -> Float[Tensor, "n_edges n_hidden"]:
    """Update of the edges after the sum over triplets, shared by the interaction blocks of DimeNet and DimeNet++."""
    h = silu(block.lin_ji(x)) + update
    for layer in block.layers_before_skip:
        h = layer(h)
    h = silu(block.lin(h)) + x
    for layer in block.layers_after_skip:
        h = layer(h)
    return h
