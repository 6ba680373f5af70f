"""The parser of the command line and of configurations: jsonargparse, with our types, limits and messages.

jsonargparse makes options of the signature and the docstring of a function, and of those functions and dataclasses that
it hands its ``**options`` to. What a value may be is read by :mod:`equicat.options.values`: there are limits, one value
may stand for a list of one, and text stays text.
"""

import difflib
import inspect
import re
import sys
from argparse import Action
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from types import MappingProxyType, UnionType
from typing import Any, NoReturn, Union, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, _core, set_parsing_settings
from jsonargparse._core import ActionsContainer, ArgumentGroup

from equicat.errors import InputError, nearest
from equicat.options.values import Imported, Words, read_value, shown, words


class Value:
    """Reads the value of one option; as text it says what the option may be."""

    def __init__(self, name: str, hint: Any):
        self.name, self.hint = name, hint

    def __call__(self, value: Any) -> Any:
        """The value as its type asks for it.

        Raises:
            InputError: naming the option, its value and what it may be.
        """
        return read_value(self.name, value, self.hint)

    def __repr__(self) -> str:
        return words(self.hint)


class Help(DefaultHelpFormatter):
    """Says of each option what it may be, and its default as one would type it."""

    def _get_help_string(self, action: Action) -> str:
        if not isinstance(action.type, Value):
            return super()._get_help_string(action)
        default = f"; default: {shown(action.default)}" if action.option_strings and not action.required else ""
        return f"{action.help or ''} ({action.type!r}{default})"


class Options(ActionsContainer):
    """Options whose values are read by :class:`Value`."""

    chosen: Mapping[str, str] = MappingProxyType({})
    """The ``name`` of the dataclass that is meant, for each option whose type is a union of dataclasses."""

    def add_argument(self, *names: Any, **how: Any) -> Any:
        """Add one option, its type hint as ``type``; jsonargparse calls this for every parameter that it finds."""
        action = how.get("action")
        if how.keys() == {"action"} and not isinstance(action, str):
            return Action([], "")  # we do without --run FILE, which loads a group of options, and the help of classes
        hint = how.get("type", getattr(action, "_typehint", None))
        if hint is None:  # --help, --version
            return super().add_argument(*names, **how)
        how.pop("action", None)
        name = names[0].lstrip("-").rstrip("_")
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
        if named := {member.name: member for member in members if is_dataclass(member)}:  # type: ignore[union-attr]
            hint, how = self.member(name, named, how)
        if is_dataclass(hint):
            return super().add_argument(f"--{name}", **how | {"type": hint})
        if name != names[0].lstrip("-"):  # `from_` is the option --from
            names, how["dest"], how["metavar"] = (f"--{name}",), names[0].lstrip("-"), name.upper()
        if hint is bool:  # --strict is short for --strict true
            how |= {"nargs": "?", "const": True}
        for part in getattr(hint, "__metadata__", ()):
            if isinstance(part, Words):
                names = (name,) if part.positional else names
                how["nargs"] = "*" if part.positional and "default" in how else "+"
                hint = get_args(get_args(hint)[0])[0]
                if isinstance(how.get("default"), tuple):
                    how["default"] = list(how["default"])  # jsonargparse reads the entries where they are
        return super().add_argument(*names, **how | {"type": Value(name, hint)})

    def member(self, name: str, members: Mapping[str, Any], how: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The dataclass that an option is, of a union of them by name, and how to add it."""
        default = how.pop("default").name
        chosen = self.chosen.get(name, default)
        imported = [member for member in members.values() if issubclass(member, Imported)]
        if ":" in chosen and imported:
            members = {**members, chosen: imported[0].find(chosen)}
        if chosen not in members:
            raise InputError(f"{name}.name is {chosen}{nearest(chosen, members)}; it must be {one_of(members)}")
        how["help"] = f"{how.get('help')} {name}.name may be {one_of(members)}"
        return members[chosen], how


class Group(Options, ArgumentGroup):
    """A group of options, such as those of one dataclass."""


def _group_class(parser: ArgumentParser, usual: Callable[..., type] = _core.get_argument_group_class) -> type:
    """The class of a parser's groups.

    For each parser, and each command has one, jsonargparse compiles one from the source of ``add_argument``, in three
    quarters of the time that it takes to read a command line. Parsers of other packages keep theirs.
    """
    return Group if isinstance(parser, Options) else usual(parser)


_core.get_argument_group_class = _group_class


class Parser(Options, ArgumentParser):
    """Options of a function or dataclass, added when they are first needed: finding them may import much.

    Where a type is a union of dataclasses, each with a ``name``, the options are those of the one that the values given
    to :meth:`read` name; otherwise those of the default.

    Args:
        owner: the function or dataclass.
        settings: see jsonargparse.
    """

    def __init__(self, owner: Callable[..., Any] | None = None, **settings: Any):
        description = inspect.cleandoc(owner.__doc__ or "").split("\n\nArgs:")[0] if owner else None
        defaults = {"description": description, "formatter_class": Help, "allow_abbrev": False, "print_config": None}
        super().__init__(**defaults | settings)
        self._negative_number_matcher = re.compile(r"-\.?(\d|inf|nan)")  # argparse takes -1e-3 for an option
        self.owner, self.filled = owner, False
        self.explains = True
        """Whether options have their help. It stands under the fields of classes, whose source is parsed for it."""
        self.commands: dict[str, Parser] = {}

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None, **settings: Any
    ) -> Namespace:
        """The values of all options from words of a command line.

        Raises:
            InputError: for an unknown or a missing option, or a value that is not what the option may be.
        """
        self.explains = asks_for_help(sys.argv[1:] if args is None else args)
        self.fill()
        return super().parse_args(args, namespace, **settings)

    def read(self, values: Mapping[str, Any], source: str = "") -> Namespace:
        """The values of all options from the mappings of a file.

        Args:
            values: by part and option, as YAML holds them.
            source: the file's name, for messages.

        Raises:
            InputError: for an unknown option, or a value that is not what the option may be.
        """
        self.chosen = chosen_in(values)
        try:
            self.fill()
            return self.parse_object(self._known(values))
        except InputError as error:
            raise InputError(f"{source}: {error}" if source else str(error)) from error

    def fill(self) -> None:
        """Add the options of the owner, unless they are there."""
        if self.owner is None or self.filled:
            return
        self.filled = True
        set_parsing_settings(docstring_parse_attribute_docstrings=self.explains)
        if inspect.isclass(self.owner):
            self.add_class_arguments(self.owner, as_group=False)
            return
        found = self.add_function_arguments(self.owner, as_group=False, as_positional=True)
        parameters = inspect.signature(self.owner).parameters.values()
        if len(found) < len(parameters) and any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise RuntimeError(f"{self.owner.__name__}: what it hands **options to cannot be imported")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what argparse and jsonargparse would print before they exit.

        Raises:
            InputError: always.
        """
        cause: BaseException | None = ex
        while cause is not None:
            if isinstance(cause, InputError):
                raise cause
            cause = cause.__cause__ or cause.__context__
        if found := re.match(r"unrecognized arguments: --([^\s=]+)", message):
            options = [action.dest for action in self._values() if action.option_strings]
            message = f"unknown option --{found[1]}{suggestion(found[1], options, '--')}"
        elif found := re.match(r"argument --(\S+): expected", message):
            message = f"--{found[1]} needs a value"
        elif found := re.match(r"argument \w+: invalid choice: '(.*?)'", message):
            message = f"no command {found[1]!r}{nearest(found[1], self.commands)}; commands: {', '.join(self.commands)}"
        elif found := re.match(r"the following arguments are required: (.*)", message):
            self.missing([key.split(".") for key in found[1].split(", ")])
        elif found := re.match(r'expected "(.*)" to be one of', message):
            self.missing([found[1].split(".")])
        command = self.prog.removeprefix("equicat").strip()
        raise InputError(f"{command}: {message}" if command else message)

    def missing(self, keys: Sequence[Sequence[str]]) -> NoReturn:
        """Say what is missing, after the commands that lead to it.

        Raises:
            InputError: always.
        """
        command, names = keys[0][0], [key[-1] for key in keys]
        if command in self.commands:
            self.commands[command].missing([key[1:] for key in keys])
        if self.commands:
            self.error(f"name a command: {', '.join(self.commands)}")
        options = {action.dest: action.option_strings for action in self._values()}
        self.error(f"give {', '.join((options[name] or [name.upper()])[0] for name in names)}")

    def _values(self) -> list[Action]:
        return [action for action in self._actions if isinstance(action.type, Value)]

    def _known(self, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """The mapping without parts that are empty.

        Raises:
            InputError: for a key that is no option, naming the nearest.
        """
        names, known = [action.dest for action in self._values()], {}
        for key, value in values.items():
            name = f"{prefix}{key}"
            if name in names:
                known[key] = value
            elif not any(other.startswith(f"{name}.") for other in names):
                raise InputError(f"unknown key {name!r}{suggestion(name, names)}")
            elif isinstance(value, Mapping):
                known[key] = self._known(value, f"{name}.")
            elif value is not None:
                raise InputError(f"{name} is {shown(value)}; it must be a mapping of its options to values")
        return known


def chosen_in(values: Mapping[str, Any]) -> dict[str, str]:
    """The ``name`` in each part of a configuration that has one: which dataclass is meant, of a union of them."""
    parts = {part: options for part, options in values.items() if isinstance(options, Mapping)}
    return {part: str(options["name"]) for part, options in parts.items() if "name" in options}


def asks_for_help(args: Sequence[str]) -> bool:
    """Whether help is among the words of a command line."""
    return not {"-h", "--help"}.isdisjoint(args)


def one_of(names: Iterable[str]) -> str:
    """Names to choose from, as in "it must be one of a, b"."""
    return f"one of {', '.join(names)}"


def suggestion(name: str, known: Sequence[str], dashes: str = "") -> str:
    """The known dotted name nearest to an unknown one: by its last part in the same place, then anywhere.

    Without a near one, the options that are in the same place.
    """
    place, _, last = name.rpartition(".")
    by_last = {k.rpartition(".")[2]: k for k in reversed(known)}
    by_last |= {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == place}
    by_last |= {part: part for part in dict.fromkeys(k.split(".")[0] for k in known) if not place}
    match = difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.5)
    if match:
        return f"; the nearest is {dashes}{by_last[match[0]]}"
    here = [k for k in known if k.rpartition(".")[0] == place]
    here = here or list(dict.fromkeys(k.split(".")[0] for k in known))
    return f"; options here: {', '.join(f'{dashes}{k}' for k in here)}" if here else ""
