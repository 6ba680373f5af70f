"""Batched vibrations of adsorbates against ``ase.vibrations`` one displacement after the other, with the same model.

The slabs are those of ``relaxation_speed.py`` (37 to 82 atoms with O, OH or CO), not relaxed, and only the adsorbate
vibrates; both compute in float64. Any run will do::

    python benchmarks/vibrations_speed.py run --n_systems 32

The table has seconds of the processor and by how much the frequencies differ; with ``all centres``, edges of centres
that feel no displacement are not left out.
"""

import argparse
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from ase import Atoms, units
from ase.vibrations import Vibrations as AseVibrations
from envelope import markdown, table, write
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
    parser.add_argument("--json", type=Path, help="file to write, for tables.py")
    options = parser.parse_args()
    potential = equicat.load(options.run).double()
    calculator = equicat.Calculator(options.run, outside_training="ignore")
    calculator.potential.double()
    slabs = [slab(seed) for seed in range(options.n_systems)]
    for atoms in slabs:
        atoms.set_tags(np.where(np.isin(atoms.numbers, (1, 6, 8)), 2, 0))
    structures = [Structure.from_ase(atoms) for atoms in slabs]
    equicat.vibrations_of(structures[:2], potential)  # kernels are compiled
    rows = []
    for _ in range(options.repeats):
        started = [time.process_time()]
        batched = equicat.vibrations_of(structures, potential)
        started.append(time.process_time())
        with patch.object(differences, "is_strictly_local", lambda model: False):
            equicat.vibrations_of(structures, potential)
        started.append(time.process_time())
        singly = [one_by_one(atoms, calculator) for atoms in slabs]
        started.append(time.process_time())
        apart = max(np.abs(v.frequencies - f).max() for v, f in zip(batched, singly, strict=True))
        rows.append([*(f"{seconds:.3f}" for seconds in np.diff(started)), f"{apart:.1e}"])
    results = table(
        ("batched [s]", "batched, all centres [s]", "ASE, one by one [s]", "largest difference [cm⁻¹]"), rows
    )
    print(markdown(results))
    if options.json:
        about = f"{len(slabs)} slabs, seconds of the processor, {torch.get_num_threads()} threads, float64."
        write(options.json, "Vibrations of adsorbates beside ASE's", {"": results}, notes=[about])


if __name__ == "__main__":
    main()
