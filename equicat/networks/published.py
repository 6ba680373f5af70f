"""Allegro's training as published: weights drawn as the authors' code draws them, and their meaning of a learning rate.

Their linear maps hold weights w of unit variance and multiply them by a constant s, about 1 / sqrt(n_in), when they
are applied; equicat's hold W = s w. The functions are equal, but Adam's steps do not depend on the size of gradients:
a step of w by lr is one of W by s lr. (Musaelian et al. 2023; mir-group/allegro 0.2.0, ``_fc.py`` and ``_linear.py``.)

The constants are theirs for the readout without nonlinearity and the normalised radial basis that they use
(``output_nonlinearity: null``, ``model.normalize_basis: true``). For a basis that is not normalised theirs has another
factor, 2π / cutoff², in its functions.
"""

import math

import torch
from torch import nn

from equicat.errors import InputError
from equicat.networks.allegro_parts import AllegroLayer, PublishedAllegro
from equicat.networks.layers import MLP


def published_scales(model: nn.Module) -> dict[str, float]:
    """The constant s of each parameter in the authors' code, by name; 1 for parameters that have none.

    The first layer counts all entries of the two one-hot encodings, of ``model.n_types`` elements each or, if that is
    null, of those that the model knows.

    Args:
        model: with a published Allegro in it.

    Raises:
        InputError: if there is none in it, or it knows more elements than ``model.n_types``.
    """
    scales = {name: 1.0 for name, _ in model.named_parameters()}
    networks = 0
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        if isinstance(module, MLP):
            scales |= {f"{start}weights.{k}": s for k, s in enumerate(module.scales)}
        elif isinstance(module, AllegroLayer):
            scales |= {f"{start}mix.{k}": 1 / math.sqrt(len(w)) for k, w in enumerate(module.mix)}
        elif isinstance(module, PublishedAllegro):
            networks += 1
            first = 1 / math.sqrt(2 * _n_types(module) + module.config.n_bessel)
            rows = ("center_embedding", "neighbor_embedding", "radial")
            scales |= {f"{start}two_body.{name}": first for name in rows}
    if not networks:
        raise InputError("published weights and steps are those of model.name allegro, and this is another network")
    return scales


def _n_types(network: PublishedAllegro) -> int:
    n_types = network.config.n_types or network.n_species
    if n_types < network.n_species:
        raise InputError(f"model.n_types is {n_types}, but the data have {network.n_species} elements; leave it out")
    return n_types


def draw_as_published(model: nn.Module) -> None:
    """Draw all weights anew as the authors' code does: uniform for MLPs and embeddings, normal for the mixing of paths.

    Args:
        model: with a published Allegro in it; its buffers and frequencies stay.

    Raises:
        InputError: see :func:`published_scales`.
    """
    mixing = {id(w) for module in model.modules() if isinstance(module, AllegroLayer) for w in module.mix}
    scales = published_scales(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                continue
            if id(weight) in mixing:
                weight.normal_(std=scales[name])
            else:
                weight.uniform_(-math.sqrt(3) * scales[name], math.sqrt(3) * scales[name])
