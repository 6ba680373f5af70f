"""`equicat adsorb` and :func:`equicat.adsorption_energies`: slab, adsorbates and model in, a table and a page out."""

import dataclasses
import hashlib
import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from equicat.adsorption.adsorbates import Adsorbate, together
from equicat.adsorption.builders import SlabConfig
from equicat.adsorption.domain import outside_training, trained_on
from equicat.adsorption.page import write_page
from equicat.adsorption.placements import Placed, PlacementConfig, load_name, place
from equicat.adsorption.references import EnergyReference, energy_reference
from equicat.adsorption.results import AdsorptionEnergies, rows_of, write_results
from equicat.adsorption.slabs import Slab, open_slab
from equicat.data.readers import read, write
from equicat.data.structure import Structure
from equicat.errors import InputError, OutsideTraining
from equicat.files import read_json, replace_json, writing_to
from equicat.models.potential import Potential
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.models import ForceModel, force_model
from equicat.relaxation.parts import Output
from equicat.relaxation.relax import check_systems, digest_of, relax

PLAN, PLACEMENTS, RELAXED = "plan.json", "placements.extxyz", "relaxed.extxyz"
IMPLAUSIBLE = 10.0
"""eV for one adsorbate."""
Existing = Literal["refuse", "resume", "overwrite"]


@dataclass(frozen=True)
class AdsorptionConfig(RelaxConfig, PlacementConfig, SlabConfig):
    """How slabs are built, adsorbates placed, everything relaxed, and energies referenced."""

    references: str | None = None
    """YAML file of gas energies (eV), as `equicat data import` takes it; for models of total energies. Default: such a
    model relaxes each adsorbate alone, as a molecule."""


def adsorption_energies(
    slab: str | Path | Atoms | Structure,
    adsorbates: Sequence[str | Path | Atoms | Structure],
    model: str | Path | Potential | ForceModel,
    config: AdsorptionConfig | None = None,
    *,
    out: str | Path | None = None,
    existing: Existing = "refuse",
    device: str = "cpu",
    progress: bool = True,
) -> AdsorptionEnergies:
    """Place adsorbates on a slab, relax all placements together, and compare them with the clean slab.

    Args:
        slab: structure file, name such as ``Cu(111) 3x3x4``, or structure.
        adsorbates: names, ``smiles:`` and SMILES, structure files or structures; ``CO+O`` are two on one slab.
        model: run directory, loaded potential, or another source of energies and forces.
        config: how to build, place and relax.
        out: directory for the table, the structures and the page; without it, nothing is written.
        existing: what to do if ``out`` holds something: refuse, resume (go on where it stopped), or overwrite.
        device: where the model of a run computes.
        progress: show a progress bar.

    Raises:
        InputError: for input of which no adsorption energy can be made; says why.
    """
    config = config or AdsorptionConfig()
    forces = force_model(model, device)
    reference = energy_reference(forces.energy_reference, config.references, *trained_on(forces))
    clean = open_slab(slab, config)
    loads = _loads(adsorbates, reference)
    _check_elements(clean, loads, forces)
    reference.check(loads)
    placed = place(clean, loads, config)
    gases = reference.gases(loads)
    systems = [clean.structure, *gases, *(placement.structure for placement in placed.placements)]
    check_systems(systems, forces)
    if out is None:
        relaxed = _relaxed(systems, forces, config, None, progress)
    else:
        plan = _plan(systems, forces, config)
        folder = _prepared_folder(Path(out), plan, existing)
        write(folder / PLACEMENTS, systems)
        relaxed = _relaxed(systems, forces, config, folder / RELAXED, progress)
    result = _result(clean, placed, reference, relaxed, len(gases))
    unlike = outside_training(forces, relaxed[1:])  # of the clean slab, the energy reference speaks
    thin = _thin_vacuum(placed, clean, forces.cutoff)
    result = dataclasses.replace(result, warnings=(*result.warnings, *thin, *unlike))
    for text in result.warnings:
        warnings.warn(text, OutsideTraining if text in unlike else UserWarning, stacklevel=2)
    if out is not None:
        write_results(Path(out), result)
        write_page(Path(out), result, _title(clean, loads), plan)
    return result


def _loads(
    adsorbates: Sequence[str | Path | Atoms | Structure], reference: EnergyReference
) -> list[tuple[Adsorbate, ...]]:
    if isinstance(adsorbates, str | Path | Atoms | Structure):
        adsorbates = [adsorbates]
    if not adsorbates:
        raise InputError(
            "no adsorbates: the energy of a slab alone makes a surface energy, "
            + (
                "which a model of adsorption energies cannot know; name adsorbates"
                if reference.kind == "adsorption"
                else "which is not computed here; name adsorbates"
            )
        )
    loads = [together(one) for one in adsorbates]
    names = [load_name(load) for load in loads]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"adsorbate {name}: named more than once; name each adsorbate once")
    return loads


def _check_elements(slab: Slab, loads: Sequence[Sequence[Adsorbate]], model: ForceModel) -> None:
    """Refuse what the model does not know, before placements are made.

    Raises:
        InputError: naming the element, and where it is.
    """
    if model.elements is None:
        return
    known = ", ".join(chemical_symbols[z] for z in model.elements)
    where = [(slab.structure.where, slab.structure.numbers)]
    where += [(f"adsorbate {one.name}", one.numbers) for load in loads for one in load]
    for name, numbers in where:
        unknown = sorted(set(numbers.tolist()) - set(model.elements))
        if unknown:
            symbols = ", ".join(chemical_symbols[z] for z in unknown)
            raise InputError(f"{name}: {symbols} was not in the training data; this model knows {known}")


# ---- relaxations and their folder ------------------------------------------------------------------------------------


def _relaxed(
    systems: Sequence[Structure], model: ForceModel, config: RelaxConfig, file: Path | None, progress: bool
) -> list[Structure]:
    """All systems relaxed together, from the file if they are finished; what a killed process finished is kept."""
    if file is not None and file.exists():
        return list(read(file))
    output = None if file is None else Output(file, resume=True, alone=True)
    done = relax(systems, model, config, out=output, progress=progress)
    assert done is not None
    # Read back, so that a run that was interrupted later gives the same digits.
    return done.structures if file is None else list(read(file))


def _plan(systems: Sequence[Structure], model: ForceModel, config: AdsorptionConfig) -> dict[str, Any]:
    """Everything that the results depend on; not how large batches are, and how far neighbour lists reach."""
    digest = hashlib.sha256()
    for s in systems:
        for array in (s.numbers, s.positions.round(6), s.cell.round(6), s.pbc, s.fixed):
            digest.update(np.ascontiguousarray(array).tobytes())
    plan = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("skin", "edges")}
    return json.loads(json.dumps(plan | {"structures": digest.hexdigest(), "model": digest_of(model)}))


def _prepared_folder(folder: Path, plan: dict[str, Any], existing: Existing) -> Path:
    """The directory, with the plan in it.

    Raises:
        InputError: if something is there that would be lost, or that is no run to go on with.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give the name of a directory")
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if there and PLAN not in there:
        raise InputError(f"{folder}: holds other files ({', '.join(there[:3])}); give another directory")
    if there and existing == "refuse":
        raise InputError(f"{folder}: exists already; --resume goes on with it, --overwrite begins anew")
    if there and existing == "resume":
        before = read_json(folder / PLAN)
        different = [name for name in plan if before.get(name) != plan[name]]
        if different:
            raise InputError(
                f"{folder}: was begun with other {', '.join(different)}; give the same to resume it, or --overwrite"
            )
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if existing == "overwrite":
            for path in folder.glob(f"{RELAXED}*"):
                _remove(path)
        replace_json(folder / PLAN, plan)
    return folder


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


# ---- results ---------------------------------------------------------------------------------------------------------


def _result(
    slab: Slab, placed: Placed, reference: EnergyReference, relaxed: Sequence[Structure], n_gases: int
) -> AdsorptionEnergies:
    clean, gases, after = relaxed[0], relaxed[1 : 1 + n_gases], relaxed[1 + n_gases :]
    energies = {}
    for gas in gases:
        if gas.energy is None:
            raise InputError(
                f"{gas.sid}: the model gives it no finite energy; give gas energies with --references instead"
            )
        energies[gas.sid] = gas.energy
    rows = rows_of(slab, placed, clean, after, reference, energies)
    assert clean.energy is not None
    found = [f"{s.sid} did not converge; energies measured against it are off" for s in (clean, *gases) if not _fine(s)]
    if gases:
        found.append(
            "gas molecules were relaxed with the model, and slab models are seldom trained on molecules; compare their "
            "energies with DFT, or give DFT's with --references"
        )
    far = [row for row in rows if abs(row.energy_per_adsorbate or 0.0) > IMPLAUSIBLE]
    if far:
        found.append(
            f"{far[0].adsorbate} at {far[0].relaxed_site} has {far[0].energy_per_adsorbate:.1f} eV, which no adsorbate "
            "has; the model's energies and the gas references are probably not of the same calculations"
        )
    adsorbates = [one for placement in placed.placements for one in placement.adsorbates]
    notes = (*slab.notes, *placed.notes, f"Duplicates: {len(after)} placements became {len(rows)} structures.")
    return AdsorptionEnergies(rows, slab, notes, reference.sentences(clean.energy, adsorbates), tuple(found), clean)


def _thin_vacuum(placed: Placed, slab: Slab, cutoff: float | None) -> tuple[str, ...]:
    """A warning if the model sees the image of the slab above an adsorbate."""
    s, up = slab.structure, slab.frame[2]
    if cutoff is None or not s.pbc[slab.axis]:
        return ()
    highest = max(float((placement.structure.positions @ up).max()) for placement in placed.placements)
    left = abs(float(s.cell[slab.axis] @ up)) - (highest - float(slab.heights.min()))
    if left >= cutoff:
        return ()
    text = (
        f"only {left:.1f} Å of vacuum are left above an adsorbate, less than the model's cutoff of {cutoff:g} Å, so it "
    )
    return (text + "feels the slab's image above; use a slab with more vacuum",)


def _fine(structure: Structure) -> bool:
    return bool(structure.info["converged"])


def _title(slab: Slab, loads: Sequence[Sequence[Adsorbate]]) -> str:
    return f"{', '.join(load_name(load) for load in loads)} on {Path(slab.structure.source).name or 'slab'}"
