"""Energies, forces and virials of systems that move, for programs that ask step by step.

What a step does not change is kept between calls. Neighbour lists reach a skin further than the cutoff and hold until a
pair within the cutoff could be missing; a cell that deforms needs no new list either while that is so. At each step the
model sees the pairs within the cutoff, as it would with a new list.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from ase import Atoms
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from equicat.data.batch import PairBatch
from equicat.data.neighbors import MIN_DISTANCE, neighbor_list
from equicat.data.structure import MAX_LENGTH, MIN_VOLUME, Structure
from equicat.errors import InputError
from equicat.models.domain import Action, DomainWatch
from equicat.models.model import Prediction
from equicat.models.potential import Potential
from equicat.models.uncertainty import check_max_grade, high_grade
from equicat.relaxation.driver import MAX_EDGES_ON_GPU
from equicat.relaxation.models import PotentialForces
from equicat.relaxation.pairs import Pairs, VerletList, on_device, verlet_lists

SKIN = 1.0
"""Å beyond the cutoff that neighbour lists reach, unless told otherwise."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results for one system: eV, eV/Å, and dE/dε in eV."""

    energy: float
    atom_energies: Float[ndarray, "n_atoms"]
    """Reference energies of the elements included, so that they add up to ``energy``."""
    forces: Float[ndarray, "n_atoms 3"]
    virial: Float[ndarray, "3 3"] | None = None
    """Symmetric; None if it was not asked for."""
    grades: Float[ndarray, "n_atoms"] | None = None
    """Extrapolation grades (:mod:`equicat.models.uncertainty`); None if they were not asked for."""


class Evaluator:
    """Evaluates systems that come again and again, with atoms and cell a little elsewhere.

    Args:
        potential: the model, frozen.
        skin: Å; a longer one makes fewer neighbour lists, and longer ones.
        outside_training: what to do about structures unlike those in training, once of each kind.
        numbered: whether a warning of this calls systems by their number.
        max_grade: grade above which an atom counts as outside of the training; None to compute grades on demand only.

    Raises:
        InputError: for a skin below zero, or a ``max_grade`` that nothing would look at.
    """

    def __init__(
        self,
        potential: Potential,
        skin: float,
        outside_training: Action,
        numbered: bool = True,
        max_grade: float | None = None,
    ):
        if not 0 <= skin < MAX_LENGTH:
            raise InputError(f"skin is {skin}; it is a distance in Å, such as {SKIN}")
        if max_grade is not None:
            check_max_grade(potential, max_grade, outside_training)
        self.potential, self.skin, self.max_grade = potential, skin, max_grade
        info, model = potential.info, PotentialForces(potential)
        self.watch = DomainWatch(info.domain, info.energy_reference, outside_training, numbered)
        self.device = model.device
        on_gpu = model.is_strictly_local and self.device.type != "cpu"
        self.edges = MAX_EDGES_ON_GPU if on_gpu else model.edges
        """Edges of a batch at most, unless a single system has more."""
        self.systems: list[_System] = []
        self.groups: list[_Group] = []
        self.news_below = self._news_below()

    def __call__(self, structures: Sequence[Structure], virial: bool = False, grades: bool = False) -> list[Evaluation]:
        """The results of each system, in their order.

        Args:
            structures: at least one; :func:`unlabelled` makes them. They need not be checked.
            virial: whether to compute dE/dε.
            grades: whether to compute extrapolation grades, if ``max_grade`` does not ask for them anyway.

        Raises:
            InputError: for an invalid structure, an element that the model does not know, two atoms at the same place,
                or, if that is an error, a structure outside of the training data.
        """
        found: list[Evaluation] = []
        for group, batch in self._batches(structures):
            with torch.no_grad():
                prediction = self.potential(batch, virial=virial)
            own = group.evaluations(prediction)
            if grades or self.max_grade is not None:
                each = zip(own, self._graded(group, batch), strict=True)
                own = [dataclasses.replace(evaluation, grades=g) for evaluation, g in each]
            found += own
        self.watch.say()
        return found

    def grades(self, structures: Sequence[Structure]) -> list[Float[ndarray, "n_atoms"]]:
        """Extrapolation grades of the atoms of each system, without energies and forces.

        Args:
            structures: as in a call.

        Raises:
            InputError: as a call does.
        """
        found = [own for group, batch in self._batches(structures) for own in self._graded(group, batch)]
        self.watch.say()
        return found

    def _batches(self, structures: Sequence[Structure]) -> "Iterator[tuple[_Group, PairBatch]]":
        """The systems in batches, where their atoms are now."""
        self._renew(structures)
        for group in self.groups:
            here = structures[group.first : group.first + len(group.systems)]
            batch = group.batch(here).in_dtype(self.potential.dtype)
            self._look(group, batch, here)
            yield group, batch

    def _graded(self, group: "_Group", batch: PairBatch) -> list[Float[ndarray, "n_atoms"]]:
        """Grades of each system of a batch, and a finding for each that has one above ``max_grade``."""
        assert self.potential.grade is not None
        grades = self.potential.grade.by_system(self.potential, batch)
        for k, (own, system) in enumerate(zip(grades, group.systems, strict=True)):
            if self.max_grade is not None and len(own) and own.max() > self.max_grade:
                atom = int(own.argmax())
                text = high_grade(atom, int(system.structure.numbers[atom]), float(own[atom]), self.max_grade)
                self.watch.found("grade", text, f"structure {group.first + k}" * self.watch.numbered)
        return grades

    def _renew(self, structures: Sequence[Structure]) -> None:
        """Make the neighbour lists that no longer hold, and join the systems again if there are any."""
        cutoff, reach = self.potential.cutoff, self.potential.cutoff + self.skin
        systems = [
            old if old is not None and old.has_all_pairs(now, cutoff, reach) else None
            for old, now in zip_longest(self.systems[: len(structures)], structures)
        ]
        new = [k for k, system in enumerate(systems) if system is None]
        if not new and len(systems) == len(self.systems):
            return
        checked = [_checked(structures[k]) for k in new]
        lists = verlet_lists(checked, on_device([s.positions for s in checked], self.device), reach) if new else []
        for k, structure, pairs in zip(new, checked, lists, strict=True):
            before = self.systems[k] if k < len(self.systems) else None
            systems[k] = _System(structure, pairs, before is not None and before.seen and before.is_of(structure))
        self._join([system for system in systems if system is not None])

    def _join(self, systems: "list[_System]") -> None:
        """Put systems into as few batches as hold them."""
        groups, first, n_edges = list[_Group](), 0, 0
        for k, system in enumerate(systems):
            if k > first and n_edges + system.pairs.n_edges > self.edges:
                groups.append(_Group.of(first, systems[first:k], self.potential))
                first, n_edges = k, 0
            n_edges += system.pairs.n_edges
        groups.append(_Group.of(first, systems[first:], self.potential))
        self.systems, self.groups = systems, groups

    def _look(self, group: "_Group", batch: PairBatch, structures: Sequence[Structure]) -> None:
        """Look whether atoms have met, and for what is outside of the training data and was not said before."""
        assert batch.vectors is not None
        distances = torch.linalg.vector_norm(batch.vectors, dim=1)
        if len(distances) and distances.min() < MIN_DISTANCE:
            for structure in structures:
                neighbor_list(structure, self.potential.cutoff)  # raises, and names the atoms
        new = not all(system.seen for system in group.systems)
        if not new and self.news_below is not None:
            center, neighbor = group.species[batch.edge_index]
            new = bool((distances < self.news_below[center, neighbor]).any())
        if new:
            self.watch.n_structures = group.first
            self.watch.look(batch)
            self.news_below = self._news_below()
            for system in group.systems:
                system.seen = True

    def _news_below(self) -> Float[Tensor, "n_species n_species"] | None:
        limits = self.watch.news_below(self.potential.elements)
        return None if limits is None else torch.from_numpy(limits).to(self.device)


@dataclass(eq=False)
class _System:
    """A system as it was when its neighbour list was made."""

    structure: Structure
    pairs: VerletList
    seen: bool = False
    """Whether atoms of these elements were compared with the training data."""

    def is_of(self, now: Structure) -> bool:
        """Whether it has the same atoms and periodic directions."""
        return np.array_equal(self.structure.numbers, now.numbers) and np.array_equal(self.structure.pbc, now.pbc)

    def has_all_pairs(self, now: Structure, cutoff: float, reach: float) -> bool:
        """Whether the list has every pair within the cutoff, where the atoms are now.

        With r = r₀F + u, a pair vector v₀ becomes v₀F + u_j − u_i. One that was not in the list is therefore at least
        σ_min(F) reach − 2 max |u| long. F takes the former lattice vectors to those of now.
        """
        if not self.is_of(now):
            return False
        then, smallest = self.structure, 1.0
        expected, lattice = then.positions, then.cell[then.pbc]
        change = now.cell[then.pbc] - lattice
        if change.any():
            deformation = np.eye(3) + np.linalg.pinv(lattice) @ change
            smallest = np.linalg.svd(deformation, compute_uv=False)[-1]
            expected = expected @ deformation
        with np.errstate(over="ignore", invalid="ignore"):
            furthest = np.sqrt(np.square(now.positions - expected).sum(axis=1).max())
        return bool(smallest * reach - 2 * furthest >= cutoff)  # false for what is not a number


@dataclass(frozen=True, eq=False)
class _Group:
    """Systems that are evaluated in one batch."""

    first: int
    """Number of the first one."""
    systems: list[_System]
    pairs: Pairs
    cells: Float[ndarray, "n_systems 3 3"]
    species: Int[Tensor, "n_atoms"]
    references: Float[ndarray, "n_atoms"]
    """Reference energy of each atom's element, eV."""
    ends: list[int]
    """The last atom of each system, plus one."""

    @classmethod
    def of(cls, first: int, systems: list[_System], potential: Potential) -> "_Group":
        """Put systems together.

        Raises:
            InputError: for an element that the model does not know.
        """
        structures = [system.structure for system in systems]
        device, ids = potential.scale.device, [""] * len(systems)
        pairs = Pairs.of(structures, [system.pairs for system in systems], ids, potential.cutoff, device)
        species = potential.species(pairs.batch(pairs.positions))
        references = potential.reference_energies[species].cpu().numpy()
        ends = np.cumsum([len(s) for s in structures]).tolist()
        return cls(first, systems, pairs, np.stack([s.cell for s in structures]), species, references, ends)

    def batch(self, structures: Sequence[Structure]) -> PairBatch:
        """The systems where their atoms are now."""
        device, pairs = self.species.device, self.pairs
        positions, cells = _joined([s.positions for s in structures]), np.stack([s.cell for s in structures])
        if not np.array_equal(cells, self.cells):
            cell = torch.from_numpy(cells).to(device)
            lattice = cell.index_select(0, pairs.layout.system_idx)[pairs.edge_index[0]]
            vectors = torch.einsum("ea,eab->eb", pairs.edge_shift.to(cell), lattice)
            pairs = dataclasses.replace(pairs, still=pairs.still | {"cell": cell}, shift_vectors=vectors)
        return pairs.batch(torch.from_numpy(positions).to(device))

    def evaluations(self, prediction: Prediction) -> list[Evaluation]:
        """The results of each system."""
        assert prediction.forces is not None
        atom_energies = prediction.atom_energies.double().cpu().numpy() + self.references
        forces, virials = prediction.forces.double().cpu().numpy(), [None] * len(self.ends)
        if prediction.virial is not None:
            virial = prediction.virial.double().cpu().numpy()
            virials = list(0.5 * (virial + virial.transpose(0, 2, 1)))
        parts = (slice(first, last) for first, last in zip([0, *self.ends], self.ends, strict=False))
        each = zip(prediction.energy.tolist(), parts, virials, strict=True)
        return [Evaluation(e, atom_energies[atoms], forces[atoms], virial) for e, atoms, virial in each]


def _checked(structure: Structure) -> Structure:
    """A copy of a structure, checked as all are."""
    return dataclasses.replace(structure, positions=structure.positions.copy(), cell=structure.cell.copy())


def _joined(arrays: list[ndarray]) -> ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def unlabelled(atoms: Atoms, source: str) -> Structure:
    """The part of some atoms that a model sees, not checked; columns, tags and constraints may be as they like."""
    numbers, positions = atoms.numbers.astype(np.int64), atoms.positions.astype(np.float64)
    cell, pbc = atoms.cell.array.astype(np.float64), atoms.pbc.copy()
    return Structure.unchecked(numbers=numbers, positions=positions, cell=cell, pbc=pbc, source=source, info={})


def stress_of(virial: Float[ndarray, "3 3"], structure: Structure) -> Float[ndarray, "3 3"]:
    """(dE/dε) / volume in eV/Å³, of strains of the periodic directions alone: a slab has components in its plane only.

    Args:
        virial: dE/dε, eV.
        structure: the system; :func:`no_stress` says whether it has a stress.
    """
    stress = virial / abs(np.linalg.det(structure.cell))
    if structure.pbc.all():
        return stress
    lattice = structure.cell[structure.pbc]
    projector = np.linalg.pinv(lattice) @ lattice
    return projector @ stress @ projector


def no_stress(potential: Potential, structure: Structure) -> str:
    """The reason why there is no stress; empty if there is one."""
    if potential.direct_forces is not None:
        return "this model has direct forces, which are not the derivative of an energy"
    if not structure.pbc.any():
        return "no direction is periodic"
    if abs(np.linalg.det(structure.cell)) < MIN_VOLUME:
        return "the cell has no volume; give its vectors along the other directions a length"
    return ""
