"""The files of a run directory: their names, and what is said of the machine that made them."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from equicat.data.training_data import DataConfig
from equicat.errors import InputError
from equicat.files import read_json

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"

FORMAT_VERSION = 2
"""Format of ``model.json`` and of the names in ``model.safetensors``."""


def read_description(path: Path) -> dict[str, Any]:
    """``model.json`` in today's format, whichever version wrote it.

    Raises:
        InputError: if the file cannot be read or holds no JSON object.
    """
    values = read_json(path)
    if values.get("format_version") == 1:  # only the names of the weights changed
        values["format_version"] = FORMAT_VERSION
    return values


def data_config(run: str | Path) -> DataConfig:
    """The data that a run was trained and validated on, as its ``config.yaml`` says.

    Raises:
        InputError: if the run has no configuration, or a damaged one.
    """
    path = Path(run) / CONFIG
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
        options: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return DataConfig(**options)
    except OSError as error:
        raise InputError(f"{path}: cannot read the configuration ({error.strerror})") from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a configuration of equicat ({' '.join(str(error).split())})") from error


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
