"""The data set of a study: its tasks, nested training subsets that know every element, and a digest."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Bool
from numpy import ndarray

from equicat.data.datasets import Dataset, open_dataset, require_labels
from equicat.data.directory import TASK_DIRECTORIES, is_store, splits_of
from equicat.errors import InputError
from equicat.files import visible
from equicat.sources.subsets import size_of
from equicat.tasks.tasks import LABEL_OF

ALL = "all"
"""Size of a training set that is not drawn from."""
MOST_DRAWS = 1000
"""Draws of a subset that are tried until it holds every element."""
LABELS = {
    "s2ef": ("energy", "forces"),
    "is2re": (LABEL_OF["relaxed_energy"],),
    "is2rs": (LABEL_OF["displacements"],),
}
"""Labels without which a task cannot be trained on."""


@dataclass(frozen=True)
class StudyData:
    """A data set directory with a split to train on and one to validate on.

    Raises:
        InputError: if it is none.
    """

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_dir() or is_store(self.path):
            raise InputError(f"{self.path}: a study needs a data set directory, with the splits train and val_id")
        if not self.tasks:
            raise InputError(f"{self.path}: no task has both a split train and a split val_id here")

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that can be trained and validated on here."""
        return tuple(task for task in TASK_DIRECTORIES if self._serves(task))

    def _serves(self, task: str) -> bool:
        try:
            splits = splits_of(self.path, task)
            for split in ("train", "val_id"):
                require_labels(open_dataset(splits[split]), LABELS[task])
        except (InputError, KeyError):
            return False
        return True

    def check_tasks(self, wanted: Sequence[str]) -> None:
        """Make sure that these tasks can be trained on.

        Raises:
            InputError: naming one that cannot, and those that can.
        """
        for task in wanted:
            if task not in self.tasks:
                raise InputError(f"{self.path}: cannot train {task} here; it has data for {', '.join(self.tasks)}")

    def train_set(self, task: str) -> Dataset:
        """The training split of a task."""
        return open_dataset(splits_of(self.path, task)["train"])

    def stores(self, task: str) -> dict[str, Path]:
        """The splits of a task that models are judged on."""
        return {name: path for name, path in splits_of(self.path, task).items() if name != "train"}

    @cached_property
    def digest(self) -> str:
        """A digest of all splits, for which their indices suffice: these hold the checksum of every shard."""
        digest = hashlib.sha256()
        for task in sorted(set(TASK_DIRECTORIES.values())):
            for index in visible(self.path / task, "*/index.json"):
                digest.update(index.parent.name.encode() + index.read_bytes())
        return digest.hexdigest()

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Where the data come from, as their stores say."""
        return dict(self.train_set(self.tasks[0]).info.provenance)

    def summary(self) -> dict[str, Any]:
        """Description, kind of energies, and sizes by task and split, for the files of a study."""
        info = self.train_set(self.tasks[0]).info
        sizes = {
            task: {name: len(open_dataset(path)) for name, path in splits_of(self.path, task).items()}
            for task in self.tasks
        }
        return {
            "description": info.description,
            "energy_reference": info.energy_reference,
            "n_structures": sizes,
            "digest": self.digest,
        }

    def sizes(self, task: str, wanted: Sequence[str], parts: Sequence[float]) -> tuple[int, ...]:
        """Numbers of training structures, ascending.

        Args:
            task: whose training split is drawn from.
            wanted: numbers, ``10k``, or ``all``; empty takes ``parts`` of the split instead.
            parts: shares of the split; those with fewer structures than elements, which leave the energies of elements
                open, are left out.

        Raises:
            InputError: if there are not so many structures.
        """
        n = len(self.train_set(task))
        sizes = {n if size == ALL else size_of(size) for size in wanted}
        if not sizes:
            least = len(self.train_set(task).elements)
            sizes = {n, *(size for size in (round(p * n) for p in parts) if size >= least)}
        if max(sizes) > n:
            raise InputError(f"{self.path}: a subset of {max(sizes):,} structures is asked for, {task} trains on {n:,}")
        return tuple(sorted(sizes))

    def split_seed(self, task: str, smallest: int, seed: int) -> int:
        """A ``data.split_seed`` whose nested subsets all hold every element of the task's training split.

        It is ``seed`` itself, or the first of ``seed`` + 1000, ``seed`` + 2000, … that does it, so draws that a model
        could not be validated after are passed over.

        Args:
            task: whose training split is drawn from.
            smallest: number of structures of the smallest subset.
            seed: of the study.

        Raises:
            InputError: if no draw does.
        """
        holds = _elements_held(self.train_set(task))
        if smallest >= len(holds):
            return seed
        for k in range(MOST_DRAWS):
            drawn = np.random.default_rng(seed + 1000 * k).permutation(len(holds))[:smallest]  # as training_data draws
            if holds[drawn].any(0).all():
                return seed + 1000 * k
        raise InputError(
            f"{self.path}: {smallest} training structures of {task} hardly ever hold all elements "
            f"({', '.join(chemical_symbols[z] for z in self.train_set(task).elements)}); ask for larger sizes"
        )


def _elements_held(dataset: Dataset) -> Bool[ndarray, "n_structures n_elements"]:
    """Which of the elements of a data set each structure holds."""
    numbers, n_atoms = np.asarray(dataset.array("numbers")), np.asarray(dataset.n_atoms)
    system = np.repeat(np.arange(len(n_atoms)), n_atoms)
    held = np.zeros((len(n_atoms), len(dataset.elements)), dtype=bool)
    held[system, np.searchsorted(dataset.elements, numbers)] = True
    return held
