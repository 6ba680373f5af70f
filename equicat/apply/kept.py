"""Arrays that an evaluation keeps of a split, so that a report can say where a model errs and show the structures.

Of every structure: the number of its atoms, its system, its adsorbate and catalyst, energies; of every free atom: its
element, forces or displacements and, if the model has one, its extrapolation grade; and a few whole structures.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy import ndarray
from torch import Tensor

from equicat.data.batch import Batch
from equicat.data.fitted import Domain
from equicat.models.domain import adsorbate_and_catalyst
from equicat.tasks.examples import N_WORST, Example, arrays_of
from equicat.tasks.metrics import Values

VECTORS = ("forces", "displacements")
N_MOVED = 3
"""Systems whose free atoms move most, which are kept whole for models of relaxed structures."""
UNKNOWN = "?"
"""Stands for an adsorbate or a catalyst that cannot be told."""


@dataclass
class Examples:
    """The structures of a split with the largest scores."""

    most: dict[str, int]
    """How many structures are kept for each score."""
    kept: list[Example] = field(default_factory=list)

    def add(self, found: list[Example]) -> None:
        """Look through some structures."""
        every = [*self.kept, *found]
        chosen = set[int]()
        for score, count in self.most.items():
            values = np.array([example.scores.get(score, np.nan) for example in every])
            order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")[:count]
            chosen |= {int(k) for k in order if np.isfinite(values[k])}
        self.kept = [every[k] for k in sorted(chosen)]

    def arrays(self, what: str) -> dict[str, Shaped[ndarray, "_ ..."]]:
        """``example_numbers`` and so on, structures one after the other; nothing if there are none.

        Args:
            what: of the vectors: ``forces`` or ``displacements``.
        """
        return arrays_of(self.kept, what)


def examples_of(batch: Batch, found: Values, target: Values, what: str) -> list[Example]:
    """Every structure of a batch as an example.

    Args:
        batch: with the atoms.
        found: what a model says.
        target: what is true.
        what: the quantity that is a vector: ``forces`` or ``displacements``.
    """
    true, pred = (getattr(values, what).double().cpu().numpy() for values in (target, found))
    energies = np.full((2, batch.n_systems), np.nan)
    if target.energy is not None and found.energy is not None:
        energies = np.stack([values.energy.double().cpu().numpy() for values in (target, found)])  # type: ignore[union-attr]
    atoms = {name: getattr(batch, name).cpu().numpy() for name in ("numbers", "positions", "fixed", "tags")}
    atoms |= {"true": true.astype(np.float32), "pred": pred.astype(np.float32)}
    starts = np.concatenate([[0], np.cumsum(batch.n_atoms.cpu().numpy())])
    cells, examples = batch.cell.cpu().numpy(), []
    for k in range(batch.n_systems):
        own = {name: values[starts[k] : starts[k + 1]] for name, values in atoms.items()}
        free = ~own["fixed"]
        name = (batch.ids[k] if batch.ids else "") or (batch.sources[k] if batch.sources else "")
        scores = {
            "energy_error": float(abs(energies[1, k] - energies[0, k])),
            "vector_error": float(np.abs(own["pred"] - own["true"])[free].mean()) if free.any() else 0.0,
            "moved": float(np.linalg.norm(own["true"][free], axis=1).mean()) if free.any() else 0.0,
        }
        examples.append(Example(name, own, cells[k], (float(energies[0, k]), float(energies[1, k])), scores))
    return examples


@dataclass
class Kept:
    """The arrays of one split, added batch by batch in the order of the data set."""

    quantities: tuple[str, ...]
    """Fields of :class:`~equicat.tasks.metrics.Values` that are kept."""
    domain: Domain | None = None
    """The training data, which tell adsorbates from slabs."""
    parts: dict[str, list[ndarray]] = field(default_factory=dict)
    examples: Examples = field(init=False)
    n_free_atoms: int = 0

    def __post_init__(self) -> None:
        worst = {"vector_error": N_WORST, "energy_error": N_WORST}
        self.examples = Examples({"moved": N_MOVED} if "displacements" in self.quantities else worst)

    @property
    def vectors(self) -> str:
        """The quantity that is a vector of each atom; empty if there is none."""
        return next((name for name in self.quantities if name in VECTORS), "")

    def add(self, batch: Batch, found: Values, target: Values, grades: Float[Tensor, "n_atoms"] | None = None) -> None:
        """Keep what a model says of a batch.

        Args:
            batch: the structures.
            found: what the model says.
            target: what is true.
            grades: extrapolation grade of every atom.
        """
        free = ~batch.fixed
        own: dict[str, Any] = {"n_atoms": batch.n_atoms, "n_free": _counts(batch, free)}
        own["free_numbers"] = batch.numbers[free]
        for name in self.quantities:
            for stage, values in (("true", target), ("pred", found)):
                array = getattr(values, name)
                own[f"{name}_{stage}"] = array[free] if name in VECTORS else array
        if grades is not None:
            own["grades"] = grades[free.to(grades.device)].float()
        arrays = {name: tensor.cpu().numpy() for name, tensor in own.items()}
        arrays["free_numbers"] = arrays["free_numbers"].astype(np.uint8)
        arrays["adsorbates"], arrays["catalysts"] = self._kinds(batch)
        for name, array in arrays.items():
            self.parts.setdefault(name, []).append(array)
        self.n_free_atoms += len(arrays["free_numbers"])
        if self.vectors:
            self.examples.add(examples_of(batch, found, target, self.vectors))

    def _kinds(self, batch: Batch) -> tuple[ndarray, ndarray]:
        ends = np.cumsum(batch.n_atoms.cpu().numpy())[:-1]
        numbers, tags = (np.split(values.cpu().numpy(), ends) for values in (batch.numbers, batch.tags))
        kinds = [
            None if self.domain is None else adsorbate_and_catalyst(self.domain, z, tag)
            for z, tag in zip(numbers, tags, strict=True)
        ]
        adsorbates, catalysts = zip(*(kind or (UNKNOWN, UNKNOWN) for kind in kinds), strict=True)
        return np.array(adsorbates), np.array(catalysts)

    def arrays(self, systems: Int[ndarray, "n_structures"]) -> dict[str, Shaped[ndarray, "..."]]:
        """All arrays by name.

        Args:
            systems: for each structure the number of its system.
        """
        found = {name: np.concatenate(parts) for name, parts in self.parts.items()}
        return found | {"systems": systems.astype(np.int32)} | self.examples.arrays(self.vectors)


def _counts(batch: Batch, which: Shaped[Tensor, "n_atoms"]) -> Int[Tensor, "n_systems"]:
    """How many of these atoms each system has."""
    return batch.n_atoms.new_zeros(batch.n_systems).index_add(0, batch.system_idx, which.to(batch.n_atoms.dtype))
