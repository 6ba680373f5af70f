"""`equicat evaluate`: OC20's metrics per split, with the trivial baselines in the same table."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase.data import chemical_symbols

from equicat.apply.kept import Kept
from equicat.apply.options import ApplyOptions
from equicat.apply.predict import predictions, watch_of
from equicat.apply.remarks import overfitting, remarks_on
from equicat.apply.results import (
    SplitResult,
    check_writable,
    folder_for,
    summary_of,
    write_other,
    write_validation,
)
from equicat.data.datasets import AnyDataset, Dataset, open_dataset, require_labels
from equicat.data.directory import splits_of
from equicat.data.identity import TrainedOn, has_ids, system_numbers
from equicat.data.training_data import DataConfig, training_data
from equicat.errors import InputError
from equicat.models import saved
from equicat.models.direct import DirectModel
from equicat.models.model import check_energy_reference
from equicat.models.potential import Potential
from equicat.run_directory import EVALUATIONS, METRICS, TRAINED_ON, data_config, members_of, metric_columns, saved_epoch
from equicat.tasks.tables import MetricSums
from equicat.tasks.tasks import task_of, values_of


def evaluate_split(
    model: Potential | DirectModel,
    dataset: AnyDataset,
    options: ApplyOptions,
    title: str = "",
) -> SplitResult:
    """Metrics on free atoms, pooled over batches (see :mod:`equicat.tasks.metrics`).

    Raises:
        InputError: if the data lack a label, hold another energy than the model predicts, or an unknown element.
    """
    info, task = model.info, task_of(model.info.outputs)
    options.check(info)
    check_energy_reference(info, dataset.info, dataset.path)
    require_labels(dataset, task.labels)
    sums: dict[str, MetricSums] = {}
    kept, watch = Kept(task.quantities, info.domain), watch_of(model, options)
    for batch, prediction in predictions(model, dataset, options, title, watch, task.labels):
        found, target = values_of(prediction, batch), task.target(batch)
        for row, values in {info.network.name: found, **task.baselines(batch, info.statistics)}.items():
            sums.setdefault(row, MetricSums(task.quantities)).add(values, target, batch)
        grades = None if model.grade is None else model.grade(model, batch)
        kept.add(batch, found, target, grades)
    systems = system_numbers(dataset)
    return SplitResult(
        n_structures=len(dataset),
        n_systems=len(np.unique(systems)),
        n_free_atoms=kept.n_free_atoms,
        rows={row: s.compute() for row, s in sums.items()},
        outside_training=watch.texts(),
        arrays=kept.arrays(systems),
    )


def evaluate(
    run: str | Path,
    data: str | Path | None = None,
    *,
    energy_key: str | None = None,
    forces_key: str | None = None,
    energy_reference: Literal["adsorption", "total", "relative"] | None = None,
    out: str | Path | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Evaluate a run on every split found at ``data``, beside the run's own validation, which stays as it is.

    Args:
        run: Run directory that `equicat train` wrote, or the folder of an ensemble, whose mean is judged.
        data: Data set directory, store or structure file. Default: the validation data of the run, whose results are
            then written anew.
        energy_key: Info key of the energies (files only).
        forces_key: Column of atoms with the forces (files only).
        energy_reference: What the energies of a file are. Default: total.
        out: Folder for the results on other data. Default: RUN/evaluations/NAME, named by the data.
        how: see :class:`~equicat.apply.options.ApplyOptions`.

    Returns:
        What the JSON file of the evaluation holds, and under ``written`` the names of the files.

    Raises:
        InputError: if no split can be evaluated. If only some can, the others are in ``skipped``, with the reason.
    """
    options = ApplyOptions(**how)
    keys = {"energy_key": energy_key, "forces_key": forces_key, "energy_reference": energy_reference}
    if data is None:
        _refuse_file_options(
            {"energy_key": energy_key, "forces_key": forces_key, "energy_reference": energy_reference, "out": out}
        )
        return evaluate_validation(run, **how)
    run, data = Path(run), Path(data)
    runs = members_of(run)
    model = saved.load(run, options.device)
    options.check(model.info)
    folder = folder_for(run, data, "minus_clean_slab" * options.minus_clean_slab) if out is None else Path(out)
    check_writable(folder)
    known = TrainedOn.read(runs[0] / TRAINED_ON)
    found = splits_of(data, model.info.task)
    splits = {name: path for name, path in found.items() if name != "train" or path == data}  # evaluated when named
    labels = task_of(model.info.outputs).labels
    datasets, skipped = usable(model, splits, labels, **keys)
    results = {}
    for name, dataset in datasets.items():
        results[name] = evaluate_split(model, dataset, options, name)
        if known is not None:
            results[name].n_trained_on, results[name].n_chose_checkpoint = known.overlap(dataset)
    remarks = remarks_on({name: result.as_json() for name, result in results.items()})
    summary = summary_of(
        model.info,
        str(data.resolve()),
        results,
        energies_assumed=data.is_file() and energy_reference is None and any("energy" in label for label in labels),
        minus_clean_slab=options.minus_clean_slab,
        skipped=skipped,
        remarks=remarks,
    )
    return summary | {"written": [str(path) for path in write_other(folder, summary, results)]}


def usable(
    model: Potential | DirectModel,
    splits: Mapping[str, Path],
    labels: Sequence[str],
    *,
    energy_key: str | None = None,
    forces_key: str | None = None,
    energy_reference: str | None = None,
) -> tuple[dict[str, Dataset], dict[str, str]]:
    """The splits on which a model can be judged, opened; and those on which it cannot, with the reason.

    Args:
        model: to be judged.
        splits: stores or files by name.
        labels: what is compared.
        energy_key: for files: take the energies from this key of each frame.
        forces_key: for files: take the forces from this column of atoms.
        energy_reference: what the energies of files are; total if not given.

    Raises:
        InputError: if there is none to be judged on, or one has another kind of energies than the model.
    """
    datasets: dict[str, Dataset] = {}
    skipped: dict[str, str] = {}
    for name, path in splits.items():
        dataset = open_dataset(path, energy_key, energy_reference, forces_key=forces_key, labels=tuple(labels))
        assumed = path.is_file() and energy_reference is None
        check_energy_reference(model.info, dataset.info, path, "--energy_reference" if assumed else "")
        reason = _cannot_be_judged_on(model, dataset, labels)
        if reason:
            skipped[name] = reason
        else:
            datasets[name] = dataset
    if not datasets:
        raise InputError("; ".join(skipped.values()) or "there is a training split only; name it to evaluate it")
    return datasets, skipped


def _cannot_be_judged_on(model: Potential | DirectModel, dataset: Dataset, labels: Sequence[str]) -> str:
    """Why a model cannot be judged on a split: an element that it does not know, or labels that are missing."""
    unknown = [chemical_symbols[z] for z in dataset.elements if z not in model.elements]
    if unknown:
        return (
            f"{dataset.path}: holds {', '.join(unknown)}, and the model was trained without; it knows "
            f"{', '.join(model.info.element_symbols)}"
        )
    try:
        require_labels(dataset, labels)
    except InputError as error:
        return str(error)
    return ""


def _refuse_file_options(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if value is not None:
            raise InputError(f"{name} is for other data than the run's own validation data; name them with --data")


def evaluate_validation(run: str | Path, **how: Any) -> dict[str, Any]:
    """Evaluate a run on the validation data of its own configuration: all of it, or what was held out for it.

    Args:
        run: run directory, or the folder of an ensemble, whose members have the same data.
        how: see :class:`~equicat.apply.options.ApplyOptions`.

    Returns:
        What ``evaluation.json`` holds, and under ``written`` the names of the files.

    Raises:
        InputError: if the run has no configuration, or its data are gone.
    """
    run, options, runs = Path(run), ApplyOptions(**how), members_of(run)
    model = saved.load(run, options.device)
    options.check(model.info)
    config = data_config(runs[0])
    if config.val:
        config = dataclasses.replace(config, n_val=None)
    _, val = training_data(config, model.info.task, task_of(model.info.outputs).labels)
    result = evaluate_split(model, val, options, "val")
    known = TrainedOn.read(runs[0] / TRAINED_ON)
    result.n_trained_on = None if known is None else known.overlap(val)[0]
    result.n_chose_checkpoint = result.n_systems
    remarks = remarks_on({"val": result.as_json()}) + _drawn_remarks(config, val) + _overfitting(run, result)
    more = {"minus_clean_slab": options.minus_clean_slab, "remarks": remarks}
    summary = summary_of(model.info, "validation data of the run", {"val": result}, **more)
    if options.minus_clean_slab:  # not what the run was validated with
        written = write_other(run / EVALUATIONS / "val-minus_clean_slab", summary, {"val": result})
    else:
        written = write_validation(run, summary, {"val": result})
    return summary | {"written": [str(path) for path in written]}


def _drawn_remarks(config: DataConfig, val: AnyDataset) -> list[str]:
    if config.val or has_ids(val):
        return []
    return [
        "val: frames were drawn at random from the training data, which have no sid: neighbouring frames of the same "
        "relaxation may have been trained on"
    ]


def _overfitting(run: Path, result: SplitResult) -> list[str]:
    try:
        metrics = metric_columns(run / METRICS)
    except (OSError, ValueError):
        return []
    row = saved_epoch(metrics)
    if row is None:
        return []
    training = {name.removeprefix("train_"): float(c[row]) for name, c in metrics.items() if name.startswith("train_")}
    return overfitting(training, next(iter(result.rows.values())))
