"""Every architecture by name: its hyperparameters and how to build it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from equicat.errors import InputError, nearest
from equicat.kernels.cpu.call import Kernel
from equicat.networks import allegro_cpu, own
from equicat.networks.allegro import AllegroConfig, NequipAllegroConfig
from equicat.networks.allegro_parts import NequipAllegro, PublishedAllegro
from equicat.networks.baselines.cgcnn import CGCNN, CGCNNConfig
from equicat.networks.baselines.dimenet import DimeNet, DimeNetConfig, DimeNetPlusPlus, DimeNetPlusPlusConfig
from equicat.networks.baselines.gemnet import GemNet, GemNetConfig, Graph, fit_scales
from equicat.networks.baselines.nequip import NequIP, NequIPConfig
from equicat.networks.baselines.schnet import SchNet, SchNetConfig

NetworkConfig = (
    AllegroConfig
    | CGCNNConfig
    | DimeNetConfig
    | DimeNetPlusPlusConfig
    | GemNetConfig
    | NequIPConfig
    | NequipAllegroConfig
    | SchNetConfig
    | own.OwnConfig
)


@dataclass(frozen=True)
class Architecture:
    """A network: the dataclass of its hyperparameters, and a function of them, the elements, and whether a head needs
    vectors."""

    config: type
    build: Callable[..., nn.Module]
    strictly_local: bool = False
    """Whether a centre's features depend on its own edges alone, and on its neighbours' species: no message passing."""
    prepare: Callable[[Any, Iterable[Graph]], Any] | None = None
    """Fits constants of an untrained network to a few batches of the training data."""
    kernel: Kernel | None = None
    """Computes energies of centres and their gradient by pair vectors in C++, in place of the network and autograd."""


NETWORKS = {
    "allegro": Architecture(
        AllegroConfig,
        lambda c, elements, vectors: PublishedAllegro(c, len(elements), vectors),
        strictly_local=True,
        kernel=allegro_cpu.PUBLISHED,
    ),
    "cgcnn": Architecture(CGCNNConfig, lambda c, elements, vectors: CGCNN(c, len(elements), elements)),
    "dimenet": Architecture(DimeNetConfig, lambda c, elements, vectors: DimeNet(c, len(elements))),
    "dimenet++": Architecture(DimeNetPlusPlusConfig, lambda c, elements, vectors: DimeNetPlusPlus(c, len(elements))),
    "gemnet": Architecture(
        GemNetConfig, lambda c, elements, vectors: GemNet(c, len(elements), vectors), prepare=fit_scales
    ),
    "nequip": Architecture(NequIPConfig, lambda c, elements, vectors: NequIP(c, len(elements), vectors)),
    "nequip-allegro": Architecture(
        NequipAllegroConfig,
        lambda c, elements, vectors: NequipAllegro(c, len(elements), vectors),
        strictly_local=True,
        kernel=allegro_cpu.NEQUIP,
    ),
    "schnet": Architecture(SchNetConfig, lambda c, elements, vectors: SchNet(c, len(elements))),
}


def architecture(name: str) -> Architecture:
    """The architecture of that name; one with a colon is found on Python's path (:mod:`equicat.networks.own`).

    Raises:
        InputError: if there is none; names the nearest.
    """
    if ":" in name:
        network = own.find_network(name)
        return Architecture(
            network.config_class, lambda c, elements, vectors: own.build(c, elements), network.strictly_local
        )
    if name not in NETWORKS:
        raise InputError(f"model.name: no network {name!r}{nearest(name, NETWORKS)}; there are {', '.join(NETWORKS)}")
    return NETWORKS[name]


def avg_num_neighbors(config: NetworkConfig) -> float | None:
    """The average number of neighbours that normalises sums: 1 for networks without, None if not yet known."""
    if "avg_num_neighbors" not in {f.name for f in fields(config)}:
        return 1.0
    return config.avg_num_neighbors  # type: ignore[union-attr]


def with_neighbors(config: NetworkConfig, average: float) -> NetworkConfig:
    """The configuration with the average number of neighbours filled in where it was left to the data."""
    if avg_num_neighbors(config) is not None:
        return config
    return replace(config, avg_num_neighbors=average)  # type: ignore[arg-type]
