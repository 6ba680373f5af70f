"""Meaning of the energies of a data set, and its origin."""

from dataclasses import dataclass, field
from typing import Any

from equicat.errors import InputError, nearest

ENERGY_REFERENCES = ("adsorption", "total", "relative")


@dataclass(frozen=True)
class DatasetInfo:
    """Meaning of the energies of a data set, their references, and how the data set was made.

    Raises:
        InputError: if ``energy_reference`` is none of ``adsorption``, ``total`` and ``relative``.
    """

    energy_reference: str = "total"
    """``adsorption``: E(slab+adsorbate) − E(clean slab) − E(gas references); ``total``: as the code printed it;
    ``relative``: every system has its own zero."""
    reference_energies: dict[str, float] = field(default_factory=dict)
    """The energies (eV) that were subtracted, by the name of what they belong to."""
    description: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the data come from and with which settings; anything JSON holds."""

    def __post_init__(self) -> None:
        if self.energy_reference not in ENERGY_REFERENCES:
            raise InputError(
                f"energy_reference is {self.energy_reference!r}{nearest(self.energy_reference, ENERGY_REFERENCES)}; "
                f"it must be one of {', '.join(ENERGY_REFERENCES)}"
            )
