"""`equicat bench`: what is measured is printed, and written as JSON and as a figure."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from equicat.cli.runs import write_json
from equicat.options.values import Length, Range

ATOMS = (300, 1000, 3000, 10000, 30000, 100000)


def speed(
    *,
    sizes: Annotated[tuple[Literal["small", "paper"], ...], Length(1)] = ("small", "paper"),
    json: str | None = None,
    figure: str | None = None,
    **options: Any,
) -> None:
    """Training step, inference, first step and memory beside nequip-allegro, with the same weights.

    Args:
        sizes: Models to measure.
        json: Write the measurements to this file.
        figure: Draw them to this file (.png, .svg or .pdf).
    """
    from equicat.bench import report
    from equicat.bench import speed as bench

    results = bench.speed(bench.BenchConfig(**options), sizes, partial(write_json, json))
    print(report.speed_text(results))
    if figure is not None:
        report.speed_figure(results, Path(figure))


def scaling(
    *,
    atoms: Annotated[tuple[Annotated[int, Range(at_least=1, at_most=10**7)], ...], Length(1)] = ATOMS,
    systems: Annotated[tuple[Literal["bulk", "slab"], ...], Length(1)] = ("bulk", "slab"),
    json: str | None = None,
    figure: str | None = None,
    **options: Any,
) -> None:
    """Time and memory of an inference against the size of the system.

    Args:
        atoms: Numbers of atoms, about; up to what memory allows.
        systems: Copper as bulk and as slab.
        json: Write the measurements to this file.
        figure: Draw them to this file (.png, .svg or .pdf).
    """
    from equicat.bench import report
    from equicat.bench import scaling as bench
    from equicat.bench.speed import BenchConfig

    results = bench.scaling(BenchConfig(**options), atoms, systems)
    print(report.scaling_text(results))
    write_json(json, results)
    if figure is not None:
        report.scaling_figure(results, Path(figure))


def md(*, json: str | None = None, **options: Any) -> None:
    """Milliseconds a step of ASE's molecular dynamics with the calculator, and what takes them.

    Args:
        json: Write the measurements to this file.
    """
    from equicat.bench import md as bench

    results = bench.md(bench.MDConfig(**options))
    print(bench.md_text(results))
    write_json(json, results)


def data(store: str, *, json: str | None = None, **options: Any) -> None:
    """Structures a second and memory of reading a store, against fairchem's LMDB.

    Args:
        store: Store with energies and forces.
        json: Write the measurements to this file.
    """
    from equicat.bench import data as bench

    results = bench.bench_data(store, bench.DataBenchConfig(**options))
    print(bench.as_text(results))
    write_json(json, results)
