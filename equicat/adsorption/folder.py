"""The directory of adsorption energies: its plan, its relaxations, and what may be done with one that is there."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from equicat.data.readers import read, write
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.files import read_json, replace_json, writing_to
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.models import ForceModel
from equicat.relaxation.parts import Output
from equicat.relaxation.relax import digest_of, relax

PLAN, PLACEMENTS, RELAXED = "plan.json", "placements.extxyz", "relaxed.extxyz"
Existing = Literal["refuse", "resume", "overwrite"]
"""A directory that holds something is refused, gone on with where it stopped, or begun anew."""


def relaxed_in(
    folder: Path | None,
    systems: Sequence[Structure],
    model: ForceModel,
    config: RelaxConfig,
    *,
    progress: bool,
    alone: bool,
) -> list[Structure] | None:
    """All systems relaxed together, from the file if they are finished; what a killed process finished is kept.

    Args:
        folder: where the systems go before and after; see :func:`prepared_folder`. None writes nothing.
        systems: what to relax.
        model: source of energies and forces.
        config: how to relax.
        progress: show a progress bar.
        alone: this process does everything, whatever torchrun or SLURM say of others.

    Returns:
        The relaxed systems; None if other processes still have to finish theirs.
    """
    if folder is None:
        done = relax(systems, model, config, progress=progress)
        return None if done is None else done.structures
    write(folder / PLACEMENTS, systems)
    file = folder / RELAXED
    if not file.exists():
        output = Output(file, resume=True, alone=alone)
        if relax(systems, model, config, out=output, progress=progress) is None:
            return None
    return list(read(file))  # also when they are new, so that a run that is resumed gives the same digits


def plan_of(systems: Sequence[Structure], model: ForceModel, config: RelaxConfig) -> dict[str, Any]:
    """Everything that the results depend on; not how large batches are, and how far neighbour lists reach."""
    digest = hashlib.sha256()
    for s in systems:
        for array in (s.numbers, s.positions.round(6), s.cell.round(6), s.pbc, s.fixed):
            digest.update(np.ascontiguousarray(array).tobytes())
    plan = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("skin", "edges")}
    return json.loads(json.dumps(plan | {"structures": digest.hexdigest(), "model": digest_of(model)}))


def prepared_folder(folder: Path, plan: dict[str, Any], existing: Existing) -> Path:
    """The directory, with the plan in it.

    Raises:
        InputError: if something is there that would be lost, or that is no run to go on with.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give the name of a directory")
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if there and PLAN not in there:
        raise InputError(f"{folder}: holds other files ({', '.join(there[:3])}); give another directory")
    if there and existing == "refuse":
        raise InputError(f"{folder}: exists already; --resume goes on with it, --overwrite begins anew")
    if there and existing == "resume":
        before = read_json(folder / PLAN)
        different = [name for name in plan if before.get(name) != plan[name]]
        if different:
            raise InputError(
                f"{folder}: was begun with other {', '.join(different)}; give the same to resume it, or --overwrite"
            )
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if existing == "overwrite":
            for path in folder.glob(f"{RELAXED}*"):
                _remove(path)
        replace_json(folder / PLAN, plan)
    return folder


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
