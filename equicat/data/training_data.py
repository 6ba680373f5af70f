"""The training and validation data that a configuration names."""

import glob
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from equicat.data.datasets import (
    ENERGIES,
    AnyDataset,
    Dataset,
    Joined,
    MemoryDataset,
    Part,
    Subset,
    label_counts,
    open_dataset,
    require_labels,
)
from equicat.data.directory import is_store, splits_of
from equicat.data.info import DatasetInfo
from equicat.data.joined import own_zero, repeated, zeros_of
from equicat.data.readers import read
from equicat.data.store import Store
from equicat.data.structure import Structure
from equicat.errors import InputError, Remark, nearest
from equicat.options.values import Checked, Natural, NonNegativeNumber, Positive, PositiveNumber

VALIDATION = "val_id"
"""Split of a data set directory that is validated on."""


@dataclass(frozen=True)
class DataConfig(Checked, section="data"):
    """Where the structures are. Paths are relative to the working directory; globs are expanded."""

    train: tuple[str, ...] = ()
    """Stores, data set directories (their train split), or structure files."""
    val: tuple[str, ...] = ()
    """Stores, data set directories (their val_id split), or structure files to validate on. Empty: n_val structures are
    drawn from the training data."""
    train_where: dict[str, str] = field(default_factory=dict)
    """Train only on frames of structure files that have these info values, such as {split: train}."""
    val_where: dict[str, str] = field(default_factory=dict)
    """Validate only on frames of structure files that have these info values."""
    n_train: Positive | None = None
    """Use so many training structures, drawn at random; null uses all."""
    n_val: Positive | None = None
    """Use so many validation structures, drawn at random; null uses all."""
    energy_key: str | None = None
    """Take energies (eV) from this info key of structure files."""
    forces_key: str | None = None
    """Take forces (eV/Å) from this column of atoms of structure files."""
    energy_reference: Literal["adsorption", "total", "relative"] | None = None
    """Kind of the energies of structure files; stores know theirs."""
    also: dict[str, PositiveNumber] = field(default_factory=dict)
    """Further training data, and how often an epoch has each of their structures: {data/old: 0.5} draws half of them.
    Old data so replayed keep a model from forgetting while it is fine-tuned. Their val_id split, if there is one, is
    validated apart from data.val, which alone chooses the model."""
    also_zero: Literal["same", "own"] = "same"
    """own: the energies of data.also come from another code or other settings. An energy of each element is fitted to
    them and to data.train, and the difference is subtracted."""
    also_energy_weight: dict[str, NonNegativeNumber] = field(default_factory=dict)
    """Factors on the energy loss of structures of data.also, by path, where they are not 1. With 0 the energies of
    these structures count nowhere, and need not be there."""
    also_forces_weight: dict[str, NonNegativeNumber] = field(default_factory=dict)
    """Factors on the force loss of structures of data.also (s2ef), as with also_energy_weight."""
    split_seed: Natural = 0
    """Seed of these draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("also_energy_weight", "also_forces_weight"):
            for path in getattr(self, name):
                if path not in self.also:
                    raise InputError(f"data.{name}: {path} is not in data.also{nearest(path, self.also)}")
        if (
            self.also
            and self.also_zero == "own"
            and not any(self.also_energy_weight.get(path, 1.0) for path in self.also)
        ):
            raise InputError("data.also_zero is own, but there are no energies in data.also that count; leave it out")
        if self.val_where and not self.val:
            raise InputError("data.val_where selects frames of the files in data.val, which is empty; give data.val")


def data_options(path: str) -> dict[str, list[str]]:
    """The options of :class:`DataConfig` that one path stands for.

    A data set directory trains on its ``train`` split and validates on ``val_id``; from a store or a structure file (or
    a glob of files), validation structures are drawn.
    """
    has_splits = Path(path).is_dir() and not is_store(Path(path))
    return {"train": [path], "val": [path] if has_splits else []}


def training_data(config: DataConfig, task: str, labels: Sequence[str]) -> tuple[AnyDataset, AnyDataset]:
    """Training and validation data of a task, as configured.

    Args:
        config: what to read.
        task: ``s2ef``, ``is2re`` or ``is2rs``; says which part of a data set directory is meant.
        labels: what is trained on. Of structure files nothing else is looked at.

    Raises:
        InputError: if something is missing, empty, lacks a label that the task trains on, or mixes energy references.
    """
    if not config.train:
        raise InputError("data.train is empty; name a data set, a store or a structure file")
    source = _Source(config, task, tuple(labels))
    train: Dataset | Subset
    val: Dataset | Subset
    everything = source.open(config.train, config.train_where, "train")
    rng = np.random.default_rng(config.split_seed)
    if config.val:
        held_out = source.open(config.val, config.val_where, VALIDATION)
        _warn_of_shared(everything, held_out)
        train = _draw(everything, config.n_train, rng, "data.n_train")
        val = _draw(held_out, config.n_val, rng, "data.n_val")
    else:
        train, val = _split(everything, config, rng)
    for dataset in (train, val):
        require_labels(dataset.dataset if isinstance(dataset, Subset) else dataset, labels)
    uses_energies = any("energy" in label for label in labels)
    if uses_energies and train.info.energy_reference != val.info.energy_reference:
        raise InputError(
            f"training energies are {train.info.energy_reference!r}, validation energies "
            f"{val.info.energy_reference!r}; the two cannot be mixed"
        )
    return (_joined(train, source, rng) if config.also else train), val


def _joined(main: Dataset | Subset, source: "_Source", rng: np.random.Generator) -> Joined:
    """Training data together with the further ones, whose validation data are kept beside.

    Raises:
        InputError: if one of them lacks a label or has energies of another kind.
    """
    parts = [Part(main)]
    held_out: dict[str, Joined] = {}
    for path, times in source.config.also.items():
        config = source.config
        weights = config.also_energy_weight.get(path, 1.0), config.also_forces_weight.get(path, 1.0)
        labels = tuple(label for label in source.labels if label_counts(label, *weights))
        if not labels:
            raise InputError(f"data.also: no label of {path} counts, for its weights are 0; leave it out")
        energies = [label for label in labels if label in ENERGIES]
        source_of_it = replace(source, labels=labels)
        opened = [source_of_it.open((path,), {}, "train")]
        if Path(path).is_dir() and VALIDATION in splits_of(path, source.task):
            opened.append(source_of_it.open((path,), {}, VALIDATION))
        for dataset in opened:
            require_labels(dataset, labels)
            if energies and dataset.info.energy_reference != main.info.energy_reference:
                raise InputError(
                    f"{path}: its energies are {dataset.info.energy_reference!r}, those of data.train "
                    f"{main.info.energy_reference!r}; the two cannot be mixed"
                )
        zero = own_zero(opened[0], main, energies[0]) if energies and config.also_zero == "own" else {}
        often = repeated(opened[0], times, rng)
        parts.append(Part(often, zeros_of(often, zero) if zero else None, *weights))
        for dataset in opened[1:]:
            name = re.sub(r"\W+", "_", Path(path).resolve().name)
            name = name if name not in held_out else f"{name}_{len(held_out)}"
            held_out[name] = Joined([Part(dataset, zeros_of(dataset, zero) if zero else None, *weights)])
    return Joined(parts, held_out)


def _warn_of_shared(train: Dataset, val: Dataset) -> None:
    """Warn once of a store, or frames of a file, that are both training and validation data."""
    sources = [
        {str(data.path.resolve())} if isinstance(data, Store) else {_resolved(s.source) for s in data}
        for data in (train, val)
    ]
    shared = sorted(sources[0] & sources[1])
    if shared:
        warnings.warn(
            f"{shared[0]}: is both training and validation data, so errors on it say nothing of other structures; "
            "give validation data of its own (data.val), or [] to hold a part of the training data out",
            Remark,
            stacklevel=3,
        )


def _resolved(source: str) -> str:
    """``file, frame 3`` with the file's real path, whatever link or relative path it was opened by."""
    file, separator, frame = source.partition(", frame ")
    return f"{Path(file).resolve()}{separator}{frame}"


def _split(dataset: Dataset, config: DataConfig, rng: np.random.Generator) -> tuple[Subset, Subset]:
    """Training and validation structures from one data set; a tenth validates unless ``n_val`` says otherwise."""
    n_val = max(1, len(dataset) // 10) if config.n_val is None else config.n_val
    n_train = len(dataset) - n_val if config.n_train is None else config.n_train
    if n_train < 1 or n_train + n_val > len(dataset):
        raise InputError(
            f"{dataset.path}: its {len(dataset)} structures cannot give {n_train} to train and {n_val} to validate; "
            "lower data.n_train or data.n_val"
        )
    order = rng.permutation(len(dataset))
    return Subset(dataset, order[:n_train]), Subset(dataset, order[n_train : n_train + n_val])


@dataclass(frozen=True)
class _Source:
    """How paths of a configuration are read."""

    config: DataConfig
    task: str
    labels: tuple[str, ...]

    def open(self, paths: Sequence[str], where: Mapping[str, str], split: str) -> Dataset:
        """A store, the named split of a data set directory, or the chosen frames of structure files."""
        config = self.config
        files = list(chain.from_iterable(sorted(glob.glob(p)) or [p] for p in paths))
        if len(files) == 1 and Path(files[0]).is_dir():
            found = splits_of(files[0], self.task)
            if len(found) > 1 and split not in found:
                raise InputError(f"{files[0]}: has no split {split!r}, only {', '.join(found)}; name one of them")
            path = found[split] if split in found else next(iter(found.values()))
            return open_dataset(path, config.energy_key, config.energy_reference, forces_key=config.forces_key)
        for file in files:
            if Path(file).is_dir():
                raise InputError(f"{file}: a directory among several paths; give one data set, or structure files only")
        info = DatasetInfo(config.energy_reference or "total", provenance={"files": [Path(f).name for f in files]})
        return MemoryDataset(self._frames(files, where), info, ", ".join(paths))

    def _frames(self, files: Sequence[str], where: Mapping[str, str]) -> Iterator[Structure]:
        config = self.config
        for file in files:
            for structure in read(file, config.energy_key, forces_key=config.forces_key, labels=self.labels):
                if all(str(structure.info.get(k)) == str(v) for k, v in where.items()):
                    yield structure


def _draw(dataset: Dataset, n: int | None, rng: np.random.Generator, option: str) -> Dataset | Subset:
    if n is None:
        return dataset
    if n > len(dataset):
        raise InputError(f"{option} asks for {n} structures, {dataset.path} has {len(dataset)}")
    return Subset(dataset, rng.permutation(len(dataset))[:n])
