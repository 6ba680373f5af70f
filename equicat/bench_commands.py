"""Options of `equicat bench`, and what it prints and writes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from equicat.bench import BenchConfig, speed
from equicat.bench_report import scaling_figure, scaling_text, speed_figure, speed_text
from equicat.bench_scaling import scaling
from equicat.files import replacing_file, write_json

ATOMS = (300, 1000, 3000, 10000, 30000, 100000)


def _options(parser: ArgumentParser) -> None:
    parser.add_class_arguments(BenchConfig, as_group=False)
    parser.add_argument("--json", type=str | None, default=None, help="Write the measurements to this file.")
    parser.add_argument("--figure", type=str | None, default=None, help="Draw them to this file (.png, .svg or .pdf).")


def speed_options(parser: ArgumentParser) -> ArgumentParser:
    """The parser with the options of `equicat bench speed`."""
    _options(parser)
    parser.add_argument("--sizes", type=tuple[str, ...], default=("small", "paper"), help="Models: small, paper.")
    return parser


def scaling_options(parser: ArgumentParser) -> ArgumentParser:
    """The parser with the options of `equicat bench scaling`."""
    _options(parser)
    parser.add_argument("--atoms", type=tuple[int, ...], default=ATOMS, help="Sizes, about; up to what memory allows.")
    parser.add_argument("--systems", type=tuple[str, ...], default=("bulk", "slab"), help="Copper: bulk, slab.")
    return parser


def run_speed(options: dict[str, Any]) -> None:
    """`equicat bench speed`."""
    json_file, figure, sizes = (options.pop(name) for name in ("json", "figure", "sizes"))
    _write(speed(BenchConfig(**options), sizes), json_file, figure, speed_text, speed_figure)


def run_scaling(options: dict[str, Any]) -> None:
    """`equicat bench scaling`."""
    json_file, figure, atoms, systems = (options.pop(name) for name in ("json", "figure", "atoms", "systems"))
    _write(scaling(BenchConfig(**options), atoms, systems), json_file, figure, scaling_text, scaling_figure)


def _write(
    results: Mapping[str, Any],
    json_file: str | None,
    figure: str | None,
    text: Callable[[Mapping[str, Any]], str],
    draw: Callable[[Mapping[str, Any], Path], None],
) -> None:
    print(text(results))
    if json_file is not None:
        with replacing_file(Path(json_file)) as temporary:
            write_json(temporary, results)
    if figure is not None:
        draw(results, Path(figure))
