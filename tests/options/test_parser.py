"""Options from signatures: of functions, of dataclasses, and of what a function hands its options to."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import jsonargparse
import pytest

from equicat import InputError
from equicat.options.parser import Group, Parser, suggestion
from equicat.options.values import Checked, Positive, Words


@dataclass(frozen=True)
class Net(Checked, section="net"):
    """A small network."""

    name: Literal["net"] = "net"
    """Which network."""
    width: Positive = 8
    """How wide."""


@dataclass(frozen=True)
class Tree(Checked, section="net"):
    """A tree."""

    name: Literal["tree"] = "tree"
    """Which network."""
    depth: Positive = 3
    """How deep."""


@dataclass(frozen=True)
class Run(Checked, section="run"):
    """How long."""

    epochs: Positive = 5
    """Passes."""
    strict: bool = False
    """Stop early."""


@dataclass(frozen=True)
class Config(Checked):
    """A configuration."""

    net: Net | Tree = field(default_factory=Net)
    """The network."""
    run: Run = field(default_factory=Run)
    files: tuple[str, ...] = ()
    """Files to read."""
    extra: Annotated[tuple[str, ...], Words()] = ()
    """Files to read as well."""


def work(out: str, *, size: Positive, seed: int = 0) -> int:
    """Do it.

    Args:
        out: Where to write.
        size: How much.
        seed: Decides the draw.
    """
    return size


def command(*, from_: str | None = None, **options: Any) -> int:
    """A command that hands its options on.

    It does more.

    Args:
        from_: Where from.
    """
    return work(**options)


def parse(*arguments: str) -> Config:
    parser = Parser(Config, prog="equicat test")
    return Config(**parser.instantiate(parser.parse_args(list(arguments))).as_dict())


def read(values: dict, source: str = "") -> Config:
    parser = Parser(Config)
    options = parser.instantiate(parser.read(values, source)).as_dict()
    return Config(**{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})


def test_options_of_a_dataclass_and_of_its_parts():
    assert parse() == Config()
    found = parse("--run.epochs", "7", "--net.width=16", "--files", "a.xyz", "--run.strict")
    assert found == Config(Net(width=16), Run(7, True), ("a.xyz",))
    assert parse("--files", "[a, NO]").files == ("a", "NO")
    assert parse("--run.strict", "false").run.strict is False


def test_options_of_what_a_function_calls():
    parser = Parser(command, prog="equicat test")
    found = parser.parse_args(["there", "--size", "3", "--from", "here"]).as_dict()
    assert found == {"from_": "here", "out": "there", "size": 3, "seed": 0}
    text = " ".join(parser.format_help().split())
    assert "A command that hands its options on. It does more." in text
    assert "--from FROM Where from. (text, or null; default: null)" in text
    assert "--size SIZE How much. (a whole number of at least 1)" in text
    assert "out Where to write. (text)" in text


def test_a_mapping_is_read_as_the_command_line_is():
    values = {"run": {"epochs": "7", "strict": "yes"}, "files": "a.xyz", "net": None}
    assert read(values) == Config(Net(), Run(7, True), ("a.xyz",))
    assert read({"run": {"epochs": 7}}) == Config(run=Run(7))


def test_the_name_decides_which_dataclass_an_option_is():
    assert read({"net": {"name": "tree", "depth": 2}}).net == Tree(depth=2)
    with pytest.raises(InputError, match=r"a\.yaml: unknown key 'net\.width'"):
        read({"net": {"name": "tree", "width": 2}}, "a.yaml")
    with pytest.raises(InputError, match=r"net\.name is tre \(did you mean 'tree'\?\); it must be one of net, tree"):
        read({"net": {"name": "tre"}})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run.epoch", "3"], "test: unknown option --run.epoch; the nearest is --run.epochs"),
        (["--epochs", "3"], "test: unknown option --epochs; the nearest is --run.epochs"),
        (["--run.xyz", "3"], "test: unknown option --run.xyz; options here: --run.epochs, --run.strict"),
        (["--run.e", "3"], "test: unknown option --run.e"),
        (["--run.epochs", "0"], "run.epochs is 0; it must be a whole number of at least 1"),
        (["--run.epochs", "-1e-3"], "run.epochs is -1e-3; it must be a whole number of at least 1"),
        (["--run.epochs"], "test: --run.epochs needs a value"),
        (["--run.strict", "maybe"], "run.strict is maybe; it must be true or false"),
        (["word"], "test: unrecognized arguments: word"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(InputError) as error:
        parse(*arguments)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rum": {}}, "a.yaml: unknown key 'rum'; the nearest is run"),
        ({"run": {"epoch": 3}}, "a.yaml: unknown key 'run.epoch'; the nearest is run.epochs"),
        ({"run": 3}, "a.yaml: run is 3; it must be a mapping of its options to values"),
        ({"run": {"epochs": "many"}}, "a.yaml: run.epochs is many; it must be a whole number of at least 1"),
        ({"files": {"a": "b"}}, "a.yaml: files is {a: b}; it must be a list of text"),
    ],
)
def test_bad_mappings_are_one_line(values, message):
    with pytest.raises(InputError) as error:
        read(values, "a.yaml")
    assert str(error.value) == message


def test_entries_of_a_list_can_be_words():
    parser = Parser(Config, prog="equicat test")
    assert parser.parse_args(["--extra", "a", "b"]).extra == ["a", "b"]


def test_suggestions_prefer_the_same_place():
    known = ["run.epochs", "net.epochs", "net.name"]
    assert suggestion("net.epoch", known) == "; the nearest is net.epochs"
    assert suggestion("epoch", known) == "; the nearest is run.epochs"
    assert suggestion("nett", known) == "; the nearest is net"


def test_a_command_whose_functions_cannot_be_imported_is_a_defect():
    def broken(**options: Any) -> None:
        """Nothing."""
        from equicat.options import nothing  # type: ignore[attr-defined]

        nothing.work(**options)

    with pytest.raises(RuntimeError, match="broken: what it hands \\*\\*options to cannot be imported"):
        Parser(broken).parse_args([])


def test_parsers_of_other_packages_keep_their_groups():
    class Theirs(jsonargparse.ArgumentParser):
        def add_argument(self, *names, **how):
            return super().add_argument(*names, **how)

    group = Theirs().add_argument_group("theirs")
    assert isinstance(group, jsonargparse._core.ArgumentGroup)
    assert not isinstance(group, Group)
    assert isinstance(Parser(Config).add_argument_group("ours"), Group)
