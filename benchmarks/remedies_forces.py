"""Remedies for energies and forces, each a variant of one training, in equal processor time or equal steps.

    python benchmarks/remedies_forces.py TRAIN VAL OUT.jsonl --seconds 60 --json benchmarks/results/remedies_forces.json

TRAIN and VAL are structure files, by default of ``reann_co2_ni100``, whose preset gives network, loss and optimiser.
The loop is a plain one: batches in random order, a cosine over the budget, an average of the weights, no validation
on the way. A budget of seconds is processor time of one thread, so that other work on the machine counts little; with
``--steps`` all variants take as many steps. Runs already in OUT are not repeated. What is tried here is no option of
`equicat train`; docs/remedies.md says what came out.

- ``plain``: the preset.
- ``direct-first``: forces of a head of their own (``pair``) for half of the budget, then derivatives of the energy.
- ``taylor``: half of the structures shaken by 0.01 Å, labels E − F·d and F.
- ``trapezoid``: half of them shaken by 0.03 Å, where only E(x + d) = E(x) − ½ (F(x) + F(x + d))·d is asked for, with
  the label F(x) and the model's F(x + d): exact to the third order of d.
- ``dens``: half of the structures corrupted by 0.05 Å (arXiv 2403.09549): the network gets the forces of the structure
  as it was, and tells the noise and the energy. Forces enter V^ij,0 as vectors; the noise is read out pair by pair.
- ``A/B``: the network of nequip-allegro with a cutoff of A Å, and of B Å for pairs with an atom of the adsorbate.
- ``cutoff A``: the preset with a cutoff of A Å.
- ``screened A``: cutoff A Å, and an envelope of triplets: pair ij fades out where a third atom lies between i and j.
"""

import argparse
import copy
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from envelope import markdown, table, write
from torch import Tensor, nn

from equicat.data.batch import Batch
from equicat.data.structure import Structure
from equicat.data.training_data import training_data
from equicat.kernels.forms import cut, environment
from equicat.models.gradient import ComputeOptions
from equicat.models.heads import PairVectors
from equicat.models.potential import Potential
from equicat.networks.allegro import Geometry, NequipAllegroConfig, Piece
from equicat.networks.allegro_parts import PublishedAllegro
from equicat.networks.features import Features
from equicat.options.text import read_yaml
from equicat.tasks.tasks import Task, total_loss
from equicat.training.config import TrainConfig, from_mapping
from equicat.training.initial_model import new_model
from equicat.training.optimizers import make_optimizer, rate_factor, set_rates
from equicat.training.presets import find_configuration

TASK = Task(("energy", "forces"))
LABELS = ("energy", "forces")
SHARE = 0.5
"""Share of structures that are shaken or corrupted."""
SIGMA = {"taylor": 0.01, "trapezoid": 0.03, "dens": 0.05}
"""Å, standard deviation of the noise along each axis."""
BETWEEN = (0.1, 0.2)
"""(r_ik + r_kj) / r_ij − 1 of a third atom k: up to the first one the pair is gone, from the second one on untouched."""
PLAIN = ("plain", "direct-first", "taylor", "trapezoid", "dens")


@dataclass(frozen=True, eq=False)
class Training:
    """One training: its model, what else is trained, and the loss of a batch of structures."""

    config: TrainConfig
    model: Potential
    trained: nn.Module
    """Everything with weights: the model, or the model and what helps it."""
    loss: Callable[[Sequence[Structure], float], Tensor]
    """Of some structures, when a share of the run is over."""
    prune: Callable[[Batch], Batch] = lambda batch: batch
    """Drops pairs of atoms whose envelope is zero."""

    def batch(self, structures: Sequence[Structure], labels: Sequence[str] = LABELS) -> Batch:
        """The structures with the pairs that count."""
        return self.prune(Batch.from_structures(structures, self.model.cutoff, labels=labels))


# ---- variants --------------------------------------------------------------------------------------------------------


def training(variant: str, preset: dict[str, Any], train: Any, seed: int) -> Training:
    """The variant of that name with an untrained model."""
    values = copy.deepcopy(preset)
    values["run"]["seed"] = seed
    if variant.startswith(("cutoff", "screened")):
        values["model"]["cutoff"] = float(variant.split()[1])
    elif variant[0].isdecimal():
        values["model"] = paired(values["model"], variant, train.elements)
    if variant == "direct-first":
        values["force_head"] = "pair"
    config = from_mapping(values)
    model, config = new_model(config, TASK, train)
    assert isinstance(model, Potential)
    rng = np.random.default_rng(seed)
    if variant == "dens":
        return dens(config, model, rng)
    if variant.startswith("screened"):
        return screened(config, model)

    def loss(structures: Sequence[Structure], progress: float) -> Tensor:
        if variant == "taylor":
            structures = [taylor(s, rng) if rng.random() < SHARE else s for s in structures]
        if variant == "trapezoid":
            return with_trapezoid(made, structures, rng)
        if progress >= 0.5:
            model.direct_forces = None  # from here on forces are derivatives
        return of(made, made.batch(structures))

    made = Training(config, model, model, loss)
    if isinstance(model.config, NequipAllegroConfig):
        made = replace(made, prune=lambda batch: within_pair_cutoffs(model, batch))
    return made


def of(made: Training, batch: Batch) -> Tensor:
    """The loss of energies and forces."""
    terms = TASK.loss_terms(TASK.predict(made.model, batch), batch, made.model, made.config.loss)
    return total_loss(terms)


def noise(structure: Structure, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Displacements (Å) of free atoms."""
    return np.where(structure.fixed[:, None], 0.0, rng.normal(0, sigma, structure.positions.shape))


def taylor(structure: Structure, rng: np.random.Generator) -> Structure:
    """The structure shaken, with the energy to first order and forces unchanged."""
    d = noise(structure, SIGMA["taylor"], rng)
    return replace(
        structure, positions=structure.positions + d, energy=structure.energy - float((structure.forces * d).sum())
    )


def with_trapezoid(made: Training, structures: Sequence[Structure], rng: np.random.Generator) -> Tensor:
    """Energies and forces of some structures, and of the others shaken the energy by the trapezoidal rule."""
    clean, shaken, moves = [], [], []
    for structure in structures:
        if rng.random() >= SHARE:
            clean.append(structure)
            continue
        moves.append(noise(structure, SIGMA["trapezoid"], rng))
        shaken.append(replace(structure, positions=structure.positions + moves[-1]))
    loss = of(made, made.batch(clean)) if clean else torch.zeros(())
    if shaken:
        batch, d = made.batch(shaken), torch.from_numpy(np.concatenate(moves))
        found = made.model(batch)
        work = (0.5 * (batch.forces + found.forces).double() * d).sum(1)
        target = batch.energy.index_add(0, batch.system_idx, -work)
        error = (found.energy - target) / made.model.scale.double() / batch.n_atoms
        loss = loss + made.config.loss.energy_weight * error.abs().mean().to(loss)
    return loss


# ---- denoising with forces -------------------------------------------------------------------------------------------


class Denoiser(nn.Module):
    """Gives a published Allegro the forces of the uncorrupted structure, and reads the noise out of its pairs.

    V^ij,0 of degree 1 becomes w Y_1(r̂_ij) + √3 (w_i F_i + w_j F_j), w_i and w_j linear in x^ij,0, F in units of the
    model's scale.
    """

    def __init__(self, model: Potential):
        super().__init__()
        config = model.config
        self.weights = nn.Linear(config.n_features, 2 * config.tensor_channels, bias=False)
        self.head = PairVectors(config.n_features, 0, (32,), model.avg_num_neighbors)

    def forward(self, model: Potential, batch: Batch) -> tuple[Tensor, Tensor]:
        """Energies (eV) and noise (in units of its standard deviation) of corrupted structures."""
        network, species, index = model.network, model.species(batch), batch.edge_index
        edge_vec, forces = batch.edge_vec(), batch.forces / model.scale
        geometry, prepared = network.geometry(edge_vec, index, species), network.prepared()
        found = []
        segments = cut(index[0], len(species), network.floats_per_edge)
        for part, s in zip(geometry.split([s.n_edges for s in segments]), segments, strict=True):
            at_center, at_neighbor = (forces[index[k][s.edges]] for k in (0, 1))
            found.append(self.pairs(network, Piece(part, s, prepared), at_center, at_neighbor))
        features = Features(torch.cat(found), "edge")
        energies = model.head(features, index[0], len(species)) * model.factor(species)
        unit = nn.functional.normalize(edge_vec, dim=1)
        return model.system_energies(energies, species, batch), self.head(features, index[0], unit, len(species))

    def pairs(self, network: PublishedAllegro, piece: Piece, at_center: Tensor, at_neighbor: Tensor) -> Tensor:
        """x^ij of :meth:`PublishedAllegro.pair_features` with forces in V^ij,0."""
        latent, weights = network.embed(piece)
        tensors = network.first_tensors(weights, piece.geometry.harmonics)
        of_center, of_neighbor = self.weights(latent.scalar_features).chunk(2, dim=1)
        vectors = at_center[:, :, None] * of_center[:, None] + at_neighbor[:, :, None] * of_neighbor[:, None]
        tensors[1] = tensors[1] + math.sqrt(3) * vectors
        norm = network.environment_norm(piece.geometry.pair)
        for k in range(len(network.layers)):
            env = environment(latent.env_weights, piece.geometry.harmonics, piece.segments) * norm
            scalars, tensors = network.products(k, tensors, env, piece)
            latent = network.update(k, latent, scalars, piece)
        return network.features(latent)


def dens(config: TrainConfig, model: Potential, rng: np.random.Generator) -> Training:
    """Denoising of non-equilibrium structures beside energies and forces of the others."""
    denoiser = Denoiser(model)

    def loss(structures: Sequence[Structure], progress: float) -> Tensor:
        chosen = rng.random(len(structures)) < SHARE
        clean = [s for s, c in zip(structures, chosen, strict=True) if not c]
        total = of(made, made.batch(clean)) if clean else torch.zeros(())
        corrupted = [s for s, c in zip(structures, chosen, strict=True) if c]
        if corrupted:
            moves = [noise(s, SIGMA["dens"], rng) for s in corrupted]
            moved = [replace(s, positions=s.positions + d) for s, d in zip(corrupted, moves, strict=True)]
            batch = made.batch(moved)
            energy, found = denoiser(model, batch)
            wanted = torch.from_numpy(np.concatenate(moves)).to(found) / SIGMA["dens"]
            energy_error = (energy - batch.energy) / model.scale.double() / batch.n_atoms
            total = total + config.loss.energy_weight * energy_error.abs().mean().to(total)
            lengths = torch.sqrt((found - wanted).square().sum(1) + 1e-12)
            total = total + lengths[~batch.fixed].mean()
        return total

    made = Training(config, model, nn.ModuleList([model, denoiser]), loss)
    return made


# ---- cutoffs ---------------------------------------------------------------------------------------------------------


def paired(network: dict[str, Any], variant: str, elements: Sequence[int]) -> dict[str, Any]:
    """The network of nequip-allegro of like size: ``5/7`` has 7 Å for pairs with an atom that is no metal."""
    short, long = map(float, variant.split("/"))
    light = [z < 11 for z in elements]
    cutoffs = [long if a or b else short for a in light for b in light]
    return {
        "name": "nequip-allegro",
        "cutoff": max(short, long),
        "pair_cutoffs": cutoffs,
        "n_layers": network["n_layers"],
        "l_max": network["l_max"],
        "tensor_channels": network["tensor_channels"],
        "n_scalars": network["latent_mlp"][-1],
    }


def within_pair_cutoffs(model: Potential, batch: Batch) -> Batch:
    """The batch without pairs beyond their own cutoff."""
    species = model.species(batch)
    pair = species[batch.edge_index[0]] * len(model.elements) + species[batch.edge_index[1]]
    scaled = batch.edge_vec().norm(dim=1) * model.network.inverse_cutoff[pair]
    return with_edges(batch, scaled < 1)


def with_edges(batch: Batch, kept: Tensor) -> Batch:
    """The batch with some of its edges."""
    return replace(batch, edge_index=batch.edge_index[:, kept], edge_shift=batch.edge_shift[kept])


def triplets(center: Tensor) -> tuple[Tensor, Tensor]:
    """All ordered pairs of different edges of the same centre."""
    first = torch.searchsorted(center, center)
    count = torch.bincount(center)[center]
    one = torch.repeat_interleave(torch.arange(len(center)), count)
    start = torch.repeat_interleave(torch.cumsum(count, 0) - count, count)
    other = torch.arange(len(one)) - start + first[one]
    different = one != other
    return one[different], other[different]


def screening(edge_vec: Tensor, center: Tensor) -> Tensor:
    """Π_k of a smooth step in (r_ik + r_kj) / r_ij − 1 over the other neighbours k of i: 1 in the open, 0 in shadow."""
    one, other = triplets(center)
    r = edge_vec.norm(dim=1)
    near = (r[other] < r[one]).nonzero()[:, 0]
    one, other = one[near], other[near]
    detour = (r[other] + (edge_vec[one] - edge_vec[other]).norm(dim=1)) / r[one] - 1
    close = (detour < BETWEEN[1]).nonzero()[:, 0]
    x = ((detour[close] - BETWEEN[0]) / (BETWEEN[1] - BETWEEN[0])).clamp(min=0)
    step = x**3 * (10 + x * (6 * x - 15))
    return torch.ones_like(r).scatter_reduce(0, one[close], step, "prod")


def screened(config: TrainConfig, model: Potential) -> Training:
    """The envelope times the screening of pairs; those in shadow are dropped, and by operators the rest is computed."""
    network = model.network
    geometry = network.geometry

    def shadowed(edge_vec: Tensor, edge_index: Tensor, species: Tensor) -> Geometry:
        plain = geometry(edge_vec, edge_index, species)
        factor = screening(edge_vec, edge_index[0])[:, None]
        return replace(plain, envelope=plain.envelope * factor, radial=plain.radial * factor)

    network.geometry = shadowed
    model.pair_gradients = type(model.pair_gradients)(ComputeOptions(kernels=False))

    def prune(batch: Batch) -> Batch:
        with torch.no_grad():
            kept = screening(batch.edge_vec(), batch.edge_index[0]) > 0
        return with_edges(batch, kept)

    made = Training(config, model, model, lambda structures, progress: of(made, made.batch(structures)), prune)
    return made


# ---- the loop --------------------------------------------------------------------------------------------------------


def epochs(data: Sequence[Structure], batch_size: int, seed: int) -> Iterator[list[Structure]]:
    """Batches in random order without end."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(data))
        for start in range(0, len(data) - batch_size + 1, batch_size):
            yield [data[int(i)] for i in order[start : start + batch_size]]


def fit(made: Training, data: Sequence[Structure], seconds: float | None, steps: int | None) -> tuple[int, float]:
    """Train for a budget and leave the average of the weights in the model; steps done and processor time."""
    options = made.config.optimizer
    optimizer = make_optimizer(options, made.trained)
    weights = list(made.model.parameters())
    average = [p.detach().clone() for p in weights]
    start, done = time.process_time(), 0
    for structures in epochs(data, made.config.run.batch_size, made.config.run.seed):
        spent = time.process_time() - start
        progress = done / steps if steps else spent / (seconds or 1.0)
        if progress >= 1:
            break
        set_rates(optimizer, options, rate_factor(options, done, progress, []))
        optimizer.zero_grad()
        made.loss(structures, progress).backward()
        nn.utils.clip_grad_norm_(made.trained.parameters(), options.gradient_clip or math.inf)
        optimizer.step()
        done += 1
        decay = min(options.ema_decay or 0.0, done / (done + 9))
        torch._foreach_lerp_(average, [p.detach() for p in weights], 1 - decay)
    for p, mean in zip(weights, average, strict=True):
        p.data.copy_(mean)
    return done, time.process_time() - start


def errors(made: Training, data: Sequence[Structure]) -> dict[str, float]:
    """Mean absolute errors of energies (eV a system) and force components (eV/Å) of free atoms; edges per atom."""
    made.model.eval()
    energy, force, n_edges, n_atoms = [], [], 0, 0
    for start in range(0, len(data), 8):
        batch = made.batch([data[i] for i in range(start, min(start + 8, len(data)))])
        with torch.no_grad():
            found = made.model(batch)
        energy.append((found.energy - batch.energy).abs())
        force.append((found.forces - batch.forces)[~batch.fixed].abs().flatten())
        n_edges, n_atoms = n_edges + batch.n_edges, n_atoms + len(batch.numbers)
    return {
        "energy_mae": float(torch.cat(energy).mean()),
        "forces_mae": float(torch.cat(force).mean()),
        "pairs_an_atom": n_edges / n_atoms,
    }


def run_one(variant: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and judge one variant."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    preset = read_yaml(find_configuration(options.preset))
    preset["data"] |= {"train": [options.train], "val": [options.val]}
    train, val = training_data(from_mapping(preset).data, "s2ef", LABELS)
    made = training(variant, preset, train, seed)
    steps, seconds = fit(made, train, None if options.steps else options.seconds, options.steps)
    return {
        "variant": variant,
        "seed": seed,
        "budget": f"{options.steps} steps" if options.steps else f"{options.seconds:g} s",
        "steps": steps,
        "ms_a_step": 1000 * seconds / steps,
        **errors(made, val),
    }


def shown(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A table for each budget, a row a variant, means over seeds."""
    tables = {}
    for budget in dict.fromkeys(r["budget"] for r in results):
        rows = []
        for variant in dict.fromkeys(r["variant"] for r in results if r["budget"] == budget):
            mine = [r for r in results if (r["variant"], r["budget"]) == (variant, budget)]
            columns = [[r[name] for r in mine] for name in ("forces_mae", "energy_mae")]
            texts = [", ".join(f"{1000 * v:.1f}" for v in values) for values in columns]
            steps, ms, pairs = (np.mean([r[name] for r in mine]) for name in ("steps", "ms_a_step", "pairs_an_atom"))
            rows.append([variant, *texts, f"{steps:.0f}", f"{ms:.0f}", f"{pairs:.0f}"])
        head = ["", "force MAE [meV/Å]", "energy MAE [meV]", "steps", "ms a step", "pairs an atom"]
        tables[budget] = table(head, rows)
    return tables


def main() -> None:
    """Train what is not in OUT yet, one process each, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="structure file to train on")
    parser.add_argument("val", help="structure file to judge by")
    parser.add_argument("out", type=Path, help="JSON lines")
    parser.add_argument("--preset", default="reann_co2_ni100", help="preset of energies and forces")
    parser.add_argument("--seconds", type=float, default=60, help="processor time of each training")
    parser.add_argument("--steps", type=int, help="steps of each training instead")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--variants", nargs="+", default=list(PLAIN))
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.one[0], int(options.one[1]), options)))
        return
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    budget = f"{options.steps} steps" if options.steps else f"{options.seconds:g} s"
    for seed in options.seeds:
        for variant in options.variants:
            if any((r["variant"], r["seed"], r["budget"]) == (variant, seed, budget) for r in done):
                continue
            command = [sys.executable, *sys.argv, "--one", variant, str(seed)]
            line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
            done.append(json.loads(line))
            with options.out.open("a") as file:
                file.write(line + "\n")
    tables = shown(done)
    for title, found in tables.items():
        print(f"{title}\n\n{markdown(found)}\n")
    if options.json:
        write(options.json, "Remedies for energies and forces", tables)


if __name__ == "__main__":
    main()
