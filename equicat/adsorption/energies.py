"""`equicat adsorb` and :func:`equicat.adsorption_energies`: slab, adsorbates and model in, a table and a page out."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ase import Atoms
from ase.data import chemical_symbols

from equicat.adsorption.adsorbates import Adsorbate, together
from equicat.adsorption.builders import SlabConfig
from equicat.adsorption.domain import outside_training, trained_on
from equicat.adsorption.folder import plan_of, prepared_folder, relaxed_in
from equicat.adsorption.page import write_page
from equicat.adsorption.placements import Placed, PlacementConfig, load_name, place
from equicat.adsorption.references import EnergyReference, energy_reference
from equicat.adsorption.results import AdsorptionEnergies, Row, rows_of, write_results
from equicat.adsorption.slabs import Slab, open_slab
from equicat.data.structure import Structure
from equicat.errors import InputError, OutsideTraining
from equicat.files import Existing
from equicat.models.potential import Potential
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.models import ForceModel, force_model
from equicat.relaxation.relax import check_systems

IMPLAUSIBLE = 10.0
"""eV for one adsorbate."""


@dataclass(frozen=True)
class AdsorptionConfig(RelaxConfig, PlacementConfig, SlabConfig):
    """How slabs are built, adsorbates placed, everything relaxed, and energies referenced."""

    references: str | None = None
    """YAML file of gas energies (eV), as `equicat data import` takes it; for models of total energies. Default: such a
    model relaxes each adsorbate alone, as a molecule."""


def adsorption_energies(
    slab: str | Path | Atoms | Structure | Slab,
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
    ready = prepare(slab, adsorbates, forces, config)
    plan = plan_of(ready.systems, forces, config)
    folder = None if out is None else prepared_folder(Path(out), plan, existing)
    relaxed = relaxed_in(folder, ready.systems, forces, config, progress=progress, alone=True)
    assert relaxed is not None, "no other process takes part"
    result = result_of(ready, relaxed, forces)
    for text in result.warnings:
        warnings.warn(text, OutsideTraining if text in result.outside_training else UserWarning, stacklevel=2)
    if folder is not None:
        write_results(folder, result)
        write_page(folder, result, ready.title, plan)
    return result


@dataclass(frozen=True, eq=False)
class Ready:
    """A slab and all placements on it, checked, to be relaxed together."""

    slab: Slab
    loads: list[tuple[Adsorbate, ...]]
    placed: Placed
    reference: EnergyReference

    @property
    def gases(self) -> list[Structure]:
        """Molecules that the energy reference needs."""
        return self.reference.gases(self.loads)

    @property
    def systems(self) -> list[Structure]:
        """Everything that is relaxed: the clean slab, the gas molecules, the placements."""
        return [self.slab.structure, *self.gases, *(placement.structure for placement in self.placed.placements)]

    @property
    def title(self) -> str:
        """Adsorbates and slab in words."""
        where = Path(self.slab.structure.source).name or "slab"
        return f"{', '.join(load_name(load) for load in self.loads)} on {where}"


def prepare(
    slab: str | Path | Atoms | Structure | Slab,
    adsorbates: Sequence[str | Path | Atoms | Structure],
    model: ForceModel,
    config: AdsorptionConfig,
) -> Ready:
    """Open a slab, place adsorbates on it, and check that everything can be relaxed and compared.

    Raises:
        InputError: for input of which no adsorption energy can be made; says why.
    """
    reference = energy_reference(model.energy_reference, config.references, *trained_on(model))
    clean = open_slab(slab, config)
    loads = _loads(adsorbates, reference)
    _check_elements(clean, loads, model)
    reference.check(loads)
    ready = Ready(clean, loads, place(clean, loads, config), reference)
    check_systems(ready.systems, model)
    return ready


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


# ---- results ---------------------------------------------------------------------------------------------------------


def result_of(ready: Ready, relaxed: Sequence[Structure], model: ForceModel) -> AdsorptionEnergies:
    """Adsorption energies of relaxed systems, with everything that has to be warned of.

    Args:
        ready: what was relaxed.
        relaxed: the systems afterwards, in their order.
        model: that relaxed them.

    Raises:
        InputError: if a gas molecule or the clean slab has no finite energy, so that nothing can be compared with it.
    """
    slab, placed, reference, n_gases = ready.slab, ready.placed, ready.reference, len(ready.gases)
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
    unlike = outside_training(model, relaxed[1:])  # of the clean slab, the energy reference speaks
    found = (*_doubts(clean, gases, rows), *_thin_vacuum(placed, slab, model.cutoff), *unlike)
    adsorbates = [one for placement in placed.placements for one in placement.adsorbates]
    notes = (*slab.notes, *placed.notes, f"Duplicates: {len(after)} placements became {len(rows)} structures.")
    sentences = reference.sentences(clean.energy, adsorbates)
    return AdsorptionEnergies(rows, slab, notes, sentences, found, clean, unlike)


def _doubts(clean: Structure, gases: Sequence[Structure], rows: Sequence[Row]) -> list[str]:
    """Warnings of what makes all energies doubtful."""
    found = [
        f"{s.sid} did not converge; energies measured against it are off"
        for s in (clean, *gases)
        if not s.info["converged"]
    ]
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
    return found


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
