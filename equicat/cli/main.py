"""The command line: one parser with a subcommand for every command; bad input is one line and exit status 2."""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from jsonargparse import Namespace

from equicat import __version__
from equicat.cli import bench, completion, data, neb, relax, runs, search, serve, study, vibrations
from equicat.cli.export import export
from equicat.cli.lammps import LammpsParser
from equicat.cli.train import TrainParser
from equicat.errors import InputError, Remark
from equicat.options.parser import Parser


def complete(shell: Literal["bash", "zsh", "tcsh"]) -> None:
    """Print a script that makes a shell complete commands, options and their values.

    bash: `equicat completion bash > ~/.local/share/bash-completion/completions/equicat`; zsh: write to a file named
    `_equicat` in a folder of `$fpath`; tcsh: write to a file that `~/.tcshrc` sources. Then open a new shell.

    Args:
        shell: Which shell.
    """
    print(completion.script(command_line(), shell))


Commands = Mapping[str, Any]
"""Commands by name: each is a function, a class of parsers of one, or a set of further commands."""

COMMANDS: Commands = {
    "demo": runs.demo,
    "train": TrainParser,
    "search": search.search,
    "evaluate": runs.evaluate,
    "predict": runs.predict,
    "select": runs.select,
    "label": runs.label,
    "info": runs.info,
    "relax": relax.relax,
    "adsorb": relax.adsorb,
    "serve": serve.serve,
    "vibrations": vibrations.vibrations,
    "neb": neb.neb,
    "lammps": LammpsParser,
    "report": runs.report,
    "data": {
        "emt": data.emt,
        "import": data.import_files,
        "oc20": data.oc20,
        "subset": data.subset,
        "info": data.info,
    },
    "bench": {"speed": bench.speed, "scaling": bench.scaling, "md": bench.md, "data": bench.data},
    "study": {
        "table1": study.table1,
        "l-max": study.l_max,
        "data-efficiency": study.data_efficiency,
        "locality": study.locality,
        "curves": study.curves,
    },
    "export": export,
    "convert": {"nequip-allegro": runs.convert_nequip_allegro},
    "completion": complete,
}


def command_line() -> Parser:
    """The parser of all commands."""
    about = f"equicat {__version__}: catalysis simulations with strictly local equivariant models"
    parser = Parser(prog="equicat", description=about)
    parser.add_argument("--version", action="version", version=__version__)
    _add(parser, COMMANDS)
    return parser


def _add(parser: Parser, commands: Commands) -> None:
    subcommands = parser.add_subcommands(
        title="commands", description="COMMAND --help tells its options, units and defaults.", metavar="COMMAND"
    )
    for name, command in commands.items():
        if isinstance(command, Mapping):
            child, summary = Parser(), ", ".join(command)
        else:
            child = command() if isinstance(command, type) else Parser(command)
            summary = (child.description or "").splitlines()[0]
        parser.commands[name] = child
        subcommands.add_subcommand(name, child, help=summary)
        child.prog = f"{parser.prog} {name}"
        if isinstance(command, Mapping):
            _add(child, command)


def chosen(parser: Parser, options: Namespace) -> tuple[Callable[..., None], dict[str, Any]]:
    """The function of the command that was given, and its arguments."""
    while parser.owner is None:
        name = options.subcommand
        parser, options = parser.commands[name], options[name]
    values = options.as_dict().items()
    return parser.owner, {name: tuple(value) if isinstance(value, list) else value for name, value in values}


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Shows what users should know as one line, once; other warnings keep their place in the code."""
    with warnings.catch_warnings():
        usual, shown = warnings.showwarning, set[str]()

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if not issubclass(category, Remark):
                usual(message, category, *place, **more)
            elif str(message) not in shown:
                shown.add(str(message))
                print(f"equicat: warning: {message}", file=sys.stderr)

        warnings.showwarning = show
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the ``equicat`` command: exit status 0, or 2 and one line for bad input."""
    try:
        parser = command_line()
        options = parser.parse_args(list(sys.argv[1:] if arguments is None else arguments) or ["--help"])
        command, values = chosen(parser, parser.instantiate(options))
        with _plain_warnings():
            command(**values)
    except InputError as error:
        print("equicat: " + "\n  ".join(" ".join(line.split()) for line in error.lines), file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except OSError as error:  # of a path that was given: not there, a file in the place of a directory, no permission
        if error.filename is None:
            raise
        print(f"equicat: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("equicat: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
