"""GemNet-T and GemNet-dT: Gasteiger, Becker, Günnemann, NeurIPS 2021 (arXiv:2106.08903), with OC20's hyperparameters.

Every directed edge c → a carries an embedding m_ca and every atom one, h_a. A block updates m_ca with the embeddings
of the other edges b → a that end at a, weighted by a basis in the length d_ca and the angle ∠cab; adds the same for
the reverse edge ("symmetric message passing"); then updates the atoms from their edges and the edges from their two
atoms. All maps are without bias, so what has passed the radial basis vanishes at the cutoff. GemNet-T's forces are
−dE/dr; GemNet-dT makes the pairwise forces F_a = Σ_c f_ca r̂_ca, faster and not the derivative of an energy
(``force_head: sum``).

The sum over triplets b → a ← c is never a sum over a list (:mod:`equicat.networks.baselines.angles`), and the
factors of the basis meet it one after the other, the paper's efficient order: angle, then radius, then the bilinear
weights.

Energies come out of one block of atom features before the first and after each interaction. The features here are
those of all blocks side by side: a linear map of them, without hidden layers, is the published readout.

The variance of activations is kept by constant factors, fitted once, before training, by :func:`fit_scales`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat.errors import InputError
from equicat.networks.baselines.angles import AngularSums, reverse_edges
from equicat.networks.baselines.gemnet_layers import ACTIVATION_GAIN, Dense, Residual, Scale, merge, mlp, orthogonal
from equicat.networks.features import Features
from equicat.networks.layers import polynomial_envelope, silu
from equicat.options.values import Checked, Cutoff, Depth, EnvelopeExponent, ExtraDepth, Range, WidthOfSeveral

Graph = tuple[Float[Tensor, "_ 3"], Int[Tensor, "2 _"], Int[Tensor, "_"]]
"""edge_vec, edge_index and species, with which a network is called; graphs of one list differ in size."""

UNFITTED_STEPS = 100
"""So many training steps are let pass without fitted scale factors; enough to try things, not to waste a night."""


@dataclass(frozen=True)
class GemNetConfig(Checked, section="model"):
    """Hyperparameters; the defaults are those of OC20's GemNet-dT, on which the published GemNet-T is modelled."""

    name: Literal["gemnet"] = "gemnet"
    """Which architecture."""
    cutoff: Cutoff = 6.0
    """Distance (Å) up to which two atoms are neighbours."""
    n_blocks: Depth = 3
    """Interaction blocks."""
    atom_features: WidthOfSeveral = 512
    """Width of the embeddings of atoms."""
    edge_features: WidthOfSeveral = 512
    """Width of the embeddings of edges."""
    triplet_features: WidthOfSeveral = 64
    """Width of edges in the sum over triplets."""
    bilinear_features: WidthOfSeveral = 64
    """Width after it."""
    rbf_features: WidthOfSeveral = 16
    """Width to which the radial basis is mapped, the same for all blocks."""
    cbf_features: WidthOfSeveral = 16
    """Width to which the radial part of the circular basis is mapped, the same for all blocks."""
    n_radial: WidthOfSeveral = 128
    """Gaussians of the radial basis."""
    n_spherical: Annotated[int, Range(at_least=1, at_most=20)] = 7
    """Degrees of the angular basis."""
    envelope_p: EnvelopeExponent = 5
    """Exponent of the polynomial envelope."""
    n_before_skip: ExtraDepth = 1
    """Residual layers of an edge's update before its skip connection."""
    n_after_skip: ExtraDepth = 2
    """Residual layers after it."""
    n_concat: ExtraDepth = 1
    """Residual layers of the update of edges from atoms."""
    n_atom: ExtraDepth = 3
    """Residual layers of the update of atoms, and of the output blocks."""


class GemNet(nn.Module):
    """Edge vectors and species in, scalar features of every atom out; for heads that need them also one vector a block.

    Args:
        config: hyperparameters.
        n_species: number of elements.
        vectors: make the vectors: GemNet-dT, whose forces are their sum. Otherwise GemNet-T.
    """

    per: Literal["edge", "atom"] = "atom"
    scales_fitted: Tensor

    def __init__(self, config: GemNetConfig, n_species: int, vectors: bool = False):
        super().__init__()
        c = self.config = config
        self.n_features = (c.n_blocks + 1) * c.atom_features
        self.n_vectors = c.n_blocks + 1 if vectors else 0
        self.radial = GaussianBasis(c)
        self.rbf_triplet, self.rbf_atom, self.rbf_out = (Dense(c.n_radial, c.rbf_features) for _ in range(3))
        self.cbf = nn.Parameter(orthogonal(torch.empty(c.n_spherical, c.n_radial, c.cbf_features)))
        self.atoms = nn.Embedding(n_species, c.atom_features)
        nn.init.uniform_(self.atoms.weight, -math.sqrt(3), math.sqrt(3))
        self.edges = EdgeEmbedding(c.atom_features, c.n_radial, c.edge_features)
        self.blocks = nn.ModuleList(InteractionBlock(c) for _ in range(c.n_blocks))
        self.energy_outputs = nn.ModuleList(AtomUpdate(c) for _ in range(c.n_blocks + 1))
        self.force_outputs = nn.ModuleList(PairForces(c) for _ in range(self.n_vectors))
        self.register_buffer("scales_fitted", torch.tensor(False))
        self.n_training_steps = 0

    def forward(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> Features:
        """Features of every atom.

        Raises:
            InputError: if a pair is in the list in one direction only, or if training goes on without scale factors.
        """
        self.check_scales()
        center, neighbor = edge_index
        graph = Pairs(center, neighbor, reverse_edges(edge_vec, edge_index, len(species)), len(species))
        r = torch.linalg.vector_norm(edge_vec, dim=1, keepdim=True)
        rbf = self.radial(r)
        sums = AngularSums(edge_vec, center, len(species), self.config.n_spherical, self.config.triplet_features)
        basis = Basis(
            self.rbf_triplet(rbf), self.rbf_atom(rbf), self.rbf_out(rbf), (rbf @ self.cbf).transpose(0, 1), sums
        )
        h = self.atoms(species)
        m = self.edges(h, rbf, graph)
        outputs = [(h, m)]
        for block in self.blocks:
            h, m = block(h, m, basis, graph)
            outputs.append((h, m))
        scalars = [out(m, basis.out, graph) for out, (_, m) in zip(self.energy_outputs, outputs, strict=True)]
        if not self.n_vectors:
            return Features(torch.cat(scalars, dim=1), "atom")
        forces = [out(m, basis.out) for out, (_, m) in zip(self.force_outputs, outputs, strict=True)]
        pairs = (-edge_vec / r)[:, :, None] * torch.cat(forces, dim=1)[:, None, :]
        vectors = graph.to_centers(pairs.flatten(1)).view(len(species), 3, -1)
        return Features(torch.cat(scalars, dim=1), "atom", vectors)

    def check_scales(self) -> None:
        """Count training steps without fitted scale factors.

        Raises:
            InputError: when there have been too many.
        """
        if self.training and self.n_training_steps <= UNFITTED_STEPS:
            self.n_training_steps += 1
            if self.n_training_steps > UNFITTED_STEPS and not self.scales_fitted:
                raise InputError(
                    f"GemNet has trained for {UNFITTED_STEPS} steps without fitted scale factors, and learns badly so; "
                    "`equicat train` fits them to the training data; otherwise call "
                    "equicat.networks.baselines.gemnet.fit_scales"
                )


def fit_scales(network: GemNet, graphs: Iterable[Graph]) -> dict[str, float]:
    """Fit the scale factors of an untrained network: each layer's output gets the variance of what it is compared with.

    One pass over the batches, layers in the order in which they are met. Within a batch each factor is applied as
    soon as it is known, so that the layers after it see its effect; what is stored is the factor of all batches
    together. A few batches of the training data are enough.

    Args:
        network: changed in place; its mode is left as it was.
        graphs: edge_vec, edge_index, species of some batches.

    Returns:
        The factors by the names of their layers.

    Raises:
        InputError: if there is no batch, or none in which a layer has a signal to scale.
    """
    layers = {name: module for name, module in network.named_modules() if isinstance(module, Scale)}
    training, network.training = network.training, False
    for layer in layers.values():
        layer.variances = torch.zeros(2, dtype=torch.float64)
    try:
        with torch.no_grad():
            for graph in graphs:
                network(*graph)
        for name, layer in layers.items():
            assert layer.variances is not None
            reference, found = layer.variances.tolist()
            if not (reference > 0 and found > 0):
                raise InputError(
                    f"cannot fit the scale factor {name}: no signal passes it; give batches with neighbours"
                )
            layer.factor.fill_(math.sqrt(reference / found))
    finally:
        network.training = training
        for layer in layers.values():
            layer.variances = None
    network.scales_fitted.fill_(True)
    return {name: float(layer.factor) for name, layer in layers.items()}


# ---- graph and bases ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pairs:
    """Who is connected to whom."""

    center: Int[Tensor, "n_edges"]
    neighbor: Int[Tensor, "n_edges"]
    reverse: Int[Tensor, "n_edges"]
    n_atoms: int

    def to_centers(self, x: Float[Tensor, "n_edges n_features"]) -> Float[Tensor, "n_atoms n_features"]:
        """Summed over the edges of each centre."""
        return x.new_zeros(self.n_atoms, x.shape[1]).index_add(0, self.center, x)


@dataclass(frozen=True, eq=False)
class Basis:
    """Geometry as the blocks see it; the maps from the bases to these widths are shared by all blocks."""

    triplet: Float[Tensor, "n_edges n_rbf"]
    atom: Float[Tensor, "n_edges n_rbf"]
    out: Float[Tensor, "n_edges n_rbf"]
    circular: Float[Tensor, "n_edges n_spherical n_cbf"]
    """The radial part of the circular basis in d_ca and ∠cab, mapped degree by degree."""
    sums: AngularSums


class GaussianBasis(nn.Module):
    """exp(−(x − μ_n)² / 2σ²) u(x) for x = r / cutoff, μ_n evenly spaced from 0 to 1 with σ between neighbours."""

    centers: Tensor

    def __init__(self, config: GemNetConfig):
        super().__init__()
        self.cutoff, self.envelope_p = config.cutoff, config.envelope_p
        self.exponent = -0.5 * (config.n_radial - 1) ** 2
        self.register_buffer("centers", torch.linspace(0, 1, config.n_radial), persistent=False)

    def forward(self, r: Float[Tensor, "n_edges 1"]) -> Float[Tensor, "n_edges n_radial"]:
        x = r / self.cutoff
        return torch.exp(self.exponent * (x - self.centers).square()) * polynomial_envelope(x, self.envelope_p)


# ---- layers ---------------------------------------------------------------------------------------------------------


class EdgeEmbedding(nn.Module):
    """Dense(h_c ‖ h_a ‖ x_ca). The parts of the weights that meet atoms do so once per atom, not once per edge."""

    def __init__(self, atom_features: int, n_in: int, n_out: int):
        super().__init__()
        self.weight = nn.Parameter(orthogonal(torch.empty(2 * atom_features + n_in, n_out)))
        self.sizes = [atom_features, atom_features, n_in]

    def forward(
        self, h: Float[Tensor, "n_atoms n_atom"], x: Float[Tensor, "n_edges n_in"], graph: Pairs
    ) -> Float[Tensor, "n_edges n_out"]:
        of_neighbor, of_center, of_edge = self.weight.split(self.sizes)
        neighbors = (h @ of_neighbor).index_select(0, graph.neighbor)
        centers = (h @ of_center).index_select(0, graph.center)
        return silu(torch.addmm(neighbors + centers, x, of_edge)) * ACTIVATION_GAIN


class AtomUpdate(nn.Module):
    """MLP(scale · Σ_c m_ca ⊙ rbf_ca): from the edges of an atom to features of the atom."""

    def __init__(self, c: GemNetConfig):
        super().__init__()
        self.rbf = Dense(c.rbf_features, c.edge_features)
        self.scale = Scale()
        self.mlp = mlp(c.edge_features, c.atom_features, c.n_atom)

    def forward(
        self, m: Float[Tensor, "n_edges n_edge"], rbf: Float[Tensor, "n_edges n_rbf"], graph: Pairs
    ) -> Float[Tensor, "n_atoms n_atom"]:
        return self.mlp(self.scale(graph.to_centers(m * self.rbf(rbf)), m))


class PairForces(nn.Module):
    """f_ca = (MLP(m_ca) ⊙ rbf_ca) · w of GemNet-dT."""

    def __init__(self, c: GemNetConfig):
        super().__init__()
        self.mlp = mlp(c.edge_features, c.edge_features, c.n_atom)
        self.rbf = Dense(c.rbf_features, c.edge_features)
        self.scale = Scale()
        self.out = Dense(c.edge_features, 1)

    def forward(
        self, m: Float[Tensor, "n_edges n_edge"], rbf: Float[Tensor, "n_edges n_rbf"]
    ) -> Float[Tensor, "n_edges 1"]:
        x = self.mlp(m)
        return self.out(self.scale(x * self.rbf(rbf), x))


class TripletInteraction(nn.Module):
    """Σ_b of the embeddings of edges b → a with the circular basis, for c → a and for its reverse."""

    def __init__(self, c: GemNetConfig):
        super().__init__()
        self.dense = Dense(c.edge_features, c.edge_features, True)
        self.rbf = Dense(c.rbf_features, c.edge_features)
        self.scale_rbf = Scale()
        self.down = Dense(c.edge_features, c.triplet_features, True)
        self.bilinear = nn.Parameter(orthogonal(torch.empty(c.triplet_features, c.cbf_features, c.bilinear_features)))
        self.scale_sum = Scale()
        self.up = Dense(c.bilinear_features, c.edge_features, True)
        self.up_reverse = Dense(c.bilinear_features, c.edge_features, True)

    def forward(
        self, m: Float[Tensor, "n_edges n_edge"], basis: Basis, graph: Pairs
    ) -> Float[Tensor, "n_edges n_edge"]:
        x = self.dense(m)
        x = self.down(self.scale_rbf(x * self.rbf(basis.triplet), x))
        angular = basis.sums.each_degree(x)
        radial = basis.circular.transpose(1, 2) @ angular
        total = radial.flatten(1) @ self.bilinear.transpose(0, 1).flatten(0, 1)
        total = self.scale_sum(total, x)
        return merge(self.up(total), self.up_reverse(total).index_select(0, graph.reverse))


class InteractionBlock(nn.Module):
    """Edges from triplets, atoms from edges, edges from atoms."""

    def __init__(self, c: GemNetConfig):
        super().__init__()
        width = c.edge_features
        self.dense = Dense(width, width, True)
        self.triplets = TripletInteraction(c)
        self.before_skip = nn.Sequential(*(Residual(width) for _ in range(c.n_before_skip)))
        self.after_skip = nn.Sequential(*(Residual(width) for _ in range(c.n_after_skip)))
        self.atom_update = AtomUpdate(c)
        self.concat = EdgeEmbedding(c.atom_features, width, width)
        self.after_concat = nn.Sequential(*(Residual(width) for _ in range(c.n_concat)))

    def forward(
        self,
        h: Float[Tensor, "n_atoms n_atom"],
        m: Float[Tensor, "n_edges n_edge"],
        basis: Basis,
        graph: Pairs,
    ) -> tuple[Float[Tensor, "n_atoms n_atom"], Float[Tensor, "n_edges n_edge"]]:
        x = merge(self.dense(m), self.triplets(m, basis, graph))
        m = self.after_skip(merge(m, self.before_skip(x)))
        h = merge(h, self.atom_update(m, basis.atom, graph))
        return h, merge(m, self.after_concat(self.concat(h, m, graph)))
