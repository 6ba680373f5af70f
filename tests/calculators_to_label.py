"""ASE calculators that misbehave in known ways, as factories for `equicat label`."""

import os
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT

CALLS = "EQUICAT_TEST_CALLS"
"""Environment variable with the file to which each calculation appends a line."""


class Moody(Calculator):
    """EMT that fails on structures with one atom, in the way that their ``symbols`` tell."""

    implemented_properties: ClassVar = ["energy", "forces"]
    default_parameters: ClassVar = {"mood": "bad", "cutoff": np.float64(4.0)}

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        symbol = str(self.atoms.symbols)
        if symbol == "Cu":
            raise RuntimeError("SCF did not\n converge")
        if symbol == "Ag":
            os.abort()
        self.atoms.calc = EMT()
        self.results = {"energy": self.atoms.get_potential_energy(), "forces": self.atoms.get_forces()}
        if symbol == "Au":
            self.results["forces"] = np.full((1, 3), np.nan)
        if symbol == "Pt":
            self.results["energy"] = 1e30
        Path("scratch").write_text(symbol)


def slow() -> EMT:
    """EMT that takes a moment for each structure, and counts how often it was asked."""

    class Slow(EMT):
        def calculate(self, *arguments: Any, **options: Any) -> None:
            super().calculate(*arguments, **options)
            time.sleep(0.1)
            with open(os.environ[CALLS], "a", encoding="utf-8") as file:
                file.write(f"{self.atoms.get_volume():.6f}\n")

    return Slow()
