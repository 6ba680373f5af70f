"""The second flavour as its equations say: slow, plain, and the oracle of :mod:`equicat.networks.nequip_allegro`.

Every edge has its tensors, every path is an einsum of its own, and every MLP runs from end to end. Spherical harmonics
and Wigner 3j symbols come from e3nn. Weights are taken from the fast model.
"""

import math

import torch
from e3nn import o3
from jaxtyping import Float, Int
from torch import Tensor

from equicat.kernels.irreps import SCALAR, VECTOR, Irrep, harmonics
from equicat.networks.features import Features
from equicat.networks.layers import polynomial_envelope, silu
from equicat.networks.nequip_allegro import NequipAllegro, ProductEmbedding, SplineEmbedding, TensorProduct


def plain_forward(
    model: NequipAllegro,
    edge_vec: Float[Tensor, "n_edges 3"],
    edge_index: Int[Tensor, "2 n_edges"],
    species: Int[Tensor, "n_atoms"],
) -> Features:
    """The function of ``model``, by the book. Edges need not be sorted."""
    config, n = model.config, model.config.n_scalars
    center, neighbor = edge_index
    pair = species[center] * model.n_species + species[neighbor]
    x = (edge_vec.norm(dim=1) * model.inverse_cutoff[pair])[:, None]
    sh = {
        ir: o3.spherical_harmonics(ir[0], edge_vec, normalize=True, normalization="component")
        for ir in harmonics(config.l_max)
    }

    def weighted(weights: Tensor) -> dict[Irrep, Tensor]:
        split = weights.split(config.tensor_channels, dim=1)
        return {ir: torch.einsum("eu,em->emu", w, y) for w, (ir, y) in zip(split, sh.items(), strict=True)}

    two_body = model.two_body_mlp(_embedding(model, x, pair))
    v = weighted(two_body @ model.tensor_weights)
    projected = two_body @ model.projection
    latents, env_weights = [projected[:, :n]], projected[:, n:]
    norm = model.env_norm[species][:, None, None]
    for layer in model.layers:
        env = {}
        for ir, edges in weighted(env_weights).items():
            total = edges.new_zeros(len(species), *edges.shape[1:]).index_add(0, center, edges)
            env[ir] = (total * norm)[center]
        v = _tensor_product(layer.product, v, env)
        out = layer.latent_mlp(torch.cat([*latents, v[SCALAR][:, 0]], dim=1))
        latents.append(out[:, :n])
        env_weights = out[:, n:]
    features = torch.cat(latents, dim=1) @ model.readout
    return Features(silu(features) if config.features_silu else features, "edge", v.get(VECTOR))


def _embedding(model: NequipAllegro, x: Tensor, pair: Tensor) -> Tensor:
    """What the two-body MLP reads, edge by edge."""
    basis, embedding = model.basis(x), model.embedding
    if isinstance(embedding, SplineEmbedding):
        return torch.einsum("es,esd->ed", basis, embedding.weight[pair])
    assert isinstance(embedding, ProductEmbedding)
    radial = (basis * polynomial_envelope(x, model.config.envelope_p)) @ embedding.radial
    i, j = pair // model.n_species, pair % model.n_species
    return torch.cat([embedding.center[i], embedding.neighbor[j]], dim=1) * radial


def _tensor_product(product: TensorProduct, v: dict[Irrep, Tensor], env: dict[Irrep, Tensor]) -> dict[Irrep, Tensor]:
    out, k = {}, 0
    for ir, paths in product.paths.items():
        terms = []
        for a, b in paths.pairs:
            w3j = o3.wigner_3j(a[0], b[0], ir[0], dtype=v[a].dtype) * math.sqrt(2 * ir[0] + 1)
            terms.append(torch.einsum("abc,eau,ebu->ecu", w3j, v[a], env[b]) * product.weight[:, k])
            k += 1
        out[ir] = torch.stack(terms).sum(0)
    return out
