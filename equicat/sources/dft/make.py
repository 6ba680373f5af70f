"""`equicat data import`: a group's own relaxations become a data set.

Relaxations are read one at a time (``trajectories``), unwrapped (``unwrap``), tagged (``tagging``) and judged
(``rules``) in ``examine``, which notes everything in a ``record``. When all are read, ``settle`` decides what is
subtracted from the energies; then the systems are divided into splits and written as :mod:`equicat.data.directory`
describes. ``report`` says what became of every frame.
"""

import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path

from equicat.data.directory import subset_path, write_description, write_split
from equicat.data.info import DatasetInfo
from equicat.data.labels import LabelKeys
from equicat.data.store import Store, write_store
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.files import replacing_directory, write_json
from equicat.sources.dft.clean_slabs import from_slab_files, is_used_by, place, repeats
from equicat.sources.dft.config import ImportConfig
from equicat.sources.dft.examine import examine
from equicat.sources.dft.record import Record
from equicat.sources.dft.references import ReferenceFiles, load_references
from equicat.sources.dft.report import Report
from equicat.sources.dft.rules import Rules
from equicat.sources.dft.settle import Settled, check_wishes, settle
from equicat.sources.dft.tables import csv_entries
from equicat.sources.dft.trajectories import Found, each_once, find_files, pairs, trajectories
from equicat.sources.splits import Assignment, Kind, SplitConfig, assign
from equicat.terminal.progress import progress_bar

__all__ = ["ImportConfig", "Rules", "import_dataset"]

MAX_ERRORS = 5
"""Problems named in one message."""


def import_dataset(out: str | Path, config: ImportConfig, *, overwrite: bool = False, progress: bool = False) -> Report:
    """Write the data set: ``out/s2ef/<split>``, ``out/is2re/<split>``, subsets of the training data that lie in each
    other under ``out/subsets/<n>``, ``out/dataset.json``, and the report as ``out/import.txt`` and ``out/import.json``.

    In memory are one trajectory at a time and the initial and relaxed structure of each system.

    Raises:
        InputError: if ``out`` exists and ``overwrite`` is False, if a file is missing, if a rule whose action is error
            finds something (systems and advice are named), or if nothing is left.
    """
    slab_files, gas_files = find_files(config.slab_files), find_files(config.gas_files)
    files = ReferenceFiles(config.references, config.slab_table, slab_files.files, gas_files.files)
    given = load_references(files, _keys(config))
    check_wishes(config, given)
    found = find_files(config.files)
    with replacing_directory(Path(out), overwrite) as temporary:
        kept = _read(temporary / "scratch", config, found, progress)
        settled = settle(kept.records, config, given)
        _refuse(kept.records)
        if settled.formed and config.clean_slab_share:
            kept.add(from_slab_files(kept.records, given))
        notes = [*found.notes, *slab_files.notes, *gas_files.notes, *settled.notes, *_notes(kept.records)]
        assignment = _assign(kept.records, config.split)
        info = _info(config, settled, kept.records)
        splits, subsets = _write(temporary, kept, assignment, info, config.clean_slab_share if settled.formed else 0.0)
        shutil.rmtree(temporary / "scratch", ignore_errors=True)
        notes += assignment.notes
        report = Report(kept.records, settled, splits, subsets, notes, found.skipped, config.energy_key)
        write_description(temporary, info, splits)
        write_json(temporary / "import.json", report.as_json())
        (temporary / "import.txt").write_text(report.as_text() + "\n", encoding="utf-8")
    return report


@dataclass
class Kept:
    """All systems, and the frames of them that are kept, with total energies."""

    records: list[Record]
    scratch: Store | None
    """The frames of the files; None if there are none."""
    added: dict[str, Structure] = field(default_factory=dict)
    """Frames of systems that were added later, by system id."""

    def add(self, systems: Iterable[tuple[Record, Structure]]) -> None:
        """Add systems of one frame each."""
        for record, frame in systems:
            self.records.append(record)
            self.added[record.sid] = frame

    def frames(self, records: Iterable[Record], repeats: Mapping[str, int]) -> Iterator[Structure]:
        """The S2EF frames of some systems, with the energies that the data set has.

        Args:
            records: of the systems.
            repeats: how often the frames of a system come, by system id; once where it is not given.
        """
        for record in (record for record in records if record.n_s2ef):
            for _ in range(repeats.get(record.sid, 1)):
                own = [self.added[record.sid]] if record.sid in self.added else map(self.stored, record.rows)
                for frame in own:
                    assert frame.energy is not None
                    yield replace(frame, energy=frame.energy - record.zero)

    def stored(self, row: int) -> Structure:
        """One of the frames of the files."""
        assert self.scratch is not None
        return self.scratch[row]

    @staticmethod
    def initial(records: Iterable[Record]) -> Iterator[Structure]:
        """The initial structures of those systems that count for IS2RE and IS2RS, with the energies of the data set."""
        for record in records:
            if record.initial is not None:
                yield replace(record.initial, relaxed_energy=record.relaxed_energy)


def _keys(config: ImportConfig) -> LabelKeys:
    """The labels that an import uses, and where they stand in the files."""
    return LabelKeys(config.energy_key, config.forces_key, ("energy", "forces"))


def _read(scratch: Path, config: ImportConfig, found: Found, progress: bool) -> Kept:
    """Read all files; frames that are kept go to a store at ``scratch``."""
    records: list[Record] = []
    keys = _keys(config)
    relaxations = chain(
        trajectories(found.files, keys, config.sid_key, config.join),
        pairs(config.initial, config.relaxed, keys, config.sid_key),
    )

    def kept_frames() -> Iterator[Structure]:
        n_frames = 0
        for trajectory in progress_bar(each_once(relaxations), desc="reading", unit="system", disable=not progress):
            record, frames = examine(trajectory, config)
            record.rows = range(n_frames, n_frames + len(frames))
            n_frames += len(frames)
            records.append(record)
            yield from frames

    frames = kept_frames()
    first = next(frames, None)
    if first is None:
        return Kept(records, None)
    write_store(scratch, chain([first], frames), DatasetInfo())
    return Kept(records, Store(scratch))


def _refuse(records: Sequence[Record]) -> None:
    """Stop at what must not pass silently.

    Raises:
        InputError: for findings whose action is error, the same ones together; or if nothing is left.
    """
    errors: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for finding in record.findings:
            if finding.action == "error":
                # Missing references are told apart, other findings of one rule are one problem.
                known = errors[finding.rule]
                text = finding.text if finding.rule == "no_reference" else next(iter(known), finding.text)
                known[text].append(record.sid)
    problems = [f"{text} ({_systems(sids)})" for known in errors.values() for text, sids in known.items()]
    if problems:
        options = " ".join(f"--rules.{rule} drop" for rule in sorted(errors))
        advice = f"To leave out such systems: {options}"
        if len(problems) == 1:
            raise InputError(f"{problems[0]}. {advice}")
        more = [f"and {len(problems) - MAX_ERRORS} more problems"] if len(problems) > MAX_ERRORS else []
        raise InputError(f"{len(problems)} problems in the files", [*problems[:MAX_ERRORS], *more, advice])
    if not any(record.initial is not None or record.n_s2ef for record in records):
        reasons = [finding.text for record in records for finding in record.findings]
        dropped = sum((record.dropped for record in records), Counter())
        counts = ", ".join(f"{n} {rule}" for rule, n in dropped.items()) or "no frames"
        raise InputError(
            f"nothing is left of {len(records)} systems: frames dropped: {counts}{f'; {reasons[0]}' if reasons else ''}"
        )


def _systems(sids: Sequence[str]) -> str:
    return f"system {sids[0]}" if len(sids) == 1 else f"systems {', '.join(sids[:3])}{' ...' if sids[3:] else ''}"


def _notes(records: list[Record]) -> list[str]:
    """Notes on tasks that get no data."""
    notes = []
    if not any(record.n_s2ef for record in records):
        notes.append("no S2EF data: no frame has both an energy and forces")
    has_energies = _settle_relaxed_energies(records)
    if not any(record.initial is not None for record in records):
        notes.append("no IS2RE and IS2RS data: no system has both an initial and a relaxed structure that count")
    elif not has_energies:
        notes.append("no relaxed energies, so the is2re directory serves IS2RS only")
    return notes


def _settle_relaxed_energies(records: Sequence[Record]) -> bool:
    """Whether relaxed energies are known; systems without one are left out of IS2RE and IS2RS if others have one."""
    systems = [record for record in records if record.initial is not None]
    known = [record for record in systems if record.relaxed_energy is not None]
    if known:
        for record in systems:
            if record not in known:
                record.leave_out_of_is2re("no_energy", "no relaxed energy, which other systems have")
    return bool(known)


def _assign(records: Sequence[Record], config: SplitConfig) -> Assignment:
    """Every system to a split; ``record.split`` gets its name."""
    left = [record for record in records if record.initial is not None or record.n_s2ef]
    # Without systems with adsorbates, a data set of clean slabs or molecules is divided like any other.
    systems = [record for record in left if record.role == "system"] or left
    given = _given_splits(left, systems, config)
    for sid, name in given.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise InputError(f"system {sid}: {name!r} cannot be a split; use letters, digits, - and _")
    kinds = [Kind(record.sid, record.adsorbate, record.catalyst, record.elements) for record in systems]
    assignment = assign(kinds, config, given or None)
    split_of = {sid: name for name, sids in assignment.splits.items() for sid in sids}
    for record in systems:
        record.split = split_of[record.sid]
    place([record for record in left if record not in systems], systems, assignment, given)
    return assignment


def _given_splits(left: Sequence[Record], systems: Sequence[Record], config: SplitConfig) -> dict[str, str]:
    """Splits by system id that are not to be drawn; every one of ``systems`` has one then, the rest may have one."""
    if config.name is not None:
        return {record.sid: config.name for record in left}
    if config.key is not None:
        return {record.sid: record.split for record in left if record.split}
    if config.file is None:
        return {}
    table: dict[str, str] = {}
    for sid, name, where in csv_entries(config.file, "system id, split"):
        if table.setdefault(sid, name) != name:
            raise InputError(f"{where}: system {sid} is in {name}, and in {table[sid]} before; a system belongs to one")
    absent = [record.sid for record in systems if record.sid not in table]
    if absent:
        raise InputError(f"{config.file}: no split for {_systems(absent)} ({len(absent)} of {len(systems)})")
    return {record.sid: table[record.sid] for record in left if record.sid in table}


def _info(config: ImportConfig, settled: Settled, records: Sequence[Record]) -> DatasetInfo:
    names = sorted({*(Path(f).name for f in (*config.files, *config.initial))})
    slabs = {record.slab_reference: record.slab_energy for record in records if record.slab_energy}
    gas = {name: energy.value for name, energy in settled.references.gas.items()} if settled.formed else {}
    return DatasetInfo(
        energy_reference=settled.kind,
        reference_energies=gas,
        description=f"Imported from {', '.join(names[:3])}{' ...' if names[3:] else ''}. {settled.text}",
        provenance={"generator": "equicat data import", "config": asdict(config), "slab_energies": slabs},
    )


def _write(
    root: Path, kept: Kept, assignment: Assignment, info: DatasetInfo, clean_slab_share: float
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]]]:
    """Splits and subsets, and their numbers of systems and frames."""
    by_sid = {record.sid: record for record in kept.records}

    def written(folder: Path, name: str, records: Sequence[Record]) -> dict[str, int]:
        again = repeats(records, clean_slab_share) if name == "train" else {}
        counts = write_split(folder, name, kept.frames(records, again), kept.initial(records), info)
        counts["clean_slabs"] = sum(record.role == "clean slab" for record in records)
        counts["repeated_frames"] = sum((again.get(record.sid, 1) - 1) * record.n_s2ef for record in records)
        return counts

    members = {name: [by_sid[sid] for sid in sids] for name, sids in assignment.splits.items()}
    splits = {name: written(root, name, records) for name, records in members.items()}
    subsets = {}
    for n in assignment.subsets:
        systems = members["train"][:n]
        slabs = [record for record in members["train"][n:] if is_used_by(record, systems)]
        subsets[str(n)] = written(subset_path(root, n), "train", [*systems, *slabs])
    return splits, subsets
