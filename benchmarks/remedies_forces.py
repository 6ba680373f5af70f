"""Remedies for energies and forces, each a variant of one training, in equal processor time or equal steps.

    python benchmarks/remedies_forces.py TRAIN VAL OUT.jsonl --seconds 60 --json benchmarks/results/remedies_forces.json

TRAIN and VAL are structure files, by default of ``reann_co2_ni100``, whose preset gives network, loss and optimiser.
The loop is a plain one: batches in random order, a cosine over the budget, an average of the weights, no validation
on the way. A budget of seconds is processor time of one thread, so that other work on the machine counts little; with
``--steps`` all variants take as many steps. Runs already in OUT are not repeated. What is tried here is no option of
`equicat train`; docs/remedies.md says what came out.

- ``plain``: the preset.
- ``direct-first``: forces of a head of their own (``pair``) for half of the budget, then derivatives of the energy.
- ``taylor``: half of the structures shaken by 0.01 Å, labels E − F·d and F.
- ``trapezoid``: half of them shaken by 0.03 Å, where only E(x + d) = E(x) − ½ (F(x) + F(x + d))·d is asked for, with
  the label F(x) and the model's F(x + d): exact to the third order of d.
- ``dens``: half of the structures corrupted by 0.05 Å (arXiv 2403.09549): the network gets the forces of the structure
  as it was, and tells the noise and the energy. Forces enter V^ij,0 as vectors; the noise is read out pair by pair.
- ``A/B adsorbate``: the network of nequip-allegro with a cutoff of A Å, and of B Å for pairs with an atom of tag 2;
  ``A/B surface``: of B Å for pairs whose atoms both have the tags 1 or 2. For this, elements are told apart by tag.
- ``cutoff A``: the preset with a cutoff of A Å.
- ``screened A``: cutoff A Å, and an envelope of triplets: pair ij fades out where a third atom lies between i and j.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from envelope import markdown, table, with_missing, write
from force_variants import LABELS, Training, plain, training
from torch import nn

from equicat.data.structure import Structure
from equicat.data.training_data import training_data
from equicat.options.text import read_yaml
from equicat.training.config import from_mapping
from equicat.training.optimizers import make_optimizer, rate_factor, set_rates
from equicat.training.presets import find_configuration

PLAIN = ("plain", "direct-first", "taylor", "trapezoid", "dens")
"""Variants that all data can have."""


def epochs(data: Sequence[Structure], batch_size: int, seed: int) -> Iterator[list[Structure]]:
    """Batches in random order without end."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(data))
        for start in range(0, len(data) - batch_size + 1, batch_size):
            yield [data[int(i)] for i in order[start : start + batch_size]]


def fit(made: Training, data: Sequence[Structure], seconds: float | None, steps: int | None) -> tuple[int, float]:
    """Train for a budget and leave the average of the weights in the model; steps done and processor time."""
    options = made.config.optimizer
    optimizer = make_optimizer(options, made.trained)
    weights = list(made.model.parameters())
    average = [p.detach().clone() for p in weights]
    start, done = time.process_time(), 0
    for structures in epochs(data, made.config.run.batch_size, made.config.run.seed):
        spent = time.process_time() - start
        progress = done / steps if steps else spent / (seconds or 1.0)
        if progress >= 1:
            break
        set_rates(optimizer, options, rate_factor(options, done, progress, []))
        optimizer.zero_grad()
        (made.loss or plain)(made, structures, progress).backward()
        nn.utils.clip_grad_norm_(made.trained.parameters(), options.gradient_clip or math.inf)
        optimizer.step()
        done += 1
        decay = min(options.ema_decay or 0.0, done / (done + 9))
        torch._foreach_lerp_(average, [p.detach() for p in weights], 1 - decay)
    for p, mean in zip(weights, average, strict=True):
        p.data.copy_(mean)
    return done, time.process_time() - start


def errors(made: Training, data: Sequence[Structure]) -> dict[str, float]:
    """Mean absolute errors of energies (eV a system) and force components (eV/Å) of free atoms; edges per atom."""
    made.model.eval()
    energy, force, n_edges, n_atoms = [], [], 0, 0
    for start in range(0, len(data), 8):
        batch = made.batch([data[i] for i in range(start, min(start + 8, len(data)))])
        with torch.no_grad():
            found = made.model(batch)
        energy.append((found.energy - batch.energy).abs())
        force.append((found.forces - batch.forces)[~batch.fixed].abs().flatten())
        n_edges, n_atoms = n_edges + batch.n_edges, n_atoms + len(batch.numbers)
    return {
        "energy_mae": float(torch.cat(energy).mean()),
        "forces_mae": float(torch.cat(force).mean()),
        "pairs_an_atom": n_edges / n_atoms,
    }


def run_one(variant: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and judge one variant."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    preset = read_yaml(find_configuration(options.preset))
    preset["data"] |= {"train": [options.train], "val": [options.val]}
    train, val = training_data(from_mapping(preset).data, "s2ef", LABELS)
    made = training(variant, preset, train, seed)
    steps, seconds = fit(made, train, None if options.steps else options.seconds, options.steps)
    return {
        "variant": variant,
        "seed": seed,
        "budget": f"{options.steps} steps" if options.steps else f"{options.seconds:g} s",
        "steps": steps,
        "ms_a_step": 1000 * seconds / steps,
        **errors(made, val),
    }


def shown(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A table for each budget, a row a variant, means over seeds."""
    tables = {}
    for budget in dict.fromkeys(r["budget"] for r in results):
        rows = []
        for variant in dict.fromkeys(r["variant"] for r in results if r["budget"] == budget):
            mine = [r for r in results if (r["variant"], r["budget"]) == (variant, budget)]
            columns = [[r[name] for r in mine] for name in ("forces_mae", "energy_mae")]
            texts = [", ".join(f"{1000 * v:.1f}" for v in values) for values in columns]
            steps, ms, pairs = (np.mean([r[name] for r in mine]) for name in ("steps", "ms_a_step", "pairs_an_atom"))
            rows.append([variant, *texts, f"{steps:.0f}", f"{ms:.0f}", f"{pairs:.0f}"])
        head = ["", "force MAE [meV/Å]", "energy MAE [meV]", "steps", "ms a step", "pairs an atom"]
        tables[budget] = table(head, rows)
    return tables


COMMAND = (
    "python benchmarks/remedies_forces.py TRAIN VAL forces.jsonl --seconds 150 \\",
    "    --variants plain dens direct-first taylor trapezoid --json benchmarks/results/remedies_forces.json",
)
NOTES = (
    "REANN's CO2 on Ni(100), 581 frames of 39 atoms to train on, the preset reann_co2_ni100; budgets are processor",
    "time of one thread, one seed.",
)


def main() -> None:
    """Train what is not in OUT yet, one process each, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="structure file to train on")
    parser.add_argument("val", help="structure file to judge by")
    parser.add_argument("out", type=Path, help="JSON lines")
    parser.add_argument("--preset", default="reann_co2_ni100", help="preset of energies and forces")
    parser.add_argument("--seconds", type=float, default=60, help="processor time of each training")
    parser.add_argument("--steps", type=int, help="steps of each training instead")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--variants", nargs="+", default=list(PLAIN))
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.one[0], int(options.one[1]), options)))
        return
    budget = f"{options.steps} steps" if options.steps else f"{options.seconds:g} s"
    wanted = [(variant, seed) for seed in options.seeds for variant in options.variants]
    tables = shown(
        with_missing(options.out, wanted, lambda r: (r["variant"], r["seed"]) if r["budget"] == budget else None)
    )
    for title, found in tables.items():
        print(f"{title}\n\n{markdown(found)}\n")
    if options.json:
        write(options.json, "Remedies for energies and forces", tables, command=COMMAND, notes=NOTES)


if __name__ == "__main__":
    main()
