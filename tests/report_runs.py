"""Run directories for tests of reports: a complete one, and predictions with structures."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
import yaml
from emt_slabs import rattled_slab
from safetensors.torch import save_file

from equicat.apply.kept import Kept
from equicat.data.batch import Batch
from equicat.data.fitted import Domain
from equicat.data.structure import Structure
from equicat.tasks.examples import Example, Frames
from equicat.tasks.metrics import Values

ROWS = {
    "allegro": {"energy_mae": 0.1, "energy_within_threshold": 0.25, "forces_mae": 0.02},
    "mean energy, F = 0": {"energy_mae": 1.0, "energy_within_threshold": 0.01, "forces_mae": 0.016},
    "linear reference, F = 0": {"energy_mae": 0.5, "energy_within_threshold": 0.02, "forces_mae": 0.4},
}
TRAIN = {
    "path": "data/emt/s2ef/train",
    "n_structures": 264,
    "n_systems": 12,
    "has_ids": True,
    "elements": ["O", "Cu"],
    "energy_reference": "adsorption",
    "reference_energies": {"H2O": -14.2},
    "description": "relaxations of a group",
    "set_aside": {
        "systems": 2,
        "frames": 31,
        "reasons": {"not_converged": 1},
        "listed": [{"system": "Cu111/O_top", "reasons": ["largest force 0.21 eV/Å"]}],
    },
}
VAL = TRAIN | {"n_structures": 23, "n_systems": 1, "set_aside": {}}
DOMAIN = {
    "adsorbates": {"O": 8, "CO": 4},
    "catalysts": {"Cu": 10, "Cu3Pd": 2},
    "systems": {"O": {"Cu": 6, "Cu3Pd": 2}, "CO": {"Cu": 4}},
}
KNOWN = {"n_structures": 120, "n_systems": 30, "n_free_atoms": 2400, "n_trained_on": 0, "n_chose_checkpoint": 30}


def make_run(folder: Path) -> Path:
    """A complete run directory with two splits."""
    run = folder / "cu-oxygen"
    (run / "predictions").mkdir(parents=True)
    (run / "metrics.csv").write_text(
        "epoch,step,time_s,lr,train_loss,train_energy_mae,val_loss,val_energy_mae,val_forces_mae\n"
        "0,10,30,0.002,3.0,1.0,,,\n"
        "1,20,60,0.002,2.0,0.7,2.5,0.9,0.08\n"
        "2,30,90,0.001,1.0,0.3,1.5,0.4,0.05\n"
    )
    (run / "config.yaml").write_text(yaml.safe_dump({"task": "s2ef", "data": {"train": ["data/emt"]}, "seed": 17}))
    (run / "environment.json").write_text(
        json.dumps({"versions": {"torch": "2.13.0"}, "commit": "abc123", "devices": []})
    )
    model = {"name": "allegro", "cutoff": 5.0, "n_layers": 2, "l_max": 1}
    description = {
        "task": "s2ef",
        "model": model,
        "energy_reference": "adsorption",
        "statistics": {"elements": [8, 29]},
    }
    (run / "model.json").write_text(json.dumps(description | {"domain": DOMAIN}))
    (run / "data.json").write_text(json.dumps({"train": TRAIN, "val": VAL}))
    save_file({"weight": torch.zeros(30, 41), "scale": torch.tensor(1.0)}, run / "model.safetensors")
    splits = {split: KNOWN | {"rows": ROWS} for split in ("val_id", "val_ood_ads")}
    evaluation = {"task": "s2ef", "data": "data/emt", "energy_reference": "adsorption", "splits": splits}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    rng = np.random.default_rng(0)
    for split in splits:
        energy, forces = rng.normal(size=120), rng.normal(size=(2400, 3))
        np.savez(
            run / "predictions" / f"{split}.npz",
            energy_true=energy,
            energy_pred=energy + 0.1 * rng.normal(size=120),
            forces_true=forces,
            forces_pred=forces + 0.02 * rng.normal(size=(2400, 3)),
            n_atoms=np.full(120, 30),
        )
    return run


CHEMISTRY = Domain(
    n_structures=8,
    n_sampled=8,
    largest=13,
    shortest={},
    systems={},
    adsorbates={"O": 4, "N": 4},
    catalysts={"Cu": 3, "Pd": 3, "Au": 2},
    adsorbate_elements=(7, 8),
    slab_elements=(29, 46, 79),
)
RELAXATIONS = {
    "n_converged": 5,
    "success_rate": 0.5,
    "mean_steps": 20.5,
    "seconds_a_system": 0.1,
    "flags": {"desorbed": 2},
    "classes": {"normal": 4, "anomaly": 2},
    "energy_mae_normal": 0.1,
}


def slabs_of(n: int) -> list[Structure]:
    """Slabs with O and N in turn."""
    made = []
    for seed in range(n):
        atoms = rattled_slab(seed, "ON"[seed % 2])
        atoms.info["sid"] = f"slab{seed}"
        made.append(Structure.from_ase(atoms, source=f"slab {seed}"))
    return made


def kept_of(n: int, seed: int = 0, name: str = "") -> dict[str, np.ndarray]:
    """Arrays of predictions as an evaluation keeps them: of forces of slabs with O, two structures to a system.

    Args:
        n: structures.
        seed: of the errors.
        name: of the first structure; empty: ``slab0``.
    """
    rng = np.random.default_rng(seed)
    kept = Kept(("energy", "forces"), CHEMISTRY)
    slabs = slabs_of(min(n, 8))
    batch = Batch.from_structures(slabs, 0.1)
    if name:
        batch = batch_named(batch, name)
    for _ in range(n // len(slabs)):
        energy = torch.from_numpy(rng.normal(size=batch.n_systems))
        forces = torch.from_numpy(rng.normal(size=batch.positions.shape) * 10 ** rng.uniform(-2, 0.5))
        off = torch.from_numpy(rng.normal(size=batch.positions.shape)) * 0.1
        target, found = (
            Values(energy=energy, forces=forces),
            Values(energy=energy + 0.1 * off[0, 0], forces=forces + off),
        )
        kept.add(batch, found, target, off.norm(dim=1) * torch.from_numpy(rng.uniform(0.5, 2, size=len(off))))
    return kept.arrays(np.arange(n // len(slabs) * len(slabs)) // 2)


def relaxed_of(n: int, seed: int = 0, with_steps: bool = True) -> dict[str, np.ndarray]:
    """Arrays of predicted relaxed structures; if that is wanted, the last example is a relaxation with its steps."""
    rng = np.random.default_rng(seed)
    kept = Kept(("energy", "displacements"), CHEMISTRY)
    slabs = slabs_of(n)
    batch = Batch.from_structures(slabs, 0.1, dtype=torch.float64)
    energy, moves = torch.from_numpy(rng.normal(size=n)), torch.from_numpy(0.3 * rng.normal(size=batch.positions.shape))
    kept.add(batch, Values(energy=energy + 0.1, displacements=0.8 * moves), Values(energy=energy, displacements=moves))
    if not with_steps:
        return kept.arrays(np.arange(n))
    first = kept.examples.kept[0]
    steps = np.arange(6)
    positions = np.stack([first.fields["positions"] + 0.2 * k * first.fields["pred"] for k in steps])
    frames = Frames(steps, first.energies[0] + 0.5 / (1 + steps), 1.0 / (1 + steps), positions.astype(np.float32))
    kept.examples.kept.append(
        Example(first.name, first.fields, first.cell, first.energies, first.scores, "worst", frames)
    )
    return kept.arrays(np.arange(n))


def batch_named(batch: Batch, name: str) -> Batch:
    """The batch with that name of its first structure."""
    return dataclasses.replace(batch, ids=(name, *batch.ids[1:]))


def run_with_structures(folder: Path, n: int = 32) -> Path:
    """A complete run whose two splits, and an evaluation of relaxations, hold structures."""
    run = make_run(folder)
    for seed, split in enumerate(("val_id", "val_ood_ads")):
        np.savez(run / "predictions" / f"{split}.npz", **kept_of(n, seed))
    relaxed = run / "evaluations" / "data-relax"
    (relaxed / "predictions").mkdir(parents=True)
    np.savez(relaxed / "predictions" / "val_id.npz", **relaxed_of(6))
    np.savez(relaxed / "predictions" / "direct.npz", **relaxed_of(6, 1, with_steps=False))
    result = {"n_structures": 6, "n_systems": 6, "n_free_atoms": 54, "rows": ROWS}
    splits = {"val_id": result | {"relaxations": RELAXATIONS}, "direct": result}
    summary = {"data": "data/emt", "date": "2026-03-01T12:00:00+00:00", "splits": splits}
    (relaxed / "metrics.json").write_text(json.dumps(summary))
    return run
