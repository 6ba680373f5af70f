"""One atomic system as NumPy arrays: what files hold, before anything becomes a tensor."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from equicat.data.constraints import as_constraints, held_atoms, other_constraints
from equicat.data.images import minimum_image
from equicat.data.labels import (
    LABELS,
    LabelKeys,
    further_columns,
    labels_of_atoms,
    numbers_of_atoms,
    scalar_info,
    single,
    whole_number,
)
from equicat.errors import InputError

MIN_VOLUME = 1e-3
"""Å³ (Å² or Å for two or one periodic directions); a periodic cell smaller than this is a mistake in the file."""

MAX_LENGTH = 1e8
"""Å. Beyond that a double does not resolve a hundred-millionth of an Å, and no structure is a centimetre long."""

OF_ATOMS = ("positions", "forces", "relaxed_positions", "initial_positions")
LENGTHS = ("positions", "cell", "relaxed_positions", "initial_positions")


@dataclass(frozen=True, eq=False)
class Structure:
    """One system with whatever labels its source had. Units: Å, eV, eV/Å; see docs/conventions.md.

    Checked once, here: shapes, finite values, atomic numbers 1 to 118, a cell that spans its periodic directions.

    Raises:
        InputError: naming ``source`` and the field, if a check fails.
    """

    numbers: Int[ndarray, "n_atoms"]
    positions: Float[ndarray, "n_atoms 3"]
    cell: Float[ndarray, "3 3"] = field(default_factory=lambda: np.zeros((3, 3)))
    """Rows are the lattice vectors (ASE)."""
    pbc: Bool[ndarray, "3"] = field(default_factory=lambda: np.zeros(3, bool))
    fixed: Bool[ndarray, "n_atoms"] | None = None
    """True for atoms that a relaxation does not move. None in the constructor means no atom is fixed."""
    tags: Int[ndarray, "n_atoms"] | None = None
    """OC20: 0 subsurface, 1 surface, 2 adsorbate. None in the constructor means all zero."""
    energy: float | None = None
    forces: Float[ndarray, "n_atoms 3"] | None = None
    """−dE/dr of every atom, fixed atoms included."""
    relaxed_energy: float | None = None
    relaxed_positions: Float[ndarray, "n_atoms 3"] | None = None
    sid: str = ""
    """System id; frames of one relaxation share it."""
    fid: int | None = None
    """Frame number within the relaxation."""
    source: str = ""
    """Where it came from, for messages: ``file, frame 3``."""
    info: dict[str, Any] = field(default_factory=dict)
    """Further scalar keys of the source."""
    free_directions: Float[ndarray, "n_atoms 3 3"] | None = None
    """Projectors onto the directions in which each atom may move, where a constraint holds some atoms along one or two
    directions only; such atoms are not ``fixed``. None if there are none. Stores do not keep it, extended XYZ keeps
    directions along the axes."""
    other_constraints: tuple[str, ...] = ()
    """Names of ASE constraints that neither ``fixed`` nor ``free_directions`` express; a relaxation refuses them."""
    stress: Float[ndarray, "3 3"] | None = None
    """(dE/dε) / volume in eV/Å³, symmetric: positive where the cell wants to shrink (ASE)."""
    initial_positions: Float[ndarray, "n_atoms 3"] | None = None
    """Where a relaxation began, if ``positions`` is where it ended."""
    grades: Float[ndarray, "n_atoms"] | None = None
    """Extrapolation grade of each atom, where a model predicted (:mod:`equicat.models.uncertainty`); files have it as
    the column ``grade``, which is not read again."""
    columns: tuple[str, ...] = ()
    """Names of further columns of atoms in the source, whose values are not read."""
    energy_weight: float = 1.0
    """Factor on the loss of the energy in training; with 0 the energy counts nowhere."""
    forces_weight: float = 1.0
    """Factor on the loss of the forces in training; with 0 the forces count nowhere."""

    def __post_init__(self) -> None:
        n = len(self.numbers)
        if n == 0:
            raise InputError(f"{self.where}: no atoms")
        defaults = {"fixed": np.zeros(n, bool), "tags": np.zeros(n, np.int64)}
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        shapes = {"positions": (n, 3), "cell": (3, 3), "pbc": (3,), "fixed": (n,), "tags": (n,), "stress": (3, 3)}
        shapes |= dict.fromkeys(OF_ATOMS, (n, 3)) | {"free_directions": (n, 3, 3)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise InputError(f"{self.where}: {name} has shape {value.shape}, expected {shape}")
        for name in ("positions", "cell", *LABELS, "initial_positions"):
            self._check_size(name)
        if self.numbers.min() < 1 or self.numbers.max() >= len(chemical_symbols):
            raise InputError(
                f"{self.where}: atomic numbers must be 1 to 118, found {sorted(set(self.numbers.tolist()))}"
            )
        self._check_cell()

    def _check_size(self, name: str) -> None:
        """Refuse NaN, infinity and lengths that no structure has; names the first atom concerned."""
        value = getattr(self, name)
        if value is None:
            return
        good = np.asarray(np.abs(value) < (MAX_LENGTH if name in LENGTHS else np.inf))
        if good.all():
            return
        atom = f" at atom {np.flatnonzero(~good.all(axis=1))[0]}" if name in OF_ATOMS else ""
        finite = np.isfinite(value).all()
        what = f"{np.abs(value).max():.1e} Å, too far to compute with" if finite else "not finite (NaN or infinity)"
        raise InputError(f"{self.where}: {name} is {what}{atom}; drop or repair this frame")

    def _check_cell(self) -> None:
        periodic = self.cell[self.pbc]
        # The triangular factor has the volume on its diagonal; a determinant would lose it in large differences.
        volume = abs(np.prod(np.diag(np.linalg.qr(periodic.T, mode="r"))))
        if volume < MIN_VOLUME:
            raise InputError(
                f"{self.where}: periodic along {self.pbc.tolist()} but the lattice vectors {periodic.tolist()} span no "
                "volume; give a cell or set pbc to False"
            )

    @classmethod
    def unchecked(cls, **fields: Any) -> "Structure":
        """A structure of fields that are not checked again: those of a store were checked when it was written."""
        structure = object.__new__(cls)
        structure.__dict__.update(_UNLABELLED, **fields)
        return structure

    @property
    def where(self) -> str:
        """How messages name this structure."""
        return self.source or (f"structure {self.sid}" if self.sid else "structure")

    @property
    def displacements(self) -> Float[ndarray, "n_atoms 3"]:
        """r_relaxed − r_initial by the minimum image, Å: files may wrap either structure into the cell.

        Raises:
            InputError: if there are no relaxed positions.
        """
        if self.relaxed_positions is None:
            raise InputError(f"{self.where}: no relaxed positions")
        return minimum_image(self.relaxed_positions - self.positions, self.cell, self.pbc)

    @property
    def id(self) -> str:
        """``sid``, or ``sid_fid`` when the structure is a frame of a trajectory (the OC20 leaderboard's form)."""
        return self.sid if self.fid is None else f"{self.sid}_{self.fid}"

    def without_labels(self) -> "Structure":
        """This structure without energies, forces, stress, grades, and other places of its relaxation."""
        nothing: dict[str, Any] = dict.fromkeys((*LABELS, "initial_positions", "grades"))
        return replace(self, **nothing)

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def from_ase(
        cls,
        atoms: Atoms,
        energy_key: str | None = None,
        source: str = "",
        *,
        forces_key: str | None = None,
        labels: Collection[str] = LABELS,
    ) -> "Structure":
        """Everything an ASE ``Atoms`` carries; where each label is looked for says :mod:`equicat.data.labels`.

        Forces of fixed atoms are taken as they were written (ASE itself zeroes them).

        Args:
            atoms: may carry ``FixAtoms``, tags, a calculator with results and ``info`` entries.
            energy_key: take the energy (eV) from this ``info`` key instead of from the calculator.
            source: file and frame for messages.
            forces_key: take the forces (eV/Å) from this column of atoms.
            labels: those that are wanted; the others are not looked at, whatever they hold.

        Raises:
            InputError: if a key is absent (the keys found are listed), a wanted label or an id is of the wrong kind, or
                the structure is invalid.
        """
        where = source or "structure"
        info = scalar_info(atoms)
        fixed, free_directions = held_atoms(atoms, where)
        for name in ("sid", "fid", "relaxed_energy"):
            info.pop(name, None)
        return cls(
            numbers=atoms.numbers.astype(np.int64),
            positions=atoms.positions.astype(np.float64),
            cell=np.asarray(atoms.cell, dtype=np.float64),
            pbc=np.asarray(atoms.pbc, dtype=bool),
            fixed=fixed,
            free_directions=free_directions,
            other_constraints=other_constraints(atoms),
            tags=_tags(atoms, where),
            sid=_sid(atoms, where),
            fid=_fid(atoms, where),
            source=source,
            info=info,
            initial_positions=_initial_positions(atoms),
            columns=further_columns(atoms),
            **labels_of_atoms(atoms, LabelKeys(energy_key, forces_key, tuple(labels)), where),
        )

    def to_ase(self) -> Atoms:
        """ASE ``Atoms`` with constraint, tags, labels (as a single-point calculator) and ids."""
        atoms = Atoms(self.numbers, self.positions, cell=self.cell, pbc=self.pbc, tags=self.tags)
        assert self.fixed is not None
        atoms.set_constraint(as_constraints(self.fixed, self.free_directions))
        atoms.info.update(self.info)
        if self.sid:
            atoms.info["sid"] = self.sid
        if self.fid is not None:
            atoms.info["fid"] = self.fid
        if self.relaxed_energy is not None:
            atoms.info["relaxed_energy"] = self.relaxed_energy
        for name in ("relaxed_positions", "initial_positions"):
            if getattr(self, name) is not None:
                atoms.arrays[name] = getattr(self, name).copy()
        if self.grades is not None:
            atoms.arrays["grade"] = self.grades.copy()
        if self.energy is not None or self.forces is not None or self.stress is not None:
            stress = None if self.stress is None else full_3x3_to_voigt_6_stress(self.stress)
            atoms.calc = SinglePointCalculator(atoms, energy=self.energy, forces=self.forces, stress=stress)
        return atoms


_UNLABELLED = dict.fromkeys((*LABELS, "fid", "free_directions", "initial_positions")) | {"sid": "", "columns": ()}


def _tags(atoms: Atoms, where: str) -> Int[ndarray, "n_atoms"]:
    tags = numbers_of_atoms(atoms.get_tags(), "tags", where)
    assert tags is not None
    if not np.array_equal(tags, np.rint(tags)):
        raise InputError(f"{where}: tags holds {tags.tolist()[:4]} ..., expected whole numbers; rename that column")
    return tags.astype(np.int64)


def _sid(atoms: Atoms, where: str) -> str:
    sid = single(atoms.info.get("sid", ""))
    if not isinstance(sid, str | int | float):
        raise InputError(f"{where}: sid is {sid!r}, expected one text or number: it says which system a frame is of")
    return str(sid)


def _fid(atoms: Atoms, where: str) -> int | None:
    """The number under ``fid``, or under ``frame`` if that is a whole number; any other ``frame`` is the user's."""
    if atoms.info.get("fid") is None:
        return whole_number(atoms.info.get("frame"))
    fid = whole_number(atoms.info["fid"])
    if fid is None:
        raise InputError(
            f"{where}: fid is {atoms.info['fid']!r}, expected a whole number: it is the number of a frame within its "
            "relaxation; rename the key if you mean something else"
        )
    return fid


def _initial_positions(atoms: Atoms) -> Float[ndarray, "n_atoms 3"] | None:
    """The column of that name where it holds positions; nothing depends on it, so anything else is left."""
    column = atoms.arrays.get("initial_positions")
    is_positions = column is not None and column.shape == (len(atoms), 3) and column.dtype.kind in "iuf"
    if column is None or not is_positions or not (np.abs(column) <= MAX_LENGTH).all():
        return None
    return column.astype(np.float64)
