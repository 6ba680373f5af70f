"""One self-contained HTML page about a run: `equicat report`. No network, no scripts, nothing but the run's own files.

Every section is a function from what was read to HTML, and says what is missing and how to get it when it is.
"""

import math
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy import ndarray

from equicat import __version__
from equicat.errors import InputError
from equicat.files import replacing_file
from equicat.report import figures as report_figures
from equicat.report import pictures as report_structures
from equicat.report.read import RunFiles, read_run
from equicat.tasks.tables import METRIC_FORMATS, table_columns

RUN_FILES = ("metrics.csv", "config.yaml", "environment.json", "model.json", "evaluation.json", "predictions")
CURVES = ("loss", *METRIC_FORMATS)
"""What learning curves may show, in order: columns ``train_*`` and ``val_*`` of metrics.csv."""
BAR_METRICS = ("energy_mae", "forces_mae", "positions_mae", "positions_mae_adsorbate")
QUANTITIES = (("energy", "eV", "systems"), ("forces", "eV/Å", "components"), ("displacements", "Å", "components"))
"""What parity plots show: arrays, their unit, and what a point is."""
MAX_BAR_SERIES = 4


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the report of a run as one HTML file.

    Args:
        run_dir: Run directory, with any of ``metrics.csv``, ``config.yaml``, ``environment.json``, ``model.json``,
            ``model.safetensors``, ``evaluation.json`` and ``predictions/<split>.npz``. Energies in eV, forces in eV/Å.
        out: HTML file to write. Default: ``report.html`` in the run directory.

    Returns:
        The file written. It appears under its name only when it is complete.

    Raises:
        InputError: if the directory does not exist or has none of these files, or ``out`` cannot be written.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such run directory; `equicat train` writes one")
    if not any((run_dir / name).exists() for name in RUN_FILES):
        raise InputError(f"{run_dir}: not a run directory, it has none of {', '.join(RUN_FILES)}")
    out = run_dir / "report.html" if out is None else Path(out)
    page = render(read_run(run_dir))
    with replacing_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


# ---- the page ----------------------------------------------------------------------------------------------------


def render(run: RunFiles) -> str:
    """The whole page as HTML."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    what = (header, results, relaxed_structures, error_by_split, learning_curves, parity_plots)
    how = (configuration, environment)
    body = "\n".join(section(run) for section in (*what, *how))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(run.name)} · equicat</title>
<style>
{style}</style>
</head>
<body>
{body}
<footer>Written by equicat {__version__}. Metrics are those of OC20: fixed atoms are not counted, and each number is
pooled over its split.</footer>
</body>
</html>
"""


def _missing(run: RunFiles, name: str, advice: str) -> str:
    """A paragraph in place of what ``name`` would have shown."""
    problem = run.problems.get(name, "missing")
    return f'<p class="missing"><code>{escape(name)}</code> is {escape(problem)}. {advice}</p>'


def header(run: RunFiles) -> str:
    """What was trained on what, for how long, and how large the model is."""
    model, data = run.model, run.config.get("data")
    network = _mapping_or_empty(model.get("model"))
    words = [escape(str(network.get("name", "model")).capitalize())]
    if "l_max" in network:
        words.append(f"l<sub>max</sub> {escape(str(network['l_max']))}")
    if "n_layers" in network:
        words.append(f"{escape(str(network['n_layers']))} layers")
    if "cutoff" in network:
        words.append(f"cutoff {escape(str(network['cutoff']))} Å")
    sentence = ", ".join(words)
    task = str(model.get("task") or run.config.get("task") or "")
    if task:
        sentence += f", trained for {escape(task.upper())}"
    if isinstance(data, dict) and data.get("train"):
        train = data["train"] if isinstance(data["train"], list) else [data["train"]]
        sentence += " on " + ", ".join(f"<code>{escape(str(path))}</code>" for path in train)
    reference = _energy_reference(run)
    if reference:
        sentence += f". Energies are <b>{escape(reference)}</b> energies"
    facts = "".join(f"<div><dt>{title}</dt><dd>{value}</dd></div>" for title, value in _facts(run))
    facts = f'<dl class="facts">{facts}</dl>' if facts else ""
    return f'<header>\n<h1>{escape(run.name)}</h1>\n<p class="lead">{sentence}.</p>\n{facts}\n</header>'


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    """Titles and values (HTML) of the tiles at the top."""
    facts = []
    if run.n_parameters is not None:
        facts.append(("parameters", f"{run.n_parameters:,}".replace(",", "\u202f")))
    elements = _mapping_or_empty(run.model.get("statistics")).get("elements")
    if isinstance(elements, list) and all(isinstance(z, int) and 0 < z < len(chemical_symbols) for z in elements):
        symbols = " ".join(chemical_symbols[z] for z in elements[:12]) + (" …" if len(elements) > 12 else "")
        facts.append(("elements", f"{len(elements)}<small>{escape(symbols)}</small>"))
    for column, title, text in (("epoch", "epochs", _count), ("time_s", "training time", _duration)):
        seen = run.metrics.get(column, np.array([]))
        if np.isfinite(seen).any():
            facts.append((title, text(float(np.nanmax(seen)))))
    for metric in ("energy_mae", "forces_mae", "positions_mae"):
        seen = run.metrics.get(f"val_{metric}", np.array([]))
        if np.isfinite(seen).any():
            shown = METRIC_FORMATS[metric]
            facts.append((f"best validation {escape(shown.title)}", shown.text(float(np.nanmin(seen)))))
    return facts


def _count(last_epoch: float) -> str:
    return f"{last_epoch + 1:.0f}"  # epochs count from 0


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _energy_reference(run: RunFiles) -> str:
    return str(run.evaluation.get("energy_reference") or run.model.get("energy_reference") or "")


def _mapping_or_empty(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


# ---- results -----------------------------------------------------------------------------------------------------


def results(run: RunFiles) -> str:
    """The table of every split: the model first, then the baselines; the best of each column in bold."""
    html = ["<section>", "<h2>Results</h2>"]
    if not run.evaluation:
        advice = f"Run <code>equicat evaluate {escape(run.name)} --data PATH</code> to compare it with the baselines."
        return "\n".join([*html, _missing(run, "evaluation.json", advice), "</section>"])
    reference = _energy_reference(run)
    note = f"Energies: {escape(reference)}. " if reference else ""
    html.append(f'<p class="soft">{note}The best of each column is bold; × is the ratio to the best baseline.</p>')
    for split, result in run.evaluation["splits"].items():
        counts = [
            (result.get(key), word) for key, word in (("n_systems", "structures"), ("n_free_atoms", "free atoms"))
        ]
        size = ", ".join(f"{number:,} {word}" for number, word in counts if isinstance(number, int))
        html += [f"<h3>{escape(split)}<small>{size}</small></h3>", _table(result["rows"])]
    return "\n".join([*html, "</section>"])


def _table(rows: Mapping[str, Mapping[str, float | None]]) -> str:
    columns = table_columns(rows)
    head = "".join(f'<th scope="col">{escape(METRIC_FORMATS[name].title)}</th>' for name in columns)
    best = {name: _best([row.get(name) for row in rows.values()], name) for name in columns}
    baseline = {name: _best([row.get(name) for row in list(rows.values())[1:]], name) for name in columns}
    body = []
    for k, (title, row) in enumerate(rows.items()):
        cells = []
        for name in columns:
            value = row.get(name)
            mark = ' class="best"' if value is not None and value == best[name] else ""
            text = escape(METRIC_FORMATS[name].text(value))
            reference = baseline[name]
            if k == 0 and value is not None and reference and not METRIC_FORMATS[name].higher_is_better:
                text += f"<small>{value / reference:#.2g} ×</small>"
            cells.append(f"<td{mark}>{text}</td>")
        kind = ' class="model"' if k == 0 else ""
        body.append(f'<tr{kind}><th scope="row">{escape(title)}</th>{"".join(cells)}</tr>')
    head = f'<tr><th scope="col"></th>{head}</tr>'
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(body)}</tbody></table></div>'


def _best(values: Iterable[float | None], metric: str) -> float | None:
    """The best of the finite values."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return None
    return max(finite) if METRIC_FORMATS[metric].higher_is_better else min(finite)


def relaxed_structures(run: RunFiles) -> str:
    """Where atoms go, and where the model says they go: the systems of each split that move most."""
    figures = []
    for split, arrays in run.predictions.items():
        for relaxation in report_structures.relaxations(arrays):
            caption = f"<b>{escape(relaxation.name)}</b><br>{escape(split)}"
            figures.append(_figure(caption, report_structures.picture(relaxation)))
    if not figures:
        return ""
    legend = _legend([("reference", 1, False), ("predicted", 2, False)])
    text = (
        f"Initial structures; arrows show displacements, {report_structures.AMPLIFIED:g} times as long. Of each split "
        "those systems are shown whose free atoms move most."
    )
    return (
        f'<section>\n<h2>Relaxed structures</h2>\n<p class="soft">{text}</p>\n{legend}\n'
        f'<div class="figures small">{"".join(figures)}</div>\n</section>'
    )


def error_by_split(run: RunFiles) -> str:
    """Bars of the mean absolute errors by split, the model beside the baselines."""
    splits = _mapping_or_empty(run.evaluation.get("splits"))
    titles = list(dict.fromkeys(title for result in splits.values() for title in result["rows"]))[:MAX_BAR_SERIES]
    figures = []
    for metric in BAR_METRICS:
        values = {t: [_number(r["rows"].get(t, {}).get(metric)) for r in splits.values()] for t in titles}
        if np.isfinite(np.array(list(values.values()), dtype=float)).any():
            shown = METRIC_FORMATS[metric]
            svg = report_figures.bars(
                values, list(splits), f".{max(shown.decimals - 1, 1)}f", f"{shown.title} by split"
            )
            figures.append(_figure(f"<b>{escape(shown.title)}</b>", svg))
    if not figures:
        return ""
    legend = _legend([(title, k + 1, False) for k, title in enumerate(titles)])
    return f'<section>\n<h2>Error by split</h2>\n{legend}\n<div class="figures">{"".join(figures)}</div>\n</section>'


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


def _legend(entries: Iterable[tuple[str, int, bool]]) -> str:
    """Titles with their series' number and whether the line is dashed."""
    items = (
        f'<span><i style="color:var(--series-{k})"{" class=dashed" if dashed else ""}></i>{escape(title)}</span>'
        for title, k, dashed in entries
    )
    return f'<div class="legend">{"".join(items)}</div>'


# ---- curves and parity -------------------------------------------------------------------------------------------


def learning_curves(run: RunFiles) -> str:
    """Training and validation against epochs and against time; a switch without scripts chooses."""
    html = ["<section>", "<h2>Learning curves</h2>"]
    axes = {
        "epoch": ("epoch", run.metrics.get("epoch"), "epoch"),
        "time": ("time", _minutes(run.metrics.get("time_s")), "training time [min]"),
    }
    panels = {key: _curve_figures(run, x, title) for key, (_, x, title) in axes.items() if x is not None}
    panels = {key: figures for key, figures in panels.items() if figures}
    if not panels:
        advice = "Training writes it after its first epoch."
        return "\n".join([*html, _missing(run, "metrics.csv", advice), "</section>"])
    first = next(iter(panels))
    html += [
        f'<input type="radio" name="x" id="x-{key}"{" checked" if key == first else ""} aria-label="against {key}">'
        for key in panels
    ]
    if len(panels) > 1:
        labels = "".join(f'<label for="x-{key}">against {axes[key][0]}</label>' for key in panels)
        html.append(f'<div class="switch">{labels}</div>')
    html.append(_legend([("validation", 1, False), ("training", 2, True)]))
    html += [f'<div class="figures by-{key}">{"".join(figures)}</div>' for key, figures in panels.items()]
    return "\n".join([*html, "</section>"])


def _minutes(seconds: ndarray | None) -> ndarray | None:
    return None if seconds is None else seconds / 60


def _curve_figures(run: RunFiles, x: ndarray, x_title: str) -> list[str]:
    figures = []
    for name in CURVES:
        columns = [(run.metrics.get(f"{stage}_{name}"), k) for k, stage in enumerate(("val", "train"))]
        lines = [
            report_figures.Curve(x, y * _scale(name), series=k, dashed=k == 1)
            for y, k in columns
            if y is not None and (np.isfinite(x) & np.isfinite(y)).any()
        ]
        if lines:
            shown = METRIC_FORMATS.get(name)
            title, is_error = (name, True) if shown is None else (shown.title, not shown.higher_is_better)
            svg = report_figures.learning_curves(lines, x_title, f"{title} against {x_title}", log=is_error)
            figures.append(_figure(f"<b>{escape(title)}</b>", svg))
    return figures


def _scale(name: str) -> float:
    return METRIC_FORMATS[name].scale if name in METRIC_FORMATS else 1.0


def parity_plots(run: RunFiles) -> str:
    """Predicted against reference energies and components of the vectors of free atoms, by split."""
    html = ["<section>", "<h2>Parity</h2>", '<p class="soft">Vectors are those of free atoms, by component.</p>']
    damaged = [name for name in run.problems if name.startswith("predictions/")]
    html += [_missing(run, name, "Evaluate again to write it.") for name in damaged]
    if not run.predictions and not damaged:
        advice = "<code>equicat evaluate</code> writes the predictions of every split there."
        html.append(_missing(run, "predictions", advice))
    for quantity, unit, what in QUANTITIES:
        figures = []
        for split, arrays in run.predictions.items():
            if f"{quantity}_true" in arrays:
                target, prediction = (arrays[f"{quantity}_{k}"].astype(float).ravel() for k in ("true", "pred"))
                svg, hidden = report_figures.parity(target, prediction, unit, f"{quantity} parity, {split}")
                note = f", {hidden:,} outside the frame" if hidden else ""
                figures.append(_figure(f"<b>{escape(split)}</b><br>{len(target):,} {what}{note}", svg))
        if figures:
            html += [f"<h3>{quantity.capitalize()}</h3>", f'<div class="figures small">{"".join(figures)}</div>']
    return "\n".join([*html, "</section>"])


# ---- how it was made ---------------------------------------------------------------------------------------------


def configuration(run: RunFiles) -> str:
    """The resolved configuration, folded away."""
    if not run.config_text:
        text = _missing(run, "config.yaml", "It is written when training starts.")
    else:
        warning = _missing(run, "config.yaml", "Shown as it is.") if "config.yaml" in run.problems else ""
        folded = f"<pre>{escape(run.config_text.rstrip())}</pre>"
        text = f"{warning}<details><summary>config.yaml</summary>{folded}</details>"
    return f"<section>\n<h2>Configuration</h2>\n{text}\n</section>"


def environment(run: RunFiles) -> str:
    """Versions, commit and machine."""
    if not run.environment:
        text = _missing(run, "environment.json", "It is written when training starts.")
    else:
        rows = "".join(
            f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
            for name, value in _flattened(run.environment)
        )
        text = f'<div class="scroll"><table class="plain"><tbody>{rows}</tbody></table></div>'
    return f"<section>\n<h2>Environment</h2>\n{text}\n</section>"


def _flattened(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested values as (name, text), one level of names: {versions: {torch: 2}} gives (torch, 2)."""
    rows = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flattened(value)
        else:
            rows.append((str(name), ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)))
    return rows
