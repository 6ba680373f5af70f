"""Figures of a report: inline SVG that takes colours and fonts from the page, so that it follows dark mode; and files.

Every function gives a :class:`Drawing`, which is drawn when its SVG or its files are asked for.
"""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy import ndarray

from equicat.files import replacing_file


@dataclass(frozen=True)
class Palette:
    """Colours of text and lines, and of the series."""

    ink: str
    series: tuple[str, ...]


PAGE = Palette("#010101", ("#030301", "#030302", "#030303", "#030304", "#030305", "#030306"))
"""Stand for the page's text colour and its colours ``--series-1`` … ``--series-6``."""
FILE = Palette("#1c2128", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c7200", "#56b4e9"))
"""Colours of files are those of the light page."""
DENSITY = (0.16, 0.52, 0.80)
"""RGB of dense regions; opacity carries the density, so it reads on light and on dark."""
MAX_MARKERS = 400
"""More points than this are shown as a density."""
BINS = 90
MAX_ROWS = 20_000
"""More points than this are written to a CSV file as the counts of a density."""
POINTS_OF_A_LINE = 120
"""Points of a line that shows a distribution."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure that can be drawn."""

    draw: Callable[[Palette], Figure]
    label: str
    """For screen readers."""
    columns: Mapping[str, Sequence[Any] | ndarray]
    """The numbers by the titles of their columns, which are all as long."""

    @property
    def svg(self) -> str:
        """An ``<svg>`` element for a page."""
        return _svg(self.draw(PAGE), self.label)

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Write ``stem.svg``, ``stem.png`` and ``stem.csv``; returns the files."""
        figure = self.draw(FILE)
        for suffix in ("svg", "png"):
            with replacing_file(folder / f"{stem}.{suffix}") as temporary:
                figure.savefig(temporary, format=suffix, dpi=200)
        with (
            replacing_file(folder / f"{stem}.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows(zip(*self.columns.values(), strict=True))
        return [folder / f"{stem}.{suffix}" for suffix in ("svg", "png", "csv")]


@dataclass(frozen=True)
class Curve:
    """One line of a figure: x, y (NaN where there is no value), and the series it belongs to."""

    x: Float[ndarray, "n"]
    y: Float[ndarray, "n"]
    series: int
    dashed: bool = False
    title: str = ""


@dataclass(frozen=True)
class Scales:
    """Titles of the axes, and which of them are logarithmic where every value is positive."""

    x: str
    y: str = ""
    log_x: bool = False
    log_y: bool = False


def lines(curves: Sequence[Curve], scales: Scales, label: str, at: float | None = None) -> Drawing:
    """Lines, with markers where they are short; ``at`` is an x that is marked."""

    def draw(palette: Palette) -> Figure:
        figure, axes = _axes(palette, 3.7, 2.5)
        for curve in curves:
            shown = np.isfinite(curve.x) & np.isfinite(curve.y)
            axes.plot(
                curve.x[shown],
                curve.y[shown],
                color=palette.series[curve.series % len(palette.series)],
                linestyle=(0, (4, 2)) if curve.dashed else "-",
                marker="o" if shown.sum() < 3 else None,
                linewidth=1.6,
            )
        if at is not None:
            axes.axvline(at, color=palette.ink, linewidth=0.8, alpha=0.55)
        for axis, log, values in (
            (axes.xaxis, scales.log_x, [c.x for c in curves]),
            (axes.yaxis, scales.log_y, [c.y for c in curves]),
        ):
            if log:
                _logarithmic(axes, axis, np.concatenate(values))
        axes.set_xlabel(scales.x)
        axes.set_ylabel(scales.y)
        return figure

    columns: dict[str, Sequence[Any] | ndarray] = {
        "series": [curve.title or str(curve.series) for curve in curves for _ in curve.x],
        scales.x: np.concatenate([c.x for c in curves]),
        scales.y or "value": np.concatenate([c.y for c in curves]),
    }
    return Drawing(draw, label, columns)


def _logarithmic(axes: Axes, axis: Any, values: Float[ndarray, "n"]) -> None:
    """Make an axis logarithmic, with plain numbers at its ticks, if every finite value is positive."""
    values = values[np.isfinite(values)]
    if not len(values) or values.min() <= 0:
        return
    (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
    decades = np.log10(values.max() / values.min())
    subs = (1.0, 2.0, 3.0, 5.0, 7.0) if decades < 1 else (1.0, 2.0, 5.0) if decades < 2 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def learning_curves(curves: Sequence[Curve], x_title: str, label: str, log: bool = True) -> Drawing:
    """Lines over epochs or minutes, on a log axis if that is wanted and every value is positive."""
    return lines(curves, Scales(x_title, log_y=log), label)


def cumulative(errors: Mapping[str, Float[ndarray, "_"]], x_title: str, label: str, at: float | None = None) -> Drawing:
    """For each series the share (%) of its absolute errors below each value; ``at`` is a threshold that is marked."""
    curves = []
    shares = np.linspace(0, 1, POINTS_OF_A_LINE)
    for k, (title, values) in enumerate(errors.items()):
        finite = np.sort(np.abs(values[np.isfinite(values)]))
        if len(finite):
            x = np.quantile(finite, shares).clip(min=max(float(finite[-1]) * 1e-5, 1e-12))
            curves.append(Curve(x, 100 * shares * len(finite) / len(values), k, title=title))
    return lines(curves, Scales(x_title, "% below", log_x=True), label, at)


def parity(target: Float[ndarray, "n"], prediction: Float[ndarray, "n"], unit: str, label: str) -> tuple[Drawing, int]:
    """Prediction against target, with the diagonal; a density when there are many points.

    Returns:
        The figure, and how many points it does not show: those that are not finite or far outside the targets' range.
    """
    low, high = _limits(target, prediction)
    inside = (np.minimum(target, prediction) >= low) & (np.maximum(target, prediction) <= high)  # False where NaN
    x, y = target[inside], prediction[inside]
    counts, edges, _ = np.histogram2d(x, y, bins=BINS, range=[[low, high], [low, high]])

    def draw(palette: Palette) -> Figure:
        figure, axes = _axes(palette, 2.7, 2.55)
        axes.axline((low, low), slope=1, color=palette.ink, linewidth=0.8, alpha=0.55)
        if len(x) > MAX_MARKERS:
            opacity = np.where(counts > 0, 0.3 + 0.7 * np.log1p(counts) / np.log1p(counts.max()), 0.0)
            image = np.concatenate([np.broadcast_to(DENSITY, (BINS, BINS, 3)), opacity[..., None]], axis=-1)
            extent = (low, high, low, high)
            axes.imshow(image.swapaxes(0, 1), extent=extent, origin="lower", interpolation="nearest", aspect="equal")
        else:
            axes.scatter(x, y, s=14 if len(x) < 300 else 6, color=palette.series[0], alpha=0.55, linewidths=0)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set_xlabel(f"reference [{unit}]")
        axes.set_ylabel(f"predicted [{unit}]")
        axes.locator_params(nbins=5)
        return figure

    columns: dict[str, ndarray] = {f"reference [{unit}]": target, f"predicted [{unit}]": prediction}
    if len(target) > MAX_ROWS:
        rows, cells = np.nonzero(counts), (edges[:-1] + edges[1:]) / 2
        columns = dict(zip(columns, (cells[rows[0]], cells[rows[1]]), strict=True)) | {"count": counts[rows]}
    return Drawing(draw, label, columns), int((~inside).sum())


def _limits(target: Float[ndarray, "n"], prediction: Float[ndarray, "n"]) -> tuple[float, float]:
    """The range of nearly all targets and predictions, at most three times as wide as that of the targets."""
    good = np.isfinite(target) & np.isfinite(prediction)
    if not good.any():
        return 0.0, 1.0
    tail = 0.0 if good.sum() <= MAX_MARKERS else 0.001
    low, high = (float(v) for v in np.quantile(target[good], [tail, 1 - tail]))
    width = max(high - low, 1e-3)
    bottom, top = np.quantile(prediction[good], [0.002, 0.998])
    low, high = min(low, max(float(bottom), low - width)), max(high, min(float(top), high + width))
    margin = 0.04 * max(high - low, 1e-3)
    return low - margin, high + margin


def bars(values: Mapping[str, Sequence[float]], groups: Sequence[str], number: str, label: str) -> Drawing:
    """Horizontal bars in groups.

    Args:
        values: one number for each group (NaN leaves a gap), by series; drawn in the order given.
        groups: titles of the groups, from top to bottom.
        number: how the value at the end of a bar is formatted.
        label: for screen readers.
    """
    height = 0.22

    def draw(palette: Palette) -> Figure:
        figure, axes = _axes(palette, 4.4, 0.75 + (height * len(values) + 0.16) * len(groups))
        top = np.arange(len(groups)) * (height * len(values) + 0.16)
        for k, numbers in enumerate(values.values()):
            at = top + k * height
            color = palette.series[k % len(palette.series)]
            axes.barh(at, np.nan_to_num(np.asarray(numbers)), height=0.86 * height, color=color)
            style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "size": 7.5, "color": palette.ink}
            for y, value in zip(at, numbers, strict=True):
                if np.isfinite(value):
                    axes.annotate(format(value, number), (value, y), (3, 0), **style)
        _named_rows(axes, top + height * (len(values) - 1) / 2, groups)
        axes.margins(x=0.18)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]) if np.nanmin(_flat(values), initial=0.0) < 0 else 0.0)
        return figure

    return Drawing(draw, label, _grouped(values, groups))


def dots(values: Mapping[str, Sequence[float]], groups: Sequence[str], x_title: str, label: str) -> Drawing:
    """One row for each group with a dot for each series; NaN leaves a dot out."""

    def draw(palette: Palette) -> Figure:
        figure, axes = _axes(palette, 3.9, 0.62 + 0.21 * len(groups))
        rows = np.arange(float(len(groups)))
        table = np.array(list(values.values()), dtype=float)
        ends = np.where(np.isfinite(table), table, 0.0).max(0)
        axes.hlines(rows, 0, ends, color=palette.ink, alpha=0.15, linewidth=0.8)
        for k, numbers in enumerate(table):
            color = palette.series[k % len(palette.series)]
            axes.scatter(numbers, rows, s=26, color=color, alpha=0.85, linewidths=0, zorder=3)
        _named_rows(axes, rows, groups)
        axes.set_xlim(left=0.0)
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_xlabel(x_title)
        return figure

    return Drawing(draw, label, _grouped(values, groups))


def _named_rows(axes: Axes, at: Float[ndarray, "n"], groups: Sequence[str]) -> None:
    axes.set_yticks(at)
    axes.set_yticklabels(groups, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.invert_yaxis()


def _grouped(values: Mapping[str, Sequence[float]], groups: Sequence[str]) -> dict[str, Sequence[Any]]:
    return {
        "group": [group for _ in values for group in groups],
        "series": [title for title in values for _ in groups],
        "value": [value for numbers in values.values() for value in numbers],
    }


def _flat(values: Mapping[str, Sequence[float]]) -> ndarray:
    return np.array([v for numbers in values.values() for v in numbers], dtype=float)


def _axes(palette: Palette, width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of that size (inches) with one plain pair of axes; pyplot is not involved."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=palette.ink, alpha=0.5, linewidth=0.8)
    axes.tick_params(which="both", colors=palette.ink, labelsize=8.5, length=3, width=0.6)
    axes.grid(True, color=palette.ink, alpha=0.1, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.label.set(color=palette.ink, size=9)
    axes.yaxis.label.set(color=palette.ink, size=9)
    return figure, axes


def _svg(figure: Figure, label: str) -> str:
    """The figure as an ``<svg>`` element: text as text, colours as the page's variables, no fixed size."""
    buffer = io.StringIO()
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_facecolor("none")
    # Text stays text; ids depend on the label, so that two figures on a page do not share clip paths. The canvas prints
    # in half the time that `savefig` takes, which draws once more to find the layout.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
    svg = svg.replace(PAGE.ink, "currentColor")
    for k, color in enumerate(PAGE.series, start=1):
        svg = svg.replace(color, f"var(--series-{k})")
    return svg
