"""Allegro's training as published: weights drawn as the authors' code draws them, and their meaning of a learning rate.

Their linear maps hold weights w of unit variance and multiply them by a constant s, about 1 / sqrt(n_in), when they
are applied; equicat's hold W = s w. The functions are equal, but Adam's steps do not depend on the size of gradients:
a step of w by lr is one of W by s lr. (Musaelian et al. 2023; mir-group/allegro 0.2.0, ``_fc.py`` and ``_linear.py``.)
"""

import math

import torch
from torch import nn

from equicat.networks.allegro_embeddings import TwoBody
from equicat.networks.allegro_parts import AllegroLayer
from equicat.networks.layers import MLP

N_TYPES = 84
"""Elements that the published OC20 models count in the variance of their first layer, one-hot encoded twice."""


def published_scales(model: nn.Module, n_types: int = N_TYPES) -> dict[str, float]:
    """The constant s of each parameter in the authors' code, by name; 1 for parameters that have none.

    Args:
        model: with an Allegro network in it.
        n_types: elements that the one-hot encodings of a published model distinguish.
    """
    scales = {name: 1.0 for name, _ in model.named_parameters()}
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        if isinstance(module, MLP):
            scales |= {f"{start}weights.{k}": s for k, s in enumerate(module.scales)}
        elif isinstance(module, AllegroLayer):
            scales |= {f"{start}mix.{k}": 1 / math.sqrt(len(w)) for k, w in enumerate(module.mix)}
        elif isinstance(module, TwoBody):
            first = 1 / math.sqrt(2 * n_types + len(module.radial))
            scales |= {f"{start}{name}": first for name in ("center_embedding", "neighbor_embedding", "radial")}
    return scales


def draw_as_published(model: nn.Module, n_types: int = N_TYPES) -> None:
    """Draw all weights anew as the authors' code does: uniform for MLPs and embeddings, normal for the mixing of paths.

    Args:
        model: with an Allegro network in it; its buffers and frequencies stay.
        n_types: see :func:`published_scales`.
    """
    mixing = {id(w) for module in model.modules() if isinstance(module, AllegroLayer) for w in module.mix}
    scales = published_scales(model, n_types)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                continue
            if id(weight) in mixing:
                weight.normal_(std=scales[name])
            else:
                weight.uniform_(-math.sqrt(3) * scales[name], math.sqrt(3) * scales[name])
