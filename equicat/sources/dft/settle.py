"""The energies of a data set, settled when all files are read: which references there are, and what is subtracted.

Clean slabs and gas molecules among the files are references like those that are given. A clean slab has an adsorption
energy of zero: it stays in the S2EF data, so that a model learns that it does (see docs/import.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from equicat.data.contacts import formula_of
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.sources.dft.config import ImportConfig
from equicat.sources.dft.record import Record
from equicat.sources.dft.references import CleanSlab, References
from equicat.sources.dft.tables import Energy

TOTAL_ENERGY_KEYS = ("energy", "free_energy")
"""Energy keys whose values are total energies: the results of a calculator."""
DESCRIPTIONS = {
    ("adsorption", True): "adsorption: E(slab with adsorbate) - E(clean slab) - gas references.",
    ("adsorption", False): "adsorption: as the files have them, nothing subtracted.",
    ("total", False): "total: as the files have them.",
    ("relative", False): "relative: the first frame kept of each system is zero.",
}
"""Energies in words, by kind and by whether references were subtracted."""


@dataclass
class Settled:
    """Kind of the energies of a data set, and the references that they are measured against."""

    kind: str
    """``adsorption``, ``total`` or ``relative``."""
    formed: bool
    """Whether references were subtracted."""
    references: References
    notes: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The energies in words."""
        return DESCRIPTIONS[self.kind, self.formed]


def check_wishes(config: ImportConfig, given: References) -> None:
    """Make sure that the kind of energies that is asked for fits the references that are given.

    Raises:
        InputError: if references are given, but energies of another kind than adsorption energies asked for.
    """
    if given and config.energy_reference not in (None, "adsorption"):
        raise InputError(
            f"references are given, but energy_reference is {config.energy_reference}; leave one of them out"
        )


def settle(records: Sequence[Record], config: ImportConfig, given: References) -> Settled:
    """Decide what the energies are, and note in each record what is to be subtracted.

    Args:
        records: of all files.
        config: what was asked for.
        given: references from options.

    Raises:
        InputError: if adsorption energies are wanted but there is nothing to form them with, or a slab or molecule has
            two different energies.
    """
    _recognize_oxides(records)
    holds_adsorption_energies = config.energy_key not in (None, *TOTAL_ENERGY_KEYS) and not given
    if config.energy_reference in ("total", "relative") or holds_adsorption_energies:
        settled = Settled(config.energy_reference or "total", False, given)
    else:
        gas, clean = _found(records)
        if config.energy_reference == "adsorption" and not (given or gas or clean):
            raise InputError(
                "adsorption energies need references: clean slabs and gas molecules among the files, --references "
                "FILE, --slab_files or --gas_files; or, if the files hold adsorption energies already, the key that "
                "they are under (--energy_key); else choose total or relative"
            )
        settled = _with_references(records, config, given, gas, clean)
    for record in records:
        if settled.kind == "relative":
            record.zero = record.first_energy
        if settled.formed and record.role in ("gas molecule", "bulk") and record.n_s2ef:
            known = record.role == "gas molecule" and record.last is not None
            why = "its energy is a reference" if known else "nothing adsorbs on it"
            record.leave_out(record.role.replace(" ", "_"), "left out", why)
        if record.role == "clean slab" and config.clean_slab_share == 0 and record.n_s2ef:
            record.leave_out("clean_slab", "left out", "clean_slab_share is 0")
    return settled


def _recognize_oxides(records: Sequence[Record]) -> None:
    """A structure with nonmetals, but without adsorbate, is a clean slab if it is the slab of another system."""
    unclear = [r for r in records if r.role == "system" and r.last is not None]
    slabs = [record.slab for record in records if record.slab is not None] if unclear else []
    for record in unclear:
        assert record.last is not None
        clean = _clean_slab(record.last)
        if clean is not None and any(clean.fits(slab) for slab in slabs):
            record.role, record.slab = "clean slab", record.last
            record.tagged_by = "the slab of other systems: no adsorbate"
            record.findings = [finding for finding in record.findings if finding.rule != "no_adsorbate"]


def _clean_slab(last: Structure) -> CleanSlab | None:
    try:
        return CleanSlab.of(last)
    except InputError:
        return None  # there is no surface


def _found(records: Sequence[Record]) -> tuple[list[tuple[str, Energy]], list[CleanSlab]]:
    """Gas molecules and clean slabs among the files that are relaxed."""
    gas = [last for record in records if record.role == "gas molecule" and (last := record.last) is not None]
    slabs = [last for record in records if record.role == "clean slab" and (last := record.last) is not None]
    energies = [(formula_of(last.numbers.tolist()), Energy(last.energy or 0.0, last.where)) for last in gas]
    return energies, [CleanSlab.of(last) for last in slabs]


def _with_references(
    records: Sequence[Record],
    config: ImportConfig,
    given: References,
    gas: list[tuple[str, Energy]],
    clean: list[CleanSlab],
) -> Settled:
    """Adsorption energies; or total ones, if nobody asked for a kind and references among the files are missing."""
    systems = [record for record in records if record.role == "system" and record.n_s2ef + (record.initial is not None)]
    wanted = config.energy_reference == "adsorption" or bool(given)
    if not wanted and not (gas and clean and systems):
        return Settled("total", False, given)
    try:
        references = given.completed(gas, clean)
        missing = {record.sid: problem for record in systems if (problem := _refer(record, references))}
        if missing and not wanted:
            sid, problem = next(iter(missing.items()))
            raise InputError(f"{problem} (system {sid})")
    except InputError as error:
        if wanted:
            raise
        for record in systems:
            record.gas_reference = record.slab_reference = record.clean_slab = ""
            record.zero = record.gas_energy = record.slab_energy = 0.0
        note = f"total energies, since the references among the files do not do for adsorption energies: {error}"
        return Settled("total", False, given, [note])
    for record in systems:
        if record.sid in missing:
            record.leave_out("no_reference", config.rules.no_reference, missing[record.sid])
    used = {record.clean_slab for record in systems}
    for record in (record for record in records if record.role == "clean slab" and record.n_s2ef):
        if record.last is None or record.last.energy is None or record.sid not in used:
            # Nobody says that it is clean but its elements: an adsorbed metal atom looks like it.
            record.leave_out("clean_slab", "left out", "no system is measured against it")
        else:
            record.zero, record.slab_reference = record.last.energy, record.last.where
    return Settled("adsorption", True, references)


def _refer(record: Record, references: References) -> str:
    """Note in a system's record what its adsorption energy is measured against; what is missing, if something is."""
    if record.adsorbate_numbers is None or record.slab is None:
        unclear = next((f.text for f in record.findings if f.rule == "no_adsorbate"), "")
        return (
            f"{record.files[0]}: no adsorption energy without knowing which atoms are the adsorbate "
            f"({unclear.split(': ', 1)[-1]})"
        )
    try:
        gas = references.gas_reference(record.adsorbate_numbers)
        names = [record.sid, *([record.slab_key] if record.slab_key else [])]
        energy, clean = references.slab_energy(names, record.slab)
    except InputError as error:
        return str(error)
    record.gas_energy, record.gas_reference = gas.energy, gas.text
    record.slab_energy, record.slab_reference = energy.value, energy.where
    record.clean_slab = clean.structure.sid if clean is not None else ""
    record.zero = gas.energy + energy.value
    return ""
