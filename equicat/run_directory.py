"""The run directory: the names of its files, how they are read and written, and how a new run takes an old one's place.

``model.safetensors`` and ``model.json`` together are a model: :mod:`equicat.models.saved` reads and writes them.
"""

import csv
import hashlib
import math
import pickle
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float
from numpy import ndarray

from equicat.data.training_data import DataConfig
from equicat.errors import InputError
from equicat.files import read_json, replace_directory, replace_json, replacing_file, restore_directory, writing_to

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.csv"
"""One row an epoch, validation or ``run.log_every``; a cell is empty where nothing was validated."""
BEST = "checkpoints/best.ckpt"
"""The state of training after the validation whose weights are in ``model.safetensors``."""
LAST = "checkpoints/last.ckpt"
"""The last state of training that was saved: what `--run.resume true` goes on from."""
PREVIOUS = "checkpoints/previous.ckpt"
"""The state of training that was saved before :data:`LAST`, for the case that this is damaged."""
CHECKSUM = "checksum"
"""Entry of a checkpoint: :func:`digest` of everything else in it."""
GRADE = "grade.safetensors"
"""The training data in the model's own features (:class:`equicat.models.uncertainty.Grade`)."""
DATA = "data.json"
"""Where training and validation data come from, and how much of each there is."""
TRAINED_ON = "trained_on.npz"
"""Keys of what was trained on and validated with (:class:`equicat.data.identity.TrainedOn`)."""
EVALUATION = "evaluation.json"
"""Metrics on the run's own validation data, and on nothing else."""
PREDICTIONS = "predictions"
"""Folder with predictions and labels, a file a split: beside :data:`EVALUATION`, and in every other evaluation."""
EVALUATIONS = "evaluations"
"""Folder with a folder for each evaluation on other data."""
OTHER_METRICS = "metrics.json"
"""Metrics of an evaluation on other data, in its folder; of the form of :data:`EVALUATION`."""
REPORT = "report.html"
"""The page about the run."""

FORMAT_VERSION = 2
"""Format of ``model.json`` and of the names in ``model.safetensors``."""


def holds_run(path: Path) -> bool:
    """Whether a directory looks like a run, of whatever age: it has a configuration or a model."""
    return any((path / name).is_file() for name in (CONFIG, DESCRIPTION))


def members_of(run: str | Path) -> list[Path]:
    """The runs of an ensemble that `equicat train --run.members N` wrote, or the run itself."""
    run = Path(run)
    found = [path.parent for path in sorted(run.glob(f"seed_*/{WEIGHTS}"))]
    return [run] if (run / DESCRIPTION).is_file() or not found else found


def read_description(path: Path) -> dict[str, Any]:
    """``model.json`` in today's format, whichever version wrote it.

    Raises:
        InputError: if the file cannot be read or holds no JSON object.
    """
    values = read_json(path)
    if values.get("format_version") == 1:  # only the names of the weights changed
        values["format_version"] = FORMAT_VERSION
    return values


# ---- configuration and environment ---------------------------------------------------------------------------------


def read_config(run: str | Path) -> dict[str, Any]:
    """Options of a run by part, as ``config.yaml`` holds them.

    Raises:
        InputError: if the run has no configuration, or a damaged one.
    """
    path = Path(run) / CONFIG
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the configuration ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a configuration of equicat ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a configuration of equicat (a mapping of keys to values)")
    return values


def data_config(run: str | Path) -> DataConfig:
    """The data that a run was trained and validated on, as its ``config.yaml`` says.

    Raises:
        InputError: if the run has no configuration, or a damaged one.
    """
    try:
        values = read_config(run)["data"]
        options: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return DataConfig(**options)
    except (KeyError, TypeError, AttributeError) as error:
        path = Path(run) / CONFIG
        raise InputError(f"{path}: not a configuration of equicat ({' '.join(str(error).split())})") from error


def write_config(run: Path, values: Mapping[str, Any]) -> None:
    """Write ``config.yaml``: all options of a run by part."""
    with replacing_file(run / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(plain(values), sort_keys=False), encoding="utf-8")


def plain(value: Any) -> Any:
    """A value as YAML holds it: tuples are lists."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, tuple | list) else value


def write_environment(run: Path) -> None:
    """Write ``environment.json``."""
    replace_json(run / ENVIRONMENT, environment())


def environment() -> dict[str, Any]:
    """Versions, commit and machine, for ``environment.json``."""
    versions = {}
    for name in ("equicat", "torch", "lightning", "e3nn", "ase", "vesin", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed as a package"
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "versions": versions,
        "commit": commit,
        "python": platform.python_version(),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "threads": torch.get_num_threads()},
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


# ---- metrics -------------------------------------------------------------------------------------------------------

Row = dict[str, str]
"""An epoch of ``metrics.csv``: cells by column."""


def read_metrics(run: Path, last_step: int) -> list[Row]:
    """The epochs of ``metrics.csv`` up to a step; rows beyond it, or cut off by a crash, are left out."""
    path = run / METRICS
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
    return [row for row in rows if row.get("step", "").isdigit() and int(row["step"]) <= last_step]


def column(rows: Sequence[Row], name: str) -> list[float]:
    """The numbers of a column, without the epochs that have none there."""
    return [float(row[name]) for row in rows if row.get(name)]


def write_metrics(run: Path, rows: Sequence[Row], header: Sequence[str]) -> None:
    """Write ``metrics.csv`` anew, with exactly these epochs; columns that only the rows have come last."""
    names = list(dict.fromkeys([*header, *(name for row in rows for name in row)]))
    with replacing_file(run / METRICS) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def append_metrics(run: Path, row: Row) -> None:
    """Add an epoch to ``metrics.csv``, which :func:`write_metrics` began; columns that it lacks are left out."""
    with (run / METRICS).open("r+", newline="", encoding="utf-8") as file:
        names = file.readline().rstrip("\n").split(",")
        file.seek(0, 2)
        file.write(",".join(row.get(name, "") for name in names) + "\n")


def metric_columns(path: Path) -> dict[str, Float[ndarray, "n_epochs"]]:
    """The columns of a ``metrics.csv`` as numbers, NaN where a cell is empty.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it has no rows, or a cell is not a number.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, restval=""))
    if not rows:
        raise ValueError("no rows yet")
    return {name: np.array([float(row[name] or math.nan) for row in rows]) for name in rows[0] if name is not None}


def saved_epoch(columns: Mapping[str, Float[ndarray, "n_epochs"]]) -> int | None:
    """The row of ``metrics.csv`` that belongs to the saved weights: the first with the lowest validation loss."""
    losses = columns.get("val_loss", np.zeros(0))
    return int(np.nanargmin(losses)) if np.isfinite(losses).any() else None


# ---- checkpoints ---------------------------------------------------------------------------------------------------


class DamagedError(InputError):
    """A checkpoint that is missing, cut off or not what was written."""


def has_checkpoint(run: Path) -> bool:
    """Whether there is a checkpoint to resume a run from, damaged or not."""
    return any((run / name).is_file() for name in (LAST, PREVIOUS))


def digest(value: Any) -> str:
    """SHA-256 of tensors and plain values in mappings and lists, in hexadecimal."""
    found = hashlib.sha256()
    _add_to(found, value)
    return found.hexdigest()


def _add_to(found: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        found.update(f"{value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        found.update(f"{len(value)} keys".encode())
        for key, entry in value.items():
            found.update(f"{key!r}:".encode())
            _add_to(found, entry)
    elif isinstance(value, list | tuple):
        found.update(f"{len(value)} entries".encode())
        for entry in value:
            _add_to(found, entry)
    else:
        found.update(f"{value!r};".encode())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of training: tensors and plain values. Nothing that a file names is imported or run.

    Checkpoints of earlier versions have no checksum and are taken as they are.

    Raises:
        DamagedError: if the file is missing or damaged.
        InputError: if it asks for anything else than tensors and plain values.
    """
    if not path.is_file():
        raise DamagedError(f"{path}: no such checkpoint")
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        checkpoint = {} if foreign else torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).split(". ")[0].splitlines()
        raise DamagedError(f"{path}: damaged ({reason[0] if reason else type(error).__name__})") from error
    if foreign:
        raise InputError(
            f"{path}: asks for {', '.join(sorted(foreign))}; a checkpoint of equicat holds nothing but tensors and "
            "plain values, so it was not loaded"
        )
    if not isinstance(checkpoint, dict):
        raise DamagedError(f"{path}: no checkpoint of equicat, but {type(checkpoint).__name__}")
    checksum = checkpoint.pop(CHECKSUM, None)
    if checksum is not None and checksum != digest(checkpoint):
        raise DamagedError(f"{path}: damaged (its content has not the checksum that was written with it)")
    return checkpoint


# ---- a new run -----------------------------------------------------------------------------------------------------


class NewRun:
    """Where training writes. A run that replaces another is written beside it until its first model is saved.

    Attributes:
        path: the directory that files go to now.
    """

    def __init__(self, run: Path, replaces: bool):
        self.final = run.resolve()
        self.path = self.final.with_name(f".{self.final.name}.new") if replaces else self.final
        self.is_kept = False

    def keep(self) -> None:
        """Let the directory outlive a failure: there is something in it to go on from."""
        self.is_kept = self.path == self.final

    def publish(self) -> None:
        """Take the place of the run that this one replaces, which is removed. Does nothing if none is left."""
        if self.path != self.final:
            beside = self.path
            replace_directory(self.final, beside)
            beside.symlink_to(self.final.name, target_is_directory=True)  # loggers hold paths in there
            self.path = self.final
        self.is_kept = True


@contextmanager
def new_run(run: Path, overwrite: bool) -> Iterator[NewRun]:
    """A directory for a new run, removed on failure unless it was kept or published.

    Args:
        run: directory that the run will have in the end.
        overwrite: replace the run that is there.

    Raises:
        InputError: if the directory cannot be made, or another training makes it at the same time.
    """
    is_there = run.is_dir()
    started = NewRun(run, overwrite and is_there and any(run.iterdir()))
    beside = started.path
    with writing_to(beside):
        if beside != started.final:
            _remove(beside)  # what a start that was killed has left
        try:
            beside.mkdir(parents=True, exist_ok=is_there and beside == started.final)
        except FileExistsError as error:
            raise InputError(f"{run}: another training writes there; give each a run.out of its own") from error
    try:
        yield started
    finally:
        if not started.is_kept or beside != started.final:
            _remove(beside)


def check_free(run: Path, overwrite: bool) -> None:
    """Make sure that a new run may be written to a directory.

    Raises:
        InputError: if a run is there and must not be replaced, or if it is something else than a run.
    """
    restore_directory(run.resolve())
    if run.exists() and not run.is_dir():
        raise InputError(f"{run}: is a file; give the name of a directory as run.out")
    if not run.is_dir() or not any(run.iterdir()):
        return
    if not overwrite:
        raise InputError(
            f"{run}: exists; choose another run.out, or give `--run.overwrite true` to replace it "
            "or `--run.resume true` to go on"
        )
    if not holds_run(run):
        raise InputError(f"{run}: holds no run ({CONFIG} or {DESCRIPTION}), so it is not overwritten; remove it first")


def _remove(path: Path) -> None:
    """A directory with all that is in it, or a link to one; nothing if there is none."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path, ignore_errors=True)
