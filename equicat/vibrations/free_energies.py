"""`equicat vibrations` and :func:`equicat.free_energies`: structures and a model in, free energies out."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from ase import Atoms

from equicat.data.datasets import open_dataset
from equicat.data.readers import write
from equicat.data.structure import Structure
from equicat.errors import InputError, Remark
from equicat.models.potential import Potential
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.models import ForceModel, check_elements, force_model
from equicat.relaxation.relax import relax, warn_outside
from equicat.vibrations.config import FreeEnergyConfig
from equicat.vibrations.modes import vibrations_of_systems
from equicat.vibrations.results import FreeEnergies, Output, Result, check_output, write_results
from equicat.vibrations.systems import System, made_ready
from equicat.vibrations.thermochemistry import check_formulas, free_energies_of, gas_of


def free_energies(
    structures: str | Path | Sequence[Structure | Atoms],
    model: str | Path | Potential | ForceModel,
    config: FreeEnergyConfig | None = None,
    *,
    out: Output | str | Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = torch.float64,
    progress: bool = True,
) -> FreeEnergies:
    """Vibrations and free energies of adsorbates and gas molecules, all displaced structures in batches.

    Args:
        structures: file, store, or structures in memory; relaxed ones, unless ``config.relax``.
        model: run directory, a loaded potential, or another source of energies and forces
            (:class:`~equicat.relaxation.models.ForceModel`, such as ASE calculators).
        config: which atoms vibrate, at which temperatures and pressure, and what is assumed of the modes.
        out: table to write (csv), with what lies beside it; without it, nothing is written.
        device: where the model of a run computes.
        dtype: of the model; None: as it was trained. Differences of forces lose digits, so float64 is the default.
        progress: show a progress bar.

    Raises:
        InputError: for input that has no vibrations or no free energy (the structure is named), a model without forces,
            or an ``out`` that would be lost.
    """
    config = config or FreeEnergyConfig()
    output = Output(out) if isinstance(out, str | Path) else out
    if output is not None:
        check_output(output)
    forces = force_model(model, device, dtype)
    given = _opened(structures)
    check_elements(forces, given)
    systems = [made_ready(structure, config) for structure in given]
    check_formulas(systems, config)
    flags: list[tuple[str, ...]] = [()] * len(given)
    if not config.relax:
        warn_outside(forces, given)
    else:
        relaxed = relax(given, forces, RelaxConfig(fmax=config.fmax, edges=config.edges), progress=progress)
        assert relaxed is not None
        flags = [tuple(filter(None, s.info["flags"].split(","))) for s in relaxed.structures]
        systems = _ready_again(relaxed.structures, config, output)
    gases = [gas_of(system, config) for system in systems]
    found = vibrations_of_systems(systems, forces, config, progress)
    results = [
        Result(number, vibrations, gas, tuple(free_energies_of(vibrations, gas, config)), config, said)
        for number, (vibrations, gas, said) in enumerate(zip(found, gases, flags, strict=True))
    ]
    _warn_of_forces(results, config)
    everything = FreeEnergies(results, forces.energy_reference, config)
    if output is not None:
        write_results(output, everything)
    return everything


def _opened(structures: str | Path | Sequence[Structure | Atoms]) -> list[Structure]:
    if isinstance(structures, str | Path):
        return list(open_dataset(structures, labels=()))
    named = [(f"structure {k}", s) for k, s in enumerate(structures)]
    if not named:
        raise InputError("no structures; give those whose free energies are wanted")
    return [Structure.from_ase(s, source=name, labels=()) if isinstance(s, Atoms) else s for name, s in named]


def _ready_again(relaxed: Sequence[Structure], config: FreeEnergyConfig, output: Output | None) -> list[System]:
    """The systems after a relaxation, which is not lost if one of them is no longer what it was.

    Raises:
        InputError: such as for a molecule that fell apart; says where the relaxed structures are.
    """
    try:
        systems = [made_ready(structure, config) for structure in relaxed]
        for system in systems:
            gas_of(system, config)
    except InputError as error:
        if output is None:
            raise
        kept = output.files()[2]
        write(kept, relaxed)
        raise InputError(f"{error} (all structures, relaxed, are in {kept})") from error
    return systems


def _warn_of_forces(results: Sequence[Result], config: FreeEnergyConfig) -> None:
    """Say which structures are no minima of this model."""
    advice = "their relaxation did not converge" if config.relax else "--relax relaxes them with it first"
    off = [result for result in results if result.vibrations.fmax > config.fmax]
    if off:
        worst = max(off, key=lambda result: result.vibrations.fmax)
        warnings.warn(
            f"{len(off)} of {len(results)} structures are no minima of this model: forces of up to "
            f"{worst.vibrations.fmax:.2g} eV/Å on a vibrating atom ({worst.name}), more than fmax {config.fmax:g}; "
            f"their frequencies mean little; {advice}",
            Remark,
            stacklevel=3,
        )
