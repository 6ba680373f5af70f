"""`equicat export`."""

from pathlib import Path
from typing import Literal

from equicat.errors import InputError


def export(
    run: str,
    out: str,
    *,
    format: Literal["library", "compiled", "metatomic", "nequip-allegro"],
    peer_python: str | None = None,
) -> None:
    """A model for other programs, checked against the original before it is written.

    Args:
        run: Run directory that `equicat train` wrote, with a model of s2ef.
        out: What to write: a folder (library), ….pt2 (compiled), ….pt (metatomic) or ….nequip.zip (nequip-allegro).
        format: library: compiled libraries with equicat's kernel, for C and Python without PyTorch. compiled: a program
            that PyTorch runs without equicat. metatomic: a file for LAMMPS, GROMACS, i-PI and PLUMED with metatomic
            (extra [metatomic]). nequip-allegro: a package of nequip-allegro, for models of its
            architecture.
        peer_python: Interpreter of an environment that has nequip-allegro. Default: this one (extra [bench]).

    Raises:
        InputError: for a model that the format cannot express, or an export that gives other numbers.
    """
    from equicat.models.ensemble import MeanPotential
    from equicat.models.gradient import ComputeOptions
    from equicat.models.saved import load_potential

    # A library has the kernel inside, so it is compared with numbers that do not come from the kernel.
    potential = load_potential(run, compute=ComputeOptions(kernels=format != "library"))
    if isinstance(potential, MeanPotential):
        raise InputError(f"{run}: the folder of an ensemble; an export holds one model, so name one of those in it")
    if format == "library":
        from equicat.interfaces.library.export import export as export_library

        export_library(potential, Path(out))
    elif format == "compiled":
        from equicat.interfaces import compiled

        compiled.export(potential, Path(out))
    elif format == "metatomic":
        from equicat.interfaces import metatomic_export

        metatomic_export.export(potential, Path(out))
    else:
        from equicat.interfaces import nequip_allegro_export

        nequip_allegro_export.export(potential, Path(out), peer_python)
    print(f"{format}: {out}")
