"""Labels of structures by any ASE calculator, in several processes."""

import ast
import dataclasses
import importlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.optimize import BFGS
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from jaxtyping import Float
from numpy import ndarray

from equicat.data.labels import check_range
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.options.values import Checked, Positive, PositiveNumber
from equicat.sources.processes import follow_parent, one_thread_each

Factory = Callable[[], BaseCalculator]


@dataclass(frozen=True)
class LabelConfig(Checked):
    """How structures are labelled."""

    relax: bool = False
    """Relax each structure with ASE's BFGS, and keep every step."""
    fmax: PositiveNumber = 0.05
    """With relax: eV/Å; relaxed when the force on each free atom is shorter."""
    max_steps: Positive = 200
    """With relax: steps after which a structure is left as it is."""
    fresh: bool = False
    """Make a new calculator in an empty folder for each structure, as DFT codes need that leave files behind; the
    folders of those that failed stay. Without it, each process makes one calculator and uses it again."""


@dataclass(frozen=True, eq=False)
class LabelledFrame:
    """Labels at one place."""

    positions: Float[ndarray, "n_atoms 3"]
    """Å."""
    energy: float
    """eV."""
    forces: Float[ndarray, "n_atoms 3"]
    """eV/Å, those of fixed atoms included."""
    stress: Float[ndarray, "6"] | None
    """eV/Å³, in Voigt's order; None if the calculator gives none, or the system is not periodic in all directions."""

    @classmethod
    def of(cls, atoms: Atoms) -> "LabelledFrame":
        """Ask the calculator of some atoms.

        Raises:
            InputError: for numbers that are not finite, or that no method gives.
        """
        energy, forces = float(atoms.get_potential_energy()), np.array(atoms.get_forces(apply_constraint=False))
        stress = atoms.calc.results.get("stress") if atoms.pbc.all() else None  # if it came with the forces
        if stress is not None:
            stress = np.array(stress, dtype=np.float64)
            stress = full_3x3_to_voigt_6_stress(stress) if stress.shape == (3, 3) else stress
        for name, values in {"energy": energy, "forces": forces, "stress": stress}.items():
            if values is not None and not np.isfinite(values).all():
                raise InputError(f"{name} is not finite (NaN or infinity)")
        check_range({"energy": energy, "forces": forces}, len(atoms), "the calculator's answer")
        return cls(atoms.positions.copy(), energy, forces.astype(np.float64), stress)


@dataclass(frozen=True, eq=False)
class Label:
    """All that a calculator said of a structure, or why it said nothing."""

    number: int
    """Place in the input."""
    frames: tuple[LabelledFrame, ...] = ()
    seconds: float = 0.0
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The calculator's own description of its settings."""
    error: str = ""
    """The reason why there are no frames."""

    def as_line(self) -> str:
        """One line of JSON; numbers keep all their digits."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["frames"] = [
            [f.positions.tolist(), f.energy, f.forces.tolist(), None if f.stress is None else f.stress.tolist()]
            for f in self.frames
        ]
        return json.dumps(values, default=str)

    @classmethod
    def from_line(cls, line: str) -> "Label":
        """The label of a line.

        Raises:
            ValueError, KeyError, TypeError: if it is not a whole one.
        """
        values = json.loads(line)
        frames = tuple(
            LabelledFrame(np.array(positions), energy, np.array(forces), None if stress is None else np.array(stress))
            for positions, energy, forces, stress in values["frames"]
        )
        return cls(**{**values, "frames": frames})

    def structures(self, initial: Structure, calculator: str) -> list[Structure]:
        """The structure with these labels and no others; all steps of a relaxation, the first one first.

        Args:
            initial: as it was given.
            calculator: name of the factory.
        """
        sid, info = initial.sid or f"structure{self.number}", {**initial.info, "calculator": calculator}
        info["energy_reference"] = "total"
        return [
            dataclasses.replace(
                initial.without_labels(),
                positions=frame.positions,
                energy=frame.energy,
                forces=frame.forces,
                stress=None if frame.stress is None else voigt_6_to_full_3x3_stress(frame.stress),
                sid=sid,
                fid=step if len(self.frames) > 1 else initial.fid,
                info=info,
            )
            for step, frame in enumerate(self.frames)
        ]


def factory_of(name: str) -> Factory:
    """The function of that name, as ``module:function``; a module of the working directory will do as well.

    Keyword arguments, as Python writes plain values, may follow: ``tblite.ase:TBLite(method='GFN1-xTB')``.

    Raises:
        InputError: if there is no such module or function, or what follows is something else.
    """
    module_name, colon, call = name.partition(":")
    attribute, bracket, _ = call.partition("(")
    if not (module_name and colon and attribute):
        raise InputError(f"calculator is {name!r}; it must be module:factory, such as ase.calculators.emt:EMT")
    arguments = _arguments(call) if bracket else {}
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"{name}: cannot import {module_name} ({error}); install the package that has it") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise InputError(f"{name}: {module_name} has no function {attribute}")
    return partial(found, **arguments)


def _arguments(call: str) -> dict[str, Any]:
    """The keyword arguments of a call, ``function(name=value, …)`` with plain values.

    Raises:
        InputError: if it is none, or has other arguments.
    """
    try:
        match ast.parse(call, mode="eval").body:
            case ast.Call(func=ast.Name(), args=[], keywords=keywords) if all(k.arg for k in keywords):
                return {str(k.arg): ast.literal_eval(k.value) for k in keywords}
    except (SyntaxError, ValueError):
        pass
    raise InputError(
        f"calculator: {call!r} is no factory with plain keyword arguments, such as TBLite(method='GFN1-xTB')"
    )


class Labeller:
    """Asks a calculator for labels.

    Args:
        factory: makes it.
        config: how.
        folder: for the calculator's files.
    """

    def __init__(self, factory: Factory, config: LabelConfig, folder: Path):
        self.factory, self.config, self.folder = factory, config, folder
        self.calculator: BaseCalculator | None = None

    def __call__(self, number: int, structure: Structure) -> Label:
        """The labels of a structure; an error of the calculator becomes the label's, so that others go on."""
        started, error = time.perf_counter(), ""
        frames: tuple[LabelledFrame, ...] = ()
        folder = self.folder / f"{number:06d}" if self.config.fresh else self.folder
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        try:
            if self.config.relax and structure.other_constraints:
                raise InputError(f"cannot relax under {', '.join(structure.other_constraints)}")
            atoms = structure.to_ase()
            atoms.calc = self.calculator = self.calculator or self.factory()
            frames = tuple(self._frames(atoms))
        except InputError as failure:
            error = str(failure)
        except Exception as failure:  # whatever a calculator raises is said of this structure, and others go on
            error = f"{type(failure).__name__}: {failure}" if str(failure) else type(failure).__name__
        parameters = dict(getattr(self.calculator, "parameters", None) or {})
        if self.config.fresh or error:
            self.calculator = None  # one that failed may be in any state
        if self.config.fresh and not error:
            os.chdir(self.folder)
            shutil.rmtree(folder, ignore_errors=True)
        return Label(number, frames, time.perf_counter() - started, parameters, " ".join(error.split()))

    def _frames(self, atoms: Atoms) -> Iterator[LabelledFrame]:
        if not self.config.relax:
            yield LabelledFrame.of(atoms)
            return
        with BFGS(atoms, logfile=None) as optimizer:
            for _ in optimizer.irun(self.config.fmax, self.config.max_steps):
                yield LabelledFrame.of(atoms)


class _Worker:
    """A process that labels one structure after the other."""

    def __init__(self, calculator: str, config: LabelConfig, folder: Path):
        context = get_context("spawn")  # a fork of a process in which PyTorch has threads can hang
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, calculator, config, folder))
        with one_thread_each():
            self.process.start()
        theirs.close()
        self.number = -1
        """Number of the structure that is labelled."""

    def begin(self, number: int, structure: Structure) -> None:
        """Hand over a structure."""
        self.number = number
        with suppress(ConnectionError):  # of a process that has died, which is found when its result is asked for
            self.connection.send((number, structure))

    def result(self) -> Label:
        """The label of that structure; one with an error if the process has ended over it."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return Label(self.number, error=f"the process that computed it ended with status {self.process.exitcode}")

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.terminate()
        self.process.join()
        self.connection.close()


def _work(connection: Connection, calculator: str, config: LabelConfig, folder: Path) -> None:
    """Label what comes, until nothing does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted as well, and ends this process
    follow_parent()
    label = Labeller(factory_of(calculator), config, folder)
    while True:
        try:
            number, structure = connection.recv()
        except EOFError:
            return
        connection.send(label(number, structure))


def labels(
    todo: Iterable[tuple[int, Structure]], calculator: str, config: LabelConfig, workers: int, folder: Path
) -> Iterator[Label]:
    """The labels of structures, as they are finished.

    A process that dies, for want of memory say, takes one structure with it and is replaced.

    Args:
        todo: structures, with the numbers by which they are known.
        calculator: name of the factory.
        config: how.
        workers: processes.
        folder: for the files of calculators; each process has a folder in it, or each structure if they are ``fresh``.
    """
    remaining, n_started, busy = iter(todo), 0, list[_Worker]()

    def begin(worker: _Worker | None) -> None:
        """Let a worker, or a new one, label the next structure; end it if there is none."""
        nonlocal n_started
        task = next(remaining, None)
        if task is None:
            if worker is not None:
                worker.end()
            return
        if worker is None:
            worker = _Worker(calculator, config, folder if config.fresh else folder / f"process{n_started}")
            n_started += 1
        worker.begin(*task)
        busy.append(worker)

    try:
        for _ in range(workers):
            begin(None)
        while busy:
            ready = wait([worker.connection for worker in busy])
            for worker in [w for w in busy if w.connection in ready]:
                busy.remove(worker)
                label = worker.result()
                alive = worker.process.is_alive()
                if not alive:
                    worker.end()
                begin(worker if alive else None)
                yield label
    finally:
        for worker in busy:
            worker.end()
