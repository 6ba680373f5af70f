"""Stored results of studies, for tests of what is made of them; and configurations of trainings of a second."""

from pathlib import Path
from typing import Any

SCHNET = """
model: {name: schnet, cutoff: 4.0, hidden_channels: 8, n_filters: 8, n_interactions: 1, n_gaussians: 8}
output_mlp: [8]
loss: {forces_weight: 1.0}
optimizer: {lr: 0.01}
run: {batch_size: 4, max_epochs: 3, val_every: 5, accelerator: cpu}
"""
ALLEGRO = SCHNET.replace(
    "name: schnet, cutoff: 4.0, hidden_channels: 8, n_filters: 8, n_interactions: 1, n_gaussians: 8",
    "cutoff: 4.0, n_layers: 1, tensor_channels: 4, two_body_mlp: [8, 8], latent_mlp: [8]",
)


def write_presets(folder: Path) -> Path:
    """Make a folder a folder of configurations of one's own, of an Allegro and a SchNet."""
    (folder / "allegro.yaml").write_text(ALLEGRO)
    (folder / "schnet.yaml").write_text(SCHNET)
    return folder


def result(model: str, seed: int, error: float, n_train: int = 10_000, **more: Any) -> dict[str, Any]:
    """Results that a study keeps of a cell that was trained for relaxed energies, with this error on two splits."""
    rows = {"model": {"energy_mae": error}, "mean energy": {"energy_mae": 0.9}, "linear reference": {"energy_mae": 0.5}}
    labels = {"model": model, "task": "is2re", "n_train": n_train, "seed": seed, "head": "", "budget": ""}
    cost = {"n_parameters": 7, "epochs": 2, "steps": 10, "seconds": 1.0, "evaluation_seconds": 1.0}
    splits = {"val_id": rows, "val_ood_ads": rows}
    return {**labels, "cutoff": None, **cost, "splits": splits, "relaxations": {}, **more}
