"""Allegro as the paper writes it: slow, plain, and the oracle of :mod:`equicat.networks.allegro`.

Spherical harmonics and Wigner 3j symbols come from e3nn, the environment is summed edge by edge, and every tensor
product path is an einsum of its own. Weights are taken from the fast model.
"""

import math

import torch
from e3nn import o3
from jaxtyping import Float, Int
from torch import Tensor

from equicat.kernels.irreps import SCALAR, VECTOR, Irrep, harmonics
from equicat.networks.allegro import Allegro, AllegroLayer
from equicat.networks.features import Features
from equicat.networks.layers import polynomial_envelope


def plain_forward(
    model: Allegro,
    edge_vec: Float[Tensor, "n_edges 3"],
    edge_index: Int[Tensor, "2 n_edges"],
    species: Int[Tensor, "n_atoms"],
) -> Features:
    """The function of ``model``, by the book. Edges need not be sorted."""
    config = model.config
    center, neighbor = edge_index
    r = edge_vec.norm(dim=1)
    u = polynomial_envelope(r / config.cutoff, config.envelope_p)[:, None]
    sh = {
        ir: o3.spherical_harmonics(ir[0], edge_vec, normalize=True, normalization="component")
        for ir in harmonics(config.l_max)
    }
    # Eq. 13: one-hot vectors and radial basis, written out.
    two_body = model.two_body
    one_hot = torch.eye(model.n_species, dtype=r.dtype)
    radial = two_body.bessel(r[:, None] / config.cutoff) * u
    inputs = torch.cat([one_hot[species[center]], one_hot[species[neighbor]], radial], 1)
    first = torch.cat([two_body.center_embedding, two_body.neighbor_embedding, two_body.radial])
    x = two_body.mlp(torch.nn.functional.silu(inputs @ first)) * u

    v: dict[Irrep, Tensor] = {}
    for layer in model.layers:
        assert isinstance(layer, AllegroLayer)
        x, v = _plain_layer(layer, x, v, sh, u, center, len(species))
    return Features(x, "edge", v.get(VECTOR))


def _plain_layer(
    layer: AllegroLayer,
    x: Tensor,
    v: dict[Irrep, Tensor],
    sh: dict[Irrep, Tensor],
    u: Tensor,
    center: Tensor,
    n_atoms: int,
) -> tuple[Tensor, dict[Irrep, Tensor]]:
    weights = layer.env_embed(x).unflatten(1, (2 if layer.first else 1, len(sh), -1))
    if layer.first:  # eq. 6
        v = {ir: torch.einsum("eu,em->emu", weights[:, 1, ir[0]], y) for ir, y in sh.items()}
    env = {}
    for ir, y in sh.items():  # the sum of eq. 9, gathered back onto edges
        contribution = torch.einsum("eu,em->emu", weights[:, 0, ir[0]], y)
        total = contribution.new_zeros(n_atoms, *contribution.shape[1:]).index_add(0, center, contribution)
        env[ir] = (total / math.sqrt(layer.avg_num_neighbors))[center]
    products: dict[Irrep, list[Tensor]] = {}
    for out, paths in layer.paths.items():  # eq. 8
        for a, b in paths.pairs:
            w3j = o3.wigner_3j(a[0], b[0], out[0], dtype=x.dtype) * math.sqrt(2 * out[0] + 1)
            products.setdefault(out, []).append(torch.einsum("abc,eau,ebu->ecu", w3j, v[a], env[b]))
    scalars = torch.cat([p[:, 0] for p in products[SCALAR]], dim=1)
    v_new = {}
    for out, mix in zip(layer.irreps_out, layer.mix, strict=True):  # the linear map of eq. 10
        terms = products[out]
        v_new[out] = torch.einsum("ecpu,puv->ecv", torch.stack(terms, 2), mix.unflatten(0, (len(terms), -1)))
    update = layer.latent_mlp(torch.cat([x, scalars], dim=1)) * u
    return (2 * x + update) / math.sqrt(5), v_new
