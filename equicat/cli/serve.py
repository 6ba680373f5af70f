"""`equicat serve`."""

from typing import Annotated

from equicat.options.values import Device, Range


def serve(
    run: str,
    *,
    folder: str = "screenings",
    port: Annotated[int, Range(at_least=0, at_most=65535)] = 8420,
    references: str | None = None,
    device: Device = "auto",
) -> None:
    """A page on this machine for screening adsorbates on slabs with a model: several jobs, watched as they go.

    Args:
        run: Run directory that `equicat train` wrote, of a model trained for s2ef.
        folder: Where jobs, uploads and results are kept; started again with the same folder, it goes on.
        port: Port of the loopback address, the only one that it answers at; 0 takes a free one.
        references: YAML file of gas energies (eV), as `equicat data import` takes it; for models of total energies.
        device: Where jobs compute; auto takes a GPU if there is one.
    """
    from equicat.serve import serve as page

    page.serve(run, folder, port, device=device, references=references)
