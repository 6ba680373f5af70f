"""Do error bars hold? Those of an ensemble and of the extrapolation grade, scaled once, on each split of a data set.

python benchmarks/calibration.py runs/four data/emt

An error bar σ of the mean force of an ensemble is k times a measure: the spread of the members (standard deviation of a
component), the grade of the atom by the first member, or nothing but 1, the same bar for all. The one number k is such
that 68.3 % of the force components of free atoms in val_id are within σ. Of each split: how many are within σ and 2 σ
(68.3 and 95.4 % if errors were normal and σ right), and the rank correlation (Spearman) of σ and the length of the
error. The same for the energy of a structure, whose grade is the largest of its atoms.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from envelope import table, write
from numpy import ndarray
from scipy.stats import spearmanr

from equicat.data.batches import batches
from equicat.data.datasets import open_dataset
from equicat.data.directory import splits_of
from equicat.models.potential import Potential
from equicat.models.saved import load_potential
from equicat.run_directory import members_of

WITHIN = 0.683
"""Share of errors within one standard deviation of a normal distribution."""
COLUMNS = ["split", "number", "MAE", "error bar", "scale k", "within σ [%]", "within 2 σ [%]", "rank correlation"]
Measured = tuple[ndarray, dict[str, ndarray]]
"""Errors [n, components], and the measures by name [n]."""


def of_split(models: list[Potential], path: Path) -> tuple[Measured, Measured]:
    """Errors and measures of the forces (eV/Å) of free atoms, and of the energies (eV) of structures."""
    parts: list[list[ndarray]] = [[] for _ in range(6)]
    labels = ("energy", "forces")
    for batch in batches(open_dataset(path), models[0].cutoff, 16, dtype=models[0].dtype, labels=labels):
        free = ~batch.fixed
        with torch.no_grad():
            found = [model(batch) for model in models]
        forces, energies = torch.stack([f.forces for f in found]), torch.stack([f.energy for f in found])
        grades = models[0].grade(models[0], batch)
        largest = grades.new_zeros(batch.n_systems).scatter_reduce(0, batch.system_idx, grades, "amax")
        spread = forces.var(0).mean(1).sqrt()
        own = [(forces.mean(0) - batch.forces)[free], spread[free], grades[free]]
        own += [(energies.mean(0) - batch.energy)[:, None], energies.std(0), largest]
        for part, values in zip(parts, own, strict=True):
            part.append(values.double().numpy())
    force, spread_, grade, energy, energy_spread, energy_grade = (np.concatenate(part) for part in parts)
    return (
        (force, {"constant": np.ones(len(force)), "grade": grade, "spread": spread_}),
        (energy, {"constant": np.ones(len(energy)), "grade": energy_grade, "spread": energy_spread}),
    )


def scale_of(error: ndarray, measure: ndarray) -> float:
    """k, so that :data:`WITHIN` of the errors are within k times the measure."""
    return float(np.quantile(np.abs(error) / measure[:, None], WITHIN))


def coverage(error: ndarray, sigma: ndarray) -> tuple[float, float]:
    """Share of errors within σ and within 2 σ."""
    z = np.abs(error) / sigma[:, None]
    return float((z < 1).mean()), float((z < 2).mean())


def rows_of(splits: dict[str, Measured], first: str) -> list[list[str]]:
    """Rows of the table; the scale is that of the ``first`` split."""
    rows = []
    for measure in ("constant", "grade", "spread"):
        k = scale_of(splits[first][0], splits[first][1][measure])
        for name, (error, measures) in splits.items():
            sigma, length = k * measures[measure], np.linalg.norm(error, axis=1)
            ranks = "–" if measure == "constant" else f"{spearmanr(sigma, length).statistic:.2f}"
            shares = [f"{100 * share:.1f}" for share in coverage(error, sigma)]
            rows.append([name, str(len(error)), f"{np.abs(error).mean():.4f}", measure, f"{k:.3g}", *shares, ranks])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ensemble", type=Path, help="folder that `equicat train --run.members N` wrote")
    parser.add_argument("data", type=Path, help="data set directory")
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    options = parser.parse_args()
    models = [load_potential(run) for run in members_of(options.ensemble)]
    names = [name for name in splits_of(options.data, "s2ef") if name.startswith("val_")]
    paths = splits_of(options.data, "s2ef")
    found = {name: of_split(models, paths[name]) for name in names}
    results = {}
    for k, heading in enumerate(("Forces of free atoms [eV/Å]", "Energies of structures [eV]")):
        results[heading] = table(COLUMNS, rows_of({name: both[k] for name, both in found.items()}, names[0]))
        print(heading, *("  ".join(row) for row in results[heading]["rows"]), sep="\n", flush=True)
    if options.json:
        write(options.json, f"Error bars of an ensemble of {len(models)} and of the grade", results)


if __name__ == "__main__":
    main()
