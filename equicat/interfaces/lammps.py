"""A trained model as the forces of a LAMMPS simulation, on one MPI rank or many, without a LAMMPS of one's own.

LAMMPS calls back at every step (``fix external pf/callback``). Each rank takes the pairs of its own atoms from LAMMPS's
neighbour list, a full one that ``pair_style zero`` asks for, and computes the energies of these atoms. A strictly local
energy E_i depends on pairs of i alone, so the ranks together compute every E_i once. Its force on a neighbour that
another rank owns is sent there (:class:`~equicat.interfaces.lammps_ranks.Halo`), because LAMMPS has summed up the
forces on ghosts by the time of the call.

Units are LAMMPS's ``metal``, which are ours: eV, Å, and virials in eV.
"""

import dataclasses
import sys
from collections.abc import Sequence
from ctypes import POINTER, byref, c_int, sizeof, string_at
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase.data import atomic_masses, atomic_numbers
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from equicat.data.batch import PairBatch
from equicat.errors import InputError
from equicat.interfaces.lammps_grades import GradeOptions, LammpsGrades
from equicat.interfaces.lammps_ranks import Halo, abort, share_cores
from equicat.models.domain import Action, DomainWatch
from equicat.models.potential import Potential
from equicat.networks.catalogue import architecture

FIX = "equicat"
"""Name of the fix by which LAMMPS gets energies, forces and virial."""
NEIGHBOR_MASK = 0x1FFFFFFF
"""Bits of an entry of LAMMPS's neighbour lists that are the index of an atom."""
MASS_TOLERANCE = 0.1
"""Share by which a mass may differ from its element's before another element is suspected."""


class LammpsForces:
    """Energies, forces and virial of a model in a LAMMPS instance that has its box and atoms.

    It sets ``pair_style zero`` and a ``fix external`` named ``equicat``. LAMMPS applies fixes in their order, so those
    that change forces (``setforce`` and its like) come later. An error while the model computes is printed and stops
    all ranks: several by ``MPI_Abort``, one by ending its run; then :meth:`command` and :meth:`check` raise the error.

    Args:
        lmp: an instance of ``lammps.lammps``, made after ``from mpi4py import MPI``.
        potential: as :func:`equicat.load` gives it.
        elements: the element of each atom type; by default the element of the model that has the type's mass.
        outside_training: what to do about pairs of elements and distances that were not in training, and about grades
            that are too high.
        grades: write the extrapolation grade of each atom into its property ``d_grade``, and the largest into
            ``f_equicat[1]``; None leaves them out.

    Raises:
        InputError: for a model that LAMMPS cannot use, or without a grade if that was asked for, other units than
            metal, no box yet, or elements that do not fit.
    """

    def __init__(
        self,
        lmp: Any,
        potential: Potential,
        elements: Sequence[str] | None = None,
        outside_training: Action = "warn",
        grades: GradeOptions | None = None,
    ):
        self.lmp, self.comm = lmp, lmp.get_mpi_comm()
        if self.comm is None:
            raise InputError("mpi4py is not installed; run `pip install 'equicat[lammps]'`")
        _check_potential(potential)
        if (units := lmp.extract_global("units")) != "metal":
            raise InputError(f"the script has units {units}; equicat works in `units metal` (eV, Å)")
        if not lmp.extract_setting("box_exist"):
            raise InputError("there is no simulation box yet; `pair_coeff` of equicat comes after it is made")
        self.potential = potential
        self.elements = self._checked(elements or self._by_mass())
        numbers = [0, *(atomic_numbers[symbol] for symbol in self.elements)]
        self.number_of_type = torch.tensor(numbers)
        domain = potential.info.domain  # of which pairs can be looked at; adsorbates and sizes are those of whole slabs
        self.watch = DomainWatch(
            domain and dataclasses.replace(domain, adsorbates={}), "total", outside_training, False
        )
        self.failure: BaseException | None = None
        """The error that stopped LAMMPS on one rank; nothing is computed any more."""
        self.pairs: _Pairs | None = None
        self.halo: Halo | None = None
        share_cores(self.comm)
        lmp.command(f"pair_style zero {potential.cutoff!r} full")
        lmp.command("pair_coeff * *")
        lmp.command(f"fix {FIX} all external pf/callback 1 1")
        lmp.command(f"fix_modify {FIX} energy yes virial yes")
        self.grades = None if grades is None else LammpsGrades(lmp, FIX, potential, grades, self.watch)
        lmp.set_fix_external_callback(FIX, self._called)

    def __str__(self) -> str:
        types = ", ".join(f"{k} {symbol}" for k, symbol in enumerate(self.elements, 1))
        info = self.potential.info
        return f"equicat: atom types {types}; {info.energy_reference} energies, cutoff {self.potential.cutoff:g} A"

    def command(self, text: str) -> None:
        """A command of LAMMPS that raises what the model raised meanwhile; ``lmp.command`` would end without a word."""
        try:
            self.lmp.command(text)
        finally:
            self.check()

    def check(self) -> None:
        """Raise the error that ended a run on one rank, if there was one."""
        if self.failure is not None:
            raise self.failure

    # ---- which element is which ------------------------------------------------------------------------------------

    def _checked(self, elements: Sequence[str]) -> tuple[str, ...]:
        known, n_types = self.potential.info.element_symbols, self.lmp.extract_setting("ntypes")
        if len(elements) != n_types:
            raise InputError(
                f"the script has {n_types} atom types, and {len(elements)} elements are named "
                f"({' '.join(elements)}); name one for each type: pair_coeff * * Cu O"
            )
        for k, symbol in enumerate(elements, 1):
            if symbol not in known:
                raise InputError(f"atom type {k} is {symbol}, but this model knows {', '.join(known)}")
        return tuple(elements)

    def _by_mass(self) -> list[str]:
        masses, known = self._masses(), self.potential.info.element_symbols
        found = []
        for k, mass in enumerate(masses, 1):
            close = [s for s in known if abs(mass / _mass(s) - 1) < MASS_TOLERANCE / 10]
            if len(close) != 1:
                raise InputError(
                    f"atom type {k} has mass {mass:g}, which does not tell which of {', '.join(known)} it is; name the "
                    "elements of all types: pair_coeff * * Cu O"
                )
            found += close
        return found

    def _masses(self) -> Float[ndarray, "n_types"]:
        masses = self.lmp.numpy.extract_atom("mass")
        return np.zeros(self.lmp.extract_setting("ntypes")) if masses is None else np.array(masses).ravel()[1:]

    def _check_run(self) -> None:
        """Make sure, when a run starts, that nothing in LAMMPS contradicts what the model computes.

        Raises:
            InputError: for masses of other elements, or lists that leave pairs out.
        """
        known = self.potential.info.element_symbols
        for k, (symbol, mass) in enumerate(zip(self.elements, self._masses(), strict=True), 1):
            nearest = min(known, key=lambda s: abs(_mass(s) - mass))
            if mass > 0 and nearest != symbol and abs(mass / _mass(symbol) - 1) > MASS_TOLERANCE:
                raise InputError(
                    f"atom type {k} is {symbol} ({_mass(symbol):.2f} u), but has mass {mass:g}, which is {nearest}'s; "
                    "correct `mass`, or the order of elements in `pair_coeff * *`"
                )
        if self.lmp.extract_global("nbonds") and list(self.lmp.extract_global("special_lj")[1:]) != [1.0] * 3:
            raise InputError("bonded pairs are left out of the neighbour list; say `special_bonds lj/coul 1 1 1`")

    # ---- what LAMMPS calls -----------------------------------------------------------------------------------------

    def _called(self, caller: Any, step: int, n_local: int, tags: ndarray, x: ndarray, forces: ndarray | None) -> None:
        """Write forces (eV/Å) of local atoms, and give LAMMPS energy and virial; no exception leaves it."""
        try:
            if self.failure is None:
                self._compute(step, n_local, forces)
        except BaseException as error:  # LAMMPS would print it and go on with the forces of the step before
            self._stop(step, error)

    def _stop(self, step: int, error: BaseException) -> None:
        if self.comm.size > 1:
            abort(self.comm, f"step {step}", error)
        self.failure = error
        print(
            f"equicat: step {step}: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr, flush=True
        )
        self.lmp.force_timeout()  # no further step, and no further run

    def _compute(self, step: int, n_local: int, out: ndarray | None) -> None:
        n_all = n_local + self.lmp.extract_setting("nghost")
        renewed = self.pairs is None or self.lmp.extract_setting("neigh_ago") <= 0
        if renewed:
            self._renew(n_local, n_all)
        assert self.pairs is not None
        assert self.halo is not None
        batch = self.pairs.batch(torch.from_numpy(_per_atom(self.lmp, "x", n_all)), self.potential)
        if renewed:
            self._look(batch)
        with torch.no_grad():
            prediction = self.potential(batch, virial=True)
        assert prediction.forces is not None
        assert prediction.virial is not None
        forces = self.halo.collect(prediction.forces.double().cpu().numpy())
        if not np.isfinite(forces).all():
            raise InputError("the model gives forces that are not finite; atoms may be too close to each other")
        references = self.potential.reference_energies[self.potential.species(batch)].cpu()
        energies = (prediction.atom_energies.double().cpu() + references)[:n_local].numpy()
        virial = -prediction.virial[0].double().cpu().numpy()
        sums = np.array([energies.sum(), *(0.5 * (virial + virial.T))[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]])
        total = np.empty_like(sums)
        self.comm.Allreduce(sums, total)
        if out is not None:
            out[:] = forces
        self.lmp.fix_external_set_energy_global(FIX, total[0])
        self.lmp.fix_external_set_virial_global(FIX, total[1:].tolist())
        if n_local:
            self.lmp.numpy.fix_external_set_energy_peratom(FIX, energies)
        if self.grades is not None:
            self.grades(step, batch, n_local, _per_atom(self.lmp, "id", n_local))

    def _renew(self, n_local: int, n_all: int) -> None:
        """Take over LAMMPS's new neighbour list, and find out who owns the ghosts."""
        if self.pairs is None:
            self._check_run()
        types = torch.from_numpy(_per_atom(self.lmp, "type", n_all).astype(np.int64))
        device = self.potential.scale.device
        self.pairs = _Pairs(read_pairs(self.lmp, n_local).to(device), self.number_of_type[types].to(device))
        self.halo = Halo.of(self.comm, _per_atom(self.lmp, "id", n_all), n_local)

    def _look(self, batch: PairBatch) -> None:
        """Warn, once for all ranks, of pairs unlike those in training."""
        self.watch.look(batch)
        for findings in self.comm.gather(self.watch.findings) or ():
            for subject, finding in findings.items():
                self.watch.findings.setdefault(subject, finding)
        if self.comm.rank == 0:
            self.watch.say()


@dataclass(frozen=True, eq=False)
class _Pairs:
    """LAMMPS's list of pairs, and the elements of local atoms and ghosts."""

    edge_index: Int[Tensor, "2 n_listed"]
    """Local atom and its neighbour, local or ghost, within the cutoff and LAMMPS's skin."""
    numbers: Int[Tensor, "n_atoms"]

    def batch(self, positions: Float[Tensor, "n_atoms 3"], potential: Potential) -> PairBatch:
        """The atoms where they are now, as one system whose ghosts have no pairs of their own.

        The model sees the pairs within its cutoff, as it does everywhere.
        """
        positions = positions.to(self.numbers.device)
        center, neighbor = self.edge_index
        vectors = positions.index_select(0, neighbor).sub_(positions.index_select(0, center))
        near = (torch.linalg.vector_norm(vectors, dim=1) < potential.cutoff).nonzero()[:, 0]
        none = torch.zeros_like(self.numbers)
        return PairBatch(
            positions=positions,
            cell=positions.new_zeros(1, 3, 3),
            pbc=none.new_zeros(1, 3, dtype=torch.bool),
            numbers=self.numbers,
            system_idx=none,
            edge_index=self.edge_index.index_select(1, near),
            edge_shift=none.new_zeros(1, 3).expand(len(near), 3),
            fixed=none.bool(),
            tags=none,
            sources=("LAMMPS",),
            dtype=potential.dtype,
            vectors=vectors.index_select(0, near),
        )


def read_pairs(lmp: Any, n_local: int) -> Int[Tensor, "2 n_listed"]:
    """The pairs of ``pair_style zero``'s full list: each local atom with every atom within cutoff and skin.

    Args:
        lmp: the LAMMPS instance.
        n_local: number of atoms that this rank owns.

    Raises:
        InputError: if there is no such list, because the pair style was changed.
    """
    index = lmp.find_pair_neighlist("zero")
    if index < 0:
        raise InputError("the pair style of equicat was replaced by another one; leave it until the end")
    center, count, first = c_int(), c_int(), POINTER(c_int)()
    out = byref(center), byref(count), byref(first)
    read, handle = lmp.lib.lammps_neighlist_element_neighbors, lmp.lmp
    centers, counts, neighbors = np.empty(n_local, np.int64), np.empty(n_local, np.int64), []
    for k in range(n_local):
        read(handle, index, k, *out)
        centers[k], counts[k] = center.value, count.value
        neighbors.append(string_at(first, count.value * sizeof(c_int)))
    joined = np.frombuffer(b"".join(neighbors), np.intc) & NEIGHBOR_MASK
    assert (np.diff(centers) > 0).all(), "LAMMPS's list is not in the order of atoms"
    return torch.from_numpy(np.stack([np.repeat(centers, counts), joined.astype(np.int64)]))


def _check_potential(potential: Potential) -> None:
    if potential.long_range is not None:
        raise InputError(
            "this model has latent charges (long_range), which ends strict locality, so its atoms cannot be shared "
            "between ranks"
        )
    if not architecture(potential.config.name).strictly_local:
        raise InputError(f"{potential.config.name} is not strictly local, so its atoms cannot be shared between ranks")
    if potential.direct_forces is not None:
        raise InputError("this model has direct forces, which have no virial; LAMMPS needs forces from an energy")


def _mass(symbol: str) -> float:
    """u."""
    return float(atomic_masses[atomic_numbers[symbol]])


def _per_atom(lmp: Any, name: str, n: int) -> ndarray:
    """A copy of a property of local atoms and ghosts."""
    found = lmp.numpy.extract_atom(name, nelem=n) if n else None
    if name == "x":
        return np.empty((0, 3)) if found is None else np.array(found)
    return np.zeros(n, np.int64) if found is None else np.array(found, np.int64).ravel()
