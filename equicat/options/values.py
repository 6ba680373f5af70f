"""Values of options: types with limits, words for them, and how text becomes a value.

A limit stands in the type of a field or parameter, beside its default, and nowhere else::

    batch_size: Positive = 16

:class:`Checked` dataclasses refuse every other value wherever they are made; the command line and YAML files read
theirs with :func:`read_value`. The message is the same: the option, its value, and what it may be.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from equicat.errors import InputError
from equicat.options.text import load_text

LONGEST_SHOWN = 60
"""Characters of a refused value that a message repeats."""


@dataclass(frozen=True)
class Range:
    """Numbers between limits; finite ones, unless ``infinite``."""

    at_least: int | float | None = None
    above: int | float | None = None
    at_most: int | float | None = None
    below: int | float | None = None
    infinite: bool = False

    def allows(self, number: int | float) -> bool:
        """Whether a number lies between the limits."""
        return (
            (self.infinite or math.isfinite(number))
            and (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )

    def words(self, base: str) -> str:
        """``base``, such as "a number", and the limits."""
        limits = {"of at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        said = [f"{name} {limit:.10g}" for name, limit in limits.items() if limit is not None]
        return " ".join([base, " and ".join(said)]).strip()


@dataclass(frozen=True)
class Length:
    """Lists with at least so many entries."""

    at_least: int

    def allows(self, entries: tuple[Any, ...]) -> bool:
        """Whether a list has enough entries."""
        return len(entries) >= self.at_least

    def words(self, base: str) -> str:
        """``base``, such as "a list of text", and the number of entries."""
        return f"{base}, with at least {self.at_least} of them"


@dataclass(frozen=True)
class Form:
    """Text of a certain form: what to call it, and the pattern that all of the text matches."""

    name: str
    pattern: str

    def allows(self, text: str) -> bool:
        """Whether a text has the form."""
        return re.fullmatch(self.pattern, text) is not None

    def words(self, base: str) -> str:
        """The form's own name, in place of ``base``."""
        return self.name


@dataclass(frozen=True)
class Words:
    """On the command line the entries of this list are words of their own, not one list in brackets."""

    positional: bool = False
    """The words stand without the option's name before them."""

    def allows(self, entries: tuple[Any, ...]) -> bool:
        """Any list will do."""
        return True

    def words(self, base: str) -> str:
        """``base`` as it is."""
        return base


Positive = Annotated[int, Range(at_least=1)]
Natural = Annotated[int, Range(at_least=0)]
Seed = Annotated[int, Range(at_least=0, at_most=2**32 - 1)]
Number = Annotated[float, Range()]
PositiveNumber = Annotated[float, Range(above=0)]
NonNegativeNumber = Annotated[float, Range(at_least=0)]
Cutoff = Annotated[float, Range(at_least=0.5, at_most=100)]
Degree = Annotated[int, Range(at_least=0, at_most=12)]
Depth = Annotated[int, Range(at_least=1, at_most=100)]
ExtraDepth = Annotated[int, Range(at_least=0, at_most=100)]
Width = Annotated[int, Range(at_least=1, at_most=16384)]
WidthOfSeveral = Annotated[int, Range(at_least=2, at_most=16384)]
"""Width over which a variance can be taken."""
EnvelopeExponent = Annotated[int, Range(at_least=2, at_most=100)]
Workers = Annotated[int, Range(at_least=1, at_most=1024)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
Interval = Annotated[
    str, Form("text such as 500 steps or 10 minutes", r"[1-9]\d* steps?|(?=.*[1-9])\d+(\.\d+)? minutes?")
]
"""Distance between two events of a training, in steps or minutes."""
Device = Annotated[str, Form("auto, cpu, cuda or cuda:N", r"auto|cpu|cuda(:\d+)?")]


@dataclass(frozen=True)
class Checked:
    """Base of dataclasses of options: what is outside the type of its field is refused, and lists become tuples.

    Args of the subclass:
        section: where the options stand in a configuration, such as ``run``; messages name ``run.batch_size``.

    Raises:
        InputError: naming the option, its value and what it may be.
    """

    section: ClassVar[str] = ""

    def __init_subclass__(cls, section: str = "") -> None:
        cls.section = section

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for name, hint in hints_of(cls).items():
            object.__setattr__(self, name, read_value(self.option(name), getattr(self, name), hint))

    @classmethod
    def option(cls, name: str) -> str:
        """The name of a field's option in messages."""
        return f"{cls.section}.{name}" if cls.section else name


@dataclass(frozen=True)
class Imported(Checked):
    """Base of dataclasses of options that stand for others, each found by a ``name`` with a colon in it."""

    @classmethod
    def find(cls, name: str) -> "type[Imported]":
        """The dataclass of that name.

        Raises:
            InputError: if there is none.
        """
        raise NotImplementedError


@cache
def hints_of(cls: Any) -> dict[str, Any]:
    """The type of every field of a dataclass, limits included."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


def read_value(name: str, value: Any, hint: Any) -> Any:
    """The value of an option, from Python, YAML or the command line.

    Text becomes what the type asks for, and stays text where that is text; one value in the place of a list is a list
    of one.

    Raises:
        InputError: naming the option, its value and what it may be.
    """
    try:
        return _converted(value, hint)
    except ValueError as error:
        raise InputError(f"{name} is {shown(value)}; it must be {words(hint)}") from error


def shown(value: Any) -> str:
    """A value as one would type it, shortened."""
    if isinstance(value, list | tuple):
        text = f"[{', '.join(map(shown, value))}]"
    elif isinstance(value, Mapping):
        text = f"{{{', '.join(f'{k}: {shown(v)}' for k, v in value.items())}}}"
    elif value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    else:
        text = str(value) or "empty"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def words(hint: Any, plural: bool = False) -> str:
    """A type in words, as in "it must be a whole number of at least 1"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        said = words(arguments[0], plural)
        for limit in hint.__metadata__:
            said = limit.words(said)
        return said
    if origin in (Union, UnionType):
        said = " or ".join(dict.fromkeys(words(member) for member in arguments if member is not NoneType))
        return f"{said}, or null" if NoneType in arguments else said
    if origin is Literal:
        return arguments[0] if len(arguments) == 1 else f"one of {', '.join(arguments)}"
    if origin is tuple:
        return f"a list of {words(arguments[0], plural=True)}"
    if origin is dict:
        return f"a mapping of names to {words(arguments[1], plural=True)}, such as {{a: b}}"
    singular, several = WORDS.get(hint, (hint.__name__, hint.__name__))
    return several if plural else singular


WORDS = {
    NoneType: ("null", "null"),
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "text"),
    Path: ("text", "text"),
}
"""The name of each plain type, for one value and for several."""


def _converted(value: Any, hint: Any) -> Any:
    """The value as the type asks for it.

    Raises:
        ValueError: if it cannot be that.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = _converted(value, arguments[0])
        if all(limit.allows(value) for limit in hint.__metadata__):
            return value
    elif origin in (Union, UnionType):
        for member in sorted(arguments, key=lambda member: member is not NoneType):  # null first: it is text as well
            try:
                return _converted(value, member)
            except ValueError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        return tuple(_converted(entry, arguments[0]) for entry in _entries(value))
    elif origin is dict:
        mapping = _loaded(value, "{")
        if isinstance(mapping, Mapping):
            return {_converted(k, arguments[0]): _converted(v, arguments[1]) for k, v in mapping.items()}
    elif is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
    else:
        return SCALARS[hint](value)
    raise ValueError(value)


def _entries(value: Any) -> list[Any] | tuple[Any, ...]:
    value = _loaded(value, "[")
    return value if isinstance(value, list | tuple) else (value,)


def _loaded(value: Any, bracket: str) -> Any:
    """A list or mapping that the command line gives as text; everything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(bracket):
        return value
    try:
        return load_text(value)
    except yaml.YAMLError as error:
        raise ValueError(value) from error


def _null(value: Any) -> None:
    if value is not None and value not in ("null", "~"):
        raise ValueError(value)


def _boolean(value: Any) -> bool:
    text = str(value).lower() if isinstance(value, str | bool) else ""
    if text not in ("true", "false", "yes", "no", "on", "off"):
        raise ValueError(value)
    return text in ("true", "yes", "on")


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral | str):
        raise ValueError(value)
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real | str):
        raise ValueError(value)
    number = float(re.sub(r"^([+-]?)\.(inf|nan)$", r"\1\2", value.lower()) if isinstance(value, str) else value)
    if math.isnan(number):
        raise ValueError(value)
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    return value


def _path(value: Any) -> Path:
    if not isinstance(value, str | Path):
        raise ValueError(value)
    return Path(value)


SCALARS = {NoneType: _null, bool: _boolean, int: _whole, float: _number, str: _text, Path: _path}
"""For each plain type the function that makes it of a value, or raises ValueError."""
