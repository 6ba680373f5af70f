"""`equicat vibrations`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from equicat.options.values import Device

if TYPE_CHECKING:
    from equicat.vibrations.config import FreeEnergyConfig
    from equicat.vibrations.results import Output


def vibrations(
    run: str,
    structures: str,
    *,
    out: str,
    dtype: Literal["float32", "float64"] = "float64",
    device: Device = "auto",
    progress: bool = True,
    **options: Any,
) -> None:
    """Vibrations and free energies of adsorbates and gas molecules.

    Args:
        run: Run directory that `equicat train` wrote, of a model trained for s2ef.
        structures: Structure file (anything ASE reads, also .gz and .xz) or store, relaxed with the model or --relax.
        out: Table (csv) of free energies; all frequencies come beside it as NAME.json, structures as NAME.extxyz.
        dtype: Precision of the model; differences of forces lose digits.
        device: Where to compute; auto takes a GPU if there is one.
        progress: Show a progress bar.
    """
    import torch

    from equicat.vibrations.free_energies import free_energies

    output, config = _output_and_config(out, **options)
    precision = getattr(torch, dtype)
    found = free_energies(structures, run, config, out=output, device=device, dtype=precision, progress=progress)
    table, frequencies, written = output.files()
    print(f"{found.as_text()}\n\ntable: {table}\nfrequencies: {frequencies}\nstructures: {written}")


def _output_and_config(
    out: str, *, modes: str | None = None, overwrite: bool = False, **options: Any
) -> "tuple[Output, FreeEnergyConfig]":
    """Where results go, and how they are made.

    Args:
        modes: Folder for extxyz trajectories that show the modes; `ase gui` plays them.
        overwrite: Replace what is there.
    """
    from equicat.vibrations.config import FreeEnergyConfig
    from equicat.vibrations.results import Output

    return Output(Path(out), modes, overwrite), FreeEnergyConfig(**options)
