"""The data set directory: one store for each task and split, and a description.

::

    dataset.json            what the data set is and how it was made
    s2ef/train/             a store: index.json, n_atoms.npy, 00000.safetensors ...
    s2ef/val_id/ ...
    is2re/train/ ...        serves IS2RE and IS2RS
    subsets/50/             a data set of 50 training systems, for studies of data efficiency
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from equicat.data.info import DatasetInfo
from equicat.data.readers import stem_of
from equicat.data.store import write_store
from equicat.data.structure import Structure
from equicat.errors import InputError, nearest
from equicat.files import read_json, replace_json, visible

UNSEEN = {
    "train": (False, False),
    "val_id": (False, False),
    "val_ood_ads": (True, False),
    "val_ood_cat": (False, True),
    "val_ood_both": (True, True),
}
"""Whether the adsorbates and the catalysts of each split are unseen in training."""


SPLITS = tuple(UNSEEN)


TASK_DIRECTORIES = {"s2ef": "s2ef", "is2re": "is2re", "is2rs": "is2re"}
"""Directory of each task; IS2RE and IS2RS start from the same initial structures."""
DESCRIPTION = "dataset.json"
DESCRIPTION_VERSION = 1


def is_store(path: Path) -> bool:
    """Whether the directory is a store (one split)."""
    return (path / "index.json").is_file()


def require_store(path: Path) -> Path:
    """The path of a store, for what works on one split only.

    Raises:
        InputError: if it is none; the message lists the stores below it.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no store (a directory with one split of a data set)")
    if not is_store(path):
        raise InputError(f"{path}: holds several splits or no store; name one of: {', '.join(_below(path))}")
    return path


def store_path(root: Path, task: str, split: str) -> Path:
    """Where a split of a task is in a data set."""
    return root / TASK_DIRECTORIES[task] / split


def subset_path(root: Path, n: int) -> Path:
    """Where the subset of ``n`` training systems is in a data set; it is a data set itself."""
    return root / "subsets" / str(n)


def splits_of(path: str | Path, task: str) -> dict[str, Path]:
    """The splits of a task found at ``path``, ``train`` first: name to store directory or structure file.

    ``path`` may be the root of a data set, the directory of one task, one split, or a structure file.

    Raises:
        InputError: if the task is unknown or nothing for it is there; the message lists what was found.
    """
    if task not in TASK_DIRECTORIES:
        raise InputError(
            f"unknown task {task!r}{nearest(task, TASK_DIRECTORIES)}; tasks: {', '.join(TASK_DIRECTORIES)}"
        )
    path = Path(path)
    if path.is_file():
        return {stem_of(path): path}
    if not path.is_dir():
        raise InputError(f"{path}: no such file or directory")
    if is_store(path):
        return {path.name: path}
    # The root of a data set has one directory for each task; otherwise `path` is such a directory itself.
    task_path = path / TASK_DIRECTORIES[task] if (path / TASK_DIRECTORIES[task]).is_dir() else path
    names = sorted((p.name for p in visible(task_path) if is_store(p)), key=lambda name: (name != "train", name))
    if not names:
        raise InputError(f"{path}: no splits for task {task!r}; found {stores_below(path)}")
    return {name: task_path / name for name in names}


def stores_in(path: Path) -> list[Path]:
    """All stores below a directory at any depth, ``train`` first among those of one folder; hidden ones are left out.

    Raises:
        InputError: if there is none.
    """
    found = [index.parent for index in visible(path, "*/**/index.json")]
    if not found:
        raise InputError(f"{path}: no data set; found {stores_below(path)}")
    return sorted(found, key=lambda store: (store.parent.as_posix(), store.name != "train", store.name))


def stores_below(path: Path) -> str:
    """The stores that a directory holds, or else its entries, for messages."""
    found = _below(path)
    advice = f"; make a store of LMDBs with `equicat data oc20 OUT --from {path}`"
    return (", ".join(found) or "nothing") + (advice if any(name.endswith("lmdb") for name in found) else "")


def _below(path: Path) -> list[str]:
    found = sorted(index.parent.relative_to(path).as_posix() for index in visible(path, "*/**/index.json"))
    return found or [entry.name for entry in visible(path)]


def write_split(
    root: Path, split: str, frames: Iterable[Structure], systems: Iterable[Structure], info: DatasetInfo
) -> dict[str, int]:
    """Write one split of a data set: ``s2ef/<split>`` and ``is2re/<split>``.

    Args:
        root: of the data set.
        split: its name.
        frames: with energy and forces.
        systems: initial structures, with the relaxed energy and positions.
        info: what the energies mean.

    Returns:
        How many systems and frames there are; a task that has none gets no directory.

    Raises:
        InputError: if a label is missing from some of them.
    """
    counts = {}
    for name, task, structures in (("systems", "is2re", systems), ("frames", "s2ef", frames)):
        iterator = iter(structures)
        first = next(iterator, None)
        counts[name] = 0
        if first is not None:
            counts[name] = write_store(store_path(root, task, split), chain([first], iterator), info)
    return counts


def write_description(root: Path, info: DatasetInfo, splits: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``dataset.json`` and return what it holds: the data set's info, and what is known of each split."""
    description = {"format_version": DESCRIPTION_VERSION, **asdict(info), "splits": dict(splits)}
    replace_json(root / DESCRIPTION, description)
    return description


def read_description(root: Path) -> dict[str, Any]:
    """The content of ``dataset.json``; an empty dictionary if there is none.

    Raises:
        InputError: if it is damaged.
    """
    return read_json(root / DESCRIPTION) if (root / DESCRIPTION).is_file() else {}
