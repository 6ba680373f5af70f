"""The directory of adsorption energies: its plan, its relaxations, and what may be done with one that is there."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equicat.data.readers import read, write
from equicat.data.structure import Structure
from equicat.files import Existing, planned_folder
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.models import ForceModel
from equicat.relaxation.parts import Output
from equicat.relaxation.relax import digest_of, relax

PLACEMENTS, RELAXED = "placements.extxyz", "relaxed.extxyz"


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
    """The directory, with the plan in it; see :func:`equicat.files.planned_folder`."""
    planned_folder(folder, plan, existing, (f"{RELAXED}*",))
    return folder
