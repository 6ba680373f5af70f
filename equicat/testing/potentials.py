"""The checks of a potential. See :mod:`equicat.testing`."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy import ndarray

from equicat.data.batch import Batch
from equicat.data.structure import Structure
from equicat.models.model import Prediction
from equicat.testing.structures import SPACING, example_structures, random_rotation

SYMMETRY = 1e-9
"""Relative deviation allowed where only the order of float64 operations may differ."""
FINITE_DIFFERENCE = 1e-6
"""Relative deviation allowed between forces and central differences of the energy with step ``STEP``."""
ATOMS_AT_A_TIME = 500
"""Atoms of displaced structures in one batch."""
STEP = 2e-5
"""Å."""
SMOOTHNESS = 1e-6
"""Relative jump allowed between cutoff − ``CUTOFF_STEP`` and cutoff + ``CUTOFF_STEP``."""
CUTOFF_STEP = 1e-8
"""Å."""
LOCALITY = 1e-12
"""Relative change allowed in an atomic energy when atoms beyond the cutoff move or vanish."""
ROUNDING = 5e-15
"""Always allowed, relative to the total energy (which may include reference energies of thousands of eV)."""
MIN_FORCE = 1e-12
"""eV/Å, always allowed."""


@runtime_checkable
class PotentialModule(Protocol):
    """Interface of a potential that is checked; every ``torch.nn.Module`` has the last two methods."""

    @property
    def cutoff(self) -> float: ...

    @property
    def elements(self) -> tuple[int, ...]: ...

    def __call__(self, batch: Batch, forces: bool = True) -> Prediction: ...

    def parameters(self) -> Any: ...

    def double(self) -> "PotentialModule": ...


# ---- running a potential -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Result:
    """One system's prediction in NumPy."""

    energy: float
    atom_energies: ndarray
    forces: ndarray

    @property
    def energy_scale(self) -> float:
        return float(np.abs(self.atom_energies).sum())

    @property
    def force_scale(self) -> float:
        return float(np.abs(self.forces).max())


def _double(potential: PotentialModule) -> PotentialModule:
    return copy.deepcopy(potential).double()


def _batch(potential: PotentialModule, structures: Sequence[Structure]) -> Batch:
    bare = [replace(s, energy=None, forces=None, relaxed_energy=None, relaxed_positions=None) for s in structures]
    device = next((p.device for p in potential.parameters()), torch.device("cpu"))
    return Batch.from_structures(bare, float(potential.cutoff), dtype=torch.float64).to(device)


def _predict(potential: PotentialModule, structures: Sequence[Structure]) -> list[_Result]:
    """All structures as one batch."""
    prediction = potential(_batch(potential, structures))
    assert prediction.forces is not None, "the potential returned no forces for forces=True"
    energy, atom_energies, forces = (
        t.detach().cpu().numpy() for t in (prediction.energy, prediction.atom_energies, prediction.forces)
    )
    ends = np.cumsum([len(s) for s in structures])[:-1]
    pieces = zip(energy, np.split(atom_energies, ends), np.split(forces, ends), strict=True)
    return [_Result(float(e), a, f) for e, a, f in pieces]


def _each(potential: PotentialModule, structures: Sequence[Structure]) -> list[_Result]:
    """Every structure on its own."""
    return [_predict(potential, [s])[0] for s in structures]


def _require(check: str, where: str, what: str, found: float, allowed: float, unit: str) -> None:
    if not found <= allowed:  # also when NaN
        raise AssertionError(f"{check}, {where}: {what} is off by {found:.3g} {unit}; allowed {allowed:.3g} {unit}")


def _compare(check: str, where: str, found: _Result, expected: _Result, tolerance: float) -> None:
    """Energy, atomic energies and forces of the same atoms in the same order."""
    energy_scale = tolerance * expected.energy_scale + ROUNDING * abs(expected.energy)
    _require(check, where, "the energy", abs(found.energy - expected.energy), energy_scale, "eV")
    atom_error = float(np.abs(found.atom_energies - expected.atom_energies).max())
    _require(check, where, "an atomic energy", atom_error, energy_scale, "eV")
    force_error = float(np.abs(found.forces - expected.forces).max())
    _require(check, where, "a force", force_error, tolerance * expected.force_scale + MIN_FORCE, "eV/Å")


# ---- symmetries --------------------------------------------------------------------------------------------------


def _check_orthogonal(
    check: str, potential: PotentialModule, structures: Sequence[Structure] | None, matrix: ndarray, tolerance: float
) -> None:
    potential, structures = _double(potential), structures or example_structures(potential.elements)
    turned = [replace(s, positions=s.positions @ matrix.T, cell=s.cell @ matrix.T) for s in structures]
    for s, before, after in zip(structures, _each(potential, structures), _each(potential, turned), strict=True):
        _compare(check, s.where, after, replace(before, forces=before.forces @ matrix.T), tolerance)


def check_rotation(
    potential: PotentialModule, structures: Sequence[Structure] | None = None, tolerance: float = SYMMETRY
) -> None:
    """Energies do not change and forces turn with the system."""
    _check_orthogonal("rotation", potential, structures, random_rotation(), tolerance)


def check_reflection(
    potential: PotentialModule, structures: Sequence[Structure] | None = None, tolerance: float = SYMMETRY
) -> None:
    """Energies do not change, and forces are reflected, under inversion and in a mirror plane."""
    normal = random_rotation(1)[0]
    _check_orthogonal("inversion", potential, structures, -np.eye(3), tolerance)
    _check_orthogonal("mirror", potential, structures, np.eye(3) - 2 * np.outer(normal, normal), tolerance)


def check_translation(
    potential: PotentialModule, structures: Sequence[Structure] | None = None, tolerance: float = SYMMETRY
) -> None:
    """Nothing changes when the system moves, nor when single atoms move by a periodic lattice vector."""
    potential, structures = _double(potential), structures or example_structures(potential.elements)
    rng = np.random.default_rng(0)
    moved = []
    for s in structures:
        images = rng.integers(-1, 2, (len(s), 3)) * s.pbc
        moved.append(replace(s, positions=s.positions + rng.normal(size=3) + images @ s.cell))
    for s, before, after in zip(structures, _each(potential, structures), _each(potential, moved), strict=True):
        _compare("translation", s.where, after, before, tolerance)


def check_permutation(
    potential: PotentialModule, structures: Sequence[Structure] | None = None, tolerance: float = SYMMETRY
) -> None:
    """The order of the atoms does not matter."""
    potential, structures = _double(potential), structures or example_structures(potential.elements)
    rng = np.random.default_rng(0)
    for s, before in zip(structures, _each(potential, structures), strict=True):
        order = np.roll(rng.permutation(len(s)), 1) if len(s) > 2 else np.arange(len(s))[::-1]
        expected = _Result(before.energy, before.atom_energies[order], before.forces[order])
        (after,) = _predict(potential, [_select(s, order)])
        _compare("permutation", s.where, after, expected, tolerance)


def _select(s: Structure, atoms: ndarray) -> Structure:
    """Some atoms of a structure, without labels."""
    assert s.fixed is not None
    assert s.tags is not None
    return Structure(
        s.numbers[atoms], s.positions[atoms], s.cell, s.pbc, s.fixed[atoms], s.tags[atoms], source=s.source
    )


# ---- batches -----------------------------------------------------------------------------------------------------


def check_batch_independence(
    potential: PotentialModule, structures: Sequence[Structure] | None = None, tolerance: float = SYMMETRY
) -> None:
    """A system's prediction does not depend on what else is in the batch."""
    potential, structures = _double(potential), structures or example_structures(potential.elements)
    alone = _each(potential, structures)
    for order in (slice(None), slice(None, None, -1)):
        for s, one, other in zip(structures[order], alone[order], _predict(potential, structures[order]), strict=True):
            _compare("batch independence", s.where, other, one, tolerance)


def check_cross_system_gradient(potential: PotentialModule, structures: Sequence[Structure] | None = None) -> None:
    """dE_A/dr is exactly 0 for the atoms of every other system of the batch."""
    potential, structures = _double(potential), structures or example_structures(potential.elements)
    batch = _batch(potential, structures)
    batch = replace(batch, positions=batch.positions.requires_grad_())
    energy = potential(batch, forces=False).energy
    assert energy.requires_grad, "cross-system gradient: with forces=False, no gradient reaches the positions"
    for k, s in enumerate(structures):
        (gradient,) = torch.autograd.grad(
            energy[k], batch.positions, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        found = gradient[batch.system_idx != k].abs().sum().item()
        _require("cross-system gradient", s.where, "its energy's derivative in other systems", found, 0.0, "eV/Å")


# ---- forces and smoothness ---------------------------------------------------------------------------------------


def check_finite_difference_forces(
    potential: PotentialModule, structures: Sequence[Structure] | None = None, tolerance: float = FINITE_DIFFERENCE
) -> None:
    """F = −dE/dr: every atom's force along a random direction against a central difference of the energy."""
    potential, structures = _double(potential), structures or example_structures(potential.elements)
    rng = np.random.default_rng(0)
    for s, result in zip(structures, _each(potential, structures), strict=True):
        directions = rng.normal(size=(len(s), 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        steps = STEP * directions[:, None] * np.eye(len(s))[:, :, None]  # one atom each
        moved = [replace(s, positions=s.positions + sign * step) for step in steps for sign in (1, -1)]
        together = max(2, ATOMS_AT_A_TIME // len(s))
        results = [r for k in range(0, len(moved), together) for r in _predict(potential, moved[k : k + together])]
        for i, (plus, minus) in enumerate(zip(results[::2], results[1::2], strict=True)):
            error = abs((minus.energy - plus.energy) / (2 * STEP) - result.forces[i] @ directions[i])
            allowed = tolerance * result.force_scale + ROUNDING * abs(result.energy) / STEP + MIN_FORCE
            what = f"the force on atom {i}, against the difference of energies,"
            _require("finite-difference forces", s.where, what, error, allowed, "eV/Å")


def check_net_force_zero(
    potential: PotentialModule, structures: Sequence[Structure] | None = None, tolerance: float = SYMMETRY
) -> None:
    """The forces on all atoms of a system, fixed ones included, add up to zero."""
    potential, structures = _double(potential), structures or example_structures(potential.elements)
    for s, result in zip(structures, _each(potential, structures), strict=True):
        found = float(np.abs(result.forces.sum(axis=0)).max())
        _require("net force", s.where, "the sum of forces", found, tolerance * result.force_scale + MIN_FORCE, "eV/Å")


def check_smooth_cutoff(potential: PotentialModule, tolerance: float = SMOOTHNESS) -> None:
    """Energy and forces do not jump when a pair crosses the cutoff: each pair of elements alone, and in a cluster."""
    potential, cutoff = _double(potential), float(potential.cutoff)
    inside, outside = cutoff - CUTOFF_STEP, cutoff + CUTOFF_STEP

    def pair(a: int, b: int, r: float) -> Structure:
        name = f"{chemical_symbols[a]}-{chemical_symbols[b]} pair"
        return Structure(np.array([a, b]), np.array([[0.0, 0, 0], [r, 0, 0]]), source=name)

    def compare(near: Structure, far: Structure, scale: _Result) -> None:
        below, above = _predict(potential, [near, far])
        energies = tolerance * scale.energy_scale + ROUNDING * abs(below.energy)
        _require("smooth cutoff", near.where, "the energy", abs(below.energy - above.energy), energies, "eV")
        jump = float(np.abs(below.forces - above.forces).max())
        _require("smooth cutoff", near.where, "a force", jump, tolerance * scale.force_scale + MIN_FORCE, "eV/Å")

    chosen = potential.elements[:4]
    for k, a in enumerate(chosen):
        for b in chosen[k:]:
            typical = max(_predict(potential, [pair(a, b, x * cutoff) for x in np.linspace(0.5, 0.95, 10)]), key=_force)
            compare(pair(a, b, inside), pair(a, b, outside), typical)
    cluster = example_structures(potential.elements)[0]
    near, far = (_with_probe(cluster, r) for r in (inside, outside))
    compare(near, far, _predict(potential, [near])[0])


def _force(result: _Result) -> float:
    return result.force_scale


def _with_probe(cluster: Structure, distance: float) -> Structure:
    """``cluster`` and one atom at ``distance`` (Å) from its atom 0, as far from the others as atoms are apart."""
    directions = np.random.default_rng(0).normal(size=(200, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    places = cluster.positions[0] + distance * directions
    nearest = np.linalg.norm(places[:, None] - cluster.positions, axis=-1).min(axis=1)
    place = places[np.abs(nearest - min(SPACING, 0.6 * distance)).argmin()]
    return Structure(
        np.r_[cluster.numbers, cluster.numbers[0]],
        np.concatenate([cluster.positions, place[None]]),
        source=f"{cluster.where} with an atom at the cutoff",
    )


# ---- extensivity and locality ------------------------------------------------------------------------------------


def check_additivity(potential: PotentialModule, tolerance: float = SYMMETRY) -> None:
    """Two clusters ten cutoffs apart: energies add, forces are those of each alone."""
    potential = _double(potential)
    one, two = (example_structures(potential.elements, seed)[0] for seed in (0, 1))
    away = two.positions + 10 * float(potential.cutoff) * random_rotation()[0]
    both = Structure(
        np.r_[one.numbers, two.numbers], np.concatenate([one.positions, away]), source="two distant clusters"
    )
    a, b, found = _each(potential, [one, two, both])
    atom_energies, forces = np.r_[a.atom_energies, b.atom_energies], np.concatenate([a.forces, b.forces])
    _compare("additivity", both.where, found, _Result(a.energy + b.energy, atom_energies, forces), tolerance)


def check_supercell(
    potential: PotentialModule, structures: Sequence[Structure] | None = None, tolerance: float = SYMMETRY
) -> None:
    """Two cells side by side have twice the energy and the same forces, along each periodic vector."""
    potential, structures = _double(potential), structures or example_structures(potential.elements)
    periodic = [s for s in structures if s.pbc.any()]
    for s, single in zip(periodic, _each(potential, periodic), strict=True):
        for axis in np.flatnonzero(s.pbc):
            repeats = np.where(np.arange(3) == axis, 2, 1)
            positions = np.concatenate([s.positions, s.positions + s.cell[axis]])
            assert s.fixed is not None
            cell, fixed = s.cell * repeats[:, None], np.tile(s.fixed, 2)
            double = Structure(np.tile(s.numbers, 2), positions, cell, s.pbc, fixed, source=s.source)
            expected = _Result(2 * single.energy, np.tile(single.atom_energies, 2), np.tile(single.forces, (2, 1)))
            (found,) = _predict(potential, [double])
            _compare(f"supercell along vector {axis}", s.where, found, expected, tolerance)


def check_strict_locality(potential: PotentialModule, tolerance: float = LOCALITY) -> None:
    """The energy of an atom does not change when atoms beyond the cutoff move or vanish.

    Message-passing models do not have this property, and are not wrong for it: each layer reaches one cutoff further.
    """
    potential, cutoff = _double(potential), float(potential.cutoff)
    rng = np.random.default_rng(0)
    chain = np.array([[0.4 * cutoff * k, 0, 0] for k in range(12)]) + rng.uniform(-0.05, 0.05, (12, 3)) * cutoff
    s = Structure(rng.choice(potential.elements, 12), chain, source="chain")
    (before,) = _predict(potential, [s])
    for i in (0, 5):
        offset = s.positions - s.positions[i]
        far = np.linalg.norm(offset, axis=1) > cutoff
        moved = replace(s, positions=s.positions + np.where(far, rng.uniform(0.01, 0.1, 12), 0.0)[:, None] * offset)
        local = _select(s, np.flatnonzero(~far))
        allowed = tolerance * float(np.abs(before.atom_energies).max())
        for what, other, index in (("move", moved, i), ("vanish", local, int((~far)[:i].sum()))):
            error = abs(_predict(potential, [other])[0].atom_energies[index] - before.atom_energies[i])
            where = f"the energy of atom {i} when atoms beyond the cutoff {what}"
            _require("strict locality", s.where, where, error, allowed, "eV")


def check_isolated_atom(potential: PotentialModule) -> None:
    """An atom without neighbours has a finite energy and no force, alone and beside a cluster in the batch."""
    potential = _double(potential)
    cluster = example_structures(potential.elements)[0]
    for z in potential.elements:
        atom = Structure(np.array([z]), np.zeros((1, 3)), source=f"isolated {chemical_symbols[z]}")
        for batch in ([atom], [cluster, atom]):
            result = _predict(potential, batch)[-1]
            assert np.isfinite(result.energy), f"isolated atom, {atom.where}: energy {result.energy} eV is not finite"
            _require("isolated atom", atom.where, "the force", result.force_scale, 0.0, "eV/Å")


# ---- all of them -------------------------------------------------------------------------------------


def check_all(
    potential: PotentialModule, structures: Sequence[Structure] | None = None, strictly_local: bool = True
) -> None:
    """Every check of this module.

    Args:
        potential: see the module's docstring.
        structures: instead of :func:`example_structures`, where a check does not need a structure of its own.
        strictly_local: also run :func:`check_strict_locality`; set False for message-passing models.

    Raises:
        AssertionError: from the first check that fails.
    """
    structures = structures or example_structures(potential.elements)
    check_rotation(potential, structures)
    check_reflection(potential, structures)
    check_translation(potential, structures)
    check_permutation(potential, structures)
    check_batch_independence(potential, structures)
    check_cross_system_gradient(potential, structures)
    check_finite_difference_forces(potential, structures)
    check_net_force_zero(potential, structures)
    check_smooth_cutoff(potential)
    check_additivity(potential)
    check_supercell(potential, structures)
    check_isolated_atom(potential)
    if strictly_local:
        check_strict_locality(potential)
