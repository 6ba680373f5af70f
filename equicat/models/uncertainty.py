"""How unlike the training data each atom is to the network: an extrapolation grade, without an ensemble.

The features that a network ends with, summed over the neighbours of an atom, say what the model knows of its
surroundings. Of each element those of the training data are described by a mean, principal directions and a few
centres; the grade of an atom is its distance from the nearest centre in units of the spread along each direction, over
the distance that 99 % of the training atoms keep. Below 1 an atom is like those of the training; the further above,
the more the model extrapolates. Distances in latent features rank errors as ensembles do, at the cost of one
(Zhu et al., J. Chem. Phys. 158, 164111 (2023), for NequIP and Gaussian mixtures; GRACE's γ has the same reading).
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from jaxtyping import Float64, Int
from numpy import ndarray
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor

from equicat.data.batch import Batch
from equicat.data.batches import batches
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.files import replacing_file
from equicat.models.domain import Action
from equicat.models.gradient import pieces, whole
from equicat.models.heads import AtomSum
from equicat.networks.catalogue import NetworkConfig, architecture
from equicat.run_directory import GRADE

DIRECTIONS = 24
"""Principal directions of an element's features that are looked at."""
CENTERS = 8
"""Centres of an element's features."""
ATOMS_PER_CENTER = 50
"""An element with fewer atoms has fewer centres."""
SHARE_WITHIN = 0.99
"""Share of the training atoms of each element whose grade is below 1."""
PRIOR_ATOMS = 50
"""The spread of a rare element is mixed with that of all elements, which counts as so many atoms."""
SMALLEST_SPREAD = 1e-3
"""Directions with less than this share of the largest standard deviation count as if they had it."""
MAX_ATOMS = 20_000
"""Atoms of an element that are looked at."""
ROUNDS = 20
"""Rounds of the search for centres (Lloyd's algorithm)."""


class Graded(ABC):
    """The parts of a model that grades need.

    Not a protocol: from Python 3.12 on these do not see the submodules and buffers of a module.
    """

    config: NetworkConfig
    elements: tuple[int, ...]
    network: Any
    avg_num_neighbors: float
    grade: "Grade | None"
    scale: Tensor

    @property
    @abstractmethod
    def cutoff(self) -> float:
        """Å."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Type of the network's numbers."""

    @abstractmethod
    def species(self, batch: Batch) -> Int[Tensor, "n_atoms"]:
        """Number of each atom's element."""


def atom_features(model: Graded, batch: Batch) -> Float64[Tensor, "n_atoms n_features"]:
    """The network's last scalars of every atom; those of pairs are summed over neighbours, divided by sqrt(n̄).

    Some centres are worked on at a time where the network is strictly local, so that memory is bounded.
    """
    species, total, found = model.species(batch), AtomSum(model.avg_num_neighbors), []
    parts = [whole(batch.edge_index, species)]
    if architecture(model.config.name).strictly_local:
        parts = pieces(batch, species, model.network.floats_per_edge, len(model.elements))
    with torch.no_grad():
        for part in parts:
            features = model.network(batch.edge_vec(part.edges), part.edge_index, part.species)
            sums = total(features.scalars, features, part.edge_index[0], len(part.species))
            found.append(sums[part.own].double())
    return torch.cat(found)


@dataclass(frozen=True, eq=False)
class Grade:
    """The training data in the features of one model, element by element, float64."""

    mean: Float64[Tensor, "n_elements n_features"]
    directions: Float64[Tensor, "n_elements n_features n_directions"]
    """Principal directions, each over the standard deviation along it."""
    centers: Float64[Tensor, "n_elements n_centers n_directions"]
    threshold: Float64[Tensor, "n_elements"]
    """Distance that :data:`SHARE_WITHIN` of the training atoms keep; the grade is the distance over this."""

    @classmethod
    def fit(cls, model: Graded, seen: Iterable[Batch], n_elements: int) -> "Grade":
        """The grade of a trained model, of batches of its training data.

        Args:
            model: its features must be those that grades are asked for later.
            seen: batches of training data, on the device of the model.
            n_elements: that the model knows; one that is not in the batches is as far away as the others' mean.
        """
        found = [(atom_features(model, batch).cpu(), model.species(batch).cpu()) for batch in seen]
        features, species = torch.cat([f for f, _ in found]), torch.cat([s for _, s in found])
        spread = torch.cov(features.T)
        parts = [_fit_element(features[species == z], features.mean(0), spread, z) for z in range(n_elements)]
        return cls(*(torch.stack(tensors) for tensors in zip(*parts, strict=True)))

    def whitened(
        self, features: Float64[Tensor, "n_atoms n_features"], species: Int[Tensor, "n_atoms"]
    ) -> Float64[Tensor, "n_atoms n_directions"]:
        """Features along the principal directions of each atom's element, divided so that a grade is a distance."""
        centered = features - self.mean[species]
        along = features.new_empty(len(features), self.directions.shape[2])
        for z in species.unique().tolist():
            along[species == z] = centered[species == z] @ self.directions[z]
        return along / self.threshold[species, None]

    def of(
        self, features: Float64[Tensor, "n_atoms n_features"], species: Int[Tensor, "n_atoms"]
    ) -> Float64[Tensor, "n_atoms"]:
        """Extrapolation grade of every atom."""
        along, grades = self.whitened(features, species), features.new_empty(len(features))
        for z in species.unique().tolist():
            centers = self.centers[z] / self.threshold[z]
            grades[species == z] = torch.cdist(along[species == z], centers).amin(1)
        return grades

    def __call__(self, model: Graded, batch: Batch) -> Float64[Tensor, "n_atoms"]:
        """Extrapolation grade of every atom of a batch."""
        features, species = atom_features(model, batch), model.species(batch)
        return self.of(features.cpu(), species.cpu())

    def by_system(self, model: Graded, batch: Batch) -> list[Float64[ndarray, "_"]]:
        """Extrapolation grade of every atom, an array for each system of a batch."""
        return np.split(self(model, batch).numpy(), np.cumsum(batch.n_atoms.cpu().numpy())[:-1])

    def save(self, path: Path) -> None:
        """Write a safetensors file, complete or not at all."""
        with replacing_file(path) as temporary:
            temporary.write_bytes(as_bytes({f.name: getattr(self, f.name).contiguous() for f in fields(self)}))

    @classmethod
    def load(cls, path: Path) -> "Grade":
        """The grade of a file.

        Raises:
            InputError: if the file is damaged.
        """
        try:
            return cls(**load_file(path))
        except (SafetensorError, TypeError, OSError) as error:
            raise InputError(f"{path}: damaged ({error}); remove it, grades are then left out") from error


def graded(model: Graded, structures: Sequence[Structure], batch_size: int = 16) -> Iterator[Structure]:
    """The structures with the grade of each atom, and the largest in ``info``; as they are if the model has no grade.

    Args:
        model: of a run.
        structures: of elements that it knows.
        batch_size: structures computed together.
    """
    if model.grade is None:
        yield from structures
        return
    at = 0
    for batch in batches(structures, model.cutoff, batch_size, dtype=model.dtype, labels=()):
        for own in model.grade.by_system(model, batch.to(model.scale.device)):
            yield with_grades(structures[at], own)
            at += 1


def with_grades(structure: Structure, grades: Float64[ndarray, "n_atoms"]) -> Structure:
    """A structure with these grades of its atoms, and the largest as ``grade`` in ``info``."""
    info = {**structure.info, "grade": round(float(grades.max()), 4)}
    return dataclasses.replace(structure, grades=grades, info=info)


def high_grade(atom: int, number: int, grade: float, limit: float) -> str:
    """A grade above its limit, in words."""
    return f"atom {atom} ({chemical_symbols[number]}) has the grade {grade:.2f}, above {limit:g}"


def no_grade(model: Graded) -> str:
    """The reason why there are no grades; empty if there are."""
    if model.grade is not None:
        return ""
    return f"the run has no {GRADE}, as those of earlier versions; `equicat train` with --run.resume true makes it"


def check_max_grade(model: Graded, max_grade: float, outside_training: Action) -> None:
    """Make sure that grades can be compared with a limit, and that somebody wants to know.

    Raises:
        InputError: for a limit that is not above zero, a model without grades, or if all is to be ignored.
    """
    if not max_grade > 0:
        raise InputError(f"max_grade is {max_grade}; it must be above 0, and 1 is where the training data end")
    if outside_training == "ignore":
        raise InputError(
            f"max_grade is {max_grade:g}, but what is outside of the training data is ignored; let outside_training be "
            "warn or error"
        )
    if reason := no_grade(model):
        raise InputError(f"no grades: {reason}")


def _fit_element(
    features: Float64[Tensor, "n n_features"],
    mean_of_all: Float64[Tensor, "n_features"],
    spread_of_all: Float64[Tensor, "n_features n_features"],
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, directions, centres and threshold of the atoms of one element."""
    rng, n = np.random.default_rng(seed), len(features)
    if n > MAX_ATOMS:
        features = features[torch.from_numpy(rng.permutation(n)[:MAX_ATOMS])]
    mean = features.mean(0) if n else mean_of_all
    own = (features - mean).T @ (features - mean)
    spread = (own + PRIOR_ATOMS * spread_of_all) / (len(features) + PRIOR_ATOMS)
    variances, axes = torch.linalg.eigh(spread)
    k = min(DIRECTIONS, len(variances))
    deviations = variances[-k:].clamp(min=0).sqrt()
    directions = axes[:, -k:] / deviations.clamp(min=float(SMALLEST_SPREAD * deviations.max()) or 1.0)
    along = (features - mean) @ directions
    centers = _centers(along, max(1, min(CENTERS, n // ATOMS_PER_CENTER)), rng)
    distances = torch.cdist(along, centers).amin(1)
    threshold = torch.quantile(distances, SHARE_WITHIN) if n else distances.new_tensor(1.0)
    every = torch.cat([centers, centers[:1].expand(CENTERS - len(centers), -1)])
    return mean, directions, every, threshold.clamp(min=1e-6)


def _centers(points: Float64[Tensor, "n k"], n_centers: int, rng: np.random.Generator) -> Float64[Tensor, "c k"]:
    """Centres of clusters by Lloyd's algorithm, which begins with points far from each other."""
    if n_centers == 1:
        return points.mean(0, keepdim=True) if len(points) else points.new_zeros(1, points.shape[1])
    centers = points[int(rng.integers(len(points)))][None]
    while len(centers) < n_centers:
        centers = torch.cat([centers, points[torch.cdist(points, centers).amin(1).argmax()][None]])
    for _ in range(ROUNDS):
        nearest = torch.cdist(points, centers).argmin(1)
        sums = torch.zeros_like(centers).index_add(0, nearest, points)
        counts = torch.bincount(nearest, minlength=n_centers)[:, None]
        centers = torch.where(counts > 0, sums / counts.clamp(min=1), centers)
    return centers


def most_informative(
    grade: Grade,
    features: Sequence[tuple[Float64[Tensor, "n_atoms n_features"], Int[Tensor, "n_atoms"]]],
    n: int,
) -> list[tuple[int, float]]:
    """The structures to label next: the highest grades, each judged as if those before were in the training data.

    A structure counts by the atom that is furthest from the training data and from all atoms of its element in the
    structures that are chosen already, so a second one like the first has a low grade.

    Args:
        grade: of the model.
        features: of each structure (:func:`atom_features`), with the species of its atoms.
        n: structures to choose.

    Returns:
        Place and grade of each, in the order in which they were chosen.
    """
    sizes = [len(species) for _, species in features]
    every, species = torch.cat([f for f, _ in features]), torch.cat([s for _, s in features])
    along, grades = grade.whitened(every, species), grade.of(every, species)
    structure = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    chosen: list[tuple[int, float]] = []
    for _ in range(min(n, len(sizes))):
        largest = grades.new_full((len(sizes),), -1.0).scatter_reduce(0, structure, grades, "amax")
        largest[[place for place, _ in chosen]] = -1.0
        place = int(largest.argmax())
        chosen.append((place, float(largest[place])))
        for z in species[structure == place].unique().tolist():
            same, new = species == z, (species == z) & (structure == place)
            grades[same] = torch.minimum(grades[same], torch.cdist(along[same], along[new]).amin(1))
    return chosen
