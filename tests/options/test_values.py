"""Tests of what an option may be: limits, words, and text that becomes a value only where the type asks for it."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import pytest

from equicat import InputError
from equicat.options.text import load_text, read_yaml
from equicat.options.values import (
    Checked,
    Device,
    Length,
    Natural,
    Number,
    Positive,
    PositiveNumber,
    Range,
    Seed,
    Share,
    read_value,
    words,
)

LIMIT = Annotated[float, Range(above=0, infinite=True)]
WIDTHS = Annotated[tuple[Positive, ...], Length(2)]


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("3", Positive, 3),
        (3, Positive, 3),
        ("1e5", PositiveNumber, 1e5),
        (2, Number, 2.0),
        (".inf", LIMIT, float("inf")),
        ("inf", LIMIT, float("inf")),
        ("null", Positive | None, None),
        (None, Positive | None, None),
        ("yes", bool, True),
        ("off", bool, False),
        (True, bool, True),
        ("no", str, "no"),
        ("1e5", str, "1e5"),
        ("a", Literal["a", "b"], "a"),
        ("auto", Literal["auto"] | Positive, "auto"),
        ("2", Literal["auto"] | Positive, 2),
        ("a.xyz", tuple[str, ...], ("a.xyz",)),
        (["a.xyz"], tuple[str, ...], ("a.xyz",)),
        ("[]", tuple[str, ...], ()),
        ("64", tuple[Positive, ...], (64,)),
        ("[8, 16]", WIDTHS, (8, 16)),
        ("{split: no}", dict[str, str], {"split": "no"}),
        ("{N: -1, No: 2}", Literal["linear", "none"] | dict[str, Number], {"N": -1.0, "No": 2.0}),
        ("cuda:1", Device, "cuda:1"),
    ],
)
def test_values_become_what_their_type_asks_for(value, hint, expected):
    found = read_value("x", value, hint)
    assert found == expected
    assert type(found) is type(expected)
    assert read_value("x", found, hint) == expected, "a value that was read is read as itself"


@pytest.mark.parametrize(
    "text", ["NO", "No", "N", "Y", "y", "on", "off", "F", "1e5", "012", "0x10", "1_000", "2.50", "1:30"]
)
def test_text_stays_text_where_text_is_wanted(text, tmp_path):
    assert read_value("x", text, str) == text
    assert read_value("x", f"[CO, {text}]", tuple[str, ...]) == ("CO", text)
    assert read_value("x", f"{{{text}: {text}}}", dict[str, str]) == {text: text}
    path = tmp_path / "a.yaml"
    path.write_text(f"{text}: [{text}]\nnothing: null\n")
    assert read_yaml(path) == {text: [text], "nothing": None}


@pytest.mark.parametrize(
    ("value", "hint", "what"),
    [
        ("0", Positive, "a whole number of at least 1"),
        ("1.5", Positive, "a whole number of at least 1"),
        (True, Positive, "a whole number of at least 1"),
        ("-1", Positive | None, "a whole number of at least 1, or null"),
        ("-1", Natural, "a whole number of at least 0"),
        (2**32, Seed, "a whole number of at least 0 and at most 4294967295"),
        ("nan", PositiveNumber, "a number above 0"),
        ("inf", PositiveNumber, "a number above 0"),
        ("nan", LIMIT, "a number above 0"),
        ("1.1", Share, "a number of at least 0 and at most 1"),
        ("maybe", bool, "true or false"),
        (None, str, "text"),
        (False, str, "text"),
        ("c", Literal["a", "b"], "one of a, b"),
        ("x", Literal["auto"] | Positive, "auto or a whole number of at least 1"),
        ("[8]", WIDTHS, "a list of whole numbers of at least 1, with at least 2 of them"),
        ("[8, 0]", WIDTHS, "a list of whole numbers of at least 1, with at least 2 of them"),
        ("[8", WIDTHS, "a list of whole numbers of at least 1, with at least 2 of them"),
        ("[a, null]", tuple[str, ...], "a list of text"),
        ("a", dict[str, str], "a mapping of names to text, such as {a: b}"),
        ("gpu", Device, "auto, cpu, cuda or cuda:N"),
    ],
)
def test_what_makes_no_sense_is_one_line_with_what_it_may_be(value, hint, what):
    with pytest.raises(InputError) as error:
        read_value("run.x", value, hint)
    assert str(error.value).startswith("run.x is ")
    assert str(error.value).endswith(f"; it must be {what}")
    assert words(hint) == what


@dataclass(frozen=True)
class Part(Checked, section="part"):
    size: Positive = 4
    share: Share = 0.5
    names: tuple[str, ...] = ()


def test_dataclasses_of_options_are_checked_wherever_they_are_made():
    assert Part(size=2).names == ()
    with pytest.raises(InputError, match=r"^part\.size is 0; it must be a whole number of at least 1$"):
        Part(size=0)
    with pytest.raises(InputError, match=r"^part\.share is nan; "):
        replace(Part(), share=float("nan"))


def test_long_values_are_shortened_in_messages():
    with pytest.raises(InputError) as error:
        read_value("x", "9" * 1000 + "a", Positive)
    assert len(str(error.value)) < 150


def test_yaml_that_is_none_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("a: [1")
    with pytest.raises(InputError, match=r"a\.yaml: not valid YAML"):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"a\.yaml: cannot read the configuration \(not text\)"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(InputError, match="cannot read the configuration"):
        read_yaml(tmp_path)
    assert load_text("a: &x {b: 1}\nc: {<<: *x}") == {"a": {"b": "1"}, "c": {"b": "1"}}
