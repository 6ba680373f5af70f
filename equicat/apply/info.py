"""`equicat info`: a run in a few lines, from its files; what is missing is left out."""

from pathlib import Path
from typing import Any

from equicat.errors import InputError
from equicat.files import read_json
from equicat.models import saved
from equicat.models.model import ModelInfo
from equicat.run_directory import (
    DATA,
    DESCRIPTION,
    ENVIRONMENT,
    GRADE,
    METRICS,
    WEIGHTS,
    has_checkpoint,
    members_of,
    metric_columns,
    read_config,
    saved_epoch,
)
from equicat.tasks.tables import METRICS as KNOWN
from equicat.tasks.tables import amount


def describe(run: str | Path) -> dict[str, str]:
    """A run in words by title: task, elements, energies, data, size, errors, versions.

    Args:
        run: run directory that `equicat train` wrote, finished or not, or the folder of an ensemble.

    Raises:
        InputError: if there is no run, or the description of its model is damaged or of a newer format.
    """
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"{run}: no such run directory; `equicat train` writes one")
    run, *others = members_of(run)
    ensemble = {"ensemble": f"{1 + len(others)} models, of which this is the first"} if others else {}
    found = ensemble | _of_model(run, saved.read_info(run)) | _of_data(run) | _of_training(run)
    return {title: text for title, text in found.items() if text}


def as_text(found: dict[str, str]) -> str:
    """One line for each title."""
    width = max(map(len, found))
    return "\n".join(f"{title:<{width}}  {text}" for title, text in found.items())


def _of_model(run: Path, info: ModelInfo) -> dict[str, str]:
    network = info.network
    depth = [f"{name} {getattr(network, name)}" for name in ("n_layers", "l_max") if name in vars(network)]
    size = ""
    if (run / WEIGHTS).is_file():
        size = f"{sum(p.numel() for p in saved.load_one(run).parameters()):,}"
    return {
        "run": str(run),
        "task": f"{info.task}: {', '.join(info.outputs)}",
        "network": ", ".join([network.name, *depth, f"cutoff {network.cutoff} Å", info.dtype]),
        "parameters": size or "no weights yet",
        "own code": _own_code(info),
        "elements": f"{len(info.element_symbols)}: {' '.join(info.element_symbols)}",
        "energies": info.energy_reference,
        "grade": "of atoms, by the training data" if (run / GRADE).is_file() else "none",
        "format": str(read_json(run / DESCRIPTION).get("format_version")),
    }


def _own_code(info: ModelInfo) -> str:
    """Heads and modules that are not part of equicat; empty if all of it is."""
    if not info.own_modules:
        return ""
    heads = [name for name in (info.energy_head, info.displacement_head) if name is not None and ":" in name]
    said = f" (heads {', '.join(heads)})" if heads else ""
    return f"{', '.join(info.own_modules)}, imported to load the run{said}"


def _of_data(run: Path) -> dict[str, str]:
    """Training and validation data, and the run that the weights are from."""
    if not (run / DATA).is_file():
        return {}
    data, found = read_json(run / DATA), {}
    for part, title in (("train", "training data"), ("val", "validation data")):
        one: dict[str, Any] = data.get(part, {})
        if one:
            found[title] = f"{one['path']}: {amount(one['n_structures'], one['n_systems'])}"
    try:
        start = read_config(run)["run"]["init_from"]
    except (InputError, KeyError, TypeError):
        start = None
    return found | ({"began as": str(start)} if start else {})


def _of_training(run: Path) -> dict[str, str]:
    """Length, errors at the saved weights, whether it can go on, and the versions that trained it."""
    found = {}
    try:
        columns = metric_columns(run / METRICS)
    except (OSError, ValueError):
        columns = {}
    if columns:
        found["trained"] = (
            f"{columns['step'][-1]:,.0f} steps, epoch {columns['epoch'][-1] + 1:.0f}, "
            f"{columns['time_s'][-1] / 60:.1f} min"
        )
        skipped = columns.get("skipped")
        if skipped is not None and skipped[-1] > 0:
            found["skipped steps"] = f"{skipped[-1]:.0f}, whose loss or gradient was not finite"
    row = saved_epoch(columns)
    if row is not None:
        named = ((metric, columns.get(f"val_{name}")) for name, metric in KNOWN.items())
        errors = [f"{m.heading} {m.text(float(c[row]))}" for m, c in named if c is not None and m.is_shown("headline")]
        found["validation"] = f"{', '.join(errors)} (step {columns['step'][row]:,.0f})"
    found["to go on"] = "--run.resume true" if has_checkpoint(run) else ""
    if (run / ENVIRONMENT).is_file():
        environment = read_json(run / ENVIRONMENT)
        versions = environment.get("versions", {})
        words = [f"{name} {versions[name]}" for name in ("equicat", "torch", "lightning") if name in versions]
        found["versions"] = ", ".join([*words, f"commit {environment.get('commit', 'unknown')}"])
    return found
