"""The table of all metrics, one row each; their sums over a data set; and a plain text table of results.

A new metric is a function in :mod:`equicat.tasks.metrics` and a row of :data:`METRICS`: tables, metrics.csv, the
progress bar and the figures of a report take what they show from here.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from equicat.data.batch import Batch
from equicat.errors import InputError, nearest
from equicat.tasks import metrics
from equicat.tasks.metrics import Mean, Values

FEW_SYSTEMS = 10
"""An error from fewer systems than this says little about the next one."""


@dataclass(frozen=True)
class Metric:
    """One metric: what it is computed from and how, how it is written, which direction is better, where it appears."""

    name: str
    function: Callable[[Values, Values, Batch], Mean]
    """A function of prediction, target and batch."""
    quantities: tuple[str, ...]
    """Fields of :class:`~equicat.tasks.metrics.Values` that must be predicted for the metric to exist."""
    title: str
    unit: str
    """Written behind the title; a share in per cent is kept as a number between 0 and 1."""
    decimals: int = 4
    higher_is_better: bool = False
    root: bool = False
    """Whether the metric is the square root of the pooled mean (RMSE)."""
    shown: str = ""
    """Places where the metric appears, as words: ``table`` of results, ``log`` (metrics.csv), ``bars`` by split in a
    report, ``headline`` of a report and of the progress bar."""

    @property
    def heading(self) -> str:
        """Title and unit: ``energy MAE [eV]``."""
        return f"{self.title} [{self.unit}]" if self.unit else self.title

    @property
    def factor(self) -> float:
        """The value times this is the number that is shown."""
        return 100.0 if self.unit == "%" else 1.0

    def text(self, value: float | None) -> str:
        """The number as shown; a dash when there is none."""
        return "–" if value is None else f"{value * self.factor:.{self.decimals}f}"

    def is_shown(self, place: str) -> bool:
        """Whether the metric appears in ``table``, ``log``, ``bars`` or ``headline``."""
        return place in self.shown.split()


def _share(name: str, function: Callable, quantities: tuple[str, ...], title: str, shown: str = "") -> Metric:
    return Metric(name, function, quantities, title, "%", decimals=2, higher_is_better=True, shown=shown)


def _rows() -> tuple[Metric, ...]:
    energy, forces, stress, displacements = ("energy",), ("forces",), ("stress",), ("displacements",)
    m, everywhere = metrics, "table log bars headline"
    return (
        Metric("energy_mae", m.energy_mae, energy, "energy MAE", "eV", shown=everywhere),
        Metric("energy_rmse", m.energy_mse, energy, "energy RMSE", "eV", root=True),
        Metric("energy_per_atom_mae", m.energy_per_atom_mae, energy, "energy MAE", "eV/atom", decimals=5, shown="log"),
        _share("energy_within_threshold", m.energy_within_threshold, energy, "EwT", "table"),
        Metric("forces_mae", m.forces_mae, forces, "force MAE", "eV/Å", shown=everywhere),
        Metric("forces_rmse", m.forces_mse, forces, "force RMSE", "eV/Å", root=True, shown="log"),
        Metric(
            "forces_cosine_similarity",
            m.forces_cosine_similarity,
            forces,
            "force cos",
            "",
            decimals=3,
            higher_is_better=True,
            shown="table log",
        ),
        Metric("forces_magnitude_error", m.forces_magnitude_error, forces, "force magnitude error", "eV/Å"),
        _share(
            "energy_forces_within_threshold",
            m.energy_forces_within_threshold,
            ("energy", "forces"),
            "EFwT",
            "table",
        ),
        Metric("stress_mae", m.stress_mae, stress, "stress MAE", "eV/Å³", decimals=6, shown=everywhere),
        Metric("stress_rmse", m.stress_mse, stress, "stress RMSE", "eV/Å³", decimals=6, root=True, shown="log"),
        Metric("positions_mae", m.positions_mae, displacements, "free-atom MAE", "Å", shown=everywhere),
        Metric("positions_mae_all_atoms", m.positions_mae_all_atoms, displacements, "all-atom MAE", "Å", shown="table"),
        Metric(
            "positions_mae_adsorbate",
            m.positions_mae_adsorbate,
            displacements,
            "adsorbate MAE",
            "Å",
            shown="table log bars",
        ),
        Metric("positions_rmse", m.positions_mse, displacements, "position RMSE", "Å", root=True),
        _share(
            "positions_average_distance_within_threshold",
            m.positions_average_distance_within_threshold,
            displacements,
            "ADwT",
            "table log",
        ),
        _share("force_below_threshold", m.force_below_threshold, ("reference_forces",), "FbT"),
        _share(
            "average_force_below_threshold", m.average_force_below_threshold, ("reference_forces",), "AFbT", "table"
        ),
    )


METRICS: dict[str, Metric] = {row.name: row for row in _rows()}
"""All metrics by name, in the order in which tables and figures show them."""


def metrics_of(quantities: Iterable[str]) -> tuple[Metric, ...]:
    """The metrics that can be computed where these fields of ``Values`` are predicted."""
    predicted = set(quantities)
    return tuple(m for m in METRICS.values() if predicted.issuperset(m.quantities))


def metrics_shown(place: str) -> tuple[Metric, ...]:
    """The metrics that appear in ``table``, ``log``, ``bars`` or ``headline``."""
    return tuple(metric for metric in METRICS.values() if metric.is_shown(place))


def sum_and_count(total: Shaped[Tensor, ""], count: int | float | Shaped[Tensor, ""]) -> Float64[Tensor, "2"]:
    """Both as one tensor on the device of the sum, made there."""
    total = total.detach().double()
    return torch.stack([total, count.to(total) if isinstance(count, Tensor) else torch.full_like(total, count)])


class MetricSums:
    """Metrics of a data set, added batch by batch. Its whole state is one float64 tensor, so ranks can be summed.

    The quantities are fixed at the start, so that a rank that saw no batch has the same state shape as the others::

        sums = MetricSums(("energy", "forces"))
        for batch in …: sums.add(prediction, target, batch)
        torch.distributed.all_reduce(sums.state)
        sums.compute()["forces_mae"]
    """

    def __init__(self, quantities: Iterable[str], place: str | None = None) -> None:
        """All metrics of these quantities, or those that are shown at a place (:meth:`Metric.is_shown`)."""
        self.metrics = tuple(m for m in metrics_of(quantities) if place is None or m.is_shown(place))
        self.state: Float64[Tensor, "n_metrics 2"] = torch.zeros(len(self.metrics), 2, dtype=torch.float64)
        """Sum and count of each metric."""

    def add(self, prediction: Values, target: Values, batch: Batch) -> None:
        """Add the metrics of one batch."""
        self.state += self.rows(prediction, target, batch).to(self.state.device)

    def rows(self, prediction: Values, target: Values, batch: Batch) -> Float64[Tensor, "n_metrics 2"]:
        """The part of the state that one batch contributes, on its device, where nothing waits for it."""
        means = [metric.function(prediction, target, batch) for metric in self.metrics]
        return torch.stack([sum_and_count(mean.total, mean.numel) for mean in means])

    def compute(self) -> dict[str, float]:
        """Every metric by name; NaN if nothing was counted."""
        values = {}
        for metric, (total, count) in zip(self.metrics, self.state.tolist(), strict=True):
            mean = total / count if count else math.nan
            values[metric.name] = math.sqrt(mean) if metric.root else mean
        return values


def table_columns(
    rows: Mapping[str, Mapping[str, float | None]], columns: Sequence[str] | None = None
) -> tuple[Metric, ...]:
    """The metrics to show for ``rows``: ``columns`` as given, else those of the table that a row has.

    Raises:
        InputError: if a column is no metric.
    """
    for name in columns or ():
        if name not in METRICS:
            raise InputError(f"no metric {name!r}{nearest(name, METRICS)}; the metrics are {', '.join(METRICS)}")
    if columns:
        return tuple(METRICS[name] for name in columns)
    return tuple(m for m in metrics_shown("table") if any(m.name in row for row in rows.values()))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text in columns: the first column begins, all others end, at one place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return ["  ".join(line).rstrip() for line in cells]


def format_table(
    rows: Mapping[str, Mapping[str, float | None]],
    columns: Sequence[str] | None = None,
    energy_reference: str | None = None,
) -> str:
    """A plain text table: one row per model or baseline, one column per metric, titles with units.

    Args:
        rows: values as :meth:`MetricSums.compute` returns them, by row title. A missing metric shows as a dash.
        columns: metric names, in order; by default those of the table that some row has.
        energy_reference: what the energies are (``adsorption``, ``total``, ``relative``), for the table's last line.

    Raises:
        InputError: if a column is no known metric.
    """
    shown = table_columns(rows, columns)
    lines = [["", *(metric.heading for metric in shown)]]
    lines += [[title, *(metric.text(row.get(metric.name)) for metric in shown)] for title, row in rows.items()]
    text = aligned(lines)
    text.insert(1, "  ".join("─" * max(map(len, column)) for column in zip(*lines, strict=True)))
    if energy_reference is not None:
        text.append(f"Energies: {energy_reference}. Fixed atoms are not counted.")
    return "\n".join(text)


def amount(n_structures: int, n_systems: int) -> str:
    """How much data there is, counted in systems (relaxations): ``6 systems``, or ``23 frames of 1 system``."""
    systems = f"{n_systems:,} system{'s' if n_systems != 1 else ''}"
    return systems if n_structures == n_systems else f"{n_structures:,} frames of {systems}"
