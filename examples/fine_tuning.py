"""A trained model is tuned to other data, beside one that learns these data from nothing, for as many epochs.

python examples/fine_tuning.py RUN DATA [--epochs 20] [--lr 0.001] [--out tuned]

New elements are no obstacle. Both runs have the options of RUN but for those that are given here.
"""

import argparse
from pathlib import Path

from equicat.apply.evaluate import evaluate_validation
from equicat.apply.results import as_text
from equicat.run_directory import read_config
from equicat.training.config import from_mapping
from equicat.training.train import train

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", help="run directory of the model to start from")
parser.add_argument("data", help="data set directory with the splits train and val_id")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--lr", type=float, default=1e-3, help="learning rate; lower than that of the first training")
parser.add_argument("--out", default="tuned")
given = parser.parse_args()

before = read_config(Path(given.run))
for name, start, lr in (("tuned", given.run, given.lr), ("from_nothing", None, before["optimizer"]["lr"])):
    options = {
        **{part: before[part] for part in ("task", "model", "output_mlp", "output_nonlinearity", "loss")},
        "data": given.data,
        "optimizer": before["optimizer"] | {"lr": lr},
        "run": {
            "out": str(Path(given.out) / name),
            "init_from": start,
            "batch_size": before["run"]["batch_size"],
            "max_epochs": given.epochs,
            "progress": False,
        },
    }
    run = train(from_mapping(options)).run
    print(f"{name}:\n{as_text(evaluate_validation(run, progress=False))}\n")
