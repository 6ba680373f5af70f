"""Tensor products of nequip-allegro's layers, as :mod:`equicat.kernels.gpu.centers` multiplies them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat.kernels.forms import Segments, read_out

if TYPE_CHECKING:
    from equicat.kernels.gpu.centers import Terms  # needs Triton


@dataclass(frozen=True, eq=False)
class Constants:
    """Coupling coefficients that are not zero."""

    coefficients: Float[Tensor, "n_terms"]
    path: Int[Tensor, "n_terms"]
    """Path of each."""
    terms: "Terms"


@dataclass(frozen=True, eq=False)
class Coupling:
    """A layer's tensor product as terms of :mod:`equicat.kernels.gpu.centers`: components of V, A and V'."""

    weights: Float[Tensor, "n_terms channels"]
    terms: "Terms"


@dataclass(frozen=True, eq=False)
class CenterProducts:
    """Tensor features of edges, of which only scalars are read: a GPU's kernel makes them of environments.

    :class:`~equicat.networks.allegro_parts.CenterTensors` says what they are.
    """

    weights: Float[Tensor, "n_edges n_weights"]
    harmonics: Float[Tensor, "n_edges dim_env"]
    envs: list[Float[Tensor, "n_atoms dim_env channels"]]
    """A of each layer so far."""
    couplings: list[tuple[Coupling, Coupling]]

    def scalars(self, segments: Segments) -> Float[Tensor, "n_edges channels"]:
        """Scalars that edges read with all environments so far."""
        from equicat.kernels.gpu.centers import product  # needs Triton

        norm, (coupling, _) = self.envs[-1].new_ones(len(self.envs[-1])), self.couplings[len(self.envs) - 1]
        g = product(coupling.terms, norm, coupling.weights, self.envs[-1], None)
        for env, (_, coupling) in reversed(list(zip(self.envs[:-1], self.couplings, strict=False))):
            g = product(coupling.terms, norm, coupling.weights, env, g)
        return read_out(self.weights, self.harmonics, g, segments)


_CONSTANTS: WeakKeyDictionary[nn.Module, dict[tuple[torch.device, torch.dtype], tuple[Constants, Constants]]] = (
    WeakKeyDictionary()
)


def center_couplings(product: Any) -> tuple[Coupling, Coupling]:
    """The products of a :class:`~equicat.networks.allegro_parts.TensorProduct` that make scalars, and all of them.

    They are differentiable by its weights.
    """
    weight = product.weight
    known, key = _CONSTANTS.setdefault(product, {}), (weight.device, weight.dtype)
    if key not in known:
        known[key] = _constants(product, slice(0, 1)), _constants(product, slice(None))
    by_path = weight.t().expand(-1, product.channels)
    scalars, tensors = (
        Coupling(found.coefficients[:, None] * by_path.index_select(0, found.path), found.terms) for found in known[key]
    )
    return scalars, tensors


def _constants(product: Any, outputs: slice) -> Constants:
    """The coefficients of some output components, on the device of the weights."""
    from equicat.kernels.gpu.centers import Terms

    coefficients, like = product.coefficients.exact[:, outputs], product.weight
    sizes = [coefficients.shape[k] for k in (0, 3, 1)]
    place = coefficients.nonzero()
    values = coefficients[tuple(place.t())].to(like)
    return Constants(values, place[:, 2].to(like.device), Terms.of(place[:, [0, 3, 1]], sizes, like.device))
