"""One atomic system as NumPy arrays: what files hold, before anything becomes a tensor."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from equicat.data.constraints import as_constraints, held_atoms, other_constraints
from equicat.data.images import minimum_image
from equicat.errors import InputError

MIN_VOLUME = 1e-3
"""Å³ (Å² or Å for two or one periodic directions); a periodic cell smaller than this is a mistake in the file."""


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

    def __post_init__(self) -> None:
        n = len(self.numbers)
        if n == 0:
            raise InputError(f"{self.where}: no atoms")
        defaults = {"fixed": np.zeros(n, bool), "tags": np.zeros(n, np.int64)}
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        shapes = {"positions": (n, 3), "cell": (3, 3), "pbc": (3,), "fixed": (n,), "tags": (n,)}
        shapes |= {"forces": (n, 3), "relaxed_positions": (n, 3), "free_directions": (n, 3, 3)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise InputError(f"{self.where}: {name} has shape {value.shape}, expected {shape}")
        for name in ("positions", "cell", "forces", "relaxed_positions", "energy", "relaxed_energy"):
            value = getattr(self, name)
            if value is not None and not np.all(np.isfinite(value)):
                raise InputError(f"{self.where}: {name} is not finite (NaN or infinity); drop or repair this frame")
        if self.numbers.min() < 1 or self.numbers.max() >= len(chemical_symbols):
            raise InputError(
                f"{self.where}: atomic numbers must be 1 to 118, found {sorted(set(self.numbers.tolist()))}"
            )
        self._check_cell()

    def _check_cell(self) -> None:
        periodic = self.cell[self.pbc]
        volume = np.sqrt(max(np.linalg.det(periodic @ periodic.T), 0.0)) if len(periodic) else 1.0
        if volume < MIN_VOLUME:
            raise InputError(
                f"{self.where}: periodic along {self.pbc.tolist()} but the lattice vectors {periodic.tolist()} span no "
                "volume; give a cell or set pbc to False"
            )

    @classmethod
    def unchecked(cls, **fields: Any) -> "Structure":
        """From fields that were checked before, as those of a store were when it was written; none is checked again."""
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

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def from_ase(cls, atoms: Atoms, energy_key: str | None = None, source: str = "") -> "Structure":
        """Everything an ASE ``Atoms`` carries.

        Labels come from its calculator, with the forces of fixed atoms as they were written (ASE itself zeroes them).

        Args:
            atoms: may carry ``FixAtoms``, tags, a calculator with results and ``info`` entries.
            energy_key: take the energy (eV) from this ``info`` key instead of from the calculator.
            source: file and frame for messages.

        Raises:
            InputError: if ``energy_key`` is absent (the keys found are listed), or if the structure is invalid.
        """
        results = {} if atoms.calc is None else atoms.calc.results
        info = {k: v for k, v in atoms.info.items() if isinstance(v, str | bool | int | float | np.generic)}
        forces = results.get("forces", atoms.arrays.get("forces"))
        if energy_key is None:
            energy = results.get("energy")
        elif energy_key in info:
            energy = info[energy_key]
        elif energy_key in results:
            energy = results[energy_key]
        else:
            raise InputError(
                f"{source or 'structure'}: no energy key {energy_key!r}; found {sorted({*info, *results})}"
            )
        fixed, free_directions = held_atoms(atoms, source or "structure")
        relaxed = atoms.arrays.get("relaxed_positions")
        relaxed_energy = info.pop("relaxed_energy", None)
        sid = info.pop("sid", "")
        fid = info.pop("fid", info.get("frame"))
        return cls(
            numbers=atoms.numbers.astype(np.int64),
            positions=atoms.positions.astype(np.float64),
            cell=np.asarray(atoms.cell, dtype=np.float64),
            pbc=np.asarray(atoms.pbc, dtype=bool),
            fixed=fixed,
            free_directions=free_directions,
            other_constraints=other_constraints(atoms),
            tags=atoms.get_tags().astype(np.int64),
            energy=_number(float, energy, energy_key or "energy", source),
            forces=None if forces is None else np.asarray(forces, dtype=np.float64),
            relaxed_energy=_number(float, relaxed_energy, "relaxed_energy", source),
            relaxed_positions=None if relaxed is None else np.asarray(relaxed, dtype=np.float64),
            sid=str(sid),
            fid=_number(int, fid, "fid", source),
            source=source,
            info=info,
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
        if self.relaxed_positions is not None:
            atoms.arrays["relaxed_positions"] = self.relaxed_positions.copy()
        if self.energy is not None or self.forces is not None:
            atoms.calc = SinglePointCalculator(atoms, energy=self.energy, forces=self.forces)
        return atoms


_UNLABELLED = dict.fromkeys(("energy", "forces", "relaxed_energy", "relaxed_positions", "fid", "free_directions"))
_UNLABELLED |= {"sid": ""}


def _number(kind: type, value: Any, name: str, source: str) -> Any:
    """``value`` as ``kind``, None staying None; the message of a key that holds something else names it."""
    try:
        return None if value is None else kind(value)
    except ValueError as error:
        raise InputError(f"{source or 'structure'}: {name} is {value!r}, expected a number") from error
