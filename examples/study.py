"""A learning curve: errors of networks on more and more relaxations, with a table, a figure and all numbers.

python examples/study.py DATA [--models allegro-l2 nequip] [--epochs 5] [--seeds 3] [--out study]

Called again, it goes on where it was; several processes and SLURM jobs may do the same study together.
"""

import argparse
from pathlib import Path

from equicat.studies.data_efficiency import DATA_EFFICIENCY, DataEfficiencyOptions

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", help="data set directory with the splits train and val_id")
parser.add_argument("--models", nargs="+", default=["allegro-l2"])
parser.add_argument("--task", default="s2ef", choices=["s2ef", "is2re", "is2rs"])
parser.add_argument(
    "--sizes", nargs="+", default=[], help="numbers of training structures; an eighth to all by default"
)
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--seeds", type=int, default=3)
parser.add_argument("--out", default="study")
given = parser.parse_args()

options = DataEfficiencyOptions(
    models=tuple(given.models),
    tasks=(given.task,),
    sizes=tuple(given.sizes),
    seeds=given.seeds,
    epochs=given.epochs,
)
print(DATA_EFFICIENCY.conduct(Path(given.data), Path(given.out), options, command="python examples/study.py"))
