"""A toy Open Catalyst data set in minutes: relaxations of small adsorbates on metals with ASE's EMT potential.

Laid out like OC20, down to the splits: ``val_id`` holds other systems of the kind trained on, ``val_ood_ads`` unseen
adsorbates, ``val_ood_cat`` unseen catalyst compositions, ``val_ood_both`` both. Energies are adsorption energies.
"""

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.emt import EMT
from ase.data import chemical_symbols
from ase.optimize import LBFGS
from jaxtyping import Float
from numpy import ndarray
from tqdm import tqdm

from equicat.data.contacts import bonded_groups, contact_ratios
from equicat.data.directory import SPLITS, UNSEEN, write_split
from equicat.data.info import DatasetInfo
from equicat.data.structure import Structure
from equicat.errors import InputError, nearest
from equicat.files import replacing_directory, write_json
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

VALIDATION_SHARE = 0.1
"""Of all systems, for each of the four validation splits."""

DESORBED_RATIO = 1.7
"""No adsorbate-metal distance below this many sums of covalent radii: desorbed (EMT's hydrogen sits at 1.2 to 1.5)."""
DISSOCIATED_RATIO = 1.5
"""Adsorbate not linked up by distances below this many sums of covalent radii: dissociated (EMT stretches bonds)."""
MAX_SLAB_MOVE = 1.2
"""Å; a slab atom that moved further has left its place: reconstructed."""
MAX_FORCE = 30.0
"""eV/Å; a larger force on a free atom anywhere along the relaxation: exploded."""
MAX_ATTEMPTS = 20
"""Attempts per system wanted, after which something is wrong with the configuration."""


@dataclass(frozen=True)
class EMTConfig:
    """What ``equicat data emt`` makes."""

    n_systems: int = 200
    """Relaxed systems in the data set, all splits together: 60 % train, 10 % in each validation split."""
    seed: int = 0
    """The same seed gives the same bytes, with any number of workers."""
    fmax: float = 0.05
    """Relax until the largest force on a free atom is below this (eV/Å)."""
    max_steps: int = 150
    """L-BFGS steps after which a system is dropped as not converged."""
    frame_spacing: float = 0.1
    """Keep a frame of a relaxation once some atom has moved this far (Å) since the last one kept; the first and the
    last frame always stay. This thins out the nearly force-free end."""
    max_frames: int = 12
    """Largest number of frames of one relaxation."""
    rattle: float = 0.1
    """Standard deviation (Å) of the random displacement of each free atom from its ideal place at the start, along each
    axis; 0.1 is about that of a surface atom at room temperature."""
    max_tilt: float = 30.0
    """Largest angle (degrees) between an adsorbate and its upright orientation at the start."""
    metals: tuple[str, ...] = METALS
    """Elements of the catalysts."""
    adsorbates: tuple[str, ...] = tuple(ADSORBATES)
    """Names of the adsorbates, held-out ones included."""
    workers: int | None = None
    """Processes; one for each core if not given."""

    def __post_init__(self) -> None:
        if self.n_systems < 2 * len(SPLITS):
            raise InputError(f"n_systems is {self.n_systems}; the five splits need at least {2 * len(SPLITS)} systems")
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
    """To draw from."""
    config: EMTConfig


@dataclass(frozen=True)
class Relaxation:
    """What became of a job."""

    dropped: str = ""
    """Why the system is left out, or empty."""
    frames: list[Structure] = field(default_factory=list)
    initial: Structure | None = None
    """The first frame with the relaxed energy and positions as labels."""


def make_emt_dataset(out: str | Path, config: EMTConfig | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Write the data set: ``out/s2ef/<split>``, ``out/is2re/<split>`` and ``out/dataset.json``.

    All frames are in memory until they are written: about 20 kB for each system.

    Returns:
        What ``dataset.json`` holds: description, energy reference, configuration, and for each split its numbers of
        systems and frames and how many systems were dropped for which reason. :func:`summary_text` prints it.

    Raises:
        InputError: if ``out`` exists and ``overwrite`` is False, or the configuration leaves a split without systems.
    """
    config = config or EMTConfig()
    with replacing_directory(Path(out), overwrite) as temporary:
        kept, dropped = _relax_all_splits(config)
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
            n_written = write_split(temporary, split, frames, initial, info)
            counts[split] = {**n_written, "dropped": dict(sorted(dropped[split].items()))}
        summary = {"format_version": 1, **asdict(info), "splits": counts}
        write_json(temporary / "dataset.json", summary)
    return summary


def summary_text(summary: dict[str, Any]) -> str:
    """The counts that :func:`make_emt_dataset` returns, a line for each split."""
    lines = [f"{'split':<14}{'systems':>9}{'frames':>9}  dropped"]
    for split, counts in summary["splits"].items():
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts["dropped"].items()) or "none"
        lines.append(f"{split:<14}{counts['systems']:>9,}{counts['frames']:>9,}  {reasons}")
    return "\n".join(lines)


def _relax_all_splits(config: EMTConfig) -> tuple[dict[str, list[Relaxation]], dict[str, Counter[str]]]:
    """Training systems first: the others may only hold elements that training has seen."""
    n_validation = max(1, round(VALIDATION_SHARE * config.n_systems))
    wanted = dict.fromkeys(SPLITS, n_validation) | {"train": config.n_systems - (len(SPLITS) - 1) * n_validation}
    with _workers(config.workers) as run, tqdm(total=config.n_systems, desc="relaxing", unit="system") as bar:
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
    bar: tqdm,
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
    # Each process computes on one core; the libraries read this when they are loaded, so it is set for the children.
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        with ProcessPoolExecutor(n_workers, multiprocessing.get_context("spawn")) as pool:
            yield lambda jobs: pool.map(relax_system, jobs)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def relax_system(job: Job) -> Relaxation:
    """Draw a system from the seed, the split and the attempt, relax it, and judge the outcome."""
    config = job.config
    rng = np.random.default_rng([config.seed, SPLITS.index(job.split), job.attempt])
    prototype = _choose(rng, sorted({catalyst.prototype for catalyst in job.catalysts}))
    catalyst = _choose(rng, [c for c in job.catalysts if c.prototype == prototype])
    facet = _choose(rng, FACETS)
    slab = cut_slab(catalyst, facet, _choose(rng, facet.shapes))
    adsorbate = _choose(rng, job.adsorbates)
    atoms = add_adsorbate(slab, adsorbate, rng, config.max_tilt)
    free = atoms.get_tags() > 0
    atoms.positions[free] += config.rattle * rng.normal(size=(int(free.sum()), 3))

    clean = slab.copy()
    clean_frames, clean_converged = _relax(clean, config)
    if not clean_converged:
        return Relaxation(dropped="clean slab not converged")
    frames, converged = _relax(atoms, config)
    reason = why_dropped(atoms, frames, converged)
    if reason:
        return Relaxation(dropped=reason)
    references = gas_references()
    zero = clean_frames[-1].energy + sum(references[symbol] for symbol, *_ in ADSORBATES[adsorbate])
    sid = f"emt-{job.split}-{job.attempt}"
    return _labelled(atoms, frames, zero, sid, config)


def _choose(rng: np.random.Generator, items: Any) -> Any:
    return items[rng.integers(len(items))]


@dataclass(frozen=True)
class Frame:
    """One step of a relaxation: total EMT energy (eV), positions (Å) and forces (eV/Å) of all atoms."""

    energy: float
    positions: Float[ndarray, "n_atoms 3"]
    forces: Float[ndarray, "n_atoms 3"]


def _relax(atoms: Atoms, config: EMTConfig) -> tuple[list[Frame], bool]:
    """Relax in place; every step, and whether the forces went below ``fmax``."""
    atoms.calc = EMT()
    frames = []
    converged = False
    optimizer = LBFGS(atoms, logfile=None)  # type: ignore[arg-type]
    for converged in optimizer.irun(fmax=config.fmax, steps=config.max_steps):  # noqa: B007 - its last value counts
        # The raw results: Atoms.get_forces would zero those of fixed atoms. A copy: EMT reuses its array.
        results = atoms.calc.results
        frames.append(Frame(float(results["energy"]), atoms.positions.copy(), results["forces"].copy()))
    return frames, bool(converged)


def why_dropped(atoms: Atoms, frames: list[Frame], converged: bool) -> str:
    """Why a relaxed system does not belong in the data set, or an empty string."""
    adsorbate, free = atoms.get_tags() == 2, atoms.get_tags() > 0
    if not all(np.abs(frame.forces[free]).max() < MAX_FORCE for frame in frames):
        return "exploded"
    if not converged:
        return "not converged"
    ratio = contact_ratios(atoms.numbers, atoms.positions, np.array(atoms.cell), np.array(atoms.pbc), adsorbate)
    if ratio[:, ~adsorbate].min() > DESORBED_RATIO:
        return "desorbed"
    if bonded_groups(ratio[:, adsorbate], DISSOCIATED_RATIO).any():
        return "dissociated"
    moved = np.linalg.norm(frames[-1].positions - frames[0].positions, axis=1)
    return "reconstructed" if moved[~adsorbate].max() > MAX_SLAB_MOVE else ""


def _labelled(atoms: Atoms, frames: list[Frame], zero: float, sid: str, config: EMTConfig) -> Relaxation:
    """The frames to keep, with energies relative to ``zero`` (eV), and the initial structure."""
    tags = atoms.get_tags().astype(np.int64)
    system: dict[str, Any] = {
        "numbers": atoms.numbers.astype(np.int64),
        "cell": np.array(atoms.cell),
        "pbc": np.array(atoms.pbc),
        "fixed": tags == 0,
        "tags": tags,
        "sid": sid,
    }
    kept = [
        Structure(
            **system,
            positions=frames[i].positions,
            energy=frames[i].energy - zero,
            forces=frames[i].forces,
            fid=i,
        )
        for i in spaced_frames(np.stack([f.positions for f in frames]), config.frame_spacing, config.max_frames)
    ]
    initial = Structure(
        **system,
        positions=frames[0].positions,
        relaxed_energy=frames[-1].energy - zero,
        relaxed_positions=frames[-1].positions,
    )
    return Relaxation(frames=kept, initial=initial)


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
