"""`equicat data import`: a group's own relaxations become a data set.

From files to trajectories, one at a time (``trajectories``); each is unwrapped (``unwrap``), tagged (``tagging``),
referenced (``references``) and judged (``rules``) in ``relaxation``; then the systems are divided into splits and
written as :mod:`equicat.data.datasets` describes. ``report`` says what became of every frame.
"""

import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import accumulate, chain
from pathlib import Path

from tqdm import tqdm

from equicat.data.directory import write_split
from equicat.data.info import DatasetInfo
from equicat.data.store import Store, write_store
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.files import replacing_directory, write_json
from equicat.sources.dft.config import ImportConfig
from equicat.sources.dft.examine import Record, examine, settle_energies
from equicat.sources.dft.references import References, csv_rows, load_references
from equicat.sources.dft.report import Report
from equicat.sources.dft.rules import Rules
from equicat.sources.dft.trajectories import each_once, find_files, pairs, trajectories
from equicat.sources.splits import Assignment, Kind, SplitConfig, assign

__all__ = ["ImportConfig", "Rules", "import_dataset"]

MAX_ERRORS = 5
"""Problems named in one message."""

ENERGIES = {
    ("adsorption", True): "adsorption: E(slab with adsorbate) - E(clean slab) - gas references.",
    ("adsorption", False): "adsorption: as the files have them, nothing subtracted.",
    ("total", False): "total: as the files have them.",
    ("relative", False): "relative: the first frame kept of each system is zero.",
}
"""By kind, and whether references were subtracted."""


def import_dataset(out: str | Path, config: ImportConfig, *, overwrite: bool = False, progress: bool = False) -> Report:
    """Write the data set: ``out/s2ef/<split>``, ``out/is2re/<split>``, subsets of the training data that lie in each
    other under ``out/subsets/<n>``, ``out/dataset.json``, and the report as ``out/import.txt`` and ``out/import.json``.

    In memory are one trajectory at a time and the initial and relaxed structure of each system.

    Raises:
        InputError: if ``out`` exists and ``overwrite`` is False, if a file is missing, if a rule whose action is error
            finds something (systems and advice are named), or if nothing is left.
    """
    slab_files, _ = find_files(config.slab_files)
    references = load_references(config.references, config.slab_table, slab_files, config.energy_key)
    kind = _energy_reference(config, references)
    files, skipped = find_files(config.files)
    found = chain(
        trajectories(files, config.energy_key, config.sid_key, config.join),
        pairs(config.initial, config.relaxed, config.energy_key, config.sid_key),
    )
    with replacing_directory(Path(out), overwrite) as temporary:
        records: list[Record] = []

        def kept_frames() -> Iterator[Structure]:
            for trajectory in tqdm(each_once(found), desc="reading", unit="system", disable=not progress):
                record, frames = examine(trajectory, config, kind, references)
                records.append(record)
                yield from frames

        scratch = _scratch(temporary / "scratch", kept_frames())
        _refuse(records)
        notes = _notes(records)
        assignment = _assign([r for r in records if r.initial is not None or r.n_s2ef], config.split)
        info = _info(config, kind, references, records)
        splits, subsets = _write(temporary, records, scratch, assignment, info)
        shutil.rmtree(temporary / "scratch", ignore_errors=True)
        report = Report(records, ENERGIES[kind, bool(references)], splits, subsets, notes, skipped)
        report.notes += assignment.notes
        write_json(temporary / "dataset.json", {"format_version": 1, **asdict(info), "splits": splits})
        write_json(temporary / "import.json", report.as_json())
        (temporary / "import.txt").write_text(report.as_text() + "\n", encoding="utf-8")
    return report


def _energy_reference(config: ImportConfig, references: References) -> str:
    """What the energies of the data set will be.

    Raises:
        InputError: if adsorption energies are wanted but there is nothing to form them with.
    """
    kind = config.energy_reference or ("adsorption" if references else "total")
    if kind == "adsorption" and not references and config.energy_key is None:
        raise InputError(
            "adsorption energies need references (--references FILE, --slab_files), or, if the files hold adsorption "
            "energies already, the key that they are under (--energy_key); else choose total or relative"
        )
    if kind != "adsorption" and references:
        raise InputError(f"references are given, but energy_reference is {kind}; leave one of them out")
    return kind


def _scratch(path: Path, frames: Iterator[Structure]) -> Store | None:
    """All frames that are kept, in a store to copy the splits from; None if there are none."""
    first = next(frames, None)
    if first is None:
        return None
    write_store(path, chain([first], frames), DatasetInfo())
    return Store(path)


def _refuse(records: Sequence[Record]) -> None:
    """Stop at what must not pass silently.

    Raises:
        InputError: for findings whose action is error, the same ones together; or if nothing is left.
    """
    errors: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in records:
        for finding in record.findings:
            if finding.action == "error":
                errors[finding.rule, finding.text].append(record.sid)
    if errors:
        texts = [f"{text} ({_systems(sids)})" for (_, text), sids in errors.items()]
        more = f"; and {len(texts) - MAX_ERRORS} more problems" if len(texts) > MAX_ERRORS else ""
        options = " ".join(sorted({f"--rules.{rule} drop" for rule, _ in errors}))
        raise InputError(f"{'; '.join(texts[:MAX_ERRORS])}{more}. To leave out such systems: {options}")
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
    """What a task lacks."""
    notes = []
    if not any(record.n_s2ef for record in records):
        notes.append("no S2EF data: no frame has both an energy and forces")
    has_energies = settle_energies(records)
    if not any(record.initial is not None for record in records):
        notes.append("no IS2RE and IS2RS data: no system has both an initial and a relaxed structure that count")
    elif not has_energies:
        notes.append("no relaxed energies, so the is2re directory serves IS2RS only")
    return notes


def _assign(records: Sequence[Record], config: SplitConfig) -> Assignment:
    """Every system to a split; ``record.split`` gets its name."""
    given = None
    if config.name is not None:
        given = {record.sid: config.name for record in records}
    elif config.key is not None:
        given = {record.sid: record.split for record in records}
    elif config.file is not None:
        table = {sid.strip(): name.strip() for sid, name in csv_rows(config.file, "system id, split")}
        absent = [record.sid for record in records if record.sid not in table]
        if absent:
            raise InputError(f"{config.file}: no split for {_systems(absent)} ({len(absent)} of {len(records)})")
        given = {record.sid: table[record.sid] for record in records}
    for sid, name in (given or {}).items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise InputError(f"system {sid}: {name!r} cannot be a split; use letters, digits, - and _")
    kinds = [Kind(record.sid, record.adsorbate, record.catalyst, record.elements) for record in records]
    assignment = assign(kinds, config, given)
    split_of = {sid: name for name, sids in assignment.splits.items() for sid in sids}
    for record in records:
        record.split = split_of[record.sid]
    return assignment


def _info(config: ImportConfig, kind: str, references: References, records: Sequence[Record]) -> DatasetInfo:
    names = sorted({*(Path(f).name for f in (*config.files, *config.initial))})
    slabs = {r.slab_reference: r.slab_energy for r in records if r.slab_reference}
    return DatasetInfo(
        energy_reference=kind,
        reference_energies=dict(references.gas),
        description=f"Imported from {', '.join(names[:3])}{' ...' if names[3:] else ''}. "
        f"{ENERGIES[kind, bool(references)]}",
        provenance={"generator": "equicat data import", "config": asdict(config), "slab_energies": slabs},
    )


def _write(
    root: Path, records: Sequence[Record], scratch: Store | None, assignment: Assignment, info: DatasetInfo
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]]]:
    """Splits and subsets, and their numbers of systems and frames."""
    ends = list(accumulate((record.n_s2ef for record in records), initial=0))
    position = {record.sid: i for i, record in enumerate(records)}

    def frames(sids: Iterable[str]) -> Iterator[Structure]:
        for i in (position[sid] for sid in sids):
            for k in range(ends[i], ends[i + 1]):
                assert scratch is not None
                yield scratch[k]

    def initial(sids: Iterable[str]) -> Iterator[Structure]:
        found = (records[position[sid]].initial for sid in sids)
        return (structure for structure in found if structure is not None)

    splits = {
        name: write_split(root, name, frames(sids), initial(sids), info) for name, sids in assignment.splits.items()
    }
    subsets = {}
    for n in assignment.subsets:
        sids = assignment.splits["train"][:n]
        subsets[str(n)] = write_split(root / "subsets" / str(n), "train", frames(sids), initial(sids), info)
    return splits, subsets
