"""From what a configuration names to batches."""

import dataclasses
import glob
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray

from equicat.config import DataConfig, NoiseConfig
from equicat.datasets import Dataset, DatasetInfo, MemoryDataset, open_dataset, require_labels, splits_of
from equicat.errors import InputError
from equicat.readers import read
from equicat.sampler import BatchReader, BatchSampler, ResumableLoader
from equicat.shards import PER_ATOM
from equicat.structure import Structure


class Subset(Sequence[Structure]):
    """Some structures of a data set, with its attributes."""

    def __init__(self, dataset: Dataset, indices: Int[ndarray, "n"]):
        # In the order of the files: neighbours are then in the same shard.
        self.dataset, self.indices = dataset, np.sort(indices)
        self.info, self.path, self.fields, self.columns = dataset.info, dataset.path, dataset.fields, dataset.columns
        self.n_atoms = np.asarray(dataset.n_atoms)[self.indices]
        self.elements = np.unique(self.array("numbers")).tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Structure:  # type: ignore[override]
        return self.dataset[int(self.indices[i])]

    def array(self, name: str) -> ndarray:
        """A field of all structures at once: [total_atoms, ...] or [n_structures, ...]."""
        values = self.dataset.array(name)
        if name not in PER_ATOM:
            return np.asarray(values)[self.indices]
        starts = np.concatenate([[0], np.cumsum(self.dataset.n_atoms)])
        return np.concatenate([values[starts[i] : starts[i + 1]] for i in self.indices])


AnyDataset = Dataset | Subset


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
        # The initial structure's own labels would be those of only some structures of a batch.
        return corrupted(dataclasses.replace(self.dataset[i], energy=None, forces=None), self.config, rng)


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


def training_data(config: DataConfig, task: str, labels: Sequence[str]) -> tuple[AnyDataset, AnyDataset]:
    """Training and validation data of a task, as configured.

    Raises:
        InputError: if something is missing, empty, lacks a label that the task trains on, or mixes energy references.
    """
    if not config.train:
        raise InputError("data.train is empty; name a data set, a store or a structure file")
    everything = _open(config.train, config.train_where, "train", task, config)
    rng = np.random.default_rng(config.split_seed)
    if config.val:
        train = _draw(everything, config.n_train, rng, "data.n_train")
        val = _draw(_open(config.val, config.val_where, "val_id", task, config), config.n_val, rng, "data.n_val")
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
    return train, val


def _split(dataset: Dataset, config: DataConfig, rng: np.random.Generator) -> tuple["Subset", "Subset"]:
    """Training and validation structures from one data set; a tenth validates unless ``n_val`` says otherwise."""
    n_val = config.n_val or max(1, len(dataset) // 10)
    n_train = len(dataset) - n_val if config.n_train is None else config.n_train
    if n_train < 1 or n_train + n_val > len(dataset):
        raise InputError(
            f"{dataset.path}: its {len(dataset)} structures cannot give {n_train} to train and {n_val} to validate; "
            "lower data.n_train or data.n_val"
        )
    order = rng.permutation(len(dataset))
    return Subset(dataset, order[:n_train]), Subset(dataset, order[n_train : n_train + n_val])


def _open(paths: Sequence[str], where: Mapping[str, str], split: str, task: str, config: DataConfig) -> Dataset:
    files = list(chain.from_iterable(sorted(glob.glob(p)) or [p] for p in paths))
    if len(files) == 1 and Path(files[0]).is_dir():
        found = splits_of(files[0], task)
        if len(found) > 1 and split not in found:
            raise InputError(f"{files[0]}: has no split {split!r}, only {', '.join(found)}; name one of them")
        path = found[split] if split in found else next(iter(found.values()))
        return open_dataset(path, config.energy_key, config.energy_reference)
    for file in files:
        if Path(file).is_dir():
            raise InputError(f"{file}: a directory among several paths; give one data set, or structure files only")
    info = DatasetInfo(config.energy_reference or "total", provenance={"files": [Path(f).name for f in files]})
    return MemoryDataset(_frames(files, where, config.energy_key), info, ", ".join(paths))


def _frames(files: Sequence[str], where: Mapping[str, str], energy_key: str | None) -> Iterator[Structure]:
    for file in files:
        for structure in read(file, energy_key):
            if all(str(structure.info.get(k)) == str(v) for k, v in where.items()):
                yield structure


def _draw(dataset: Dataset, n: int | None, rng: np.random.Generator, option: str) -> AnyDataset:
    if n is None:
        return dataset
    if n > len(dataset):
        raise InputError(f"{option} asks for {n} structures, {dataset.path} has {len(dataset)}")
    return Subset(dataset, rng.permutation(len(dataset))[:n])


def batches(
    dataset: Sequence[Structure],
    cutoff: float,
    batch_size: int,
    *,
    dtype: torch.dtype = torch.float32,
    shuffle: bool = False,
    num_workers: int = 0,
    costs: Int[ndarray, "n"] | None = None,
    seed: int = 0,
) -> ResumableLoader:
    """Batches with neighbour lists within ``cutoff`` (Å); positions and forces in ``dtype``.

    Args:
        dataset: the structures.
        cutoff: Å.
        batch_size: largest number of structures of a batch, or with ``costs`` largest sum of them.
        dtype: of positions, cells and forces.
        shuffle: in another order each epoch.
        num_workers: processes; the order does not depend on them.
        costs: of each structure (:func:`~equicat.sampler.edge_costs`).
        seed: of the order.
    """
    sampler = BatchSampler(len(dataset), batch_size, costs, shuffle=shuffle, seed=seed)
    return ResumableLoader(BatchReader(dataset, cutoff, dtype), sampler, num_workers)
