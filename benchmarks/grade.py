"""Does the extrapolation grade rank errors, and does it grow outside of the training data? Beside an ensemble.

python benchmarks/grade.py runs/emt_0 data/emt --ensemble runs/emt_1 runs/emt_2

Of each split: the rank correlation (Spearman) of grade and force error, of free atoms and of structures (largest grade
and force MAE), how many atoms have a grade above 1, and the force MAE of those below and above. With further runs of
other seeds, the same correlation for the standard deviation of their forces (their mean is what is compared).
"""

import argparse
import sys
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

COLUMNS = [
    "split", "free atoms", "force MAE [eV/Å]", "rank correlation, atoms", "rank correlation, structures",
    "grade above 1 [%]", "force MAE below [eV/Å]", "force MAE above [eV/Å]", "median grade",
]  # fmt: skip


def of_split(models: list[Potential], path: Path) -> tuple[list[ndarray], ndarray, list[ndarray]]:
    """Force error of each model (mean of components), grades, and spread of the forces, of free atoms; structures."""
    errors: list[list[ndarray]] = [[] for _ in range(len(models) + 1)]
    grades, spreads, structures, at = [], [], [], 0
    for batch in batches(open_dataset(path), models[0].cutoff, 16, dtype=models[0].dtype, labels=("forces",)):
        free = ~batch.fixed
        with torch.no_grad():
            forces = torch.stack([model(batch).forces for model in models])
        for found, predicted in zip(errors, [*forces, forces.mean(0)], strict=True):
            found.append((predicted - batch.forces).abs().mean(1)[free].numpy())
        spreads.append(forces.std(0, correction=0).norm(dim=1)[free].numpy())
        grades.append(models[0].grade(models[0], batch)[free].numpy())
        structures.append((batch.system_idx[free] + at).numpy())
        at += batch.n_systems
    return (
        [np.concatenate(e) for e in errors],
        np.concatenate(grades),
        [np.concatenate(spreads), np.concatenate(structures)],
    )


def correlation(a: ndarray, b: ndarray) -> str:
    return f"{spearmanr(a, b).statistic:.2f}"


def of_structures(values: ndarray, structures: ndarray, how: str) -> ndarray:
    """Largest or mean value of each structure."""
    groups = np.split(values, np.flatnonzero(np.diff(structures)) + 1)
    return np.array([group.max() if how == "largest" else group.mean() for group in groups])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path, help="data set directory")
    parser.add_argument("--ensemble", type=Path, nargs="*", default=[], help="runs with other seeds")
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    options = parser.parse_args()
    models = [load_potential(run) for run in (options.run, *options.ensemble)]
    if models[0].grade is None:
        sys.exit(f"{options.run}: has no grade; train it again")
    rows = []
    for name, path in splits_of(options.data, "s2ef").items():
        errors, grades, (spread, structures) = of_split(models, path)
        error, above = errors[0], grades > 1
        by_structure = [of_structures(v, structures, how) for v, how in ((grades, "largest"), (error, "mean"))]
        row = [name, str(len(error)), f"{error.mean():.4f}", correlation(grades, error), correlation(*by_structure)]
        row += [f"{100 * above.mean():.1f}", f"{error[~above].mean():.4f}"]
        row += [f"{error[above].mean():.4f}" if above.any() else "–", f"{np.median(grades):.2f}"]
        if options.ensemble:
            row += [correlation(spread, errors[-1]), f"{errors[-1].mean():.4f}"]
        rows.append(row)
        print("  ".join(row), flush=True)
    more = [f"rank correlation, spread of {len(models)}", "force MAE, their mean [eV/Å]"] if options.ensemble else []
    if options.json:
        write(options.json, "Extrapolation grade and force error", {"": table([*COLUMNS, *more], rows)})


if __name__ == "__main__":
    main()
