"""Energies and their gradient by a nequip-allegro network on a GPU, for training, without autograd.

A loss asks for the derivative of S = Σ_i f_i E_i + Σ_e v_e · ∂E/∂r_e by the weights. The second sum is how the energy
changes when every pair vector moves along v_e. So the backward pass goes through the network once forwards, with how
everything changes along v ("moves"), and once backwards, with the derivatives of S. Kernels add to what is there, and
no array is made that nobody reads.

The oracle is :meth:`equicat.models.potential.Potential.by_autograd`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from equicat.kernels.edges import Edges
from equicat.kernels.forms import ends_of
from equicat.networks.allegro_embeddings import ProductEmbedding
from equicat.networks.allegro_gpu import Prepared, matrices_of, prepared_of, serves
from equicat.networks.allegro_parts import NequipAllegro
from equicat.networks.couplings import Coupling, LayerCouplings
from equicat.networks.layers import BesselBasis


def trains(network: nn.Module, readout: Sequence[Float[Tensor, "_ _"]], like: Shaped[Tensor, "..."]) -> bool:
    """Whether :func:`energies_and_gradient` computes this network, with this readout, from such pair vectors.

    Beyond what :func:`~equicat.networks.allegro_gpu.serves` asks for, hidden layers must be narrow, the readout one
    matrix, and the frequencies of the radial basis fixed.
    """
    if not serves(network, readout, like) or len(readout) > 1:
        return False
    from equicat.kernels.gpu.hidden import is_narrow

    assert isinstance(network, NequipAllegro)
    assert isinstance(network.basis, BesselBasis)
    return not network.basis.frequencies.requires_grad and all(is_narrow(w) for w in matrices_of(network)[::2])


def energies_and_gradient(
    network: NequipAllegro, readout: Sequence[Float[Tensor, "_ _"]], edges: Edges
) -> tuple[Float[Tensor, "n_atoms"], Float[Tensor, "n_edges 3"]]:
    """Σ_j MLP(x^ij) of every centre, and the derivative of their total by the pair vectors.

    Both are differentiable by the weights, once.

    Args:
        network: one that :func:`trains` knows.
        readout: its one matrix.
        edges: of some centres, all that they have, sorted by centre; at least one.
    """
    assert isinstance(network.embedding, ProductEmbedding)
    embedding = network.embedding.radial, network.embedding.table()
    couplings = [LayerCouplings.of(layer.product) for layer in network.layers]
    products = [c.weights for layer in couplings for c in (layer.scalars, layer.tensors)]
    edges = Edges(*(x.contiguous() for x in edges))
    return _Energies.apply(network, edges, couplings, *embedding, readout[0], *matrices_of(network), *products)


class _Energies(torch.autograd.Function):
    """Sums of centres and the gradient by pair vectors, differentiable once by what is made of weights."""

    @staticmethod
    def forward(
        ctx: Any, network: NequipAllegro, edges: Edges, couplings: list[LayerCouplings], *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.work = work = _Pass(network, edges, couplings, [w.detach() for w in weights])
        energies = work.forwards()
        return energies, work.backwards()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, factors: Tensor, vectors: Tensor) -> tuple[Tensor | None, ...]:
        work: _Pass = ctx.work
        work.move(vectors.contiguous())
        return None, None, None, *work.by_weights(factors.contiguous())


class _Chain:
    """Products of environments in layer k, G_m = P_m(A_m, G_{m+1}) for m = k … 0; edges read G_0. With derivatives.

    Args:
        couplings: P_m for m = 0 … k.
        envs: A_m.
        norm: factor of each centre.
    """

    def __init__(self, couplings: list[Coupling], envs: list[Tensor], norm: Float[Tensor, "n_atoms"]):
        from equicat.kernels.gpu.centers import G

        self.couplings, self.envs, self.norm = couplings, envs, norm
        self.values: list[Tensor | None] = [None]
        """G_0 … G_k, and None, for a product with nothing."""
        for m in reversed(range(len(envs))):
            self.values.insert(0, self._derivative(G, m, None, envs[m], self.values[0]))

    @property
    def read(self) -> Float[Tensor, "n_atoms dim channels"]:
        """G_0."""
        assert self.values[0] is not None
        return self.values[0]

    def _derivative(
        self, by: int, m: int, g: Tensor | None, a: Tensor | None, h: Tensor | None, onto: Tensor | None = None
    ) -> Tensor:
        """The derivative of P_m by one of its arguments, which is not given; added to ``onto``, if that is there."""
        from equicat.kernels.gpu.centers import contract

        coupling, arguments = self.couplings[m], [g, a, h]
        if onto is None:
            like = self.envs[0]
            onto = like.new_empty(len(like), len(coupling.terms.ends[by]) - 1, like.shape[2])
            arguments[by] = onto
            contract(by, arguments, coupling.weights, self.norm, coupling.terms)
        else:
            arguments[by] = onto
            contract(by, arguments, coupling.weights, self.norm, coupling.terms, onto=True)
        return onto

    def back(self, by_read: Tensor, by_envs: list[Tensor | None]) -> None:
        """From the derivative by G_0, those by all A_m, which are added to ``by_envs``."""
        from equicat.kernels.gpu.centers import A, H

        self.grads = [by_read]
        """Derivatives by G_0 … G_k."""
        for m, env in enumerate(self.envs):
            by_envs[m] = self._derivative(A, m, self.grads[m], None, self.values[m + 1], by_envs[m])
            if m + 1 < len(self.envs):
                self.grads.append(self._derivative(H, m, self.grads[m], env, None))

    def move(self, moves: list[Tensor]) -> Tensor:
        """How G_0 changes along moves of all A_m."""
        from equicat.kernels.gpu.centers import G

        self.env_moves, self.moves = moves, list[Tensor | None]([None])
        for m in reversed(range(len(self.envs))):
            moved = self._derivative(G, m, None, moves[m], self.values[m + 1])
            if self.moves[0] is not None:
                self._derivative(G, m, None, self.envs[m], self.moves[0], moved)
            self.moves.insert(0, moved)
        assert self.moves[0] is not None
        return self.moves[0]

    def by_weights(self, by_read: Tensor, by_envs: list[Tensor | None]) -> list[Tensor]:
        """From the derivative of S by G_0, those by the weights of P_m; those by A_m are added to ``by_envs``."""
        from equicat.kernels.gpu.centers import A, H, by_weights

        found, grad = [], by_read
        for m, env in enumerate(self.envs):
            terms, after, moved = self.couplings[m].terms, self.values[m + 1], self.moves[m + 1]
            total = by_weights((grad, env, after), self.norm, terms)
            total += by_weights((self.grads[m], self.env_moves[m], after), self.norm, terms)
            by_envs[m] = self._derivative(A, m, grad, None, after, by_envs[m])
            if moved is not None:
                total += by_weights((self.grads[m], env, moved), self.norm, terms)
                self._derivative(A, m, self.grads[m], None, moved, by_envs[m])
                grad = self._derivative(H, m, grad, env, None)
                self._derivative(H, m, self.grads[m], self.env_moves[m], None, grad)
            found.append(total)
        return found


class _Pass:
    """One call. The four methods are called in their order, and each keeps what later ones read.

    Names: ``by_x`` is the derivative of the energy by x, ``move_x`` how x changes along the moves of pair vectors, and
    ``to_x`` the derivative of S by x. Entry 0 of a list of hidden layers is the two-body MLP's, entry k + 1 that of
    layer k.
    """

    def __init__(
        self, network: NequipAllegro, edges: Edges, couplings: list[LayerCouplings], weights: list[Tensor]
    ) -> None:
        n_layers = len(network.layers)
        radial, table, last, *rest = weights
        matrices, products = rest[: 2 * n_layers + 2], rest[2 * n_layers + 2 :]
        pairs = list(zip(products[::2], products[1::2], strict=True))
        couplings = [
            LayerCouplings(*(Coupling(w, c.terms) for w, c in zip(pair, (known.scalars, known.tensors), strict=True)))
            for pair, known in zip(pairs, couplings, strict=True)
        ]
        self.prepared: Prepared = prepared_of(network, (radial, table), matrices, [last], couplings)
        self.network, self.edges, self.n_layers = network, edges, n_layers
        self.first = ends_of(edges.edge_index[0], len(edges.species))
        self.norm = network.environment_norm(edges.species).flatten()

    def _of_centers(self) -> Float[Tensor, "n_atoms dim channels"]:
        dim, channels = self.y.shape[1], self.network.config.tensor_channels
        return self.y.new_empty(len(self.edges.species), dim, channels)

    def _form(self, **arrays: Tensor | None) -> None:
        from equicat.kernels.gpu.environment import edges

        edges(self.first, **{name: x for name, x in arrays.items() if x is not None})

    def _environment(self, w: Float[Tensor, "n_edges _"], y: Float[Tensor, "n_edges dim"]) -> Tensor:
        found = self._of_centers()
        self._form(w=w, y=y, by_g=found)
        return found

    def _chain(self, k: int) -> _Chain:
        """Products of environments in layer k: those that make scalars of its own, all of those of layers before."""
        known = self.prepared.couplings
        couplings = [known[m].scalars if m == k else known[m].tensors for m in range(k + 1)]
        return _Chain(couplings, self.envs[: k + 1], self.norm)

    def forwards(self) -> Float[Tensor, "n_atoms"]:
        """The sums of centres."""
        from equicat.kernels.gpu.readout import read

        hidden = self.prepared.hidden
        x, self.y = self.prepared.embedding(self.edges)
        z, (env_weights, self.weights, *sums) = hidden[0](x, None, [None] * len(hidden[0].widths))
        self.x, self.z = [x], [z]
        self.env_weights, self.envs, self.chains = list[Tensor](), list[Tensor](), list[_Chain]()
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
        self.by_total = torch.empty_like(self.total)
        return read(self.total, self.prepared.last, self.network.config.features_silu, self.first, self.by_total)

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
            self.by_results.insert(0, [by_env_weights, *([by_weights] if k == 0 else []), *sums])
        self.by_x, by_z = hidden[0].back(self.x[0], self.z[0], self.by_results[0])
        self.by_z.insert(0, by_z)
        return self.prepared.embedding.back(self.edges, self.by_x, by_y)

    def move(self, vectors: Float[Tensor, "n_edges 3"]) -> None:
        """How everything changes along moves of the pair vectors, which gives parts of the derivatives of S as well."""
        hidden = self.prepared.hidden
        self.vectors = vectors
        move_x, self.move_y = self.prepared.embedding.moving(self.edges, vectors)
        to_z, move_h, moves = hidden[0].moving(move_x, None, self.z[0], self.by_results[0])
        move_env, move_w, *move_sums = moves
        self.move_x, self.to_z, self.move_h = [move_x], [to_z], [move_h]
        self.to_weights, self.to_read = torch.empty_like(self.weights), list[Tensor]()
        env_moves = list[Tensor]()
        for k in range(self.n_layers):
            moved = self._environment(move_env, self.y)
            env_moves.append(moved.add_(self._environment(self.env_weights[k], self.move_y)))
            moves_of = {"move_w": move_w, "move_y": self.move_y, "move_g": self.chains[k].move(env_moves[: k + 1])}
            move_scalars, to_read = torch.empty_like(self.x[k + 1]), self._of_centers()
            results = {"by_a": move_scalars, "by_w": self.to_weights, "by_g": to_read}
            onto = {"onto_w": self.to_weights} if k else {}
            arrays = {"a": self.by_scalars[k], "w": self.weights, "y": self.y, "g": self.chains[k].read}
            self._form(**arrays, **moves_of, **results, **onto)
            self.to_read.append(to_read)
            mine, *others = move_sums
            passed_on = [None] if k + 1 < self.n_layers else []
            to_z, move_h, moves = hidden[k + 1].moving(
                move_scalars, mine, self.z[k + 1], self.by_results[k + 1], [*passed_on, *others]
            )
            move_env, move_sums = (moves[0], moves[1:]) if passed_on else (move_env, moves)
            for known, new in ((self.move_x, move_scalars), (self.to_z, to_z), (self.move_h, move_h)):
                known.append(new)
        (self.move_total,) = move_sums

    def by_weights(self, factors: Float[Tensor, "n_atoms"]) -> list[Tensor]:
        """The derivatives of S by all weights, in the order in which they were given."""
        from equicat.kernels.gpu.readout import read_moving

        hidden, act = self.prepared.hidden, self.network.config.features_silu
        to_total, to_last = read_moving(self.total, self.move_total, self.prepared.last, factors, act, self.first)
        sums, to_results, found = [to_total], [to_total], list[Tensor]()
        to_envs: list[Any] = [None] * self.n_layers
        to_products: list[list[Any]] = [[None, None] for _ in range(self.n_layers)]
        for k in reversed(range(self.n_layers)):
            to_scalars, to_z = hidden[k + 1].back(self.x[k + 1], self.z[k + 1], to_results, self.to_z[k + 1])
            found = [*self._by_matrices(k + 1, to_z, to_results), *found]
            sums = [to_z, *sums]
            to_read = self._of_centers()
            arrays = {"a": to_scalars, "w": self.weights, "y": self.y, "g": self.chains[k].read}
            self._form(**arrays, by_w=self.to_weights, onto_w=self.to_weights, by_g=to_read)
            by_coupling = self.chains[k].by_weights(to_read.add_(self.to_read[k]), to_envs)
            for m, grad in enumerate(by_coupling):
                known, which = to_products[m], int(m < k)
                known[which] = grad if known[which] is None else known[which] + grad
            to_env_weights = torch.empty_like(self.weights)
            w = self.env_weights[k]
            self._form(w=w, y=self.y, g=to_envs[k], by_w=to_env_weights)
            self._form(w=w, y=self.move_y, g=self.by_envs[k], by_w=to_env_weights, onto_w=to_env_weights)
            to_results = [to_env_weights, *([self.to_weights] if k == 0 else []), *sums]
        to_x, to_z = hidden[0].back(self.x[0], self.z[0], to_results, self.to_z[0])
        found = [*self._by_matrices(0, to_z, to_results), *found]
        to_embedding = self.prepared.embedding.by_weights(self.edges, self.vectors, to_x, self.by_x)
        flat = [grad for pair in to_products for grad in pair]
        return [*to_embedding, to_last[:, None], *found, *flat]

    def _by_matrices(self, k: int, to_z: Tensor, to_results: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Derivatives of S by both matrices of a hidden layer."""
        from equicat.kernels.gpu.sums import sums

        first = sums(self.x[k], [to_z], self.move_x[k], [self.by_z[k]])
        return first, sums(self.z[k], to_results, self.move_h[k], self.by_results[k], act=True)
