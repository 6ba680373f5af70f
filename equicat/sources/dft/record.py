"""The record of a system that is imported: everything that is known of it, and the fate of every frame."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from equicat.data.structure import Structure

IN_S2EF = "s2ef"
ONLY_IN_IS2RE = "is2re only"
"""Fates of frames that are kept: an initial or relaxed frame may be in the IS2RE data alone."""

Role = Literal["system", "clean slab", "gas molecule", "bulk"]
"""Kinds of things that are relaxed; a system has an adsorbate on a surface, or nobody knows."""


@dataclass(frozen=True)
class Finding:
    """One thing that does not look right, the rule that says so, and what was done about it."""

    rule: str
    action: str
    text: str


@dataclass
class Record:
    """All that is known about a system. Energies are in eV."""

    sid: str
    files: tuple[str, ...]
    n_frames: int
    fids: list[int | None] = field(default_factory=list)
    """Number of each frame; None for those that could not be read, which come last."""
    fates: list[str] = field(default_factory=list)
    """Fate of each frame: :data:`IN_S2EF`, :data:`ONLY_IN_IS2RE`, or the rule that dropped it."""
    findings: list[Finding] = field(default_factory=list)
    role: Role = "system"
    adsorbate: str = ""
    adsorbate_numbers: tuple[int, ...] | None = None
    """Atomic numbers of the adsorbate; None if it is not clear which atoms it is."""
    slab: Structure | None = None
    """The slab's atoms at the start, without labels; for a clean slab all atoms."""
    last: Structure | None = None
    """The last frame of a clean slab or molecule, with its total energy."""
    slab_key: str = ""
    """Name of the clean slab, from an info key."""
    catalyst: str = ""
    elements: frozenset[int] = frozenset()
    tagged_by: str = ""
    fixed_by: str = ""
    n_jumps: int = 0
    displacement_before: float = 0.0
    displacement_after: float = 0.0
    fmax: float | None = None
    first_energy: float = 0.0
    """Total energy of the first frame that is kept."""
    zero: float = 0.0
    """Subtracted from the total energies when the data set is written."""
    gas_energy: float = 0.0
    gas_reference: str = ""
    """The gas molecules that stand for the adsorbate, such as ``H2O - ½ H2``."""
    slab_energy: float = 0.0
    slab_reference: str = ""
    """File and line or frame that the energy of the clean slab comes from."""
    clean_slab: str = ""
    """System id of the clean slab, if its structure is known."""
    split: str = ""
    rows: range = range(0)
    """Numbers of its frames among all that were kept when they were read."""
    initial: Structure | None = None
    """Initial structure with the relaxed total energy and positions; None if the system is not for IS2RE and IS2RS."""

    @property
    def n_s2ef(self) -> int:
        """Frames in the S2EF data."""
        return self.fates.count(IN_S2EF)

    @property
    def dropped(self) -> Counter[str]:
        """Number of frames dropped by each rule."""
        return Counter(fate for fate in self.fates if fate not in (IN_S2EF, ONLY_IN_IS2RE))

    @property
    def relaxed_energy(self) -> float | None:
        """Energy of the relaxed structure as the data set has it."""
        known = None if self.initial is None else self.initial.relaxed_energy
        return None if known is None else known - self.zero

    def leave_out(self, rule: str, action: str, text: str) -> None:
        """Drop the system with all its frames."""
        self.findings.append(Finding(rule, action, text))
        self.fates = ["unreadable" if fid is None else rule for fid in self.fids]
        self.initial = None

    def leave_out_of_is2re(self, rule: str, text: str) -> None:
        """Keep the frames for S2EF only, if there are any."""
        self.findings.append(Finding(rule, "frames" if self.n_s2ef else "drop", text))
        self.fates = [rule if fate == ONLY_IN_IS2RE else fate for fate in self.fates]
        self.initial = None
