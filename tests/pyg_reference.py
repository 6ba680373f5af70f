"""PyTorch Geometric's models on a molecule, with neighbours and triplets found by brute force.

Its own graph functions need compiled packages; what is under test is what comes after them.
"""

import itertools
from functools import cache

import torch
from torch import Tensor
from torch_geometric.nn.models import dimenet
from torch_geometric.nn.models.schnet import SchNet


def radius_graph(positions: Tensor, r: float, **_: object) -> Tensor:
    """All pairs nearer than r; row 0 the neighbour j, row 1 the centre i."""
    near = (torch.cdist(positions, positions) < r) & ~torch.eye(len(positions), dtype=torch.bool)
    center, neighbor = near.nonzero().T
    return torch.stack([neighbor, center])


def triplets(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, ...]:
    """All k → j → i with k ≠ i, as PyTorch Geometric returns them."""
    row, col = edge_index.tolist()
    found = [
        (col[ji], row[ji], row[kj], kj, ji)
        for ji, kj in itertools.product(range(len(row)), repeat=2)
        if col[kj] == row[ji] and row[kj] != col[ji]
    ]
    return (edge_index[1], edge_index[0], *torch.tensor(found).T)


_original = dimenet.SphericalBasisLayer


@cache
def spherical_basis(num_spherical: int, num_radial: int, cutoff: float, envelope_exponent: int) -> torch.nn.Module:
    """PyTorch Geometric's basis; it has no weights, and sympy takes seconds to derive it."""
    return _original(num_spherical, num_radial, cutoff, envelope_exponent)


def dimenet_energy(model: torch.nn.Module, numbers: Tensor, positions: Tensor) -> Tensor:
    """The energy of PyTorch Geometric's DimeNet, with its graph functions replaced while it runs."""
    theirs = dimenet.radius_graph, dimenet.triplets
    dimenet.radius_graph, dimenet.triplets = radius_graph, triplets
    try:
        return model(numbers, positions)
    finally:
        dimenet.radius_graph, dimenet.triplets = theirs


def schnet(**hyperparameters: float) -> SchNet:
    """PyTorch Geometric's SchNet with a brute-force graph."""

    def graph(positions: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        edge_index = radius_graph(positions, hyperparameters["cutoff"])
        return edge_index, (positions[edge_index[0]] - positions[edge_index[1]]).norm(dim=1)

    return SchNet(interaction_graph=graph, **hyperparameters)
