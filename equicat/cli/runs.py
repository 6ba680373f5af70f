"""`equicat demo`, `evaluate`, `predict`, `select`, `label`, `info`, `report` and `convert`.

A command is a function: its signature gives the options, and what it hands ``**options`` to gives further ones. What is
costly to import is imported inside, once the command is known.
"""

from pathlib import Path
from typing import Annotated, Any

from equicat.errors import InputError
from equicat.files import existing_of
from equicat.options.values import Words, Workers
from equicat.relaxation.config import RelaxConfig

RELAXATION = RelaxConfig()
"""How `equicat evaluate --relax` relaxes unless told otherwise."""


def demo(*, out: str = "demo", overwrite: bool = False) -> None:
    """The whole main job in minutes: make data, train, evaluate on four splits, report.

    Args:
        out: Directory for data and runs.
        overwrite: Replace what is there.
    """
    from equicat.studies import demo as study

    study.demo(Path(out), overwrite=overwrite)


def evaluate(
    *,
    relax: bool = False,
    direct: str | None = None,
    relaxation: RelaxConfig = RELAXATION,
    json: str | None = None,
    **options: Any,
) -> None:
    """OC20's metrics of a run on every split, trivial baselines beside them.

    Args:
        relax: Relax the initial structures of the is2re splits, and compare with the relaxed ones (model of s2ef).
        direct: With --relax, a run trained for is2re or is2rs, to stand beside.
        relaxation: How to relax.
        json: Write the metrics to this file as well.

    Raises:
        InputError: if a direct run is named without --relax.
    """
    from equicat.apply import evaluate as apply
    from equicat.apply import evaluate_relaxations as relaxations
    from equicat.apply.results import as_text

    if relax:
        given = {name: options[name] for name in ("run", "data", "out", "device", "progress", "energy_reference")}
        minus_clean_slab = options["minus_clean_slab"]
        beside = relaxations.Beside(direct, minus_clean_slab)
        summary = relaxations.evaluate_relaxations(config=relaxation, beside=beside, **given)
        text = relaxations.as_text(summary)
    else:
        if direct is not None:
            raise InputError("--direct: stands beside relaxations; give --relax as well, or evaluate that run itself")
        summary = apply.evaluate(**options)
        text = as_text(summary)
    print(f"{text}\n\nwritten: {', '.join(summary['written'])}")
    write_json(json, summary)


def predict(
    run: str,
    structures: Annotated[tuple[str, ...], Words(positional=True)],
    *,
    relax: bool = False,
    relaxation: RelaxConfig = RELAXATION,
    resume: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Energies (eV) and forces (eV/Å) of structures, or relaxed energies and positions.

    Args:
        run: Run directory that `equicat train` wrote.
        structures: Structure files (anything ASE reads, also .gz and .xz), globs of them and folders with them, or one
            store; for a submission, the directory of a data set.
        relax: Relax the structures, and write OC20's leaderboard file of is2re and is2rs (model of s2ef, .npz).
        relaxation: With --relax, how to relax.
        resume: With --relax, go on with an interrupted relaxation.
        overwrite: With --relax, begin anew, and replace what is there.
    """
    from equicat.apply import predict as apply
    from equicat.apply.predict_relaxed import predict_relaxed

    out = options["out"]
    if relax:
        given = {name: options[name] for name in ("out", "submission", "device", "progress")}
        existing = existing_of(resume, overwrite)
        n_relaxed = predict_relaxed(run, structures, relaxation, existing=existing, **given)
        others = "this process is done; others still have systems to finish"
        print(others if n_relaxed is None else f"{n_relaxed} structures: {out}")
        return
    n_structures = apply.predict(run=run, structures=structures, **options)
    if Path(out).suffix != ".npz":
        print(apply.as_text(out, n_structures))
    print(f"{n_structures} structures: {out}")


def select(
    run: str,
    structures: Annotated[tuple[str, ...], Words(positional=True)],
    **options: Any,
) -> None:
    """The structures to label next: unlike the training data of a run, and unlike each other.

    Args:
        run: Run directory that `equicat train` wrote.
        structures: Structure files, globs of them and folders with them, or one store; labels are not looked at.
    """
    from equicat.apply import select as apply

    chosen = apply.select(run=run, structures=structures, **options)
    print("\n".join(f"{grade:8.2f}  {name}" for name, grade in chosen))
    print(f"{len(chosen)} structures, a grade above 1 is unlike the training data: {options['out']}")


def label(
    calculator: str,
    structures: Annotated[tuple[str, ...], Words(positional=True)],
    *,
    out: str,
    workers: Workers = 1,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> None:
    """Energies and forces of structures by any ASE calculator, in several processes, to train on.

    Args:
        calculator: A function that makes an ASE calculator, as module:function, such as ase.calculators.emt:EMT, or
            with plain keyword arguments, module:function(name=value). The module may lie in the working directory.
        structures: Structure files (anything ASE reads, also .gz and .xz), globs of them and folders with them, or one
            store; their labels are not looked at.
        out: File to write: extxyz (also .gz, .xz).
        workers: Processes, with one calculator each.
        resume: Go on with an interrupted labelling: no structure that was finished is computed again.
        overwrite: Begin anew, and replace what is there.
        progress: Show a progress bar.
    """
    from equicat.apply import label as apply
    from equicat.relaxation.parts import Output
    from equicat.sources.labelling import LabelConfig

    output = Output(out, None, resume, overwrite)
    config = LabelConfig(**options)
    done = apply.label(calculator, structures, config, out=output, workers=workers, progress=progress)
    if done is None:
        print("this process is done; others still have structures to label")
        return
    for name, reason in done.failed.items():
        print(f"failed: {name}: {reason}")
    print(f"{done.n_structures} structures, {done.n_frames} frames, {done.seconds:.3g} s a structure")
    print(f"written: {', '.join(map(str, done.written))}")


def info(run: str) -> None:
    """A run in a few lines: task, elements, energies, data, size, errors, versions.

    Args:
        run: Run directory that `equicat train` wrote.
    """
    from equicat.apply import info as apply

    print(apply.as_text(apply.describe(run)))


def report(runs: Annotated[tuple[str, ...], Words(positional=True)], **options: Any) -> None:
    """One self-contained HTML page about a run, or about several side by side.

    Args:
        runs: Run directories that `equicat train` wrote.

    Raises:
        InputError: if evaluations are chosen of several runs, whose page shows all of them.
    """
    from equicat.report import compare, page

    if len(runs) == 1:
        print(page.write_report(run_dir=Path(runs[0]), **options))
        return
    if options["evaluations"]:
        raise InputError("--evaluations: a page about several runs shows all evaluations; leave it out")
    print(compare.write_comparison(runs, out=options["out"], figures=options["figures"]))


def convert_nequip_allegro(**options: Any) -> None:
    """A model of the nequip-allegro package as a run: the same numbers, faster."""
    from equicat.interfaces import nequip_allegro

    nequip_allegro.convert(**options)
    out = options["out"]
    print(f"run: {out}\nto tune it: equicat train {out}/finetune.yaml --data DATA --run.out …")


def write_json(path: str | None, results: Any) -> None:
    """Write what a command found to the file of its option ``--json``, if that was given."""
    from equicat.files import replace_json

    if path is not None:
        replace_json(Path(path), results)
