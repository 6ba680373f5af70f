"""Relaxations of a DFT code to a data set, to a model, to a table of adsorption energies.

python examples/own_data.py project/ [--minutes 10] [--slab 'Cu(111) 3x3x4'] [--adsorbates O OH] [--out own_data]

The folder holds relaxations of slabs with adsorbates, and those of clean slabs and gas molecules if there are any.
"""

import argparse
from pathlib import Path

import equicat
from equicat.options.text import read_yaml
from equicat.sources.dft.config import ImportConfig
from equicat.sources.dft.make import import_dataset
from equicat.training.config import from_mapping
from equicat.training.presets import find_configuration
from equicat.training.train import train

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", help="OUTCAR, vasprun.xml, .traj, .extxyz, … at any depth")
parser.add_argument("--minutes", type=float, default=10.0, help="length of the training")
parser.add_argument("--slab", default="Cu(111) 3x3x4", help="name or file of a slab of elements that were trained on")
parser.add_argument("--adsorbates", nargs="+", default=["O", "OH"])
parser.add_argument("--out", default="own_data")
given = parser.parse_args()
out = Path(given.out)

report = import_dataset(out / "data", ImportConfig(files=(given.folder,)))
print(report.as_text(20))

preset = read_yaml(find_configuration("small"))
preset["run"] |= {"out": str(out / "run"), "max_minutes": given.minutes, "progress": False}
run = train(from_mapping(preset | {"data": str(out / "data")})).run

result = equicat.adsorption_energies(given.slab, given.adsorbates, run, out=out / "adsorption")
print(result.as_text())
