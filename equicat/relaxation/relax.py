"""`equicat relax` and :func:`equicat.relax`: structures and a model in, relaxed structures out."""

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from ase import Atoms

from equicat.data.batch import Batch
from equicat.data.datasets import MemoryDataset, open_structures
from equicat.data.neighbors import neighbor_list
from equicat.data.readers import write
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.models.domain import DomainWatch
from equicat.models.potential import Potential
from equicat.models.uncertainty import graded
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.driver import Driver
from equicat.relaxation.held import check_constraints, free_directions
from equicat.relaxation.models import ForceModel, PotentialForces, check_elements, force_model
from equicat.relaxation.parts import Output, Parts, Share, plan_of
from equicat.relaxation.records import Record, table, trajectory_file, write_trajectory
from equicat.terminal.progress import progress_bar

OVERLAP = 0.5
"""Å; how near atoms are looked for that stand at the same place."""


@dataclass(frozen=True, eq=False)
class Relaxed:
    """Results of a relaxation."""

    structures: list[Structure]
    """In the order of the input, with energy (eV) and forces (eV/Å), and in ``info``: ``converged``, ``n_steps``,
    ``fmax`` (eV/Å), ``seconds``, ``flags`` (joined by commas) and ``energy_reference``."""
    summary: str
    """A table, for people."""


def relax(
    structures: str | Path | Sequence[str | Path] | Sequence[Structure | Atoms],
    model: str | Path | Potential | ForceModel,
    config: RelaxConfig | None = None,
    *,
    out: Output | str | Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    progress: bool = True,
) -> Relaxed | None:
    """Relax many systems together with a model of energies and forces.

    Fixed atoms stay where they are, to the last bit. Positions are float64 whatever the model computes in.

    Args:
        structures: files, patterns of files, folders of files, or one store; or structures in memory.
        model: run directory, a loaded potential, or another source of energies and forces
            (:class:`~equicat.relaxation.models.ForceModel`, such as ASE calculators).
        config: how to relax.
        out: file to write, and where trajectories go; without it, nothing is written.
        device: where the model of a run computes; ``cuda`` is this process's own GPU under torchrun.
        dtype: of the model; None: as it was trained.
        progress: show a progress bar.

    Returns:
        The relaxed structures; None if other processes still have to finish theirs.

    Raises:
        InputError: for input that cannot be relaxed (the structure is named), a model without forces, or an ``out``
            that would be lost.
    """
    config = config or RelaxConfig()
    output = Output(out) if isinstance(out, str | Path) else out
    share = Share() if output is None or output.alone else Share.from_environment()
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    forces = force_model(model, device, dtype)
    systems = _opened(structures)
    numbers = share.of(len(systems))
    if not numbers:
        return None
    check_systems(systems, forces)
    warn_outside(forces, [systems[number] for number in numbers])
    plan = plan_of(systems, digest_of(forces), config, output is not None and output.trajectories is not None)
    if output is not None and output.trajectories is not None:
        _check_trajectories(output, systems, numbers)
    parts = None if output is None else Parts(output, plan, share, Record.from_line)
    run = _Run(forces, config, output, parts)
    started = time.perf_counter()
    done = run.relax(systems, numbers, progress)
    if parts is not None:
        done = parts.finished()
        if len(done) < len(systems):
            return None
    records = [done[number] for number in range(len(systems))]
    relaxed = [r.structure(s, forces.energy_reference) for r, s in zip(records, systems, strict=True)]
    if isinstance(forces, PotentialForces):
        relaxed = list(graded(forces.potential, relaxed))
    if parts is not None:
        write(parts.out, relaxed)
        parts.remove()
    return Relaxed(relaxed, table(records, time.perf_counter() - started, run.driver.n_atom_steps))


class _Run:
    """This process's part of a relaxation."""

    def __init__(self, model: ForceModel, config: RelaxConfig, output: Output | None, parts: Parts[Record] | None):
        self.trajectories = None if output is None or output.trajectories is None else Path(output.trajectories)
        self.driver = Driver(model, config, keep_frames=self.trajectories is not None)
        self.parts = parts

    def relax(self, systems: Sequence[Structure], numbers: Sequence[int], progress: bool) -> dict[int, Record]:
        """Relax the systems with these numbers, but for those that are finished; their records."""
        done = {} if self.parts is None else self.parts.finished()
        todo = [number for number in numbers if number not in done]
        bar = progress_bar(
            total=len(numbers), initial=len(numbers) - len(todo), desc="relax", unit="system", disable=not progress
        )
        with bar:
            for outcome in self.driver.run((number, systems[number]) for number in todo):
                record = Record.of(outcome)
                if self.trajectories is not None:
                    write_trajectory(self.trajectories, outcome, self.driver.model.energy_reference)
                if self.parts is not None:
                    self.parts.append(record)
                done[record.number] = record
                bar.update()
        return done


def _opened(structures: str | Path | Sequence[str | Path] | Sequence[Structure | Atoms]) -> Sequence[Structure]:
    given = [structures] if isinstance(structures, str | Path) else list(structures)
    paths = [path for path in given if isinstance(path, str | Path)]
    if paths:
        return open_structures(paths)
    named = ((f"structure {k}", s) for k, s in enumerate(given) if isinstance(s, Structure | Atoms))
    return MemoryDataset(Structure.from_ase(s, source=name) if isinstance(s, Atoms) else s for name, s in named)


def check_systems(systems: Sequence[Structure], model: ForceModel) -> None:
    """Refuse, before anything is computed, what cannot be relaxed.

    Raises:
        InputError: for an element that the model does not know, atoms at the same place, nothing that can move, or a
            constraint that is not followed.
    """
    check_elements(model, systems)
    for structure in systems:
        if not free_directions(structure).any():
            raise InputError(
                f"{structure.where}: every atom is fixed, so there is nothing to relax; free some or drop it"
            )
        check_constraints(structure, "relax")
        neighbor_list(structure, OVERLAP)


def warn_outside(model: ForceModel, structures: Sequence[Structure]) -> None:
    """Say, before anything is computed, which structures are unlike those that the model was trained on."""
    if isinstance(model, PotentialForces) and model.potential.info.domain is not None:
        watch = DomainWatch(model.potential.info.domain, model.energy_reference)
        for structure in structures:
            watch.look(Batch.from_structures([structure], model.potential.cutoff))
        watch.say()


def digest_of(model: ForceModel) -> str:
    """Digest that tells one model from another, for :func:`~equicat.relaxation.parts.plan_of`."""
    if not isinstance(model, PotentialForces):
        return type(model).__name__
    digest = hashlib.sha256(repr((model.potential.config, model.elements, model.energy_reference)).encode())
    for name, values in model.potential.state_dict().items():
        digest.update(f"{name} {values.dtype}".encode())
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()


def _check_trajectories(output: Output, systems: Sequence[Structure], numbers: Sequence[int]) -> None:
    """Make the folder of the trajectories.

    Raises:
        InputError: if it is a file, or holds trajectories that would be lost.
    """
    assert output.trajectories is not None
    folder = Path(output.trajectories)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); give another folder") from error
    if not (output.resume or output.overwrite):
        there = [path for k in numbers if (path := trajectory_file(folder, k, systems[k])).exists()]
        if there:
            raise InputError(f"{there[0]}: exists already; give another folder, or --overwrite")
