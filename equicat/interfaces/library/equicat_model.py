"""A model of equicat, in the folder that this file lies in; needs numpy, but neither equicat nor PyTorch.

    import sys
    sys.path.append("mine")  # the folder
    from equicat_model import Model

    found = Model().compute(numbers, positions, cell, pbc)
    found.energy, found.forces

``Model().ase_calculator()`` is a calculator for ASE. C programs use ``equicat_model.h``.
"""

import ctypes
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
LIBRARY = "libequicat_model.so"
MESSAGE = 256
"""Bytes of a message (``EQUICAT_MESSAGE`` in ``equicat_model.h``)."""


class Failed(ValueError):
    """A system or a folder that the model cannot use."""


class Results(NamedTuple):
    """Energies in eV, forces in eV/Å."""

    energy: float
    forces: np.ndarray
    """[n_atoms, 3]."""
    atom_energies: np.ndarray
    """[n_atoms]."""
    virial: np.ndarray
    """[3, 3] dE/dε in eV, symmetric; over the volume it is the stress as ASE has it."""


class _System(ctypes.Structure):
    _fields_ = [("n_atoms", ctypes.c_int64)] + [
        (name, ctypes.c_void_p) for name in ("numbers", "positions", "cell", "periodic")
    ]


class _Results(ctypes.Structure):
    _fields_ = [
        ("energy", ctypes.c_double),
        ("virial", ctypes.c_double * 9),
        ("atom_energies", ctypes.c_void_p),
        ("forces", ctypes.c_void_p),
    ]


class Model:
    """The model of a folder.

    Args:
        folder: where it lies; that of this file by default.
        processor: kernel to take, one of ``about["processors"]``; by default the fastest that this processor can run.
        n_threads: cores to use; all that this process may use by default.

    Raises:
        Failed: if the folder is not complete, or this processor cannot run the kernel.
    """

    def __init__(self, folder: str | Path = HERE, processor: str | None = None, n_threads: int | None = None):
        self.handle = None
        self.n_threads = n_threads or 0
        try:
            self.about: dict[str, Any] = json.loads((Path(folder) / "about.json").read_text(encoding="utf-8"))
            self.library = ctypes.CDLL(str(Path(folder).resolve() / LIBRARY))
        except OSError as error:
            raise Failed(f"{folder}: {error}") from error
        self.library.equicat_open.restype = ctypes.c_void_p
        self.library.equicat_processor.restype = ctypes.c_char_p
        message = ctypes.create_string_buffer(MESSAGE)
        name = None if processor is None else processor.encode()
        handle = self.library.equicat_open(os.fsencode(Path(folder).resolve()), name, message)
        if handle is None:
            raise Failed(message.value.decode(errors="replace"))
        self.handle = ctypes.c_void_p(handle)
        self.processor = self.library.equicat_processor(self.handle).decode()

    def __del__(self) -> None:
        if self.handle is not None:
            self.library.equicat_close(self.handle)

    def compute(self, numbers: Any, positions: Any, cell: Any = None, pbc: Any = False) -> Results:
        """Energy and forces of a system.

        Args:
            numbers: [n_atoms] atomic numbers.
            positions: [n_atoms, 3] Å.
            cell: [3, 3] Å, rows are the lattice vectors; None without any.
            pbc: whether the system repeats along each lattice vector, or along all of them.

        Raises:
            Failed: for a wrong shape, an element that the model does not know, or atoms at the same place.
        """
        numbers = np.ascontiguousarray(numbers, np.int32)
        positions = np.ascontiguousarray(positions, np.float64)
        periodic = np.array(np.broadcast_to(pbc, 3), np.int32)
        lattice = np.zeros((3, 3)) if cell is None else np.ascontiguousarray(cell, np.float64)
        n = len(numbers)
        if numbers.shape != (n,) or positions.shape != (n, 3) or lattice.shape != (3, 3):
            shapes = f"{numbers.shape}, {positions.shape} and {lattice.shape}"
            raise Failed(f"numbers, positions and cell have the shapes {shapes}; they must be (n,), (n, 3) and (3, 3)")
        atom_energies, forces = np.zeros(n), np.zeros((n, 3))
        system = _System(n, numbers.ctypes.data, positions.ctypes.data, lattice.ctypes.data, periodic.ctypes.data)
        out = _Results(atom_energies=atom_energies.ctypes.data, forces=forces.ctypes.data)
        message = ctypes.create_string_buffer(MESSAGE)
        compute, by = self.library.equicat_compute, ctypes.byref
        if compute(self.handle, self.n_threads, by(system), by(out), message):
            raise Failed(message.value.decode(errors="replace"))
        return Results(out.energy, forces, atom_energies, np.array(out.virial).reshape(3, 3))

    def ase_calculator(self) -> Any:
        """A calculator for ASE, which must be installed: energy, energies of atoms, forces and stress."""
        from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

        model = self

        class ModelCalculator(Calculator):
            implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

            def calculate(
                self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes
            ) -> None:
                super().calculate(atoms, properties, system_changes)
                here: Any = self.atoms
                found = model.compute(here.numbers, here.positions, here.cell.array, here.pbc)
                self.results = {
                    "energy": found.energy,
                    "free_energy": found.energy,
                    "energies": found.atom_energies,
                    "forces": found.forces,
                }
                if here.pbc.all():
                    stress = found.virial / here.get_volume()
                    self.results["stress"] = stress.flat[[0, 4, 8, 5, 2, 1]]
                elif "stress" in properties:
                    raise PropertyNotImplementedError("no stress: not all directions are periodic")

        return ModelCalculator()
