"""CGCNN: Xie and Grossman, Phys. Rev. Lett. 120, 145301 (2018), as OC20's code has it.

Atoms start from a table of what is known about their element (``elements.csv``) and sum gated messages of their
neighbours, σ(z₁) ⊙ softplus(z₂), from both atoms and the distance expanded in Gaussians.

Two things differ from that code unless the configuration says otherwise. There, messages do not vanish at the cutoff,
so the energy jumps when a pair crosses it; here they do (``smooth``). And there, atoms are averaged before the fully
connected layers, which makes the energy of two cells that of one; here each atom passes those layers and heads sum
over atoms. Batch normalisation is in the original: while training, a system's prediction depends on its batch.
"""

import csv
import itertools
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from ase.data import chemical_symbols
from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat.errors import InputError
from equicat.extras import extra
from equicat.networks.features import Features
from equicat.networks.layers import polynomial_envelope
from equicat.options.values import Checked, Cutoff, Depth, Width, WidthOfSeveral

CATEGORIES = {
    "group": 19,
    "period": 7,
    "electronegativity": 10,
    "covalent_radius": 10,
    "valence_electrons": 12,
    "ionization_energy": 10,
    "electron_affinity": 10,
    "block": 4,
    "atomic_volume": 10,
}
"""Columns of ``elements.csv`` and the number of categories of each: 92 in all."""
N_PROPERTIES = sum(CATEGORIES.values())

ENVELOPE_P = 6
"""Exponent p of the polynomial envelope that makes messages vanish at the cutoff."""


@dataclass(frozen=True)
class CGCNNConfig(Checked, section="model"):
    """Hyperparameters; the defaults are those of OC20's S2EF 200k model."""

    name: Literal["cgcnn"] = "cgcnn"
    """Which architecture."""
    cutoff: Cutoff = 6.0
    """Distance (Å) up to which two atoms are neighbours."""
    atom_embedding_size: Width = 128
    """Features of an atom."""
    n_graph_conv_layers: Depth = 2
    """Convolutions."""
    fc_feat_size: Width = 128
    """Width of the fully connected layers."""
    n_fc_layers: Depth = 3
    """Fully connected layers."""
    n_gaussians: WidthOfSeveral = 100
    """Gaussians in which a distance is expanded."""
    smooth: bool = True
    """Messages vanish smoothly at the cutoff; false is as published, with an energy that jumps there."""


class CGCNN(nn.Module):
    """Edge vectors and species in, scalar features of every atom out.

    Args:
        config: hyperparameters.
        n_species: number of elements.
        elements: their atomic numbers.

    Raises:
        InputError: if PyTorch Geometric is not installed, or an element is heavier than the table goes.
    """

    n_vectors = 0
    per: Literal["edge", "atom"] = "atom"
    properties: Tensor

    def __init__(self, config: CGCNNConfig, n_species: int, elements: tuple[int, ...]):
        super().__init__()
        assert n_species == len(elements)
        layers = extra("torch_geometric.nn.models.schnet", "baselines")
        c = self.config = config
        self.n_features = c.fc_feat_size
        self.register_buffer("properties", element_properties(elements), persistent=False)
        self.embedding_fc = nn.Linear(N_PROPERTIES, c.atom_embedding_size)
        self.distance_expansion = layers.GaussianSmearing(0.0, c.cutoff, c.n_gaussians)
        self.convs = nn.ModuleList(
            Convolution(c.atom_embedding_size, c.n_gaussians) for _ in range(c.n_graph_conv_layers)
        )
        widths = [c.atom_embedding_size, *[c.fc_feat_size] * c.n_fc_layers]
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> Features:
        return Features(self.fully_connected(self.convolve(edge_vec, edge_index, species)), "atom")

    def convolve(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> Float[Tensor, "n_atoms n_embedding"]:
        """Features of atoms after the convolutions; the original averages these over atoms."""
        r = torch.linalg.vector_norm(edge_vec, dim=1, keepdim=True)
        gaussians = self.distance_expansion(r)
        x = r / self.config.cutoff
        envelope = polynomial_envelope(x, ENVELOPE_P) if self.config.smooth else torch.ones_like(x)
        h = self.embedding_fc(self.properties[species])
        for conv in self.convs:
            h = conv(h, gaussians, envelope, edge_index)
        return h

    def fully_connected(self, h: Float[Tensor, "n n_embedding"]) -> Float[Tensor, "n n_features"]:
        """The layers after the convolutions, without the last linear map, which belongs to the head."""
        for layer in self.fcs:
            h = nn.functional.softplus(layer(h))
        return h


class Convolution(nn.Module):
    """h_i ← softplus(LayerNorm(Σ_j σ(z₁) ⊙ softplus(z₂)) + h_i), (z₁ ‖ z₂) = BatchNorm(W (h_i ‖ h_j ‖ e_ij) + b)."""

    def __init__(self, n_atom: int, n_edge: int):
        super().__init__()
        self.lin1 = nn.Linear(2 * n_atom + n_edge, 2 * n_atom)
        nn.init.xavier_uniform_(self.lin1.weight)
        nn.init.zeros_(self.lin1.bias)
        self.bn1 = nn.BatchNorm1d(2 * n_atom)
        self.ln1 = nn.LayerNorm(n_atom)

    def forward(
        self,
        h: Float[Tensor, "n_atoms n_atom"],
        edges: Float[Tensor, "n_edges n_edge"],
        envelope: Float[Tensor, "n_edges 1"],
        edge_index: Int[Tensor, "2 n_edges"],
    ) -> Float[Tensor, "n_atoms n_atom"]:
        center, neighbor = edge_index
        # The part of the weights that meets atoms does so once per atom, not once per edge.
        of_center, of_neighbor, of_edge = self.lin1.weight.t().split([h.shape[1], h.shape[1], edges.shape[1]])
        z = (h @ of_center + self.lin1.bias).index_select(0, center) + (h @ of_neighbor).index_select(0, neighbor)
        z = torch.addmm(z, edges, of_edge)
        if len(z) > 1 or not self.training:  # statistics of one edge do not exist, and of none not either
            z = self.bn1(z)
        gate, message = z.chunk(2, dim=1)
        message = torch.sigmoid(gate) * nn.functional.softplus(message) * envelope
        return nn.functional.softplus(self.ln1(torch.zeros_like(h).index_add(0, center, message)) + h)


@cache
def _table() -> dict[str, dict[str, str]]:
    with (Path(__file__).parent / "elements.csv").open(encoding="utf-8", newline="") as file:
        return {row["symbol"]: row for row in csv.DictReader(file)}


def element_properties(elements: tuple[int, ...]) -> Float[Tensor, "n_species n_properties"]:
    """One-hot categories of each property of the elements, all zeros where a property is unknown.

    The table is that of CGCNN's code (``atom_init.json``, as in OC20's code), by category instead of one-hot.

    Raises:
        InputError: for an element that the table does not have.
    """
    rows = []
    for z in elements:
        symbol = chemical_symbols[z]
        if symbol not in _table():
            raise InputError(
                f"CGCNN's table of elements ends at Fm (100), {symbol} ({z}) is not in it; choose another model"
            )
        row = torch.zeros(N_PROPERTIES)
        start = 0
        for name, n_categories in CATEGORIES.items():
            if category := _table()[symbol][name]:
                row[start + int(category)] = 1.0
            start += n_categories
        rows.append(row)
    return torch.stack(rows)
