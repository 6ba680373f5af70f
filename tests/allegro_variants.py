"""Hyperparameters of both flavours of Allegro that the network and its kernel are tested with."""

import dataclasses

from conftest import SMALL, SMALL_NEQUIP

from equicat.kernels.cpu.build import MAX_DEGREE

LARGE = {
    SMALL.name: {"two_body_mlp": (64, 256), "latent_mlp": (256, 256), "tensor_channels": 16},
    SMALL_NEQUIP.name: {"n_scalars": 256, "latent_hidden": (256,), "two_body_hidden": (256,)},
}
"""Variants whose weights do not fit into a cache: what products of matrices yield is kept between the passes."""
PUBLISHED = [
    {"n_layers": 1},
    {},
    {"n_layers": 3, "parity": "restricted", "tensor_channels": 5},
    {"n_layers": 4, "l_max": 3},
    {"l_max": 0},
    {"l_max": 1, "n_layers": 3, "env_embed_mlp": (9, 6), "latent_mlp": (7, 16), "bessel_trainable": False},
    {"l_max": MAX_DEGREE, "n_layers": 1, "two_body_mlp": (8, 9, 16)},
    LARGE[SMALL.name],
]
NEQUIP = [
    {"n_layers": 1},
    {"n_layers": 3, "l_max": 3},
    {"l_max": 0},
    {"l_max": MAX_DEGREE, "n_layers": 1},
    {"n_layers": 3, "parity": "restricted", "coupling": "path"},
    {"radial": "spline", "n_radial": 6, "spline_span": 4},
    {"two_body_hidden": (), "latent_hidden": (5, 6), "embedding_width": 4, "features_silu": False},
    {"two_body_hidden": (20, 30), "tensor_channels": 5, "n_features": 7, "bessel_trainable": True},
    LARGE[SMALL_NEQUIP.name],
    {"neighbors_of_element": (3.0, 7.0, 12.0), "pair_cutoffs": (2.0, 3.0, 4.0, 3.0, 2.5, 4.0, 4.0, 3.5, 4.0)},
]
VARIANTS = [*((SMALL, variant) for variant in PUBLISHED), *((SMALL_NEQUIP, variant) for variant in NEQUIP)]


def name(value: object) -> str:
    """Name of the variant, which names its tests."""
    return value.name if dataclasses.is_dataclass(value) else str(value)
