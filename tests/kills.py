"""Kills at every change of a file: a process ends at once before its n-th change, as by `kill -9`."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

KILLED = 9
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"}
"""Events of Python's audit hooks that change directories; to open a file for writing is a change, too."""


def run(work: Callable[[], object], kill_at: int | None = None) -> int:
    """Do the work in a process of its own.

    Args:
        work: what it does.
        kill_at: number of the change, from 1, before which it is killed.

    Returns:
        0, 1 after an exception, or :data:`KILLED`.
    """
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    n = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal n
        if event in CHANGES or (event == "open" and _is_written(*arguments)):
            n += 1
            if n == kill_at:
                os._exit(KILLED)

    try:
        sys.addaudithook(hook)
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def at_every_change(work: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Kill the work before its first change, its second and so on, until it comes to its end.

    Args:
        work: what is killed; it finds what the caller has left after the kill before.
        prepare: what is done before the work, each time.

    Yields:
        After each kill.
    """
    for kill_at in count(1):
        prepare()
        status = run(work, kill_at)
        if status == 0:
            return
        assert status == KILLED
        yield


def _is_written(path: Any, mode: Any, flags: int) -> bool:
    return isinstance(path, str) and "__pycache__" not in path and bool(flags & (os.O_WRONLY | os.O_RDWR))
