"""How large a share a linear model should have in relaxed energies: cross-validation within the training data.

    python benchmarks/linear_share.py EMT --json benchmarks/results/linear_share.json

A quarter of the training systems is held out in turn, drawn at random or by adsorbate so that none of its adsorbates is
trained on. Each time ``emt_is2re`` is trained on the rest; its network and its linear model predict what is held out.
The validation splits are not looked at. One thread.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from envelope import markdown, table, write
from jaxtyping import Float, Int
from numpy import ndarray

from equicat.data.batch import Batch
from equicat.data.datasets import open_dataset
from equicat.data.directory import splits_of
from equicat.data.store import write_store
from equicat.data.structure import Structure
from equicat.models import saved
from equicat.models.direct import DirectModel
from equicat.models.domain import ADSORBATE_TAG
from equicat.options.text import read_yaml
from equicat.training.config import from_mapping
from equicat.training.presets import find_configuration
from equicat.training.train import train

TITLE = "Relaxed energies: the share of a linear model, by cross-validation"
N_FOLDS = 4
SHARES = np.linspace(0, 1, 11)


def folds(structures: list[Structure], by_adsorbate: bool) -> Int[ndarray, "n"]:
    """The part that each structure belongs to: at random, or all structures with an adsorbate in the same part."""
    random = np.random.default_rng(0)
    if not by_adsorbate:
        return random.permutation(len(structures)) % N_FOLDS
    names = [str(np.sort(s.numbers[s.tags == ADSORBATE_TAG])) for s in structures]
    groups, counts = np.unique(names, return_counts=True)
    size, part = np.zeros(N_FOLDS), {}
    for k in np.argsort(-counts, kind="stable"):  # the largest group goes to the smallest part
        part[groups[k]] = int(size.argmin())
        size[part[groups[k]]] += counts[k]
    return np.array([part[name] for name in names])


def held_out(structures: list[Structure], info: object, by_adsorbate: bool) -> Float[ndarray, "3 n"]:
    """Energies of the network and of the linear model, each trained without the structure, and the reference; eV."""
    part, found = folds(structures, by_adsorbate), np.zeros((3, len(structures)))
    for k in range(N_FOLDS):
        rest = [s for s, p in zip(structures, part, strict=True) if p != k]
        own = [s for s, p in zip(structures, part, strict=True) if p == k]
        with tempfile.TemporaryDirectory() as folder:
            for split, chosen in {"train": rest, "val_id": own}.items():
                write_store(f"{folder}/data/is2re/{split}", chosen, info)
            preset = read_yaml(find_configuration("emt_is2re"))
            run = {"out": f"{folder}/run", "val_every": preset["run"]["max_epochs"], "progress": False}
            values = preset | {"data": f"{folder}/data", "run": preset["run"] | run | {"accelerator": "cpu"}}
            model = saved.load(train(from_mapping(values)).run)
        assert isinstance(model, DirectModel)
        assert model.local_linear is not None
        batch = Batch.from_structures(own, model.cutoff, dtype=model.dtype)
        for row, share in enumerate((0.0, 1.0)):
            model.local_linear.share = share
            energy = model(batch).relaxed_energy
            assert energy is not None
            found[row, part == k] = energy.numpy()
        found[2, part == k] = [s.relaxed_energy for s in own]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emt", help="data set directory of `equicat data emt`")
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = open_dataset(splits_of(options.emt, "is2re")["train"])
    structures, rows = list(data), []
    for title, by_adsorbate in (("at random", False), ("by adsorbate", True)):
        network, linear, reference = held_out(structures, data.info, by_adsorbate)
        errors = [np.abs((1 - s) * network + s * linear - reference).mean() for s in SHARES]
        rows.append([title, *(f"{error:.3f}" for error in errors)])
    tables = {"": table(["held out", *(f"{share:.1f}" for share in SHARES)], rows)}
    print(markdown(tables[""]))
    if options.json:
        command = (
            "equicat data emt EMT --n_systems 120",
            "python benchmarks/linear_share.py EMT --json benchmarks/results/linear_share.json",
        )
        notes = [
            f"MAE in eV over {len(structures)} systems against the share of the linear model; 0 is the network alone,",
            "1 the linear model alone. One seed.",
        ]
        write(options.json, TITLE, tables, command=command, notes=notes)


if __name__ == "__main__":
    main()
