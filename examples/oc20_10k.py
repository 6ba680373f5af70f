"""OC20's 10k relaxed energies: download, or a copy on a disk; the paper's Allegro; OC20's metrics on all splits.

python examples/oc20_10k.py [--source DISK] [--epochs 50] [--out oc20_10k]

Downloads 9 GB unless the source is given. A GPU is needed for more than a few epochs.
"""

import argparse
from pathlib import Path

from equicat.apply.evaluate import evaluate
from equicat.apply.results import as_text
from equicat.options.text import read_yaml
from equicat.sources.oc20.make import OC20Config, make_oc20
from equicat.training.config import from_mapping
from equicat.training.presets import find_configuration
from equicat.training.train import train

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--source", help="folder that holds OC20 already, in any of its formats")
parser.add_argument("--config", default="oc20/is2re/10k", help="built-in configuration, or a file of yours")
parser.add_argument("--epochs", type=int, default=50)
parser.add_argument("--out", default="oc20_10k")
given = parser.parse_args()
out = Path(given.out)

for line in make_oc20(out / "data", OC20Config(source=given.source, task="is2re", split="10k,val")):
    print(line)

preset = read_yaml(find_configuration(given.config))
preset["run"] |= {"out": str(out / "run"), "max_epochs": given.epochs, "progress": False}
run = train(from_mapping(preset | {"data": str(out / "data")})).run
print(as_text(evaluate(run, out / "data", progress=False)))
