"""Results of an evaluation: what is kept of each split, the files they go to, and the text that commands print.

A run's own validation is ``evaluation.json`` and ``predictions/``; it is replaced by nothing else than the run's own
validation. Every evaluation on other data has a folder of its own, ``evaluations/NAME``, named by the data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from equicat.data.readers import stem_of
from equicat.errors import InputError
from equicat.files import read_json, replace_json, replacing_directory, replacing_file, write_json, writing_to
from equicat.models.model import ModelInfo
from equicat.run_directory import EVALUATION, EVALUATIONS, OTHER_METRICS, PREDICTIONS
from equicat.tasks.tables import amount, format_table


@dataclass
class SplitResult:
    """Metrics of the model and of the trivial baselines on one split, and what the parity plots need."""

    n_structures: int
    n_systems: int
    """Relaxations; frames of one share a sid."""
    n_free_atoms: int
    rows: dict[str, dict[str, float]]
    """Metrics by row title: the model first, then the baselines."""
    n_trained_on: int | None = None
    """Systems that the model was trained on; None if the run does not know."""
    n_chose_checkpoint: int | None = None
    """Systems by which the saved weights were chosen; None if the run does not know."""
    outside_training: list[str] = field(default_factory=list)
    """Remarks on how the structures are unlike those of the training data."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything but the arrays."""
        return {name: value for name, value in vars(self).items() if name != "arrays"}


def summary_of(info: ModelInfo, data: str, results: Mapping[str, SplitResult], **more: Any) -> dict[str, Any]:
    """The content of the JSON file of an evaluation; ``more`` is said of the evaluation as a whole."""
    return {
        "task": info.task,
        "data": data,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "energy_reference": info.energy_reference,
        **more,
        "splits": {name: result.as_json() for name, result in results.items()},
    }


def write_validation(run: Path, summary: dict[str, Any], results: Mapping[str, SplitResult]) -> list[Path]:
    """Write ``evaluation.json`` and, for the parity plots, ``predictions/<split>.npz``; returns what was written."""
    with writing_to(run):
        (run / PREDICTIONS).mkdir(exist_ok=True)
        for name, result in results.items():
            with replacing_file(run / PREDICTIONS / f"{name}.npz") as temporary:
                np.savez_compressed(temporary, **result.arrays)  # type: ignore[arg-type]
        replace_json(run / EVALUATION, summary)
    return [run / EVALUATION]


def write_other(folder: Path, summary: dict[str, Any], results: Mapping[str, SplitResult]) -> list[Path]:
    """Write an evaluation on other data, replacing an earlier one on the same data; returns what was written."""
    with writing_to(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing_directory(folder, overwrite=True) as temporary:
            (temporary / PREDICTIONS).mkdir()
            for name, result in results.items():
                np.savez_compressed(temporary / PREDICTIONS / f"{name}.npz", **result.arrays)  # type: ignore[arg-type]
            write_json(temporary / OTHER_METRICS, summary)
    return [folder / OTHER_METRICS]


def folder_for(run: Path, data: Path, variant: str = "") -> Path:
    """The folder of an evaluation: named by the data, numbered if other data of that name were evaluated before.

    Args:
        run: the run directory.
        data: a data set, a store or a file.
        variant: what tells an evaluation on the same data apart, or empty.
    """
    name = stem_of(data) if data.suffix else data.name
    if data.is_file() and name.isupper():  # OUTCAR, POSCAR: the folder says which
        name = f"{data.resolve().parent.name}-{name}"
    name = "-".join(filter(None, (name or data.resolve().name, variant)))
    k = 1
    while True:
        folder = run / EVALUATIONS / (name if k == 1 else f"{name}-{k}")
        if not (folder / OTHER_METRICS).is_file() or read_json(folder / OTHER_METRICS).get("data") == str(
            data.resolve()
        ):
            return folder
        k += 1


def check_writable(folder: Path) -> None:
    """Make sure, before hours of computing, that an evaluation can be written, and that it replaces nothing else.

    Raises:
        InputError: if there is no permission, or the folder holds something that is no evaluation.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise InputError(f"{existing}: is a file; give another folder")
    if existing == folder and any(folder.iterdir()) and not (folder / OTHER_METRICS).is_file():
        raise InputError(f"{folder}: holds other things than an evaluation, which would be lost; give another folder")
    with writing_to(folder):
        probe = existing / f".{folder.name}-probe"
        probe.touch()
        probe.unlink()


def as_text(summary: Mapping[str, Any]) -> str:
    """The tables that `equicat evaluate` prints, one a split, and what must be said beside them."""
    parts = []
    for name, split in summary["splits"].items():
        title = f"{name}: {amount(split['n_structures'], split['n_systems'])}, {split['n_free_atoms']:,} free atoms"
        parts.append(f"{title}{_known(split)}\n{format_table(split['rows'])}")
    energies = summary["energy_reference"]
    if summary.get("energies_assumed"):
        energies += " (assumed of a file; --energy_reference says otherwise)"
    if summary.get("minus_clean_slab"):
        energies += ", minus the model's own clean slab"
    parts.append(f"Energies: {energies}. Fixed atoms are not counted.")
    said = [f"{name}: skipped: {reason}" for name, reason in summary.get("skipped", {}).items()]
    said += [f"Note: {remark}." for remark in summary.get("remarks", [])]
    return "\n\n".join([*parts, *(["\n".join(said)] if said else [])])


def _known(split: Mapping[str, Any]) -> str:
    """Whether the model knows these systems already, as the end of a title."""
    trained, chose = split.get("n_trained_on"), split.get("n_chose_checkpoint")
    words = []
    if chose:
        which = "they" if chose == split["n_systems"] else f"{chose:,} of the systems"
        words.append(f"{which} also chose the checkpoint")
    if trained is not None:
        words.append(f"{trained:,} of {split['n_systems']:,} systems were trained on")
    return "".join(f"; {word}" for word in words)
