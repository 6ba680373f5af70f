"""One self-contained HTML page about a run: `equicat report`. No network, nothing but the run's own files.

:mod:`equicat.report.read` reads them; :mod:`equicat.report.content`, :mod:`~equicat.report.breakdown`,
:mod:`~equicat.report.structures` and :mod:`~equicat.report.data_section` decide what is shown, and ``page.html.j2``
turns that into HTML; it escapes every text. A page without structures to turn has no script.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from equicat import __version__
from equicat.errors import InputError, nearest
from equicat.files import replacing_file
from equicat.report import breakdown, content, structures
from equicat.report.content import Figure, Key
from equicat.report.data_section import RESTS, data_section, rests
from equicat.report.figure_files import write_figures
from equicat.report.pictures import AMPLIFIED
from equicat.report.read import Evaluation, RunFiles, read_run
from equicat.report.templates import style, template
from equicat.report.viewer import viewer
from equicat.run_directory import CONFIG, DESCRIPTION, ENVIRONMENT, EVALUATION, METRICS, PREDICTIONS, REPORT

RUN_FILES = (METRICS, CONFIG, ENVIRONMENT, DESCRIPTION, EVALUATION, PREDICTIONS)


def write_report(
    run_dir: Path, out: Path | None = None, evaluations: tuple[str, ...] = (), figures: Path | None = None
) -> Path:
    """Write the report of a run as one HTML file.

    Args:
        run_dir: Run directory, with any of :data:`RUN_FILES`. Energies in eV, forces in eV/Å.
        out: HTML file to write. Default: ``report.html`` in the run directory.
        evaluations: Names of evaluations on other data (folders in ``evaluations``) to show beside the run's own
            validation; ``all`` shows every one.
        figures: Folder for the figures as files as well: SVG, PNG and the numbers as CSV.

    Returns:
        The file written. It appears under its name only when it is complete.

    Raises:
        InputError: if the directory does not exist or has none of these files, there is no such evaluation, or ``out``
            cannot be written.
    """
    run_dir = Path(run_dir)
    run = checked_run(run_dir)
    shown = _chosen(run, run_dir, evaluations)
    out = run_dir / REPORT if out is None else Path(out)
    parts = parts_of(run, shown)
    page = render(run, parts)
    with replacing_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    if figures is not None:
        write_figures(Path(figures), _named_figures(parts))
    return out


def checked_run(run_dir: Path) -> RunFiles:
    """The files of a run directory.

    Raises:
        InputError: if there is no such directory, or it has none of :data:`RUN_FILES`.
    """
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such run directory; `equicat train` writes one")
    if not any((run_dir / name).exists() for name in RUN_FILES):
        raise InputError(f"{run_dir}: not a run directory, it has none of {', '.join(RUN_FILES)}")
    return read_run(run_dir)


def _chosen(run: RunFiles, run_dir: Path, names: Sequence[str]) -> tuple[Evaluation, ...]:
    if tuple(names) == ("all",):
        return run.others
    known = {evaluation.name: evaluation for evaluation in run.others}
    for name in names:
        if name not in known:
            raise InputError(
                f"{run_dir}: no evaluation {name!r}{nearest(name, known)}; there is {', '.join(known) or 'none'}"
            )
    return tuple(known[name] for name in names)


def parts_of(run: RunFiles, evaluations: Sequence[Evaluation] = ()) -> dict[str, Any]:
    """The parts of a page: of the validation, and of these evaluations on other data."""
    shown = (run.validation, *evaluations)
    legend, bars = content.error_by_split(shown)
    gaps, parity = content.parity(run, shown)
    examples = structures.examples(shown)
    return {
        "lead": content.lead(run),
        "facts": content.facts(run),
        "data": data_section(run),
        "rests": rests(shown),
        "results": content.results(run, shown),
        "not_shown": [evaluation.name for evaluation in run.others if evaluation not in evaluations],
        "bars_legend": legend,
        "bars": bars,
        "errors": [
            {
                "what": {"forces": "", "displacements": "Relaxed structures"}.get(errors[0].what, "Relaxed energies"),
                "legend": breakdown.legend(errors),
                "breakdowns": breakdown.breakdowns(errors),
                "distributions": breakdown.distributions(errors),
                "grades": breakdown.grades(errors),
            }
            for errors in breakdown.errors_of(shown)
        ],
        "worst_forces": structures.worst(examples, "vector_error"),
        "worst_energies": structures.worst(examples, "energy_error"),
        "moved": structures.moved(examples),
        "relaxations": structures.relaxations(examples),
        "traces": structures.traces(examples),
        "endings": structures.endings(shown),
        "curves": content.learning_curves(run),
        "parity_gaps": gaps,
        "parity": parity,
        "configuration": content.configuration(run),
        "environment": content.environment(run),
    }


def render(run: RunFiles, parts: Mapping[str, Any]) -> str:
    """The whole page as HTML; the parts are those of :func:`parts_of`."""
    turned = ("worst_forces", "worst_energies", "moved", "relaxations")
    return template("page.html.j2").render(
        name=run.name,
        style=style(),
        version=__version__,
        viewer=viewer if any(parts[name] for name in turned) else None,
        amplified=AMPLIFIED,
        arrows_legend=[Key("reference", 1), Key("predicted", 2)],
        curves_legend=[Key("validation", 1), Key("training", 2, dashed=True)],
        traces_legend=[Key("best", 1), Key("median", 2), Key("worst", 3)],
        rests_headings=RESTS,
        present={
            "errors": parts["errors"],
            "structures": parts["worst_forces"] or parts["worst_energies"],
            "relaxations": parts["relaxations"] or parts["moved"] or parts["endings"][1],
        }
        | dict.fromkeys(("results", "curves", "parity", "data", "made"), True),
        **parts,
    )


def _named_figures(parts: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Every figure of a page that is drawn from numbers, with the beginning of the name of its files."""
    yield from (("error-by-split", figure) for figure in parts["bars"])
    for errors in parts["errors"]:
        kind = errors["what"]
        for part in errors["breakdowns"]:
            yield from ((f"{kind} by {part.title}", figure) for figure in part.figures)
        yield from ((f"{kind} distribution", figure) for figure in errors["distributions"])
        yield from ((f"{kind} grade", figure) for figure in errors["grades"])
    yield from (("relaxations", figure) for figure in parts["traces"])
    for panel in parts["curves"] if isinstance(parts["curves"], list) else []:
        yield from ((f"learning by {panel.key}", figure) for figure in panel.figures)
    for quantity, drawn in parts["parity"]:
        yield from ((f"parity {quantity}", figure) for figure in drawn)
