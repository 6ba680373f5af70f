"""A learning curve against time: ``python benchmarks/plot_curve.py metrics.csv out.png``.

Validation force RMSE in meV/Å, both axes logarithmic; dashed lines mark the published Allegro (13.0 on the full
300 K test set; Musaelian et al. 2023) and the 30 meV/Å that an hour on two cores was meant to reach.
"""

import csv
import sys

from matplotlib.figure import Figure


def main(source: str, out: str) -> None:
    """Plot ``val_forces_rmse`` of a run's metrics.csv."""
    with open(source, encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["val_forces_rmse"]]
    minutes = [float(row["time_s"]) / 60 for row in rows]
    rmse = [1000 * float(row["val_forces_rmse"]) for row in rows]
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.loglog(minutes, rmse, color="#0072b2", linewidth=2)
    for level, label in ((30, "target: 30"), (13.0, "published Allegro: 13.0")):
        axes.axhline(level, color="#555555", linestyle="--", linewidth=1)
        axes.annotate(label, (minutes[0], level), xytext=(2, 3), textcoords="offset points", fontsize=8)
    axes.set(xlabel="training time [min]", ylabel="force RMSE [meV/Å]", title="3BPA, validation (50 frames at 300 K)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=160)


if __name__ == "__main__":
    main(*sys.argv[1:3])
