"""Forces that come from beyond the cutoff, with and without latent charges; and what latent charges cost.

    python benchmarks/long_range.py OUT --json benchmarks/results/long_range.json

The data are made here: clusters of charged dimers, whose reference is Coulomb's law between points of ±½ e, a harmonic
bond in each dimer and a soft repulsion. Every dimer sees itself within the cutoff of 4 Å and few others, so that a
short-range model cannot know what moves it. All trainings take the same number of steps; one thread.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from envelope import markdown, table, write

from equicat.apply.evaluate import evaluate
from equicat.data.batch import Batch
from equicat.data.info import DatasetInfo
from equicat.data.store import write_store
from equicat.data.structure import Structure
from equicat.models import saved
from equicat.models.electrostatics import COULOMB, LongRange
from equicat.models.gradient import ComputeOptions
from equicat.models.potential import Potential
from equicat.models.repulsion import EnergyTerms
from equicat.networks.catalogue import NetworkConfig
from equicat.options.text import read_yaml
from equicat.training.config import from_mapping
from equicat.training.presets import find_configuration
from equicat.training.train import train

N_DIMERS, RADIUS, NEAREST = 8, 9.0, 4.5
"""Dimers of a cluster; radius (Å) of the ball that their middles lie in; smallest distance (Å) of two of these."""
NUMBERS = (11, 17)
"""Elements of positive and of negative dimers."""
BOND, STIFFNESS, SPREAD = 1.2, 20.0, 0.05
"""Length (Å) of a bond, its force constant (eV/Å²), and the standard deviation of lengths in the data (Å)."""
REPULSION, RANGE = 100.0, 0.35
"""eV and Å; the repulsion of atoms of two dimers is the first times exp(−r over the second)."""
N_TRAINING, N_VALIDATION = 400, 100
SPLITS = {"train": N_TRAINING, "val_id": N_VALIDATION}
ROWS: dict[str, dict[str, Any]] = {
    "4 Å": {"cutoff": 4.0},
    "8 Å": {"cutoff": 8.0},
    "4 Å, latent charges": {"cutoff": 4.0, "smearing": 1.0},
}
BATCH = 8
WAYS = ("kernel", "operators", "latent charges")
"""How forces are computed: by the C++ kernel, by PyTorch's operators, and by these with latent charges."""


COMMAND = ("python benchmarks/long_range.py OUT --json benchmarks/results/long_range.json",)


def cluster(random: np.random.Generator) -> Structure:
    """A cluster of dimers in random places and directions, with its energy and forces."""
    middles = np.empty((0, 3))
    while len(middles) < N_DIMERS:
        middle = random.uniform(-RADIUS, RADIUS, 3)
        if np.linalg.norm(middle) < RADIUS and np.all(np.linalg.norm(middles - middle, axis=1) > NEAREST):
            middles = np.vstack([middles, middle])
    axes = random.normal(size=(N_DIMERS, 3))
    axes *= 0.5 * random.normal(BOND, SPREAD, (N_DIMERS, 1)) / np.linalg.norm(axes, axis=1, keepdims=True)
    positions = np.stack([middles - axes, middles + axes], axis=1).reshape(-1, 3)
    signs = np.repeat(random.permutation(np.resize([1, -1], N_DIMERS)), 2)
    energy, forces = reference(positions, 0.5 * signs)
    return Structure(np.where(signs > 0, *NUMBERS), positions, energy=energy, forces=forces)


def reference(positions: np.ndarray, charges: np.ndarray) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces (eV/Å)."""
    r, q = torch.tensor(positions, requires_grad=True), torch.tensor(charges)
    first, second = torch.triu_indices(len(r), len(r), 1)
    length = torch.linalg.vector_norm(r[first] - r[second], dim=1)
    bonded = first // 2 == second // 2
    others = REPULSION * torch.exp(-length[~bonded] / RANGE)
    energy = (COULOMB * q[first] * q[second] / length).sum() + others.sum()
    energy = energy + 0.5 * STIFFNESS * (length[bonded] - BOND).square().sum()
    (gradient,) = torch.autograd.grad(energy, r)
    return float(energy.detach()), -gradient.numpy()


def configuration(row: str, data: Path, out: Path, seed: int, steps: int) -> dict[str, Any]:
    """The configuration of a row: the preset ``small`` with another cutoff, fewer degrees and perhaps charges."""
    small = read_yaml(find_configuration("small"))
    smearing = ROWS[row].get("smearing")
    run = {"out": str(out), "seed": seed, "max_steps": steps, "max_epochs": 100_000, "max_minutes": None}
    return small | {
        "data": {"train": [str(data / "train")], "val": [str(data / "val_id")]},
        "model": small["model"] | {"cutoff": ROWS[row]["cutoff"], "l_max": 1, "tensor_channels": 8},
        "long_range": {"smearing": smearing},
        "run": run | {"batch_size": BATCH, "val_every": 100_000, "progress": False, "accelerator": "cpu"},
    }


def learned_charges(potential: Potential, structures: list[Structure]) -> np.ndarray:
    """Latent charge of every atom (e) times the sign of its reference charge, up to a common sign."""
    assert potential.long_range is not None
    batch = Batch.from_structures(structures, potential.cutoff, dtype=potential.dtype)
    species = potential.species(batch)
    with torch.no_grad():
        features = potential.network(batch.edge_vec(), batch.edge_index, species)
        charges = potential.long_range.head(features, batch.edge_index[0], len(species))
    found = torch.where(species == 0, charges, -charges).double().numpy()
    return found * np.sign(found.mean())


def trained_row(row: str, options: argparse.Namespace) -> list[Any]:
    """Train and evaluate one model."""
    out = Path(options.out) / row.replace(" ", "_").replace(",", "")
    start = time.perf_counter()
    train(from_mapping(configuration(row, options.out / "data", out, options.seed, options.steps)))
    seconds = time.perf_counter() - start
    (split,) = evaluate(out, options.out / "data" / "val_id", progress=False, outside_training="ignore")[
        "splits"
    ].values()
    found, zero = split["rows"]["allegro"], split["rows"]["mean energy, F = 0"]
    potential, charges = saved.load_potential(out), ""
    if potential.long_range is not None:
        random = np.random.default_rng(2)
        values = learned_charges(potential, [cluster(random) for _ in range(20)])
        charges = f"{values.mean():.3f} ± {values.std():.3f}"
    errors = [f"{found['energy_mae']:.3f}", f"{found['forces_mae']:.4f}", f"{zero['forces_mae']:.4f}"]
    return [row, *errors, charges, f"{seconds:.0f}"]


# ---- cost ------------------------------------------------------------------------------------------------------------


def examples() -> dict[str, Atoms]:
    """Systems of the three kinds."""
    slab, crystal = fcc111("Cu", (4, 4, 3), vacuum=8), bulk("Cu", cubic=True) * (3, 3, 3)
    slab.pbc = [True, True, False]
    return {"molecule": molecule("C6H6"), "slab": slab, "crystal": crystal}


def seconds_of(function: Callable[[], object], repeats: int) -> float:
    """The shortest of some calls, after one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def infer(potential: Potential, batch: Batch) -> None:
    """Compute energies and forces."""
    with torch.no_grad():
        potential(batch)


def train_on(potential: Potential, batch: Batch) -> None:
    """Compute the gradient of a loss of energies and forces."""
    out = potential(batch)
    assert out.forces is not None
    (out.energy.sum() + out.forces.square().sum()).backward()


def cost_row(name: str, atoms: Atoms, config: NetworkConfig, repeats: int) -> list[Any]:
    """Milliseconds of an inference of forces and of a training step: kernel, operators, and these with charges."""
    rattled = atoms.copy()
    rattled.rattle(0.05, seed=0)
    structure = Structure.from_ase(rattled)
    elements, times = tuple(sorted(set(structure.numbers.tolist()))), []
    batch = Batch.from_structures([structure], config.cutoff)
    for smearing, kernels in ((None, True), (None, False), (1.0, False)):
        terms = EnergyTerms(long_range=LongRange(smearing))
        potential = Potential(config, elements, (32,), terms=terms, compute=ComputeOptions(kernels=kernels))
        inference = seconds_of(partial(infer, potential.eval(), batch), repeats)
        times.append((inference, seconds_of(partial(train_on, potential.train(), batch), repeats)))
    shown = [[f"{1e3 * seconds:.1f}" for seconds in column] for column in zip(*times, strict=True)]
    return [name, len(structure), batch.n_edges, *shown[0], *shown[1]]


def main() -> None:
    """Two tables: errors, and times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for data and runs")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not (options.out / "data").exists():
        random = np.random.default_rng(1)
        for split, n in SPLITS.items():
            write_store(options.out / "data" / split, [cluster(random) for _ in range(n)], DatasetInfo())
    errors = table(
        ["cutoff", "energy MAE [eV]", "force MAE [eV/Å]", "F = 0 [eV/Å]", "latent charge [e]", "seconds"],
        [trained_row(row, options) for row in ROWS],
    )
    small = from_mapping(read_yaml(find_configuration("small"))).model
    config = type(small)(**vars(small) | {"avg_num_neighbors": 40.0})
    cost = table(
        ["", "atoms", "pairs", *(f"{what}, {how}" for what in ("forces", "training step") for how in WAYS)],
        [cost_row(name, atoms, config, options.repeats) for name, atoms in examples().items()],
    )
    results = {
        f"Clusters of {N_DIMERS} charged dimers, {options.steps} steps of {BATCH} of {N_TRAINING} clusters": errors,
        "Milliseconds of the network of `small`, 5 Å, one thread": cost,
    }
    print("\n\n".join(markdown(shown) for shown in results.values()))
    if options.json:
        notes = [
            f"{N_VALIDATION} clusters of {2 * N_DIMERS} atoms to validate on, seed {options.seed}; the reference "
            "charges are ±0.5 e. A training step is one of a batch of one system."
        ]
        write(options.json, "Forces from beyond the cutoff: latent charges", results, command=COMMAND, notes=notes)


if __name__ == "__main__":
    main()
