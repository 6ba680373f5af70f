"""Batched vibrations of adsorbates against ``ase.vibrations`` one displacement after the other, with the same model.

The slabs are those of ``relaxation_speed.py`` (37 to 82 atoms with O, OH or CO), not relaxed, and only the adsorbate
vibrates; both compute in float64. Any run will do::

    python benchmarks/vibrations_speed.py run --n_systems 32

It prints seconds of the processor and by how much the frequencies differ; with ``all centres``, edges of centres that
feel no displacement are not left out.
"""

import argparse
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
from ase import Atoms, units
from ase.vibrations import Vibrations as AseVibrations
from relaxation_speed import slab

import equicat
from equicat.data.structure import Structure
from equicat.vibrations import differences


def one_by_one(atoms: Atoms, calculator: equicat.Calculator) -> np.ndarray:
    """Frequencies by ASE, cm⁻¹, ascending, imaginary ones negative."""
    atoms = atoms.copy()
    atoms.calc = calculator
    with tempfile.TemporaryDirectory() as folder:
        vibrations = AseVibrations(atoms, np.flatnonzero(atoms.get_tags() == 2), name=str(Path(folder) / "vib"))
        vibrations.run()
        energies = vibrations.get_energies() / units.invcm
    return np.sort(np.where(energies.imag > 0, -energies.imag, energies.real))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--n_systems", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    potential = equicat.load(options.run).double()
    calculator = equicat.Calculator(options.run, outside_training="ignore")
    calculator.potential.double()
    slabs = [slab(seed) for seed in range(options.n_systems)]
    for atoms in slabs:
        atoms.set_tags(np.where(np.isin(atoms.numbers, (1, 6, 8)), 2, 0))
    structures = [Structure.from_ase(atoms) for atoms in slabs]
    equicat.vibrations_of(structures[:2], potential)  # kernels are compiled
    for _ in range(options.repeats):
        started = [time.process_time()]
        batched = equicat.vibrations_of(structures, potential)
        started.append(time.process_time())
        with patch.object(differences, "is_strictly_local", lambda model: False):
            equicat.vibrations_of(structures, potential)
        started.append(time.process_time())
        singly = [one_by_one(atoms, calculator) for atoms in slabs]
        started.append(time.process_time())
        seconds = dict(zip(("batched", "all centres", "ASE"), np.diff(started), strict=True))
        apart = max(np.abs(v.frequencies - f).max() for v, f in zip(batched, singly, strict=True))
        print("  ".join(f"{name} {s:.3f} s" for name, s in seconds.items()), f" largest difference {apart:.1e} cm⁻¹")


if __name__ == "__main__":
    main()
