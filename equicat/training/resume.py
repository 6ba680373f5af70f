"""Resuming a run: reading its checkpoint, refusing changes that would make another run, finding nothing left to do."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from equicat.data.datasets import AnyDataset, Joined
from equicat.errors import InputError
from equicat.models import saved
from equicat.models.direct import DirectModel
from equicat.models.potential import Potential
from equicat.run_directory import (
    BEST,
    DESCRIPTION,
    LAST,
    PREVIOUS,
    DamagedError,
    Row,
    column,
    plain,
    read_checkpoint,
    read_config,
    read_metrics,
)
from equicat.training.config import TrainConfig
from equicat.training.initial_model import check_knows, check_same_model, compute_options
from equicat.training.optimizers import n_without_better

FIXED = (
    "task",
    "output_mlp",
    "output_nonlinearity",
    "initialization",
    "force_head",
    "energy_head",
    "displacement_head",
    "energy_atoms",
    "linear_share",
    "long_range",
    "normalization",
    "pretraining",
    "loss",
    "optimizer.name",
    "optimizer.amsgrad",
    "optimizer.parametrization",
    "optimizer.rates",
    "run.dtype",
    "run.init_from",
)
"""Options, or parts with all their options, that a resumed run cannot change; those of ``model`` are in model.json."""
SETTLED = ("normalization.", "run.init_from")
"""Beginnings of options whose null stands for the value that the run has."""
UNSAID = (
    "run.out",
    "run.members",
    "run.members_at_once",
    "run.overwrite",
    "run.resume",
    "run.progress",
    "run.wandb_name",
)
"""Options that may differ without being mentioned."""


@dataclass(frozen=True)
class Resumption:
    """State of a run at its last checkpoint."""

    run: Path
    path: Path
    """The checkpoint's file."""
    checkpoint: dict[str, Any]
    """Content of that file."""
    config: dict[str, Any]
    """Content of ``config.yaml``: the options of the run so far."""
    rows: list[Row]
    """The rows of ``metrics.csv`` that the checkpoint knows of."""

    @property
    def n_epochs(self) -> int:
        """Number of finished epochs."""
        progress = self.checkpoint.get("progress")  # earlier versions saved finished epochs only
        return int(self.checkpoint["epoch"]) + 1 if progress is None else int(progress["epochs"])

    @property
    def seconds(self) -> float:
        """Training time so far."""
        progress = self.checkpoint.get("progress")
        return max(column(self.rows, "time_s"), default=0.0) if progress is None else float(progress["seconds"])

    @property
    def done(self) -> str:
        """The finished part of the run in words: ``2 epochs and 37 batches``."""
        batches = int(self.checkpoint.get("batches", 0))
        return f"{self.n_epochs} epochs" + (f" and {batches} batches" if batches else "")

    @property
    def val_losses(self) -> list[float]:
        """Loss of each validation so far."""
        return column(self.rows, "val_loss")


def read_resumption(run: Path) -> Resumption:
    """The state of a run at its last checkpoint; if that is damaged, a warning names it and the one before is used.

    Raises:
        InputError: if there is no whole checkpoint, or one that asks for more than tensors and plain values.
    """
    damaged: list[str] = []
    for path in (run / name for name in (LAST, PREVIOUS, BEST) if (run / name).is_file()):
        try:
            checkpoint = _complete(path)
        except DamagedError as error:
            damaged.append(str(error))
            continue
        found = Resumption(run, path, checkpoint, read_config(run), read_metrics(run, int(checkpoint["global_step"])))
        if damaged:
            said = f"warning: {'; '.join(damaged)}; going on from {path}, after {found.done}"
            print(said, file=sys.stderr, flush=True)
        return found
    if damaged:
        raise InputError(f"{'; '.join(damaged)}; there is no other whole checkpoint, so train anew")
    raise InputError(f"{run}: nothing to resume, {run / LAST} is missing")


def _complete(path: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    missing = [key for key in ("epoch", "global_step", "state_dict", "optimizer_states") if key not in checkpoint]
    if missing:
        raise DamagedError(f"{path}: damaged (no {missing[0]} in it)")
    return checkpoint


def resumed_model(
    earlier: Resumption, config: TrainConfig, data: AnyDataset
) -> tuple[Potential | DirectModel, TrainConfig, str]:
    """The model of the run with all its own constants, whose weights are in the checkpoint.

    Returns:
        The model; the configuration with what the run already settled; and what there is to say.

    Raises:
        InputError: if the run holds another model than the configuration describes, does not fit the data, or cannot
            change an option.
    """
    run = earlier.run
    info = saved.read_info(run)
    check_same_model(config, info, run)
    model = saved.build(info, compute=compute_options(config.run))
    check_knows(model, data, run)
    config, changes = _resumed_config(earlier, config)
    weights = {k.removeprefix("model."): v for k, v in earlier.checkpoint["state_dict"].items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{earlier.path}: does not fit {DESCRIPTION} ({' '.join(str(error).split())})") from error
    said = f"{run} goes on after {earlier.done}"
    return model, replace(config, model=model.config), said + (f" (new: {', '.join(changes)})" if changes else "")


def _resumed_config(earlier: Resumption, config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """The configuration with what the run already settled, and the options that change, as text.

    Raises:
        InputError: naming an option that cannot change.
    """
    # An option that the run's version did not know had the effect that its default has now.
    before = _flat(plain(asdict(TrainConfig()))) | _flat(earlier.config)
    if config.run.edge_budget == "auto" and before["run.edge_budget"] is not None:  # the number that it found
        config = replace(config, run=replace(config.run, edge_budget=before["run.edge_budget"]))
    now = _flat(plain(asdict(config)))
    settled = {name: before.get(name) for name in now if name.startswith(SETTLED) and now[name] is None}
    changes = []
    for name, value in now.items():
        if name in settled or name not in before or value == before[name]:
            continue
        if any(name == fixed or name.startswith(f"{fixed}.") for fixed in FIXED):
            raise InputError(
                f"{name} is {value} in the configuration but {before[name]} in the run {earlier.run}, and a resumed "
                f"run keeps it: leave it out, or start a new run with `--run.init_from {earlier.run}`"
            )
        if name not in UNSAID and not name.startswith("model."):
            changes.append(f"{name} {value} instead of {before[name]}")
    own = {name.removeprefix("normalization."): value for name, value in settled.items() if name != "run.init_from"}
    run = replace(config.run, init_from=before.get("run.init_from"))
    return replace(config, normalization=replace(config.normalization, **own), run=run), changes


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by dotted name. Lists, and mappings that are values (reference energies, filters), stay whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and not prefix:
            flat |= _flat(value, f"{name}.")
        else:
            flat[prefix + name] = value
    return flat


def data_summary(data: AnyDataset, label: str) -> dict[str, Any]:
    """Numbers by which data are recognised, wherever they lie: for checkpoints.

    Args:
        data: of training or validation.
        label: of the energies that are trained on.
    """
    energies = np.asarray(data.array(label), dtype=np.float64) if label in data.fields else np.zeros(1)
    weights = data.weights() if isinstance(data, Joined) else (len(data), len(data))
    return {
        "elements": ", ".join(chemical_symbols[z] for z in data.elements),
        "structures": len(data),
        "atoms": int(np.sum(np.asarray(data.n_atoms))),
        "energy": float(np.nansum(energies)),
        "energy weights": float(weights[0]),
        "forces weights": float(weights[1]),
    }


def check_same_data(earlier: Resumption, summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """Make sure that a run goes on with its own data; its losses could not be compared otherwise.

    Args:
        earlier: checkpoints of earlier versions do not know their data, or less of them, and are not checked for it.
        summaries: :func:`data_summary` of the ``training`` and ``validation`` data.

    Raises:
        InputError: naming what differs.
    """
    for name, known in earlier.checkpoint.get("data", {}).items():
        for key, value in summaries[name].items():
            if key not in known:
                continue
            same = np.isclose(value, known[key], rtol=1e-9, equal_nan=True) if key == "energy" else value == known[key]
            if not same:
                raise InputError(
                    f"{earlier.run}: these {name} data are not those of the run ({key}: {value} instead of "
                    f"{known[key]}), with which a resumed run goes on; to train on with others, start a new run with "
                    f"`--run.init_from {earlier.run}`"
                )


def nothing_left(earlier: Resumption, config: TrainConfig) -> str | None:
    """Why there is nothing to do for a run, or None."""
    options, n, minutes = config.run, earlier.n_epochs, earlier.seconds / 60
    if n >= options.max_epochs:
        return f"all {n} epochs are done; raise run.max_epochs to go on"
    step = int(earlier.checkpoint["global_step"])
    if options.max_steps is not None and step >= options.max_steps:
        return f"all {step} steps are done; raise run.max_steps to go on"
    if options.max_minutes is not None and minutes >= options.max_minutes:
        return f"its {minutes:.3g} minutes are used up; raise run.max_minutes to go on"
    stale = n_without_better(earlier.val_losses)
    if options.early_stopping is not None and stale >= options.early_stopping:
        return f"val_loss has not become better in {stale} validations; raise run.early_stopping to go on"
    return None
