"""Types and shapes in signatures, checked while tests run: the first thousand calls of every test.

A training step calls hundreds of small functions, and to check all calls of all steps takes longer than the steps.
pyproject.toml names :func:`first_calls` as the type checker of pytest; ``conftest.py`` says when a test begins.
"""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from itertools import count
from typing import Any

import jaxtyping
from beartype import beartype

CALLS = 1000
"""Calls that are checked in a test."""

_calls = count()


def begin() -> None:
    """Check calls again: a test begins."""
    global _calls
    _calls = count()
    jaxtyping.config.update("jaxtyping_disable", False)


def first_calls(function: Callable[..., Any]) -> Any:
    """A function that checks its arguments as beartype does, and ends all checks when there were enough."""
    checked: Callable[..., Any] | None = None

    @wraps(function)
    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal checked
        if next(_calls) == CALLS:
            jaxtyping.config.update("jaxtyping_disable", True)
        if checked is None:
            checked = _compiled(function)
        return checked(*arguments, **options)

    return counted


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The check of a function's signature, compiled once.

    jaxtyping hands over functions that have a signature and do nothing. Most are never called by one test process, and
    one within another function is made anew whenever that is called.
    """
    key = function.__module__, function.__qualname__, str(signature(function))
    if key not in _checks:
        _checks[key] = beartype(function)
    return _checks[key]


_checks: dict[tuple[str, str, str], Callable[..., Any]] = {}
"""Checks by module, name and signature."""
