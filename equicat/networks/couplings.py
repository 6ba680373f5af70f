"""Tensor products of nequip-allegro's layers, as :mod:`equicat.kernels.gpu.centers` multiplies them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from equicat.kernels.forms import Segments, read_out
from equicat.kernels.terms import Terms


@dataclass(frozen=True, eq=False)
class Coupling:
    """A layer's tensor product: components of V', of A and of V."""

    weights: Float[Tensor, "n_terms channels"]
    terms: Terms


@dataclass(frozen=True, eq=False)
class LayerCouplings:
    """The tensor products of a layer."""

    scalars: Coupling
    """Products that make scalars."""
    tensors: Coupling
    """All products."""

    @classmethod
    def of(cls, product: Any) -> "LayerCouplings":
        """The products of a :class:`~equicat.networks.allegro_parts.TensorProduct`, differentiable by its weights."""
        by_path = product.weight.t().expand(-1, product.channels)
        terms = (exact.like(product.weight) for exact in product.terms)
        return cls(*(Coupling(t.coefficients[:, None] * by_path.index_select(0, t.path), t) for t in terms))


def chain(
    couplings: Sequence[LayerCouplings],
    envs: Sequence[Float[Tensor, "n_atoms dim_env channels"]],
    norm: Float[Tensor, "n_atoms"],
) -> list[Float[Tensor, "n_atoms _ channels"]]:
    """M_k … M_L[:, 0] for k = 0 … L, made from the right; edges read the first.

    Args:
        couplings: of each layer.
        envs: environments A of layers 0 … L.
        norm: factor of the environments of each centre.
    """
    from equicat.kernels.gpu.centers import product  # needs Triton

    last = couplings[len(envs) - 1].scalars
    found = [product(last.terms, norm, last.weights, envs[-1], None)]
    for k in reversed(range(len(envs) - 1)):
        coupling = couplings[k].tensors
        found.insert(0, product(coupling.terms, norm, coupling.weights, envs[k], found[0]))
    return found


OfCenters = Float[Tensor, "n_atoms _ channels"]
"""Components of centres."""


class Chain:
    """Products of environments in layer k, G_m = P_m(A_m, G_{m+1}) for m = k … 0; edges read G_0. With derivatives.

    Args:
        couplings: P_m for m = 0 … k.
        envs: A_m.
        norm: factor of each centre.
    """

    def __init__(self, couplings: list[Coupling], envs: list[OfCenters], norm: Float[Tensor, "n_atoms"]):
        from equicat.kernels.gpu.centers import G

        self.couplings, self.envs, self.norm = couplings, envs, norm
        self.values: list[Tensor | None] = [None]
        """G_0 … G_k, and None, for a product with nothing."""
        for m in reversed(range(len(envs))):
            self.values.insert(0, self._derivative(G, m, None, envs[m], self.values[0]))

    @property
    def read(self) -> OfCenters:
        """G_0."""
        assert self.values[0] is not None
        return self.values[0]

    def _derivative(
        self, by: int, m: int, g: Tensor | None, a: Tensor | None, h: Tensor | None, onto: Tensor | None = None
    ) -> Tensor:
        """The derivative of P_m by one of its arguments, which is not given; added to ``onto``, if that is there."""
        from equicat.kernels.gpu.centers import contract

        coupling, arguments, out = self.couplings[m], [g, a, h], onto
        if out is None:
            like = self.envs[0]
            out = like.new_empty(len(like), len(coupling.terms.ends[by]) - 1, like.shape[2])
        arguments[by] = out
        contract(by, arguments, coupling.weights, self.norm, coupling.terms, onto=onto is not None)
        return out

    def back(self, by_read: OfCenters, by_envs: list[OfCenters | None]) -> None:
        """From the derivative by G_0, those by all A_m, which are added to ``by_envs``."""
        from equicat.kernels.gpu.centers import A, H

        self.grads = [by_read]
        """Derivatives by G_0 … G_k."""
        for m, env in enumerate(self.envs):
            by_envs[m] = self._derivative(A, m, self.grads[m], None, self.values[m + 1], by_envs[m])
            if m + 1 < len(self.envs):
                self.grads.append(self._derivative(H, m, self.grads[m], env, None))

    def move(self, moves: list[OfCenters]) -> OfCenters:
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

    def by_weights(
        self, by_read: OfCenters, by_envs: list[OfCenters | None]
    ) -> list[Float[Tensor, "n_terms channels"]]:
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


@dataclass(frozen=True, eq=False)
class CenterProducts:
    """Tensor features of edges, of which only scalars are read: a GPU's kernel makes them of environments.

    :class:`~equicat.networks.allegro_parts.CenterTensors` says what they are.
    """

    weights: Float[Tensor, "n_edges n_weights"]
    harmonics: Float[Tensor, "n_edges dim_env"]
    envs: list[Float[Tensor, "n_atoms dim_env channels"]]
    """A of each layer so far."""
    couplings: list[LayerCouplings]

    def scalars(self, segments: Segments) -> Float[Tensor, "n_edges channels"]:
        """Scalars that edges read with all environments so far."""
        norm = self.envs[-1].new_ones(len(self.envs[-1]))
        return read_out(self.weights, self.harmonics, chain(self.couplings, self.envs, norm)[0], segments)
