"""`equicat predict RUN … --relax`: OC20's leaderboard file of IS2RE and IS2RS, by relaxing with a model of forces."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy import ndarray

from equicat.apply.predict import datasets_of
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.files import Existing
from equicat.models.saved import load_potential
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.parts import Output
from equicat.relaxation.relax import relax
from equicat.tasks.leaderboard import is2re_arrays, is2rs_arrays, write_submission


def predict_relaxed(
    run: str | Path,
    structures: Sequence[str | Path],
    config: RelaxConfig | None = None,
    *,
    out: str | Path,
    submission: Literal["test", "val"] | None = None,
    existing: Existing = "refuse",
    device: str = "cpu",
    progress: bool = True,
) -> int | None:
    """Relax initial structures, and write relaxed energies and positions as the leaderboard takes them.

    All splits are relaxed together, to an extxyz file beside ``out`` that stays: after an interruption, or by several
    processes, it is finished as that of :func:`equicat.relax`. A system to which the model gives no finite numbers
    counts with the mean energy of the training data, where it is.

    Args:
        run: of a model of energies and forces.
        structures: files or a store; for a submission, the directory of a data set, whose IS2RE splits are taken.
        config: how to relax.
        out: the ``.npz`` file.
        submission: the four splits ``test_…`` or ``val_…`` in one file; None: one split.
        existing: what to do if some systems are relaxed already: refuse, resume or overwrite.
        device: where to compute.
        progress: show a progress bar.

    Returns:
        The number of structures; None if other processes still have to finish theirs.

    Raises:
        InputError: before anything is relaxed, for a model without forces, a missing split, an unknown element, missing
            or repeated ids, or results that would be lost.
    """
    model, out = load_potential(run, device), Path(out)
    if out.suffix != ".npz":
        raise InputError(f"{out}: --relax writes an .npz file for the leaderboard; `equicat relax` writes structures")
    datasets = datasets_of(model, structures, "is2re", submission)
    initial = {name: [dataset[i] for i in range(len(dataset))] for name, dataset in datasets.items()}
    for systems in initial.values():
        is2re_arrays(np.array([s.id for s in systems]), np.zeros(len(systems)))  # refuses ids that are not there
    file = Output(out.with_suffix(".extxyz"), resume=existing == "resume", overwrite=existing == "overwrite")
    every = [system for systems in initial.values() for system in systems]
    done = relax(every, model, config, out=file, device=device, progress=progress)
    if done is None:
        return None
    relaxed = iter(done.structures)
    mean = model.info.statistics.mean_energy
    write_submission(out, {name: _arrays([next(relaxed) for _ in part], mean) for name, part in initial.items()})
    return len(every)


def _arrays(relaxed: Sequence[Structure], mean_energy: float) -> dict[str, ndarray]:
    ids, n_atoms = np.array([s.id for s in relaxed]), np.array([len(s) for s in relaxed])
    energies = np.array([mean_energy if s.energy is None else s.energy for s in relaxed])
    positions = np.concatenate([s.positions for s in relaxed])
    return is2re_arrays(ids, energies) | is2rs_arrays(ids, positions, n_atoms)
