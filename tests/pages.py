"""The pages of the repository, their blocks of code, and the files that these need."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write
from emt_relaxations import write_outcar
from places import ROOT

from equicat.data.fitted import Statistics
from equicat.models import saved
from equicat.models.model import ModelInfo
from equicat.networks.allegro import AllegroConfig

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
"""Pages that are kept true; decisions are not rewritten."""

LAUNCHERS = ("torchrun", "srun", "mpirun")
BLOCK = re.compile(r"(?:^<!-- (not run|file): (.+?) -->\n)?^```(\w+)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    page: Path
    language: str
    text: str
    not_run: str | None
    """Why it is not run, from the comment before it."""
    file: str | None
    """The file that it is, from the comment before it."""


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in these languages, in order."""
    found = []
    for kind, said, language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        comment = {"not_run": None, "file": None, **({kind.replace(" ", "_"): said} if kind else {})}
        found.append(Block(page, language, text, **comment))
    return [block for block in found if block.language in languages]


def lines(block: Block) -> list[str]:
    """The commands of a block for the shell, continued lines joined."""
    joined = block.text.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in joined if line.strip() and not line.lstrip().startswith("#")]


def commands(line: str) -> Iterator[list[str]]:
    """The words after ``equicat`` in a line for the shell: its own, behind a launcher, or in what a job runs."""
    words = shlex.split(line, comments=True)
    for k, word in enumerate(words):
        if word.startswith("equicat ") and words[k - 1] == "--wrap":
            yield from commands(word)
            return
        if word == "equicat" and (k == 0 or words[k - 1] == "-m" or words[0] in LAUNCHERS):
            yield words[k + 1 :]
            return


# ---- what the blocks read ------------------------------------------------------------------------------------------


def slab(adsorbate: str = "", dx: float = 0.0) -> Atoms:
    """Cu(111), its lowest layers fixed, with tags as OC20 has them, and an adsorbate moved by so much along x."""
    atoms = fcc111("Cu", (2, 2, 3), vacuum=7.0)
    atoms.pbc = True
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() > 1))
    atoms.set_tags(np.where(atoms.get_tags() > 1, 0, 1))
    if adsorbate:
        add_adsorbate(atoms, molecule(adsorbate) if len(adsorbate) > 1 else adsorbate, 1.3, "fcc")
        atoms.set_tags([*atoms.get_tags()[:12], *[2] * (len(atoms) - 12)])
        atoms.positions[12:, 0] += dx
    return atoms


def small_run(out: Path) -> Path:
    """The run of an untrained Allegro for H, C, O and Cu: with forces of nearly zero, whatever moves ends at once."""
    torch.manual_seed(0)
    network = AllegroConfig(
        cutoff=3.5, n_layers=1, l_max=1, tensor_channels=2, two_body_mlp=(4, 4), latent_mlp=(4,), avg_num_neighbors=10.0
    )
    statistics = Statistics((1, 6, 8, 29), 0.0, (0.0,) * 4, forces_rms=1.0, avg_num_neighbors=10.0)
    info = ModelInfo("s2ef", network, (4,), "float32", "adsorption", statistics)
    out.mkdir(parents=True)
    saved.save(out, saved.build(info, scale=0.01))
    return out


def working_directory(root: Path) -> Path:
    """A folder with the runs and structures that blocks name."""
    run = small_run(root / "runs" / "mine")
    (root / "demo").mkdir()
    for name in ("run", "RUN", "demo/run"):
        (root / name).symlink_to(run)
    write(root / "structures.extxyz", [slab("O"), slab("CO")])
    write(root / "slabs.extxyz", [slab("O"), slab("CO")])
    write(root / "relaxed.extxyz", [slab("O"), slab("CO")])
    write(root / "CONTCAR", slab(), format="vasp")
    write(root / "initial.extxyz", slab("O"))
    write(root / "final.extxyz", slab("O", dx=0.6))
    clean = slab()
    clean.calc = SinglePointCalculator(clean, energy=0.0, forces=np.zeros((12, 3)))
    (root / "slabs" / "Cu111").mkdir(parents=True)
    write_outcar(root / "slabs" / "Cu111" / "OUTCAR", [clean])
    return root
