"""`equicat bench …`: what is measured is printed, and written as JSON and as a figure."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from equicat.cli.command import Command, parser_for, write_json_file

ATOMS = (300, 1000, 3000, 10000, 30000, 100000)


def _options(parser: ArgumentParser) -> ArgumentParser:
    from equicat.bench.speed import BenchConfig

    parser.add_class_arguments(BenchConfig, as_group=False)
    parser.add_argument("--json", type=str | None, default=None, help="Write the measurements to this file.")
    parser.add_argument("--figure", type=str | None, default=None, help="Draw them to this file (.png, .svg or .pdf).")
    return parser


def _speed_parser() -> ArgumentParser:
    text = "Training step, inference, first step and memory beside nequip-allegro, with the same weights."
    parser = _options(parser_for("bench speed", text))
    parser.add_argument("--sizes", type=tuple[str, ...], default=("small", "paper"), help="Models: small, paper.")
    return parser


def _speed(options: Namespace) -> None:
    from equicat.bench.report import speed_figure, speed_text
    from equicat.bench.speed import BenchConfig, speed

    values = options.as_dict()
    json_file, figure, sizes = (values.pop(name) for name in ("json", "figure", "sizes"))
    _show(
        speed(BenchConfig(**values), sizes, partial(write_json_file, json_file)),
        speed_text,
        json_file,
        figure,
        speed_figure,
    )


def _scaling_parser() -> ArgumentParser:
    text = "Time and memory of an inference against the size of the system."
    parser = _options(parser_for("bench scaling", text))
    parser.add_argument("--atoms", type=tuple[int, ...], default=ATOMS, help="Sizes, about; up to what memory allows.")
    parser.add_argument("--systems", type=tuple[str, ...], default=("bulk", "slab"), help="Copper: bulk, slab.")
    return parser


def _scaling(options: Namespace) -> None:
    from equicat.bench.report import scaling_figure, scaling_text
    from equicat.bench.scaling import scaling
    from equicat.bench.speed import BenchConfig

    values = options.as_dict()
    json_file, figure, atoms, systems = (values.pop(name) for name in ("json", "figure", "atoms", "systems"))
    _show(scaling(BenchConfig(**values), atoms, systems), scaling_text, json_file, figure, scaling_figure)


def _data_parser() -> ArgumentParser:
    from equicat.bench.data import DataBenchConfig

    parser = parser_for("bench data", "Structures a second and memory of reading a store, against fairchem's LMDB.")
    parser.add_argument("store", help="Store with energies and forces.")
    parser.add_class_arguments(DataBenchConfig, as_group=False)
    parser.add_argument("--json", type=str | None, default=None, help="Write the measurements to this file.")
    return parser


def _data(options: Namespace) -> None:
    from equicat.bench.data import DataBenchConfig, as_text, bench_data

    values = options.as_dict()
    store, json_file = values.pop("store"), values.pop("json")
    _show(bench_data(store, DataBenchConfig(**values)), as_text, json_file)


def _show(
    results: Mapping[str, Any],
    text: Callable[[Mapping[str, Any]], str],
    json_file: str | None,
    figure: str | None = None,
    draw: Callable[[Mapping[str, Any], Path], None] | None = None,
) -> None:
    print(text(results))
    write_json_file(json_file, results)
    if figure is not None and draw is not None:
        draw(results, Path(figure))


COMMANDS = {
    "bench speed": Command("speed beside nequip-allegro", _speed_parser, _speed),
    "bench scaling": Command("time and memory against size", _scaling_parser, _scaling),
    "bench data": Command("how fast data are read", _data_parser, _data),
}
