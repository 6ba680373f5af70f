"""The published Allegro's numbers of parameters, initial weights, and learning rate."""

import math

import pytest
import torch

from equicat import InputError
from equicat.models.heads import OutputMLP
from equicat.models.potential import Potential
from equicat.networks.allegro import AllegroConfig
from equicat.networks.published import draw_as_published, published_scales

CHANNELS = 256


def qm9_potential(n_layers: int, l_max: int) -> Potential:
    """The models that Musaelian et al. (2023) trained on QM9."""
    config = AllegroConfig(
        cutoff=10.0,
        n_layers=n_layers,
        l_max=l_max,
        tensor_channels=CHANNELS,
        bessel_trainable=False,
        two_body_mlp=(128, 256, 512, 1024),
        latent_mlp=(1024, 1024, 1024),
        avg_num_neighbors=10.0,
    )
    return Potential(config, (1, 6, 7, 8, 9), OutputMLP((128,), linear=True))


@pytest.mark.parametrize(("n_layers", "l_max", "published"), [(1, 3, 7_375_237), (3, 2, 17_926_533)])
def test_qm9_models_have_the_published_number_of_parameters(n_layers, l_max, published):
    trained = sum(p.numel() for p in qm9_potential(n_layers, l_max).parameters() if p.requires_grad)
    unused = (l_max + 1) * CHANNELS * CHANNELS  # their last layer mixes scalars that nothing reads
    energies_of_elements = 5  # trained there, fitted and fixed here
    assert trained + unused + energies_of_elements == published


def small(n_types: int | None = 84) -> Potential:
    torch.manual_seed(0)
    config = AllegroConfig(
        n_layers=2,
        two_body_mlp=(64, 64),
        latent_mlp=(64,),
        tensor_channels=32,
        avg_num_neighbors=10.0,
        n_types=n_types,
    )
    return Potential(config, (8, 29, 78), OutputMLP((64,), linear=True))


def test_weights_are_drawn_as_published():
    potential = small()
    draw_as_published(potential)
    scales = published_scales(potential)
    for name, weight in potential.named_parameters():
        if weight.ndim == 2 and weight.numel() > 500:
            assert weight.std().item() == pytest.approx(scales[name], rel=0.1), name
            largest = weight.abs().max().item() / scales[name]
            assert (largest > 2) if ".mix." in name else (largest <= math.sqrt(3) + 1e-6), name


def test_matrices_are_scaled_by_what_enters_them():
    scales = published_scales(small())
    assert scales["network.two_body.radial"] == pytest.approx(1 / math.sqrt(2 * 84 + 8))
    assert scales["network.two_body.mlp.weights.0"] == pytest.approx(1.6791767 / 8)
    assert scales["network.layers.0.env_embed.weights.0"] == pytest.approx(1 / 8)
    assert scales["head.mlp.weights.1"] == pytest.approx(1 / 8), "the readout is linear: no SiLU before it"
    assert scales["network.two_body.bessel.frequencies"] == 1.0


def test_without_a_number_of_types_the_elements_of_the_data_count():
    assert published_scales(small(None))["network.two_body.radial"] == pytest.approx(1 / math.sqrt(2 * 3 + 8))
    with pytest.raises(InputError, match=r"model\.n_types is 2, but the data have 3 elements"):
        published_scales(small(2))


def test_other_networks_have_no_published_scales():
    with pytest.raises(InputError, match="allegro"):
        published_scales(torch.nn.Linear(2, 2))
