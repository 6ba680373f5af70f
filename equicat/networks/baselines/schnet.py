"""SchNet: Schütt et al., NeurIPS 2017 (arXiv:1706.08566), on PyTorch Geometric's layers and with its weights.

Atoms exchange messages x_j ⊙ W(r_ij), the filters W an MLP of the distance alone. With the cosine cutoff of the code,
energy and forces are continuous where a pair crosses the cutoff; the second derivative is not.

The features are those before the last linear map of the original, so one linear map of them is its readout (the
constant that the original adds for each atom belongs to the reference energies here).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat.extras import extra
from equicat.networks.baselines.angles import once_per_pair
from equicat.networks.features import Features
from equicat.options.values import Checked, Cutoff, Depth, Width, WidthOfSeveral


@dataclass(frozen=True)
class SchNetConfig(Checked, section="model"):
    """Hyperparameters; the defaults are those of OC20's S2EF 200k model."""

    name: Literal["schnet"] = "schnet"
    """Which architecture."""
    cutoff: Cutoff = 6.0
    """Distance (Å) up to which two atoms are neighbours."""
    hidden_channels: WidthOfSeveral = 1024
    """Features of an atom."""
    n_filters: Width = 256
    """Width of the filters."""
    n_interactions: Depth = 3
    """Interaction blocks."""
    n_gaussians: WidthOfSeveral = 200
    """Gaussians in which a distance is expanded."""


class SchNet(nn.Module):
    """Edge vectors and species in, scalar features of every atom out.

    Args:
        config: hyperparameters.
        n_species: number of elements.

    Raises:
        InputError: if PyTorch Geometric is not installed.
    """

    n_vectors = 0
    per: Literal["edge", "atom"] = "atom"

    def __init__(self, config: SchNetConfig, n_species: int):
        super().__init__()
        layers = extra("torch_geometric.nn.models.schnet", "baselines")
        c = self.config = config
        self.n_features = c.hidden_channels // 2
        self.embedding = nn.Embedding(n_species, c.hidden_channels)
        self.distance_expansion = layers.GaussianSmearing(0.0, c.cutoff, c.n_gaussians)
        sizes = (c.hidden_channels, c.n_gaussians, c.n_filters, c.cutoff)
        self.interactions = nn.ModuleList(layers.InteractionBlock(*sizes) for _ in range(c.n_interactions))
        self.lin1 = nn.Linear(c.hidden_channels, self.n_features)
        nn.init.xavier_uniform_(self.lin1.weight)
        nn.init.zeros_(self.lin1.bias)
        self.act = layers.ShiftedSoftplus()

    def forward(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> Features:
        center, neighbor = edge_index
        # Filters depend on the distance only: the two directions of a pair share one.
        first, pair = once_per_pair(edge_vec, edge_index, len(species))
        r = torch.linalg.vector_norm(edge_vec.index_select(0, first), dim=1, keepdim=True)
        gaussians = self.distance_expansion(r)
        cutoff = 0.5 * (torch.cos(r * (math.pi / self.config.cutoff)) + 1.0)
        cutoff = cutoff.where(r < self.config.cutoff, 0.0)
        h = self.embedding(species)
        block: Any
        for block in self.interactions:
            filters = (block.mlp(gaussians) * cutoff).index_select(0, pair)
            messages = block.conv.lin1(h).index_select(0, neighbor) * filters
            total = messages.new_zeros(len(species), messages.shape[1]).index_add(0, center, messages)
            h = h + block.lin(block.act(block.conv.lin2(total)))
        return Features(self.act(self.lin1(h)), "atom")
