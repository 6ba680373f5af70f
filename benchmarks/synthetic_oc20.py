"""A stand-in for OC20's raw S2EF files, of any size: rattled copies of slabs with adsorbates, 73 atoms on average.

The files are laid out as the real ones are (5,000 frames of different systems each, ``N.extxyz.xz`` with ``N.txt.xz``).
Energies and forces are those of springs to the unrattled positions; they are for moving through programs, not for
learning from.

    python benchmarks/synthetic_oc20.py OUT --n 200000
"""

import argparse
import lzma
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc111, fcc211, molecule

METALS = ("Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au", "Ir", "Rh", "Ca")
ADSORBATES = ("O", "H", "OH", "CO", "NO", "H2O", "NH3", "CH3OH", "C2H6")
SPRING = 5.0
"""eV/Å²."""


def slab(rng: np.random.Generator) -> Atoms:
    """A metal or a binary alloy, 25 to 170 atoms, one adsorbate; tags and fixed atoms as in OC20."""
    metals = rng.choice(METALS, 2)
    if rng.random() < 0.7:
        size = (int(rng.integers(3, 6)), int(rng.integers(3, 6)), int(rng.integers(4, 7)))
        atoms = fcc111(str(metals[0]), size, vacuum=10.0, a=4.0)
    else:
        atoms = fcc211(str(metals[0]), (3, int(rng.integers(3, 6)), int(rng.integers(3, 6))), vacuum=10.0, a=4.0)
    atoms.symbols[rng.random(len(atoms)) < 0.4] = str(metals[1])
    n = len(atoms)
    top = atoms.positions[:, 2] > np.quantile(atoms.positions[:, 2], 0.6)
    add_adsorbate(atoms, molecule(str(rng.choice(ADSORBATES))), 2.0, position=tuple(rng.uniform(0, 5, 2)))
    atoms.set_tags(np.where(np.arange(len(atoms)) < n, np.pad(top, (0, len(atoms) - n)), 2))
    atoms.pbc = True
    return atoms


def frame(atoms: Atoms, reference: float, rng: np.random.Generator) -> str:
    """One frame as text."""
    step = rng.normal(scale=0.1, size=(len(atoms), 3))
    total = 0.5 * SPRING * float((step**2).sum()) - 2.0 + reference
    lattice = " ".join(repr(float(v)) for v in np.asarray(atoms.cell).ravel())
    properties = "species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3"
    head = f'{len(atoms)}\nLattice="{lattice}" Properties={properties} '
    head += f'energy={total:.8f} free_energy={total - 0.001:.8f} pbc="T T T"\n'
    line = "%-2s %16.8f %16.8f %16.8f  %s %8d %16.8f %16.8f %16.8f\n"
    tags, symbols = atoms.get_tags(), atoms.get_chemical_symbols()
    rows = zip(symbols, (atoms.positions + step).tolist(), tags.tolist(), (-SPRING * step).tolist(), strict=True)
    return head + "".join([line % (s, *r, "T" if t else "F", t, *f) for s, r, t, f in rows])


def write(out: Path, n_frames: int, seed: int, n_systems: int = 500, per_file: int = 5000, preset: int = 0) -> None:
    """Write the files; the same seed gives the same text."""
    rng = np.random.default_rng(seed)
    systems = [slab(rng) for _ in range(n_systems)]
    references = rng.uniform(-600.0, -100.0, n_systems).round(8)
    print(f"{np.mean([len(s) for s in systems]):.1f} atoms a system on average", flush=True)
    out.mkdir(parents=True)
    fids = np.zeros(n_systems, int)
    for number, start in enumerate(range(0, n_frames, per_file)):
        frames, log = [], []
        for k in rng.integers(n_systems, size=min(per_file, n_frames - start)):
            frames.append(frame(systems[k], references[k], rng))
            log.append(f"random{1000000 + k},frame{fids[k]},{references[k]}\n")
            fids[k] += 1
        for name, lines in (("extxyz", frames), ("txt", log)):
            (out / f"{number}.{name}.xz").write_bytes(lzma.compress("".join(lines).encode(), preset=preset))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--n", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.out, options.n, options.seed)
