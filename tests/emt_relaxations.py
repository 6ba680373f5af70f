"""Relaxations made with EMT, and files of VASP with them, for tests of imports."""

from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.optimize import LBFGS


def clean(metal: str) -> Atoms:
    atoms = fcc111(metal, (2, 2, 3), vacuum=7.0)
    atoms.pbc = True
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 3))
    atoms.set_tags(0)
    return atoms


def relax(atoms: Atoms, fmax: float = 0.03) -> list[Atoms]:
    """All steps of a relaxation, with energies and the forces of all atoms."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    frames = []
    for _ in LBFGS(atoms, logfile=None).irun(fmax=fmax, steps=60):
        frame = atoms.copy()
        results = {name: atoms.calc.results[name] for name in ("energy", "forces")}
        frame.calc = SinglePointCalculator(frame, energy=results["energy"], forces=results["forces"].copy())
        frames.append(frame)
    return frames


def system(metal: str, adsorbate: str, seed: int = 0) -> Atoms:
    atoms = clean(metal)
    add_adsorbate(atoms, Atoms(adsorbate, [(0, 0, 0.97 * i) for i in range(len(Atoms(adsorbate)))]), 1.3, "fcc")
    rng = np.random.default_rng(seed)
    atoms.positions[4:] += 0.05 * rng.normal(size=(len(atoms) - 4, 3))
    return atoms


def write_outcar(path: Path, frames: list[Atoms]) -> None:
    """Write as much of an OUTCAR as ASE reads; the constraint is in a POSCAR beside it."""
    symbols = list(dict.fromkeys(frames[0].get_chemical_symbols()))
    text = "".join(f" POTCAR:    PAW_PBE {s} 01Jan2000\n" for _ in range(2) for s in symbols)
    text += f"   ions per type = {' '.join(str(frames[0].get_chemical_symbols().count(s)) for s in symbols)}\n"
    text += "   ISPIN  =      1    spin polarized calculation?\n Iteration 1\n"
    for frame in frames:
        results = frame.calc.results
        rows = np.hstack([frame.positions, results["forces"]])
        text += "      direct lattice vectors                 reciprocal lattice vectors\n"
        text += "".join(f" {a:.9f} {b:.9f} {c:.9f} 0 0 0\n" for a, b, c in frame.cell)
        text += " POSITION                                       TOTAL-FORCE (eV/Angst)\n ------\n"
        text += "".join(f" {' '.join(f'{x:.9f}' for x in row)}\n" for row in rows)
        text += "  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n ----\n"
        text += f"  free  energy   TOTEN  = {results['energy']:.9f} eV\n\n"
        text += f"  energy  without entropy= {results['energy']:.9f}  energy(sigma->0) = {results['energy']:.9f}\n"
    path.write_text(text)
    ase.io.write(path.with_name("POSCAR"), frames[0], format="vasp")


def write_vasprun(path: Path, frames: list[Atoms]) -> None:
    """Write as much of a vasprun.xml as ASE reads; positions are wrapped into the cell, as VASP writes them."""

    def rows(name: str, values: np.ndarray, kind: str = "") -> str:
        lines = "".join(f"<v{kind}>{' '.join(map(str, v))}</v>" for v in values)
        return f'<varray name="{name}">{lines}</varray>'

    def structure(frame: Atoms, extra: str = "") -> str:
        crystal = f"<crystal>{rows('basis', frame.cell.array)}</crystal>"
        return crystal + rows("positions", frame.get_scaled_positions(wrap=True)) + extra

    held = np.zeros(len(frames[0]), bool)
    held[frames[0].constraints[0].index] = True
    flags = rows("selective", np.where(held, "F", "T")[:, None].repeat(3, 1), ' type="logical"')
    species = "".join(f"<rc><c>{s}</c><c>1</c></rc>" for s in frames[0].get_chemical_symbols())
    text = '<?xml version="1.0"?><modeling><kpoints><varray name="kpointlist"><v>0 0 0</v></varray>'
    text += '<varray name="weights"><v>1</v></varray></kpoints>'
    text += f'<atominfo><array name="atoms"><set>{species}</set></array></atominfo>'
    text += f'<structure name="initialpos">{structure(frames[0], flags)}</structure>'
    for frame in frames:
        e = frame.calc.results["energy"]
        energy = (
            f'<energy><i name="e_fr_energy">{e}</i><i name="e_wo_entrp">{e}</i><i name="e_0_energy">{e}</i></energy>'
        )
        text += f"<calculation><scstep>{energy}</scstep><structure>{structure(frame)}</structure>"
        text += f"{rows('forces', frame.calc.results['forces'])}{energy}</calculation>"
    path.write_text(text + "</modeling>")
