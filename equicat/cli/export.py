"""`equicat export`."""

from pathlib import Path
from typing import Literal


def export(
    run: str,
    out: str,
    *,
    format: Literal["nequip-allegro", "compiled"],
    peer_python: str | None = None,
) -> None:
    """A model for other programs, checked against the original before it is written.

    Args:
        run: Run directory that `equicat train` wrote, with a model of s2ef.
        out: File to write: ….nequip.zip (nequip-allegro) or ….pt2 (compiled).
        format: nequip-allegro: a package of nequip-allegro, for models of its architecture. compiled: a program that
            PyTorch runs without equicat.
        peer_python: Interpreter of an environment that has nequip-allegro. Default: this one (extra [bench]).

    Raises:
        InputError: for a model that the format cannot express, or an export that gives other numbers.
    """
    from equicat.models.saved import load_potential

    potential = load_potential(run)
    if format == "compiled":
        from equicat.interfaces import compiled

        compiled.export(potential, Path(out))
    else:
        from equicat.interfaces import nequip_allegro_export

        nequip_allegro_export.export(potential, Path(out), peer_python)
    print(f"{format}: {out}")
