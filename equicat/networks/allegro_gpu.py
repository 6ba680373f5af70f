"""Energies and their gradient by a nequip-allegro network on a GPU, for inference: the network and its reverse, in few
launches of Triton kernels and without autograd.

The network is the oracle. What an edge does by itself is in :mod:`equicat.kernels.gpu.embedding` and
:mod:`equicat.kernels.gpu.hidden`, what connects it with its centre in :mod:`equicat.kernels.gpu.environment`, and what
centres make of their environments in :mod:`equicat.kernels.gpu.centers`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from equicat.kernels.edges import Edges
from equicat.kernels.forms import ends_of
from equicat.kernels.frozen import Frozen
from equicat.kernels.products import is_split
from equicat.networks.allegro import MAX_KERNEL_DEGREE
from equicat.networks.allegro_embeddings import ProductEmbedding
from equicat.networks.allegro_parts import NequipAllegro
from equicat.networks.couplings import Chain, LayerCouplings
from equicat.networks.layers import BesselBasis

if TYPE_CHECKING:  # these need Triton
    from equicat.kernels.gpu.embedding import Embedding
    from equicat.kernels.gpu.hidden import Hidden


WIDEST_EMBEDDING = 1024
"""Columns of an embedding whose matrix a program has room for."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Weights as the kernels read them."""

    embedding: "Embedding"
    hidden: "list[Hidden]"
    """The two-body MLP with what reads it, and for each layer the latent MLP with what reads it."""
    head: "Hidden | None"
    """The readout's MLP, if it has a hidden layer."""
    last: Float[Tensor, "n_features"]
    """The last matrix of the readout."""
    couplings: list[LayerCouplings]
    """Tensor products of each layer."""


def serves(network: nn.Module, readout: Sequence[Float[Tensor, "_ _"]], like: Shaped[Tensor, "..."]) -> bool:
    """Whether :func:`energies_and_gradient` computes this network, with this readout, from such pair vectors.

    Where it does not, operators do: on a CPU, without Triton, in float64, for another network, for splines, vectors,
    l_max above 4, embeddings wider than 1,024, MLPs with other numbers of hidden layers than one (the readout's: at
    most one), and where products of matrices are not to be split.
    """
    return (
        isinstance(network, NequipAllegro)
        and is_split(like, network.readout)
        and network.config.radial == "bessel"
        and not network.n_vectors
        and network.config.l_max <= MAX_KERNEL_DEGREE
        and network.config.width <= WIDEST_EMBEDDING
        and len(network.config.two_body_hidden) == len(network.config.latent_hidden) == 1
        and len(readout) <= 2
    )


_PREPARED = Frozen[Prepared]()


def first_matrices(network: NequipAllegro) -> list[Float[Tensor, "_ _"]]:
    """The first matrix of the two-body MLP, and of the latent MLP of each layer the rows for scalars of its own."""
    n, first = network.config.n_scalars, network.two_body_mlp.weights[0]
    return [first, *(layer.latent_mlp.weights[0][(k + 1) * n :] for k, layer in enumerate(network.layers))]


def prepared_of(network: NequipAllegro, readout: Sequence[Float[Tensor, "_ _"]]) -> Prepared:
    """The weights of a network and its readout, made ready; differentiable by them."""
    from equicat.kernels.gpu.embedding import Embedding
    from equicat.kernels.gpu.hidden import Hidden

    config, basis, embedding = network.config, network.basis, network.embedding
    assert isinstance(basis, BesselBasis)
    assert isinstance(embedding, ProductEmbedding)
    first = Embedding(
        *(network.inverse_cutoff.float(), basis.frequencies, embedding.radial, embedding.table()),
        *(config.envelope_p, config.l_max, network.n_species),
    )
    n, widths, hidden = network.n_weights, network.reader_widths(), []
    for k, matrices in enumerate(zip(first_matrices(network), network.composed(), strict=True)):
        others = [n, n] if k == 0 else [n] if k < len(network.layers) else []
        hidden.append(Hidden(*matrices, [*others, *widths[k:]]))
    *head, last = readout
    return Prepared(
        first,
        hidden,
        Hidden(head[0], last, [1], act=config.features_silu) if head else None,
        last.new_ones(1) if head else last[:, 0].contiguous(),
        [LayerCouplings.of(layer.product) for layer in network.layers],
    )


@torch.no_grad()
def energies_and_gradient(
    owner: nn.Module, network: NequipAllegro, readout: Sequence[Float[Tensor, "_ _"]], edges: Edges
) -> tuple[Float[Tensor, "n_atoms"], Float[Tensor, "n_edges 3"]]:
    """Σ_j MLP(x^ij) of every centre, and the derivative of their total by the pair vectors.

    Args:
        owner: of the network and the readout; what is made of their weights is kept as long as it is there, and frozen.
        network: one that :func:`serves` knows.
        readout: matrices of the MLP, the last with one column.
        edges: of some centres, all that they have, sorted by centre.
    """
    edges = Edges(*(x.contiguous() for x in edges))
    if not len(edges.edge_vec):
        return edges.edge_vec.new_zeros(len(edges.species)), edges.edge_vec
    prepared = _PREPARED(owner, [*network.parameters(), *readout], lambda: prepared_of(network, readout))
    work = Pass(network, prepared, edges)
    return work.forwards(), work.backwards()


class Pass:
    """One call: the network forwards, and backwards. Methods keep what later ones read.

    ``by_x`` is the derivative of the energy by x. Entry 0 of a list of hidden layers is the two-body MLP's, entry k + 1
    that of layer k.

    Args:
        network: one that :func:`serves` knows.
        prepared: its weights.
        edges: of some centres, all that they have, without gaps.
        keep: all that derivatives by weights read, not only what the gradient by pair vectors does.
    """

    def __init__(self, network: NequipAllegro, prepared: Prepared, edges: Edges, keep: bool = False):
        self.network, self.prepared, self.edges, self.keep = network, prepared, edges, keep
        self.n_layers = len(network.layers)
        self.first = ends_of(edges.edge_index[0], len(edges.species))
        self.norm = network.environment_norm(edges.species).flatten()

    def _of_centers(self) -> Float[Tensor, "n_atoms dim channels"]:
        dim, channels = self.y.shape[1], self.network.config.tensor_channels
        return self.y.new_empty(len(self.edges.species), dim, channels)

    def _form(self, **arrays: Tensor) -> None:
        from equicat.kernels.gpu.environment import edges

        edges(self.first, **arrays)

    def _environment(self, w: Float[Tensor, "n_edges _"], y: Float[Tensor, "n_edges dim"]) -> Tensor:
        found = self._of_centers()
        self._form(w=w, y=y, by_g=found)
        return found

    def _chain(self, k: int) -> Chain:
        """Products of environments in layer k: those that make scalars of its own, all of those of layers before."""
        known = self.prepared.couplings
        couplings = [known[m].scalars if m == k else known[m].tensors for m in range(k + 1)]
        return Chain(couplings, self.envs[: k + 1], self.norm)

    def forwards(self) -> Float[Tensor, "n_atoms"]:
        """The sums of centres."""
        from equicat.kernels.gpu.readout import read

        hidden = self.prepared.hidden
        x, self.y = self.prepared.embedding(self.edges)
        z, (env_weights, self.weights, *sums) = hidden[0](x, None, [None] * len(hidden[0].widths))
        self.x, self.z = [x], [z]
        self.env_weights, self.envs, self.chains = list[Tensor](), list[Tensor](), list[Chain]()
        for k in range(self.n_layers):
            self.env_weights.append(env_weights)
            self.envs.append(self._environment(env_weights, self.y))
            self.chains.append(self._chain(k))
            scalars = x.new_empty(len(x), self.network.config.tensor_channels)
            self._form(w=self.weights, y=self.y, g=self.chains[k].read, by_a=scalars)
            mine, *others = sums
            passed_on = [None] if k + 1 < self.n_layers else []
            z, found = hidden[k + 1](scalars, mine, [*passed_on, *others])
            self.x.append(scalars)
            self.z.append(z)
            env_weights, sums = (found[0], found[1:]) if passed_on else (env_weights, found)
        (self.total,) = sums
        head, last = self.prepared.head, self.prepared.last
        if head is not None:
            z, (values,) = head(self.total, None, [None])
            energies = read(values, last, False, self.first)  # and 1 in the place of the values
            self.by_total = head.back(self.total, z, [values])[0]
            return energies
        self.by_total = torch.empty_like(self.total) if self.keep else self.total
        return read(self.total, last, self.network.config.features_silu, self.first, self.by_total)

    def backwards(self) -> Float[Tensor, "n_edges 3"]:
        """The gradient by pair vectors."""
        hidden, sums = self.prepared.hidden, [self.by_total]
        self.by_results: list[list[Tensor]] = [sums]
        self.by_z, self.by_scalars = list[Tensor](), list[Tensor]()
        self.by_envs: list[Any] = [None] * self.n_layers
        by_weights, by_y = torch.empty_like(self.weights), torch.empty_like(self.y)
        for k in reversed(range(self.n_layers)):
            by_scalars, by_z = hidden[k + 1].back(self.x[k + 1], self.z[k + 1], self.by_results[0])
            self.by_scalars.insert(0, by_scalars)
            self.by_z.insert(0, by_z)
            sums = [by_z, *sums]
            arrays = {"w": self.weights, "y": self.y, "g": self.chains[k].read, "by_w": by_weights, "by_y": by_y}
            onto = {"onto_w": by_weights, "onto_y": by_y} if k + 1 < self.n_layers else {}
            by_read = self._of_centers()
            self._form(a=by_scalars, by_g=by_read, **arrays, **onto)
            self.chains[k].back(by_read, self.by_envs)
            by_env_weights = torch.empty_like(self.weights)
            arrays = {"w": self.env_weights[k], "y": self.y, "g": self.by_envs[k], "by_y": by_y, "onto_y": by_y}
            self._form(by_w=by_env_weights, **arrays)
            results = [by_env_weights, *([by_weights] if k == 0 else []), *sums]
            self.by_results = [results, *(self.by_results if self.keep else [])]
        self.by_x, by_z = hidden[0].back(self.x[0], self.z[0], self.by_results[0])
        self.by_z.insert(0, by_z)
        return self.prepared.embedding.back(self.edges, self.by_x, by_y)
