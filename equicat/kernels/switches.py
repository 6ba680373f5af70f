"""Switches for what functions of this folder need not do; who calls them knows.

PyTorch does not tell a function of ours which of its gradients a call of autograd asks for. The switches are global,
because backward passes of a GPU run in a thread of their own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Switch:
    """Something that is done or not."""

    on: bool = True


BY_WEIGHTS = Switch()
"""Whether derivatives by weights are made where these require any."""
BY_VECTORS_TWICE = Switch()
"""Whether networks must be differentiable by pair vectors more than once."""


@contextmanager
def switched(switch: Switch, on: bool) -> Iterator[None]:
    """Turn a switch, and turn it back."""
    before, switch.on = switch.on, on
    try:
        yield
    finally:
        switch.on = before
