"""Stored results of studies, for tests of what is made of them."""

from typing import Any


def result(model: str, seed: int, error: float, n_train: int = 10_000, **more: Any) -> dict[str, Any]:
    """What a study keeps of a cell that was trained for relaxed energies, with this error on two splits."""
    rows = {"model": {"energy_mae": error}, "mean energy": {"energy_mae": 0.9}, "linear reference": {"energy_mae": 0.5}}
    labels = {"model": model, "task": "is2re", "n_train": n_train, "seed": seed, "head": "", "budget": ""}
    cost = {"n_parameters": 7, "epochs": 2, "steps": 10, "seconds": 1.0, "evaluation_seconds": 1.0}
    splits = {"val_id": rows, "val_ood_ads": rows}
    return {**labels, "cutoff": None, **cost, "splits": splits, "relaxations": {}, **more}
