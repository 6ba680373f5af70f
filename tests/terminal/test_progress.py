"""Progress: a bar on a terminal, plain lines in a file."""

import io
import sys

from equicat.terminal import progress
from equicat.terminal.progress import progress_bar


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_a_file_gets_whole_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    assert list(progress_bar(range(3), desc="relax", unit="system", leave=False)) == [0, 1, 2]
    text = capsys.readouterr().err
    assert "\r" not in text
    lines = text.splitlines()
    assert all(line.startswith("relax: ") for line in lines), lines
    assert "100% 3/3" in lines[-1]


def test_a_file_hears_nothing_of_short_work(capsys):
    assert list(progress_bar(range(3), desc="relax")) == [0, 1, 2]
    with progress_bar(total=3) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_work_of_unknown_length_is_counted(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    assert len(list(progress_bar((k for k in range(5)), desc="reading", unit=" files"))) == 5
    text = capsys.readouterr().err
    assert "5 files" in text
    assert "%" not in text


def test_a_terminal_gets_a_bar(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    assert list(progress_bar(range(3), desc="relax")) == [0, 1, 2]
    assert "\r" in screen.getvalue()
    assert progress_bar(range(3), disable=True).disable


def test_a_bar_that_is_off_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    assert list(progress_bar(range(3), disable=True)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
