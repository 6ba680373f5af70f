"""Both flavours of Allegro as their equations say: slow, plain, and the oracle of :mod:`equicat.networks.allegro`.

Spherical harmonics and Wigner 3j symbols come from e3nn, the environment is summed edge by edge, every tensor product
path is an einsum of its own, and every MLP runs from end to end. Weights are taken from the fast model.
"""

import math

import torch
from e3nn import o3
from jaxtyping import Float, Int
from torch import Tensor

from equicat.kernels.irreps import SCALAR, VECTOR, Irrep, Paths, harmonics
from equicat.networks.allegro import Allegro
from equicat.networks.allegro_embeddings import ProductEmbedding, SplineEmbedding
from equicat.networks.allegro_parts import AllegroLayer, NequipAllegro, PublishedAllegro
from equicat.networks.features import Features
from equicat.networks.layers import polynomial_envelope, silu

Tensors = dict[Irrep, Float[Tensor, "n_edges _ ..."]]
"""Features of edges by irrep, [n_edges, 2l + 1, channels]; harmonics have no channels."""


def plain_forward(
    model: Allegro,
    edge_vec: Float[Tensor, "n_edges 3"],
    edge_index: Int[Tensor, "2 n_edges"],
    species: Int[Tensor, "n_atoms"],
) -> Features:
    """The function of ``model``, by the book. Edges need not be sorted."""
    sh = {
        ir: o3.spherical_harmonics(ir[0], edge_vec, normalize=True, normalization="component")
        for ir in harmonics(model.config.l_max)
    }
    r = edge_vec.norm(dim=1, keepdim=True)
    if isinstance(model, PublishedAllegro):
        return _published(model, r, sh, edge_index, species)
    assert isinstance(model, NequipAllegro)
    return _nequip(model, r, sh, edge_index, species)


def _weighted(weights: Float[Tensor, "n_edges n_weights"], sh: Tensors) -> Tensors:
    """w_l Y_lm of every edge."""
    split = weights.chunk(len(sh), dim=1)
    return {ir: torch.einsum("eu,em->emu", w, y) for w, (ir, y) in zip(split, sh.items(), strict=True)}


def _environment(edges: Tensors, center: Int[Tensor, "n_edges"], norm: Float[Tensor, "n_atoms"]) -> Tensors:
    """The sum of eq. 9, gathered back onto edges."""
    out = {}
    for ir, x in edges.items():
        total = x.new_zeros(len(norm), *x.shape[1:]).index_add(0, center, x)
        out[ir] = (total * norm[:, None, None])[center]
    return out


def _products(paths: Paths, out: Irrep, v: Tensors, env: Tensors) -> list[Float[Tensor, "n_edges dim_out channels"]]:
    """Each path of eq. 8 into one irrep."""
    found = []
    for a, b in paths.pairs:
        w3j = o3.wigner_3j(a[0], b[0], out[0], dtype=v[a].dtype) * math.sqrt(2 * out[0] + 1)
        found.append(torch.einsum("abc,eau,ebu->ecu", w3j, v[a], env[b]))
    return found


def _published(model: PublishedAllegro, r: Tensor, sh: Tensors, edge_index: Tensor, species: Tensor) -> Features:
    config, (center, neighbor) = model.config, edge_index
    u = polynomial_envelope(r / config.cutoff, config.envelope_p)
    # Eq. 13: one-hot vectors and radial basis, written out.
    two_body = model.two_body
    one_hot = torch.eye(model.n_species, dtype=r.dtype)
    radial = two_body.bessel(r / config.cutoff) * u
    inputs = torch.cat([one_hot[species[center]], one_hot[species[neighbor]], radial], 1)
    first = torch.cat([two_body.center_embedding, two_body.neighbor_embedding, two_body.radial])
    x = two_body.mlp(torch.nn.functional.silu(inputs @ first)) * u
    norm = r.new_full((len(species),), 1 / math.sqrt(config.avg_num_neighbors or 1.0))
    v: Tensors = {}
    for k, layer in enumerate(model.layers):
        assert isinstance(layer, AllegroLayer)
        weights = layer.env_embed(x)
        if k == 0:  # eq. 6
            weights, of_v = weights.chunk(2, dim=1)
            v = _weighted(of_v, sh)
        env = _environment(_weighted(weights, sh), center, norm)
        products = {out: _products(paths, out, v, env) for out, paths in layer.paths.items()}
        scalars = torch.cat([p[:, 0] for p in products[SCALAR]], dim=1)
        v = {}
        for out, mix in zip(layer.irreps_out, layer.mix, strict=True):  # the linear map of eq. 10
            terms = products[out]
            v[out] = torch.einsum("ecpu,puv->ecv", torch.stack(terms, 2), mix.unflatten(0, (len(terms), -1)))
        x = (2 * x + layer.latent_mlp(torch.cat([x, scalars], dim=1)) * u) / math.sqrt(5)
    return Features(x, "edge", v.get(VECTOR))


def _nequip(model: NequipAllegro, r: Tensor, sh: Tensors, edge_index: Tensor, species: Tensor) -> Features:
    n, (center, neighbor) = model.config.n_scalars, edge_index
    pair = species[center] * model.n_species + species[neighbor]
    two_body = model.two_body_mlp(_embedding(model, r * model.inverse_cutoff[pair][:, None], pair))
    v = _weighted(two_body @ model.tensor_weights, sh)
    projected = two_body @ model.projection
    latents, env_weights = [projected[:, :n]], projected[:, n:]
    for layer in model.layers:
        env = _environment(_weighted(env_weights, sh), center, model.env_norm[species])
        path_weights = iter(layer.product.weight.t())
        v = {
            out: torch.stack([p * next(path_weights) for p in _products(paths, out, v, env)]).sum(0)
            for out, paths in layer.product.paths.items()
        }
        out = layer.latent_mlp(torch.cat([*latents, v[SCALAR][:, 0]], dim=1))
        latents.append(out[:, :n])
        env_weights = out[:, n:]
    features = torch.cat(latents, dim=1) @ model.readout
    return Features(silu(features) if model.config.features_silu else features, "edge", v.get(VECTOR))


def _embedding(model: NequipAllegro, x: Tensor, pair: Tensor) -> Float[Tensor, "n_edges width"]:
    """The input of the two-body MLP, edge by edge."""
    basis, embedding = model.basis(x), model.embedding
    if isinstance(embedding, SplineEmbedding):
        return torch.einsum("es,esd->ed", basis, embedding.weight[pair])
    assert isinstance(embedding, ProductEmbedding)
    radial = (basis * polynomial_envelope(x, model.config.envelope_p)) @ embedding.radial
    i, j = pair // model.n_species, pair % model.n_species
    return torch.cat([embedding.center[i], embedding.neighbor[j]], dim=1) * radial
