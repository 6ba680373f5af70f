"""The layout of a data set directory: one store a task and split."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from equicat.data.info import DatasetInfo
from equicat.data.readers import stem_of
from equicat.data.store import write_store
from equicat.data.structure import Structure
from equicat.errors import InputError, nearest

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
"""IS2RE and IS2RS start from the same initial structures."""


def is_store(path: Path) -> bool:
    """Whether the directory is a store (one split)."""
    return (path / "index.json").is_file()


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
    names = sorted((p.name for p in task_path.iterdir() if is_store(p)), key=lambda name: (name != "train", name))
    if not names:
        raise InputError(f"{path}: no splits for task {task!r}; found {stores_below(path)}")
    return {name: task_path / name for name in names}


def stores_below(path: Path) -> str:
    """What a directory holds, for messages: its stores, or else its entries."""
    found = sorted(index.parent.relative_to(path).as_posix() for index in path.glob("*/**/index.json"))
    entries = sorted(entry.name for entry in path.iterdir())
    return ", ".join(found or entries) or "nothing"


def write_split(
    root: Path, split: str, frames: Iterable[Structure], systems: Iterable[Structure], info: DatasetInfo
) -> dict[str, int]:
    """Write one split of a data set directory: ``s2ef/<split>`` and ``is2re/<split>``.

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
        counts[name] = 0 if first is None else write_store(root / task / split, chain([first], iterator), info)
    return counts
