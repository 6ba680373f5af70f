"""`equicat predict`: what a model says about structures, as extxyz or as OC20's leaderboard file."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from torch import Tensor

from equicat import runs
from equicat.datasets import Dataset, open_dataset
from equicat.direct import DirectModel, RelaxedPrediction
from equicat.errors import InputError
from equicat.evaluate import predictions
from equicat.files import replacing_file
from equicat.potential import Potential, Prediction
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

    ``out`` ending in ``.npz`` gets the arrays of OC20's leaderboard for the model's task (:func:`leaderboard_arrays`);
    any other name becomes extxyz: energies and forces of all atoms, or relaxed energies (``relaxed_energy``) and
    relaxed positions (``relaxed_positions``).

    Returns:
        The number of structures.

    Raises:
        InputError: for a missing file, an unknown element, or, for the leaderboard, missing or repeated ids.
    """
    model, dataset, out = runs.load(run, device), open_dataset(structures), Path(out)
    predicted = _predicted(model, dataset, batch_size, progress)
    if out.suffix != ".npz":
        return write(out, predicted)
    arrays = leaderboard_arrays(list(predicted), model.info.outputs)
    with replacing_file(out) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    return len(dataset)


def _predicted(
    model: Potential | DirectModel, dataset: Dataset, batch_size: int, progress: bool
) -> Iterator[Structure]:
    """The structures with the predictions as their labels, and no others."""
    at = 0
    for batch, prediction in predictions(model, dataset, batch_size, "predict", progress):
        ends = np.cumsum(batch.n_atoms.cpu().numpy())[:-1]
        for labels in _labels(prediction, ends, batch.n_systems):
            s = dataset[at]
            if labels.get("relaxed_positions") is not None:
                labels["relaxed_positions"] = s.positions + labels["relaxed_positions"]
            info = {**s.info, "energy_reference": model.info.energy_reference}
            yield dataclasses.replace(s, **{**dict.fromkeys(LABELS), **labels}, info=info)
            at += 1


LABELS = ("energy", "forces", "relaxed_energy", "relaxed_positions")


def _labels(prediction: Prediction | RelaxedPrediction, ends: ndarray, n_systems: int) -> Iterator[dict[str, Any]]:
    """Labels of each system of a batch; displacements under the name of the relaxed positions they become."""
    energies: Tensor | None
    if isinstance(prediction, Prediction):
        energies, vectors, names = prediction.energy, prediction.forces, ("energy", "forces")
    else:
        energies, vectors = prediction.relaxed_energy, prediction.displacements
        names = ("relaxed_energy", "relaxed_positions")
    split = None if vectors is None else np.split(vectors.double().cpu().numpy(), ends)
    for k in range(n_systems):
        values = (None if energies is None else float(energies[k]), None if split is None else split[k])
        yield dict(zip(names, values, strict=True))


def leaderboard_arrays(structures: list[Structure], outputs: tuple[str, ...]) -> dict[str, ndarray]:
    """The arrays of a submission (OC20, EvalAI's form), rows in the string order of ids.

    S2EF: ``ids``, ``energy`` and ``forces`` of free atoms (float16), ``chunk_idx``, where each next structure's forces
    begin. IS2RE: ``ids`` and ``energy`` [n, 1] (float16). IS2RS: ``ids``, ``pos`` of all atoms (float64) and
    ``chunk_idx``. A model of relaxed energies and structures writes the arrays of both.

    Raises:
        InputError: if ids are missing or repeated.
    """
    ids = np.array([s.id for s in structures])
    order = np.argsort(ids)
    if "" in ids or len(np.unique(ids)) < len(ids):
        raise InputError("the leaderboard needs a different id for every structure: info keys sid and fid")
    arrays, ordered = {"ids": ids[order]}, [structures[i] for i in order]
    if "energy" in outputs:
        arrays["energy"] = np.array([s.energy for s in ordered], dtype=np.float16)
    if "relaxed_energy" in outputs:
        arrays["energy"] = np.array([[s.relaxed_energy] for s in ordered], dtype=np.float16)
    for output, name, rows, dtype in (
        ("forces", "forces", [s.forces[~s.fixed] for s in ordered if s.forces is not None], np.float16),
        ("displacements", "pos", [s.relaxed_positions for s in ordered if s.relaxed_positions is not None], np.float64),
    ):
        if output in outputs:
            arrays[name] = np.concatenate(rows).astype(dtype)
            arrays["chunk_idx"] = np.cumsum([len(r) for r in rows])[:-1]
    return arrays
