"""Noisy nodes: training on corrupted initial structures."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from equicat.data.datasets import AnyDataset
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.options.values import Checked, NonNegativeNumber, Share


@dataclass(frozen=True)
class NoiseConfig(Checked, section="noise"):
    """Noisy nodes (is2re, is2rs): train on corrupted initial structures, displacements corrected for it.

    Godwin et al., ICLR 2022 (arXiv 2106.07971). Only free atoms move; validation sees the data as they are.
    """

    share: Share = 0.0
    """Share of training structures that are corrupted; 0 turns it off."""
    interpolate: bool = True
    """Start anywhere on the straight line from the initial to the relaxed structure."""
    sigma: NonNegativeNumber = 0.0
    """Standard deviation (Å) of Gaussian noise on top, along each axis."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma and not self.share:
            raise InputError(f"noise.sigma is {self.sigma}, but noise.share is 0: no structure is corrupted")


class Corrupted(Sequence[Structure]):
    """Noisy nodes: initial structures moved towards the relaxed ones and shaken, anew each time they are read.

    The relaxed structure stays, so the displacement still to go is corrected by itself.
    """

    def __init__(self, dataset: AnyDataset, config: NoiseConfig):
        self.dataset, self.config = dataset, config

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Structure:  # type: ignore[override]
        # PyTorch's generator is seeded by run.seed, and differently in each worker.
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        # Energy, forces and stress belong to the positions that are left.
        bare = dataclasses.replace(self.dataset[i], energy=None, forces=None, stress=None)
        return corrupted(bare, self.config, rng)


def corrupted(structure: Structure, config: NoiseConfig, rng: np.random.Generator) -> Structure:
    """The structure, or with probability ``config.share`` one with its free atoms elsewhere; see Godwin et al. 2022."""
    if rng.random() >= config.share:
        return structure
    moved = structure.positions + config.sigma * rng.normal(size=structure.positions.shape)
    if config.interpolate:
        moved += rng.random() * structure.displacements
    relaxed = structure.positions + structure.displacements
    assert structure.fixed is not None
    positions = np.where(structure.fixed[:, None], structure.positions, moved)
    return dataclasses.replace(structure, positions=positions, relaxed_positions=relaxed)
