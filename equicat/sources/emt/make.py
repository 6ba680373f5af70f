"""A toy Open Catalyst data set in minutes: relaxations of small adsorbates on metals with ASE's EMT potential.

Laid out like OC20, down to the splits: ``val_id`` holds other systems of the kind trained on, ``val_ood_ads`` unseen
adsorbates, ``val_ood_cat`` unseen catalyst compositions, ``val_ood_both`` both. Energies are adsorption energies.
"""

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from ase import Atoms
from ase.calculators.emt import EMT
from ase.data import chemical_symbols
from ase.optimize import LBFGS
from jaxtyping import Float
from numpy import ndarray

from equicat.data.directory import SPLITS, UNSEEN, write_description, write_split
from equicat.data.info import DatasetInfo
from equicat.data.structure import Structure
from equicat.errors import InputError, nearest
from equicat.files import replacing_directory
from equicat.options.values import (
    Checked,
    Length,
    Natural,
    NonNegativeNumber,
    Positive,
    PositiveNumber,
    Range,
    Workers,
)
from equicat.sources.dft.rules import Rules, fmax_of, judge
from equicat.sources.emt.chemistry import (
    ADSORBATES,
    FACETS,
    HELD_OUT_ADSORBATES,
    METALS,
    Catalyst,
    add_adsorbate,
    catalysts,
    cut_slab,
    gas_references,
    is_held_out,
)
from equicat.sources.processes import one_thread_each
from equicat.terminal.progress import Bar, progress_bar

VALIDATION_SHARE = 0.1
"""Share of all systems in each of the four validation splits."""

DROPPED_FOR = ("exploded", "unconverged", "desorbed", "dissociated", "reconstructed", "intercalated")
"""Findings of the judge of relaxations (:func:`equicat.sources.dft.rules.judge`) that leave a system out."""
MAX_ATTEMPTS = 20
"""Attempts per system wanted, after which something is wrong with the configuration."""


@dataclass(frozen=True)
class EMTConfig(Checked):
    """Options of ``equicat data emt``."""

    n_systems: Annotated[int, Range(at_least=2 * len(SPLITS))] = 200
    """Relaxed systems in the data set, at least two a split: 60 % train, 10 % in each of four validation splits. Clean
    slabs are not counted."""
    seed: Natural = 0
    """Random numbers; one seed gives the same bytes with any number of workers."""
    fmax: PositiveNumber = 0.05
    """Relax until the largest force on a free atom is below this (eV/Å)."""
    max_steps: Positive = 150
    """L-BFGS steps after which a system is dropped as not converged."""
    frame_spacing: NonNegativeNumber = 0.1
    """Keep a frame of a relaxation once some atom has moved this far (Å) since the last one kept; the first and the
    last frame always stay. This thins out the nearly force-free end."""
    max_frames: Annotated[int, Range(at_least=2)] = 12
    """Largest number of frames of one relaxation."""
    rattle: Annotated[float, Range(at_least=0, at_most=2)] = 0.1
    """Standard deviation (Å) of the random displacement of each free atom from its ideal place at the start, along each
    axis; 0.1 is about that of a surface atom at room temperature."""
    max_tilt: Annotated[float, Range(at_least=0, at_most=180)] = 30.0
    """Largest angle (degrees) between an adsorbate and its upright orientation at the start."""
    metals: Annotated[tuple[str, ...], Length(1)] = METALS
    """Elements of the catalysts."""
    adsorbates: Annotated[tuple[str, ...], Length(1)] = tuple(ADSORBATES)
    """Names of the adsorbates, held-out ones included."""
    clean_slabs: bool = True
    """Add the relaxed clean slab of each system to the S2EF frames, once, with an adsorption energy of 0 eV."""
    workers: Workers | None = None
    """Processes; one for each core if not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, names, known in (("metal", self.metals, METALS), ("adsorbate", self.adsorbates, tuple(ADSORBATES))):
            for name in names:
                if name not in known:
                    raise InputError(f"unknown {what} {name!r}{nearest(name, known)}; known: {', '.join(known)}")


@dataclass(frozen=True)
class Job:
    """One system to draw and relax."""

    split: str
    attempt: int
    catalysts: list[Catalyst]
    adsorbates: list[str]
    """Names of the adsorbates to draw from."""
    config: EMTConfig


@dataclass(frozen=True)
class Relaxation:
    """The outcome of a job."""

    dropped: str = ""
    """Why the system is left out, or empty."""
    frames: list[Structure] = field(default_factory=list)
    initial: Structure | None = None
    """The first frame with the relaxed energy and positions as labels."""
    clean_slab: Structure | None = None
    """The relaxed slab alone, with an energy of zero."""


def make_emt_dataset(out: str | Path, config: EMTConfig | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Make a toy OC20 on ASE's EMT potential: relaxations of adsorbates on metal slabs.

    Writes ``out/s2ef/<split>``, ``out/is2re/<split>`` and ``out/dataset.json``. All frames are in memory until then:
    about 20 kB for each system.

    Args:
        out: Data set directory to write.
        config: What to make.
        overwrite: Replace what is there.

    Returns:
        What ``dataset.json`` holds: description, energy reference, configuration, and for each split its numbers of
        systems and frames and how many systems were dropped for which reason. :func:`summary_text` prints it.

    Raises:
        InputError: if ``out`` exists and ``overwrite`` is False, or the configuration leaves a split without systems.
    """
    config = config or EMTConfig()
    with replacing_directory(Path(out), overwrite) as temporary:
        kept, dropped = _relax_all_splits(config)
        slabs = _clean_slabs(kept if config.clean_slabs else {})
        settings = {name: value for name, value in asdict(config).items() if name != "workers"}
        info = DatasetInfo(
            energy_reference="adsorption",
            reference_energies=gas_references(),
            description="Adsorbates on fcc metals and ordered alloys, relaxed with ASE's EMT potential. "
            "E = E(slab with adsorbate) - E(relaxed clean slab) - gas references from H2, H2O, CO and N2, all in EMT.",
            provenance={"generator": "equicat data emt", "config": settings},
        )
        counts = {}
        for split in SPLITS:
            frames = (frame for relaxation in kept[split] for frame in relaxation.frames)
            initial = (relaxation.initial for relaxation in kept[split] if relaxation.initial is not None)
            n_written = write_split(temporary, split, chain(frames, slabs[split]), initial, info)
            n_written["clean_slabs"] = len(slabs[split])
            counts[split] = {**n_written, "dropped": dict(sorted(dropped[split].items()))}
        return write_description(temporary, info, counts)


def summary_text(summary: dict[str, Any]) -> str:
    """The counts that :func:`make_emt_dataset` returns, a line for each split."""
    lines = [f"{'split':<14}{'systems':>9}{'frames':>9}{'slabs':>7}  dropped"]
    for split, counts in summary["splits"].items():
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts["dropped"].items()) or "none"
        lines.append(f"{split:<14}{counts['systems']:>9,}{counts['frames']:>9,}{counts['clean_slabs']:>7,}  {reasons}")
    return "\n".join(lines)


def _clean_slabs(kept: dict[str, list[Relaxation]]) -> dict[str, list[Structure]]:
    """The clean slabs of each split: each one once, in the first split that has it. Training has no held-out ones."""
    seen: set[str] = set()
    slabs: dict[str, list[Structure]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for slab in (relaxation.clean_slab for relaxation in kept.get(split, ())):
            if slab is not None and slab.sid not in seen:
                seen.add(slab.sid)
                slabs[split].append(slab)
    return slabs


def _relax_all_splits(config: EMTConfig) -> tuple[dict[str, list[Relaxation]], dict[str, Counter[str]]]:
    """Training systems first: the others may only hold elements that training has seen."""
    n_validation = max(1, round(VALIDATION_SHARE * config.n_systems))
    wanted = dict.fromkeys(SPLITS, n_validation) | {"train": config.n_systems - (len(SPLITS) - 1) * n_validation}
    with _workers(config.workers) as run, progress_bar(total=config.n_systems, desc="relaxing", unit="system") as bar:
        kept, dropped = _fill({"train": wanted.pop("train")}, _pools(config, None), config, run, bar)
        seen = {chemical_symbols[z] for relaxation in kept["train"] for z in relaxation.frames[0].numbers}
        others = _fill(wanted, _pools(config, seen), config, run, bar)
    return kept | others[0], dropped | others[1]


def _pools(config: EMTConfig, seen: set[str] | None) -> dict[str, tuple[list[Catalyst], list[str]]]:
    """For each split the catalysts and adsorbates to draw from, made of ``seen`` elements only if given.

    Raises:
        InputError: if there are none for a split.
    """
    pools = {}
    for split, (unseen_adsorbates, unseen_catalysts) in UNSEEN.items():
        surfaces = [c for c in catalysts(config.metals) if is_held_out(c) == unseen_catalysts]
        adsorbates = [name for name in config.adsorbates if (name in HELD_OUT_ADSORBATES) == unseen_adsorbates]
        if seen is not None:
            surfaces = [c for c in surfaces if seen.issuperset(c.elements)]
            adsorbates = [name for name in adsorbates if seen.issuperset(row[0] for row in ADSORBATES[name])]
        if not surfaces or not adsorbates:
            what = "adsorbates" if surfaces else "catalysts"
            raise InputError(
                f"no {what} for the split {split}: none of the held-out ones is made of the elements in use "
                f"({', '.join(sorted(seen or {*config.metals}))}); add metals, adsorbates or systems"
            )
        pools[split] = (surfaces, adsorbates)
    return pools


def _fill(
    wanted: dict[str, int],
    pools: dict[str, tuple[list[Catalyst], list[str]]],
    config: EMTConfig,
    run: Callable[[list[Job]], Iterable[Relaxation]],
    bar: Bar,
) -> tuple[dict[str, list[Relaxation]], dict[str, Counter[str]]]:
    """Rounds of as many jobs as are missing, until every split has its systems.

    Which attempts are made depends on the seed alone, not on the number of workers or who finishes first.
    """
    kept: dict[str, list[Relaxation]] = {split: [] for split in wanted}
    dropped: dict[str, Counter[str]] = {split: Counter() for split in wanted}
    while any(len(kept[split]) < n for split, n in wanted.items()):
        jobs = []
        for split, n in wanted.items():
            made = len(kept[split]) + dropped[split].total()
            if made > MAX_ATTEMPTS * n:
                raise InputError(
                    f"{split}: {made} attempts gave {len(kept[split])} systems; dropped {dict(dropped[split])}"
                )
            jobs += [Job(split, made + i, *pools[split], config) for i in range(n - len(kept[split]))]
        for job, relaxation in zip(jobs, run(jobs), strict=True):
            if relaxation.dropped:
                dropped[job.split][relaxation.dropped] += 1
            else:
                kept[job.split].append(relaxation)
                bar.update()
    return kept, dropped


@contextmanager
def _workers(n_workers: int | None) -> Iterator[Callable[[list[Job]], Iterable[Relaxation]]]:
    """A function that relaxes jobs and yields the results in their order."""
    n_workers = n_workers or os.cpu_count() or 1
    if n_workers == 1:
        yield lambda jobs: map(relax_system, jobs)
        return
    with one_thread_each(), ProcessPoolExecutor(n_workers, multiprocessing.get_context("spawn")) as pool:
        yield lambda jobs: pool.map(relax_system, jobs)


def relax_system(job: Job) -> Relaxation:
    """Draw a system from the seed, the split and the attempt, relax it, and judge the outcome."""
    config = job.config
    rng = np.random.default_rng([config.seed, SPLITS.index(job.split), job.attempt])
    prototype = _choose(rng, sorted({catalyst.prototype for catalyst in job.catalysts}))
    catalyst = _choose(rng, [c for c in job.catalysts if c.prototype == prototype])
    facet = _choose(rng, FACETS)
    shape = _choose(rng, facet.shapes)
    slab = cut_slab(catalyst, facet, shape)
    adsorbate = _choose(rng, job.adsorbates)
    atoms = add_adsorbate(slab, adsorbate, rng, config.max_tilt)
    free = atoms.get_tags() > 0
    atoms.positions[free] += config.rattle * rng.normal(size=(int(free.sum()), 3))

    clean_frames, frames = _relax(slab.copy(), config), _relax(atoms, config)
    if not all(np.isfinite(frame.forces).all() for frame in (*clean_frames, *frames)):
        return Relaxation(dropped="exploded")
    zero = clean_frames[-1].energy + sum(gas_references()[symbol] for symbol, *_ in ADSORBATES[adsorbate])
    sid = f"emt-{job.split}-{job.attempt}"
    steps = [_structure(atoms, frame, zero, sid, i) for i, frame in enumerate(frames)]
    clean_sid = f"emt-slab-{catalyst.formula}-{''.join(map(str, facet.miller))}-{'x'.join(map(str, shape))}"
    clean_slab = _structure(slab, clean_frames[-1], clean_frames[-1].energy, clean_sid, 0)
    if (fmax_of(clean_slab) or 0.0) > config.fmax:
        return Relaxation(dropped="clean slab unconverged")
    reason = why_dropped(steps, config.fmax)
    if reason:
        return Relaxation(dropped=reason)
    spaced = spaced_frames(np.stack([s.positions for s in steps]), config.frame_spacing, config.max_frames)
    initial = replace(
        steps[0],
        energy=None,
        forces=None,
        fid=None,
        relaxed_energy=steps[-1].energy,
        relaxed_positions=steps[-1].positions,
    )
    return Relaxation(frames=[steps[i] for i in spaced], initial=initial, clean_slab=clean_slab)


def _choose(rng: np.random.Generator, items: Any) -> Any:
    return items[rng.integers(len(items))]


@dataclass(frozen=True)
class Frame:
    """One step of a relaxation: total EMT energy (eV), positions (Å) and forces (eV/Å) of all atoms."""

    energy: float
    positions: Float[ndarray, "n_atoms 3"]
    forces: Float[ndarray, "n_atoms 3"]


def _relax(atoms: Atoms, config: EMTConfig) -> list[Frame]:
    """All steps of a relaxation until the forces are below ``fmax``, or steps run out."""
    atoms.calc = EMT()
    frames = []
    for _ in LBFGS(atoms, logfile=None).irun(fmax=config.fmax, steps=config.max_steps):  # type: ignore[arg-type]
        # The raw results: Atoms.get_forces would zero those of fixed atoms. A copy: EMT reuses its array.
        results = atoms.calc.results
        frames.append(Frame(float(results["energy"]), atoms.positions.copy(), results["forces"].copy()))
    return frames


def why_dropped(steps: Sequence[Structure], fmax: float) -> str:
    """Why a relaxation does not belong in the data set, or an empty string.

    Args:
        steps: of the relaxation, with forces (eV/Å).
        fmax: largest force (eV/Å) of a relaxed structure.
    """
    rules = Rules(fmax=fmax)
    if any((fmax_of(step) or 0.0) > rules.max_force for step in steps):
        return "exploded"
    found = judge(steps[0], steps[-1], rules)
    return next((finding for finding in DROPPED_FOR if finding in found), "")


def _structure(atoms: Atoms, frame: Frame, zero: float, sid: str, fid: int) -> Structure:
    """One step of a relaxation, with its energy relative to ``zero`` (eV)."""
    tags = atoms.get_tags().astype(np.int64)
    return Structure(
        numbers=atoms.numbers.astype(np.int64),
        positions=frame.positions,
        cell=np.array(atoms.cell),
        pbc=np.array(atoms.pbc),
        fixed=tags == 0,
        tags=tags,
        energy=frame.energy - zero,
        forces=frame.forces,
        sid=sid,
        fid=fid,
    )


def spaced_frames(positions: Float[ndarray, "n_frames n_atoms 3"], spacing: float, max_frames: int) -> list[int]:
    """Indices of frames at least ``spacing`` (Å, of the atom that moved most) apart, at most ``max_frames``.

    The first and the last frame are always among them.
    """
    kept = [0]
    for i in range(1, len(positions) - 1):
        if np.linalg.norm(positions[i] - positions[kept[-1]], axis=1).max() >= spacing:
            kept.append(i)
    kept.append(len(positions) - 1)
    chosen = np.linspace(0, len(kept) - 1, min(max_frames, len(kept))).round().astype(int)
    return sorted({kept[i] for i in chosen})
