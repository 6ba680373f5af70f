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

Heads of one's own for relaxed energies and displacements derive from :class:`EnergyHead` and :class:`VectorHead`, and
are named ``MODULE:CLASS`` where these names stand (:mod:`equicat.networks.own`).
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat.errors import InputError
from equicat.networks import own
from equicat.networks.features import Features
from equicat.networks.layers import MLP
from equicat.options.values import Form

DisplacementHead = Literal["gradient", "magnitude-direction", "vector", "pair", "sum"]
OwnHead = Annotated[str, Form("a name such as my_heads:Bounded", own.PATTERN)]
"""Name of a head of one's own."""
MLP_HEAD: Literal["mlp"] = "mlp"
"""Name of :class:`ScalarHead` among the heads of relaxed energies."""

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


class Head(nn.Module):
    """Base of heads that are chosen by name.

    Args:
        n_features: scalar features of the network.
        n_vectors: vectors of the network; 0 for none.
        hidden: widths of hidden layers, ``output_mlp`` of a configuration.
        avg_num_neighbors: n̄, for :class:`AtomSum`.
    """

    needs_vectors: ClassVar[bool] = False
    """Whether it reads the network's vectors."""
    needs_pairs: ClassVar[bool] = False
    """Whether features must be those of pairs, one row for each edge."""

    def __init__(self, n_features: int, n_vectors: int, hidden: tuple[int, ...], avg_num_neighbors: float):
        super().__init__()


class EnergyHead(Head):
    """Base of heads of one's own for relaxed energies."""

    @abstractmethod
    def forward(self, features: Features, center: Int[Tensor, "n_edges"], n_atoms: int) -> Float[Tensor, "n_atoms"]:
        """Energy of every atom, in the model's scale; that of atom i from the rows of i alone.

        Args:
            features: of the network; must be read as invariants.
            center: atom i of each edge, ascending.
            n_atoms: number of atoms.
        """


class VectorHead(Head):
    """Base of heads for displacements, and for direct forces."""

    @abstractmethod
    def forward(
        self, features: Features, center: Int[Tensor, "n_edges"], unit: Float[Tensor, "n_edges 3"], n_atoms: int
    ) -> Float[Tensor, "n_atoms 3"]:
        """A polar vector of every atom, in the model's scale; that of atom i from the rows of i alone.

        Args:
            features: of the network.
            center: atom i of each edge, ascending.
            unit: direction r̂_ij of each edge.
            n_atoms: number of atoms.
        """


class MagnitudeDirection(VectorHead):
    """r_d = |r_d| r̂_d: the length from scalars, softplus(Σ_j MLP(x^ij) + b) ≥ 0, the direction from vectors.

    The direction is d / sqrt(|d|² + ε²) with d = Σ_j Σ_u V_u^ij / sqrt(n̄): a unit vector where vectors add up to
    anything, smooth and zero where they cancel, as on a site of inversion symmetry.
    """

    needs_vectors = True

    def __init__(self, n_features: int, n_vectors: int, hidden: tuple[int, ...], avg_num_neighbors: float):
        super().__init__(n_features, n_vectors, hidden, avg_num_neighbors)
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


class WeightedVectors(VectorHead):
    """r_d = Σ_j Σ_u w_u(x^ij) V_u^ij / sqrt(n̄), the weights from an MLP of the scalars."""

    needs_vectors = True

    def __init__(self, n_features: int, n_vectors: int, hidden: tuple[int, ...], avg_num_neighbors: float):
        super().__init__(n_features, n_vectors, hidden, avg_num_neighbors)
        self.weights = MLP([n_features, *hidden, n_vectors], last_gain=1 / math.sqrt(n_vectors))
        self.sum = AtomSum(avg_num_neighbors)

    def forward(
        self, features: Features, center: Int[Tensor, "n_edges"], unit: Float[Tensor, "n_edges 3"], n_atoms: int
    ) -> Float[Tensor, "n_atoms 3"]:
        assert features.vectors is not None
        rows = (features.vectors @ self.weights(features.scalars)[:, :, None])[:, :, 0]
        return self.sum(rows, features, center, n_atoms)


class PairVectors(VectorHead):
    """r_d = Σ_j MLP(x^ij) r̂_ij / sqrt(n̄)."""

    needs_pairs = True

    def __init__(self, n_features: int, n_vectors: int, hidden: tuple[int, ...], avg_num_neighbors: float):
        super().__init__(n_features, n_vectors, hidden, avg_num_neighbors)
        self.mlp = MLP([n_features, *hidden, 1], last_gain=INITIAL_GAIN)
        self.sum = AtomSum(avg_num_neighbors)

    def forward(
        self, features: Features, center: Int[Tensor, "n_edges"], unit: Float[Tensor, "n_edges 3"], n_atoms: int
    ) -> Float[Tensor, "n_atoms 3"]:
        return self.sum(self.mlp(features.scalars) * unit, features, center, n_atoms)


class SummedVectors(VectorHead):
    """r_d = Σ_j Σ_u V_u^ij / sqrt(n̄)."""

    needs_vectors = True

    def __init__(self, n_features: int, n_vectors: int, hidden: tuple[int, ...], avg_num_neighbors: float):
        super().__init__(n_features, n_vectors, hidden, avg_num_neighbors)
        self.sum = AtomSum(avg_num_neighbors)

    def forward(
        self, features: Features, center: Int[Tensor, "n_edges"], unit: Float[Tensor, "n_edges 3"], n_atoms: int
    ) -> Float[Tensor, "n_atoms 3"]:
        assert features.vectors is not None
        return self.sum(features.vectors.sum(2), features, center, n_atoms)


VECTOR_HEADS: dict[str, type[VectorHead]] = {
    "magnitude-direction": MagnitudeDirection,
    "vector": WeightedVectors,
    "pair": PairVectors,
    "sum": SummedVectors,
}
AnyHead = TypeVar("AnyHead", bound=Head)


@runtime_checkable
class Network(Protocol):
    """The attributes of a network that heads need."""

    n_features: int
    n_vectors: int

    @property
    def per(self) -> Literal["edge", "atom"]: ...


def needs_vectors(head: DisplacementHead | OwnHead | None) -> bool:
    """Whether the head of that name, of displacements or direct forces, reads a network's vectors; None is none.

    Raises:
        InputError: as :func:`find_vector_head`.
    """
    return head not in (None, "gradient") and find_vector_head(str(head)).needs_vectors


def find_vector_head(name: str) -> type[VectorHead]:
    """The displacement head of that name, any but ``gradient``; imports the module of one's own.

    Raises:
        InputError: if Python does not find the module, or there is no such head in it.
    """
    return own.find_class("displacement_head", name, VectorHead) if ":" in name else VECTOR_HEADS[name]


def find_energy_head(name: str) -> type[EnergyHead]:
    """The head of relaxed energies of that name, ``MODULE:CLASS``; imports its module.

    Raises:
        InputError: if Python does not find the module, or there is no such head in it.
    """
    return own.find_class("energy_head", name, EnergyHead)


def vector_head(
    name: str, head: DisplacementHead | OwnHead, network: Network, hidden: tuple[int, ...], avg_num_neighbors: float
) -> VectorHead:
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
    return _fed(name, head, find_vector_head(head), network, hidden, avg_num_neighbors)


def energy_head(
    name: str, head: OwnHead, network: Network, hidden: tuple[int, ...], avg_num_neighbors: float
) -> EnergyHead:
    """The head of relaxed energies of one's own of that name, for a network; arguments as of :func:`vector_head`.

    Raises:
        InputError: if the network cannot feed it.
    """
    return _fed(name, head, find_energy_head(head), network, hidden, avg_num_neighbors)


def check_rows(option: str, head: str, rows: object, *shape: int) -> None:
    """Refuse what a head of one's own gives, unless it is a tensor with one row for each atom.

    Args:
        option: names the head, for the message.
        head: name.
        rows: its result.
        shape: what its result must be.

    Raises:
        InputError: saying what came, and what must come.
    """
    if ":" not in head:
        return
    found = f"a tensor of shape {list(rows.shape)}" if isinstance(rows, Tensor) else f"a {type(rows).__name__}"
    if not isinstance(rows, Tensor) or rows.shape != shape:
        raise InputError(f"{option} {head}: gives {found}; for {shape[0]} atoms it must be one of shape {list(shape)}")


def _fed(
    network_name: str,
    name: str,
    head: type[AnyHead],
    network: Network,
    hidden: tuple[int, ...],
    avg_num_neighbors: float,
) -> AnyHead:
    """A head with the sizes of a network, which must have what it reads.

    Raises:
        InputError: if it has not; names what the network has, or, for one of our heads, those that it can feed.
    """
    if not _feeds(network, head):
        possible = ["gradient", *(other for other, built_in in VECTOR_HEADS.items() if _feeds(network, built_in))]
        has = f"features of {'pairs' if network.per == 'edge' else 'atoms'} and {network.n_vectors or 'no'} vectors"
        advice = f"has {has}" if ":" in name else f"can feed {', '.join(possible)}"
        raise InputError(f"{network_name} cannot feed the head {name!r}; it {advice}")
    return head(network.n_features, network.n_vectors, hidden, avg_num_neighbors)


def _feeds(network: Network, head: type[Head]) -> bool:
    return bool((network.n_vectors or not head.needs_vectors) and (network.per == "edge" or not head.needs_pairs))
