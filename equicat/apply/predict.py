"""`equicat predict`: a model's predictions for structures, as extended XYZ or as OC20's leaderboard file."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from equicat.apply.clean_slab import minus_clean_slab
from equicat.apply.ensemble import mean_of
from equicat.apply.options import ApplyOptions
from equicat.data.batch import Batch
from equicat.data.batches import batches
from equicat.data.datasets import Dataset, open_structures, require_elements
from equicat.data.directory import splits_of
from equicat.data.labels import LABELS
from equicat.data.readers import read, write
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.models import saved
from equicat.models.direct import DirectModel, RelaxedPrediction
from equicat.models.domain import DomainWatch
from equicat.models.ensemble import MeanDirectModel, MeanPotential
from equicat.models.model import Prediction
from equicat.models.potential import Potential
from equicat.models.uncertainty import Grade, with_grades
from equicat.tasks.leaderboard import (
    LEADERBOARD_SPLITS,
    Arrays,
    is2re_arrays,
    is2rs_arrays,
    s2ef_arrays,
    write_submission,
)
from equicat.tasks.tables import aligned
from equicat.tasks.tasks import task_of, values_of
from equicat.terminal.progress import progress_bar


def watch_of(model: Potential | DirectModel, options: ApplyOptions) -> DomainWatch:
    """A watch for structures outside of the training data of a model."""
    return DomainWatch(model.info.domain, model.info.energy_reference, options.outside_training)


def predictions(
    model: Potential | DirectModel,
    dataset: Sequence,
    options: ApplyOptions,
    title: str = "",
    watch: DomainWatch | None = None,
    labels: tuple[str, ...] = (),
) -> Iterator[tuple[Batch, Prediction | RelaxedPrediction]]:
    """Batches with the model's predictions (eV, Å), in the order of the data set; they hold the ``labels`` only.

    At the end, one warning says which structures were outside of the training data.

    Raises:
        InputError: for an unknown element, or as ``options`` ask.
    """
    device, watch = model.scale.device, watch or watch_of(model, options)
    task = task_of(model.info.outputs)
    loader = batches(dataset, model.cutoff, options.batch_size, dtype=model.dtype, labels=labels)
    for batch in progress_bar(loader, desc=title, unit="batch", disable=not options.progress, leave=False):
        batch = batch.to(device)
        with torch.no_grad():
            prediction = model(batch, **task.extras)
            if options.minus_clean_slab:
                prediction = minus_clean_slab(model, batch, prediction)
        watch.look(batch)
        yield batch, prediction
    watch.say()


def predict(
    run: str | Path,
    structures: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    submission: Literal["test", "val"] | None = None,
    forces_of: Literal["free", "all"] = "free",
    **how: Any,
) -> int:
    """Predict every structure of files or a store, or of the four splits of a data set.

    ``out`` ending in ``.npz`` gets the arrays of OC20's leaderboard for the model's task (:func:`leaderboard_arrays`);
    any other name becomes extended XYZ: energies and forces of all atoms, or relaxed energies (``relaxed_energy``) and
    relaxed structures, whose initial positions are the column ``initial_positions``. Labels of the structures
    themselves are not looked at.

    Args:
        run: Run directory that `equicat train` wrote, or the folder of an ensemble, whose mean is written.
        structures: Structure files (anything ASE reads, also .gz and .xz), globs of them and folders with them, or one
            store; for a submission, the directory of a data set.
        out: File to write: extxyz (also .gz, .xz), or .npz for OC20's leaderboard.
        submission: One .npz of the four splits test_… or val_… of a data set directory, as the leaderboard takes it.
        forces_of: Atoms whose forces the .npz holds: free ones (EvalAI) or all (the present leaderboard).
        how: see :class:`~equicat.apply.options.ApplyOptions`.

    Returns:
        The number of structures.

    Raises:
        InputError: for a missing file or split, an element that the model does not know (before anything is computed),
            or, for the leaderboard, missing or repeated ids.
    """
    options, out = ApplyOptions(**how), Path(out)
    model = saved.load(run, options.device)
    options.check(model.info)
    paths = [structures] if isinstance(structures, str | Path) else structures
    if out.suffix != ".npz":
        if submission is not None:
            raise InputError(f"{out}: a submission is an .npz file")
        dataset = _opened(model, paths)
        models = model.models if isinstance(model, MeanPotential | MeanDirectModel) else [model]
        found = [_predicted(member, dataset, options, member.grade) for member in models]
        return write(out, (_relaxed(mean_of(predicted)) for predicted in zip(*found, strict=True)))
    datasets = datasets_of(model, paths, model.info.task, submission)
    arrays = {
        name: leaderboard_arrays(list(_predicted(model, dataset, options)), model.info.outputs, forces_of=forces_of)
        for name, dataset in datasets.items()
    }
    write_submission(out, arrays)
    return sum(map(len, datasets.values()))


def _opened(model: Potential | DirectModel, paths: Sequence[str | Path]) -> Dataset:
    """Structures without labels, all of elements that the model knows."""
    dataset = open_structures(paths)
    require_elements(dataset, model.elements)
    return dataset


def _relaxed(structure: Structure) -> Structure:
    """A structure with predicted relaxed positions at these; any other as it is."""
    if structure.relaxed_positions is None:
        return structure
    relaxed, initial = structure.relaxed_positions, structure.positions
    return dataclasses.replace(structure, positions=relaxed, initial_positions=initial, relaxed_positions=None)


def datasets_of(
    model: Potential | DirectModel, paths: Sequence[str | Path], task: str, submission: str | None
) -> dict[str, Dataset]:
    """The data sets of a leaderboard file, opened without labels, by the name that their arrays begin with.

    Args:
        model: that has to know all elements.
        paths: files or a store; for a submission of four splits, one data set directory.
        task: whose splits are meant.
        submission: ``test`` or ``val`` for the four splits of that name; None for one split.

    Raises:
        InputError: if a split is missing, or an element is unknown to the model.
    """
    parts = _parts(paths, task, submission)
    return {name: _opened(model, part) for name, part in parts.items()}


def _parts(paths: Sequence[str | Path], task: str, submission: str | None) -> dict[str, Sequence[str | Path]]:
    if submission is None:
        return {"": paths}
    if len(paths) != 1:
        raise InputError(f"a submission is made of one data set directory, not of {len(paths)} paths")
    found = splits_of(paths[0], task)
    wanted = {name: f"{submission}_{name}" for name in LEADERBOARD_SPLITS}
    missing = [split for split in wanted.values() if split not in found]
    if missing:
        raise InputError(
            f"{paths[0]}: no split {', '.join(missing)}, which a submission needs; found {', '.join(found)}"
        )
    return {name: [found[split]] for name, split in wanted.items()}


def as_text(out: str | Path, n_structures: int, limit: int = 20) -> str:
    """A table of the first ``limit`` predictions in an extended XYZ file: energies and the largest force or move.

    Args:
        out: the file that :func:`predict` wrote.
        n_structures: how many structures are in it.
        limit: rows.
    """
    structures = list(read(out, index=slice(0, limit)))
    first, names = structures[0], [_name(k, s) for k, s in enumerate(structures)]
    columns: dict[str, list[float | None]] = {"energy [eV]": [s.energy for s in structures]}
    if first.energy is None:
        columns = {"relaxed energy [eV]": [s.relaxed_energy for s in structures]}
    if first.forces is not None:
        columns["largest force [eV/Å]"] = [_largest(s.forces, s) for s in structures]
    for name, title in (("energy_std", "± [eV]"), ("forces_std", "± [eV/Å]"), ("positions_std", "± [Å]")):
        if name in first.info:
            columns[title] = [float(s.info[name]) for s in structures]
    if "grade" in first.info:
        columns["largest grade"] = [float(s.info["grade"]) for s in structures]
    if first.initial_positions is not None:
        columns["largest move [Å]"] = [_largest(s.positions - s.initial_positions, s) for s in structures]
    columns = {title: values for title, values in columns.items() if values[0] is not None}
    rows = [[name, *(f"{values[k]:.4f}" for values in columns.values())] for k, name in enumerate(names)]
    lines = aligned([["", *columns], *rows])
    if n_structures > limit:
        lines.append(f"and {n_structures - limit:,} more")
    grade = " A grade above 1: unlike the training data." if "grade" in first.info else ""
    return "\n".join([*lines, f"Energies: {first.info['energy_reference']}. Largest of the free atoms.{grade}"])


def _name(k: int, structure: Structure) -> str:
    """The id of a predicted structure, or the file and frame that it came from, or its place."""
    return structure.id if structure.sid else str(structure.info.get("source", f"structure {k}"))


def _largest(vectors: ndarray | None, structure: Structure) -> float | None:
    if vectors is None:
        return None
    assert structure.fixed is not None
    return float(np.linalg.norm(vectors[~structure.fixed], axis=1).max(initial=0.0))


def _predicted(
    model: Potential | DirectModel, dataset: Dataset, options: ApplyOptions, grade: Grade | None = None
) -> Iterator[Structure]:
    """The structures with the predictions as their labels, and no others; with a grade of each atom if it is there."""
    at = 0
    for batch, prediction in predictions(model, dataset, options, "predict"):
        ends = np.cumsum(batch.n_atoms.cpu().numpy())[:-1]
        grades = None if grade is None else np.split(grade(model, batch).numpy(), ends)
        for k, labels in enumerate(_labels(prediction, batch, ends)):
            s = dataset[at] if grades is None else with_grades(dataset[at], grades[k])
            if labels.get("relaxed_positions") is not None:
                labels["relaxed_positions"] = s.positions + labels["relaxed_positions"]
            info = {**s.info, "energy_reference": model.info.energy_reference}
            yield dataclasses.replace(s, **{**dict.fromkeys(LABELS), **labels}, info=info)
            at += 1


def _labels(prediction: Prediction | RelaxedPrediction, batch: Batch, ends: ndarray) -> Iterator[dict[str, Any]]:
    """Labels of each system of a batch; displacements under the name of the relaxed positions they become."""
    stress = values_of(prediction, batch).stress
    energies: Tensor | None
    if isinstance(prediction, Prediction):
        energies, vectors, names = prediction.energy, prediction.forces, ("energy", "forces")
    else:
        energies, vectors = prediction.relaxed_energy, prediction.displacements
        names = ("relaxed_energy", "relaxed_positions")
    split = None if vectors is None else np.split(vectors.double().cpu().numpy(), ends)
    for k in range(batch.n_systems):
        values = (None if energies is None else float(energies[k]), None if split is None else split[k])
        labels = dict(zip(names, values, strict=True))
        yield labels if stress is None else labels | {"stress": stress[k].double().cpu().numpy()}


def leaderboard_arrays(structures: Sequence[Structure], outputs: tuple[str, ...], *, forces_of: str = "free") -> Arrays:
    """The arrays of :mod:`equicat.tasks.leaderboard` for structures that carry a model's predictions as labels.

    A model of relaxed energies and structures gives the arrays of both.

    Raises:
        InputError: if ids are missing or repeated, or a prediction is not finite.
    """
    ids, n_atoms = np.array([s.id for s in structures]), np.array([len(s.numbers) for s in structures])
    arrays: Arrays = {}
    if "energy" in outputs:
        energy, fixed = np.array([s.energy for s in structures]), np.concatenate([s.fixed for s in structures])
        forces = np.concatenate([s.forces for s in structures])
        arrays = s2ef_arrays(ids, energy, forces, n_atoms, fixed, atoms=forces_of)
    if "relaxed_energy" in outputs:
        arrays = is2re_arrays(ids, np.array([s.relaxed_energy for s in structures]))
    if "displacements" in outputs:
        positions = np.concatenate([s.relaxed_positions for s in structures])
        arrays |= is2rs_arrays(ids, positions, n_atoms)
    return arrays
