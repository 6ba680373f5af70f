"""The variants that remedies_forces.py trains: their models and losses."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from equicat.data.batch import Batch
from equicat.data.datasets import AnyDataset, MemoryDataset
from equicat.data.structure import Structure
from equicat.kernels.forms import cut, environment
from equicat.models.gradient import ComputeOptions, PairGradients
from equicat.models.heads import PairVectors
from equicat.models.potential import Potential
from equicat.networks.allegro import Geometry, Piece
from equicat.networks.allegro_parts import PublishedAllegro
from equicat.networks.features import Features
from equicat.tasks.tasks import Task, total_loss
from equicat.training.config import TrainConfig, from_mapping
from equicat.training.initial_model import new_model

TASK = Task(("energy", "forces"))
LABELS = ("energy", "forces")
SHARE = 0.5
"""Share of structures that are shaken or corrupted."""
SIGMA = {"taylor": 0.01, "trapezoid": 0.03, "dens": 0.05}
"""Å, standard deviation of the noise along each axis."""
BETWEEN = (0.1, 0.2)
"""(r_ik + r_kj) / r_ij − 1 of a third atom k: up to the first one pair ij is gone, from the second on untouched."""


@dataclass(frozen=True, eq=False)
class Training:
    """One training: its model, what else is trained, and the loss."""

    config: TrainConfig
    model: Potential
    trained: nn.Module
    """Everything with weights: the model, or the model and what helps it."""
    loss: Callable[["Training", Sequence[Structure], float], Tensor] | None = None
    """The loss of some structures when a share of the run is over; None for the plain one."""
    prune: Callable[[Batch], Batch] | None = None
    """Drops pairs of atoms whose envelope is zero."""
    kinds: Callable[[Structure], Structure] | None = None
    """Tells elements apart by more than their number."""

    def batch(self, structures: Sequence[Structure]) -> Batch:
        """The structures with the pairs that count."""
        told_apart = structures if self.kinds is None else list(map(self.kinds, structures))
        batch = Batch.from_structures(told_apart, self.model.cutoff, labels=LABELS)
        return batch if self.prune is None else self.prune(batch)


def neighbors(made: Training, structures: Sequence[Structure]) -> float:
    """Pairs of an atom on average."""
    batch = made.batch(structures)
    return batch.n_edges / len(batch.numbers)


# ---- variants --------------------------------------------------------------------------------------------------------


def training(variant: str, preset: dict[str, Any], train: AnyDataset, seed: int) -> Training:
    """The variant of that name with an untrained model."""
    values, tags, kinds = copy.deepcopy(preset), None, None
    values["run"]["seed"] = seed
    if variant.endswith(tuple(Tags.PAIRS)):
        tags = Tags.of(train)
        values["model"], kinds = tags.network(values["model"], variant), tags.told_apart
        train = MemoryDataset(map(kinds, train), train.info)
    if variant.startswith(("cutoff", "screened")):
        values["model"]["cutoff"] = float(variant.split()[1])
    if variant == "direct-first":
        values["force_head"] = "pair"
    made = built(values, train, variant)
    if made.prune is not None:  # sums over neighbours are normalised by those that are left
        values["model"]["avg_num_neighbors"] = neighbors(made, [train[i] for i in range(0, len(train), 20)])
        made = built(values, train, variant)
    return replace(made, kinds=kinds)


def built(values: dict[str, Any], train: AnyDataset, variant: str) -> Training:
    """The training of a configuration."""
    config = from_mapping(values)
    model, config = new_model(config, TASK, train)
    assert isinstance(model, Potential)
    rng = np.random.default_rng(config.run.seed)
    if variant == "direct-first":
        return Training(config, model, model, direct_first)
    if variant == "dens":
        denoiser = Denoiser(model)
        return Training(config, model, nn.ModuleList([model, denoiser]), partial(with_noise, denoiser, rng))
    if variant == "taylor":
        return Training(config, model, model, partial(with_taylor, rng))
    if variant == "trapezoid":
        return Training(config, model, model, partial(with_trapezoid, rng))
    if variant.startswith("screened"):
        screen(model)
        return Training(config, model, model, prune=lit)
    if variant.endswith(tuple(Tags.PAIRS)):
        return Training(config, model, model, prune=partial(within_pair_cutoffs, model))
    return Training(config, model, model)


def plain(made: Training, structures: Sequence[Structure], progress: float) -> Tensor:
    """The loss of energies and forces."""
    batch = made.batch(structures)
    return total_loss(TASK.loss_terms(made.model(batch), batch, made.model, made.config.loss))


def direct_first(made: Training, structures: Sequence[Structure], progress: float) -> Tensor:
    """The loss with direct forces in the first half, and with derivatives of the energy from then on."""
    if progress >= 0.5:
        made.model.direct_forces = None
    return plain(made, structures, progress)


def noise(structure: Structure, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Displacements (Å) of free atoms."""
    return np.where(structure.fixed[:, None], 0.0, rng.normal(0, sigma, structure.positions.shape))


def moved(structures: Sequence[Structure], moves: Sequence[np.ndarray]) -> list[Structure]:
    """The structures elsewhere, with the labels of where they were."""
    return [replace(s, positions=s.positions + d) for s, d in zip(structures, moves, strict=True)]


def split(structures: Sequence[Structure], rng: np.random.Generator) -> tuple[list[Structure], list[Structure]]:
    """Structures that stay as they are, and those to be moved."""
    chosen = rng.random(len(structures)) < SHARE
    return tuple([s for s, c in zip(structures, chosen, strict=True) if c == wanted] for wanted in (False, True))


def with_taylor(rng: np.random.Generator, made: Training, structures: Sequence[Structure], progress: float) -> Tensor:
    """The loss where some structures are shaken, their energy known to first order and their forces unchanged."""
    still, shaken = split(structures, rng)
    moves = [noise(s, SIGMA["taylor"], rng) for s in shaken]
    labelled = [
        replace(s, energy=s.energy - float((s.forces * d).sum()))
        for s, d in zip(moved(shaken, moves), moves, strict=True)
    ]
    return plain(made, [*still, *labelled], progress)


def partly_shaken(
    rng: np.random.Generator, made: Training, structures: Sequence[Structure], progress: float, sigma: float
) -> tuple[Tensor, Batch | None, Tensor]:
    """The loss of the structures that stay as they are, the others shaken (None if there are none), and their moves."""
    still, shaken = split(structures, rng)
    loss = plain(made, still, progress) if still else torch.zeros(())
    moves = [noise(s, sigma, rng) for s in shaken]
    if not shaken:
        return loss, None, torch.zeros(0, 3)
    return loss, made.batch(moved(shaken, moves)), torch.from_numpy(np.concatenate(moves))


def with_trapezoid(
    rng: np.random.Generator, made: Training, structures: Sequence[Structure], progress: float
) -> Tensor:
    """The loss of some structures, and of the others shaken the error of the energy by the trapezoidal rule."""
    loss, batch, d = partly_shaken(rng, made, structures, progress, SIGMA["trapezoid"])
    if batch is None:
        return loss
    found = made.model(batch)
    work = (0.5 * (batch.forces + found.forces).double() * d).sum(1)
    return loss + energy_loss(made, found.energy, batch.energy.index_add(0, batch.system_idx, -work), batch)


def energy_loss(made: Training, energy: Tensor, target: Tensor, batch: Batch) -> Tensor:
    """Mean absolute error per atom, in units of the model's scale, with the weight of energies."""
    error = (energy - target) / made.model.scale.double() / batch.n_atoms
    return (made.config.loss.energy_weight * error.abs().mean()).float()


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


def with_noise(
    denoiser: Denoiser, rng: np.random.Generator, made: Training, structures: Sequence[Structure], progress: float
) -> Tensor:
    """The loss of some structures, and of the others corrupted the errors of energy and noise."""
    loss, batch, d = partly_shaken(rng, made, structures, progress, SIGMA["dens"])
    if batch is None:
        return loss
    energy, found = denoiser(made.model, batch)
    wanted = d.to(found) / SIGMA["dens"]
    lengths = torch.sqrt((found - wanted).square().sum(1) + 1e-12)
    return loss + energy_loss(made, energy, batch.energy, batch) + lengths[~batch.fixed].mean()


# ---- cutoffs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tags:
    """A stand-in element for each element and tag: cutoffs of pairs of elements are then those of pairs of tags."""

    kinds: tuple[tuple[int, int], ...]
    """Atomic number and tag; the position plus one is the stand-in's atomic number."""

    PAIRS: ClassVar[dict[str, Callable[[int, int], bool]]] = {
        "adsorbate": lambda a, b: a == 2 or b == 2,
        "surface": lambda a, b: a > 0 and b > 0,
    }
    """The pairs of tags with the longer cutoff."""

    @classmethod
    def of(cls, data: Iterable[Structure]) -> "Tags":
        """The elements and tags that occur."""
        return cls(
            tuple(sorted({kind for s in data for kind in zip(s.numbers.tolist(), s.tags.tolist(), strict=True)}))
        )

    def told_apart(self, structure: Structure) -> Structure:
        """The structure of stand-ins."""
        kinds = zip(structure.numbers.tolist(), structure.tags.tolist(), strict=True)
        return replace(structure, numbers=np.array([self.kinds.index(kind) + 1 for kind in kinds]))

    def network(self, published: dict[str, Any], variant: str) -> dict[str, Any]:
        """The network of nequip-allegro of like size, with the cutoffs of a variant such as ``4.5/6 surface``."""
        cutoffs, which = variant.split()
        short, long = map(float, cutoffs.split("/"))
        tags = [tag for _, tag in self.kinds]
        return {
            "name": "nequip-allegro",
            "cutoff": max(short, long),
            "pair_cutoffs": [long if self.PAIRS[which](a, b) else short for a in tags for b in tags],
            "n_layers": published["n_layers"],
            "l_max": published["l_max"],
            "tensor_channels": published["tensor_channels"],
            "n_scalars": published["latent_mlp"][-1],
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


def screen(model: Potential) -> None:
    """Multiply the envelope of a model's network by the screening of pairs; operators then compute it."""
    geometry = model.network.geometry

    def screened(edge_vec: Tensor, edge_index: Tensor, species: Tensor) -> Geometry:
        plain = geometry(edge_vec, edge_index, species)
        factor = screening(edge_vec, edge_index[0])[:, None]
        return replace(plain, envelope=plain.envelope * factor, radial=plain.radial * factor)

    model.network.geometry = screened
    model.pair_gradients = PairGradients(ComputeOptions(kernels=False))


def lit(batch: Batch) -> Batch:
    """The batch without pairs in shadow.

    Their atoms then cast none, which changes a few factors (docs/remedies.md): enough to compare errors, not to ship.
    """
    with torch.no_grad():
        return with_edges(batch, screening(batch.edge_vec(), batch.edge_index[0]) > 0)
