"""`equicat label`: structures in, the same with energies and forces of any ASE calculator out.

Finished structures survive a kill, several processes and jobs share the work, and one that fails stops no other.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase

from equicat import __version__
from equicat.data.datasets import Dataset, open_structures
from equicat.data.readers import stem_of, write
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.files import replace_json
from equicat.options.values import Workers
from equicat.relaxation.parts import Output, Parts, Share, digest_of
from equicat.sources.labelling import Label, LabelConfig, factory_of, labels
from equicat.terminal.progress import progress_bar

CONFIG = LabelConfig()
"""How structures are labelled unless told otherwise."""


@dataclass(frozen=True)
class Labelled:
    """Outcome of a labelling."""

    n_structures: int
    """Structures that have labels."""
    n_frames: int
    """Frames that were written: more, where structures were relaxed."""
    seconds: float
    """Time of the calculator on a structure, on average."""
    failed: dict[str, str]
    """The reason for each structure that has none, by its name."""
    written: tuple[Path, ...]


def label(
    calculator: str,
    structures: Sequence[str | Path],
    config: LabelConfig = CONFIG,
    *,
    out: Output,
    workers: Workers = 1,
    progress: bool = True,
) -> Labelled | None:
    """Label structures with energies (eV), forces (eV/Å) and, where it comes with them, stress (eV/Å³).

    The file has total energies, all forces, those of fixed atoms included, and no other labels than the calculator's;
    structures without an id get one. Beside it, ``NAME.label.json`` says with what it was made, and
    ``NAME.failed.extxyz`` has the structures without labels, with the reason as ``error``; it can be labelled in turn.

    Args:
        calculator: ``module:factory``, a function that makes an ASE calculator, with plain keyword arguments if need
            be; see :func:`~equicat.sources.labelling.factory_of`.
        structures: files, globs, folders with files, or one store; their labels are not looked at.
        config: how.
        out: extxyz file, and what to do with what is there.
        workers: processes, with one calculator each.
        progress: show a progress bar.

    Returns:
        What was done; None if other jobs still have structures to label.

    Raises:
        InputError: if there is no such calculator, there are no structures, something is there that would be lost, or
            no structure could be labelled.
    """
    factory_of(calculator)
    dataset, share = open_structures(structures), Share.from_environment()
    plan = {"n_systems": len(dataset), "structures": digest_of(dataset), "calculator": calculator}
    parts = Parts(out, plan | dataclasses.asdict(config), share, Label.from_line, "labelling")
    done, numbers = parts.finished(), share.of(len(dataset))
    todo = [k for k in numbers if k not in done]
    tasks = ((k, dataset[k]) for k in todo)
    calculations = parts.out.with_name(f"{stem_of(parts.out)}.calculations").absolute()
    folder = calculations if config.fresh else parts.folder.absolute() / f"rank{share.rank}"
    n_before = len(numbers) - len(todo)
    with progress_bar(
        total=len(numbers), initial=n_before, desc="label", unit="structure", disable=not progress
    ) as bar:
        for found in labels(tasks, calculator, config, min(workers, len(todo)), folder):
            parts.append(found)
            bar.update()
    done = parts.finished()
    if len(done) < len(dataset):
        return None
    result = _write(parts.out, dataset, [done[k] for k in range(len(dataset))], calculator, config)
    parts.remove()
    if calculations.is_dir() and not any(calculations.iterdir()):
        calculations.rmdir()
    return result


def _write(out: Path, dataset: Dataset, found: Sequence[Label], calculator: str, config: LabelConfig) -> Labelled:
    """Write the labelled structures, those that failed, and how it was done.

    Raises:
        InputError: if all failed.
    """
    bad = [(f, _failed(dataset[f.number], f)) for f in found if f.error]
    good = [f for f in found if not f.error]
    failed = {structure.id or structure.where: label.error for label, structure in bad}
    failed_file, notes = (out.with_name(f"{stem_of(out)}.{ending}") for ending in ("failed.extxyz", "label.json"))
    failed_file.unlink(missing_ok=True)
    if bad:
        write(failed_file, (structure for _, structure in bad))
    if not good:
        raise InputError(f"{calculator}: no structure could be labelled; the first of {len(bad)}: {bad[0][0].error}")
    n_frames = write(out, (s for f in good for s in f.structures(dataset[f.number], calculator)))
    seconds = sum(f.seconds for f in good) / len(good)
    replace_json(notes, _notes(good, calculator, config) | {"seconds_a_structure": seconds, "failed": failed})
    written = (out, notes, failed_file) if bad else (out, notes)
    return Labelled(len(good), n_frames, seconds, failed, written)


def _failed(structure: Structure, found: Label) -> Structure:
    """A structure without labels, and the reason why."""
    return dataclasses.replace(structure.without_labels(), info={**structure.info, "error": found.error})


def _notes(found: Sequence[Label], calculator: str, config: LabelConfig) -> dict[str, Any]:
    """The calculator, its settings, and versions; settings that differ between structures are all listed."""
    parameters: list[dict[str, Any]] = []
    for each in found:
        if each.parameters not in parameters:
            parameters.append(each.parameters)
    module, _, factory = calculator.partition(":")
    return {
        "calculator": {"module": module, "factory": factory, "parameters": parameters},
        "energy_reference": "total",
        "settings": dataclasses.asdict(config),
        "versions": {"equicat": __version__, "ase": ase.__version__},
        "n_structures": len(found),
    }
