"""`equicat neb`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from equicat.errors import InputError
from equicat.files import existing_of
from equicat.options.values import Device, Words

if TYPE_CHECKING:
    from equicat.barriers.config import NEBConfig


def neb(
    run: str,
    ends: Annotated[tuple[str, ...], Words(positional=True)] = (),
    *,
    out: str,
    resume: bool = False,
    overwrite: bool = False,
    device: Device = "auto",
    progress: bool = True,
    **options: Any,
) -> None:
    """Barriers between two minima: nudged elastic bands with a climbing image, several in one batch.

    Args:
        run: Run directory that `equicat train` wrote, of a model trained for s2ef.
        ends: Two structure files: initial and final. Each frame is the end of one band, in the same order in both.
        out: Directory for path.extxyz, profile.csv, barrier.json and profile.svg.
        resume: Go on where an interrupted run stopped.
        overwrite: Begin anew, and replace what is there.
        device: Where to compute; auto takes a GPU if there is one.
        progress: Show a progress bar.
    """
    from equicat.barriers.neb import neb as find

    initial, final, config = _ends_and_config(ends, **options)
    result = find(
        initial, final, run, config, out=out, existing=existing_of(resume, overwrite), device=device, progress=progress
    )
    print(result.as_text())
    print(f"\npaths: {Path(out) / 'path.extxyz'}\nfigure: {Path(out) / 'profile.svg'}")


def _ends_and_config(
    ends: tuple[str, ...], *, path: str | None = None, **options: Any
) -> "tuple[str, str | None, NEBConfig]":
    """The files of the ends, or that of a whole path, and how bands are made and moved.

    Args:
        path: In place of the two files: one with all images of a path of your own, ends included.

    Raises:
        InputError: if there are not two ends, or both ends and a path.
    """
    from equicat.barriers.config import NEBConfig

    config = NEBConfig(**options)
    if path is not None and not ends:
        return path, None, config
    if path is not None or len(ends) != 2:
        raise InputError("neb: give two structure files, with the initial and the final end, or --path with all images")
    return ends[0], ends[1], config
