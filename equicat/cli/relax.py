"""`equicat relax` and `equicat adsorb`."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from equicat.errors import InputError
from equicat.files import existing_of
from equicat.options.values import Device, Words

if TYPE_CHECKING:
    from equicat.adsorption.energies import AdsorptionConfig
    from equicat.relaxation.config import RelaxConfig
    from equicat.relaxation.parts import Output


def relax(
    run: str,
    structures: Annotated[tuple[str, ...], Words(positional=True)],
    *,
    out: str,
    dtype: Literal["float32", "float64"] | None = None,
    device: Device = "auto",
    progress: bool = True,
    **options: Any,
) -> None:
    """Relax many systems together with a model of energies and forces.

    Args:
        run: Run directory that `equicat train` wrote, of a model trained for s2ef.
        structures: Structure files (anything ASE reads, also .gz and .xz), globs of them and folders with them, or one
            store.
        out: File for the relaxed structures: extxyz (also .gz, .xz).
        dtype: Precision of the model; as it was trained if not given. Positions are float64 anyway.
        device: Where to compute; auto takes a GPU if there is one.
        progress: Show a progress bar.
    """
    import torch

    from equicat.relaxation import relax as relaxation

    output, config = _output_and_config(out, **options)
    precision = None if dtype is None else getattr(torch, dtype)
    relaxed = relaxation.relax(structures, run, config, out=output, device=device, dtype=precision, progress=progress)
    print("this process is done; others still have systems to finish" if relaxed is None else relaxed.summary)


def _output_and_config(
    out: str, *, trajectories: str | None = None, resume: bool = False, overwrite: bool = False, **options: Any
) -> "tuple[Output, RelaxConfig]":
    """Where relaxations go, and how they are done.

    Args:
        trajectories: Folder for one extxyz file of each system with all its steps.
        resume: Go on with an interrupted relaxation: finished systems are kept.
        overwrite: Begin anew, and replace what is there.
    """
    from equicat.relaxation.config import RelaxConfig
    from equicat.relaxation.parts import Output

    return Output(Path(out), trajectories, resume, overwrite), RelaxConfig(**options)


def adsorb(
    run: str,
    *,
    adsorbates: Annotated[tuple[str, ...], Words()],
    out: str,
    resume: bool = False,
    overwrite: bool = False,
    device: Device = "auto",
    progress: bool = True,
    **options: Any,
) -> None:
    """Adsorption energies: placements on one or more slabs, relaxed together; a table and a page of each slab.

    Args:
        run: Run directory that `equicat train` wrote, of a model trained for s2ef.
        adsorbates: Names, smiles:…, or structure files, with spaces or commas between; CO+O are two on one slab.
        out: Directory for table.csv, structures.extxyz and page.html; of several slabs in folders of their own.
        resume: Go on where an interrupted run stopped.
        overwrite: Begin anew, and replace what is there.
        device: Where to compute; auto takes a GPU if there is one.
        progress: Show a progress bar.
    """
    from equicat.adsorption import energies, screening

    slabs, config = _slabs_and_config(**options)
    names = [name.strip() for word in adsorbates for name in word.split(",") if name.strip()]
    result: energies.AdsorptionEnergies | screening.Screening | None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they stand in what is printed
        how: dict[str, Any] = {
            "out": out,
            "existing": existing_of(resume, overwrite),
            "device": device,
            "progress": progress,
        }
        if len(slabs) == 1 and not screening.is_pattern(slabs[0]):
            page = "page.html"
            result = energies.adsorption_energies(slabs[0], names, run, config, **how)
        else:
            page = "*/page.html"
            result = screening.screen(slabs, names, run, config, **how)
    if result is None:
        print("this process is done; others still have systems to finish")
        return
    print(result.as_text())
    print(f"\ntable: {Path(out) / 'table.csv'}\npage: {Path(out) / page}")


def _slabs_and_config(
    *,
    slab: Annotated[tuple[str, ...], Words()] = (),
    bulk: str | None = None,
    facet: str | None = None,
    size: str | None = None,
    **options: Any,
) -> "tuple[tuple[str, ...], AdsorptionConfig]":
    """Files or names of the slabs, and how adsorption energies are computed.

    Args:
        slab: Structure files of slabs, patterns of files, or names such as 'Cu(111) 3x3x4': element or bulk file,
            facet, size and layers. Several slabs get a folder each in --out, and one table.
        bulk: In place of --slab, with --facet and --size: element (Cu), or structure file of a bulk.
        facet: Miller indices: 111, or 1,0,-1.
        size: Repetitions and layers: 3x3x4.

    Raises:
        InputError: if the slab is given twice, or not at all, or in part.
    """
    from equicat.adsorption.energies import AdsorptionConfig

    parts = (bulk, facet, size)
    if not slab and None not in parts:
        slab, parts = (f"{bulk}({facet}) {size}",), (None, None, None)
    if not slab or parts != (None, None, None):
        raise InputError("adsorb: name the slab with --slab, or with --bulk, --facet and --size")
    return slab, AdsorptionConfig(**options)
