"""Checking a request with the model, before it is queued: the systems it relaxes, and everything that can be said."""

import importlib.util
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols, reference_states

from equicat.adsorption.adsorbates import NAMES, adsorbate
from equicat.adsorption.domain import outside_training
from equicat.adsorption.energies import AdsorptionConfig, Ready, prepare
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.relaxation.models import ForceModel, PotentialForces
from equicat.serve.request import MAX_ATOMS, Request, open_request
from equicat.serve.uploads import Uploads

MAX_PLACEMENTS = 400
LATTICES = ("fcc", "hcp", "bcc", "sc", "diamond")
"""Lattices of the elements of which slabs can be built, metals first."""


@dataclass(frozen=True, eq=False)
class Checked:
    """A request that can be run."""

    title: str
    """Adsorbates and slab in words."""
    slab: Structure
    systems: list[dict[str, Any]]
    """Everything that is relaxed, in order; see :func:`systems_of`."""
    sites: list[str]
    """Kinds of sites of the slab, whether they are used or not."""
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    """Ways in which the systems are unlike the training data."""


class Model:
    """The model that the page is for.

    Args:
        run: run directory.
        forces: the model in it.
        references: file of gas energies for models of total energies, or None.
    """

    def __init__(self, run: Path, forces: ForceModel, references: str | None = None):
        self.run, self.forces, self.references = run, forces, references
        self._one = threading.Lock()

    def config(self, request: Request) -> AdsorptionConfig:
        """How a request is run."""
        return replace(request.config, references=self.references)

    def check(self, request: Request, uploads: Uploads) -> Checked:
        """Open everything, place the adsorbates and compare with the training data; nothing is relaxed.

        Raises:
            InputError: if the request cannot be run; says why.
        """
        with self._one:  # several at once would hold up the page, and each is faster alone
            slab, adsorbates = open_request(request, uploads)
            ready = prepare(slab, adsorbates, self.forces, self.config(request))
            n_atoms, n_placements = len(ready.slab.structure), len(ready.placed.placements)
            if n_atoms > MAX_ATOMS:
                raise InputError(f"the slab has {n_atoms} atoms; at most {MAX_ATOMS} are taken")
            if n_placements > MAX_PLACEMENTS:
                raise InputError(
                    f"these are {n_placements} placements, and at most {MAX_PLACEMENTS} are one job; choose fewer "
                    "adsorbates, sites or turns"
                )
            return Checked(
                title=ready.title,
                slab=ready.slab.structure,
                systems=systems_of(ready),
                sites=[site.name for site in ready.placed.sites],
                notes=(*ready.slab.notes, *ready.placed.notes),
                warnings=outside_training(self.forces, ready.systems[1:]),
            )

    def facts(self) -> dict[str, Any]:
        """Choices and sentences for the page."""
        known = self.forces.elements or tuple(range(1, len(reference_states)))
        lattice = {chemical_symbols[z]: (reference_states[z] or {}).get("symmetry") for z in known}
        bulks = [bulk for kind in LATTICES for bulk in lattice if lattice[bulk] == kind]
        possible = {name for name in NAMES if set(adsorbate(name).numbers.tolist()) <= set(known)}
        trained, bulk_first = "", bulks
        if isinstance(self.forces, PotentialForces) and (domain := self.forces.potential.info.domain) is not None:
            trained = f"trained on {domain.n_structures:,} structures"
            bulk_first = [b for b in bulks if b in {chemical_symbols[z] for z in domain.slab_elements}] or bulks
        return {
            "run": self.run.name,
            "trained": trained,
            "elements": [chemical_symbols[z] for z in known],
            "energy_reference": self.forces.energy_reference,
            "bulks": bulk_first,
            "smiles": importlib.util.find_spec("rdkit") is not None,
            "adsorbates": [{"name": name, "possible": name in possible} for name in NAMES],
        }


def systems_of(ready: Ready) -> list[dict[str, Any]]:
    """All systems in order, as JSON can hold them: kind, name, and how energies become adsorption energies.

    The adsorption energy of a placement is its energy less that of system 0, those of the systems ``gases``, and
    ``gas`` (eV).
    """
    systems: list[dict[str, Any]] = [{"kind": "slab", "sid": ready.slab.structure.sid}]
    systems += [{"kind": "gas", "sid": gas.sid} for gas in ready.gases]
    numbers = {gas.sid: number for number, gas in enumerate(ready.gases, start=1)}
    for placement in ready.placed.placements:
        gases = [numbers[one.gas.sid] for one in placement.adsorbates] if numbers else []
        systems.append(
            {
                "kind": "placement",
                "sid": placement.structure.sid,
                "adsorbate": placement.load,
                "site": placement.site,
                "turn": placement.turn,
                "height": placement.height,
                "n_adsorbates": len(placement.adsorbates),
                "gases": gases,
                "gas": 0.0 if gases else ready.reference.gas_energy(placement.adsorbates, {}),
            }
        )
    return systems
