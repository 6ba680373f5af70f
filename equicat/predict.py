"""`equicat predict`: energies and forces of structures, as extxyz or as OC20's leaderboard file."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy import ndarray

from equicat import runs
from equicat.datasets import Dataset, open_dataset
from equicat.errors import InputError
from equicat.evaluate import predictions
from equicat.files import replacing_file
from equicat.readers import write
from equicat.structure import Structure


def predict(
    run: str | Path,
    structures: str | Path,
    out: str | Path,
    *,
    batch_size: int = 16,
    device: str = "cpu",
    progress: bool = True,
) -> int:
    """Predict every structure of a file or store.

    ``out`` ending in ``.npz`` gets the arrays of OC20's S2EF leaderboard (``ids``, ``energy``, ``forces`` of free
    atoms, ``chunk_idx``; float16, rows in the string order of ids); any other name becomes extxyz with energies and
    forces of all atoms.

    Returns:
        The number of structures.

    Raises:
        InputError: for a missing file, an unknown element, or, for the leaderboard, missing or repeated ids.
    """
    potential, dataset, out = runs.load(run, device), open_dataset(structures), Path(out)
    predicted = _predicted(potential, dataset, batch_size, progress)
    if out.suffix != ".npz":
        return write(out, predicted)
    arrays = leaderboard_arrays(list(predicted))
    with replacing_file(out) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    return len(dataset)


def _predicted(
    potential: runs.TrainedPotential, dataset: Dataset, batch_size: int, progress: bool
) -> Iterator[Structure]:
    at = 0
    for batch, prediction in predictions(potential, dataset, batch_size, "predict", progress):
        assert prediction.forces is not None
        forces = prediction.forces.double().cpu().numpy()
        splits = np.split(forces, np.cumsum(batch.n_atoms.cpu().numpy())[:-1])
        for energy, f in zip(prediction.energy.tolist(), splits, strict=True):
            info = {**dataset[at].info, "energy_reference": potential.info.energy_reference}
            yield dataclasses.replace(dataset[at], energy=energy, forces=f, info=info)
            at += 1


def leaderboard_arrays(structures: list[Structure]) -> dict[str, ndarray]:
    """The arrays of an S2EF submission (OC20, EvalAI's form).

    Raises:
        InputError: if ids are missing or repeated.
    """
    ids = np.array([s.id for s in structures])
    order = np.argsort(ids)
    if "" in ids or len(np.unique(ids)) < len(ids):
        raise InputError("the leaderboard needs a different id for every structure: info keys sid and fid")
    free = [structures[i].forces[~structures[i].fixed] for i in order]
    return {
        "ids": ids[order],
        "energy": np.array([structures[i].energy for i in order], dtype=np.float16),
        "forces": np.concatenate(free).astype(np.float16),
        "chunk_idx": np.cumsum([len(f) for f in free])[:-1],
    }
