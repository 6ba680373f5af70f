"""The figures of a page as files: SVG, PNG, and their numbers as CSV."""

import re
from collections.abc import Iterable
from pathlib import Path

from equicat.errors import InputError
from equicat.files import writing_to
from equicat.report.content import Figure


def write_figures(folder: Path, named: Iterable[tuple[str, Figure]]) -> list[Path]:
    """Write each figure as ``NAME.svg``, ``NAME.png`` and ``NAME.csv``, in words from its section, title and captions.

    Args:
        folder: made if it is not there; files of the same names are replaced.
        named: figures with what their names begin with.

    Returns:
        The files.

    Raises:
        InputError: if the folder is a file or cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; figures go to a folder")
    written, taken = list[Path](), set[str]()
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for section, figure in named:
            if figure.drawing is None:
                continue
            stem = _stem(f"{section} {figure.title}")
            if stem in taken:
                stem = _stem(f"{section} {figure.title} {' '.join(figure.details)}")
            while stem in taken:
                stem += "-again"
            taken.add(stem)
            written += figure.drawing.write(folder, stem)
    return written


def _stem(text: str) -> str:
    """The letters and digits of a text, words joined by hyphens; units in brackets are left out."""
    words = re.findall(r"[a-z0-9_]+", re.sub(r"\[[^]]*\]", "", text).lower())
    return "-".join(words)[:100] or "figure"
