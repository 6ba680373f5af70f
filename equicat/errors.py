"""The one exception that users are meant to see, and what they are told when nothing is wrong."""

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """Bad input: the message says what is wrong, where, and what to do about it.

    The command line prints it as one line and exits with status 2. Any other exception is a defect of equicat.

    Args:
        message: one sentence or two.
        problems: further lines, where several things are wrong; each is one line of the command line too.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join([message, *problems]))
        self.lines = (message, *problems)


class Remark(UserWarning):
    """Something that a user should know; the command line prints it as one line."""


class OutsideTraining(Remark):
    """A structure is unlike those that a model was trained on; ``warnings.simplefilter`` decides what happens then."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known name closest to ``name``, or an empty string when none is near."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
