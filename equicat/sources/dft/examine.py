"""One relaxation at a time: unwrapped, tagged, referenced, judged; and a record of what became of each frame."""

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from equicat.data.contacts import formula_of
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.sources.dft.config import ImportConfig
from equicat.sources.dft.references import References
from equicat.sources.dft.rules import Rules, atoms_differ, best_order, fmax_of, judge_ends, judge_frames, order_differs
from equicat.sources.dft.tagging import Tagging, UnclearAdsorbate, fixed_atoms, slab_only, tag_atoms
from equicat.sources.dft.trajectories import Trajectory
from equicat.sources.dft.unwrap import unwrap

IN_S2EF = "s2ef"
ONLY_IN_IS2RE = "is2re only"
"""What becomes of frames that are kept: an initial or relaxed frame may be in the IS2RE data alone."""


@dataclass(frozen=True)
class Finding:
    """Something that does not look right, by the rule that says so, and what was done."""

    rule: str
    action: str
    text: str


@dataclass
class Record:
    """What is known about a system, and what became of it."""

    sid: str
    files: tuple[str, ...]
    n_frames: int
    fids: list[int | None] = field(default_factory=list)
    """Numbers of the frames; of those that could not be read None, at the end."""
    fates: list[str] = field(default_factory=list)
    """Of each frame: :data:`IN_S2EF`, :data:`ONLY_IN_IS2RE`, or the rule that dropped it."""
    findings: list[Finding] = field(default_factory=list)
    adsorbate: str = ""
    catalyst: str = ""
    elements: frozenset[int] = frozenset()
    tagged_by: str = ""
    fixed_by: str = ""
    n_jumps: int = 0
    displacement_before: float = 0.0
    displacement_after: float = 0.0
    fmax: float | None = None
    zero: float = 0.0
    """eV, subtracted from the total energies."""
    slab_reference: str = ""
    """Name or file of the clean slab, and its energy (eV)."""
    slab_energy: float = 0.0
    split: str = ""
    initial: Structure | None = None
    """With the relaxed energy and positions; None if the system is not for IS2RE and IS2RS."""

    @property
    def n_s2ef(self) -> int:
        """Frames in the S2EF data."""
        return self.fates.count(IN_S2EF)

    @property
    def dropped(self) -> Counter[str]:
        """Number of frames dropped by each rule."""
        return Counter(fate for fate in self.fates if fate not in (IN_S2EF, ONLY_IN_IS2RE))

    def leave_out(self, rule: str, action: str, text: str) -> None:
        """Drop the system with all its frames."""
        self.findings.append(Finding(rule, action, text))
        self.fates = ["unreadable" if fid is None else rule for fid in self.fids]

    def leave_out_of_is2re(self, rule: str, text: str) -> None:
        """Keep the frames for S2EF only, if there are any."""
        self.findings.append(Finding(rule, "frames" if self.n_s2ef else "drop", text))
        self.fates = [rule if fate == ONLY_IN_IS2RE else fate for fate in self.fates]
        self.initial = None


def examine(
    trajectory: Trajectory, config: ImportConfig, energy_reference: str, references: References
) -> tuple[Record, list[Structure]]:
    """What becomes of a relaxation, and its frames for S2EF.

    Args:
        trajectory: as it was read.
        config: how to treat it.
        energy_reference: what its energies shall be.
        references: for adsorption energies; empty if the files hold them.
    """
    rules = config.rules
    record = Record(trajectory.sid, trajectory.files, len(trajectory.frames) + len(trajectory.unreadable))
    record.fids = [*(frame.fid for frame in trajectory.frames), *(None for _ in trajectory.unreadable)]
    record.findings = [Finding("unreadable", rules.unreadable, text) for text in trajectory.unreadable]
    if not trajectory.frames:
        record.fates = ["unreadable"] * record.n_frames
        return record, []
    frames, problem = _in_one_order(record, trajectory, config.reorder)
    if problem:
        record.leave_out("different_atoms", rules.different_atoms, problem)
        return record, []
    try:
        frames, tagging = _cleaned(record, frames, config)
    except InputError as error:
        record.leave_out("contradiction", rules.contradiction, str(error))
        return record, []
    try:
        if energy_reference == "relative":
            record.zero = _first_kept_energy(frames, rules)
        elif references:
            record.zero = _reference_energy(record, frames[0], tagging, references, config.slab_key)
    except InputError as error:
        record.leave_out("no_reference", rules.no_reference, str(error))
        return record, []
    frames = [f if f.energy is None else replace(f, energy=f.energy - record.zero) for f in frames]
    return record, _judged(record, frames, len(trajectory.unreadable), rules)


def _in_one_order(record: Record, trajectory: Trajectory, reorder: bool) -> tuple[list[Structure], str]:
    """The frames, and what is wrong if they do not have the same atoms in one order."""
    frames = trajectory.frames
    problem = atoms_differ(frames) or (order_differs(frames[0], frames[-1]) if trajectory.is_pair else "")
    if not problem or not reorder:
        return frames, problem
    record.findings.append(Finding("different_atoms", "reordered", problem))
    frames = [frames[0], *(_reordered(frames[0], frame) for frame in frames[1:])]
    return frames, atoms_differ(frames)


def _reordered(initial: Structure, frame: Structure) -> Structure:
    """The frame with its atoms in the order of ``initial``, if it has the same ones."""
    if sorted(frame.numbers.tolist()) != sorted(initial.numbers.tolist()):
        return frame
    order, _ = best_order(initial, frame)
    arrays = {name: getattr(frame, name) for name in ("numbers", "positions", "forces", "fixed", "tags")}
    changes: dict[str, Any] = {name: None if array is None else array[order] for name, array in arrays.items()}
    return replace(frame, **changes)


def _cleaned(record: Record, frames: list[Structure], config: ImportConfig) -> tuple[list[Structure], Tagging | None]:
    """Frames without jumps, with fixed atoms and tags; no tagging if the adsorbate is unclear.

    Raises:
        InputError: if tags, formula and constraint contradict each other.
    """
    unwrapped = unwrap(np.stack([f.positions for f in frames]), np.stack([f.cell for f in frames]), frames[0].pbc)
    record.n_jumps = unwrapped.n_jumps
    record.displacement_before, record.displacement_after = unwrapped.before, unwrapped.after
    if unwrapped.ambiguous:
        k, atom = unwrapped.ambiguous[0]
        text = f"atom {atom} moves by about half a lattice vector on the way to {frames[k].where}"
        record.findings.append(Finding("ambiguous_step", config.rules.ambiguous_step, text))
    frames = _one_for_all(_one_for_all(frames, "fixed"), "tags")
    fixed, record.fixed_by = fixed_atoms(frames[0], unwrapped.positions, config.infer_fixed)
    tagging = None
    try:
        tagging = tag_atoms(frames[0], fixed, _adsorbate_name(frames[0], config), config.trust_tags)
        tags, record.tagged_by, record.adsorbate = tagging.tags, tagging.method, tagging.adsorbate
    except UnclearAdsorbate as error:
        tags, record.tagged_by = _no_adsorbate(frames[0], fixed), "no adsorbate found"
        record.findings.append(Finding("no_adsorbate", config.rules.no_adsorbate, str(error)))
    record.catalyst = _catalyst(frames[0].numbers[tags < 2], config.split.catalysts)
    record.elements = frozenset(frames[0].numbers.tolist())
    if config.split.key is not None:
        record.split = _split_of(frames, config.split.key)
    return [
        replace(frame, positions=positions, fixed=fixed, tags=tags)
        for frame, positions in zip(frames, unwrapped.positions, strict=True)
    ], tagging


def _one_for_all(frames: list[Structure], name: str) -> list[Structure]:
    """Frames that all have the constraint, or the tags, of those frames that have one.

    Raises:
        InputError: if two differ.
    """
    given = [frame for frame in frames if getattr(frame, name).any()]
    for frame in given[1:]:
        if not np.array_equal(getattr(frame, name), getattr(given[0], name)):
            what = "constraint" if name == "fixed" else "tags"
            raise InputError(f"{frame.where}: another {what} than in {given[0].where}; give all frames the same")
    return [replace(frame, **{name: getattr(given[0], name)}) for frame in frames] if given else frames


def _no_adsorbate(structure: Structure, fixed: ndarray) -> Int[ndarray, "n_atoms"]:
    try:
        return slab_only(structure, fixed)
    except UnclearAdsorbate:
        return np.zeros(len(structure), np.int64)


def _adsorbate_name(structure: Structure, config: ImportConfig) -> str:
    if config.adsorbate_key is None:
        return config.adsorbate.replace("*", "")
    name = structure.info.get(config.adsorbate_key)
    if not isinstance(name, str):
        raise InputError(
            f"{structure.where}: no adsorbate formula under {config.adsorbate_key!r}; found "
            f"{', '.join(structure.info) or 'no keys'}"
        )
    return name.replace("*", "")


def _catalyst(numbers: Int[ndarray, "n_slab"], what: str) -> str:
    """Reduced formula of the slab, or its elements joined by hyphens."""
    if what == "elements":
        return "-".join(sorted({formula_of([z]) for z in numbers.tolist()}))
    values, counts = np.unique(numbers, return_counts=True)
    divisor = int(np.gcd.reduce(counts))
    return formula_of(np.repeat(values, counts // divisor).tolist())


def _split_of(frames: list[Structure], key: str) -> str:
    """The split that all frames name.

    Raises:
        InputError: if they name none, or several.
    """
    names = {str(frame.info.get(key, "")) for frame in frames}
    if names == {""}:
        raise InputError(f"{frames[0].where}: no split under {key!r}; found {', '.join(frames[0].info) or 'no keys'}")
    if len(names) > 1:
        raise InputError(
            f"{frames[0].where}: frames of this system are in several splits ({', '.join(sorted(names))}); "
            "a system belongs to one"
        )
    return names.pop()


def _first_kept_energy(frames: list[Structure], rules: Rules) -> float:
    """Energy (eV) of the first frame that is kept (one that exploded would make a poor zero), else of the first."""
    fates = judge_frames(frames, rules)
    energies = [frames[i].energy for i in sorted(range(len(frames)), key=lambda i: fates[i] != "")]
    return next((energy for energy in energies if energy is not None), 0.0)


def _reference_energy(
    record: Record, structure: Structure, tagging: Tagging | None, references: References, slab_key: str | None
) -> float:
    """Energy (eV) of the clean slab and the gas molecules.

    Raises:
        InputError: if a reference is missing.
    """
    if tagging is None:
        raise InputError(
            f"{structure.where}: no adsorption energy without knowing which atoms are the adsorbate "
            f"({record.findings[-1].text.split(': ', 1)[-1]})"
        )
    slab = tagging.tags < 2
    names = [record.sid]
    if slab_key is not None and slab_key in structure.info:
        names.append(str(structure.info[slab_key]))
    gas_energy = references.gas_energy(structure.numbers[~slab].tolist())
    record.slab_energy, record.slab_reference = references.slab_energy(names, _part(structure, slab))
    return gas_energy + record.slab_energy


def _part(structure: Structure, chosen: ndarray) -> Structure:
    """Some of the atoms, without labels."""
    assert structure.fixed is not None
    return Structure(
        structure.numbers[chosen],
        structure.positions[chosen],
        structure.cell,
        structure.pbc,
        structure.fixed[chosen],
        source=structure.source,
    )


def _judged(record: Record, frames: list[Structure], n_unreadable: int, rules: Rules) -> list[Structure]:
    """The frames for S2EF; ``record`` gets what became of all."""
    dropped_by = judge_frames(frames, rules)
    record.fmax = fmax_of(frames[-1])
    actions = asdict(rules)
    for rule, text in _anomalies(frames, dropped_by, rules):
        record.findings.append(Finding(rule, actions.get(rule, "frames"), text))
    # What cannot be read costs the frame only; all else is about the system.
    rule_of = {finding.action: finding.rule for finding in reversed(record.findings) if finding.rule != "unreadable"}
    unreadable = ["unreadable"] * n_unreadable
    kept = [frame for frame, rule in zip(frames, dropped_by, strict=True) if not rule]
    if "frames" in rule_of and not kept:
        record.findings = [replace(f, action="drop") if f.action == "frames" else f for f in record.findings]
        rule_of.setdefault("drop", rule_of["frames"])
    for action in ("error", "drop"):
        if action in rule_of:
            record.fates = [rule_of[action]] * len(frames) + unreadable
            return []
    record.fates = [rule or IN_S2EF for rule in dropped_by]
    if "frames" not in rule_of:
        record.fates[0], record.fates[-1] = (
            fate if fate == IN_S2EF else ONLY_IN_IS2RE for fate in (record.fates[0], record.fates[-1])
        )
        record.initial = replace(
            frames[0],
            energy=None,
            forces=None,
            fid=None,
            info={},
            relaxed_energy=frames[-1].energy,
            relaxed_positions=frames[-1].positions,
        )
    record.fates += unreadable
    return kept


def _anomalies(frames: list[Structure], dropped_by: list[str], rules: Rules) -> list[tuple[str, str]]:
    """What is wrong with the system as a relaxation: rule and words."""
    if len(frames) == 1:
        return [("single_frame", "one frame only, so there is no relaxation")]
    found = judge_ends(frames[0], frames[-1], rules)
    if dropped_by[-1] in ("exploded", "energy_jump"):
        found.append((dropped_by[-1], f"the last frame is dropped ({dropped_by[-1].replace('_', ' ')})"))
    if frames[-1].energy is None and any(frame.energy is not None for frame in frames):
        found.append(("no_energy", "the last frame has no energy"))
    return found


def settle_energies(records: list[Record]) -> bool:
    """Whether relaxed energies are known; systems without one are left out of IS2RE and IS2RS if others have one."""
    systems = [record for record in records if record.initial is not None]
    known = [record for record in systems if record.initial and record.initial.relaxed_energy is not None]
    if known:
        for record in systems:
            if record not in known:
                record.leave_out_of_is2re("no_energy", "no relaxed energy, which other systems have")
    return bool(known)
