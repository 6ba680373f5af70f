"""Energies and their gradient by a nequip-allegro network on a GPU, for inference: the network and its reverse, in few
launches of Triton kernels and without autograd.

The network is the oracle. What an edge does by itself is in :mod:`equicat.kernels.gpu.embedding` and
:mod:`equicat.kernels.gpu.hidden`, what connects it with its centre in :mod:`equicat.kernels.gpu.environment`, and what
centres make of their environments in :mod:`equicat.kernels.gpu.centers`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
from equicat.networks.couplings import Coupling, LayerCouplings, chain
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


def matrices_of(network: NequipAllegro) -> list[Float[Tensor, "_ _"]]:
    """Both matrices of the two-body MLP, and of the latent MLP of each layer: of what is read, and what reads it."""
    n, first = network.config.n_scalars, network.two_body_mlp.weights[0]
    own = [layer.latent_mlp.weights[0][(k + 1) * n :] for k, layer in enumerate(network.layers)]
    return [w for pair in zip([first, *own], network.composed(), strict=True) for w in pair]


def prepared_of(
    network: NequipAllegro,
    embedding: tuple[Float[Tensor, "n_radial width"], Float[Tensor, "n_pairs width"]],
    matrices: Sequence[Float[Tensor, "_ _"]],
    readout: Sequence[Float[Tensor, "_ _"]],
    couplings: list[LayerCouplings],
) -> Prepared:
    """Weights of a network and its readout as the kernels read them.

    Args:
        network: what it is made of, apart from weights.
        embedding: matrix of the radial functions, and table of ordered pairs of elements.
        matrices: :func:`matrices_of` the network.
        readout: matrices of the MLP, the last with one column.
        couplings: tensor products of each layer.
    """
    from equicat.kernels.gpu.embedding import Embedding
    from equicat.kernels.gpu.hidden import Hidden

    config, basis = network.config, network.basis
    assert isinstance(basis, BesselBasis)
    first = Embedding(
        *(network.inverse_cutoff.float(), basis.frequencies, *embedding),
        *(config.envelope_p, config.l_max, network.n_species),
    )
    n, widths = network.n_weights, network.reader_widths()
    hidden = [Hidden(matrices[0], matrices[1], [n, n, *widths])]
    for k in range(len(network.layers)):
        env = [n] if k + 1 < len(network.layers) else []
        hidden.append(Hidden(matrices[2 * k + 2], matrices[2 * k + 3], [*env, *widths[k + 1 :]]))
    *head, last = readout
    return Prepared(
        first,
        hidden,
        Hidden(head[0], last, [1], act=config.features_silu) if head else None,
        last.new_ones(1) if head else last[:, 0].contiguous(),
        couplings,
    )


def _prepared(network: NequipAllegro, readout: Sequence[Float[Tensor, "_ _"]]) -> Prepared:
    """The weights of a network and its readout, made ready."""
    assert isinstance(network.embedding, ProductEmbedding)
    embedding = network.embedding.radial, network.embedding.table()
    couplings = [LayerCouplings.of(layer.product) for layer in network.layers]
    return prepared_of(network, embedding, matrices_of(network), readout, couplings)


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
    prepared = _PREPARED(owner, [*network.parameters(), *readout], lambda: _prepared(network, readout))
    return _Pass(network, prepared, edges).run()


class _Pass:
    """One call: the network forwards, and back."""

    def __init__(self, network: NequipAllegro, prepared: Prepared, edges: Edges):
        self.network, self.prepared, self.edges = network, prepared, edges
        self.n_layers, self.channels = len(network.layers), network.config.tensor_channels
        self.first = ends_of(edges.edge_index[0], len(edges.species))
        self.norm = network.environment_norm(edges.species).flatten()
        self.envs: list[Float[Tensor, "n_atoms dim channels"]] = []
        """A of each layer, without its norm."""
        self.chains: list[list[Float[Tensor, "n_atoms _ channels"]]] = []
        """For each layer L: M_k … M_L[:, 0] for k = 0 … L."""

    def run(self) -> tuple[Float[Tensor, "n_atoms"], Float[Tensor, "n_edges 3"]]:
        """Sums of centres, and the gradient by pair vectors."""
        from equicat.kernels.gpu.environment import edges as form

        embedding, hidden = self.prepared.embedding, self.prepared.hidden
        x, y = embedding(self.edges)
        z, (env_weights, weights, *sums) = hidden[0](x, None, [None] * len(hidden[0].widths))
        layers, read = [(x, z)], []
        for k in range(self.n_layers):
            self.envs.append(self._of_centers(y.shape[1]))
            form(self.first, w=env_weights, y=y, by_g=self.envs[k])
            self.chains.append(chain(self.prepared.couplings, self.envs, self.norm))
            read.append(env_weights)
            scalars = x.new_empty(len(x), self.channels)
            form(self.first, w=weights, y=y, g=self.chains[k][0], by_a=scalars)
            mine, *others = sums
            passed_on = [None] if k + 1 < self.n_layers else []
            z, found = hidden[k + 1](scalars, mine, [*passed_on, *others])
            env_weights, sums = (found[0], found[1:]) if passed_on else (env_weights, found)
            layers.append((scalars, z))
        energies, by_total = self._read(sums[0])

        by_sums, grads = [by_total], [by_total]
        by_weights, by_y = torch.empty_like(weights), torch.empty_like(y)
        by_envs = [torch.empty_like(env) for env in self.envs]
        for k in reversed(range(self.n_layers)):
            scalars, z = layers[k + 1]
            by_scalars, by_mine = hidden[k + 1].back(scalars, z, grads)
            by_sums = [by_mine, *by_sums]
            g = self.chains[k][0]
            by = {"by_w": by_weights, "by_y": by_y, "by_g": (by_g := torch.empty_like(g))}
            onto = {"onto_w": by_weights, "onto_y": by_y} if k + 1 < self.n_layers else {}
            form(self.first, a=by_scalars, w=weights, y=y, g=g, **by, **onto)
            self._multiply_back(k, by_g, by_envs)
            by_env_weights = torch.empty_like(env_weights)
            form(self.first, w=read[k], y=y, g=by_envs[k], by_w=by_env_weights, by_y=by_y, onto_y=by_y)
            grads = [by_env_weights, *by_sums]
        x, z = layers[0]
        by_x, _ = hidden[0].back(x, z, [by_env_weights, by_weights, *by_sums])
        return energies, embedding.back(self.edges, by_x, by_y)

    def _of_centers(self, dim: int) -> Float[Tensor, "n_atoms dim channels"]:
        return self.edges.edge_vec.new_empty(len(self.edges.species), dim, self.channels)

    def _coupling(self, k: int, last: int) -> Coupling:
        """The products of layer k that a layer reads: those that make scalars of its own, all of those before."""
        found = self.prepared.couplings[k]
        return found.scalars if k == last else found.tensors

    def _multiply_back(self, last: int, by_g: Float[Tensor, "n_atoms dim channels"], by_envs: list[Tensor]) -> None:
        """The gradients by these environments, from that by what edges read of them; added to those of later layers."""
        from equicat.kernels.gpu.centers import A, H, contract

        for k in range(last + 1):
            coupling = self._coupling(k, last)
            g = None if k == last else self.chains[last][k + 1]
            onto = last + 1 < self.n_layers
            contract(A, (by_g, by_envs[k], g), coupling.weights, self.norm, coupling.terms, onto)
            if g is not None:
                by_next = torch.empty_like(g)
                contract(H, (by_g, self.envs[k], by_next), coupling.weights, self.norm, coupling.terms)
                by_g = by_next

    def _read(
        self, total: Float[Tensor, "n_edges n_features"]
    ) -> tuple[Float[Tensor, "n_atoms"], Float[Tensor, "n_edges n_features"]]:
        """Sums over the edges of centres, and their derivative by the features before their SiLU."""
        from equicat.kernels.gpu.readout import read

        head, last = self.prepared.head, self.prepared.last
        if head is None:
            return read(total, last, self.network.config.features_silu, self.first), total
        z, (values,) = head(total, None, [None])
        energies = read(values, last, False, self.first)  # and 1 in the place of the values
        return energies, head.back(total, z, [values])[0]
