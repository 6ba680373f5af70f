"""Files and directories that appear under their final name only when they are complete."""

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from equicat.errors import InputError

PLAN = "plan.json"
"""File of a directory of results that says everything that these depend on."""
Existing = Literal["refuse", "resume", "overwrite"]
"""A directory that holds something is refused, gone on with where it stopped, or begun anew."""


def existing_of(resume: bool, overwrite: bool) -> Existing:
    """The treatment of a directory that holds something, as two switches say it; ``overwrite`` is the stronger one."""
    return "overwrite" if overwrite else "resume" if resume else "refuse"


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; it becomes ``path`` on success and is removed on failure.

    The file gets the permissions of any new file (0666 less the umask), whatever wrote it: safetensors makes files that
    their owner alone can read.

    Raises:
        InputError: if the folder of ``path`` does not exist, or ``path`` is a directory.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a directory; give the name of a file")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it first")
    # The suffix stays last: it decides the compression.
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        temporary.unlink()
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_directory(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary directory beside ``path`` to fill; it becomes ``path`` on success and is removed on failure.

    Raises:
        InputError: if ``path`` exists and ``overwrite`` is False, or is a file.
    """
    restore_directory(path)
    if path.exists() and not (overwrite and path.is_dir()):
        raise InputError(f"{path}: exists already; choose another name, or overwrite it")
    temporary = path.with_name(f".{os.getpid()}-new-{path.name}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        replace_directory(path, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_directory(path: Path, new: Path) -> None:
    """Give a directory the name ``path``; what had that name is removed.

    After a kill between the two renamings nothing has that name; :func:`restore_directory` brings the old one back.
    """
    old = _replaced(path)
    shutil.rmtree(old, ignore_errors=True)  # left by a kill
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def restore_directory(path: Path) -> None:
    """Bring back the directory that a kill in the middle of :func:`replace_directory` left without its name, if any."""
    old = _replaced(path)
    if old.is_dir() and not path.exists():
        old.rename(path)


def _replaced(path: Path) -> Path:
    """The name of a directory while another takes its place."""
    return path.with_name(f".{path.name}.replaced")


def remove_directory(path: Path) -> None:
    """Remove a directory under another name, so that a kill meanwhile leaves no part of it under its own."""
    going = path.with_name(f".{path.name}.removed")
    shutil.rmtree(going, ignore_errors=True)  # left by a kill
    path.rename(going)
    shutil.rmtree(going)


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """The paths in a folder that match a pattern, sorted, without hidden ones and what is in these.

    Names that begin with a dot are those of files that are being written, or that a kill left unfinished, and of what
    systems and editors keep beside files (``.DS_Store``, ``._POSCAR``, ``.INCAR.swp``).
    """
    found = folder.glob(pattern)
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Says in one line what keeps long work from writing to ``path``.

    Raises:
        InputError: if the disk is full, or the place cannot be written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise InputError(
                f"{path}: the disk is full ({error.strerror}); free some space and run the command again, "
                "it goes on where it stopped"
            ) from error
        if error.errno in _NOT_ALLOWED:
            raise InputError(
                f"{path}: cannot be written ({error.strerror}); choose another place, or change its permissions"
            ) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON; for files inside :func:`replacing_directory`."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def replace_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON, under its name when it is complete; raises as :func:`replacing_file`."""
    with replacing_file(path) as temporary:
        write_json(temporary, value)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: if it is missing or broken.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: missing or damaged ({error})") from error


def planned_folder(folder: Path, plan: dict[str, Any], existing: Existing, progress: tuple[str, ...]) -> None:
    """Make the directory of a long work, or go on with it, and put the plan of the work in it.

    Args:
        folder: the directory.
        plan: everything that the results depend on, as JSON can hold it.
        existing: treatment of a directory that holds something.
        progress: patterns of the files that unfinished work goes on from; beginning anew removes them.

    Raises:
        InputError: if something is there that would be lost, or that is no work to go on with.
    """
    plan = json.loads(json.dumps(plan))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give the name of a directory")
    there = [path.name for path in visible(folder)]
    if there and PLAN not in there:
        raise InputError(f"{folder}: holds other files ({', '.join(there[:3])}); give another directory")
    if there and existing == "refuse":
        raise InputError(f"{folder}: exists already; --resume goes on with it, --overwrite begins anew")
    if there and existing == "resume":
        before = read_json(folder / PLAN)
        different = [name for name in plan if before.get(name) != plan[name]]
        if different:
            raise InputError(
                f"{folder}: was begun with other {', '.join(different)}; give the same to resume it, or --overwrite"
            )
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if existing == "overwrite":
            for path in (path for pattern in progress for path in folder.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        replace_json(folder / PLAN, plan)
