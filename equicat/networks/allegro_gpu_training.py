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
from equicat.networks.allegro_gpu import Pass, Prepared, first_matrices, prepared_of, serves
from equicat.networks.allegro_parts import NequipAllegro
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
    return not network.basis.frequencies.requires_grad and all(map(is_narrow, first_matrices(network)))


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
    prepared = prepared_of(network, readout)
    matrices = [w for layer in prepared.hidden for w in (layer.first, layer.last)]
    products = [c.weights for layer in prepared.couplings for c in (layer.scalars, layer.tensors)]
    embedding = prepared.embedding.weights, prepared.embedding.table
    edges = Edges(*(x.contiguous() for x in edges))
    return _Energies.apply(network, prepared, edges, *embedding, prepared.last, *matrices, *products)


class _Energies(torch.autograd.Function):
    """Sums of centres and the gradient by pair vectors, differentiable once by all that was prepared of weights."""

    @staticmethod
    def forward(
        ctx: Any, network: NequipAllegro, prepared: Prepared, edges: Edges, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.work = work = _Training(network, prepared, edges, keep=True)
        energies = work.forwards()
        return energies, work.backwards()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, factors: Tensor, vectors: Tensor) -> tuple[Tensor | None, ...]:
        work: _Training = ctx.work
        work.move(vectors.contiguous())
        return None, None, None, *work.by_weights(factors.contiguous())


class _Training(Pass):
    """One call. The four methods are called in their order: forwards, backwards, move, by_weights.

    Names: ``move_x`` is how x changes along the moves of pair vectors, ``to_x`` the derivative of S by x.
    """

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
        """The derivatives of S: by the matrix of radial functions, the table of pairs of elements, the readout, both
        matrices of each hidden layer, and the weights of both products of each layer.
        """
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
        return [*to_embedding, to_last, *found, *flat]

    def _by_matrices(self, k: int, to_z: Tensor, to_results: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Derivatives of S by both matrices of a hidden layer."""
        from equicat.kernels.gpu.sums import sums

        first = sums(self.x[k], [to_z], self.move_x[k], [self.by_z[k]])
        return first, sums(self.z[k], to_results, self.move_h[k], self.by_results[k], act=True)
