"""The report of an import, which accounts for every frame of every file: text for people, JSON for programs."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from equicat.data.vasp import is_vasp
from equicat.sources.dft.record import IN_S2EF, ONLY_IN_IS2RE, Record
from equicat.sources.dft.settle import Settled

MAX_LINES = 20
"""Systems listed on the screen; the report file lists all."""


@dataclass
class Report:
    """An import in numbers.

    Raises:
        AssertionError: when a frame is neither kept nor listed as dropped; that is a defect of equicat.
    """

    records: list[Record]
    settled: Settled
    """The meaning of the energies."""
    splits: dict[str, dict[str, int]]
    """Systems (IS2RE, IS2RS) and frames (S2EF) written to each split."""
    subsets: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Files that were found but not read, and why."""
    energy_key: str | None = None
    """Info key that the energies were read from; None for the calculator's energy."""

    def __post_init__(self) -> None:
        fates = Counter(fate for record in self.records for fate in record.fates)
        for record in self.records:
            assert len(record.fates) == len(record.fids) == record.n_frames, record.sid
        assert fates.total() == sum(record.n_frames for record in self.records)
        # As many frames and systems were written as the records say were kept.
        assert sum(n["frames"] - n["repeated_frames"] for n in self.splits.values()) == fates[IN_S2EF]
        assert sum(n["systems"] for n in self.splits.values()) == len(self._relaxed())

    def _relaxed(self) -> list[Record]:
        return [record for record in self.records if record.initial is not None]

    def counts(self) -> dict[str, int]:
        """Files, systems and frames: those read, those kept, those dropped."""
        dropped = sum((record.dropped for record in self.records), Counter())
        relaxed = len(self._relaxed())
        roles = Counter(record.role for record in self.records if record.role in ("clean slab", "gas molecule"))
        frames_only = sum(r.initial is None and r.n_s2ef > 0 and r.role not in roles for r in self.records)
        n_frames = sum(record.n_frames for record in self.records)
        return {
            "files": len({file for record in self.records for file in record.files}),
            "systems": len(self.records),
            "systems_is2re": relaxed,
            "systems_s2ef_only": frames_only,
            "clean_slabs": roles["clean slab"],
            "gas_molecules": roles["gas molecule"],
            "systems_dropped": len(self.records) - relaxed - frames_only - roles.total(),
            "frames": n_frames,
            "frames_kept": n_frames - dropped.total(),
            "frames_s2ef": sum(record.n_s2ef for record in self.records),
            "frames_is2re_only": sum(record.fates.count(ONLY_IN_IS2RE) for record in self.records),
            "frames_dropped": dropped.total(),
        }

    def jumps(self) -> dict[str, Any]:
        """Lattice jumps removed, and the largest displacement (Å) with and without them."""
        before = max(self.records, key=lambda record: record.displacement_before)
        after = max(self.records, key=lambda record: record.displacement_after)
        return {
            "undone": sum(record.n_jumps for record in self.records),
            "systems": sum(record.n_jumps > 0 for record in self.records),
            "largest_displacement_before": before.displacement_before,
            "largest_displacement_before_in": before.sid,
            "largest_displacement_after": after.displacement_after,
            "largest_displacement_after_in": after.sid,
        }

    def by_rule(self) -> dict[str, dict[str, int]]:
        """Numbers of frames dropped, systems found, systems kept for S2EF only and systems dropped by each rule.

        A rule that found nothing is left out.
        """
        table: dict[str, dict[str, int]] = defaultdict(
            lambda: {"frames_dropped": 0, "systems_found": 0, "systems_s2ef_only": 0, "systems_dropped": 0}
        )
        for record in self.records:
            for rule, n in record.dropped.items():
                table[rule]["frames_dropped"] += n
            for rule in {finding.rule for finding in record.findings} | set(record.dropped):
                table[rule]["systems_found"] += 1
            for rule, action in {(finding.rule, finding.action) for finding in record.findings}:
                if action == "frames":
                    table[rule]["systems_s2ef_only"] += 1
            for rule in set(record.fates) if record.n_s2ef == 0 and record.initial is None else ():
                table[rule]["systems_dropped"] += 1
        return dict(sorted(table.items()))

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "format_version": 1,
            "energies": self.settled.text,
            "energies_read": self._energies_read(),
            "counts": self.counts(),
            "lattice_jumps": self.jumps(),
            "rules": self.by_rule(),
            "splits": self.splits,
            "subsets": self.subsets,
            "notes": self.notes,
            "files_skipped": self.skipped,
            "files": _by_file(self.records),
            "systems": [_system(record) for record in self.records],
        }

    def as_text(self, max_lines: int | None = None) -> str:
        """The report to read; ``max_lines`` limits the lists of systems, None gives all and the list of files."""
        n, jumps = self.counts(), self.jumps()
        lines = [
            ", ".join(_n_of(n[f"{what}s"], what) for what in ("file", "system", "frame")),
            f"frames:  {n['frames']:,} in = {n['frames_kept']:,} kept ({n['frames_s2ef']:,} for S2EF, "
            f"{n['frames_is2re_only']:,} only as an initial or relaxed structure) + {n['frames_dropped']:,} dropped",
            f"systems: {n['systems']:,} in = {n['systems_is2re']:,} for IS2RE and IS2RS + "
            f"{n['systems_s2ef_only']:,} for S2EF only + {n['systems_dropped']:,} dropped{_without_adsorbate(n)}",
            f"energies: {self.settled.text}",
            *self._energies_read(),
            f"lattice jumps: {jumps['undone']:,} undone in {_n_of(jumps['systems'], 'system')}; largest displacement "
            f"{jumps['largest_displacement_before']:.2f} Å before ({jumps['largest_displacement_before_in']}), "
            f"{jumps['largest_displacement_after']:.2f} Å after ({jumps['largest_displacement_after_in']})",
            f"fixed atoms from: {_tally(record.fixed_by for record in self.records)}",
            f"tags from: {_tally(record.tagged_by for record in self.records)}",
        ]
        unknown = sum(record.fmax is None for record in self._relaxed())
        if unknown:
            lines.append(f"not checked for convergence, without forces: {_n_of(unknown, 'system')}")
        lines += ["", *_table("split", self.splits)]
        lines += ["", *_table("subset", self.subsets)] if self.subsets else []
        lines += [f"  {note}" for note in (*self.notes, *self._slab_notes())]
        title, *rows = self._adsorption_energies()
        lines += self._listed(title, rows, max_lines)
        lines += ["", *self._rule_lines()]
        lines += self._listed("systems with findings", [t for r in self.records for t in _finding_lines(r)], max_lines)
        files = [f"{file}: {_file_text(entry)}" for file, entry in _by_file(self.records).items()]
        files += [f"{file}: not read, {reason}" for file, reason in self.skipped.items()]
        return "\n".join(lines + (self._listed("files", files, None) if max_lines is None else []))

    def _energies_read(self) -> list[str]:
        """A line on which of VASP's energies were read, if there are files of VASP."""
        if not any(is_vasp(file) for record in self.records for file in record.files):
            return []
        same = "gas and slab energies must be of the same kind"
        if self.energy_key is None:
            return [f"read from VASP: energy(sigma->0), not TOTEN; {same} (--energy_key free_energy reads TOTEN)"]
        return [f"read from VASP: TOTEN; {same}"] if self.energy_key == "free_energy" else []

    def _slab_notes(self) -> list[str]:
        """Lines on repeated frames of clean slabs, and on clean slabs that have an energy but no frame."""
        if not self.settled.formed:
            return []
        notes = [
            f"{name}: repeated frames of clean slabs: {n['repeated_frames']:,}, so that a model learns that these have "
            "0 eV (--clean_slab_share)"
            for name, n in self.splits.items()
            if n["repeated_frames"]
        ]
        kept = {record.sid for record in self.records if record.role == "clean slab" and record.n_s2ef}
        missing = {r.slab_reference for r in self._relaxed() if r.clean_slab not in kept}
        if missing:
            notes.append(
                f"{_n_of(len(missing), 'clean slab')} not among the S2EF frames (no structure with forces, or left "
                "out), so a model trained on these data need not give them 0 eV; docs/import.md says what to do"
            )
        return notes

    def _adsorption_energies(self) -> list[str]:
        """A title, and for each relaxed system its adsorption energy and what that is measured against."""
        if self.settled.kind != "adsorption":
            return [""]
        rows = [("system", "adsorbate", "E_ads [eV]", "gas reference", "clean slab")]
        for r in self._relaxed():
            energy = "unknown" if r.relaxed_energy is None else f"{r.relaxed_energy:.4f}"
            gas = f"{r.adsorbate} = {r.gas_reference} = {r.gas_energy:.4f} eV" if r.gas_reference else ""
            slab = f"{r.slab_energy:.4f} eV, {r.slab_reference}" if r.slab_reference else ""
            rows.append((r.sid, r.adsorbate, energy, gas, slab))
        if len(rows) == 1:
            return [""]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return ["adsorption energies of relaxed systems", *lines]

    def _rule_lines(self) -> list[str]:
        lines = [f"{'rule':<18}{'frames dropped':>15}{'systems found':>15}{'S2EF only':>11}{'dropped':>9}"]
        for rule, n in self.by_rule().items():
            numbers = (n["frames_dropped"], n["systems_found"], n["systems_s2ef_only"], n["systems_dropped"])
            lines.append(f"{rule:<18}{numbers[0]:>15,}{numbers[1]:>15,}{numbers[2]:>11,}{numbers[3]:>9,}")
        return lines if len(lines) > 1 else ["no rule found anything"]

    @staticmethod
    def _listed(title: str, entries: Sequence[str], max_lines: int | None) -> list[str]:
        if not entries:
            return []
        shown = entries if max_lines is None else entries[:max_lines]
        more = len(entries) - len(shown)
        return ["", f"{title}:", *(f"  {entry}" for entry in shown), *([f"  and {more:,} more"] if more else [])]


def _n_of(n: int, what: str) -> str:
    """A number of things: ``1 system``, ``2 systems``."""
    return f"{n:,} {what}{'s' if n != 1 else ''}"


def _tally(words: Iterable[str]) -> str:
    counts = Counter(word or "not looked for" for word in words)
    return "; ".join(f"{word} ({n:,})" for word, n in counts.most_common())


def _without_adsorbate(n: dict[str, int]) -> str:
    """Numbers of clean slabs and molecules, if there are any."""
    names = ("clean_slabs", "gas_molecules")
    return "".join(f" + {n[name]:,} {name.replace('_', ' ')}" for name in names if n[name])


def _table(title: str, splits: dict[str, dict[str, int]]) -> list[str]:
    with_slabs = any(n["clean_slabs"] for n in splits.values())
    lines = [f"{title:<14}{'IS2RE systems':>14}{'S2EF frames':>13}{'clean slabs':>13}"]
    lines += [f"{name:<14}{n['systems']:>14,}{n['frames']:>13,}{n['clean_slabs']:>13,}" for name, n in splits.items()]
    return lines if with_slabs else [line[:41] for line in lines]


def _finding_lines(record: Record) -> list[str]:
    if record.role == "gas molecule" and record.last is not None:
        return []  # that its energy is a reference is as it should be
    lines = [f"{record.sid}: {f.rule.replace('_', ' ')} ({_done(f.action)}): {f.text}" for f in record.findings]
    said = {finding.rule for finding in record.findings if finding.action == "drop"}
    silent = [f"{n} {rule.replace('_', ' ')}" for rule, n in sorted(record.dropped.items()) if rule not in said]
    return [*lines, *([f"{record.sid}: frames dropped: {', '.join(silent)}"] if silent else [])]


def _done(action: str) -> str:
    return {"drop": "dropped", "frames": "S2EF only", "keep": "kept", "error": "error"}.get(action, action)


def _by_file(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """For each file its systems, and the frames of these. Files that make up one system together are one entry."""
    files: dict[str, dict[str, Any]] = {}
    for record in records:
        entry = files.setdefault(
            ", ".join(record.files), {"systems": 0, "frames": 0, "frames_kept": 0, "dropped": Counter()}
        )
        entry["systems"] += 1
        entry["frames"] += record.n_frames
        entry["frames_kept"] += record.n_frames - record.dropped.total()
        entry["dropped"] += record.dropped
    return files


def _file_text(entry: dict[str, Any]) -> str:
    dropped = ", ".join(f"{n} {rule.replace('_', ' ')}" for rule, n in sorted(entry["dropped"].items()))
    return (
        f"{_n_of(entry['systems'], 'system')}, {_n_of(entry['frames'], 'frame')} in = {entry['frames_kept']} kept + "
        f"{entry['frames'] - entry['frames_kept']} dropped{f' ({dropped})' if dropped else ''}"
    )


def _system(record: Record) -> dict[str, Any]:
    dropped: dict[str, list[int | None]] = defaultdict(list)
    for fid, fate in zip(record.fids, record.fates, strict=True):
        if fate in record.dropped:
            dropped[fate].append(fid)
    return {
        "sid": record.sid,
        "files": list(record.files),
        "split": record.split or None,
        "is2re": record.initial is not None,
        "frames": record.n_frames,
        "frames_s2ef": record.n_s2ef,
        "frames_is2re_only": record.fates.count(ONLY_IN_IS2RE),
        "frames_dropped": dropped,
        "findings": [asdict(finding) for finding in record.findings],
        "role": record.role,
        "adsorbate": record.adsorbate,
        "catalyst": record.catalyst,
        "tags_from": record.tagged_by,
        "fixed_atoms_from": record.fixed_by,
        "lattice_jumps": record.n_jumps,
        "largest_displacement_before": record.displacement_before,
        "largest_displacement_after": record.displacement_after,
        "fmax_last": record.fmax,
        "relaxed_energy": record.relaxed_energy,
        "subtracted_energy": record.zero,
        "gas_reference": record.gas_reference or None,
        "gas_energy": record.gas_energy if record.gas_reference else None,
        "slab_reference": record.slab_reference or None,
        "slab_energy": record.slab_energy if record.slab_reference else None,
    }
