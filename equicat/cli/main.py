"""The command line: finds the command, lets it parse, calls it; bad input is one line and exit status 2."""

import sys
from collections.abc import Sequence
from typing import Any

from equicat import __version__
from equicat.cli import adsorb, bench, data, relax, runs
from equicat.errors import InputError, nearest

COMMANDS = runs.COMMANDS | relax.COMMANDS | adsorb.COMMANDS | data.COMMANDS | bench.COMMANDS


def _usage() -> str:
    lines = [f"equicat {__version__}: catalysis simulations with strictly local equivariant models", ""]
    lines += [f"  equicat {name:<10} {command.help}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "`equicat COMMAND --help` tells the options, units and defaults of a command."])


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    if arguments[0] == "--version":
        print(__version__)
        return
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            command = COMMANDS[name]
            rest = arguments[words:]
            help_wanted = any(a in ("-h", "--help") for a in rest)
            rest = rest if help_wanted else command.prepare(rest)
            parser = command.build(rest) if name == "train" else command.build()
            command.run(parser.parse_args(rest))
            return
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    name = " ".join(arguments[:2] if arguments[0] in groups else arguments[:1])
    raise InputError(f"no command {name!r}{nearest(name, COMMANDS)}; commands: {', '.join(COMMANDS)}")


def main(arguments: Sequence[str] | None = None) -> Any:
    """Entry point of the ``equicat`` command: exit status 0, or 2 and one line for bad input."""
    try:
        _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except InputError as error:
        print("equicat: " + "\n  ".join(" ".join(line.split()) for line in error.lines), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("equicat: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
