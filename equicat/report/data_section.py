"""The section of a page about the data of a run, and about how far its errors can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from equicat.report.content import Missing, mapping_or_empty, missing, named_splits
from equicat.report.read import Evaluation, RunFiles
from equicat.run_directory import DATA
from equicat.tasks.tables import FEW_SYSTEMS, amount

MAX_COLUMNS = 24
"""Catalysts (or adsorbates) of the table of combinations; with more, those with most systems are listed alone."""
MAX_NAMED = 12


@dataclass(frozen=True)
class Combinations:
    """How many systems there are of each adsorbate on each catalyst."""

    across: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    summary: str
    """One sentence with the most frequent ones, where there are too many for a table; else empty."""


@dataclass(frozen=True)
class DataSection:
    """Training and validation data, as a page shows them."""

    rows: tuple[tuple[str, str, str], ...]
    """Title, training data, validation data."""
    combinations: Combinations | None
    set_aside: str
    listed: tuple[tuple[str, str], ...]
    """Systems that were set aside, wholly or in part, and why."""
    trust: tuple[str, ...]


RESTS = ("split", "systems", "structures", "trained on", "chose the checkpoint", "findings outside the training data")
"""Headings of the table of :func:`rests`."""


def data_section(run: RunFiles) -> DataSection | Missing:
    """Sizes, references, adsorbates and catalysts, what was set aside, and what the errors are worth."""
    if not run.data:
        return missing(run, DATA, "Trainings keep in it what they were trained on; earlier versions did not.")
    train, val = run.data["train"], run.data["val"]
    rows = [(title, say(train), say(val)) for title, say in _ROWS.items()]
    aside = mapping_or_empty(train.get("set_aside"))
    reasons = ", ".join(
        f"{n} {str(rule).replace('_', ' ')}" for rule, n in mapping_or_empty(aside.get("reasons")).items()
    )
    listed = [
        (str(entry.get("system", "")), "; ".join(map(str, entry.get("reasons", []))))
        for entry in aside.get("listed", [])
        if isinstance(entry, dict)
    ]
    said = ""
    if aside:
        counts = {"system": aside.get("systems", 0), "frame": aside.get("frames", 0)}
        numbers = [f"{n:,} {word}{'s' if n != 1 else ''}" for word, n in counts.items() if n]
        said = f"{' and '.join(numbers) or 'nothing'} left out"
        said += f" ({reasons})" if reasons else ""
    return DataSection(
        tuple(row for row in rows if row[1] or row[2]),
        _combinations(run),
        said,
        tuple(listed),
        tuple(_trust(run)),
    )


def rests(shown: Sequence[Evaluation]) -> tuple[tuple[str, ...], ...]:
    """How many systems the errors of each split rest on, and how many of them the model knew."""

    def text(value: Any) -> str:
        return f"{value:,}" if isinstance(value, int) else "–"

    return tuple(
        (
            name,
            *(text(result.get(key)) for key in ("n_systems", "n_structures", "n_trained_on", "n_chose_checkpoint")),
            "–" if result.get("relaxations") else text(len(result.get("outside_training") or ())),
        )
        for name, result, _ in named_splits(shown)
        if result
    )


def _place(part: dict[str, Any]) -> str:
    drawn = " (a part of the training data, drawn at random)" if part.get("drawn_from_training_data") else ""
    return f"{part.get('path', '')}{drawn}"


def _references(part: dict[str, Any]) -> str:
    energies = mapping_or_empty(part.get("reference_energies"))
    values = ", ".join(f"{name} {value:.4f} eV" for name, value in energies.items() if isinstance(value, int | float))
    return f"{part.get('energy_reference', '')}{f'; subtracted: {values}' if values else ''}"


def _counted(part: dict[str, Any]) -> str:
    return "by sid" if part.get("has_ids") else "no sid: frames of one file with the same atoms and cell are one system"


_ROWS = {
    "from": _place,
    "size": lambda part: amount(part["n_structures"], part["n_systems"]),
    "systems counted": _counted,
    "elements": lambda part: " ".join(map(str, part.get("elements", []))),
    "energies": _references,
    "description": lambda part: str(part.get("description", "")),
}


def _combinations(run: RunFiles) -> Combinations | None:
    domain = mapping_or_empty(run.model.get("domain"))
    adsorbates, catalysts = (mapping_or_empty(domain.get(name)) for name in ("adsorbates", "catalysts"))
    table = mapping_or_empty(domain.get("systems"))
    if not adsorbates:
        return None
    summary = f"{_most(adsorbates, 'adsorbates', 'clean slab')} on {_most(catalysts, 'catalysts', 'no slab')}"
    if not table or min(len(adsorbates), len(catalysts)) > MAX_COLUMNS:
        return Combinations((), (), summary)
    transposed = len(catalysts) > MAX_COLUMNS
    down, across = (catalysts, adsorbates) if transposed else (adsorbates, catalysts)

    def number(row: str, column: str) -> int:
        adsorbate, catalyst = (column, row) if transposed else (row, column)
        return int(table.get(adsorbate, {}).get(catalyst, 0))

    empty = ("no slab", "clean slab") if transposed else ("clean slab", "no slab")
    rows = tuple((name or empty[0], tuple(number(name, other) for other in across)) for name in down)
    return Combinations(tuple(name or empty[1] for name in across), rows, "")


def _most(counts: dict[str, int], what: str, empty: str) -> str:
    """The names with most systems, and how many names there are."""
    names = sorted(counts, key=lambda name: -counts[name])
    more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
    return f"{len(names):,} {what} ({', '.join(f'{n or empty} {counts[n]:,}' for n in names[:MAX_NAMED])}{more})"


def _trust(run: RunFiles) -> list[str]:
    """Sentences on what the errors of the page are worth."""
    val = run.data["val"]
    n = val["n_systems"]
    said = [f"The validation errors are those of {amount(val['n_structures'], n)}, which also chose the checkpoint."]
    split = run.validation.splits.get("val", {})
    known = split.get("n_trained_on")
    if known:
        said.append(f"{known:,} of these systems were trained on, so new systems will have larger errors.")
    if n < FEW_SYSTEMS:
        said.append("So few systems say little about the next one; expect errors several times as large.")
    said.append(
        "They hold for systems like those trained on. Of others, equicat's predictions warn where they "
        "can tell: elements that were never neighbours, shorter distances, unseen adsorbates and catalysts."
    )
    if run.energy_reference == "adsorption" and "" not in mapping_or_empty(run.model.get("domain")).get(
        "adsorbates", {"": 0}
    ):
        said.append(
            "No clean slab was among the training data: use slabs of the size trained on, or take the model's own "
            "clean slab off (--minus_clean_slab true)."
        )
    return said
