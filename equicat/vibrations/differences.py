"""Force constants by finite differences: the displaced copies of all structures go through the model in batches.

With a strictly local model the forces on the atoms that vibrate come from centres within one cutoff of them, so the
edges of all other centres are left out of the displaced copies. Their energies are then not those of the whole, and
nobody looks at them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from equicat.relaxation.driver import EDGES_OF_AN_ATOM
from equicat.relaxation.models import ForceModel, PotentialForces
from equicat.relaxation.pairs import Pairs, VerletList, on_device, verlet_lists
from equicat.vibrations.config import VibrationConfig
from equicat.vibrations.systems import System

WEIGHTS = {2: {-1: 1 / 2, 1: -1 / 2}, 4: {-2: -1 / 12, -1: 8 / 12, 1: -8 / 12, 2: 1 / 12}}
"""For each number of displacements: −dF/dx · delta is the sum of the forces after so many steps, times these weights
(central differences of second and fourth order, as in ``ase.vibrations``)."""
ROUNDING = 1e-6
"""Å that a neighbour list reaches beyond what displacements need."""


@dataclass(frozen=True, eq=False)
class Differences:
    """Results of the finite differences of one system."""

    energy: float
    """eV, of the structure itself; NaN if the model says so."""
    forces: Float[ndarray, "n_atoms 3"]
    """eV/Å, of the structure itself."""
    force_constants: Float[ndarray, "n_coordinates n_coordinates"]
    """eV/Å² along the coordinates of the system, symmetric; NaN where forces were."""


@dataclass(eq=False)
class _Copies:
    """Copies of one structure that go through the model: the structure itself, or its displaced ones."""

    system: System
    pairs: VerletList
    steps: Float[ndarray, "n_steps"]
    """Å; along each coordinate. Without steps the one copy is the structure itself."""
    energies: list[float] = field(default_factory=list)
    forces: list[Float[ndarray, "n_atoms 3"]] = field(default_factory=list)
    """The results so far; of displaced copies only at the atoms of the coordinates."""

    def __len__(self) -> int:
        return len(self.steps) * len(self.system.atoms) or 1

    @property
    def cost(self) -> int:
        """Edges of a copy, or what stands for them."""
        return self.pairs.n_edges or EDGES_OF_AN_ATOM * len(self.system.structure)

    def positions(self, number: int) -> Float[ndarray, "n_atoms 3"]:
        """Where the atoms of a copy are, Å."""
        positions = self.system.structure.positions.copy()
        if len(self.steps):
            coordinate, step = divmod(number, len(self.steps))
            positions[self.system.atoms[coordinate]] += self.steps[step] * self.system.directions[coordinate]
        return positions

    def take(self, energy: float, forces: Float[ndarray, "n_atoms 3"]) -> None:
        """Keep the results of the next copy."""
        self.energies.append(energy)
        self.forces.append(forces[self.system.atoms] if len(self.steps) else forces.copy())


def differences(model: ForceModel, systems: Iterable[System], config: VibrationConfig) -> Iterator[Differences]:
    """Force constants of all systems, in their order.

    What becomes of a system does not depend on those beside it, as far as the model's own rounding does not.
    """
    weights = WEIGHTS[config.nfree]
    waiting: list[_Copies] = []
    for batch in _batches(_all_copies(model, systems, config), config.edges or model.edges):
        _evaluate(model, batch)
        waiting += [copies for copies, _ in batch if not any(copies is other for other in waiting)]
        while len(waiting) > 1 and len(waiting[1].forces) == len(waiting[1]):
            itself, displaced = waiting[:2]
            waiting = waiting[2:]
            constants = _force_constants(displaced, list(weights.values())) / config.delta
            yield Differences(itself.energies[0], itself.forces[0], constants)


def _all_copies(model: ForceModel, systems: Iterable[System], config: VibrationConfig) -> Iterator[_Copies]:
    """For each system the copy that is not displaced, then those that are."""
    steps = config.delta * np.array(list(WEIGHTS[config.nfree]))
    reach = None if model.cutoff is None else model.cutoff + steps.max() + ROUNDING
    strictly_local = is_strictly_local(model)
    for system in systems:
        positions = on_device([system.structure.positions], model.device)
        (pairs,) = verlet_lists([system.structure], positions, reach)
        yield _Copies(system, pairs, np.zeros(0))
        yield _Copies(system, _felt(pairs, system) if strictly_local else pairs, steps)


def is_strictly_local(model: ForceModel) -> bool:
    """Whether forces on an atom come from the energies of centres within one cutoff of it, and of nothing else."""
    return isinstance(model, PotentialForces) and model.is_strictly_local


def _felt(pairs: VerletList, system: System) -> VerletList:
    """The pairs of the centres whose energies change when an atom of the coordinates moves."""
    vibrates = torch.zeros(len(system.structure), dtype=torch.bool)
    vibrates[torch.from_numpy(system.atoms)] = True
    return pairs.of_active(vibrates.to(pairs.positions.device))


def _batches(all_copies: Iterable[_Copies], budget: int) -> Iterator[list[tuple[_Copies, range]]]:
    """Numbers of copies, in order, as batches that hold at most ``budget`` edges, or one copy."""
    batch: list[tuple[_Copies, range]] = []
    room = budget
    for copies in all_copies:
        first = 0
        while first < len(copies):
            stop = min(len(copies), first + max(room // copies.cost, 0 if batch else 1))
            if stop > first:
                batch.append((copies, range(first, stop)))
                room -= (stop - first) * copies.cost
                first = stop
            else:
                yield batch
                batch, room = [], budget
    if batch:
        yield batch


def _evaluate(model: ForceModel, batch: Sequence[tuple[_Copies, range]]) -> None:
    """Let the model compute a batch, and hand each copy its results."""
    members = [(copies, number) for copies, numbers in batch for number in numbers]
    structures, lists = [c.system.structure for c, _ in members], [c.pairs for c, _ in members]
    positions = np.concatenate([copies.positions(number) for copies, number in members])
    names = [str(place) for place in range(len(members))]
    pairs = Pairs.of(structures, lists, names, model.cutoff, model.device)
    energy, forces = model(pairs.batch(torch.from_numpy(positions).to(model.device)))
    ends = np.cumsum([len(s) for s in structures])[:-1]
    split = np.split(forces.double().cpu().numpy(), ends)
    for (copies, _), one, vectors in zip(members, energy.double().tolist(), split, strict=True):
        copies.take(one, vectors)


def _force_constants(displaced: _Copies, weights: Sequence[float]) -> Float[ndarray, "n_coordinates n_coordinates"]:
    """Symmetric force constants, eV/Å² times the step."""
    forces = (np.array(displaced.forces) * displaced.system.directions).sum(2)
    n = len(displaced.system.atoms)
    rows = (forces.reshape(n, len(weights), n) * np.array(weights)[:, None]).sum(1)
    return (rows + rows.T) / 2
