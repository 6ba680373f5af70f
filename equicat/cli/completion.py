"""Scripts with which shells complete commands, options and their values."""

from typing import Literal, get_args, get_origin

from equicat.options.parser import Parser, Value


def script(parser: Parser, shell: str) -> str:
    """A script for a shell that completes what a parser knows: commands, options, and values to choose from."""
    import shtab

    return shtab.complete(_filled(parser), shell=shell)


def _filled(parser: Parser) -> Parser:
    """A parser with the options of all commands, which otherwise wait until they are needed, and their choices."""
    parser.fill()
    for action in parser._actions:
        if isinstance(action.type, Value) and get_origin(action.type.hint) is Literal:
            action.choices = [str(choice) for choice in get_args(action.type.hint)]
    for command in parser.commands.values():
        _filled(command)
    return parser
