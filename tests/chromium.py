"""A headless Chromium for tests of pages; without one, or without playwright, they are skipped and say so."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--use-gl=angle",  # WebGL without a GPU
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--no-first-run",
)


@dataclass
class Watched:
    """A page, and what went wrong on it."""

    page: Any
    problems: list[str] = field(default_factory=list)
    """Messages of the console, errors, and requests for anything but the file itself."""

    def open(self, file: Path) -> None:
        """Load a file and wait until it is there."""
        self.page.goto(file.as_uri())


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium with a profile of its own."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'"
    )
    playwright.expect.set_options(timeout=60_000)  # a machine may be busy
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=found, args=list(FLAGS))
        yield chromium
        chromium.close()


@contextmanager
def watched(chromium: Any, width: int = 1100) -> Iterator[Watched]:
    """A new page, ``width`` pixels wide, which notes what goes wrong."""
    page = chromium.new_page(viewport={"width": width, "height": 900})
    seen = Watched(page)
    page.on("console", lambda message: seen.problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.problems.append(str(error)))
    page.on("request", lambda request: seen.problems.extend(_outside(request.url)))
    yield seen
    page.close()


def _outside(url: str) -> list[str]:
    return [] if url.startswith(("file:", "data:", "blob:")) else [f"request: {url}"]


def colours(canvas: Any) -> int:
    """The number of colours in what an element shows."""
    pixels = imread(io.BytesIO(canvas.screenshot()))
    return len({tuple(pixel) for row in pixels for pixel in row.round(2).tolist()})
