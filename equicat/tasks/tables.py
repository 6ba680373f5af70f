"""Metrics as people read them: titles with units, decimals, which direction is better, and a plain text table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from equicat.errors import InputError, nearest


@dataclass(frozen=True)
class MetricFormat:
    """How a metric is shown: a column title with its unit, a factor, decimals, and which direction is better."""

    title: str
    scale: float = 1.0
    decimals: int = 4
    higher_is_better: bool = False

    def text(self, value: float | None) -> str:
        """The number as shown; a dash when there is none."""
        return "–" if value is None else f"{value * self.scale:.{self.decimals}f}"


def _share(title: str) -> MetricFormat:
    return MetricFormat(f"{title} [%]", scale=100.0, decimals=2, higher_is_better=True)


METRIC_FORMATS: dict[str, MetricFormat] = {
    "energy_mae": MetricFormat("energy MAE [eV]"),
    "energy_rmse": MetricFormat("energy RMSE [eV]"),
    "energy_per_atom_mae": MetricFormat("energy MAE [eV/atom]", decimals=5),
    "energy_within_threshold": _share("EwT"),
    "forces_mae": MetricFormat("force MAE [eV/Å]"),
    "forces_rmse": MetricFormat("force RMSE [eV/Å]"),
    "forces_cosine_similarity": MetricFormat("force cos", decimals=3, higher_is_better=True),
    "forces_magnitude_error": MetricFormat("force magnitude error [eV/Å]"),
    "energy_forces_within_threshold": _share("EFwT"),
    "positions_mae": MetricFormat("free-atom MAE [Å]"),
    "positions_mae_all_atoms": MetricFormat("all-atom MAE [Å]"),
    "positions_mae_adsorbate": MetricFormat("adsorbate MAE [Å]"),
    "positions_rmse": MetricFormat("position RMSE [Å]"),
    "positions_average_distance_within_threshold": _share("ADwT"),
    "force_below_threshold": _share("FbT"),
    "average_force_below_threshold": _share("AFbT"),
}
TABLE_COLUMNS = (
    "energy_mae",
    "energy_within_threshold",
    "forces_mae",
    "forces_cosine_similarity",
    "energy_forces_within_threshold",
    "positions_mae",
    "positions_mae_all_atoms",
    "positions_mae_adsorbate",
    "positions_average_distance_within_threshold",
    "average_force_below_threshold",
)
"""Columns of a table when the caller names none; those that no row has are left out."""


def table_columns(rows: Mapping[str, Mapping[str, float | None]], columns: Sequence[str] | None = None) -> list[str]:
    """The metrics to show for ``rows``: ``columns`` as given, else those of :data:`TABLE_COLUMNS` that a row has.

    Raises:
        InputError: if a column is not in :data:`METRIC_FORMATS`.
    """
    for name in columns or ():
        if name not in METRIC_FORMATS:
            known = ", ".join(METRIC_FORMATS)
            raise InputError(f"no metric {name!r}{nearest(name, METRIC_FORMATS)}; the metrics are {known}")
    return list(columns) if columns else [name for name in TABLE_COLUMNS if any(name in row for row in rows.values())]


def format_table(
    rows: Mapping[str, Mapping[str, float | None]],
    columns: Sequence[str] | None = None,
    energy_reference: str | None = None,
) -> str:
    """A plain text table: one row per model or baseline, one column per metric, titles with units.

    Args:
        rows: values as ``MetricSums.compute`` returns them, by row title. A missing metric shows as a dash.
        columns: metric names, in order; by default those of :data:`TABLE_COLUMNS` that some row has.
        energy_reference: what the energies are (``adsorption``, ``total``, ``relative``), for the table's last line.

    Raises:
        InputError: if a column is no known metric.
    """
    names = table_columns(rows, columns)
    lines = [["", *(METRIC_FORMATS[name].title for name in names)]]
    lines += [[title, *(METRIC_FORMATS[n].text(row.get(n)) for n in names)] for title, row in rows.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names) + 1)]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    text.insert(1, "  ".join("─" * width for width in widths))
    if energy_reference is not None:
        text.append(f"Energies: {energy_reference}. Fixed atoms are not counted.")
    return "\n".join(line.rstrip() for line in text)
