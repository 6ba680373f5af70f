"""One self-contained HTML page about a run: `equicat report`. No network, no scripts, nothing but the run's own files.

:mod:`equicat.report.read` reads them, :mod:`equicat.report.content` decides what is shown, and ``page.html.j2`` turns
that into HTML; it escapes every text.
"""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from equicat import __version__
from equicat.errors import InputError, nearest
from equicat.files import replacing_file
from equicat.report import content
from equicat.report.content import Key
from equicat.report.data_section import data_section
from equicat.report.pictures import AMPLIFIED
from equicat.report.read import Evaluation, RunFiles, read_run
from equicat.report.templates import template
from equicat.run_directory import CONFIG, DESCRIPTION, ENVIRONMENT, EVALUATION, METRICS, PREDICTIONS, REPORT

RUN_FILES = (METRICS, CONFIG, ENVIRONMENT, DESCRIPTION, EVALUATION, PREDICTIONS)


def write_report(run_dir: Path, out: Path | None = None, evaluations: tuple[str, ...] = ()) -> Path:
    """Write the report of a run as one HTML file.

    Args:
        run_dir: Run directory, with any of :data:`RUN_FILES`. Energies in eV, forces in eV/Å.
        out: HTML file to write. Default: ``report.html`` in the run directory.
        evaluations: Names of evaluations on other data (folders in ``evaluations``) to show beside the run's own
            validation; ``all`` shows every one.

    Returns:
        The file written. It appears under its name only when it is complete.

    Raises:
        InputError: if the directory does not exist or has none of these files, there is no such evaluation, or ``out``
            cannot be written.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such run directory; `equicat train` writes one")
    if not any((run_dir / name).exists() for name in RUN_FILES):
        raise InputError(f"{run_dir}: not a run directory, it has none of {', '.join(RUN_FILES)}")
    run = read_run(run_dir)
    shown = _chosen(run, run_dir, evaluations)
    out = run_dir / REPORT if out is None else Path(out)
    page = render(run, shown)
    with replacing_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


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


def render(run: RunFiles, evaluations: Sequence[Evaluation] = ()) -> str:
    """The whole page as HTML: the validation, and these evaluations on other data."""
    shown = (run.validation, *evaluations)
    legend, bars = content.error_by_split(shown)
    gaps, parity = content.parity(run, shown)
    return template("page.html.j2").render(
        name=run.name,
        style=Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8")),
        version=__version__,
        lead=content.lead(run),
        facts=content.facts(run),
        data=data_section(run),
        results=content.results(run, shown),
        not_shown=[evaluation.name for evaluation in run.others if evaluation not in evaluations],
        relaxed=content.relaxed_structures(shown),
        relaxed_legend=[Key("reference", 1), Key("predicted", 2)],
        amplified=AMPLIFIED,
        bars_legend=legend,
        bars=bars,
        curves=content.learning_curves(run),
        curves_legend=[Key("validation", 1), Key("training", 2, dashed=True)],
        parity_gaps=gaps,
        parity=parity,
        configuration=content.configuration(run),
        environment=content.environment(run),
    )
