"""Measurements of `equicat bench` as text and as figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from equicat.files import replacing_file
from equicat.tasks.tables import aligned

Results = Mapping[str, Any]
COLORS = ("#0b6e99", "#d9730d", "#6940a5", "#0f7b6c", "#ad1a72", "#64473a", "#9b9a97")


def _number(value: float | None) -> str:
    """Three decimals, and three digits of what is less than 0.1."""
    return "–" if value is None else f"{value:.3f}" if value >= 0.1 else f"{value:.3g}"


def speed_text(results: Results) -> str:
    """A table for each model size, and how near the limit ours is."""
    parts = []
    for name, size in results["sizes"].items():
        titles = [
            "",
            "inference [s]",
            "training [s]",
            "first step [s]",
            "ready [s]",
            "inference [GB]",
            "training [GB]",
        ]
        rows = [[*titles, "difference"]]
        for contestant, row in size["contestants"].items():
            if "failed" in row:
                rows.append([f"{contestant}: {row['failed'][:60]}", *[""] * len(titles)])
                continue
            memory = [row.get(f"{what}_memory", {}).get("peak_gb") for what in ("inference", "training")]
            values = [row["inference_s"], row.get("training_s"), row.get("first_training_s"), row["ready_s"], *memory]
            rows.append([contestant, *map(_number, values), f"{row['forces_difference']:.0e}"])
        limits, ratios = size["limits"], size["ratios"]
        text = f"{name}: {size['n_atoms']} atoms, {size['n_edges']} edges, {results['threads']} threads"
        parts.append("\n".join([f"{text}, {results['device']}", *aligned(rows)]))
        if ratios:
            parts.append("the peer's best over ours: " + ", ".join(f"{k} {v:.1f}x" for k, v in ratios.items()))
        parts.append(
            f"matrix product {limits['matmul_gflops']:.0f} GFLOP/s, copy {limits['copy_gbs']:.1f} GB/s; ours: "
            f"inference {limits['inference_gflop']:.1f} GFLOP at {limits['inference_of_matmul']:.0%} of the product, "
            f"training {limits['training_gflop']:.1f} GFLOP at {limits['training_of_matmul']:.0%}"
        )
    return "\n\n".join(parts)


def scaling_text(results: Results) -> str:
    """A table of all series."""
    rows = [["", "atoms", "inference [s]", "µs/atom", "neighbours [s]", "of inference", "memory [GB]"]]
    for series in results["series"]:
        title = f"{series['contestant']}, {series['system']}"
        for p in series["points"]:
            if "failed" in p:
                rows.append([title, str(p["n_atoms"]), p["failed"], *[""] * 4])
                continue
            seconds, batch = p["inference_s"], p["neighbors_s"]
            per_atom = seconds / p["n_atoms"] * 1e6
            values = [_number(seconds), f"{per_atom:.3g}", _number(batch), f"{batch / seconds:.0%}"]
            rows.append([title, str(p["n_atoms"]), *values, f"{p['peak_gb']:.2f}"])
        if "kb_per_atom" in series:
            spread = f", time per atom within a factor {series.get('time_per_atom_spread', 1):.2f} from 1,000 atoms on"
            rows.append([f"  {series['kb_per_atom']:.1f} kB an atom{spread}", *[""] * 6])
    return "\n".join(aligned(rows))


def speed_figure(results: Results, path: Path) -> None:
    """Bars: seconds of an inference and of a training step, by contestant and model size."""
    sizes = results["sizes"]
    figure = Figure(figsize=(9, 1.2 + 2.2 * len(sizes)), layout="constrained")
    for axes_row, (name, size) in zip(figure.subplots(len(sizes), 2, squeeze=False), sizes.items(), strict=True):
        for axes, what in zip(axes_row, ("inference", "training"), strict=True):
            rows = {c: row[f"{what}_s"] for c, row in size["contestants"].items() if f"{what}_s" in row}
            axes.barh(list(rows), list(rows.values()), color=[COLORS[not c.startswith("equicat")] for c in rows])
            axes.bar_label(axes.containers[0], fmt="%.3g", padding=2, fontsize=8)
            axes.set_title(f"{name}: {what} [s], {size['n_edges']} edges, {results['device']}", fontsize=9)
            axes.invert_yaxis()
            axes.margins(x=0.15)
            axes.tick_params(labelsize=8)
    _save(figure, path)


def scaling_figure(results: Results, path: Path) -> None:
    """Lines: time per atom, and memory, against the number of atoms."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    names = list(dict.fromkeys(s["contestant"] for s in results["series"]))
    for series in results["series"]:
        done = [p for p in series["points"] if "failed" not in p]
        style = {
            "color": COLORS[names.index(series["contestant"])],
            "linestyle": "-" if series["system"] == "bulk" else "--",
            "marker": "o",
            "label": f"{series['contestant']}, {series['system']}",
        }
        n = [p["n_atoms"] for p in done]
        time_axes.plot(n, [p["inference_s"] / p["n_atoms"] * 1e6 for p in done], **style)
        memory_axes.plot(n, [p["peak_gb"] for p in done], **style)
    for axes, title in ((time_axes, "µs per atom, energy and forces"), (memory_axes, "largest memory [GB]")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("atoms")
        axes.set_title(title, fontsize=10)
        axes.grid(True, which="major", alpha=0.3)
    time_axes.legend(fontsize=7)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with replacing_file(path) as temporary:
        figure.savefig(temporary, dpi=150)
