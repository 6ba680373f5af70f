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
