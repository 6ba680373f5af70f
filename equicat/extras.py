"""Packages that only some networks need, imported when such a network is built."""

import importlib
from types import ModuleType

from equicat.errors import InputError


def extra(module: str, name: str) -> ModuleType:
    """Import a module of an optional dependency.

    Args:
        module: its full name.
        name: the extra of equicat that installs it.

    Raises:
        InputError: with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed; run `pip install 'equicat[{name}]'`") from error
