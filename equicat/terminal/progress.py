"""Progress of long work: a bar on a terminal, and a plain line now and then where the output goes to a file."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS = 30.0
"""Time between two lines of one piece of work in a file; work that takes less is not mentioned."""


def is_watched() -> bool:
    """Whether somebody can see a bar move: the standard error is a terminal."""
    return sys.stderr.isatty()


class _Lines:
    """A stream for bars that writes each of their states as a line of its own, without carriage returns."""

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> None:
        """Write a state of the bar; moves of the cursor are dropped."""
        if line := text.strip():
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        """See :class:`io.TextIOBase`."""
        self.stream.flush()


Bar = tqdm
"""The type of a bar, for functions that move one on."""


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> Bar:
    """tqdm's bar on a terminal; elsewhere one line each :data:`SECONDS`, and one at the end of what takes longer.

    Args:
        iterable: to go through, if the bar follows one.
        options: see tqdm.
    """
    if is_watched():
        return tqdm(iterable, **options)
    plain = {"file": _Lines(sys.stderr), "mininterval": SECONDS, "miniters": 1, "delay": SECONDS, "ncols": 0}
    return tqdm(iterable, **{**options, **plain, "leave": True})
