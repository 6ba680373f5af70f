"""From a network's features to what a task predicts, atom by atom. Every head works with any network that feeds it.

Displacement heads give r_d = r_relaxed − r_initial in units that the caller scales. A displacement is a polar vector:
it turns and reflects with the system, and moving the system does not change it.

- ``gradient``: r_d = −∇r̃ of a summed scalar r̃ (Allegro for catalysis, eqs. 4 and 5). Any network. The field is
  curl-free, which the displacements of a relaxation need not be, and training takes second derivatives.
- ``magnitude-direction``: |r_d| from scalars, the direction from the normalised sum of vectors (eqs. 4, 6 and 7).
- ``vector``: vectors weighted by scalars and summed, r_d = Σ_j Σ_u w_u(x^ij) V_u^ij. Where an atom hardly moves the
  sum is small and smooth, while a direction is then undefined: nothing has to be learned about it.
- ``pair``: r_d = Σ_j f(x^ij) r̂_ij, central like a pair force, for any network with features of edges.
- ``sum``: the plain sum of the network's vectors, for networks whose vectors are pair forces already (GemNet-dT).

The same heads give direct forces, which are not the derivative of an energy: faster, and not conservative.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat.errors import InputError
from equicat.networks.features import Features
from equicat.networks.layers import MLP

DisplacementHead = Literal["gradient", "magnitude-direction", "vector", "pair", "sum"]

INITIAL_GAIN = 0.1
"""Factor on the last weights of a head: an untrained model starts near zero, not with forces far above the data's."""


@dataclass(frozen=True)
class OutputMLP:
    """Form of the maps from a network's features to energies, forces and displacements."""

    hidden: tuple[int, ...] = (128,)
    """Widths of hidden layers."""
    linear: bool = False
    """Leave out the nonlinearity between the matrices of scalar outputs, as the published Allegro does."""

    @classmethod
    def of(cls, form: "OutputMLP | tuple[int, ...]") -> "OutputMLP":
        """The form itself, or that with these hidden widths and a SiLU between them."""
        return cls(form) if isinstance(form, tuple) else form


class AtomSum(nn.Module):
    """Rows of a network's output to atoms: those of edges are summed over neighbours, divided by sqrt(n̄)."""

    def __init__(self, avg_num_neighbors: float):
        super().__init__()
        self.norm = 1 / math.sqrt(avg_num_neighbors)

    def forward(
        self, rows: Float[Tensor, "n *width"], features: Features, center: Int[Tensor, "n_edges"], n_atoms: int
    ) -> Float[Tensor, "n_atoms *width"]:
        if features.per == "atom":
            return rows
        return rows.new_zeros(n_atoms, *rows.shape[1:]).index_add(0, center, rows) * self.norm


class ScalarHead(nn.Module):
    """One scalar of every atom: Σ_j MLP(x^ij) / sqrt(n̄), eq. 14 of Musaelian et al. 2023, or MLP(x^i).

    Args:
        n_features: scalar features.
        hidden: widths of hidden layers.
        avg_num_neighbors: n̄.
        linear: no nonlinearity between the matrices, as the published readout.
    """

    def __init__(self, n_features: int, hidden: tuple[int, ...], avg_num_neighbors: float, linear: bool = False):
        super().__init__()
        self.mlp = MLP([n_features, *hidden, 1], last_gain=INITIAL_GAIN, linear=linear)
        self.sum = AtomSum(avg_num_neighbors)

    def forward(self, features: Features, center: Int[Tensor, "n_edges"], n_atoms: int) -> Float[Tensor, "n_atoms"]:
        return self.sum(self.mlp(features.scalars)[:, 0], features, center, n_atoms)


SAFE_LENGTH = 1e-2
"""A sum of vectors much shorter than this (they are of order one) points nowhere: its direction fades to zero."""


class MagnitudeDirection(nn.Module):
    """r_d = |r_d| r̂_d: the length from scalars, softplus(Σ_j MLP(x^ij) + b) ≥ 0, the direction from vectors.

    The direction is d / sqrt(|d|² + ε²) with d = Σ_j Σ_u V_u^ij / sqrt(n̄): a unit vector where vectors add up to
    anything, smooth and zero where they cancel, as on a site of inversion symmetry.
    """

    def __init__(self, n_features: int, n_vectors: int, hidden: tuple[int, ...], avg_num_neighbors: float):
        super().__init__()
        self.length = ScalarHead(n_features, hidden, avg_num_neighbors)
        self.sum = AtomSum(avg_num_neighbors)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(
        self, features: Features, center: Int[Tensor, "n_edges"], unit: Float[Tensor, "n_edges 3"], n_atoms: int
    ) -> Float[Tensor, "n_atoms 3"]:
        assert features.vectors is not None
        length = nn.functional.softplus(self.length(features, center, n_atoms) + self.bias)
        d = self.sum(features.vectors.sum(2), features, center, n_atoms)
        return length[:, None] * d / torch.sqrt(d.square().sum(1, keepdim=True) + SAFE_LENGTH**2)


class WeightedVectors(nn.Module):
    """r_d = Σ_j Σ_u w_u(x^ij) V_u^ij / sqrt(n̄), the weights from an MLP of the scalars."""

    def __init__(self, n_features: int, n_vectors: int, hidden: tuple[int, ...], avg_num_neighbors: float):
        super().__init__()
        self.weights = MLP([n_features, *hidden, n_vectors], last_gain=1 / math.sqrt(n_vectors))
        self.sum = AtomSum(avg_num_neighbors)

    def forward(
        self, features: Features, center: Int[Tensor, "n_edges"], unit: Float[Tensor, "n_edges 3"], n_atoms: int
    ) -> Float[Tensor, "n_atoms 3"]:
        assert features.vectors is not None
        rows = (features.vectors @ self.weights(features.scalars)[:, :, None])[:, :, 0]
        return self.sum(rows, features, center, n_atoms)


class PairVectors(nn.Module):
    """r_d = Σ_j MLP(x^ij) r̂_ij / sqrt(n̄)."""

    def __init__(self, n_features: int, n_vectors: int, hidden: tuple[int, ...], avg_num_neighbors: float):
        super().__init__()
        self.mlp = MLP([n_features, *hidden, 1], last_gain=INITIAL_GAIN)
        self.sum = AtomSum(avg_num_neighbors)

    def forward(
        self, features: Features, center: Int[Tensor, "n_edges"], unit: Float[Tensor, "n_edges 3"], n_atoms: int
    ) -> Float[Tensor, "n_atoms 3"]:
        return self.sum(self.mlp(features.scalars) * unit, features, center, n_atoms)


class SummedVectors(nn.Module):
    """r_d = Σ_j Σ_u V_u^ij / sqrt(n̄)."""

    def __init__(self, n_features: int, n_vectors: int, hidden: tuple[int, ...], avg_num_neighbors: float):
        super().__init__()
        self.sum = AtomSum(avg_num_neighbors)

    def forward(
        self, features: Features, center: Int[Tensor, "n_edges"], unit: Float[Tensor, "n_edges 3"], n_atoms: int
    ) -> Float[Tensor, "n_atoms 3"]:
        assert features.vectors is not None
        return self.sum(features.vectors.sum(2), features, center, n_atoms)


VECTOR_HEADS: dict[str, Callable[..., nn.Module]] = {
    "magnitude-direction": MagnitudeDirection,
    "vector": WeightedVectors,
    "pair": PairVectors,
    "sum": SummedVectors,
}
NEEDS_VECTORS = ("magnitude-direction", "vector", "sum")


@runtime_checkable
class Network(Protocol):
    """The attributes of a network that heads need."""

    n_features: int
    n_vectors: int

    @property
    def per(self) -> Literal["edge", "atom"]: ...


def vector_head(
    name: str, head: DisplacementHead, network: Network, hidden: tuple[int, ...], avg_num_neighbors: float
) -> nn.Module:
    """The head of that name, any but ``gradient``, for a network.

    Args:
        name: of the network, for the message.
        head: which.
        network: what feeds it.
        hidden: widths of hidden layers.
        avg_num_neighbors: n̄.

    Raises:
        InputError: if the network cannot feed it; names the heads that it can feed.
    """
    possible: list[str] = ["gradient"]
    if network.per == "edge":
        possible.append("pair")
    if network.n_vectors:
        possible += NEEDS_VECTORS
    if head not in possible:
        raise InputError(f"{name} cannot feed the head {head!r}; it can feed {', '.join(possible)}")
    return VECTOR_HEADS[head](network.n_features, network.n_vectors, hidden, avg_num_neighbors)
