"""Adsorption energies on many slabs: all placements on all of them relaxed together, a folder for each, one table."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from equicat.adsorption.energies import AdsorptionConfig, prepare, result_of
from equicat.adsorption.folder import plan_of, prepared_folder, relaxed_in
from equicat.adsorption.page import write_page
from equicat.adsorption.results import COLUMNS, TABLE, AdsorptionEnergies, lines_of, write_results, write_table
from equicat.data.readers import stem_of
from equicat.errors import InputError
from equicat.files import Existing
from equicat.models.potential import Potential
from equicat.relaxation.models import ForceModel, force_model


@dataclass(frozen=True, eq=False)
class Screening:
    """Results of :func:`screen`."""

    results: dict[str, AdsorptionEnergies]
    """Adsorption energies by slab; the names are those of the folders."""
    failed: dict[str, str]
    """Reasons why a slab has no adsorption energies, by slab."""

    def as_text(self) -> str:
        """The tables of all slabs, one below the other, for the terminal."""
        parts = [f"{name}\n{result.as_text()}" for name, result in self.results.items()]
        return "\n\n".join([*parts, *(f"{name}: failed: {reason}" for name, reason in self.failed.items())])


def screen(
    slabs: Sequence[str | Path],
    adsorbates: Sequence[str | Path],
    model: str | Path | Potential | ForceModel,
    config: AdsorptionConfig | None = None,
    *,
    out: str | Path,
    existing: Existing = "refuse",
    device: str = "cpu",
    progress: bool = True,
) -> Screening | None:
    """Place adsorbates on many slabs, relax everything together, and compare each with its own clean slab.

    Under torchrun or in an array of SLURM jobs each process takes its share of the placements, if all are given
    ``existing="resume"``; whoever finds all of them relaxed writes the results.

    Args:
        slabs: structure files, glob patterns of them, and names such as ``Cu(111) 3x3x4``.
        adsorbates: see :func:`~equicat.adsorption.energies.adsorption_energies`.
        model: run directory, loaded potential, or another source of energies and forces.
        config: how to build, place and relax, the same for all slabs.
        out: directory for one table of all slabs and a folder for each, as that function writes it for one.
        existing: what to do if ``out`` holds something: refuse, resume (go on where it stopped), or overwrite.
        device: where the model of a run computes.
        progress: show a progress bar.

    Returns:
        The results; None if other processes still have to finish theirs. A slab that fails (the model gives its clean
        slab no energy) does not hold up the others.

    Raises:
        InputError: before anything is relaxed, for a slab on which no adsorption energy can be had, or two of one name.
    """
    config, forces, out = config or AdsorptionConfig(), force_model(model, device), Path(out)
    ready = {name: prepare(slab, adsorbates, forces, config) for name, slab in named(slabs).items()}
    systems = [system for one in ready.values() for system in one.systems]
    plan = plan_of(systems, forces, config)
    folder = prepared_folder(out, plan, existing)
    relaxed = relaxed_in(folder, systems, forces, config, progress=progress, alone=False)
    if relaxed is None:
        return None
    found, last = Screening({}, {}), 0
    for name, one in ready.items():
        first, last = last, last + len(one.systems)
        try:
            found.results[name] = result_of(one, relaxed[first:last], forces)
        except InputError as error:
            found.failed[name] = str(error)
            continue
        (folder / name).mkdir(exist_ok=True)
        write_results(folder / name, found.results[name])
        write_page(folder / name, found.results[name], one.title, plan)
    write_table(folder / TABLE, ("slab", *COLUMNS), _lines(found))
    return found


def _lines(found: Screening) -> list[list[Any]]:
    """The lines of the table of all slabs; a slab that failed has one, with the reason among the flags."""
    lines = [[name, *line] for name, result in found.results.items() for line in lines_of(result)]
    for name, reason in found.failed.items():
        lines.append([name, *(f"failed: {reason}" if column == "flags" else "" for column in COLUMNS)])
    return lines


def named(slabs: Sequence[str | Path]) -> dict[str, str]:
    """The slabs by the name that their folder has: of the file, or ``Cu(111)_3x3x4``.

    Raises:
        InputError: if a pattern fits no file, or two slabs would have the same name.
    """
    found: dict[str, str] = {}
    for slab in _expanded(slabs):
        path, name = Path(slab), slab
        if path.exists():
            name = stem_of(path)
            if name.isupper() and not path.suffix:  # CONTCAR, POSCAR: the folder says which
                name = f"{path.resolve().parent.name}-{name}"
        name = re.sub(r"[^\w.(),-]+", "_", name)
        if name in found:
            raise InputError(f"{slab} and {found[name]}: both would be called {name}; rename one of them")
        found[name] = slab
    return found


def is_pattern(slab: str | Path) -> bool:
    """Whether a slab is a glob pattern, and not the file or the name of one."""
    return not Path(slab).exists() and any(sign in str(slab) for sign in "*?[")


def _expanded(slabs: Sequence[str | Path]) -> list[str]:
    found: list[str] = []
    for slab in slabs:
        matches = sorted(glob(str(slab))) if is_pattern(slab) else [str(slab)]
        if not matches:
            raise InputError(f"{slab}: no file fits this pattern")
        found += matches
    return found
