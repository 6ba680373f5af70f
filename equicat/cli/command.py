"""What every command of the command line is made of; heavy modules are imported by the command that needs them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from equicat.errors import InputError


@dataclass(frozen=True)
class Command:
    """One command: its parser and what it runs."""

    help: str
    build: Callable[..., ArgumentParser]
    run: Callable[[Namespace], None]
    prepare: Callable[[list[str]], list[str]] = field(default=lambda arguments: arguments)


class Parser(ArgumentParser):
    """Raises :class:`InputError` where argparse would print usage and exit."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        lines = [line.strip() for line in str(message).splitlines() if line.strip()]
        raise InputError(f"{self.prog}: {' '.join(lines)}")


def parser_for(name: str, description: str) -> Parser:
    """The parser of ``equicat NAME``, without options yet."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # what stands under a field is its help
    return Parser(prog=f"equicat {name}", description=description, exit_on_error=True)


def with_bare(*flags: str) -> Callable[[list[str]], list[str]]:
    """Lets these options stand without ``true``."""

    def prepare(arguments: list[str]) -> list[str]:
        after = [*arguments[1:], "--"]
        pairs = zip(arguments, after, strict=True)
        return [word for a, b in pairs for word in ([a, "true"] if a in flags and b.startswith("--") else [a])]

    return prepare


def add_run_and(parser: Parser, *names: str) -> None:
    """Add the arguments ``names``, ``run`` or ``structures``, and the options of everything that applies a model."""
    help_texts = {
        "run": "Run directory that `equicat train` wrote.",
        "structures": "Structure file (anything ASE reads, also .gz and .xz) or store.",
    }
    for name in names:
        parser.add_argument(name, help=help_texts[name])
    parser.add_argument("--batch_size", type=int, default=16, help="Structures computed together.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:0.")
    parser.add_argument("--progress", type=bool, default=True, help="Show a progress bar.")


def write_json_file(json_file: str | None, results: Mapping[str, Any]) -> None:
    """Write what a command found to the file of its option ``--json``, if that was given."""
    from equicat.files import replace_json

    if json_file is not None:
        replace_json(Path(json_file), results)
