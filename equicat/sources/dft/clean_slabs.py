"""Clean slabs in a data set: which there are, and which split each is in."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil

from equicat.data.structure import Structure
from equicat.sources.dft.record import IN_S2EF, Record
from equicat.sources.dft.references import References
from equicat.sources.dft.rules import fmax_of
from equicat.sources.dft.tagging import slab_only
from equicat.sources.splits import SPLITS, Assignment


def from_slab_files(records: Sequence[Record], given: References) -> list[tuple[Record, Structure]]:
    """The clean slabs from ``--slab_files`` that systems are measured against: further systems of one relaxed frame.

    Those without forces, which S2EF data need, are left out.
    """
    users = {record.clean_slab: record for record in reversed(records) if record.role == "system"}
    taken = {record.sid for record in records}
    found = []
    for clean in given.clean:
        slab, user = clean.structure, users.get(clean.structure.sid)
        if user is None or slab.forces is None or slab.sid in taken:
            continue
        assert slab.fixed is not None
        record = Record(slab.sid, (slab.source.split(", frame")[0],), 1, [0], [IN_S2EF], role="clean slab")
        record.catalyst, record.elements = user.catalyst, frozenset(slab.numbers.tolist())
        record.tagged_by, record.fixed_by = "given as a clean slab", "constraint" if slab.fixed.any() else "none"
        record.fmax, record.zero, record.slab_reference = fmax_of(slab), clean.energy.value, clean.energy.where
        found.append((record, replace(slab, fid=0, tags=slab_only(slab, slab.fixed), info={})))
    return found


def repeats(records: Sequence[Record], share: float) -> dict[str, int]:
    """Number of times that the frames of each clean slab are written, to be a share of those measured against it.

    Args:
        records: of one split.
        share: of the frames of a slab among them and those of the systems that use it; at least once is written.
    """
    frames: Counter[str] = Counter()
    for record in records:
        frames[record.clean_slab] += record.n_s2ef
    slabs = [record for record in records if record.role == "clean slab" and record.n_s2ef]
    wanted = {slab.sid: share / (1 - share) * frames[slab.sid] / slab.n_s2ef for slab in slabs}
    return {sid: max(1, ceil(n)) for sid, n in wanted.items()}


def is_used_by(slab: Record, systems: Iterable[Record]) -> bool:
    """Whether one of the systems is measured against a clean slab, or, where none is measured, has its catalyst."""
    if slab.role != "clean slab":
        return False
    return any(s.clean_slab == slab.sid or (not s.clean_slab and s.catalyst == slab.catalyst) for s in systems)


def place(
    others: Sequence[Record], systems: Sequence[Record], assignment: Assignment, given: Mapping[str, str]
) -> None:
    """Put clean slabs, and whatever else has no adsorbate, into a split.

    A clean slab goes where the first system is that uses it, training systems first: one whose catalyst is held out
    stays out of training.

    Args:
        others: without adsorbate; their ``split`` is set.
        systems: with an adsorbate, each in a split.
        assignment: of the systems; the others are added to its splits.
        given: splits that were given, by system id.
    """
    order = [*SPLITS, *(name for name in assignment.splits if name not in SPLITS)]
    for record in others:
        known = sorted((s.split for s in systems if is_used_by(record, [s])), key=order.index)
        held_out = ["val_ood_cat"] if record.catalyst in assignment.held_out_catalysts else []
        record.split = given.get(record.sid, "") or [*known, *held_out, *assignment.splits, "train"][0]
        assignment.splits.setdefault(record.split, []).append(record.sid)
