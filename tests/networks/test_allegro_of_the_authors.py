"""Allegro beside the authors' own code (version 0.2.0): their weights on our network give their energies and forces.

The arrays in ``fixtures/allegro_0_2`` were made by their code (``make.py`` there). Their linear maps hold weights of
unit size and divide by sqrt(n_in) when they are applied; ours hold the quotient.
"""

import json
import math

import numpy as np
import pytest
import torch
from places import FIXTURES

from equicat.data.batch import Batch
from equicat.data.structure import Structure
from equicat.kernels.irreps import Irrep, couples, harmonics
from equicat.models.gradient import ComputeOptions
from equicat.models.heads import OutputMLP
from equicat.models.potential import Potential
from equicat.networks.allegro import AllegroConfig

STORED = FIXTURES / "allegro_0_2"
ELEMENTS = (8, 29, 78)
OTHER_SIGN = {(1, 2, 2), (2, 1, 2), (2, 2, 1), (1, 3, 3), (3, 1, 3), (3, 3, 1)}
"""Degrees of the Wigner 3j symbols that have the other sign in e3nn 0.4.4, which the authors' code used."""
SILU_GAIN = 1.6791767923989418
"""The authors' factor after a SiLU, normalize2mom of e3nn 0.4.4."""


class Authors:
    """A stored model of theirs: hyperparameters, weights, one system and what the model says of it."""

    def __init__(self, name: str) -> None:
        file = np.load(STORED / f"{name}.npz")
        self.arrays = {key: file[key] for key in file.files if not key.startswith("weights/")}
        self.weights = {
            key.removeprefix("weights/"): torch.from_numpy(file[key])
            for key in file.files
            if key.startswith("weights/")
        }
        self.about = json.loads(str(self.arrays.pop("about")))

    def mlp(self, name: str, nonlinearity: bool = True) -> list[torch.Tensor]:
        """The matrices of an MLP as they are applied."""
        found = []
        while (key := f"{name}._weight_{len(found)}") in self.weights:
            gain = SILU_GAIN if found and nonlinearity else 1.0
            found.append(self.weights[key] * gain / math.sqrt(len(self.weights[key])))
        return found

    def config(self) -> AllegroConfig:
        """Our hyperparameters for the same network."""
        a = self.about
        return AllegroConfig(
            cutoff=a["r_max"],
            n_layers=a["num_layers"],
            l_max=a["l_max"],
            parity=a["parity"].removeprefix("o3_"),
            tensor_channels=a["env_embed_multiplicity"],
            n_bessel=a["num_basis"],
            normalize_basis=a["normalize_basis"],
            two_body_mlp=tuple(a["two_body_latent_mlp_latent_dimensions"]),
            latent_mlp=tuple(a["latent_mlp_latent_dimensions"]),
            env_embed_mlp=tuple(a["env_embed_mlp_latent_dimensions"]),
            avg_num_neighbors=a["avg_num_neighbors"],
        )

    def state(self, potential: Potential) -> dict[str, torch.Tensor]:
        """The authors' weights under our names."""
        a, network = self.about, potential.network
        channels, n_species = a["env_embed_multiplicity"], a["num_types"]
        first, *rest = self.mlp("allegro.latents.0._forward")
        center, neighbor, radial = first.split([n_species, n_species, a["num_basis"]])
        # The authors' Bessel functions are (2 / r_c) sin(nπ r / r_c) / r, ours sin(nπ x) / (πx) with x = r / r_c;
        # normalised ones are free of such factors.
        radial = radial if a["normalize_basis"] else radial * 2 * math.pi / a["r_max"] ** 2
        basis = "radial_basis.basis.basis" if a["normalize_basis"] else "radial_basis.basis"
        state = {
            "two_body.center_embedding": center,
            "two_body.neighbor_embedding": neighbor,
            "two_body.radial": radial,
            "two_body.bessel.frequencies": self.weights[f"{basis}.bessel_weights"],
        }
        state |= {f"two_body.mlp.weights.{k}": w for k, w in enumerate(rest)}
        for k, layer in enumerate(network.layers):
            *hidden, last = self.mlp(
                f"allegro.env_embed_mlps.{k}._forward", a["env_embed_mlp_nonlinearity"] is not None
            )
            # Theirs: [pair, environment] each by channel and degree; ours: [environment, pair] by degree and channel.
            parts = last.view(len(last), -1, channels, a["l_max"] + 1).transpose(2, 3).flip(1)
            for i, w in enumerate([*hidden, parts.reshape(len(last), -1)]):
                state[f"layers.{k}.env_embed.weights.{i}"] = w
            name = f"allegro.latents.{k + 1}" if k + 1 < a["num_layers"] else "allegro.final_latent"
            first, *rest = self.mlp(f"{name}._forward")
            n_features = potential.network.n_features
            scalars = first[n_features:].unflatten(0, (channels, -1)).transpose(0, 1).flatten(0, 1)
            for i, w in enumerate([torch.cat([first[:n_features], scalars]), *rest]):
                state[f"layers.{k}.latent_mlp.weights.{i}"] = w
            state |= {f"layers.{k}.mix.{i}": w for i, w in enumerate(self.mixing(k, layer))}
        state = {f"network.{name}": w for name, w in state.items()}
        readout = self.mlp("edge_eng._module._forward", a["edge_eng_mlp_nonlinearity"] is not None)
        return state | {f"head.mlp.weights.{k}": w for k, w in enumerate(readout)}

    def mixing(self, k: int, layer: torch.nn.Module) -> list[torch.Tensor]:
        """The linear map after the tensor product of a layer, by irrep as ours has them."""
        channels = self.about["env_embed_multiplicity"]
        flat, found = self.weights[f"allegro.linears.{k}.w"], dict[Irrep, torch.Tensor]()
        for out in theirs(layer.irreps_out):
            env = harmonics(self.about["l_max"])
            paths = [(x, y) for x in theirs(layer.irreps_in) for y in env if couples(x, y, out)]
            n = channels * channels * len(paths)
            w, flat = flat[:n].view(channels, channels, len(paths)) / math.sqrt(channels * len(paths)), flat[n:]
            signs = [-1.0 if (x[0], y[0], out[0]) in OTHER_SIGN else 1.0 for x, y in paths]
            by_path = {path: s * w[:, :, i].T for i, (path, s) in enumerate(zip(paths, signs, strict=True))}
            found[out] = torch.cat([by_path[path] for path in layer.paths[out].pairs])
        return [found[out] for out in layer.irreps_out]


def theirs(irreps: list[Irrep]) -> list[Irrep]:
    """Irreps in the order of their layers: by degree, even parity first."""
    return sorted(irreps, key=lambda ir: (ir[0], -ir[1]))


@pytest.mark.parametrize("name", sorted(path.stem for path in STORED.glob("*.npz")))
@pytest.mark.parametrize("kernels", [True, False], ids=["kernel", "operators"])
def test_their_weights_give_their_numbers(name, kernels):
    authors = Authors(name)
    a = authors.arrays
    linear = authors.about["edge_eng_mlp_nonlinearity"] is None
    readout = OutputMLP(tuple(authors.about["edge_eng_mlp_latent_dimensions"]), linear)
    potential = Potential(authors.config(), ELEMENTS, readout, compute=ComputeOptions(kernels=kernels)).double()
    state = authors.state(potential)
    constants = {name for name, _ in potential.named_buffers()}
    missing, unexpected = potential.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= constants
    structure = Structure(a["numbers"], a["positions"], a["cell"], np.ones(3, dtype=bool))
    batch = Batch.from_structures([structure], potential.cutoff, dtype=torch.float64)
    assert batch.n_edges == a["edge_index"].shape[1]
    prediction = potential.eval()(batch)
    np.testing.assert_allclose(prediction.atom_energies.numpy(), a["atom_energies"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(prediction.forces.numpy(), a["forces"], rtol=0, atol=1e-11)
    assert a["pair_energies"].std() > 0.03
    assert np.abs(a["forces"]).max() > 0.03
