"""The loop of a batched relaxation: each system converges on its own, leaves, and the next one takes its place.

A system is judged, stepped and listed by its own atoms alone, so what becomes of it does not depend on the systems
beside it, as far as the model's own rounding does not. (The CPU kernels of the Allegro models give the same bits for
any batch; PyTorch's matrix products may differ in the last digit.)
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from equicat.data.structure import Structure
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.fire import FIRE, FIREState
from equicat.relaxation.held import Freedom, free_directions
from equicat.relaxation.layout import Change, Layout
from equicat.relaxation.lbfgs import PRESETS, LBFGSState
from equicat.relaxation.models import ForceModel, PotentialForces
from equicat.relaxation.pairs import Pairs, VerletList, on_device, verlet_lists, verlet_lists_or_none

MAX_FORCE = 1000.0
"""eV/Å. A system with a larger force on a free atom has exploded and is not followed any further."""
MEMORY_SHARE = 0.5
"""Part of a GPU's free memory that batches may fill, unless their size is given."""
MAX_EDGES_ON_GPU = 5_000_000
"""From about there on, larger batches are no faster on any GPU."""
EDGES_OF_AN_ATOM = 50
"""How a system counts for the size of a batch if its model finds its own neighbours."""

State = LBFGSState | FIREState
How = Literal["converged", "stopped", "exploded"]
"""Stopped: after ``max_steps``. Exploded: energy or forces are not finite, a force is above :data:`MAX_FORCE`, or two
atoms are at the same place."""


@runtime_checkable
class Optimizer(Protocol):
    """Pure functions on the state of many systems."""

    def init(self, layout: Layout, like: Float[Tensor, "n_atoms 3"]) -> State:
        """The state before the first step."""
        ...

    def step(
        self, state: Any, positions: Float[Tensor, "n_atoms 3"], forces: Float[Tensor, "n_atoms 3"], layout: Layout
    ) -> tuple[State, Float[Tensor, "n_atoms 3"]]:
        """The state after the step, and the next positions (Å)."""
        ...


@dataclass(frozen=True, eq=False)
class Frame:
    """A system at one moment: energy in eV, positions in Å, forces of all atoms in eV/Å."""

    energy: float
    positions: Float[ndarray, "n_atoms 3"]
    forces: Float[ndarray, "n_atoms 3"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """Result of relaxing one system."""

    number: int
    """Place of the system in the input."""
    initial: Structure
    last: Frame | None
    """The last frame with finite numbers; None if there was none."""
    fmax: float
    """eV/Å; the longest force on an atom in the last frame, along what is free; NaN if there is no frame."""
    n_steps: int
    how: How
    """How it ended."""
    seconds: float
    """Share of the time of its batches, by atoms."""
    frames: list[Frame] = field(default_factory=list)
    """From the first to the last, if they were asked for."""


@dataclass(eq=False)
class _Member:
    """A system that is being relaxed."""

    number: int
    initial: Structure
    moving: Bool[Tensor, "n_atoms"]
    """Atoms that can move."""
    pairs: VerletList
    n_steps: int = 0
    seconds: float = 0.0
    frames: list[Frame] = field(default_factory=list)

    @property
    def cost(self) -> int:
        """Edges, or what stands for them."""
        return self.pairs.n_edges or EDGES_OF_AN_ATOM * len(self.initial)


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """Positions of all systems with the energies and forces there, float64; energies are NaN before the first."""

    positions: Float[Tensor, "n_atoms 3"]
    energy: Float[Tensor, "n_systems"]
    forces: Float[Tensor, "n_atoms 3"]
    fmax: Float[Tensor, "n_systems"]
    good: Bool[Tensor, "n_systems"]
    """Whether the last attempt gave finite numbers, so that these are its results."""

    def changed(self, change: Change) -> "_Evaluation":
        """After some systems have left and others have come."""
        return _Evaluation(
            change.of_atoms(self.positions),
            change.of_systems(self.energy, new=float("nan")),
            change.of_atoms(self.forces),
            change.of_systems(self.fmax, new=float("nan")),
            change.of_systems(self.good),
        )

    def frames(self, layout: Layout) -> list[Frame]:
        """One for each system."""
        ends = torch.bincount(layout.system_idx, minlength=layout.n_systems).cumsum(0)[:-1].cpu().numpy()
        positions, forces = (np.split(t.cpu().numpy(), ends) for t in (self.positions, self.forces))
        systems = zip(self.energy.tolist(), positions, forces, strict=True)
        # Copies: a result must not keep the arrays of a whole batch in memory.
        return [Frame(energy, r.copy(), f.copy()) for energy, r, f in systems]


def optimizer_of(config: RelaxConfig) -> Optimizer:
    """The optimiser with its settings."""
    chosen: Any = FIRE() if config.optimizer == "fire" else PRESETS[config.preset]
    return chosen if config.max_step is None else dataclasses.replace(chosen, max_step=config.max_step)


class Driver:
    """Relaxes systems in batches.

    Args:
        model: what gives energies and forces.
        config: how to relax.
        keep_frames: keep every step of each system.
    """

    def __init__(self, model: ForceModel, config: RelaxConfig, keep_frames: bool = False):
        self.model, self.config, self.keep_frames = model, config, keep_frames
        self.optimizer = optimizer_of(config)
        self.reach = None if model.cutoff is None else model.cutoff + config.skin
        self.active_only = isinstance(model, PotentialForces) and model.is_strictly_local and not keep_frames
        """Whether centres whose energy is a constant are left out, until the end of a relaxation."""
        self.budget = config.edges or model.edges
        self.measured = config.edges is not None or model.device.type != "cuda"
        """Whether the size of batches is settled."""
        self.members: list[_Member] = []
        self.waiting: list[_Member] = []
        """The next systems, which did not fit in."""
        empty = torch.zeros(0, 3, dtype=torch.float64, device=model.device)
        self.layout = Layout.of(torch.zeros(0, dtype=torch.int64, device=model.device))
        self.positions, self.freedom = empty, Freedom.of(empty.new_zeros(0, 3, 3))
        self.moving = self.layout
        """Layout of the atoms that can move; the optimiser knows of no others."""
        self.state: Any = self.optimizer.init(self.moving, empty)
        self.last = _Evaluation(empty, empty[:, 0], empty, empty[:, 0], empty[:, 0].bool())
        self.pairs: Pairs | None = None
        """None when the members or their lists are not those it was made of."""
        self.n_atom_steps = 0
        """Evaluations so far times atoms."""

    def run(self, systems: Iterable[tuple[int, Structure]]) -> Iterator[Outcome]:
        """Relax systems, each with its number; they come back in the order in which they finish.

        Raises:
            InputError: if two atoms of an initial structure are at the same place.
        """
        queue = iter(systems)
        leaving: dict[int, How] = {}
        while True:
            started = time.perf_counter()
            self._change(leaving, self._admitted(queue, leaving))
            if not self.members:
                return
            free_forces = self._evaluate()
            here, forces = self.freedom.of_moving(self.positions), self.freedom.of_moving(free_forces)
            self.state, there = self.optimizer.step(self.state, here, forces, self.moving)
            self.positions = self.freedom.moved(self.positions, there)
            good, fmax, moved = self._report()
            leaving = self._finished(good, fmax)
            leaving |= self._new_lists(leaving, moved)
            outcomes = self._outcomes(leaving, (time.perf_counter() - started) / self.layout.n_atoms)
            yield from outcomes

    def _admitted(self, queue: Iterator[tuple[int, Structure]], leaving: Iterable[int]) -> list["_Member"]:
        """The next systems, as many as fit in once others have left."""
        total, new = sum(m.cost for m in self.members) - sum(self.members[k].cost for k in leaving), list[_Member]()
        while True:
            self.waiting = self.waiting or self._fetched(queue, self.budget - total)
            if not self.waiting or (total and total + self.waiting[0].cost > self.budget):
                return new
            new.append(self.waiting.pop(0))
            total += new[-1].cost

    def _fetched(self, queue: Iterator[tuple[int, Structure]], room: int) -> list["_Member"]:
        """Take systems from the queue, one at least and about as many as there is room for (edges)."""
        found = list[tuple[int, Structure]]()
        for number, structure in queue:
            found.append((number, structure))
            room -= EDGES_OF_AN_ATOM * len(structure)
            if room <= 0:
                break
        structures = [structure for _, structure in found]
        if not structures:
            return []
        moving = on_device([np.asarray(free_directions(s).any((1, 2))) for s in structures], self.model.device)
        positions = on_device([s.positions for s in structures], self.model.device)
        lists = verlet_lists(structures, positions, self.reach, moving if self.active_only else None)
        return [_Member(*one, mask, pairs) for one, mask, pairs in zip(found, moving, lists, strict=True)]

    def _change(self, leaving: Iterable[int], new: list["_Member"]) -> None:
        """Take out members by their place, and append others."""
        gone = set(leaving)
        if not gone and not new:
            return
        device = self.model.device
        stay = torch.tensor([k not in gone for k in range(len(self.members))], dtype=torch.bool, device=device)
        n_new_atoms = sum(len(m.initial) for m in new)
        change = Change(self.layout.atoms_of(stay), stay.nonzero()[:, 0], n_new_atoms, len(new))
        self.members = [m for k, m in enumerate(self.members) if k not in gone] + new
        n_atoms = torch.tensor([len(m.initial) for m in self.members], dtype=torch.int64, device=device)
        self.layout = Layout.of(n_atoms)
        positions = [np.zeros((0, 3)), *(m.initial.positions for m in new)]
        projectors = [np.zeros((0, 3, 3)), *(free_directions(m.initial) for m in new)]
        self.positions = torch.cat([self.positions.index_select(0, change.atoms), self._joined(positions)])
        self.last = self.last.changed(change)
        kept = self.moving.atoms_of(stay)
        self.freedom = self.freedom.changed(change, self._joined(projectors))
        self.moving = Layout.of(torch.bincount(self.layout.system_idx[self.freedom.atoms], minlength=len(self.members)))
        n_new = self.moving.n_atoms - len(kept)
        self.state = self.state.changed(Change(kept, change.systems, n_new, len(new)))
        self.pairs = None

    def _joined(self, arrays: list[ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(self.model.device)

    def _evaluate(self) -> Float[Tensor, "n_atoms 3"]:
        """Evaluate at the present positions; forces along what is free. A system with a bad result keeps its last."""
        if self.pairs is None:
            initial, lists = [m.initial for m in self.members], [m.pairs for m in self.members]
            ids = [str(m.number) for m in self.members]
            self.pairs = Pairs.of(initial, lists, ids, self.model.cutoff, self.model.device)
        before = 0 if self.measured else self._memory_before()
        energy, forces = self.model(self.pairs.batch(self.positions))
        if not self.measured:
            self._measure(before)
        energy, forces = energy.double(), forces.double()
        self.n_atom_steps += self.layout.n_atoms
        free_forces = self.freedom.along(forces)
        fmax = self.layout.largest(free_forces)
        good = energy.isfinite() & self.layout.largest(forces).isfinite() & (fmax < MAX_FORCE)
        good_atoms = self.layout.by_atom(good)
        self.last = _Evaluation(
            torch.where(good_atoms, self.positions, self.last.positions),
            torch.where(good, energy, self.last.energy),
            torch.where(good_atoms, forces, self.last.forces),
            torch.where(good, fmax, self.last.fmax),
            good,
        )
        return free_forces

    def _memory_before(self) -> int:
        """Bytes in use on the GPU; its peak is counted from here."""
        torch.cuda.reset_peak_memory_stats(self.model.device)
        return torch.cuda.memory_allocated(self.model.device)

    def _measure(self, before: int) -> None:
        """Let batches grow to what fits on the GPU: the first one took its peak of memory less ``before`` (bytes)."""
        device, n_edges = self.model.device, sum(member.cost for member in self.members)
        used = torch.cuda.max_memory_allocated(device) - before
        free, _ = torch.cuda.mem_get_info(device)
        self.budget = int(min(max(MEMORY_SHARE * free * n_edges / max(used, 1), n_edges), MAX_EDGES_ON_GPU))
        self.measured = True

    def _report(self) -> list[list[float]]:
        """For each member: whether the evaluation was good, ``fmax``, and how far its atoms are from those of its list.

        Everything that the loop has to know of a step, in one wait for the device.
        """
        assert self.pairs is not None
        numbers = [self.last.good.double(), self.last.fmax, self.pairs.moved(self.positions)]
        return torch.stack(numbers).tolist()

    def _finished(self, good: Sequence[float], forces: Sequence[float]) -> dict[int, How]:
        """Which members leave after an evaluation, by their place, and how; ``forces`` are the largest (eV/Å)."""
        if self.keep_frames:
            for member, frame, fine in zip(self.members, self.last.frames(self.layout), good, strict=True):
                member.frames += [frame] if fine else []
        found: dict[int, How] = {}
        for k, (member, fmax) in enumerate(zip(self.members, forces, strict=True)):
            if not good[k]:
                found[k] = "exploded"
            elif fmax < self.config.fmax:
                found[k] = "converged"
            elif member.n_steps == self.config.max_steps:
                found[k] = "stopped"
        return found

    def _new_lists(self, leaving: Iterable[int], moved: Sequence[float]) -> dict[int, How]:
        """Count the step, and make new lists for those whose atoms have ``moved`` (Å) too far, in one call.

        Those whose atoms have met, or are nowhere, are lost.
        """
        assert self.pairs is not None
        staying = [k for k in range(len(self.members)) if k not in leaving]
        for k in staying:
            self.members[k].n_steps += 1
        if self.reach is None:
            return {}
        stale = [k for k in staying if moved[k] > self.config.skin / 2]
        anew, parts = [k for k in stale if isfinite(moved[k])], self.positions.split(list(self.pairs.n_atoms))
        lists = verlet_lists_or_none(
            [self.members[k].initial for k in anew],
            [parts[k] for k in anew],
            self.reach,
            [self.members[k].moving for k in anew] if self.active_only else None,
        )
        lost: dict[int, How] = {k: "exploded" for k in stale if k not in anew}
        for k, pairs in zip(anew, lists, strict=True):
            if pairs is None:
                lost[k] = "exploded"
            else:
                self.members[k].pairs = pairs
        if anew:
            self.pairs = self.pairs.with_lists([m.pairs for m in self.members])
        return lost

    def _outcomes(self, leaving: dict[int, How], seconds_per_atom: float) -> list[Outcome]:
        """Give every member its share of the time, and report those that leave."""
        for member in self.members:
            member.seconds += seconds_per_atom * len(member.initial)
        last = self._last_frames(leaving) if leaving else {}
        outcomes = []
        for k, how in leaving.items():
            member, frame = self.members[k], last[k]
            fmax = float("nan") if frame is None else float(self.last.fmax[k])
            end: How = "exploded" if frame is None else how
            outcomes.append(
                Outcome(member.number, member.initial, frame, fmax, member.n_steps, end, member.seconds, member.frames)
            )
        return outcomes

    def _last_frames(self, members: Iterable[int]) -> dict[int, Frame | None]:
        """The last frame with finite numbers of some members, of all atoms; None if there was none."""
        frames = self.last.frames(self.layout)
        found = {k: None if np.isnan(frames[k].energy) else frames[k] for k in members}
        in_part = {k: f for k, f in found.items() if f is not None and self.members[k].pairs.complete is not None}
        return found | (self._completed(in_part) if in_part else {})

    def _completed(self, frames: Mapping[int, Frame]) -> dict[int, Frame | None]:
        """Frames of members with the energies of all centres, and the forces on all atoms; None if not finite."""
        members = [self.members[k] for k in frames]
        lists = [member.pairs.complete for member in members if member.pairs.complete is not None]
        ids, initial = [str(member.number) for member in members], [member.initial for member in members]
        pairs = Pairs.of(initial, lists, ids, self.model.cutoff, self.model.device)
        positions = self._joined([frame.positions for frame in frames.values()])
        energy, forces = self.model(pairs.batch(positions))
        energy, forces = energy.double(), forces.double()
        finite = energy.isfinite() & pairs.layout.largest(forces).isfinite()
        every = _Evaluation(positions, energy, forces, energy, finite).frames(pairs.layout)
        return {k: f if fine else None for k, f, fine in zip(frames, every, finite.tolist(), strict=True)}
