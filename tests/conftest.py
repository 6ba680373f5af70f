"""Data and runs that several test modules share; made once, small."""

import dataclasses
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    # Kernels are then tested in Triton's interpreter. Triton looks when it is first imported, and others import it too.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import checking

from equicat import Structure
from equicat.data.info import DatasetInfo
from equicat.data.store import write_store
from equicat.networks.allegro import AllegroConfig, NequipAllegroConfig
from equicat.testing import example_structures
from equicat.training.config import from_mapping
from equicat.training.train import train

torch.set_num_threads(1)

SMALL = AllegroConfig(
    cutoff=4.0,
    n_layers=2,
    l_max=2,
    tensor_channels=4,
    two_body_mlp=(8, 16),
    latent_mlp=(16,),
    avg_num_neighbors=10.0,
)
SMALL_NEQUIP = NequipAllegroConfig(
    cutoff=4.0,
    n_scalars=8,
    tensor_channels=4,
    two_body_hidden=(10,),
    latent_hidden=(9,),
    n_features=7,
    avg_num_neighbors=10.0,
)
TINY_MODEL = {
    "cutoff": 4.0,
    "n_layers": 2,
    "l_max": 1,
    "tensor_channels": 4,
    "two_body_mlp": [16, 16],
    "latent_mlp": [16],
}


def pytest_configure() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
        import interpreter

        interpreter.make_quick()
        interpreter.refuse_short_products()


def pytest_runtest_setup() -> None:
    checking.begin()


def command_names(commands: dict, prefix: str = "") -> Iterator[str]:
    """The words of every command of the command line, such as ``data emt``."""
    for name, command in commands.items():
        yield from command_names(command, f"{prefix}{name} ") if isinstance(command, dict) else [f"{prefix}{name}"]


def labelled(seed: int) -> Structure:
    """A slab-like system with the energy and forces of a harmonic pair potential; something a model can learn."""
    slab = example_structures((8, 29), seed)[1]
    delta = slab.positions[:, None] - slab.positions[None]
    r = np.linalg.norm(delta, axis=2) + np.eye(len(slab)) * 2.5
    near = r < 3.5
    energy = 0.25 * np.sum(near * (r - 2.5) ** 2) - 1.5 * np.sum(slab.numbers == 8)
    forces = -np.sum((near * (r - 2.5) / r)[:, :, None] * delta, axis=1)
    return Structure(
        **{n: getattr(slab, n) for n in ("numbers", "positions", "cell", "pbc", "fixed", "tags")},
        energy=float(energy),
        forces=forces,
        sid=f"s{seed}",
        fid=0,
    )


def relaxing(seed: int) -> Structure:
    """The system of ``labelled`` as the start of a relaxation along its forces, one atom wrapped to another cell."""
    start = labelled(seed)
    moved = np.where(start.fixed[:, None], 0.0, 0.1 * np.clip(start.forces, -5, 5))
    wrapped = np.zeros((len(start), 3))
    wrapped[-1] = start.cell[0] - start.cell[1]
    return dataclasses.replace(
        start,
        relaxed_energy=start.energy - float((moved * start.forces).sum()) / 2,
        relaxed_positions=start.positions + moved + wrapped,
        fid=None,
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A data set directory with 16 training and two times 6 validation systems."""
    root = tmp_path_factory.mktemp("data")
    info = DatasetInfo("adsorption", {"H2": -6.7})
    for split, seeds in {"train": range(16), "val_id": range(16, 22), "val_ood_ads": range(22, 28)}.items():
        write_store(root / "s2ef" / split, [labelled(s) for s in seeds], info)
        write_store(root / "is2re" / split, [relaxing(s) for s in seeds], info)
    return root


def damaged(structure: Structure, **labels) -> Structure:
    """A structure whose labels nobody checks, as in a store that was damaged or written by another program."""
    return Structure.unchecked(**dataclasses.asdict(structure) | labels)


def configuration(data: Path, out: Path, data_options: dict | None = None, **parts: dict) -> dict:
    """A training configuration of seconds."""
    values = {
        "data": {"train": [str(data)], "val": [str(data)]} | (data_options or {}),
        "model": dict(TINY_MODEL),
        "output_mlp": [8],
        "optimizer": {"lr": 0.01},
        "run": {"out": str(out), "batch_size": 4, "max_epochs": 3, "progress": False, "accelerator": "cpu"},
    }
    for part, options in parts.items():
        values[part] = values.get(part, {}) | options
    return values


@pytest.fixture(scope="session")
def run(data, tmp_path_factory) -> Path:
    """A finished run of a tiny model; treat as read-only."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    return train(from_mapping(configuration(data, out))).run
