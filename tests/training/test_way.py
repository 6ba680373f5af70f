"""The way from the command to the network is the one that docs/architecture.md lists."""

import re
import sys

import pytest
import yaml
from conftest import configuration
from places import ROOT

from equicat.cli.main import main
from equicat.kernels.cpu import build
from equicat.networks.allegro import Allegro

PACKAGE = f"{ROOT}/equicat/"


class Arrived(Exception):
    """The end of the way."""


def listed() -> list[list[tuple[str, str]]]:
    """Functions in Python and their files, by table of the page."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("## From the command to the network")[1].split("\n## ")[0]
    return [re.findall(r"\| `([\w.]+)`.* \| `([\w/]+\.py)` \|", table) for table in section.split("|---|---|")[1:]]


def way_here() -> list[tuple[str, str]]:
    """Functions of the package that are running, and their files, outermost first."""
    frame, found = sys._getframe(1), []
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            found.append((frame.f_code.co_qualname, frame.f_code.co_filename.removeprefix(PACKAGE)))
        frame = frame.f_back
    return found[::-1]


@pytest.mark.parametrize(
    ("table", "native", "owner", "name"),
    [(1, "0", Allegro, "forward"), (2, "1", build, "call")],
    ids=["operators", "kernel"],
)
def test_the_page_lists_every_call(data, tmp_path, monkeypatch, table, native, owner, name):
    if native == "1" and build.compiler() is None:
        pytest.skip("there is no C++ compiler on this machine")
    tables, function, ways = listed(), getattr(owner, name), []
    *way, _ = tables[0] + tables[table]  # to where the last one is called, in whose place stands `watched`

    def watched(*arguments):
        if ("TrainingModule.training_step", "training/module.py") in way_here() and way_here()[-1] == way[-1]:
            ways.append(way_here())
            raise Arrived
        return function(*arguments)

    monkeypatch.setenv("EQUICAT_NATIVE", native)
    monkeypatch.setattr(owner, name, watched)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(configuration(data, tmp_path / "run")))
    with pytest.raises(Arrived):
        main(["train", str(file)])
    assert ways == [way]
