"""The directory of `equicat neb`: its plan, what a killed process had done, and the results."""

import csv
import dataclasses
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from equicat.barriers.driver import Progress
from equicat.barriers.figure import write_figure
from equicat.barriers.results import Barrier, Barriers
from equicat.data.readers import write
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.files import Existing, planned_folder, read_json, replace_json, replacing_file, writing_to

ENDS, PROGRESS = "ends.json", "progress.npz"
PATHS, PROFILES, BARRIERS, FIGURE = "path.extxyz", "profile.csv", "barrier.json", "profile.svg"


class Folder:
    """The directory that results go to.

    Args:
        path: of the directory.
        plan: everything that the results depend on.
        existing: what to do if something is there: refuse, resume (go on where it stopped), or overwrite.

    Raises:
        InputError: if something is there that would be lost, or that is no run to go on with.
    """

    def __init__(self, path: Path, plan: dict[str, Any], existing: Existing):
        self.path = path
        planned_folder(path, plan, existing, (ENDS, PROGRESS))

    def relaxed_ends(self, ends: Sequence[Structure]) -> list[Structure] | None:
        """The ends as they were relaxed before, to the last digit; None if they were not."""
        if not (self.path / ENDS).exists():
            return None
        return [
            dataclasses.replace(
                end,
                positions=np.array(found["positions"]),
                energy=found["energy"],
                forces=None if found["forces"] is None else np.array(found["forces"]),
                info=found["info"],
            )
            for end, found in zip(ends, read_json(self.path / ENDS)["ends"], strict=True)
        ]

    def save_ends(self, relaxed: Sequence[Structure]) -> None:
        """Keep the relaxed ends."""
        entries = [
            {
                "positions": end.positions.tolist(),
                "energy": end.energy,
                "forces": None if end.forces is None else end.forces.tolist(),
                "info": {k: v.item() if isinstance(v, np.generic) else v for k, v in end.info.items()},
            }
            for end in relaxed
        ]
        with writing_to(self.path):
            replace_json(self.path / ENDS, {"ends": entries})

    def progress(self) -> dict[int, Progress]:
        """Where bands stood when they were saved, by number.

        Raises:
            InputError: if it is damaged.
        """
        file = self.path / PROGRESS
        if not file.exists():
            return {}
        try:
            with np.load(file, allow_pickle=False) as saved:
                arrays = dict(saved)
            names = [field.name for field in dataclasses.fields(Progress)]
            numbers = sorted({int(key.split(".")[0]) for key in arrays})
            found = [{name: arrays[f"{number}.{name}"] for name in names} for number in numbers]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{file}: damaged ({error}); remove it to begin the bands anew") from error
        plain = [{name: value if value.ndim else value.item() for name, value in fields.items()} for fields in found]
        return {number: Progress(**fields) for number, fields in zip(numbers, plain, strict=True)}

    def save_progress(self, progress: Mapping[int, Progress]) -> None:
        """Keep where bands stand, those that have ended included."""
        arrays = {
            f"{number}.{field.name}": np.asarray(getattr(band, field.name))
            for number, band in progress.items()
            for field in dataclasses.fields(Progress)
        }
        with writing_to(self.path), replacing_file(self.path / PROGRESS) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def write(self, result: Barriers) -> None:
        """Write all results, each file whole or not at all."""
        with writing_to(self.path):
            write(self.path / PATHS, (image for band in result.bands for image in band.path))
            self._write_profiles(result.bands)
            write_figure(self.path / FIGURE, result.bands)
            summary = {
                "energy_reference": result.energy_reference,
                "bands": [_summary(band) for band in result.bands],
            }
            replace_json(self.path / BARRIERS, summary)

    def _write_profiles(self, bands: Sequence[Barrier]) -> None:
        with (
            replacing_file(self.path / PROFILES) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(("band", "image", "path_length_A", "energy_eV", "relative_energy_eV"))
            for band in bands:
                for image, (length, energy) in enumerate(zip(band.lengths, band.energies, strict=True)):
                    numbers = (f"{length:.6f}", _text(energy), _text(energy - band.energies[0]))
                    writer.writerow((band.name, image, *numbers))


def _text(energy: float) -> str:
    return f"{energy:.6f}" if np.isfinite(energy) else ""


def _summary(band: Barrier) -> dict[str, Any]:
    """One band for ``barrier.json``; null where there is no number."""
    return {
        "number": band.number,
        "name": band.name,
        "forward_barrier_eV": band.forward,
        "reverse_barrier_eV": band.reverse,
        "reaction_energy_eV": band.reaction_energy,
        "saddle_image": band.saddle,
        "converged": band.converged,
        "n_steps": band.n_steps,
        "fmax_eV_per_A": float(band.fmax) if np.isfinite(band.fmax) else None,
        "seconds": round(band.seconds, 3),
        "flags": list(band.flags),
        "notes": list(band.notes),
        "n_imaginary": band.n_imaginary,
        "frequencies_per_cm": None if band.frequencies is None else _listed(band.frequencies),
    }


def _listed(numbers: Float[ndarray, "n"]) -> list[float | None]:
    """Numbers for JSON, which has no NaN."""
    return [round(float(x), 2) if np.isfinite(x) else None for x in numbers]
