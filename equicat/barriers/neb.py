"""`equicat neb` and :func:`equicat.neb`: two minima and a model in, the path and the barrier between them out."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from equicat.barriers.config import NEBConfig
from equicat.barriers.driver import Band, Driver, Progress
from equicat.barriers.ends import SAME_MINIMUM, Ends, ends_of, path_of
from equicat.barriers.folder import Folder
from equicat.barriers.interpolation import collision, idpp, straight
from equicat.barriers.results import Barrier, Barriers
from equicat.barriers.saddle import frequencies
from equicat.data.batch import Batch
from equicat.data.readers import read
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.files import Existing
from equicat.models.domain import DomainWatch
from equicat.models.potential import Potential
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.held import free_directions
from equicat.relaxation.models import ForceModel, PotentialForces, force_model
from equicat.relaxation.relax import check_systems, digest_of, relax
from equicat.terminal.progress import progress_bar

States = str | Path | Structure | Atoms | Sequence[Structure | Atoms]
"""A file, or structures in memory."""


def neb(
    initial: States,
    final: States | None,
    model: str | Path | Potential | ForceModel,
    config: NEBConfig | None = None,
    *,
    out: str | Path | None = None,
    existing: Existing = "refuse",
    device: str = "cpu",
    progress: bool = True,
) -> Barriers:
    """Find minimum energy paths and barriers by nudged elastic bands, several bands in one batch.

    Args:
        initial: file or structures, one for each band; without ``final`` all images of one path.
        final: the other ends, in the same order; None: ``initial`` is a path.
        model: run directory, loaded potential, or another source of energies and forces
            (:class:`~equicat.relaxation.models.ForceModel`, such as ASE calculators).
        config: how bands are made and moved.
        out: directory for the paths, profiles, barriers and a figure; without it, nothing is written.
        existing: what to do if ``out`` holds something: refuse, resume (go on where it stopped), or overwrite.
        device: where the model of a run computes.
        progress: show a progress bar.

    Returns:
        Barriers in eV, with the paths.

    Raises:
        InputError: for ends between which there is no path (the structure is named), a model without forces, an ``out``
            that would be lost, or if not one band could be begun.
    """
    config = config or NEBConfig()
    forces = force_model(model, device)
    pairs = _pairs(initial, final, forces, config)
    folder = None if out is None else Folder(Path(out), _plan(pairs, forces, config), existing)
    relaxed = _relaxed(pairs, forces, config, folder, progress)
    begun = [_begun(number, pair, config) for number, pair in enumerate(relaxed)]
    bands = [band for band, _, _ in begun if band is not None]
    if not bands:
        raise InputError(f"{pairs[0].initial.where}: there is no path: {begun[0][2]}")
    ended = _ended(bands, forces, config, folder, progress)
    results = []
    for number, (pair, (_, failure, why)) in enumerate(zip(relaxed, begun, strict=True)):
        barrier = _barrier(number, pair, ended.get(number), failure, why, forces.energy_reference)
        results.append(_with_frequencies(barrier, forces, config) if config.check_saddle else barrier)
    _warn_outside(forces, results)
    result = Barriers(results, forces.energy_reference)
    if folder is not None:
        folder.write(result)
    return result


# ---- what goes in ----------------------------------------------------------------------------------------------------


def _pairs(initial: States, final: States | None, model: ForceModel, config: NEBConfig) -> list[Ends]:
    """The ends of all bands, checked."""
    first = _structures(initial, "initial")
    check_systems(first, model)
    if final is None:
        return [path_of(first)]
    last = _structures(final, "final")
    check_systems(last, model)
    if len(first) != len(last):
        raise InputError(
            f"{first[0].where}: {len(first)} initial and {len(last)} final structures; each frame is the end of one "
            "band, so give as many of both (of a relaxation, its last frame)"
        )
    return [ends_of(a, b, config.reorder) for a, b in zip(first, last, strict=True)]


def _structures(states: States, what: str) -> list[Structure]:
    if isinstance(states, str | Path):
        return list(read(states, labels=()))
    found = [states] if isinstance(states, Structure | Atoms) else list(states)
    if not found:
        raise InputError(f"{what}: no structures")
    named = ((f"{what} structure {k}", s) for k, s in enumerate(found))
    return [Structure.from_ase(s, source=name, labels=()) if isinstance(s, Atoms) else s for name, s in named]


def _plan(pairs: Sequence[Ends], model: ForceModel, config: NEBConfig) -> dict[str, Any]:
    """Everything that the results depend on; not how large batches are, and how far neighbour lists reach."""
    digest = hashlib.sha256()
    for pair in pairs:
        s = pair.initial
        inner = () if pair.inner is None else (pair.inner,)
        for array in (s.numbers, s.positions, pair.final.positions, s.cell, s.pbc, free_directions(s), *inner):
            digest.update(np.ascontiguousarray(array).tobytes())
    plan = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("skin", "edges")}
    return plan | {"structures": digest.hexdigest(), "model": digest_of(model)}


# ---- what is done ----------------------------------------------------------------------------------------------------


def _relaxed(
    pairs: Sequence[Ends], model: ForceModel, config: NEBConfig, folder: Folder | None, progress: bool
) -> list[Ends]:
    """The ends relaxed, or at least with energies and forces, and notes that say what was done to them."""
    ends = [end for pair in pairs for end in (pair.initial, pair.final)]
    relaxed = None if folder is None else folder.relaxed_ends(ends)
    if relaxed is None:
        steps = config.max_steps if config.relax_ends else 0
        how = RelaxConfig(fmax=config.fmax, max_steps=steps, skin=config.skin, edges=config.edges)
        done = relax(ends, model, how, progress=progress)
        assert done is not None
        relaxed = done.structures
        if folder is not None:
            folder.save_ends(relaxed)
    found = []
    for number, pair in enumerate(pairs):
        after = relaxed[2 * number : 2 * number + 2]
        said = [
            _said(name, before, end)
            for name, before, end in zip(("initial", "final"), (pair.initial, pair.final), after, strict=True)
        ]
        found.append(Ends(after[0], after[1], pair.inner, (*pair.notes, *said)))
    return found


def _said(name: str, before: Structure, after: Structure) -> str:
    """A sentence on what was done to an end."""
    info = after.info
    moved = np.linalg.norm(after.positions - before.positions, axis=1).max()
    if info["n_steps"]:
        text = f"The {name} structure was relaxed in {info['n_steps']} steps; no atom moved more than {moved:.2f} Å"
    else:
        text = f"The {name} structure was taken as it is"
    force = "no finite force" if "fmax" not in info else f"largest force {info['fmax']:.3f} eV/Å"
    minimum = "" if info["converged"] else ", so it is no minimum"
    return f"{text} ({force}{minimum}{f', {flags}' if (flags := info['flags']) else ''})."


def _begun(number: int, pair: Ends, config: NEBConfig) -> tuple[Band | None, str, str]:
    """A band with its first path; or None, a flag and a sentence that say why there is none."""
    a, b = pair.initial, pair.final
    for name, end in (("initial", a), ("final", b)):
        if end.energy is None:
            return None, "end_exploded", f"the model gives the {name} structure no finite energy and forces"
    moved = np.linalg.norm(b.positions - a.positions, axis=1).max()
    if moved < SAME_MINIMUM:
        text = f"both ends relaxed to the same minimum (no atom moves more than {moved:.3f} Å between them)"
        return None, "same_minimum", f"{text}; begin from other structures, or --relax_ends false"
    inner = pair.inner
    if inner is None:
        inner = (idpp if config.interpolation == "idpp" else straight)(a, b, config.images)
    if met := collision(a, inner):
        other = "or --interpolation idpp" if config.interpolation == "linear" and pair.inner is None else "that has not"
        return None, "collision", f"{met} on the first path; give a path of your own with --path, {other}"
    return Band(number, a, b, inner), "", ""


def _ended(
    bands: Sequence[Band], model: ForceModel, config: NEBConfig, folder: Folder | None, progress: bool
) -> dict[int, Progress]:
    """Where each band ended, by number; what was done before is taken up."""
    state = {} if folder is None else folder.progress()
    done = {number: found for number, found in state.items() if found.how != "moving"}
    todo = [band for band in bands if band.number not in done]

    starts = [state.get(band.number) or Progress.begin(band.inner) for band in todo]
    bar = progress_bar(total=len(bands), initial=len(done), desc="neb", unit="band", disable=not progress)

    def save(moving: Mapping[int, Progress]) -> None:
        if folder is not None:
            folder.save_progress({**done, **moving})
        if moving:
            furthest = max(moving.values(), key=lambda band: band.n_steps)
            bar.set_postfix_str(f"{furthest.n_steps} steps, largest force {furthest.fmax:.3f} eV/Å")

    with bar:
        for number, found in Driver(model, config, save).run(todo, starts):
            done[number] = found
            bar.update()
    save({})
    return done


# ---- what comes out --------------------------------------------------------------------------------------------------


def _barrier(number: int, pair: Ends, ended: Progress | None, failure: str, why: str, energy_reference: str) -> Barrier:
    """The result of one band; ``ended`` is None if it was not begun."""
    name = pair.initial.sid or str(number)
    notes = (*pair.notes, *([f"No path: {why}."] if why else []))
    if ended is not None and ended.how == "exploded":
        failure = "exploded"
    path = [pair.initial, pair.final]
    if ended is not None:
        inner = zip(ended.path, ended.energies, ended.forces, strict=True)
        path[1:1] = [_image(pair.initial, *image) for image in inner]
    bare = Barrier(
        number,
        name,
        path,
        converged=ended is not None and ended.how == "converged",
        n_steps=0 if ended is None else ended.n_steps,
        fmax=float("nan") if ended is None else ended.fmax,
        seconds=0.0 if ended is None else ended.seconds,
        failure=failure,
        notes=notes,
    )
    about = {"energy_reference": energy_reference, "band": number}
    named = [
        _named(image, {**about, "image": k, "reaction_coordinate": float(length)})
        for k, (image, length) in enumerate(zip(path, bare.lengths, strict=True))
    ]
    return dataclasses.replace(bare, path=named)


def _image(initial: Structure, positions: np.ndarray, energy: float, forces: np.ndarray) -> Structure:
    """An image between the ends, with energy and forces if they are finite."""
    known = bool(np.isfinite(energy))
    return dataclasses.replace(
        initial, positions=positions, energy=float(energy) if known else None, forces=forces if known else None, info={}
    )


def _named(image: Structure, about: dict[str, Any]) -> Structure:
    """The image with what there is to say about it, but without the seconds of its relaxation, other at every run."""
    info = {name: value for name, value in image.info.items() if name != "seconds"}
    return dataclasses.replace(image, fid=None, info={**info, **about})


def _with_frequencies(band: Barrier, model: ForceModel, config: NEBConfig) -> Barrier:
    """The barrier with frequencies at its highest image, if that lies between the ends."""
    saddle = band.saddle
    if saddle is None or saddle in (0, len(band.path) - 1):
        return band
    return dataclasses.replace(band, frequencies=frequencies(band.path, saddle, model, config.edges))


def _warn_outside(model: ForceModel, bands: Sequence[Barrier]) -> None:
    """Say which paths lead out of what the model was trained on: models of relaxations have seldom seen a saddle."""
    if isinstance(model, PotentialForces) and model.potential.info.domain is not None:
        watch = DomainWatch(model.potential.info.domain, model.energy_reference)
        ends = [end for band in bands for end in (band.path[0], band.path[-1])]
        inner = [image for band in bands for image in band.path[1:-1]]
        for image in ends:
            watch.look(Batch.from_structures([image], model.potential.cutoff))
        for finding in watch.findings.values():
            finding.said = True  # when the ends were relaxed
        for image in inner:
            watch.look(Batch.from_structures([image], model.potential.cutoff))
        watch.say()
