"""Worker processes: they end with their parent, and share the cores with each other."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def follow_parent() -> None:
    """Let this process end as soon as the one that started it has ended, however that was."""
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes that are started meanwhile compute on one core each.

    Libraries read the number of threads when they are loaded, so it is set in the environment that children inherit.
    """
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
