"""One relaxation at a time: unwrapped, tagged, judged; and a record of what became of each frame."""

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from equicat.data.contacts import NONMETALS, formula_of
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.sources.dft.config import ImportConfig
from equicat.sources.dft.order import atoms_differ, order_differs, reordered
from equicat.sources.dft.record import IN_S2EF, ONLY_IN_IS2RE, Finding, Record
from equicat.sources.dft.rules import Rules, fmax_of, judge, judge_frames
from equicat.sources.dft.tagging import NoAdsorbate, fixed_atoms, is_molecule, slab_only, tag_atoms
from equicat.sources.dft.trajectories import Trajectory
from equicat.sources.dft.unwrap import unwrap
from equicat.sources.dft.vacuum import NoVacuum, UnclearAdsorbate


def examine(trajectory: Trajectory, config: ImportConfig) -> tuple[Record, list[Structure]]:
    """Clean and judge a relaxation: the record of it, and its frames for S2EF, with total energies.

    Args:
        trajectory: as it was read.
        config: how to treat it.
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
        frames = _cleaned(record, frames, config, trajectory.folder)
    except InputError as error:
        record.leave_out("contradiction", rules.contradiction, str(error))
        return record, []
    dropped_by = judge_frames(frames, rules)
    record.fmax = fmax_of(frames[-1])
    record.first_energy = _first_kept_energy(frames, dropped_by)
    if record.adsorbate_numbers is None:
        _keep_as_reference(record, frames[-1], dropped_by[-1], rules)
    return record, _judged(record, frames, dropped_by, len(trajectory.unreadable), rules)


def _in_one_order(record: Record, trajectory: Trajectory, reorder: bool) -> tuple[list[Structure], str]:
    """The frames, and what is wrong if they do not have the same atoms in one order."""
    frames = trajectory.frames
    problem = atoms_differ(frames) or (order_differs(frames[0], frames[-1]) if trajectory.is_pair else "")
    if not problem or not reorder:
        return frames, problem
    record.findings.append(Finding("different_atoms", "reordered", problem))
    frames = [frames[0], *(reordered(frames[0], frame) for frame in frames[1:])]
    return frames, atoms_differ(frames)


def _cleaned(record: Record, frames: list[Structure], config: ImportConfig, folder: str) -> list[Structure]:
    """Frames without jumps, with fixed atoms and tags; the record gets what they are of.

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
    frames = _one_for_all(_one_for_all(_one_for_all(frames, "fixed"), "tags"), "free_directions")
    fixed, record.fixed_by = fixed_atoms(frames[0], unwrapped.positions, config.infer_fixed)
    if frames[0].free_directions is not None:
        n_held = _held_in_part(frames[0])
        text = f"{n_held} atoms are held along one or two directions; the forces along these do not count"
        record.findings.append(Finding("held_in_part", config.rules.held_in_part, text))
    if frames[0].other_constraints:
        text = f"{', '.join(frames[0].other_constraints)} is not followed, so all forces on free atoms count"
        record.findings.append(Finding("held_in_part", config.rules.held_in_part, text))
    tags = _tagged(record, frames[0], fixed, config)
    record.elements = frozenset(frames[0].numbers.tolist())
    if record.role in ("system", "clean slab"):
        record.catalyst = catalyst_of(frames[0], tags < 2, config.split.catalysts, folder)
    if config.slab_key is not None:
        record.slab_key = str(frames[0].info.get(config.slab_key, ""))
    if config.split.key is not None:
        record.split = _split_of(frames, config.split.key, record.role == "system")
    return [
        replace(frame, positions=positions, fixed=fixed, tags=tags)
        for frame, positions in zip(frames, unwrapped.positions, strict=True)
    ]


def _one_for_all(frames: list[Structure], name: str) -> list[Structure]:
    """Frames that all have the constraint, or the tags, of those frames that have one.

    Raises:
        InputError: if two differ.
    """
    values = [getattr(frame, name) for frame in frames]
    given = [i for i, value in enumerate(values) if value is not None and value.any()]
    for i in given[1:]:
        if not np.allclose(values[i], values[given[0]], atol=0.01):
            what = "tags" if name == "tags" else "constraint"
            raise InputError(
                f"{frames[i].where}: another {what} than in {frames[given[0]].where}; give all frames the same"
            )
    return [replace(frame, **{name: values[given[0]]}) for frame in frames] if given else frames


def _held_in_part(structure: Structure) -> int:
    """Number of atoms that a constraint holds along one or two directions."""
    assert structure.free_directions is not None
    freedom = np.trace(structure.free_directions, axis1=1, axis2=2)
    return int(((freedom > 0.5) & (freedom < 2.5)).sum())


def _tagged(record: Record, structure: Structure, fixed: ndarray, config: ImportConfig) -> Int[ndarray, "n_atoms"]:
    """Tags, and in the record what the structure is: with an adsorbate, a clean slab, a molecule or a bulk crystal."""
    without_adsorbate = np.zeros(len(structure), np.int64)
    is_metal = not np.isin(structure.numbers, list(NONMETALS)).any()
    if is_molecule(structure):
        record.role, record.tagged_by = "gas molecule", "molecules: none"
        return without_adsorbate
    try:
        tagging = tag_atoms(structure, fixed, _adsorbate_name(structure, config, is_metal), config.trust_tags)
    except UnclearAdsorbate as error:
        record.tagged_by = "no adsorbate found"
        if is_metal and isinstance(error, NoAdsorbate | NoVacuum):
            record.tagged_by = "metals only: no adsorbate"
        try:
            tags = slab_only(structure, fixed)
            is_clean = is_metal and isinstance(error, NoAdsorbate) and config.rules.no_adsorbate != "keep"
            record.role = "clean slab" if is_clean else "system"
        except NoVacuum:
            tags, record.role = without_adsorbate, "bulk" if is_metal else "system"
        if record.role == "system":
            record.findings.append(Finding("no_adsorbate", config.rules.no_adsorbate, str(error)))
        if record.role == "clean slab":
            record.slab = _part(structure, np.ones(len(structure), bool))
        return tags
    record.tagged_by, record.adsorbate = tagging.method, tagging.adsorbate
    adsorbate = tagging.tags == 2
    record.adsorbate_numbers = tuple(structure.numbers[adsorbate].tolist())
    record.slab = _part(structure, ~adsorbate)
    return tagging.tags


def _adsorbate_name(structure: Structure, config: ImportConfig, is_metal: bool) -> str:
    """The formula that the options give the adsorbate, or an empty string; a clean slab needs none."""
    if config.adsorbate_key is None:
        return config.adsorbate.replace("*", "")
    name = structure.info.get(config.adsorbate_key, "" if is_metal else None)
    if not isinstance(name, str):
        raise InputError(
            f"{structure.where}: no adsorbate formula under {config.adsorbate_key!r}; found "
            f"{', '.join(structure.info) or 'no keys'}"
        )
    return name.replace("*", "")


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


def catalyst_of(structure: Structure, slab: Bool[ndarray, "n_atoms"], what: str, folder: str) -> str:
    """Name of the catalyst of a system.

    Args:
        structure: the system.
        slab: which atoms are the slab.
        what: ``composition`` (its reduced formula), ``elements`` (joined by hyphens), ``folder``, or an info key.
        folder: of the system's file.

    Raises:
        InputError: if ``what`` is an info key that the structure does not have.
    """
    numbers = structure.numbers[slab]
    if what == "folder":
        return folder
    if what == "elements":
        return "-".join(sorted({formula_of([z]) for z in numbers.tolist()}))
    if what == "composition":
        values, counts = np.unique(numbers, return_counts=True)
        return formula_of(np.repeat(values, counts // int(np.gcd.reduce(counts))).tolist())
    if what not in structure.info:
        raise InputError(
            f"{structure.where}: no catalyst under {what!r}; split.catalysts is composition, elements, folder or an "
            f"info key; found {', '.join(structure.info) or 'no keys'}"
        )
    return str(structure.info[what])


def _split_of(frames: list[Structure], key: str, required: bool) -> str:
    """The split that all frames name; an empty string if they name none and need not.

    Raises:
        InputError: if they name none but must, or several.
    """
    names = {str(frame.info.get(key, "")) for frame in frames}
    if names == {""} and required:
        raise InputError(f"{frames[0].where}: no split under {key!r}; found {', '.join(frames[0].info) or 'no keys'}")
    if len(names) > 1:
        raise InputError(
            f"{frames[0].where}: frames of this system are in several splits ({', '.join(sorted(names))}); "
            "a system belongs to one"
        )
    return names.pop()


def _first_kept_energy(frames: list[Structure], dropped_by: Sequence[str]) -> float:
    """Energy (eV) of the first frame that is kept (one that exploded would make a poor zero), else of the first."""
    energies = [frames[i].energy for i in sorted(range(len(frames)), key=lambda i: dropped_by[i] != "")]
    return next((energy for energy in energies if energy is not None), 0.0)


def _keep_as_reference(record: Record, last: Structure, dropped_by: str, rules: Rules) -> None:
    """Keep the last frame of something without an adsorbate, if it is relaxed: its energy may be a reference."""
    if dropped_by in ("", "no_forces") and (record.fmax is None or record.fmax <= rules.fmax):
        record.last = last
    elif record.role in ("clean slab", "gas molecule"):
        why = dropped_by.replace("_", " ") or f"largest force {record.fmax:.3f} eV/Å in the last frame"
        text = f"not taken as a reference energy: {why}"
        record.findings.append(Finding("unconverged", rules.unconverged, text))


def _judged(
    record: Record, frames: list[Structure], dropped_by: Sequence[str], n_unreadable: int, rules: Rules
) -> list[Structure]:
    """The frames for S2EF; ``record`` gets what became of all."""
    actions = asdict(rules)
    if record.role == "system":
        for rule, text in _anomalies(frames, dropped_by, rules):
            record.findings.append(Finding(rule, actions.get(rule, "frames"), text))
    # An unreadable frame costs that frame only; all other findings are about the system.
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
    if "frames" not in rule_of and record.role == "system":
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


def _anomalies(frames: list[Structure], dropped_by: Sequence[str], rules: Rules) -> list[tuple[str, str]]:
    """Anomalies of the system as a relaxation: rule, and what was found in words."""
    if len(frames) == 1:
        return [("single_frame", "one frame only, so there is no relaxation")]
    found = judge(frames[0], frames[-1], rules)
    # An exploded last frame is dropped below; an initial structure is no reference that an adsorbate migrates from.
    anomalies = [(rule, text) for rule, text in found.items() if rule not in ("exploded", "migrated")]
    if dropped_by[-1] in ("exploded", "energy_jump"):
        anomalies.append((dropped_by[-1], f"the last frame is dropped ({dropped_by[-1].replace('_', ' ')})"))
    if frames[-1].energy is None and any(frame.energy is not None for frame in frames):
        anomalies.append(("no_energy", "the last frame has no energy"))
    return anomalies
