"""Slabs by name, built with ASE, and with pymatgen's slab generator where ASE has no builder of its own."""

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from ase import Atoms, build
from ase.data import atomic_numbers, chemical_symbols, reference_states

from equicat.data.readers import read
from equicat.errors import InputError, nearest
from equicat.extras import extra
from equicat.options.values import Checked, Natural, Range

NAME = re.compile(r"(?P<bulk>.+?)\s*\(\s*(?P<facet>[-\d\s,]+)\)\s*(?P<size>\d+\s*x\s*\d+\s*x\s*\d+)\s*")
"""``Cu(111) 3x3x4``, ``cu3pd.cif(1,1,1) 2x2x4``."""
BUILDERS: dict[tuple[str, tuple[int, ...]], Callable[..., Atoms]] = {
    ("fcc", (1, 1, 1)): build.fcc111,
    ("fcc", (1, 0, 0)): build.fcc100,
    ("fcc", (1, 1, 0)): build.fcc110,
    ("bcc", (1, 0, 0)): build.bcc100,
    ("bcc", (1, 1, 0)): build.bcc110,
    ("bcc", (1, 1, 1)): build.bcc111,
    ("hcp", (0, 0, 1)): build.hcp0001,
}
"""Builders of ASE whose cells are as small as can be and not slanted across the vacuum."""


@dataclass(frozen=True)
class SlabConfig(Checked):
    """How a slab is built, and what of it is fixed."""

    fixed_layers: Natural | None = None
    """Lowest layers that are fixed. Default: the atoms that the slab's file fixes, else the lowest two layers."""
    vacuum: Annotated[float, Range(above=0, at_most=1000)] = 20.0
    """Å between a slab that is built and its image above."""
    lattice_constant: Annotated[float, Range(above=0, at_most=100)] | None = None
    """Å, of a slab that is built of an element. Default: the measured one, as ASE has it."""
    termination: Natural = 0
    """Which of the terminations that pymatgen finds, from 0."""


@dataclass(frozen=True)
class SlabName:
    """Parts of a slab's name: bulk, facet and size."""

    bulk: str
    """Element, or file of a bulk structure."""
    miller: tuple[int, int, int]
    size: tuple[int, int, int]
    """Repetitions along the surface, and layers."""
    text: str


def slab_named(text: str) -> SlabName | None:
    """The parts of a name such as ``Cu(111) 3x3x4``; None if the text is none.

    Raises:
        InputError: if the facet or the size cannot be.
    """
    match = NAME.fullmatch(text.strip())
    if match is None:
        return None
    facet = match["facet"].replace(",", " ").split()
    digits = [int(d) for part in facet for d in (re.findall(r"-?\d", part) if len(facet) == 1 else [part])]
    if len(digits) == 4 and digits[0] + digits[1] + digits[2] == 0:
        digits = [digits[0], digits[1], digits[3]]
    if len(digits) != 3 or not any(digits):
        raise InputError(f"{text}: ({match['facet']}) is no facet; write three Miller indices, such as 111 or 1,0,-1")
    h, k, m = digits
    n_first, n_second, n_layers = (int(n) for n in match["size"].split("x"))
    if not (n_first and n_second and n_layers):
        raise InputError(f"{text}: a slab of size {match['size']} has no atoms")
    return SlabName(match["bulk"], (h, k, m), (n_first, n_second, n_layers), text.strip())


def build_slab(name: SlabName, config: SlabConfig, bulk: Atoms | None = None) -> tuple[Atoms, str]:
    """The ideal slab with that name, periodic in three directions, and a sentence that says how it was made.

    Args:
        name: bulk, facet and size.
        config: how to build.
        bulk: a bulk structure in place of that which the name means.

    Raises:
        InputError: if the bulk is no element with a known lattice and no file, or the facet cannot be cut.
    """
    if bulk is None and name.bulk not in atomic_numbers and not Path(name.bulk).is_file():
        raise InputError(
            f"{name.text}: {name.bulk!r} is no element{nearest(name.bulk, chemical_symbols)} and no file of a bulk "
            "structure"
        )
    if bulk is not None:
        slab, how = _cut(bulk, name, config)
    elif name.bulk in atomic_numbers:
        slab, how = _of_element(name, config)
    else:
        slab, how = _cut(next(iter(read(name.bulk))).to_ase(), name, config)
    slab.center(vacuum=config.vacuum / 2, axis=2)
    slab.pbc = True
    slab.set_tags(0)
    return slab, f"Slab: {name.text}, {len(slab)} atoms, {how}, {config.vacuum:g} Å of vacuum."


def _of_element(name: SlabName, config: SlabConfig) -> tuple[Atoms, str]:
    state: dict[str, Any] = reference_states[atomic_numbers[name.bulk]] or {}
    lattice = state.get("symmetry")
    if lattice not in ("fcc", "bcc", "hcp", "diamond", "sc"):
        raise InputError(
            f"{name.text}: ASE builds slabs of fcc, bcc, hcp, diamond and simple cubic elements; {name.bulk} is "
            f"{lattice or 'unknown'}; give a structure file of the bulk or of the slab"
        )
    a = config.lattice_constant or state["a"]
    how = f"a = {a:.4g} Å ({'given' if config.lattice_constant else 'measured, not that of the model'})"
    key = (lattice, tuple(sorted(map(abs, name.miller), reverse=True)) if lattice != "hcp" else name.miller)
    if key in BUILDERS:
        more = {"c": a * state["c/a"]} if lattice == "hcp" else {}
        return BUILDERS[key](name.bulk, size=name.size, a=a, vacuum=config.vacuum / 2, **more), f"built by ASE, {how}"
    bulk = build.bulk(name.bulk, a=a, cubic=lattice != "hcp")
    slab, cut = _cut(bulk, name, config)
    return slab, f"{cut}, {how}"


def _cut(bulk: Atoms, name: SlabName, config: SlabConfig) -> tuple[Atoms, str]:
    """A slab of a bulk cell, by pymatgen if it is installed, else by ASE."""
    if importlib.util.find_spec("pymatgen") is not None:
        return _cut_by_pymatgen(bulk, name, config)
    if config.termination:
        raise InputError("--termination needs pymatgen: pip install 'equicat[surfaces]'")
    try:
        slab = build.surface(bulk, name.miller, name.size[2], vacuum=config.vacuum / 2)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{name.text}: ASE cannot cut this facet ({error})") from error
    return slab.repeat((*name.size[:2], 1)), "cut by ASE (its first termination)"


def _cut_by_pymatgen(bulk: Atoms, name: SlabName, config: SlabConfig) -> tuple[Atoms, str]:
    surface, adaptor = (extra(f"pymatgen.{m}", "surfaces") for m in ("core.surface", "io.ase"))
    generator = surface.SlabGenerator(
        adaptor.AseAtomsAdaptor.get_structure(bulk),
        name.miller,
        min_slab_size=name.size[2],
        min_vacuum_size=int(np.ceil(config.vacuum)),
        in_unit_planes=True,
        lll_reduce=True,
        max_normal_search=max(map(abs, name.miller)),
    )
    found = generator.get_slabs()
    if not 0 <= config.termination < len(found):
        raise InputError(f"{name.text}: has {len(found)} terminations, --termination is {config.termination}")
    slab = adaptor.AseAtomsAdaptor.get_atoms(found[config.termination])
    bare = Atoms(slab.numbers, slab.positions, cell=slab.cell, pbc=True)
    how = f"cut by pymatgen, termination {config.termination} of {len(found)}"
    return bare.repeat((*name.size[:2], 1)), how
