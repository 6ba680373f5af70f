"""References of adsorption energies: the model's own clean slab, and gases where its energies are total."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from equicat.adsorption.adsorbates import Adsorbate
from equicat.adsorption.placements import load_name
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.sources.dft.references import ReferenceFiles, References, load_references

CLEAN_SLABS = {
    None: "",
    True: " Clean slabs were in the training data.",
    False: " No clean slab was in the training data.",
}


@dataclass(frozen=True, eq=False)
class EnergyReference:
    """How energies of a model become adsorption energies.

    ``adsorption``: E(slab + adsorbate) − E(clean slab), both by the model. ``total``: the energy of the gas as well,
    from a references file or by the model.
    """

    kind: str
    """``adsorption`` or ``total``."""
    gas: References | None
    """Gas energies of a references file."""
    file: str | None
    trained_on: str = ""
    """Gas references that were subtracted from the training data, in words."""
    clean_slabs: bool | None = None
    """Whether the training data held clean slabs; None if that is not known."""

    def gases(self, loads: Sequence[Sequence[Adsorbate]]) -> list[Structure]:
        """Molecules that the model has to relax, each once."""
        if self.kind != "total" or self.gas is not None:
            return []
        return list({one.name: one.gas for load in loads for one in load}.values())

    def gas_energy(self, load: Sequence[Adsorbate], relaxed: dict[str, float]) -> float:
        """Energy (eV) of the gas of some adsorbates; zero for a model of adsorption energies.

        Args:
            load: the adsorbates.
            relaxed: energies (eV) of the molecules of :meth:`gases`, by their sid.

        Raises:
            InputError: if the references file does not determine it.
        """
        if self.kind != "total":
            return 0.0
        if self.gas is not None:
            return sum(self.gas.gas_reference(one.numbers.tolist()).energy for one in load)
        return sum(relaxed[one.gas.sid] for one in load)

    def check(self, loads: Sequence[Sequence[Adsorbate]]) -> None:
        """Make sure, before anything is relaxed, that every adsorbate has a gas energy.

        Raises:
            InputError: naming the adsorbate and the file.
        """
        if self.gas is not None:
            for load in loads:
                try:
                    self.gas_energy(load, {})
                except InputError as error:
                    raise InputError(
                        f"{self.file}: no gas reference for {load_name(load)}: it is no combination of "
                        f"{', '.join(self.gas.gas)}; add the molecules that are missing under gas"
                    ) from error

    def sentences(self, clean_slab: float, adsorbates: Iterable[Adsorbate]) -> tuple[str, ...]:
        """Sentences for people that say which energies the results are.

        Args:
            clean_slab: energy (eV) that the model gives the relaxed clean slab.
            adsorbates: those on the slabs.
        """
        if self.kind == "adsorption":
            return (
                "Energy: E(slab + adsorbate) − E(clean slab), both relaxed with the model, whose energies are "
                f"adsorption energies already. The model gives the clean slab {clean_slab:.3f} eV, which by definition "
                "should be zero; it is taken off, so that the energy does not depend on the size of the slab."
                + CLEAN_SLABS[self.clean_slabs],
                f"Gas references: those of the training data ({self.trained_on or 'not recorded in the model'}).",
            )
        slab = "Energy: E(slab + adsorbate) − E(clean slab) − E(gas); the model's energies are total energies, and the "
        slab += f"relaxed clean slab has {clean_slab:.3f} eV."
        if self.gas is not None:
            unused = " Its clean slabs are not used: the model's own is." if self.gas.slabs else ""
            made_of = {one.name: self.gas.gas_reference(one.numbers.tolist()).text for one in adsorbates}
            combinations = ", ".join(f"{name} = {text}" for name, text in made_of.items())
            return slab, f"Gas references: {combinations}, with the energies of {self.file}.{unused}"
        return slab, "Gas references: each adsorbate alone, as a molecule without a surface, relaxed with the model."


def energy_reference(
    kind: str, file: str | None, trained_on: str = "", clean_slabs: bool | None = None
) -> EnergyReference:
    """The energy reference of a model and a references file.

    Args:
        kind: the model's ``energy_reference``.
        file: YAML file in the format of ``equicat data import``, or None.
        trained_on: what the training data had subtracted.
        clean_slabs: whether the training data held clean slabs; None if that is not known.

    Raises:
        InputError: if no adsorption energy can be made of such energies, or the file does not fit them.
    """
    if kind == "relative":
        raise InputError(
            "the model's energies are relative: every system of its training data has its own zero, so energies of a "
            "slab with and without an adsorbate cannot be compared; use a model of adsorption or total energies"
        )
    if file is None:
        return EnergyReference(kind, None, None, trained_on, clean_slabs)
    if kind == "adsorption":
        raise InputError(
            f"{file}: the model's energies are adsorption energies already, with the gas references of its training "
            "data; --references is for models of total energies, leave it out"
        )
    references = load_references(ReferenceFiles(yaml=file))
    if not references.gas:
        raise InputError(f"{file}: has no section gas; give the energies (eV) of the gas molecules there")
    return EnergyReference(kind, references, file, trained_on, clean_slabs)
