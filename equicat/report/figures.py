"""Figures of a report as inline SVG that takes its colours and fonts from the page, so that it follows dark mode."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy import ndarray

INK = "#010101"
"""Stands for the page's text colour."""
SERIES = ("#030301", "#030302", "#030303", "#030304", "#030305", "#030306")
"""Stand for the page's colours ``--series-1`` … ``--series-6``."""
DENSITY = (0.16, 0.52, 0.80)
"""RGB of dense regions; opacity carries the density, so it reads on light and on dark."""
MAX_MARKERS = 1500
"""More points than this are shown as a density."""
BINS = 90


@dataclass(frozen=True)
class Curve:
    """One line of a figure of learning curves: x, y (NaN where there is no value), and the series it belongs to."""

    x: Float[ndarray, "n"]
    y: Float[ndarray, "n"]
    series: int
    dashed: bool = False


def learning_curves(curves: Sequence[Curve], x_title: str, label: str, log: bool = True) -> str:
    """Lines over epochs or minutes, on a log axis if that is wanted and every value is positive."""
    figure, axes = _axes(3.7, 2.5)
    values = np.concatenate([c.y[np.isfinite(c.y)] for c in curves])
    for curve in curves:
        shown = np.isfinite(curve.x) & np.isfinite(curve.y)
        marker = "o" if shown.sum() < 3 else None
        axes.plot(
            curve.x[shown],
            curve.y[shown],
            color=SERIES[curve.series],
            linestyle=(0, (4, 2)) if curve.dashed else "-",
            marker=marker,
            linewidth=1.6,
        )
    if log and len(values) and values.min() > 0:
        axes.set_yscale("log")
        decades = np.log10(values.max() / values.min())
        subs = (1.0, 2.0, 3.0, 5.0, 7.0) if decades < 1 else (1.0, 2.0, 5.0) if decades < 2 else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(x_title)
    return _svg(figure, label)


def parity(target: Float[ndarray, "n"], prediction: Float[ndarray, "n"], unit: str, label: str) -> tuple[str, int]:
    """Prediction against target, with the diagonal; a density when there are many points.

    Returns:
        The figure, and how many points it does not show: those that are not finite or far outside the targets' range.
    """
    figure, axes = _axes(2.7, 2.55)
    low, high = _limits(target, prediction)
    inside = (np.minimum(target, prediction) >= low) & (np.maximum(target, prediction) <= high)  # False where NaN
    x, y = target[inside], prediction[inside]
    axes.axline((low, low), slope=1, color=INK, linewidth=0.8, alpha=0.55)
    if len(x) > MAX_MARKERS:
        counts, _, _ = np.histogram2d(x, y, bins=BINS, range=[[low, high], [low, high]])
        opacity = np.where(counts > 0, 0.3 + 0.7 * np.log1p(counts) / np.log1p(counts.max()), 0.0)
        image = np.concatenate([np.broadcast_to(DENSITY, (BINS, BINS, 3)), opacity[..., None]], axis=-1)
        axes.imshow(
            image.swapaxes(0, 1), extent=(low, high, low, high), origin="lower", interpolation="nearest", aspect="equal"
        )
    else:
        size = 14 if len(x) < 300 else 6
        axes.scatter(x, y, s=size, color=SERIES[0], alpha=0.55, linewidths=0)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set_xlabel(f"reference [{unit}]")
    axes.set_ylabel(f"predicted [{unit}]")
    axes.locator_params(nbins=5)
    return _svg(figure, label), int((~inside).sum())


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


def bars(values: Mapping[str, Sequence[float]], groups: Sequence[str], number: str, label: str) -> str:
    """Horizontal bars in groups.

    Args:
        values: one number for each group (NaN leaves a gap), by series; drawn in the order given.
        groups: titles of the groups, from top to bottom.
        number: how the value at the end of a bar is formatted.
        label: for screen readers.
    """
    height = 0.22
    figure, axes = _axes(4.4, 0.75 + (height * len(values) + 0.16) * len(groups))
    top = np.arange(len(groups)) * (height * len(values) + 0.16)
    for k, numbers in enumerate(values.values()):
        at = top + k * height
        axes.barh(at, np.nan_to_num(np.asarray(numbers)), height=0.86 * height, color=SERIES[k % len(SERIES)])
        for y, value in zip(at, numbers, strict=True):
            if np.isfinite(value):
                axes.annotate(
                    format(value, number),
                    (value, y),
                    (3, 0),
                    textcoords="offset points",
                    va="center",
                    size=7.5,
                    color=INK,
                )
    axes.set_yticks(top + height * (len(values) - 1) / 2)
    axes.set_yticklabels(groups, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.margins(x=0.18)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]) if np.nanmin(_flat(values), initial=0.0) < 0 else 0.0)
    axes.invert_yaxis()
    return _svg(figure, label)


def _flat(values: Mapping[str, Sequence[float]]) -> ndarray:
    return np.array([v for numbers in values.values() for v in numbers], dtype=float)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of that size (inches) with one plain pair of axes; pyplot is not involved."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=INK, alpha=0.5, linewidth=0.8)
    axes.tick_params(which="both", colors=INK, labelsize=8.5, length=3, width=0.6)
    axes.grid(True, color=INK, alpha=0.1, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.label.set(color=INK, size=9)
    axes.yaxis.label.set(color=INK, size=9)
    return figure, axes


def _svg(figure: Figure, label: str) -> str:
    """The figure as an ``<svg>`` element: text as text, colours as the page's variables, no fixed size."""
    buffer = io.StringIO()
    # Text stays text; ids depend on the label, so that two figures on a page do not share clip paths.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
    svg = svg.replace(INK, "currentColor")
    for k, color in enumerate(SERIES, start=1):
        svg = svg.replace(color, f"var(--series-{k})")
    return svg
